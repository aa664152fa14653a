"""Records survive stops; intervals equal SciPy's."""

import dataclasses
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import ganprune as gp
from ganprune.records import statistics as results
from ganprune.records.store import config_hash, provenance


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
    first = gp.records.run(Coin(), [0], store)
    assert [(r["seed"], r["side"], r["value"]) for r in first] == [(0, 0, 0), (0, 1, 1)]
    again = gp.records.run(Coin(), [0, 1], store)
    assert len(again) == 4 and len(gp.records.read_records(store)) == 4
    assert {"torch", "commit", "time", "threads", "machine", "ganprune"} <= set(again[0])


def test_a_stopped_seed_leaves_no_rows_and_is_repeated(tmp_path):
    store = tmp_path / "coin.jsonl"
    broken = Coin(fail_at=1)
    with pytest.raises(KeyboardInterrupt):
        gp.records.run(broken, [0, 1], store)
    assert {row["seed"] for row in gp.records.read_records(store)} == {0}


def test_the_rows_of_a_seed_are_written_together_or_not_at_all(tmp_path, monkeypatch):
    """Killed at any write, the store has whole seeds alone: half a seed would count as done."""
    store, write = tmp_path / "coin.jsonl", os.write
    gp.records.run(Coin(sides=3), [0], store)

    class Killed(BaseException):
        pass

    def kill(handle, data):
        raise Killed

    for after in range(3):
        left = iter([write] * after + [kill] * 9)
        monkeypatch.setattr(os, "write", lambda handle, data, left=left: next(left)(handle, data))
        with pytest.raises(Killed):
            gp.records.run(Coin(sides=3), range(9), store)
        monkeypatch.setattr(os, "write", write)
        rows = gp.records.read_records(store)
        seeds = {row["seed"] for row in rows}
        assert [(row["seed"], row["side"]) for row in rows] == [(seed, s) for seed in seeds for s in range(3)]
    assert len(seeds) == 1 + 0 + 1 + 2


def test_a_full_disk_leaves_the_rows_of_before(tmp_path, monkeypatch):
    store, write = tmp_path / "coin.jsonl", os.write
    before = gp.records.run(Coin(), [0], store)
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) * 2 // 3]))
    with pytest.raises(OSError, match=r"took \d+ of \d+ bytes; is the disk full\?"):
        gp.records.run(Coin(), [0, 1], store)
    monkeypatch.undo()
    assert gp.records.read_records(store) == before and store.read_bytes().endswith(b"}\n")
    assert len(gp.records.run(Coin(), [0, 1], store)) == 4


def test_a_seed_that_is_named_twice_runs_once(tmp_path):
    assert [row["side"] for row in gp.records.run(Coin(), [3, 3], tmp_path / "s")] == [0, 1]


def test_rows_say_which_commit_ran_and_when_they_were_measured(tmp_path, monkeypatch):
    """The commit is that of the start, though another one is checked out while the experiment runs."""
    moments = [f"2026-01-01T00:00:0{second}+00:00" for second in range(9)]
    clock, commits = iter(moments), iter(["at the start", "too late", "too late", "too late"])
    monkeypatch.setattr(results, "_now", lambda: next(clock))
    monkeypatch.setattr(results, "_commit", lambda: next(commits))
    rows = gp.records.run(Coin(), [0, 1], tmp_path / "s")
    assert {row["commit"] for row in rows} == {"at the start"}
    assert [row["time"] for row in rows] == moments[1:5]


@pytest.mark.parametrize("name", ["seed", "config", "commit", "threads", "time"])
def test_rows_cannot_overwrite_what_the_run_adds(tmp_path, name):
    class Clash(Coin):
        def run(self, seed):
            yield {name: 7}

    with pytest.raises(ValueError, match=rf"rows must not hold what run\(\) adds: {name}"):
        gp.records.run(Clash(), [0], tmp_path / "s")
    assert gp.records.read_records(tmp_path / "s") == []


