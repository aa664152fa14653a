"""What every experiment is: a frozen configuration, and a function of (configuration, seed) that yields figures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ganprune.core.modes import eval_mode
from ganprune.data.sources import mnist
from ganprune.data.splits import ImageData
from ganprune.losses import generator_loss
from ganprune.masks.weights import prunable_weights
from ganprune.metrics.fidelity import evaluate_images
from ganprune.networks.gan import GAN
from ganprune.networks.sampling import sample
from ganprune.records.store import config_hash
from ganprune.training.callbacks import Callback
from ganprune.training.state import TrainState
from ganprune.training.trackers import Track


@dataclass(frozen=True)
class Experiment:
    """One arm of a comparison. Its fields determine it; ``run(seed)`` measures one seed of it.

    Arms are compared seed by seed, so everything that is random in ``run`` follows from the seed. Two comparisons that
    need the same arm name the same configuration, and it is run once.
    """

    name: ClassVar[str]

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """The figures of one seed, as rows of plain values, each with its "stage"."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """Generator updates that one seed costs; 0 for experiments that train nothing."""
        return 0

    @property
    def label(self) -> str:
        """The arm in a few words."""
        return self.name


def figures(
    gan: GAN, data: ImageData, samples: int, loss: str, network: str = "generator_ema"
) -> Iterator[dict[str, Any]]:
    """All measures of a GAN's generator, on validation and on test: one row for each split.

    Both rows are measured on the same generated images. Choices are made on validation; verdicts read test.

    Args:
        gan: its discriminator's loss and accuracy are measured as well.
        data: with the splits "validation" and "test".
        samples: number of generated images.
        loss: name of the discriminator's loss.
        network: "generator_ema" or "generator".
    """
    gan.masks.check()
    with torch.no_grad():
        images = sample(gan.networks()[network], samples, seed=0)
    for split in (data.validation, data.test):
        report = evaluate_images(images, split, gan.discriminator, loss).as_dict()
        report.pop("seed")
        shown = {key: value for key, value in report.items() if value is not None}
        yield {"network": network, **shown}


def layers_of(gan: GAN) -> dict[str, Any]:
    """The achieved sparsity of the generator, and how many weights each layer keeps; nothing if it is dense."""
    mask = gan.masks.get("generator")
    if mask is None:
        return {}
    return {"achieved_sparsity": mask.sparsity, "kept": {row["name"]: row["kept"] for row in mask.layers()}}


def gradient_norms(gan: GAN, loss: str, batches: int = 8) -> dict[str, float]:
    """Layer → root mean square of the generator's gradient over its kept weights, averaged over batches first."""
    mask = gan.masks.get("generator")
    total = {key: torch.zeros_like(weight) for key, weight in prunable_weights(gan.generator).items()}
    with eval_mode(gan.generator):
        for value in generator_loss(gan, batches, loss=loss)(gan.generator):
            gradients = torch.autograd.grad(value, [*prunable_weights(gan.generator).values()])
            for key, gradient in zip(total, gradients, strict=True):
                total[key] += gradient / batches
    kept = {
        key: value[mask[key]] if mask is not None and key in mask else value for key, value in total.items()
    }
    return {key: float(value.square().mean().sqrt()) if len(value) else 0.0 for key, value in kept.items()}


def course_data() -> ImageData:
    """MNIST, which all recorded experiments use, where the experiment runs."""
    return mnist()


@contextlib.contextmanager
def stopwatch(row: dict[str, Any]) -> Iterator[None]:
    """Notes the seconds that the block takes in ``row``: of the clock on the wall, and of this process's processor."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    row["wall_seconds"] = round(time.perf_counter() - wall, 2)
    row["processor_seconds"] = round(time.process_time() - processor, 2)


class Seconds(Callback):
    """Adds up what a training takes, over all its pieces if it is stopped and resumed: one row, as of a stopwatch.

    A state can begin with seconds that its start took, in ``state.rows[Seconds.name]``.
    """

    name = "seconds"

    def begin(self, state: TrainState) -> None:
        """Starts from what the pieces before have taken."""
        self._before = dict(self.rows[0]) if self.rows else {}
        self._begun = time.perf_counter(), time.process_time()
        self(state)

    def __call__(self, state: TrainState) -> None:
        """Notes the time."""
        now = time.perf_counter(), time.process_time()
        names = zip(("wall_seconds", "processor_seconds"), self._begun, now, strict=True)
        self.rows[:] = [
            {name: round(self._before.get(name, 0.0) + end - begin, 2) for name, begin, end in names}
        ]


_TRACKED: ContextVar[tuple[str, str] | None] = ContextVar("tracked", default=None)


@contextlib.contextmanager
def tracked(tracker: tuple[str, str] | None) -> Iterator[None]:
    """Trainings of experiments inside the block are logged, by a tracker to a folder; None leaves that as it was."""
    token = _TRACKED.set(tracker or _TRACKED.get())
    try:
        yield
    finally:
        _TRACKED.reset(token)


def trackers(experiment: Experiment, seed: int, steps: int, arm: str = "") -> list[Callback]:
    """What logs a training of an experiment, if it is run inside :func:`tracked`; a ticket is named by its sparsity."""
    asked = _TRACKED.get()
    if asked is None:
        return []

    def name(state: TrainState) -> str:
        parts = [experiment.name, config_hash(experiment), f"seed {seed}"]
        if arm:
            mask = state.masks.get("generator")
            parts += [arm, f"{mask.sparsity if mask else 0:.3f}"]
        return " ".join(parts)

    return [Track(*asked, name, max(1, steps // 10), config={"experiment": experiment.label})]
