"""Fewer channels beside zeros: which sparsity costs as much digit-FID as taking out a share of the channels does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from ganprune.experiments.arms import arms_of
from ganprune.experiments.claims import recovered
from ganprune.experiments.studies import CHANNEL_RATIOS, RECOVERED
from ganprune.metrics.cost import complexity
from ganprune.records.store import read_store


@dataclass(frozen=True)
class Pair:
    """Two smaller generators that came out equally good.

    Attributes:
        channel_ratio: share of the channels that the first one lacks.
        weights_left: share of the weights that it still has.
        digit_fid: what it came to after training on, the median of the seeds.
        sparsity: of the second one, with which training on comes to the same; the median of the seeds.
        lowest_sparsity: of the seeds'.
        highest_sparsity: of the seeds'.
        seeds: how many there are.
    """

    channel_ratio: float
    weights_left: float
    digit_fid: float
    sparsity: float
    lowest_sparsity: float
    highest_sparsity: float
    seeds: int

    def in_words(self) -> str:
        """The pair as two sentences of a page."""
        some = f"{self.seeds} generators" if self.seeds > 1 else "One generator"
        fewest, most = (f"{1 - sparsity:.0%}" for sparsity in (self.highest_sparsity, self.lowest_sparsity))
        return (
            f"{some} without {self.channel_ratio:.0%} of the channels and with {self.weights_left:.0%} of the weights, "
            f"trained on, came to digit-FID {self.digit_fid:.3g} (median). Pruned weight by weight and trained on as "
            f"long, generators come to the same (interpolated) with {1 - self.sparsity:.0%} of the weights "
            f"({fewest} to {most})."
        )


def sparsity_of(digit_fid: float, curve: Mapping[float, float]) -> float | None:
    """The sparsity at which a curve of digit-FID first comes to a value; between points its logarithm is linear.

    Values below the first point get its sparsity; None where no point is as high.
    """
    points = sorted(curve.items())
    for (left, below), (right, above) in zip(points, points[1:], strict=False):
        if digit_fid <= below:
            return left
        if digit_fid <= above:
            share = math.log(digit_fid / below) / math.log(above / below)
            return left + share * (right - left)
    return None


def recorded_pairs() -> list[Pair]:
    """The pairs of the shipped records, seed by seed.

    Ratios of channels without a record are left out, and those that cost more than the highest recorded sparsity.
    """
    rows, arms = read_store(), arms_of("laptop")
    arm_at = {0.0: arms.control, **{sparsity: arms.recovery(sparsity) for sparsity in RECOVERED}}
    recorded = {sparsity: recovered(arm).values(rows, "digit_fid") for sparsity, arm in arm_at.items()}
    whole, pairs = complexity(arms.dense.initial(0).generator).prunable, []
    for ratio in CHANNEL_RATIOS:
        small = recovered(arms.fewer_channels(ratio))
        found, left = small.values(rows, "digit_fid"), small.values(rows, lambda row: row["weights"] / whole)
        each = []
        for seed, value in found.items():
            curve = {sparsity: values[seed] for sparsity, values in recorded.items() if seed in values}
            each.append(sparsity_of(value, curve))
        equal = [sparsity for sparsity in each if sparsity is not None]
        if equal and len(equal) == len(each):
            middle = statistics.median(found.values()), statistics.median(equal)
            sizes = ratio, next(iter(left.values()))
            pairs.append(Pair(*sizes, *middle, min(equal), max(equal), len(equal)))
    return pairs
