"""The dense GANs that ship with the package, and the command that makes them.

``python -m ganprune.experiments.pretrained dcgan-mnist`` trains one, evaluates it and writes it into the package. A
killed run goes on from its last checkpoint.

The recipes were chosen by digit-FID on validation among pilot runs of one seed each, so that figure is optimistic.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ganprune.core.checks import check_choice
from ganprune.core.files import cache_dir
from ganprune.data.sources import mnist
from ganprune.metrics.fidelity import evaluate
from ganprune.networks.build import SPECTRAL_GAIN, mlp_gan
from ganprune.networks.checkpoints import PRETRAINED_FOLDER, save
from ganprune.networks.convolutional import DCGANDiscriminatorSpec, DCGANGeneratorSpec
from ganprune.networks.gan import GAN, GANSpec
from ganprune.records.store import config_hash, provenance
from ganprune.training.callbacks import Checkpoint, every
from ganprune.training.config import TrainConfig
from ganprune.training.loop import train
from ganprune.training.state import TrainState


@dataclass(frozen=True)
class Recipe:
    """How a shipped GAN is made."""

    make: Callable[[int], GAN]
    config: TrainConfig


def _dcgan(seed: int) -> GAN:
    """The generator is twice as wide as the discriminator; the better of two widths in pilots of one seed each."""
    spec = GANSpec(
        DCGANGeneratorSpec(channels=(256, 128, 64)),
        DCGANDiscriminatorSpec(channels=(32, 64, 128), logit_gain=SPECTRAL_GAIN),
    )
    return GAN.from_spec(spec, seed, "cpu")


def _mlp(seed: int) -> GAN:
    return mlp_gan(hidden=(256, 256), seed=seed, device="cpu")


RECIPES = {
    "dcgan-mnist": Recipe(
        _dcgan, TrainConfig(steps=40_000, learning_rate=1.5e-3, decay_from=0.7, ema_decay=0.999)
    ),
    "mlp-mnist": Recipe(
        _mlp,
        TrainConfig(
            steps=60_000,
            loss="non-saturating",
            penalty="r1",
            learning_rate=2e-3,
            decay_from=0.25,
            ema_decay=0.999,
        ),
    ),
}


def make(name: str, seed: int = 0, folder: str | Path | None = None) -> Path:
    """Trains, evaluates on validation, and writes the checkpoint; returns its path.

    Args:
        name: a key of :data:`RECIPES`.
        seed: determines weights, batches and latents.
        folder: where the checkpoint goes; None for the package's own assets.
    """
    check_choice("name", name, RECIPES)
    recipe, data = RECIPES[name], mnist()
    config = dataclasses.replace(recipe.config, seed=seed)
    partial = cache_dir() / f"{name}-{config_hash(config)}.partial.safetensors"
    device = data.train.device
    state = TrainState.resume(partial, lambda: TrainState(recipe.make(seed).to(device), config), device)
    train(state, data.train, [every(2_000, Checkpoint(partial), at_end=False)])
    report = evaluate(
        state.gan.generator_ema,
        data.validation,
        discriminator=state.gan.discriminator,
        loss=state.config.loss,
    )
    state.gan.metadata = {
        "command": f"python -m ganprune.experiments.pretrained {name} --seed {seed}",
        "config": dataclasses.asdict(state.config),
        "validation": report.as_dict(),
        "provenance": provenance(),
    }
    path = Path(folder or PRETRAINED_FOLDER) / f"{name}.safetensors"
    save(path, state.gan)
    partial.unlink(missing_ok=True)
    return path


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description="Train a GAN that ships with the package.")
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the checkpoint goes (default: the package's assets)")
    options = parser.parse_args()
    make(options.name, options.seed, options.folder)


if __name__ == "__main__":
    main()
