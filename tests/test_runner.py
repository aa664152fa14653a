"""The runner: it does only what is missing, whoever is killed, and nothing is lost or done twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.fake_experiments import Coin
from tools.small_book import wait_for

from ganprune.core.files import owned, owned_in_turn
from ganprune.experiments import runner
from ganprune.experiments.arms import arms_of
from ganprune.experiments.recovery import Recovery
from ganprune.experiments.runner import ExperimentError, Unit, cost, file_of, run_units, shard, units, work
from ganprune.experiments.studies import study
from ganprune.records import append_once, check_record, config_hash, measure, read

ROOT = Path(__file__).resolve().parents[1]
fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return a cache folder of the test's own."""
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path):
    """Return the folder of records."""
    return tmp_path / "records"


@pytest.fixture
def coin(tmp_path):
    """Return a maker of coins with a common journal."""
    folder = tmp_path / "journal"
    folder.mkdir()
    return lambda **changes: Coin(str(folder), **changes)


def seeds_of(store: Path, experiment: Coin) -> list[int]:
    """Return the seeds that are recorded, after a look at the records: each is whole."""
    path, key = file_of(experiment, store), config_hash(experiment)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for line in lines:
        check_record(line)
        wanted = [(side, 10 * line["seed"] + side) for side in range(line["config"]["sides"])]
        assert [(row["side"], row["value"]) for row in line["rows"]] == wanted
    return [line["seed"] for line in lines if line["key"] == key]


