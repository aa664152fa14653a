"""The benchmarks' bookkeeping: rows and bars, merging, intervals, the command line. No speed is measured here."""

import dataclasses
import importlib
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def load(name):
    return importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def record():
    return load("record")


@pytest.mark.parametrize(
    ("value", "bar", "holds", "sense"),
    [
        (2.0, {"at_least": 2.0}, True, "at least"),
        (1.99, {"at_least": 2.0}, False, "at least"),
        (1.02, {"at_most": 1.02}, True, "at most"),
        (1.03, {"at_most": 1.02}, False, "at most"),
        (None, {"at_least": 2.0}, False, "at least"),
        (7.0, {}, None, None),
    ],
)
def test_a_row_knows_whether_its_bar_holds(record, value, bar, holds, sense):
    row = record.Row("a figure", value, "×", **bar).as_dict("family")
    assert (row["value"], row["bar"], row["holds"]) == (value, next(iter(bar.values()), None), holds)
    assert row["sense"] == sense
    assert {"name", "value", "bar", "unit", "holds", "measured", "threads", "commit"} <= row.keys()


def test_merging_replaces_one_benchmark_and_keeps_the_others(record, tmp_path):
    def rows(family, *values):
        return [record.Row(f"{family} {n}", value, "s").as_dict(family) for n, value in enumerate(values)]

    here, path = {"processor": "one"}, tmp_path / "latest.json"
    kept = record.merge(record.read(path), "b", rows("b", 1.0, 2.0), here)
    kept = record.merge(kept, "a", rows("a", 3.0), here)
    record.write(kept, path)
    kept = record.merge(record.read(path), "b", rows("b", 4.0), here)
    assert [(row["benchmark"], row["value"]) for row in kept["rows"]] == [("a", 3.0), ("b", 4.0)]
    assert {"conditions", "rows"} == kept.keys()
    moved = record.merge(kept, "a", rows("a", 5.0), {"processor": "two"})
    assert [(row["benchmark"], row["value"]) for row in moved["rows"]] == [("a", 5.0), ("b", 4.0)]
    machines = {name: found["machine"]["processor"] for name, found in moved["conditions"].items()}
    assert machines == {"a": "two", "b": "one"}  # each says what it was measured on
    assert {"machine", "versions", "time"} == moved["conditions"]["a"].keys()
    assert [path.name for path in tmp_path.iterdir()] == ["latest.json"]


def test_the_table_shows_every_verdict(record):
    rows = [
        record.Row("good", 2.0, "×", at_least=1.8),
        record.Row("bad", 3.0, "GiB", at_most=2.0),
        record.Row("bare", 1 / 3, "s"),
        record.Row("out of reach", None, "×", at_least=2.0),
    ]
    lines = record.table(row.as_dict("x") for row in rows).splitlines()
    assert lines[1].split() == ["good", "2", "at", "least", "1.8", "×", "holds"]
    assert lines[2].split() == ["bad", "3", "at", "most", "2", "GiB", "MISSED"]
    assert lines[3].split() == ["bare", "0.3333", "s"]
    assert lines[4].split() == ["out", "of", "reach", "never", "at", "least", "2", "×", "MISSED"]


def test_arms_take_turns_and_the_ratio_is_a_median(monkeypatch):
    timing = load("timing")
    now, calls = [0.0], []
    monkeypatch.setattr(timing, "clock", lambda device="cpu": now[0])

    def arm(name, seconds):
        def run():
            calls.append(name)
            now[0] += seconds

        return run

    times = timing.compare({"slow": arm("slow", 3.0), "fast": arm("fast", 2.0)}, rounds=4, warmup=2)
    assert len(calls) == 12
    assert calls[4:] == ["slow", "fast", "fast", "slow"] * 2
    assert times.rounds["slow"] == pytest.approx([3.0] * 4)
    assert times.ratio("slow", "fast").value == pytest.approx(1.5)
    assert times.median("fast") == pytest.approx(2.0)


def test_the_interval_of_the_median_covers_it():
    timing = load("timing")
    assert timing.median_interval(range(10)) == (1, 8)  # the classical ranks: 2 and 9 of 10
    assert timing.median_interval([5, 3, 4]) == (3, 5)
    draw = random.Random(0)
    hits = 0
    for _ in range(400):
        low, high = timing.median_interval([draw.gauss(0, 1) for _ in range(30)])
        hits += low <= 0 <= high
    assert hits >= 0.93 * 400


def test_seconds_may_be_read_from_another_clock():
    ticks = iter(range(100))
    times = load("timing").compare({"a": lambda: None}, 3, warmup=0, read=lambda: float(next(ticks)))
    assert times.rounds == {"a": [1.0, 1.0, 1.0]}


