"""How long pruned generators take: zeros in dense kernels and in sparse ones, channels that are gone; and training."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch

from ganprune.channels.shrinking import shrink_channels
from ganprune.experiments.base import Experiment, course_data
from ganprune.experiments.training import FromScratch
from ganprune.inference.twin import sparse_twin
from ganprune.networks.fast_convolutions import fast_convolutions
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
        medians = _in_turns({arm: partial(network, z) for arm, network in arms.items()}, self.turns)
        for arm, seconds in medians.items():
            yield {"stage": "measured", "arm": arm, "latency_seconds": seconds}


@dataclass(frozen=True)
class SparseLatency(Experiment):
    """A trained generator in PyTorch's kernels, and its pruned sparse twins, take turns.

    PyTorch has the fastest of four ways, chosen by the medians: the layers as they are or their smallest convolutions
    as matrix products, in the usual memory layout or in "channels last". Masks are those of global magnitude. A twin's
    time depends on which weights stay: trained generators keep more in their late layers, whose weights meet more
    pixels, so that a tenth of the weights is more than a tenth of the multiplications. Seconds are the processor's.

    Attributes:
        trained: makes the generator, whose EMA weights are taken.
        sparsities: of the twins.
        batch_size: images per pass.
        turns: passes of each generator; their median counts.
    """

    name: ClassVar[str] = "sparse latency"

    trained: FromScratch = field(default_factory=FromScratch)
    sparsities: tuple[float, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)
    batch_size: int = 64
    turns: int = 40

    @property
    def label(self) -> str:
        """The arm in a few words."""
        return f"sparse twins beside PyTorch, {self.batch_size} images a pass"

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """A row "dense", one "twin" for each sparsity, and "break-even": the sparsity from which twins are faster."""
        dense = self.trained.pair(seed, course_data()).generator_ema.cpu().eval()
        last = copy.deepcopy(dense).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        z, threads = draw_latents(dense, self.batch_size, seed), torch.get_num_threads()
        ways = {"plain": dense, "channels last": last}
        arms: dict[Any, Callable[[], Any]] = {way: partial(network, z) for way, network in ways.items()}
        arms |= {f"products, {way}": partial(_as_products, network, z) for way, network in ways.items()}
        ways_of_torch = list(arms)
        for sparsity in self.sparsities:
            pruned = copy.deepcopy(dense)
            if sparsity:
                prune(pruned, sparsity)
            arms[sparsity] = partial(sparse_twin(pruned, threads=threads), z)
        torch.ones(
            31 * 2**20, dtype=torch.uint8
        )  # from now on glibc keeps freed blocks: no arm pays for pages again
        medians = _in_turns(arms, self.turns, time.process_time)
        way = min(ways_of_torch, key=medians.__getitem__)
        yield {"stage": "measured", "arm": "dense", "latency_seconds": medians[way], "way": way}
        for sparsity in self.sparsities:
            row = {"arm": "twin", "sparsity": sparsity, "latency_seconds": medians[sparsity]}
            yield {"stage": "measured", **row}
        ratios = {sparsity: medians[sparsity] / medians[way] for sparsity in self.sparsities}
        yield {"stage": "measured", "arm": "break-even", "break_even_sparsity": break_even(ratios)}


def _as_products(network: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
    with fast_convolutions(network):
        return network(z)


def _in_turns(
    arms: Mapping[Any, Callable[[], Any]], turns: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Any, float]:
    """Median seconds of each arm; the first three turns warm up, and another arm begins in each turn."""
    names, times = list(arms), {arm: list[float]() for arm in arms}
    with torch.inference_mode():
        for turn in range(3 + turns):
            shift = turn % len(names)
            for arm in names[shift:] + names[:shift]:
                begin = clock()
                arms[arm]()
                times[arm].append(clock() - begin)
    return {arm: statistics.median(seconds[3:]) for arm, seconds in times.items()}


def break_even(ratios: Mapping[float, float]) -> float | None:
    """The sparsity from which a pruned twin takes less time than the dense network.

    Args:
        ratios: sparsity → time of the twin over that of the dense network.

    Returns:
        Where the line between two neighbours crosses 1, the last such place; 0 if the twin is faster at every sparsity
        from the smallest on, None if it is slower at the largest.
    """
    found = sorted(ratios.items())
    if found[-1][1] >= 1:
        return None
    slower = [i for i, (_, ratio) in enumerate(found) if ratio >= 1]
    if not slower:
        return 0.0
    (low, above), (high, below) = found[slower[-1] : slower[-1] + 2]
    return low + (high - low) * (above - 1) / (above - below)


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
