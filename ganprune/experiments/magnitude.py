"""Quality against sparsity: magnitude and random pruning of the generator, before and after fine-tuning.

``python -m ganprune.experiments.magnitude`` records it: each seed trains its own dense pair first. Rows go to
``ganprune/assets/records/magnitude.jsonl``; a second call with the same settings runs only the seeds that are missing.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganprune.core.files import cache_dir
from ganprune.data.sources import mnist
from ganprune.data.splits import ImageData
from ganprune.metrics.fidelity import evaluate
from ganprune.networks.build import dcgan
from ganprune.networks.gan import GAN
from ganprune.pruning import prune
from ganprune.records.store import SHIPPED, config_hash, run
from ganprune.training.callbacks import Checkpoint, every
from ganprune.training.config import TrainConfig
from ganprune.training.loop import train
from ganprune.training.recalibration import recalibrate_batchnorm
from ganprune.training.state import TrainState


@dataclass(frozen=True)
class MagnitudeCurve:
    """One-shot global pruning of a trained generator at several sparsities, each fine-tuned equally long.

    The generator that is pruned has the dense run's EMA weights; batch-norm statistics are recalibrated after pruning;
    fine-tuning goes on with the trained discriminator. Sparsity 0 is the control: dense, trained just as long.

    Attributes:
        name: of the experiment, in the records.
        width: of generator and discriminator.
        dense_steps: of the dense training, with its learning rate decayed to zero.
        finetune_steps: of each fine-tuning.
        finetune_learning_rate: held for half of the steps, then decayed to zero.
        sparsities: shares of the generator's prunable weights that are set to zero.
        scores: "magnitude", "random".
        samples: generated per evaluation.
    """

    name: str = "magnitude"
    width: int = 32
    dense_steps: int = 24_000
    finetune_steps: int = 1_000
    finetune_learning_rate: float = 1e-3
    sparsities: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95)
    scores: tuple[str, ...] = ("magnitude", "random")
    samples: int = 10_000

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row per arm, on the validation split: score, sparsity, stage, metrics, arithmetic of the fine-tuning."""
        data = mnist()
        dense = dense_gan(self.width, self.dense_steps, seed, data)
        yield {"score": "dense", "sparsity": 0.0, "stage": "pruned", **self._fid(dense.generator_ema, data)}
        arms = [("dense", 0.0), *((score, sparsity) for score in self.scores for sparsity in self.sparsities)]
        for score, sparsity in arms:
            yield from self._arm(dense, data, score, sparsity, seed)

    def _arm(
        self, dense: GAN, data: ImageData, score: str, sparsity: float, seed: int
    ) -> Iterator[dict[str, Any]]:
        gan = copy.deepcopy(dense)
        gan.generator.load_state_dict(dense.generator_ema.state_dict())
        row: dict[str, Any] = {"score": score, "sparsity": sparsity}
        if score != "dense":
            row["achieved_sparsity"] = prune(gan, sparsity, score=score, seed=seed).sparsity
            yield {**row, "stage": "pruned, not recalibrated", **self._fid(gan.generator, data)}
            recalibrate_batchnorm(gan.generator, seed=seed)
            gan.generator_ema.load_state_dict(gan.generator.state_dict())
            yield {**row, "stage": "pruned", **self._fid(gan.generator, data)}
        config = TrainConfig(
            steps=self.finetune_steps, learning_rate=self.finetune_learning_rate, seed=finetuning_seed(seed)
        )
        state = train(TrainState(gan, config), data.train)
        row["arithmetic"] = state.config.precision
        report = self._measure(gan.generator_ema, data, discriminator=gan.discriminator, loss=config.loss)
        yield {**row, "stage": "fine-tuned", **report}
        yield {**row, "stage": "fine-tuned, raw weights", **self._fid(gan.generator, data)}

    def _measure(self, generator: Any, data: ImageData, **options: Any) -> dict[str, Any]:
        report = evaluate(generator, data.validation, samples=self.samples, **options).as_dict()
        report["latent_seed"] = report.pop("seed")
        return {key: value for key, value in report.items() if value is not None}

    def _fid(self, generator: Any, data: ImageData) -> dict[str, Any]:
        """The distance alone, where a row only tells how much fine-tuning has to repair."""
        return self._measure(generator, data, metrics=("fid",))


def finetuning_seed(seed: int) -> int:
    """The seed of the fine-tuning that follows a dense run, so that it does not see the same batches again."""
    return seed + 1_000_000


def dense_gan(width: int, steps: int, seed: int, data: ImageData) -> GAN:
    """A dense DCGAN trained on ``data.train``; kept in the cache folder, and resumed there after a stop.

    The file is named after the configuration, so a run of another one is never taken for this one.
    """
    config = TrainConfig(steps, learning_rate=1.5e-3, decay_from=0.25, ema_decay=0.999, seed=seed)
    path = cache_dir() / f"dense-{data.name}-{width}-{config_hash(config)}.safetensors"
    state = TrainState.resume(path, lambda: TrainState(dcgan(width=width, seed=seed), config))
    return train(state, data.train, [every(2_000, Checkpoint(path))]).gan


def main() -> None:
    """The command line of this module."""
    default = MagnitudeCurve()
    parser = argparse.ArgumentParser(description="Record the quality-sparsity curve of magnitude pruning.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--store", type=Path, default=SHIPPED / "magnitude.jsonl")
    for field in ("width", "dense_steps", "finetune_steps"):
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=getattr(default, field))
    options = vars(parser.parse_args())
    seeds, store = options.pop("seeds"), options.pop("store")
    run(dataclasses.replace(default, **options), seeds, store)


if __name__ == "__main__":
    main()