def test_every_benchmark_says_how_long_it_takes():
    found = load("__main__").discover()
    wanted = {"training_step", "time_to_quality", "masked_step", "notebook_memory", "build_times"}
    wanted |= {
        "selection",
        "score_cost",
        "dynamic_sparse",
        "shrunk_latency",
        "sparse_inference",
        "sparse_threads",
        "equal_quality",
        "width_scaling",
    }
    assert wanted <= found.keys()
    minutes = [module.MINUTES for module in found.values()]
    assert minutes == sorted(minutes)
    assert all(module.__doc__ for module in found.values())


def test_the_command_runs_keeps_and_lists(capsys, monkeypatch, tmp_path):
    command, selection, record = load("__main__"), load("selection"), load("record")
    path = tmp_path / "latest.json"
    assert command.main(["--quick", "--only", "selection"], path) == 0
    assert "global selection among 10,000 weights" in capsys.readouterr().out
    assert not path.exists()  # figures of tiny sizes are never kept
    monkeypatch.setattr(selection, "measure", lambda quick: [record.Row("a figure", 1.0, "×", at_most=2.0)])
    assert command.main(["--only", "selection"], path) == 0
    assert [row["holds"] for row in json.loads(path.read_text())["rows"]] == [True]
    assert command.main(["--list"], path) == 0
    listed = capsys.readouterr().out
    assert "build_times" in listed
    assert "on request" in listed
    with pytest.raises(SystemExit, match="2"):
        command.main(["--only", "nothing"], path)


def test_a_benchmark_that_fails_does_not_lose_the_others(capsys, monkeypatch, tmp_path):
    command, record = load("__main__"), load("record")

    def broken(quick):
        raise RuntimeError("no luck")

    monkeypatch.setattr(load("selection"), "measure", broken)
    monkeypatch.setattr(load("masked_step"), "measure", lambda quick: [record.Row("a figure", 1.0, "×")])
    path = tmp_path / "latest.json"
    assert command.main(["--only", "selection", "masked_step"], path) == 1
    assert [row["benchmark"] for row in json.loads(path.read_text())["rows"]] == ["masked_step"]
    assert "error: selection could not be run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "dynamic_sparse",
        "equal_quality",
        "masked_step",
        "score_cost",
        "shrunk_latency",
        "sparse_inference",
        "sparse_threads",
        "training_step",
        "width_scaling",
    ],
)
def test_benchmarks_work_at_tiny_sizes(name):
    rows = list(load(name).measure(True))
    assert rows
    assert all(math.isfinite(row.value) for row in rows)


def test_time_to_quality_goes_on_with_the_seeds_that_are_missing(monkeypatch, tmp_path):
    module, journal = load("time_to_quality"), tmp_path / "journal.jsonl"
    setting = module.Setting(width=2, batch_size=4, plain_steps=4, budget=4, turn=2, samples=20, seeds=(0, 1))
    scores = iter([90.0, 50.0, 40.0])  # ours at step 2, plain at its end, ours at its end
    monkeypatch.setattr(module.gp, "evaluate", lambda *a, **k: SimpleNamespace(digit_fid=next(scores)))
    (row,) = module.all_seeds(dataclasses.replace(setting, seeds=(0,)), None)
    assert row["plain_digit_fid"] == 50
    assert [point["step"] for point in row["curve"]] == [2, 4]
    assert (row["reached_step"], row["reached_seconds"]) == (4, row["curve"][1]["seconds"])
    assert row["our_digit_fid"] == 40
    done = []
    monkeypatch.setattr(module, "one_seed", lambda setting, seed, *rest: done.append(seed) or {"seed": seed})
    monkeypatch.setattr(module.gp.records, "provenance", lambda: {"commit": "abc"})
    module.all_seeds(setting, journal)
    assert done == [0, 1]
    module.all_seeds(setting, journal)
    assert done == [0, 1]
    module.all_seeds(dataclasses.replace(setting, budget=6), journal)
    assert done == [0, 1, 0, 1]


def test_a_fresh_clone_can_be_made_and_edited(tmp_path):
    module = load("build_times")
    folder = module.clone(tmp_path / "clone")
    before = (folder / "book" / "intro.md").read_text()
    module.edit_prose(folder)
    assert (folder / "book" / "intro.md").read_text() != before
    assert module.timed_make("help", folder) > 0
    with pytest.raises(RuntimeError, match="make nonsense failed in a fresh clone"):
        module.timed_make("nonsense", folder)


def test_the_kept_record_is_whole(record):
    kept = record.read()
    assert isinstance(kept["rows"], list)
    for row in kept["rows"]:
        assert {"name", "value", "bar", "unit", "holds", "benchmark", "measured", "threads"} <= row.keys()
