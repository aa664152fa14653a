"""Verdicts on simulated records whose truth is known: the stated error rates hold, and references agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ganprune.experiments.base import Experiment
from ganprune.experiments.verdicts import Arm, Claim, Comparison, decide, judge
from ganprune.records import config_hash
from ganprune.records.statistics import MARGIN, Contrast, contrast, detectable_ratio, holm

TRIES = 3_000
SPREAD = 0.05
"""Between seeds, of the logarithm of digit-FID; what the course's pilots had at 50% sparsity."""
RULES = ("lower", "higher", "matches", "not worse")


def at_most(rate: float, count: int, tries: int = TRIES) -> bool:
    """Return whether so many of the tries are no more than a rate allows, sampling error apart (1 in 10,000)."""
    return count <= stats.binom.ppf(0.9999, tries, rate)


def simulated(
    truths: Sequence[float], seed: int = 0, n: int = 5, spread: float = SPREAD, tries: int = TRIES
) -> list[list[Contrast]]:
    """Return, for each try, contrasts of so many seeds whose true log ratios are known."""
    draws = np.random.default_rng(seed).normal(0, spread, (tries, len(truths), n)) + np.array(truths)[:, None]
    means, spreads = draws.mean(-1), draws.std(-1, ddof=1)
    return [
        [Contrast(float(m), float(s), n, log=True) for m, s in zip(*row, strict=True)]
        for row in zip(means, spreads, strict=True)
    ]


def counts(rule: str, tries: list[list[Contrast]], against: Sequence[float | None] = ()) -> dict[str, int]:
    """Return how often each word is said."""
    words = [decide(rule, contrasts, against)[0] for contrasts in tries]
    return {word: words.count(word) for word in ("supported", "not supported", "not decided")}


# ---------------------------------------------------------------- error rates


@pytest.mark.parametrize("rule", ["lower", "higher"])
@pytest.mark.parametrize("arms", [1, 4])
def test_without_an_effect_a_direction_is_seen_in_one_of_forty_at_most(rule: str, arms: int) -> None:
    found = counts(rule, simulated([0.0] * arms))
    assert at_most(0.025, found["supported"])


@pytest.mark.parametrize("rule", ["lower", "higher"])
def test_one_arm_without_an_effect_spoils_a_claim_about_several(rule: str) -> None:
    effect = -1.0 if rule == "lower" else 1.0
    assert at_most(0.025, counts(rule, simulated([effect, effect, 0.0]))["supported"])
    assert counts(rule, simulated([effect] * 3, tries=200))["supported"] == 200


@pytest.mark.parametrize("arms", [1, 2, 4])
@pytest.mark.parametrize("spread", [0.02, SPREAD])
def test_a_true_direction_is_denied_in_one_of_twenty_at_most(arms: int, spread: float) -> None:
    """Even where the effect is as small as it may be, so that a match is nearly as good an explanation."""
    found = counts("lower", simulated([-MARGIN] * arms, spread=spread))
    assert at_most(0.05, found["not supported"])


@pytest.mark.parametrize("side", [-MARGIN, MARGIN])
@pytest.mark.parametrize("spread", [0.01, SPREAD])
def test_at_the_margin_a_match_is_seen_in_one_of_twenty_at_most(side: float, spread: float) -> None:
    found = counts("matches", simulated([side], spread=spread))
    assert at_most(0.05, found["supported"])
    if spread == 0.01:  # the test is not more timid than it says
        assert found["supported"] > 0.04 * TRIES
    assert at_most(0.05, counts("matches", simulated([0.0, side, 0.0], spread=spread))["supported"])


@pytest.mark.parametrize("arms", [1, 3])
def test_equal_arms_are_said_to_differ_in_one_of_twenty_at_most(arms: int) -> None:
    for spread in (0.01, SPREAD, 0.2):
        assert at_most(0.05, counts("matches", simulated([0.0] * arms, spread=spread))["not supported"])
    assert counts("matches", simulated([0.0] * arms, spread=0.01))["supported"] > 0.99 * TRIES


def test_not_worse_is_wrong_in_one_of_twenty_at_most() -> None:
    assert at_most(0.05, counts("not worse", simulated([MARGIN]))["supported"])
    assert at_most(0.05, counts("not worse", simulated([-1.0, MARGIN]))["supported"])
    assert at_most(0.025, counts("not worse", simulated([0.0]))["not supported"])
    assert counts("not worse", simulated([-1.0], tries=100))["supported"] == 100
    assert counts("not worse", simulated([1.0], tries=100))["not supported"] == 100