@pytest.mark.parametrize(("value", "error"), [(math.nan, ValueError), (np.float32(1), TypeError)])
def test_what_json_cannot_hold_is_refused_at_its_row(tmp_path, value, error):
    """Not after the last row of a seed, which may be hours later."""

    class Bad(Coin):
        def run(self, seed):
            yield {"value": value}
            raise AssertionError("the experiment went on")

    with pytest.raises(error, match="not JSON compliant|not JSON serializable"):
        gp.records.run(Bad(), [0], tmp_path / "s")


def test_another_configuration_is_another_experiment(tmp_path):
    gp.records.run(Coin(), [0], tmp_path / "s")
    rows = gp.records.run(Coin(sides=3), [0], tmp_path / "s")
    assert len(rows) == 3 and config_hash(Coin()) != config_hash(Coin(sides=3))
    assert config_hash(Coin()) == config_hash(Coin(sides=2))


def test_a_cut_row_is_left_out_and_spoils_no_other(tmp_path):
    store = tmp_path / "s.jsonl"
    gp.records.append_record(store, {"a": 1})
    store.write_text(store.read_text() + '{"a": 2, "b"')
    gp.records.append_record(store, {"a": 3})
    assert gp.records.read_records(store) == [{"a": 1}, {"a": 3}]
    assert gp.records.read_records(tmp_path / "absent") == []
    with pytest.raises(ValueError, match="not JSON compliant|Out of range"):
        gp.records.append_record(store, {"a": float("nan")})


def test_provenance_is_plain():
    assert all(isinstance(value, (str, int, type(None))) for value in provenance().values())


@given(
    st.lists(st.floats(0.1, 1e3), min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-6),
    st.floats(0.5, 0.99),
)
def test_interval_equals_scipy(values, confidence):
    got = gp.records.interval(values, confidence)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (got.low, got.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)
    logged = gp.records.interval(values, confidence, log=True)
    assert logged.mean == pytest.approx(stats.gmean(values))
    assert logged.low <= logged.mean <= logged.high


def test_one_value_has_no_interval():
    alone = gp.records.interval([3.0])
    assert alone.mean == 3 and math.isnan(alone.low) and str(alone) == "3 (n = 1)"


def test_paired_ratio_removes_what_seeds_share():
    control = np.array([1.0, 10.0, 100.0])
    ratio = gp.records.paired_ratio(2 * control, control)
    assert (ratio.low, ratio.mean, ratio.high) == pytest.approx((2, 2, 2))
    treated = [3.0, 4.0, 5.5]
    difference = stats.ttest_rel(np.log(treated), np.log([2.0, 4.0, 5.0])).confidence_interval()
    got = gp.records.paired_ratio(treated, [2.0, 4.0, 5.0])
    assert (got.low, got.high) == pytest.approx((math.exp(difference.low), math.exp(difference.high)))


def test_verdicts():
    def make(low, high, n=5):
        return gp.records.Interval((low + high) / 2, low, high, n)

    assert gp.records.verdict(make(0.95, 1.05)) == "matches"
    assert gp.records.verdict(make(1.2, 1.4)) == "worse"
    assert gp.records.verdict(make(0.5, 0.8)) == "better"
    assert gp.records.verdict(make(0.8, 1.3)) == "inconclusive (5)"
    assert gp.records.verdict(make(1.2, 1.4, n=3)) == "inconclusive (3)"


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")], [[1.0, 2.0], [3.0, 4.0]], 1.0])
def test_bad_values_are_refused(values):
    with pytest.raises(ValueError, match="values must be finite"):
        gp.records.interval(values)


def test_more_refusals():
    with pytest.raises(ValueError, match="positive"):
        gp.records.interval([1.0, -1.0], log=True)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        gp.records.interval([1.0, 2.0], 95)
    with pytest.raises(ValueError, match="treated and control must pair up, got 2 and 1 values"):
        gp.records.paired_ratio([1.0, 2.0], [1.0])
    for bad in (-2.0, 0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="control must be finite and positive"):
            gp.records.paired_ratio([1.0, 2.0], [1.0, bad])
        with pytest.raises(ValueError, match="treated must be finite and positive"):
            gp.records.paired_ratio([1.0, bad], [1.0, bad])
