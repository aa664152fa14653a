"""Records survive stops; intervals equal SciPy's."""

import dataclasses
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import ganprune as gp
from ganprune.records import config_hash, provenance, store


@dataclasses.dataclass(frozen=True)
class Coin:
    name: ClassVar[str] = "coin"
    sides: int = 2
    fail_at: int = -1

    def run(self, seed):
        for side in range(self.sides):
            if seed == self.fail_at and side == 1:
                raise KeyboardInterrupt
            yield {"stage": "thrown", "side": side, "value": seed * 10 + side}


def test_a_run_records_and_goes_on(tmp_path):
    path = tmp_path / "deep" / "coin.jsonl"
    first = gp.records.run(Coin(), [0], path)
    assert [(r["seed"], r["side"], r["value"]) for r in first] == [(0, 0, 0), (0, 1, 1)]
    again = gp.records.run(Coin(), [0, 1], path)
    assert len(again) == 4 and len(gp.records.read(path)) == 4
    assert {"torch", "commit", "package", "time", "threads", "machine", "ganprune"} <= set(again[0])


def test_a_stopped_seed_leaves_no_rows_and_is_repeated(tmp_path):
    path = tmp_path / "coin.jsonl"
    broken = Coin(fail_at=1)
    with pytest.raises(KeyboardInterrupt):
        gp.records.run(broken, [0, 1], path)
    assert {row["seed"] for row in gp.records.read(path)} == {0}


def test_the_rows_of_a_seed_are_written_together_or_not_at_all(tmp_path, monkeypatch):
    """Killed at any write, the store has whole seeds alone: half a seed would count as done."""
    path, write = tmp_path / "coin.jsonl", os.write
    gp.records.run(Coin(sides=3), [0], path)

    class Killed(BaseException):
        pass

    def kill(handle, data):
        raise Killed

    for after in range(3):
        left = iter([write] * after + [kill] * 9)
        monkeypatch.setattr(os, "write", lambda handle, data, left=left: next(left)(handle, data))
        with pytest.raises(Killed):
            gp.records.run(Coin(sides=3), range(9), path)
        monkeypatch.setattr(os, "write", write)
        rows = gp.records.read(path)
        seeds = {row["seed"] for row in rows}
        assert [(row["seed"], row["side"]) for row in rows] == [(seed, s) for seed in seeds for s in range(3)]
    assert len(seeds) == 1 + 0 + 1 + 2


def test_a_full_disk_leaves_the_rows_of_before(tmp_path, monkeypatch):
    path, write = tmp_path / "coin.jsonl", os.write
    before = gp.records.run(Coin(), [0], path)
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) * 2 // 3]))
    with pytest.raises(OSError, match=r"took \d+ of \d+ bytes; is the disk full\?"):
        gp.records.run(Coin(), [0, 1], path)
    monkeypatch.undo()
    assert gp.records.read(path) == before and path.read_bytes().endswith(b"}\n")
    assert len(gp.records.run(Coin(), [0, 1], path)) == 4


def test_a_seed_that_is_named_twice_runs_once(tmp_path):
    assert [row["side"] for row in gp.records.run(Coin(), [3, 3], tmp_path / "s")] == [0, 1]


def test_rows_say_which_commit_ran_and_when_they_were_measured(tmp_path, monkeypatch):
    """The commit is that of the start, though another one is checked out while the experiment runs."""
    calls = itertools.count()
    origin = provenance()
    monkeypatch.setattr(store, "provenance", lambda: {**origin, "commit": next(calls)})

    class Slow(Coin):
        def run(self, seed):
            for row in super().run(seed):
                yield row
                time.sleep(1.1)

    rows = gp.records.run(Slow(sides=1), [0, 1], tmp_path / "s")
    assert [row["commit"] for row in rows] == [0, 1]
    times = [datetime.fromisoformat(row["time"]) for row in rows]
    assert times == sorted(set(times)) and len(times) == 2


@pytest.mark.parametrize("name", ["seed", "config", "commit", "threads", "time"])
def test_rows_cannot_overwrite_what_the_run_adds(tmp_path, name):
    class Clash(Coin):
        def run(self, seed):
            yield {"stage": "thrown", name: 7}

    with pytest.raises(ValueError, match=rf"rows must not hold what the record does: {name}"):
        gp.records.run(Clash(), [0], tmp_path / "s")
    assert gp.records.read(tmp_path / "s") == []


@pytest.mark.parametrize(("value", "error"), [(math.nan, ValueError), (np.float32(1), TypeError)])
def test_what_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path, value, error):
    class Bad(Coin):
        def run(self, seed):
            yield {"stage": "thrown", "value": value}

    with pytest.raises(error, match="not JSON compliant|not JSON serializable"):
        gp.records.run(Bad(), [0], tmp_path / "s")
    assert gp.records.read(tmp_path / "s") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "0"}, "record must hold 'seed' as"),
        ({"config": {"sides": 3}}, "record must have the key of its configuration"),
        ({"rows": [{"side": 1}]}, "each row must name its stage"),
        ({"rows": [{"stage": "thrown", "value": math.inf}]}, "not JSON compliant"),
        ({"processor": None}, "record must hold 'processor'"),
    ],
)
def test_an_incomplete_record_is_refused(change, message):
    record = gp.records.measure(Coin(), 0)
    gp.records.check_record(record)
    with pytest.raises(ValueError, match=message):
        gp.records.check_record(record | change)