def test_a_ratio_that_counts_as_no_effect_moves_the_test_and_makes_a_match_no_argument() -> None:
    """With a doubling as no effect, a true doubling is rarely said to be more than that, and never denied as a tie."""
    tries = simulated([0.0], spread=0.01)
    assert at_most(0.025, counts("higher", tries, [2.0])["supported"])
    assert at_most(0.025, counts("higher", tries, [2.0])["not supported"])
    assert counts("higher", tries)["not supported"] > 0.9 * TRIES


def varied(recall: float, others: float, seed: int = 0, spread: float = SPREAD) -> list[list[Contrast]]:
    """Return contrasts in threes at three sparsities, the last of which costs recall and something of the others."""
    harmless = [0.0, 0.0, 0.0]
    return simulated([*harmless, *harmless, math.log(recall), math.log(others), 0.0], seed, spread=spread)


def verdict_on_variety(contrasts: Sequence[Contrast]) -> str:
    """Return the word of the rule "variety" for contrasts, by way of records that have them exactly."""
    rows, comparisons = [], []
    for number, wanted in enumerate(contrasts):
        shape = np.array([-2, -1, 0, 1, 2]) / math.sqrt(2.5)
        values = np.exp(wanted.mean + wanted.spread * shape)
        sparse, dense = (Fake(f"{kind} {number}") for kind in ("sparse", "dense"))
        rows += made(sparse, values) + made(dense, np.ones(5))
        comparisons.append(Comparison(Arm(sparse, "done"), Arm(dense, "done")))
    return judge(Claim("1", "", "", "", "variety", tuple(comparisons)), rows).verdict


def test_variety_is_wrongly_supported_in_one_of_forty_at_most() -> None:
    words = [verdict_on_variety(found) for found in varied(0.3, 0.9)[:1_000]]
    assert at_most(0.025, words.count("supported"), 1_000)
    assert at_most(0.025, words.count("not supported"), 1_000)


def test_variety_looks_at_the_first_sparsity_that_costs_recall() -> None:
    def at(*ratios: float) -> list[Contrast]:
        return [Contrast(math.log(ratio), 0.01, 5, log=True) for ratio in ratios]

    kept, lost, worse = at(0.9, 1.0, 1.0), at(0.5, 0.97, 0.98), at(0.1, 0.5, 0.5)
    assert verdict_on_variety([*kept, *lost, *worse]) == "supported"
    assert verdict_on_variety([*kept, *worse]) == "not supported"
    assert verdict_on_variety([*worse, *lost]) == "not supported"
    assert verdict_on_variety([*kept, *kept]) == "not decided"
    assert verdict_on_variety([*kept, *at(0.5, 0.97, 0.9)]) == "not decided"
    assert verdict_on_variety([*kept, *at(0.5, 0.7, 0.98)]) == "not supported"


@pytest.mark.parametrize(("rule", "word"), [("always", "supported"), ("never", "not supported")])
def test_events_are_counted_by_seed(rule: str, word: str) -> None:
    thing = Fake()

    def seen(rows: Sequence[dict]) -> bool:
        return any(row["value"] > 1 for row in rows)

    claim = Claim("1", "", "", "", rule, event=(thing, seen))
    every = [row for seed in range(6) for row in (one(thing, seed, 0.0), one(thing, seed, 2.0))]
    found = judge(claim, every)
    assert (found.verdict, found.n, found.effect, found.scale) == (word, 6, 1.0, "share of seeds")
    exact = stats.binomtest(6, 6).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert 1 - (1 - found.detectable) ** 6 == pytest.approx(0.8)
    mixed = [one(thing, seed, 2.0 * (seed > 0)) for seed in range(6)]
    assert judge(claim, mixed).verdict == "not supported"
    none = [one(thing, seed, 0.0) for seed in range(5)]
    assert judge(claim, none).verdict == ("not supported" if rule == "always" else "supported")
    assert judge(claim, none[:4]).verdict == "not decided"
    assert judge(claim, []).verdict == "not decided"


# ---------------------------------------------------------------- what is below all rules


def test_holm_by_its_definition() -> None:
    """Step down: the k-th smallest of m is rejected while it and all before it are at most level / (m − k + 1)."""

    def rejected(p_values: Sequence[float], level: float) -> set[int]:
        found: set[int] = set()
        for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[index] > level / (len(p_values) - rank):
                break
            found.add(index)
        return found

    random = np.random.default_rng(0)
    for _ in range(300):
        p_values = (random.random(random.integers(1, 7)) ** 3).tolist()
        level = float(random.random()) / 4
        adjusted = holm(p_values)
        assert {index for index, p in enumerate(adjusted) if p <= level} == rejected(p_values, level)
        bonferroni = [min(1.0, len(p_values) * p) for p in p_values]
        assert all(p <= a <= b for p, a, b in zip(p_values, adjusted, bonferroni, strict=True))
    assert holm([]) == []


