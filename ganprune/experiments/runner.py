"""Running experiments: what is missing, what it costs, and who does it: this process, several, or a Ray cluster.

The unit of work is one seed of one configuration. It is measured as a whole and written at once, so that a run that is
killed loses at most the units that it was in, and a second run does only what is missing. Units that start from a dense
pair come after the pairs, which are trained once and kept.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ganprune.core.checks import check_choice, check_integer
from ganprune.core.errors import GanpruneError
from ganprune.core.files import OutputInUseError, cache_dir, owned
from ganprune.core.progress import progress
from ganprune.experiments.base import Experiment, tracked
from ganprune.experiments.recovery import Recovery
from ganprune.records.store import append_once, config_hash, measure, recorded
from ganprune.training.trackers import library_of

BACKENDS = ("processes", "ray")
TRIES = 3
"""How often a unit is begun before it counts as failed: its worker may have been killed for something else."""
SECONDS_PER_STEP = 0.04
"""Assumed where no record tells: one thread, width 32."""


class ExperimentError(GanpruneError, RuntimeError):
    """Units of an experiment failed; the message names them and the first error."""


@dataclass(frozen=True)
class Unit:
    """One seed of one configuration."""

    experiment: Experiment
    seed: int

    @property
    def key(self) -> str:
        """The configuration's hash."""
        return config_hash(self.experiment)

    def __str__(self) -> str:
        return f"{self.experiment.label}, seed {self.seed}"


class Job(NamedTuple):
    """What all units of a run share: where rows go, the profile that they note, and what logs their trainings."""

    store: str
    profile: str
    tracker: tuple[str, str] | None = None


def units(experiments: Iterable[Experiment], seeds: Iterable[int], store: str | Path) -> list[Unit]:
    """What the store lacks: each configuration once, and the dense pairs that they start from.

    It goes seed by seed, so that a stop leaves whole comparisons.
    """
    distinct: dict[str, Experiment] = {}
    for experiment in experiments:
        for one in (experiment.dense, experiment) if isinstance(experiment, Recovery) else (experiment,):
            distinct.setdefault(config_hash(one), one)
    done = {unit for path in Path(store).glob("*.jsonl") for unit in recorded(path)}
    every = (Unit(experiment, seed) for seed in seeds for experiment in distinct.values())
    return [unit for unit in every if (unit.key, unit.seed) not in done]


def file_of(experiment: Experiment, store: str | Path) -> Path:
    """Where the rows of an experiment lie: one file for each kind."""
    return Path(store) / f"{experiment.name.replace(' ', '_')}.jsonl"


def shard(missing: Sequence[Unit], index: int, count: int) -> list[Unit]:
    """Every ``count``-th unit, from the ``index``-th of 1 to ``count``: the shards together are all, none twice.

    Raises:
        ValueError: if there is no such shard.
    """
    if not 1 <= check_integer("index", index, 1) <= check_integer("count", count, 1):
        raise ValueError(f"index must be in 1 to {count}, got {index}")
    return list(missing[index - 1 :: count])


@dataclass(frozen=True)
class Cost:
    """What a run costs: generator updates, and hours of one processor core."""

    units: int
    steps: int
    core_hours: float


