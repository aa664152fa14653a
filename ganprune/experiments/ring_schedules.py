"""When to prune, on the ring: before, during or after training, at once or gradually, in equally many steps."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ganprune.core.checks import check_choice, check_number
from ganprune.core.random import step_seed
from ganprune.dynamic.gradual import GradualPruning
from ganprune.dynamic.schedules import Cubic, OneShot, Schedule
from ganprune.experiments.base import Experiment, Seconds, trackers
from ganprune.experiments.ring_training import MEASURED, RingPoints, RingTraining, even_points, trained_row
from ganprune.networks.gan import GAN
from ganprune.networks.sampling import sample
from ganprune.pruning import prune
from ganprune.training.callbacks import Callback
from ganprune.training.loop import train
from ganprune.training.state import TrainState

MOMENTS = ("dense", "before", "during", "after", "gradually", "its mask at once", "its shares at once")
"""When the generator is pruned, by magnitude over all layers together: never; before the first step; along the cubic
curve from a quarter of the first cycle to its end; after it, at once; along the cubic curve in the first half of the
second cycle; after it, at once, by the very mask with which "gradually" ends; after it, at once, to as many weights in
each layer as that mask keeps, the largest ones at the moment of the cut."""

LOOKS = (0, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Where a run is looked at on its way through the second cycle, as shares of that cycle's steps."""


@dataclass(frozen=True)
class RingSchedule(Experiment):
    """Two cycles of training on the ring; the second goes on from the averaged generator, with fresh optimisers.

    Attributes:
        start: the pair and the training of each cycle.
        moment: one of :data:`MOMENTS`.
        sparsity: at the end.
        judge_rate: the discriminator's learning rate in the second cycle, as a share of the generator's.
    """

    name: ClassVar[str] = "ring schedules"

    start: RingTraining = field(default_factory=RingTraining)
    moment: str = "dense"
    sparsity: float = 0.9
    judge_rate: float = 1.0

    def __post_init__(self) -> None:
        check_choice("moment", self.moment, MOMENTS)
        check_number("sparsity", self.sparsity, "[0, 1)")
        check_number("judge_rate", self.judge_rate, "(0, inf)")

    @property
    def steps(self) -> int:
        """Generator updates of one seed."""
        return (3 if self.moment.startswith("its") else 2) * self.start.steps

    @property
    def label(self) -> str:
        """The arm in a few words."""
        pruned = "dense" if self.moment == "dense" else f"{self.sparsity:.0%} {self.moment}"
        slower = "" if self.judge_rate == 1 else f", then D at {self.judge_rate:g} of the rate"
        rate = self.start.training.learning_rate
        return f"{pruned}{slower}, {2 * self.start.steps:,} steps at rate {rate:g}"

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """A row at the end of each cycle, of the stages "first cycle" (before a cut that follows it) and "trained".

        Between them come rows of the stage "second cycle", at the shares of its steps in :data:`LOOKS`; at step 0 a cut
        that precedes it is made. The rows of the second cycle have the generator's "sparsity" and the discriminator's
        "lead", the last one also the "densities" by layer of a generator that is masked.
        """
        config = dataclasses.replace(self.start.training, seed=seed)
        state = TrainState(self.start.initial(seed), config)
        train(state, RingPoints(), self._callbacks(0, seed), show_progress=False)
        yield {**trained_row(state), "stage": "first cycle"}
        gan = state.gan
        gan.generator.load_state_dict(gan.generator_ema.state_dict())
        config = dataclasses.replace(
            config,
            seed=step_seed(seed, config.steps, "second cycle"),
            discriminator_learning_rate=self.judge_rate * config.learning_rate,
        )
        if self.moment.startswith("its"):
            gradual = dataclasses.replace(self, moment="gradually")
            ahead = TrainState(copy.deepcopy(gan), config)
            train(ahead, RingPoints(), gradual._callbacks(1, seed), show_progress=False)
            mask = ahead.gan.masks["generator"]
            if self.moment == "its mask at once":
                gan.masks["generator"] = mask
            else:
                prune(gan, layer_sparsity={layer["name"]: layer["sparsity"] for layer in mask.layers()})
        state, callbacks = TrainState(gan, config), self._callbacks(1, seed)
        for mark in sorted({round(share * config.steps) for share in LOOKS}):
            train(state, RingPoints(), callbacks, until=mark, show_progress=False)
            yield {**_row(state), "stage": "second cycle"}
        train(state, RingPoints(), callbacks, show_progress=False)
        last = state.gan.masks.get("generator")
        layers = last.layers() if last else []
        yield {**_row(state), "densities": {layer["name"]: 1 - layer["sparsity"] for layer in layers}}

    def _callbacks(self, cycle: int, seed: int) -> list[Callback]:
        steps = self.start.steps
        schedules: dict[tuple[str, int], Schedule] = {
            ("before", 0): OneShot(self.sparsity),
            ("during", 0): Cubic(self.sparsity, start=steps // 4, end=steps),
            ("after", 1): OneShot(self.sparsity),
            ("gradually", 1): Cubic(self.sparsity, end=steps // 2),
        }
        callbacks = [Seconds(), *trackers(self, seed, steps, f"cycle {cycle}")]
        schedule = schedules.get((self.moment, cycle))
        if schedule is not None:
            every = max(1, steps // 40) if isinstance(schedule, Cubic) else None
            callbacks.append(GradualPruning(schedule, every=every))
        return callbacks


def _row(state: TrainState) -> dict[str, Any]:
    mask = state.gan.masks.get("generator")
    return {**trained_row(state), "sparsity": mask.sparsity if mask else 0.0, "lead": lead(state.gan)}


def lead(gan: GAN) -> float:
    """How many logits higher the discriminator rates points of the ring than those of its generator."""
    with torch.no_grad():
        real = gan.discriminator(even_points(MEASURED, seed=0)).mean()
        return float(real - gan.discriminator(sample(gan.generator, MEASURED, seed=0)).mean())
