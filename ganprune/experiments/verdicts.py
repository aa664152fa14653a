"""What a claim is, and the rules that turn records into verdicts.

A verdict is *supported*, *not supported* or *not decided*. The rules:

- "lower", "higher": every comparison goes that way, at the 95% level by a paired t test on logarithms of distances (or
  on differences), corrected by Holm among the comparisons of the claim. Not supported if one goes the other
  way at that level, or if one matches, which is then corrected by Holm as well, because one is enough.
- "matches": the 90% interval of every ratio lies within 1/1.1 to 1.1 (two one-sided 5% tests, uncorrected, because all
  must hold). Not supported if one differs at the corrected 95% level without matching.
- "not worse": the upper end of the 90% interval lies below 1.1. Not supported if it is worse at the corrected 95%
  level.
- "always", "never": an event is seen in every seed, or in none.
- "variety": at the first sparsity at which recall lies below three quarters of dense (upper end of the 95%
  interval), precision and density both lie above nine tenths of dense (lower ends).

Seeds of a search decide nothing. With fewer than five others, or where the dense arm is worse than six floors, nothing
is decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy import special

from ganprune.experiments.base import Experiment
from ganprune.records.statistics import SEEDS_NEEDED, Contrast, contrast, detectable_ratio, holm
from ganprune.records.store import rows_of

Rows = Sequence[Mapping[str, Any]]
Measure = str | Callable[[Mapping[str, Any]], float]
BY_DIFFERENCE = ("precision", "recall", "density", "coverage", "lead", "critic")
"""Measures that are compared by differences, because they can be 0 or negative; all others by ratios."""
NOT_MEASURED = "not measured yet"
"""What stands in the place of a verdict where an arm has no record."""
WORST_DENSE = 6.0
"""Floors beyond which a dense arm decides nothing."""
SEARCH_SEEDS = 100
"""Seeds from here on are those of searches: what a recipe was chosen by cannot test it."""


@dataclass(frozen=True)
class Arm:
    """Rows of one configuration: which stage, and what else they must hold. Verdicts read the test split.

    Rows of a search, whose seeds begin at 100, are left out.
    """

    experiment: Experiment
    stage: str
    where: Mapping[str, Any] = field(default_factory=dict)

    def rows(self, rows: Rows) -> dict[int, Mapping[str, Any]]:
        """Seed → its row."""
        wanted = {"stage": self.stage, "network": "generator_ema", "split": "test", **self.where}
        return {
            row["seed"]: row
            for row in rows_of(rows, self.experiment)  # type: ignore[arg-type]
            if row["seed"] < SEARCH_SEEDS
            and all(row.get(name, value) == value for name, value in wanted.items())
        }

    def values(self, rows: Rows, measure: Measure) -> dict[int, float]:
        """Seed → the measure; a row that an earlier version wrote without it counts as not measured."""
        return {
            seed: float(row[measure] if isinstance(measure, str) else measure(row))
            for seed, row in self.rows(rows).items()
            if not isinstance(measure, str) or measure in row
        }


@dataclass(frozen=True)
class Comparison:
    """A treated arm beside its control, in one measure.

    Attributes:
        treated: an arm.
        control: an arm of the same seeds.
        measure: key of the rows, or a function of a row.
        against: the ratio (or difference) that counts as no effect; None for 1 (or 0).
    """

    treated: Arm
    control: Arm
    measure: Measure = "digit_fid"
    against: float | None = None

    def contrast(self, rows: Rows) -> Contrast | None:
        """The paired contrast of all seeds that both arms have; None if there are none."""
        one, other = (arm.values(rows, self.measure) for arm in (self.treated, self.control))
        seeds = sorted(one.keys() & other.keys())
        if not seeds:
            return None
        values = [one[seed] for seed in seeds], [other[seed] for seed in seeds]
        return contrast(*values, log=self.measure not in BY_DIFFERENCE, against=self.against)

    def mixes_precisions(self, rows: Rows) -> bool:
        """Whether a seed's arms were trained in different precisions, because their processors differed."""
        one, other = (arm.rows(rows) for arm in (self.treated, self.control))
        key = "precision_of_training"
        return any(one[seed].get(key) != other[seed].get(key) for seed in one.keys() & other.keys())