def test_holm_keeps_the_rate_of_the_family() -> None:
    """Also where some effects are real: one false rejection or more in one of twenty families at most."""
    families = simulated([0.0, 0.0, 0.0, 0.5, 0.5])
    wrong = sum(min(holm([found.p_value() for found in family])[:3]) < 0.05 for family in families)
    assert at_most(0.05, wrong)
    naive = sum(min(found.p_value() for found in family[:3]) < 0.05 for family in families)
    assert not at_most(0.05, naive)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("log", [True, False])
def test_the_detectable_effect_is_found_in_four_of_five_tries(n: int, log: bool) -> None:
    effect = detectable_ratio(Contrast(0.3, 0.07, n, log))
    draws = np.random.default_rng(n).normal(math.log(effect) if log else effect, 0.07, (20_000, n))
    seen = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.015)
    assert math.isnan(detectable_ratio(Contrast(0.3, math.inf, 1, log)))


values = st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0.1, 1e3)), min_size=2, max_size=9).filter(
    lambda pairs: (
        np.std([np.log(a) - np.log(b) for a, b in pairs]) > 1e-6 and np.std([a - b for a, b in pairs]) > 1e-6
    )
)


@given(values, st.booleans(), st.sampled_from([None, 0.5, 2.0]))
def test_contrasts_equal_scipys_paired_tests(pairs: list, log: bool, against: float | None) -> None:
    treated, control = np.array(pairs).T
    found = contrast(treated, control, log, against)
    shift = 0.0 if against is None else math.log(against) if log else against
    one, other = (np.log(treated), np.log(control)) if log else (treated, control)
    reference = stats.ttest_rel(one - shift, other)
    assert found.p_value() == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    ends = reference.confidence_interval(0.95)
    got, n = found.interval(0.95), len(pairs)
    assert (got.low, got.high, got.n) == pytest.approx(
        (*(np.exp(ends) if log else ends), n), rel=1e-6, abs=1e-6
    )
    sides = [
        stats.ttest_rel(one - shift + MARGIN, other, alternative="greater").pvalue,
        stats.ttest_rel(one - shift - MARGIN, other, alternative="less").pvalue,
    ]
    assert found.tie_p_value() == pytest.approx(max(sides), rel=1e-6, abs=1e-9)
    assert found.matches() == (found.tie_p_value() < 0.05)
    assert found.below() == (sides[1] < 0.05)


def test_seeds_without_any_spread_and_single_seeds() -> None:
    same = Contrast(0.0, 0.0, 5, log=True)
    assert same.p_value() == 1.0 and same.tie_p_value() == 0.0 and same.matches()
    other = Contrast(0.2, 0.0, 5, log=True)
    assert other.p_value() == 0.0 and other.tie_p_value() == 1.0 and not other.matches()
    single = contrast([2.0], [1.0])
    assert single.p_value() == 1.0 and single.tie_p_value() == 1.0 and not single.matches()


