"""Ratios of times, measured so that a machine which is busy for a while disturbs both sides alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch


def clock(device: torch.device | str = "cpu") -> float:
    """Seconds, read after the device has done what it was told."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def keep_freed_memory() -> None:
    """Has the allocator keep large blocks that are freed, so that no arm pays for fetching them again.

    glibc gives a large freed block back to the system, and its next use costs a page fault per 4 KiB. "Large"
    is what exceeds the largest such block so far, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD): whether an arm
    pays would depend on what its process did before.
    """
    torch.ones(31 * 2**20, dtype=torch.uint8)


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times: the median over rounds with its 95% interval."""

    value: float
    low: float
    high: float


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95% interval of the median that assumes nothing about the distribution: two order statistics.

    Below six values there is none, and the extremes are returned.
    """
    ordered, n = sorted(values), len(values)
    below, rank = 0.0, 0  # P(at most `rank` values lie below the median)
    while below + math.comb(n, rank) / 2**n <= 0.025:
        below += math.comb(n, rank) / 2**n
        rank += 1
    cut = max(rank - 1, 0)
    return ordered[cut], ordered[n - 1 - cut]


@dataclass(frozen=True)
class Times:
    """Seconds of each round, by arm."""

    rounds: Mapping[str, Sequence[float]]

    def median(self, arm: str) -> float:
        """Median seconds of one arm."""
        return statistics.median(self.rounds[arm])

    def ratio(self, over: str, under: str) -> Ratio:
        """Median over rounds of the time of one arm over that of another in the same round."""
        ratios = [a / b for a, b in zip(self.rounds[over], self.rounds[under], strict=True)]
        return Ratio(statistics.median(ratios), *median_interval(ratios))


def compare(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    device: torch.device | str = "cpu",
    read: Callable[[], float] | None = None,
) -> Times:
    """Calls every arm once per round; the order turns from round to round, so that no arm is always first.

    ``read`` gives seconds; without it they are those that pass until the device has done what it was told.
    """
    read = read or partial(clock, device)
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            begin = read()
            arms[name]()
            passed = read() - begin
            if turn >= 0:
                seconds[name].append(passed)
    return Times(seconds)