@dataclass(frozen=True)
class Claim:
    """One sentence that can be wrong, and what would show it.

    Attributes:
        claim: its number, with a letter for its part.
        text: the sentence.
        source: who says so, a key of the bibliography; "" for this course itself.
        study: where its arms are run.
        rule: as at the top of this module.
        comparisons: all must hold.
        dense: the arm that must be better than six floors.
        event: for "always" and "never": an arm, and what is looked for among its rows of one seed.
    """

    claim: str
    text: str
    source: str
    study: str
    rule: str
    comparisons: tuple[Comparison, ...] = ()
    dense: Arm | None = None
    event: tuple[Experiment, Callable[[Rows], bool]] | None = None


@dataclass(frozen=True)
class Verdict:
    """What the records say about a claim.

    Attributes:
        claim: its number.
        text: the sentence.
        n: seeds that all of its comparisons have.
        verdict: "supported", "not supported" or "not decided".
        effect: of the comparison that decides least: a ratio, a difference of shares, or a share of seeds; None if
            nothing was measured.
        low: lower end of its 95% interval.
        high: upper end.
        detectable: the effect that so many seeds with this spread would have shown in four of five tries: a ratio above
            1, a difference above 0, both from what counts as no effect, or a share of seeds.
        scale: "ratio", "difference" or "share of seeds".
        study: where it is run.
        source: who makes the claim.
        mixed: whether in a pair one arm was trained in bfloat16 and the other in float32.
    """

    claim: str
    text: str
    n: int
    verdict: str
    effect: float | None
    low: float | None
    high: float | None
    detectable: float | None
    scale: str
    study: str
    source: str
    mixed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def in_words(self) -> str:
        """The end of a sentence: "supported, ratio 0.898 [0.885, 0.911], 5 seeds", or "not measured yet"."""
        if not self.n:
            return NOT_MEASURED
        seeds = f"{self.n} seed{'s' if self.n > 1 else ''}"
        if self.effect is None or self.low is None or not math.isfinite(self.low):
            return f"{self.verdict}, {seeds}"
        return f"{self.verdict}, {self.scale} {self.effect:#.3g} [{self.low:#.3g}, {self.high:#.3g}], {seeds}"

    def line(self) -> dict[str, Any]:
        """A line of a table: claim, in words, seeds, verdict, effect, low, high; no effect without all arms."""
        shown = {"claim": self.claim, "in words": self.text, "seeds": self.n}
        shown["verdict"] = self.verdict if self.n else NOT_MEASURED
        return shown | {name: getattr(self, name) if self.n else None for name in ("effect", "low", "high")}


def judge(claim: Claim, rows: Rows) -> Verdict:
    """The verdict on a claim, by its rule."""
    if claim.event is not None:
        return _judge_event(claim, rows)
    pairs = [(comparison.contrast(rows), comparison.against) for comparison in claim.comparisons]
    known = [(found, against) for found, against in pairs if found is not None]
    if not known:
        return _verdict(claim, 0, "not decided")
    contrasts = [found for found, _ in known]
    n = min(found.n for found in contrasts) if len(known) == len(pairs) else 0
    if claim.rule == "variety":
        word, shown = _variety(contrasts)
    else:
        word, shown = decide(claim.rule, contrasts, [against for _, against in known])
    if n < SEEDS_NEEDED or not _good_enough(claim.dense, rows):
        word = "not decided"
    ends, scale = shown.interval(), "ratio" if shown.log else "difference"
    against = next(against for found, against in known if found is shown)
    shift = 1.0 if against is None or not shown.log else against
    effect, low, high = (end * shift for end in (ends.mean, ends.low, ends.high))
    mixed = any(comparison.mixes_precisions(rows) for comparison in claim.comparisons)
    return _verdict(claim, n, word, effect, low, high, detectable_ratio(shown), scale, mixed)


