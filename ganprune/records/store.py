"""Recorded experiments: rows with provenance in JSON lines, runs that go on where they stopped, intervals."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

import ganprune


class Experiment(Protocol):
    """A frozen dataclass whose fields determine the experiment; see :mod:`ganprune.experiments`."""

    @property
    def name(self) -> str:
        """Of the experiment, in its records."""
        ...

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """The rows of one seed, as they are measured."""
        ...


def config_hash(config: Any) -> str:
    """Eight hexadecimal digits that name a configuration (a dataclass): equal fields, equal name."""
    text = json.dumps(asdict(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def provenance() -> dict[str, Any]:
    """Where and with what a row was measured: versions, commit (with "+" if files differ from it), machine, time."""
    return {
        "ganprune": ganprune.__version__,
        "torch": torch.__version__,
        "commit": _commit(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "time": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def append_record(path: str | Path, record: dict[str, Any]) -> None:
    """Appends one row to a JSON-lines file in a single write, so that a stop never leaves half a row behind another.

    Raises:
        TypeError: if the row holds what JSON cannot.
        ValueError: if the row holds NaN or infinity.
        OSError: if it cannot be written; the file then has the rows of before.
    """
    _append(path, _line(record))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _append(path: str | Path, lines: str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # an earlier write was cut
            lines = "\n" + lines
        data = lines.encode()
        written = os.write(handle, data)
        if written < len(data):
            os.ftruncate(handle, os.lseek(handle, 0, os.SEEK_CUR) - written)
            raise OSError(f"{path} took {written} of {len(data)} bytes; is the disk full?")
    finally:
        os.close(handle)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a row that was cut by a stop is left out. An absent file has no rows."""
    path = Path(path)
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records


def run(experiment: Experiment, seeds: Iterable[int], store: str | Path) -> list[dict[str, Any]]:
    """Runs an experiment for each seed that the store lacks; a stop loses at most the seed that it interrupts.

    The rows of a seed are written when the seed is done, all in one write, together with the configuration's hash and
    the provenance: the commit is that of the start of the run, the time that of the measurement.

    Args:
        experiment: its fields determine the hash under which its rows are found again.
        seeds: each includes the dense training, so seeds are independent.
        store: a JSON-lines file.

    Returns:
        All rows of this experiment in the store, those of earlier runs included.

    Raises:
        TypeError: if a row holds what JSON cannot.
        ValueError: if a row holds NaN or infinity, or a name that this function adds.
    """
    key, origin = config_hash(experiment), provenance()
    done = {row["seed"] for row in read_records(store) if row.get("config") == key}
    for seed in seeds:
        if seed in done:
            continue
        added = {"experiment": experiment.name, "config": key, "seed": seed}
        lines = []
        for row in experiment.run(seed):
            if clash := sorted((added.keys() | origin.keys()) & row.keys()):
                raise ValueError(f"rows must not hold what run() adds: {', '.join(clash)}")
            lines.append(_line({**added, **row, **origin, "time": _now()}))
        _append(store, "".join(lines))
        done.add(seed)
    return [row for row in read_records(store) if row.get("config") == key]


def _commit() -> str | None:
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
