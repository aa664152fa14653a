"""Records of experiments: rows of plain values in JSON lines, each with what it was measured with."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

import ganprune

PACKAGE = Path(ganprune.__file__).resolve().parent
SHIPPED = PACKAGE / "assets" / "records"
"""The folder of the records that come with the package."""


class Experiment(Protocol):
    """A frozen dataclass whose fields determine an experiment; those of ``ganprune.experiments`` are some."""

    @property
    def name(self) -> str:
        """What the experiment is called in its records."""
        ...

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """The rows of one seed, each as soon as it is measured."""
        ...


def read(record: str | Path) -> list[dict[str, Any]]:
    """The rows of a record, from a file of JSON lines.

    A row that was cut when its writer was killed is left out. A file that is not there has no rows.

    Args:
        record: the name of a record that comes with the package, such as "magnitude", or the path of a file. A string
            is taken for a name if it has neither a folder nor a suffix.

    Raises:
        ValueError: if the package has no record of that name.
    """
    if isinstance(record, str) and Path(record).name == record and not Path(record).suffix:
        names = sorted(path.stem for path in SHIPPED.glob("*.jsonl"))
        if record not in names:
            raise ValueError(
                f"record must be one of {', '.join(names)}, or the path of a file (name.jsonl), got {record!r}"
            )
        record = SHIPPED / f"{record}.jsonl"
    rows = []
    if Path(record).is_file():
        for line in Path(record).read_bytes().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # cut, perhaps in the middle of a letter
                continue
    return rows


def append(path: str | Path, row: dict[str, Any]) -> None:
    """Adds one row to a file of JSON lines, whole or not at all; several processes may add to one file.

    Args:
        path: the file; it and its folder are made if they are not there.
        row: plain values that JSON can hold.

    Raises:
        TypeError: if the row holds what JSON cannot.
        ValueError: if the row holds NaN or infinity.
        OSError: if it cannot be written; the file then has the rows of before.
    """
    _write(Path(path), _line(row))


def run(experiment: Experiment, seeds: Iterable[int], store: str | Path) -> list[dict[str, Any]]:
    """Runs an experiment for each seed that the store lacks; a stop loses at most the seed that it interrupts.

    The rows of a seed are written when the seed is done, all at once, together with the configuration's hash and
    :func:`provenance`: the commit is that of the start of the run, the time that of the measurement.

    Args:
        experiment: its fields determine the hash under which its rows are found again.
        seeds: each includes the dense training, so seeds are independent.
        store: path of a file of JSON lines.

    Returns:
        All rows of this experiment in the store, those of earlier runs included.

    Raises:
        TypeError: if a row holds what JSON cannot.
        ValueError: if a row holds NaN or infinity, or a name that this function adds.
    """
    store, key, origin = Path(store), config_hash(experiment), provenance()
    done = {row["seed"] for row in read(store) if row.get("config") == key}
    for seed in seeds:
        if seed in done:
            continue
        added = {"experiment": experiment.name, "config": key, "seed": seed}
        lines = []
        for row in experiment.run(seed):
            if clash := sorted((added.keys() | origin.keys()) & row.keys()):
                raise ValueError(f"rows must not hold what run() adds: {', '.join(clash)}")
            lines.append(_line({**added, **row, **origin, "time": _now()}))
        _write(store, "".join(lines))
        done.add(seed)
    return [row for row in read(store) if row.get("config") == key]


def config_hash(config: Any) -> str:
    """Eight hexadecimal digits that name a configuration (a dataclass): equal fields, equal name."""
    text = json.dumps(asdict(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def provenance() -> dict[str, Any]:
    """When and with what a row is measured.

    Returns:
        "ganprune" and "torch", the versions; "package", a hash of the package's source files; "commit", that of the
        package's own repository, with "+" if the package differs from it, or None where the package is installed
        elsewhere; "machine", "threads" and "time" (UTC).
    """
    return {
        "ganprune": ganprune.__version__,
        "torch": torch.__version__,
        "package": _package_hash(),
        "commit": _commit(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "time": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _package_hash() -> str:
    """Twelve hexadecimal digits over the names and the text of the package's modules."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]


def _commit() -> str | None:
    """The commit of the repository that has this package at its top; not of one that merely lies around it."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        options: dict[str, Any] = {"cwd": PACKAGE, "env": surroundings, "text": True, "timeout": 10}
        return subprocess.run(command, capture_output=True, check=True, **options).stdout.strip()

    try:
        tracked = git("ls-files", "--full-name", "--error-unmatch", "__init__.py")
        if tracked != f"{PACKAGE.name}/__init__.py":
            return None
        changed = git("status", "--porcelain", "--", ".", ":(exclude)assets/records")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _write(path: Path, lines: str) -> None:
    """Adds whole lines at the end, all or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with _locked(handle):
            data, end = lines.encode(), os.lseek(handle, 0, os.SEEK_END)
            if end:
                os.lseek(handle, end - 1, os.SEEK_SET)
                if os.read(handle, 1) != b"\n":  # the writer before was killed in the middle of a row
                    data = b"\n" + data
            try:
                written = os.write(handle, data)
                if written < len(data):
                    raise OSError(f"{path} took {written} of {len(data)} bytes; is the disk full?")
            except OSError:
                os.ftruncate(handle, end)
                raise
    finally:
        os.close(handle)


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Other writers of the file wait while the block runs; a process that dies lets go."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 2**31 - 2, os.SEEK_SET)  # a byte far behind the end, which nobody reads
        msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
        try:
            yield
        finally:
            os.lseek(handle, 2**31 - 2, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
        yield  # the lock goes with the handle