def cost(missing: Sequence[Unit], rows: Sequence[dict[str, Any]]) -> Cost:
    """The cost of units, by the seconds per step that records tell.

    Args:
        missing: what is to be run.
        rows: of records; for each kind of experiment the median of what its trainings took, because a step on the ring
            is not one on digits.
    """
    taken: dict[str, list[float]] = {}
    for row in rows:
        if row.get("processor_seconds") and row.get("step"):
            taken.setdefault(row["experiment"], []).append(row["processor_seconds"] / row["step"])
    rates = {name: sorted(found)[len(found) // 2] for name, found in taken.items()}
    steps = sum(unit.experiment.steps for unit in missing)
    seconds = sum(
        unit.experiment.steps * rates.get(unit.experiment.name, SECONDS_PER_STEP) for unit in missing
    )
    return Cost(len(missing), steps, (seconds + 20 * len(missing)) / 3_600)


def run_units(
    missing: Sequence[Unit],
    store: str | Path,
    profile: str = "laptop",
    jobs: int = 1,
    backend: str = "processes",
    gpus: float = 0.0,
    address: str | None = None,
    tracker: tuple[str, str] | None = None,
) -> int:
    """Runs units and adds their rows to the store as they end.

    Args:
        missing: from :func:`units`.
        store: the folder of records.
        profile: noted in the rows.
        jobs: units at a time; on a cluster, at most so many.
        backend: "processes" of this machine, or "ray".
        gpus: of Ray, share of a GPU that a unit gets; 0.25 lets four share one.
        address: of a running Ray cluster; None starts one on this machine.
        tracker: "tensorboard" or "wandb", and the folder where it logs trainings; None for no log.

    Returns:
        How many units were added.

    Raises:
        ExperimentError: if units failed; the others were run.
        TrackerError: if the tracker's library is missing.
    """
    check_choice("backend", backend, BACKENDS)
    if tracker is not None:
        library_of(tracker[0])
    job = Job(str(store), profile, tracker)
    total = sum(max(1, unit.experiment.steps) for unit in missing)
    failed: list[str] = []
    added = 0
    with progress(total, "experiments") as bar:
        waves = _waves(missing)
        for wave in waves:
            if backend == "ray":
                results = _with_ray(wave, job, jobs, gpus, address)
            elif jobs == 1:
                results = ((unit, _attempt(unit, *job)) for unit in wave)
            else:
                results = _with_processes(wave, job, jobs)
            for unit, outcome in results:
                bar.update(max(1, unit.experiment.steps))
                if isinstance(outcome, str):
                    failed.append(f"{unit}: {outcome}")
                added += outcome is True
    if failed:
        raise ExperimentError(f"{len(failed)} of {len(missing)} units failed; the first: {failed[0]}")
    return added


def _waves(missing: Sequence[Unit]) -> list[list[Unit]]:
    """Trainings from scratch first: other units may start from them."""
    first = [unit for unit in missing if not isinstance(unit.experiment, Recovery)]
    second = [unit for unit in missing if isinstance(unit.experiment, Recovery)]
    return [wave for wave in (first, second) if wave]


def work(unit: Unit, store: str | Path, profile: str, tracker: tuple[str, str] | None = None) -> bool:
    """Measures one unit and adds its rows, unless another process of this machine is at it or has done it.

    Returns:
        Whether rows were added.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(owned(cache_dir() / "running" / f"{unit.key}-{unit.seed}"))
            held.enter_context(tracked(tracker))
        except OutputInUseError:
            return False
        path = file_of(unit.experiment, store)
        if (unit.key, unit.seed) in recorded(path):
            return False
        return append_once(path, measure(unit.experiment, unit.seed, profile))


def _attempt(
    unit: Unit, store: str | Path, profile: str, tracker: tuple[str, str] | None = None
) -> bool | str:
    try:
        return work(unit, store, profile, tracker)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    os.environ["GANPRUNE_PROGRESS"] = "0"
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _worker(threads: int) -> ProcessPoolExecutor:
    """A process of its own, which ends when this one does, however that ends."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start_worker, (threads,))


def _with_processes(wave: Sequence[Unit], job: Job, jobs: int) -> Iterator[tuple[Unit, bool | str]]:
    """Several processes; the unit of one that dies is begun again in another, and no other unit is touched."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    waiting, idle = [(unit, 1) for unit in wave], [_worker(threads) for _ in range(min(jobs, len(wave)))]
    running: dict[Future[bool | str], tuple[Unit, int, ProcessPoolExecutor]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                (unit, number), worker = waiting.pop(0), idle.pop()
                try:
                    running[worker.submit(_attempt, unit, *job)] = unit, number, worker
                except BrokenProcessPool:  # it was killed while it had nothing to do
                    waiting.insert(0, (unit, number))
                    idle.append(_worker(threads))
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                unit, number, worker = running.pop(future)
                outcome: bool | str | None = None
                with contextlib.suppress(BrokenProcessPool):
                    outcome = future.result()
                if outcome is None:
                    worker = _worker(threads)
                    if (unit.key, unit.seed) in recorded(file_of(unit.experiment, job.store)):
                        outcome = True
                    elif number == TRIES:
                        outcome = f"its worker was killed {TRIES} times"
                    else:
                        waiting.insert(0, (unit, number + 1))
                idle.append(worker)
                if outcome is not None:
                    yield unit, outcome
    except BaseException:  # what runs is not waited for
        for _, _, worker in running.values():
            for process in list((getattr(worker, "_processes", None) or {}).values()):
                process.terminate()
        raise
    finally:
        for worker in [*idle, *(worker for _, _, worker in running.values())]:
            worker.shutdown(wait=False, cancel_futures=True)


def _with_ray(
    wave: Sequence[Unit], job: Job, jobs: int, gpus: float, address: str | None
) -> Iterator[tuple[Unit, bool | str]]:
    """Tasks of a Ray cluster; their rows come back here, so that workers need not see the store."""
    ray = _import_ray()
    begun = not ray.is_initialized()
    if begun:
        local = {} if address else {"num_cpus": jobs, "include_dashboard": False}
        ray.init(address=address, log_to_driver=False, **local)
    try:
        yield from _with_tasks(ray, wave, job, jobs, gpus)
    finally:
        if begun:
            ray.shutdown()


def _with_tasks(
    ray: Any, wave: Sequence[Unit], job: Job, jobs: int, gpus: float
) -> Iterator[tuple[Unit, bool | str]]:
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=TRIES - 1)(_measure_remotely)
    waiting, running = list(wave), dict[Any, Unit]()
    while waiting or running:
        while waiting and len(running) < jobs:
            unit = waiting.pop(0)
            if (unit.key, unit.seed) in recorded(file_of(unit.experiment, job.store)):
                yield unit, False
                continue
            running[task.remote(unit, job)] = unit
        if not running:
            break
        (ended, *_), _ = ray.wait(list(running), num_returns=1)
        unit = running.pop(ended)
        try:
            outcome: bool | str = append_once(file_of(unit.experiment, job.store), ray.get(ended))
        except Exception as error:
            cause = getattr(error, "cause", None) or error  # of the task, without Ray's account of it
            outcome = f"{type(cause).__name__}: {cause}"
        yield unit, outcome


def _measure_remotely(unit: Unit, job: Job) -> dict[str, Any]:
    torch.set_num_threads(1)
    os.environ["GANPRUNE_PROGRESS"] = "0"
    with tracked(job.tracker):
        return measure(unit.experiment, unit.seed, job.profile)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it would report to its makers
    try:
        import ray
    except ImportError as error:
        raise ExperimentError("the backend ray needs Ray: pip install 'ganprune[cluster]'") from error
    return ray
