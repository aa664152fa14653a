"""``ganprune experiment``: lists, plans and runs the studies of the course, and shows what records say."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ganprune.cli.ledger import COLUMNS, known_verdicts
from ganprune.cli.options import COUNT, number, wrong
from ganprune.cli.output import Shown, columns, say
from ganprune.cli.tracking import add_tracker
from ganprune.experiments.arms import PROFILES, arms_of
from ganprune.experiments.claims import ledger
from ganprune.experiments.runner import BACKENDS, cost, run_units, shard, units
from ganprune.experiments.studies import STUDIES, Study, study
from ganprune.experiments.verdicts import SEARCH_SEEDS
from ganprune.records.statistics import interval
from ganprune.records.store import SHIPPED, read_store, rows_of

EXAMPLES = """examples:
  ganprune experiment list
  ganprune experiment plan magnitude
  ganprune experiment run magnitude --seeds 0-1 --jobs 2
  ganprune experiment run tickets --backend ray --jobs 8 --gpus 0.25
  ganprune experiment run magnitude --shard 2/5
  ganprune experiment status
  ganprune experiment table --json
  ganprune experiment compare magnitude --store records"""
OWN_STORE = Path("records")
MOST_SEEDS = 1_000
GPUS = number(
    float,
    "a share such as 0.25, or a whole number",
    lambda value: 0 <= value <= 1 or (value < math.inf and value == int(value) > 1),
)
OTHER_MEASURES = "other measures: see experiment table"
"""What 'compare' shows of an arm whose rows hold no distance of a generator."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    helps = {
        "list": "the studies, their questions and what they cost",
        "plan": "what is missing, and what it costs",
        "run": "run what is missing",
        "status": "how many seeds of each study there are",
        "table": "the claims and their verdicts",
        "compare": "the course's figures and your own, side by side",
    }
    for action, words in helps.items():
        one = actions.add_parser(action, help=words, description=f"{words[0].upper()}{words[1:]}.")
        if action in ("plan", "run"):
            one.add_argument("names", nargs="+", metavar="NAME", help="studies, or all")
            one.add_argument("--seeds", type=_seeds, help="such as 0-4 or 0,2 (default: those of the study)")
            one.add_argument(
                "--shard", type=_shard, default=(1, 1), metavar="I/N", help="the I-th of N equal parts"
            )
        if action == "compare":
            one.add_argument("names", nargs="+", metavar="NAME", help="studies, or all")
        if action == "run":
            _add_running(one)
        one.add_argument(
            "--profile", choices=tuple(PROFILES), default="laptop", help="sizes (default: laptop)"
        )
        one.add_argument(
            "--store",
            default="shipped" if action in ("status", "table", "list") else str(OWN_STORE),
            metavar="FOLDER",
            help="the folder of records, or shipped for those of the course (default: %(default)s)",
        )
        one.add_argument(
            "--json", action="store_true", help="write JSON to standard output instead of a table"
        )


def _add_running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--jobs", type=COUNT, default=1, help="units at a time; a unit is one seed of one arm (default: 1)")
    add("--backend", choices=BACKENDS, default="processes", help="who runs them (default: processes)")
    add("--address", help="of a running Ray cluster (default: one is started on this machine)")
    add("--gpus", type=GPUS, default=0.0, help="share of a GPU for each unit, with Ray (default: 0)")
    add_tracker(parser)


def _seeds(text: str) -> tuple[int, ...]:
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            some = range(int(first), int(last if dash else first) + 1)
            found += some[: MOST_SEEDS + 1] or [-1]
    except ValueError:
        found = [-1]
    if min(found) < 0 or len(found) > MOST_SEEDS:
        raise argparse.ArgumentTypeError(
            f"must be seeds such as 0-4 or 0,2, at most {MOST_SEEDS:,} of them, got {text!r}"
        )
    return tuple(dict.fromkeys(found))


def _shard(text: str) -> tuple[int, int]:
    first, slash, last = text.partition("/")
    if slash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last):
        return int(first), int(last)
    raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, got {text!r}")


def run(options: argparse.Namespace) -> Shown:
    """Does what the action says."""
    store = SHIPPED if options.store == "shipped" else Path(options.store)
    if store.exists() != store.is_dir() or not (store.is_dir() or options.action in ("plan", "run")):
        raise wrong("experiment", "--store", f"must be a folder of records, got '{store}'")
    if options.action in ("plan", "run"):
        return _plan_or_run(options, store)
    if options.action == "compare":
        return _compare(_studies(options.names, options.profile), store)
    if options.action == "table":
        return _table(store, options.profile)
    return _overview(store, options.profile)