@pytest.mark.parametrize(
    ("treated", "control", "message"),
    [
        ([1.0], [1.0, 2.0], "pair up"),
        ([], [], "pair up"),
        ([0.0], [1.0], "positive"),
        ([1.0], [-1.0], "positive"),
    ],
)
def test_contrasts_refuse_what_is_no_pair(treated: list, control: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contrast(treated, control)


# ---------------------------------------------------------------- from rows to a verdict


@dataclass(frozen=True)
class Fake(Experiment):
    """An arm that was never run."""

    name: ClassVar[str] = "fake"
    arm: str = "a"


def one(arm: Fake, seed: int, value: float, **more: object) -> dict:
    """Return one row of a record."""
    row = {"key": config_hash(arm), "seed": seed, "stage": "done", "split": "test", "value": value}
    return {**row, "digit_fid": value, "recall": value, "digit_fid_floor": 1.0, **more}


def made(arm: Fake, values: Sequence[float]) -> list[dict]:
    """Return rows of the seeds 0, 1, … of an arm."""
    return [one(arm, seed, float(value)) for seed, value in enumerate(values)]


SPARSE, DENSE, OTHER = Fake("sparse"), Fake("dense"), Fake("other")
LOWER = Comparison(Arm(SPARSE, "done"), Arm(DENSE, "done"))


def claim(rule: str, *comparisons: Comparison, dense: Fake | None = None) -> Claim:
    """Return a claim about fake arms."""
    return Claim("4b", "text", "", "study", rule, comparisons or (LOWER,), dense and Arm(dense, "done"))


def test_below_five_seeds_nothing_is_decided() -> None:
    good, bad = [1.0, 1.01, 1.02, 1.0, 1.03], [3.0, 3.03, 3.02, 3.0, 3.05]
    for n in range(1, 6):
        rows = made(SPARSE, good[:n]) + made(DENSE, bad)
        for rule, word in (("lower", "supported"), ("higher", "not supported"), ("matches", "not supported")):
            found = judge(claim(rule), rows)
            assert (found.verdict, found.n) == (word if n == 5 else "not decided", n)
    assert judge(claim("lower"), rows).effect == pytest.approx(stats.gmean(good) / stats.gmean(bad))
    assert (
        judge(claim("lower"), []).as_dict() | {"n": 0} == judge(claim("lower"), made(SPARSE, good)).as_dict()
    )


def test_a_comparison_without_rows_leaves_all_undecided_and_shows_the_others() -> None:
    absent = Comparison(Arm(OTHER, "done"), Arm(DENSE, "done"), against=3.0)
    rows = made(SPARSE, [1.0, 1.01, 1.02, 1.0, 1.03]) + made(DENSE, [2.0] * 5)
    found = judge(claim("lower", absent, LOWER), rows)
    assert (found.verdict, found.n) == ("not decided", 0)
    assert found.effect == pytest.approx(0.506, abs=0.001)


def test_what_counts_as_no_effect_is_part_of_the_effect_that_is_shown() -> None:
    doubled = Comparison(LOWER.treated, LOWER.control, against=2.0)
    rows = made(SPARSE, [4.0, 4.1, 4.0, 3.9, 4.0]) + made(DENSE, [1.0] * 5)
    found = judge(claim("higher", doubled), rows)
    assert found.verdict == "supported" and found.effect == pytest.approx(4, rel=0.01)
    assert found.low > 2 and found.low < found.effect < found.high
    rows = made(SPARSE, [2.0, 2.01, 1.99, 2.0, 2.0]) + made(DENSE, [1.0] * 5)
    assert judge(claim("higher", doubled), rows).verdict == "not decided"


@pytest.mark.parametrize("rule", RULES)
def test_a_dense_arm_worse_than_six_floors_decides_nothing(rule: str) -> None:
    rows = made(SPARSE, [1.0, 1.01, 1.02, 1.0, 1.01]) + made(DENSE, [1.01, 1.0, 1.02, 1.0, 1.01])
    judged = claim(rule, dense=OTHER)
    bad = judge(judged, rows + made(OTHER, [6.1, 6.1, 1.0, 1.0, 6.1]))
    good = judge(judged, rows + made(OTHER, [5.9, 9.0, 5.9, 5.9, 9.0]))
    assert bad.verdict == "not decided"
    assert good.verdict == ("supported" if rule in ("matches", "not worse") else "not supported")
    assert judge(judged, rows).verdict == "not decided"  # nor does one that was not measured


def test_rows_of_other_splits_stages_and_networks_are_left_out() -> None:
    rows = made(SPARSE, [1.0, 1.01, 1.02, 1.0, 1.01]) + made(DENSE, [2.0] * 5)
    found = judge(claim("lower"), rows)
    noise = [
        one(SPARSE, seed, 99.0, **other)
        for seed in range(9)
        for other in ({"split": "validation"}, {"stage": "begun"}, {"network": "generator"})
    ]
    assert judge(claim("lower"), noise + rows + noise) == found


@given(
    st.sampled_from(RULES),
    st.lists(st.lists(st.floats(0.5, 2.0), min_size=5, max_size=5), min_size=3, max_size=3),
    st.randoms(use_true_random=False),
)
def test_neither_the_order_of_rows_nor_that_of_comparisons_matters(rule, drawn, random) -> None:
    arms = [Fake(letter) for letter in "abc"]
    rows = [row for arm, values in zip(arms, drawn, strict=True) for row in made(arm, values)]
    rows += made(DENSE, [1.0, 1.1, 0.9, 1.05, 0.98])
    pairs = [Comparison(Arm(arm, "done"), Arm(DENSE, "done")) for arm in arms]
    found = judge(claim(rule, *pairs), rows)
    random.shuffle(rows)
    random.shuffle(pairs)
    again = judge(claim(rule, *pairs), rows)
    assert again.verdict == found.verdict
    assert again.effect == pytest.approx(found.effect) and again.high == pytest.approx(found.high)


def test_shares_are_compared_by_differences() -> None:
    recall = Comparison(LOWER.treated, LOWER.control, "recall")
    rows = made(SPARSE, [0.30, 0.31, 0.29, 0.30, 0.32]) + made(DENSE, [0.1, 0.1, 0.09, 0.1, 0.11])
    found = judge(claim("higher", recall), rows)
    assert (found.verdict, found.scale) == ("supported", "difference")
    assert found.effect == pytest.approx(0.204)
    assert (
        judge(claim("matches", recall), made(SPARSE, [0.1] * 5) + made(DENSE, [0.1] * 5)).scale
        == "difference"
    )