def decide(
    rule: str, contrasts: Sequence[Contrast], against: Sequence[float | None] = ()
) -> tuple[str, Contrast]:
    """The word for contrasts that must all hold, and the one that decides least.

    Args:
        rule: "lower", "higher", "matches" or "not worse".
        contrasts: of one claim.
        against: of each, what counts as no effect; where it is given, matching nothing is no argument.
    """
    differs = [p < 0.05 for p in holm([found.p_value() for found in contrasts])]
    sign = 1 if rule == "higher" else -1
    pairs = list(zip(contrasts, differs, strict=True))
    if rule == "matches":
        weakest = max(contrasts, key=lambda found: abs(found.mean) + found.half_width(0.90))
        if all(found.matches() for found in contrasts):
            return "supported", weakest
        refuted = any(differ and not found.matches() for found, differ in pairs)
    elif rule == "not worse":
        weakest = max(contrasts, key=lambda found: found.mean + found.half_width(0.90))
        if all(found.below() for found in contrasts):
            return "supported", weakest
        refuted = any(differ and found.mean > 0 and not found.below() for found, differ in pairs)
    else:
        weakest = min(contrasts, key=lambda found: sign * found.mean - found.half_width(0.95))
        if all(differ and sign * found.mean > 0 for found, differ in pairs):
            return "supported", weakest
        plain = against or [None] * len(contrasts)
        tied = holm(
            [
                found.tie_p_value() if found.log and none is None else 1.0
                for found, none in zip(contrasts, plain, strict=True)
            ]
        )
        refuted = any(
            (differ and sign * found.mean < 0) or (not differ and tie < 0.05)
            for (found, differ), tie in zip(pairs, tied, strict=True)
        )
    return ("not supported" if refuted else "not decided"), weakest


def _variety(contrasts: Sequence[Contrast]) -> tuple[str, Contrast]:
    """Contrasts in threes, by ascending sparsity: ratios to dense of recall, precision and density."""
    for start in range(0, len(contrasts) - 2, 3):
        recall, *others = contrasts[start : start + 3]
        if recall.interval().high < 0.75:
            least = min(others, key=lambda found: found.interval().low)
            if all(found.interval().low > 0.9 for found in others):
                return "supported", least
            refuted = any(found.interval().high < 0.9 for found in others)
            return ("not supported" if refuted else "not decided"), least
    return "not decided", contrasts[-3] if len(contrasts) >= 3 else contrasts[0]


def _good_enough(dense: Arm | None, rows: Rows) -> bool:
    """Whether the dense arm is better than six floors in the middle."""
    if dense is None:
        return True
    floors = dense.values(
        rows, lambda row: row["digit_fid"] / row["digit_fid_floor"] if row["digit_fid_floor"] else 0
    )
    values = sorted(floors.values())
    return bool(values) and values[len(values) // 2] <= WORST_DENSE


def _judge_event(claim: Claim, rows: Rows) -> Verdict:
    assert claim.event is not None
    experiment, happened = claim.event
    seeds: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows_of(rows, experiment):  # type: ignore[arg-type]
        if row["seed"] < SEARCH_SEEDS:
            seeds.setdefault(row["seed"], []).append(row)
    n, count = len(seeds), sum(happened(found) for found in seeds.values())
    if not n:
        return _verdict(claim, 0, "not decided", scale="share of seeds")
    word = "supported" if count == (n if claim.rule == "always" else 0) else "not supported"
    # Clopper and Pearson's interval
    low = special.betaincinv(count, n - count + 1, 0.025) if count else 0.0
    high = special.betaincinv(count + 1, n - count, 0.975) if count < n else 1.0
    # the share of seeds that would have shown up at least once in four of five tries
    seen = 1 - 0.2 ** (1 / n)
    return _verdict(
        claim,
        n,
        word if n >= SEEDS_NEEDED else "not decided",
        count / n,
        float(low),
        float(high),
        seen,
        "share of seeds",
    )


def _verdict(
    claim: Claim,
    n: int,
    word: str,
    effect: float | None = None,
    low: float | None = None,
    high: float | None = None,
    detectable: float | None = None,
    scale: str = "ratio",
    mixed: bool = False,
) -> Verdict:
    numbers = {"effect": effect, "low": low, "high": high, "detectable": detectable}
    finite = {
        name: value if value is None or math.isfinite(value) else None for name, value in numbers.items()
    }
    return Verdict(
        claim.claim,
        claim.text,
        n,
        word,
        **finite,
        scale=scale,
        study=claim.study,
        source=claim.source,
        mixed=mixed,
    )