def _studies(names: Iterable[str], profile: str) -> list[Study]:
    names = list(names)
    unknown = [name for name in names if name not in STUDIES and name != "all"]
    if unknown:
        problem = f"must be all or some of {', '.join(STUDIES)}, got {unknown[0]!r}"
        raise wrong("experiment", "NAME", problem)
    return [study(name, profile) for name in (STUDIES if "all" in names else names)]


def _plan_or_run(options: argparse.Namespace, store: Path) -> Shown:
    chosen = _studies(options.names, options.profile)
    if options.action == "run":
        _check_backend(options)
    wanted = [units(one.arms, options.seeds or one.seeds, store) for one in chosen]
    missing = shard(list(dict.fromkeys(unit for some in wanted for unit in some)), *options.shard)
    price = cost(missing, read_store())
    words = f"{price.units} units, {price.steps:,} steps, about {price.core_hours:.1f} core-hours"
    value: dict[str, Any] = {"units": price.units, "steps": price.steps, "core_hours": price.core_hours}
    if options.action == "plan":
        value["arms"] = [f"{unit}" for unit in missing]
        return Shown(value, "".join(f"{line}\n" for line in value["arms"]) + f"{words}\n")
    say(f"{words}; rows go to {store}, and what is finished stays there after a stop")
    value["added"] = run_units(
        missing,
        store,
        options.profile,
        options.jobs,
        options.backend,
        options.gpus,
        options.address,
        options.tracker and (options.tracker, str(options.track_to)),
    )
    words, others = f"{value['added']} units added to {store}", price.units - value["added"]
    return Shown(value, f"{words}{f', {others} left to another run' if others else ''}\n")


def _check_backend(options: argparse.Namespace) -> None:
    if options.backend == "ray":
        return
    most = 4 * (os.cpu_count() or 1)
    if options.jobs > most:
        raise wrong("experiment", "--jobs", f"must be at most {most} here, got {options.jobs}")
    for name in ("gpus", "address"):
        if getattr(options, name):
            raise wrong("experiment", f"--{name}", "needs --backend ray")


def _overview(store: Path, profile: str) -> Shown:
    rows, found = read_store(store), []
    for name in STUDIES:
        one = study(name, profile)
        seeds = [len({row["seed"] for row in rows_of(rows, arm)}) for arm in one.arms]
        found.append(
            {
                "study": name,
                "chapter": one.chapter,
                "arms": len(one.arms),
                "complete": sum(count >= len(one.seeds) for count in seeds),
                "seeds": min(seeds),
                "steps": one.steps,
                "question": one.question,
            }
        )
    return Shown(found, columns(found, tuple(found[0])))


def _table(store: Path, profile: str) -> Shown:
    rows = known_verdicts() if store == SHIPPED and profile == "laptop" else None
    if rows is None:
        rows = [verdict.as_dict() for verdict in ledger(read_store(store), arms_of(profile))]
    return Shown(rows, columns(rows, COLUMNS))


def _compare(chosen: Sequence[Study], store: Path) -> Shown:
    """The distance of each arm in both stores: geometric means with 95% intervals, at the last stage.

    It is digit-FID on test, and on the ring the earth mover's distance; of tickets, that of the last round. A study
    that searches has the seeds of searches to itself.
    """
    sides, found = {"course": read_store(), "own": read_store(store)}, []
    for arm, searches in dict.fromkeys(
        (arm, one.seeds[0] >= SEARCH_SEEDS) for one in chosen for arm in one.arms
    ):
        row: dict[str, Any] = {"arm": arm.label}
        for side, rows in sides.items():
            kept = [r for r in rows_of(rows, arm) if (r["seed"] >= SEARCH_SEEDS) == searches]
            values = _last_distances(kept)
            none = OTHER_MEASURES if kept else "–"
            row[side] = str(interval(values, log=True)) if values else none
        found.append(row)
    return Shown(found, columns(found, ("arm", *sides)))


def _last_distances(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Seed by seed, the distance of the averaged weights after the last stage."""
    last: dict[int, float] = {}
    for row in rows:
        if row.get("arm", "ticket") != "ticket":
            continue  # a control of a ticket
        if row.get("split") == "test" and row.get("network", "generator_ema") == "generator_ema":
            last[row["seed"]] = row["digit_fid"]
        elif "earth_mover" in row:
            last[row["seed"]] = row["earth_mover"]
    return [last[seed] for seed in sorted(last)]
