"""How long pruned generators take: zeros in dense kernels, and channels that are gone; and how long they train."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from ganprune.channels.shrinking import shrink_channels
from ganprune.experiments.base import Experiment, course_data
from ganprune.experiments.training import FromScratch
from ganprune.networks.sampling import draw_latents
from ganprune.pruning import prune
from ganprune.training.loop import train
from ganprune.training.state import TrainState


@dataclass(frozen=True)
class Latency(Experiment):
    """Three generators take turns: dense, with most weights zero, and with channels taken out.

    Attributes:
        start: makes the generator; a seed determines its weights. Latency does not depend on what they are trained to.
        sparsity: share of zero weights of the second generator, and of the arithmetic that the third one is spared.
        batch_size: images per pass.
        turns: passes of each generator; their median counts.
    """

    name: ClassVar[str] = "latency"

    start: FromScratch = field(default_factory=FromScratch)
    sparsity: float = 0.9
    batch_size: int = 64
    turns: int = 40

    @property
    def label(self) -> str:
        """The arm in a few words."""
        return f"{self.sparsity:.0%} of the weights or of the arithmetic, {self.batch_size} images"

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row for each generator: "dense", "zeros" and "fewer channels"."""
        dense = self.start.initial(seed).generator.eval()
        zeros = copy.deepcopy(dense)
        prune(zeros, self.sparsity)
        arms = {"dense": dense, "zeros": zeros}
        arms["fewer channels"] = shrink_channels(dense, macs_fraction=1 - self.sparsity).eval()
        z = draw_latents(dense, self.batch_size, seed)
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        with torch.inference_mode():
            for _ in range(3 + self.turns):
                for arm, network in arms.items():
                    begin = time.perf_counter()
                    network(z)
                    times[arm].append(time.perf_counter() - begin)
        for arm, seconds in times.items():
            yield {"stage": "measured", "arm": arm, "latency_seconds": statistics.median(seconds[3:])}


@dataclass(frozen=True)
class TrainingTime(Experiment):
    """A dense pair and one whose generator has mostly zeros train in turns, in one process.

    Turns share what else the machine does; two runs one after the other do not.

    Attributes:
        dense: makes the pair and says how it is trained; its speed does not depend on what it was trained to.
        sparsity: share of zero weights of the second generator, held after each step.
        updates: generator updates of a turn.
        turns: of each pair; their median counts.
    """

    name: ClassVar[str] = "training time"

    dense: FromScratch = field(default_factory=FromScratch)
    sparsity: float = 0.9
    updates: int = 32
    turns: int = 10

    @property
    def label(self) -> str:
        """The arm in a few words."""
        return f"{self.turns} turns of {self.updates} steps, dense and at {self.sparsity:.0%}"

    @property
    def steps(self) -> int:
        """Generator updates of one seed, both pairs together."""
        return 2 * (1 + self.turns) * self.updates

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row for each pair: "dense" and "zeros", with processor and wall seconds of a step."""
        split, pairs = (
            course_data().train,
            {"dense": self.dense.initial(seed), "zeros": self.dense.initial(seed)},
        )
        prune(pairs["zeros"], self.sparsity)
        config = replace(self.dense.training, steps=(1 + self.turns) * self.updates, seed=seed)
        states = {arm: TrainState(gan, config) for arm, gan in pairs.items()}
        clocks = {"step_processor_seconds": time.process_time, "step_seconds": time.perf_counter}
        times: dict[tuple[str, str], list[float]] = {(arm, clock): [] for arm in states for clock in clocks}
        for turn in range(1 + self.turns):
            for arm, state in states.items():
                begun = {clock: read() for clock, read in clocks.items()}
                train(state, split, until=(1 + turn) * self.updates)
                for clock, read in clocks.items():
                    times[arm, clock].append((read() - begun[clock]) / self.updates)
        for arm in states:
            medians = {
                clock: statistics.median(times[arm, clock][1:]) for clock in clocks
            }  # the first warms up
            yield {"stage": "measured", "arm": arm, **medians}
