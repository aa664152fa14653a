"""Statistics on paired seeds: intervals, ratios, verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special  # scipy.stats, which knows the same functions, takes ten times as long to import


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
        half = _quantile((1 + confidence) / 2, n - 1) * float(array.std(ddof=1)) / math.sqrt(n)
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


MARGIN = math.log(1.1)
"""Two distances match if the whole 90% interval of their log ratio lies within this margin of zero."""
SEEDS_NEEDED = 5
"""With fewer seeds nothing is decided."""


@dataclass(frozen=True)
class Contrast:
    """Paired differences, treated minus control: their mean, its intervals, and how surprising it is.

    Attributes:
        mean: of the differences; of logarithms for a ratio.
        spread: standard deviation between seeds.
        n: number of seeds.
        log: whether the differences are of logarithms.
    """

    mean: float
    spread: float
    n: int
    log: bool

    def half_width(self, confidence: float) -> float:
        """Half of Student's t interval of the mean."""
        if self.n < 2:
            return math.inf
        return _quantile((1 + confidence) / 2, self.n - 1) * self.spread / math.sqrt(self.n)

    def p_value(self) -> float:
        """Two-sided p of the t test that the mean is zero."""
        if self.n < 2:
            return 1.0
        if self.spread == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * special.stdtr(self.n - 1, -abs(self.mean) * math.sqrt(self.n) / self.spread))

    def tie_p_value(self, margin: float = MARGIN) -> float:
        """The larger p of two one-sided t tests that the mean lies within the margin of zero."""
        if self.n < 2:
            return 1.0
        room = margin - abs(self.mean)
        if self.spread == 0:
            return 0.0 if room > 0 else 1.0
        return float(special.stdtr(self.n - 1, -room * math.sqrt(self.n) / self.spread))

    def matches(self, margin: float = MARGIN) -> bool:
        """Two one-sided 5% tests: whether the 90% interval lies within the margin of zero."""
        return abs(self.mean) + self.half_width(0.90) < margin

    def below(self, margin: float = MARGIN) -> bool:
        """One one-sided 5% test: whether the upper end of the 90% interval lies below the margin."""
        return self.mean + self.half_width(0.90) < margin

    def interval(self, confidence: float = 0.95) -> Interval:
        """The interval of the mean difference, or of the ratio."""
        half = self.half_width(confidence) if self.n > 1 else math.nan
        ends = (self.mean, self.mean - half, self.mean + half)
        mean, low, high = (math.exp(end) if not end > 700 else math.inf for end in ends) if self.log else ends
        return Interval(mean, low, high, self.n)


def contrast(
    treated: Sequence[float], control: Sequence[float], log: bool = True, against: float | None = None
) -> Contrast:
    """The paired contrast of two arms.

    Args:
        treated: one value per seed.
        control: of the same seeds, in the same order.
        log: compare logarithms, so that the effect is a ratio; right for distances, not for shares.
        against: the effect that counts as none; None for 1 (of a ratio) or 0.

    Raises:
        ValueError: if the values do not pair up, or are not positive with ``log``.
    """
    if len(treated) != len(control) or not len(treated):
        raise ValueError(f"treated and control must pair up, got {len(treated)} and {len(control)} values")
    one, other = np.asarray(treated, dtype=float), np.asarray(control, dtype=float)
    if log and not ((one > 0).all() and (other > 0).all()):
        raise ValueError("treated and control must be positive where ratios are compared")
    differences = np.log(one) - np.log(other) if log else one - other
    if against is not None:
        differences = differences - (math.log(against) if log else against)
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else math.inf
    return Contrast(float(differences.mean()), spread, len(differences), log)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values that keep the error rate of the whole family (Holm 1979): reject those below the level."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def detectable_ratio(found: Contrast, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest true effect that a two-sided t test of so many seeds with this spread finds with this power.

    Returns:
        A ratio above 1, or a difference above 0; NaN for fewer than two seeds.
    """
    if found.n < 2 or not math.isfinite(found.spread):
        return math.nan
    effect = _detectable(found.n, power, level) * found.spread
    return math.exp(min(effect, 700.0)) if found.log else effect


@lru_cache
def _quantile(share: float, freedom: int) -> float:
    """Of Student's t distribution."""
    return float(special.stdtrit(freedom, share))


@lru_cache
def _detectable(n: int, power: float, level: float) -> float:
    """The detectable mean of differences that have the spread 1."""
    root, freedom = math.sqrt(n), n - 1
    critical = _quantile(1 - level / 2, freedom)

    low, high = 0.0, 40.0 / root
    for _ in range(60):
        middle = (low + high) / 2
        same = 1 - special.nctdtr(freedom, middle * root, critical)
        other = special.nctdtr(freedom, middle * root, -critical)  # not a number where it is nearly 0
        low, high = (low, middle) if same + np.nan_to_num(other) > power else (middle, high)
    return high
