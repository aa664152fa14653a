"""Statistics on paired seeds: intervals, ratios, verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with a confidence interval of n independent values; low and high are NaN for n = 1."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:.3g} (n = {self.n})"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}] (n = {self.n})"


def interval(values: Sequence[float], confidence: float = 0.95, log: bool = False) -> Interval:
    """Student's t interval of the mean.

    Args:
        values: one per seed, finite; positive if ``log``.
        confidence: in (0, 1).
        log: work on logarithms and transform back, so that the mean is geometric (right for digit-FID).

    Raises:
        ValueError: if there is no value, or one is not finite, or not positive with ``log``.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0 or array.ndim != 1 or not np.isfinite(array).all() or (log and (array <= 0).any()):
        raise ValueError(
            f"values must be finite{' and positive' if log else ''}, at least one of them, in one list, got {values!r}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    array = np.log(array) if log else array
    mean, n = float(array.mean()), array.size
    half = math.nan
    if n > 1:
        half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * array.std(ddof=1) / math.sqrt(n))
    ends = [mean, mean - half, mean + half]
    centre, low, high = (math.exp(x) for x in ends) if log else ends
    return Interval(centre, low, high, n)


def paired_ratio(treated: Sequence[float], control: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of the ratio treated / control, paired by seed: a t interval of the differences of logarithms.

    Args:
        treated: positive values, one per seed.
        control: positive values of the same seeds, in the same order.
        confidence: in (0, 1); divide 1 − confidence by the number of arms when several are compared (Bonferroni).

    Raises:
        ValueError: if the numbers of values differ, there is none, or one is not finite and positive.
    """
    if len(treated) != len(control):
        raise ValueError(f"treated and control must pair up, got {len(treated)} and {len(control)} values")
    for name, values in (("treated", treated), ("control", control)):
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError(f"{name} must be finite and positive, got {values!r}")
    ratios = np.asarray(treated, dtype=float) / np.asarray(control, dtype=float)
    return interval(ratios.tolist(), confidence, log=True)


def verdict(ratio: Interval, margin: float = 0.10, seeds_needed: int = 5) -> str:
    """What an interval of digit-FID ratios says: "matches", "better", "worse" or "inconclusive (n)".

    It *matches* when the whole interval lies within ±margin of 1. Below ``seeds_needed`` seeds the verdict can only be
    inconclusive.
    """
    if ratio.n < seeds_needed:
        return f"inconclusive ({ratio.n})"
    if 1 - margin < ratio.low and ratio.high < 1 + margin:
        return "matches"
    if ratio.high < 1:
        return "better"
    if ratio.low > 1:
        return "worse"
    return f"inconclusive ({ratio.n})"