def in_a_fork(function: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """Start a function in a process that has everything imported already."""
    process = fork.Process(target=function)
    process.start()
    return process


# ---------------------------------------------------------------- what is missing


def test_units_are_what_the_store_lacks_seed_by_seed(store, coin) -> None:
    one, other = coin(), coin(sides=3)
    append_once(file_of(one, store), measure(one, 1))
    append_once(store / "renamed.jsonl", measure(other, 0))
    found = units([one, other, one], [0, 1, 2], store)
    assert [(unit.experiment, unit.seed) for unit in found] == [(one, 0), (other, 1), (one, 2), (other, 2)]
    assert run_units(found, store) == 4
    assert units([one, other], range(3), store) == []
    assert str(found[0]) == "coin, seed 0" and found[0].key == config_hash(one)


def test_dense_pairs_come_first_and_once(store) -> None:
    arms = arms_of("smoke")
    found = units([arms.recovery(0.5), arms.recovery(0.9)], [0, 1], store)
    assert [unit.experiment for unit in found[:3]] == [arms.dense, arms.recovery(0.5), arms.recovery(0.9)]
    assert len(found) == 6
    first, second = runner._waves(found)
    assert {unit.experiment for unit in first} == {arms.dense}
    assert all(isinstance(unit.experiment, Recovery) for unit in second) and len(second) == 4
    assert runner._waves([]) == [] and runner._waves(second) == [second]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_shards_are_a_partition(store, count) -> None:
    missing = units(study("magnitude", "smoke").arms, range(2), store)
    shards = [shard(missing, index, count) for index in range(1, count + 1)]
    together = [unit for some in shards for unit in some]
    assert len(together) == len(missing) and set(together) == set(missing)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(("index", "count"), [(0, 2), (3, 2), (1, 0), (-1, 2)])
def test_a_shard_that_is_none_is_refused(index, count) -> None:
    with pytest.raises(ValueError, match="index|count"):
        shard([], index, count)


def test_the_cost_follows_the_records(store) -> None:
    missing = units(study("magnitude", "laptop").arms, [0], store)
    steps = sum(unit.experiment.steps for unit in missing)
    assert cost(missing, []).steps == steps and cost(missing, []).units == len(missing)
    overhead = 20 * len(missing)
    assert cost(missing, []).core_hours == pytest.approx((0.04 * steps + overhead) / 3_600)
    rows = [
        {"experiment": kind, "processor_seconds": factor * seconds, "step": 100}
        for kind, factor in (("recovery", 1), ("from scratch", 1), ("ring training", 0.1))
        for seconds in (1.0, 2.0, 900.0)
    ]
    rows.append({"experiment": "recovery", "step": 3})
    assert cost(missing, rows).core_hours == pytest.approx((0.02 * steps + overhead) / 3_600)
    ring = units(study("ring-losses", "laptop").arms, [0], store)
    steps = sum(unit.experiment.steps for unit in ring)  # a step on the ring costs less
    assert cost(ring, rows).core_hours == pytest.approx((0.002 * steps + 20 * len(ring)) / 3_600)
    assert cost([], rows) == runner.Cost(0, 0, 0.0)


# ---------------------------------------------------------------- failures, kills, company


def test_a_unit_that_fails_stops_no_other_and_is_named(store, coin) -> None:
    bad = coin(fails=(1,))
    with pytest.raises(
        ExperimentError, match=r"^1 of 4 units failed; the first: coin, seed 1: ValueError: the coin"
    ):
        run_units(units([bad], range(4), store), store)
    assert seeds_of(store, bad) == [0, 2, 3]
    with pytest.raises(ExperimentError, match="1 of 1 units failed"):
        run_units(units([bad], range(4), store), store)


def test_an_interruption_ends_the_run_and_keeps_what_is_finished(store, coin, monkeypatch) -> None:
    def stop(experiment, seed, profile):
        if seed == 2:
            raise KeyboardInterrupt
        return measure(experiment, seed, profile)

    monkeypatch.setattr(runner, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        run_units(units([coin()], range(5), store), store)
    assert seeds_of(store, coin()) == [0, 1]


class Killer:
    """Kills its own process at the so-many-th call of any function."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_at_twenty_random_moments_nothing_is_lost_or_done_twice(store, coin) -> None:
    """The moments are random calls anywhere in the runner, so that locks, figures and writes are all among them."""
    thrown, draw, kills = coin(sides=3), random.Random(0), 0
    calls = Killer(-1)
    sys.setprofile(calls)
    work(Unit(thrown, 999), store, "smoke")
    sys.setprofile(None)
    per_unit = -calls.left
    assert seeds_of(store, thrown) == [999]
    while kills < 20:
        done, begun = seeds_of(store, thrown), len(thrown.begins())

        def run(moment: int = draw.randrange(1, 3 * per_unit)) -> None:
            sys.setprofile(Killer(moment))
            run_units(units([thrown], range(80), store), store, "smoke")

        process = in_a_fork(run)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        assert seeds_of(store, thrown)[: len(done)] == done  # nothing is lost
        assert not set(done) & set(thrown.begins()[begun:])  # and nothing done again
    rest = units([thrown], range(80), store)
    assert 0 < len(rest) == 81 - len(seeds_of(store, thrown))
    assert run_units(rest, store) == len(rest)
    assert sorted(seeds_of(store, thrown)) == [*range(80), 999]
    again = len(thrown.begins()) - 81
    assert 0 <= again <= 20  # at most the seed that it was in


def test_two_runners_on_one_store_do_nothing_twice(store, coin) -> None:
    thrown = coin(pause=0.01)

    def run() -> None:
        run_units(units([thrown], range(12), store), store)

    runners = [in_a_fork(run) for _ in range(2)]
    for process in runners:
        process.join(60)
    assert [process.exitcode for process in runners] == [0, 0]
    assert sorted(thrown.begins()) == sorted(seeds_of(store, thrown)) == [*range(12)]


def test_a_unit_that_another_process_is_at_is_left_to_it(store, coin, cache) -> None:
    unit = Unit(coin(), 0)
    with owned(cache / "running" / f"{unit.key}-0"):
        assert work(unit, store, "smoke") is False
    assert work(unit, store, "smoke") is True and work(unit, store, "smoke") is False
    assert coin().begins() == [0]


def test_who_wants_what_another_is_making_waits_for_it(tmp_path) -> None:
    order: list[str] = []

    def second() -> None:
        with owned_in_turn(tmp_path / "pair", pause=0.01):
            order.append("second")

    with owned(tmp_path / "pair"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_workers_that_are_killed_are_replaced_and_blame_only_their_own_unit(store, coin, monkeypatch) -> None:
    """A unit that dies once is measured again; one that dies always is named; the others are done, once."""
    monkeypatch.setattr(runner, "TRIES", 2)
    mixed = coin(dies_once=(1,), dies=(3,), fails=(4,))
    with pytest.raises(ExperimentError, match=r"^2 of 7 units failed; the first: coin, seed [34]"):
        run_units(units([mixed], range(7), store), store, jobs=2)
    assert sorted(seeds_of(store, mixed)) == [0, 1, 2, 5, 6]
    assert sorted(mixed.begins()) == [0, 1, 1, 2, 3, 3, 4, 5, 6]
    assert {path.name.split("-")[2] for path in Path(mixed.journal).iterdir()} - {str(os.getpid())}


SCRIPT = """
import sys
from tools.fake_experiments import Coin
from ganprune.experiments.runner import run_units, units
if __name__ == "__main__":
    coin = Coin(sys.argv[1], sides=40, pause=0.05)
    run_units(units([coin], range(2), sys.argv[2]), sys.argv[2], jobs=2)
"""


def test_workers_end_with_a_runner_that_is_killed(tmp_path, store, coin) -> None:
    thrown, script = coin(sides=40, pause=0.05), tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, script, thrown.journal, store]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    wait_for(lambda: len(thrown.begins()) == 2)
    workers = [int(name.name.split("-")[2]) for name in Path(thrown.journal).iterdir()]
    process.kill()
    process.wait(10)
    wait_for(lambda: not any(alive(worker) for worker in workers))
    assert seeds_of(store, thrown) == []
    assert [unit.seed for unit in units([thrown], range(2), store)] == [0, 1]


def alive(process: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def test_a_cluster_of_two_loses_and_repeats_nothing(store, coin, monkeypatch) -> None:
    """A real cluster on this machine: a worker is killed in the middle of a seed, and another one takes it up."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "180")  # on a machine that does other work as well
    mixed = coin(dies_once=(2,), fails=(4,))
    append_once(file_of(mixed, store), measure(mixed, 5))
    with pytest.raises(
        ExperimentError, match=r"^1 of 6 units failed; the first: coin, seed 4: ValueError: the coin"
    ):
        run_units([Unit(mixed, seed) for seed in range(6)], store, jobs=2, backend="ray")
    assert not ray.is_initialized()
    assert sorted(seeds_of(store, mixed)) == [0, 1, 2, 3, 5]
    assert sorted(mixed.begins()) == [0, 1, 2, 2, 3, 4, 5]
    assert str(os.getpid()) in {p.name.split("-")[2] for p in Path(mixed.journal).iterdir()}  # seed 5 alone
    assert len(read(file_of(mixed, store))) == 10


def test_without_ray_the_message_says_what_to_install(store, coin, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExperimentError, match=r"needs Ray: pip install 'ganprune\[cluster\]'"):
        run_units([Unit(coin(), 0)], store, backend="ray")
    with pytest.raises(ValueError, match="backend must be one of processes, ray"):
        run_units([Unit(coin(), 0)], store, backend="slurm")
