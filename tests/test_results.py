"""Records survive stops; intervals equal SciPy's."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import ganprune as gp
from ganprune.results import config_hash, provenance


@dataclasses.dataclass(frozen=True)
class Coin:
    name: str = "coin"
    sides: int = 2
    fail_at: int = -1

    def run(self, seed):
        for side in range(self.sides):
            if seed == self.fail_at and side == 1:
                raise KeyboardInterrupt
            yield {"side": side, "value": seed * 10 + side}


def test_a_run_records_and_goes_on(tmp_path):
    store = tmp_path / "deep" / "coin.jsonl"
    first = gp.run(Coin(), [0], store)
    assert [(r["seed"], r["side"], r["value"]) for r in first] == [(0, 0, 0), (0, 1, 1)]
    again = gp.run(Coin(), [0, 1], store)
    assert len(again) == 4 and len(gp.read_records(store)) == 4
    assert {"torch", "commit", "time", "threads", "machine", "ganprune"} <= set(again[0])


def test_a_stopped_seed_leaves_no_rows_and_is_repeated(tmp_path):
    store = tmp_path / "coin.jsonl"
    broken = Coin(fail_at=1)
    with pytest.raises(KeyboardInterrupt):
        gp.run(broken, [0, 1], store)
    assert {row["seed"] for row in gp.read_records(store)} == {0}


def test_rows_cannot_overwrite_what_the_run_adds(tmp_path):
    class Clash(Coin):
        def run(self, seed):
            yield {"seed": 7}

    with pytest.raises(ValueError, match="rows must not hold what run\\(\\) adds: seed"):
        gp.run(Clash(), [0], tmp_path / "s")
    assert gp.read_records(tmp_path / "s") == []


def test_another_configuration_is_another_experiment(tmp_path):
    gp.run(Coin(), [0], tmp_path / "s")
    rows = gp.run(Coin(sides=3), [0], tmp_path / "s")
    assert len(rows) == 3 and config_hash(Coin()) != config_hash(Coin(sides=3))
    assert config_hash(Coin()) == config_hash(Coin(sides=2))


def test_a_cut_row_is_left_out_and_spoils_no_other(tmp_path):
    store = tmp_path / "s.jsonl"
    gp.append_record(store, {"a": 1})
    store.write_text(store.read_text() + '{"a": 2, "b"')
    gp.append_record(store, {"a": 3})
    assert gp.read_records(store) == [{"a": 1}, {"a": 3}]
    assert gp.read_records(tmp_path / "absent") == []
    with pytest.raises(ValueError, match="not JSON compliant|Out of range"):
        gp.append_record(store, {"a": float("nan")})


def test_provenance_is_plain():
    assert all(isinstance(value, (str, int, type(None))) for value in provenance().values())


@given(
    st.lists(st.floats(0.1, 1e3), min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-6),
    st.floats(0.5, 0.99),
)
def test_interval_equals_scipy(values, confidence):
    got = gp.interval(values, confidence)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (got.low, got.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)
    logged = gp.interval(values, confidence, log=True)
    assert logged.mean == pytest.approx(stats.gmean(values))
    assert logged.low <= logged.mean <= logged.high


def test_one_value_has_no_interval():
    alone = gp.interval([3.0])
    assert alone.mean == 3 and math.isnan(alone.low) and str(alone) == "3 (n = 1)"


def test_paired_ratio_removes_what_seeds_share():
    control = np.array([1.0, 10.0, 100.0])
    ratio = gp.paired_ratio(2 * control, control)
    assert (ratio.low, ratio.mean, ratio.high) == pytest.approx((2, 2, 2))
    treated = [3.0, 4.0, 5.5]
    difference = stats.ttest_rel(np.log(treated), np.log([2.0, 4.0, 5.0])).confidence_interval()
    got = gp.paired_ratio(treated, [2.0, 4.0, 5.0])
    assert (got.low, got.high) == pytest.approx((math.exp(difference.low), math.exp(difference.high)))


def test_verdicts():
    def make(low, high, n=5):
        return gp.Interval((low + high) / 2, low, high, n)

    assert gp.verdict(make(0.95, 1.05)) == "matches"
    assert gp.verdict(make(1.2, 1.4)) == "worse"
    assert gp.verdict(make(0.5, 0.8)) == "better"
    assert gp.verdict(make(0.8, 1.3)) == "inconclusive (5)"
    assert gp.verdict(make(1.2, 1.4, n=3)) == "inconclusive (3)"


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_bad_values_are_refused(values):
    with pytest.raises(ValueError, match="values must be finite"):
        gp.interval(values)


def test_more_refusals():
    with pytest.raises(ValueError, match="positive"):
        gp.interval([1.0, -1.0], log=True)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        gp.interval([1.0, 2.0], 95)
    with pytest.raises(ValueError, match="treated and control must pair up, got 2 and 1 values"):
        gp.paired_ratio([1.0, 2.0], [1.0])