def test_the_configuration_can_be_read_and_is_in_every_row(tmp_path):
    rows = gp.records.run(Coin(sides=3), [4], tmp_path / "s", profile="smoke")
    assert [row["config"] for row in rows] == [{"sides": 3, "fail_at": -1}] * 3
    assert {(row["experiment"], row["seed"], row["profile"]) for row in rows} == {("coin", 4, "smoke")}


def test_of_two_that_measured_the_same_seed_the_second_adds_nothing(tmp_path):
    record = gp.records.measure(Coin(), 0)
    assert gp.records.append_once(tmp_path / "s", record)
    assert not gp.records.append_once(tmp_path / "s", record)
    assert len(gp.records.read(tmp_path / "s")) == 2


@pytest.mark.parametrize("path", sorted(store.SHIPPED.glob("*.jsonl")), ids=lambda path: path.stem)
def test_shipped_records_fit_the_schema(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    units = [(line["key"], line["seed"]) for line in lines if "key" in line]
    assert len(units) == len(set(units)) and lines
    for line in lines:
        if "key" in line:
            gp.records.check_record(line)


def test_another_configuration_is_another_experiment(tmp_path):
    gp.records.run(Coin(), [0], tmp_path / "s")
    rows = gp.records.run(Coin(sides=3), [0], tmp_path / "s")
    assert len(rows) == 3 and config_hash(Coin()) != config_hash(Coin(sides=3))
    assert config_hash(Coin()) == config_hash(Coin(sides=2))


def test_a_cut_row_is_left_out_and_spoils_no_other(tmp_path):
    path = tmp_path / "s.jsonl"
    gp.records.append(path, {"a": 1})
    path.write_text(path.read_text() + '{"a": 2, "b"')
    gp.records.append(path, {"a": 3})
    assert gp.records.read(path) == [{"a": 1}, {"a": 3}]
    assert gp.records.read(tmp_path / "absent") == []
    with pytest.raises(ValueError, match="not JSON compliant|Out of range"):
        gp.records.append(path, {"a": float("nan")})


WRITER = """
import sys
import ganprune as gp
for number in range(int(sys.argv[3])):
    gp.records.append(sys.argv[1], {"writer": sys.argv[2], "number": number, "text": "x" * 20_000})
"""


def test_writers_at_once_lose_and_mix_up_nothing(tmp_path):
    """Rows longer than what a pipe or a disk takes in one piece, by two processes."""
    path, count = tmp_path / "rows.jsonl", 25
    path.write_text('{"cut')
    commands = [[sys.executable, "-c", WRITER, path, name, str(count)] for name in "ab"]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    rows = gp.records.read(path)
    assert len(path.read_text().splitlines()) == 1 + 2 * count
    for name in "ab":
        assert [row["number"] for row in rows if row["writer"] == name] == list(range(count))


def test_a_shipped_record_has_a_name_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = gp.records.read("spoilt_images")
    assert {row["experiment"] for row in rows} == {"spoilt images"} and len(rows) > 50
    with pytest.raises(
        ValueError, match=r"record must be one of .*spoilt_images.*, or .* got 'spoilt_image'"
    ):
        gp.records.read("spoilt_image")
    gp.records.append("spoilt_images.jsonl", {"mine": 1})
    assert gp.records.read("spoilt_images.jsonl") == [{"mine": 1}]
    assert gp.records.read(tmp_path / "spoilt_images") == []  # a path is no name


class Repository:
    """A repository with a copy of the package's modules in some folder of it."""

    def __init__(self, path, inside, ignored=""):
        self.path, self.site = path, path / inside
        source = Path(gp.__file__).parent
        shutil.copytree(
            source, self.site / "ganprune", ignore=shutil.ignore_patterns("assets", "__pycache__")
        )
        (path / ".gitignore").write_text(f"__pycache__\n{ignored}\n")
        (path / "file").write_text("x")
        self.git("init", "-q")
        self.commit()

    def git(self, *arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(
            command, cwd=self.path, capture_output=True, text=True, check=True
        ).stdout.strip()

    def commit(self):
        self.git("add", ".")
        self.git("commit", "-qm", "a commit")
        self.head = self.git("rev-parse", "--short", "HEAD")

    def provenance(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "PACKAGE", self.site / "ganprune")
            return provenance()


def test_the_commit_is_that_of_the_package_never_of_a_project_around_it(tmp_path):
    foreign = Repository(tmp_path / "project", ".venv/lib", ignored=".venv")
    found = foreign.provenance()
    assert found["commit"] is None and found["ganprune"] == gp.__version__
    own = Repository(tmp_path / "own", ".")
    assert own.provenance()["commit"] == own.head
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_DIR", str(foreign.path / ".git"))  # as within a git hook
        assert own.provenance()["commit"] == own.head
    assert own.provenance()["package"] == found["package"]
    (own.site / "ganprune" / "losses.py").open("a").write("\n")
    changed = own.provenance()
    assert changed["commit"] == own.head + "+" and changed["package"] != found["package"]


def test_a_row_that_is_added_to_a_shipped_record_changes_no_code(tmp_path):
    own = Repository(tmp_path / "own", ".")
    gp.records.append(own.site / "ganprune" / "assets" / "records" / "new.jsonl", {"row": 1})
    assert own.provenance()["commit"] == own.head


def test_a_package_within_a_larger_project_has_no_commit_of_its_own(tmp_path):
    assert Repository(tmp_path / "project", "third_party").provenance()["commit"] is None


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
