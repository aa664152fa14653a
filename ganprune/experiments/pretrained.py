"""The dense GANs that ship with the package, and the command that makes them.

``python -m ganprune.experiments.pretrained dcgan-mnist`` writes the course's five pairs (seeds 0 to 4), and of seed 0
the initialisation and an early state as well. They are the pairs that all recorded experiments start from. Those that
are in the cache folder are not trained again, and a killed run goes on from its last checkpoint. ``mlp-mnist`` is the
fully connected GAN of chapter 1.

The recipes were chosen by digit-FID on validation on other seeds, see "How we train".
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ganprune.core.files import cache_dir
from ganprune.data.splits import ImageData
from ganprune.experiments.arms import arms_of
from ganprune.experiments.base import course_data
from ganprune.experiments.studies import SEEDS
from ganprune.metrics.fidelity import evaluate
from ganprune.networks.build import mlp_gan
from ganprune.networks.checkpoints import PRETRAINED, pretrained_path, save
from ganprune.networks.gan import GAN
from ganprune.records.store import config_hash, provenance
from ganprune.training.callbacks import Checkpoint, every
from ganprune.training.config import TrainConfig
from ganprune.training.loop import train
from ganprune.training.state import TrainState

EARLY = 0.125
"""The share of the steps after which the early state is taken."""
MLP_TRAINING = TrainConfig(
    steps=60_000, learning_rate=2e-3, betas=(0.5, 0.999), penalty_weight=10.0, penalty_every=1
)


def make(name: str, folder: str | Path | None = None) -> list[Path]:
    """Trains what is not there yet, evaluates it on validation, and writes the checkpoints.

    Args:
        name: "dcgan-mnist" or "mlp-mnist".
        folder: where the checkpoints go; None for the package's own assets.

    Returns:
        The files.
    """
    data = course_data()
    if name == "mlp-mnist":
        state = _mlp(data)
        return [_save(name, pretrained_path(name, folder=folder), state.gan, state, data, {})]
    dense, paths = arms_of("laptop").dense, []
    remarks = {"key": config_hash(dense)}
    for seed in SEEDS:
        state = dense.trained(seed, data)
        paths.append(_save(name, pretrained_path(name, seed, folder=folder), state.gan, state, data, remarks))
    for moment, step in (("initial", 0), ("early", round(EARLY * dense.steps))):
        config = dataclasses.replace(dense.training, seed=0)
        state = TrainState(dense.initial(0), config)
        train(state, data.train, until=step)
        paths.append(_save(name, pretrained_path(name, 0, moment, folder), state.gan, state, data, {}))
    return paths


def _mlp(data: ImageData) -> TrainState:
    """The fully connected GAN, trained; resumed after a stop."""
    path = cache_dir() / f"mlp-mnist-{config_hash(MLP_TRAINING)}.safetensors"
    device = data.train.device

    def start() -> TrainState:
        return TrainState(mlp_gan(hidden=(256, 256), device=device), MLP_TRAINING)

    return train(TrainState.resume(path, start, device), data.train, [every(2_000, Checkpoint(path))])


def _save(
    name: str, path: Path, gan: GAN, state: TrainState, data: ImageData, remarks: dict[str, Any]
) -> Path:
    report = evaluate(gan, data.validation, loss=state.config.loss)
    gan.metadata = {
        **remarks,
        "command": f"python -m ganprune.experiments.pretrained {name}",
        "config": dataclasses.asdict(state.config),
        "step": state.step,
        "validation": report.as_dict(),
        "provenance": provenance(),
    }
    save(path, gan)
    return path


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description="Train the GANs that ship with the package.")
    parser.add_argument("name", choices=PRETRAINED)
    parser.add_argument("--folder", help="where the checkpoints go (default: the package's assets)")
    options = parser.parse_args()
    make(options.name, options.folder)


if __name__ == "__main__":
    main()
