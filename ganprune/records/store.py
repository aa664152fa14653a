"""Records of experiments: rows of plain values in JSON lines, each with what it was measured with."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

import ganprune
from ganprune.core.device import as_device
from ganprune.core.files import make_folder

PACKAGE = Path(ganprune.__file__).resolve().parent
SHIPPED = PACKAGE / "assets" / "records"
"""The folder of the records that come with the package."""


class Recordable(Protocol):
    """A frozen dataclass whose fields determine what is measured; the experiments of ``ganprune.experiments`` are some.

    Attributes:
        name: what the experiment is called in its records.
    """

    name: ClassVar[str]

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """The rows of one seed, each as soon as it is measured."""
        ...


def read(record: str | Path) -> list[dict[str, Any]]:
    """The rows of a record, from a file of JSON lines.

    What a line says of all its rows (the configuration, the seed, what it was measured with) is in each of them. A line
    that was cut when its writer was killed is left out. A file that is not there has no rows.

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
    rows: list[dict[str, Any]] = []
    for line in _lines_of(Path(record)):
        shared = {name: value for name, value in line.items() if name != "rows"}
        rows += [{**shared, **row} for row in line["rows"]] if "rows" in line else [line]
    return rows


def read_store(store: str | Path | None = None) -> list[dict[str, Any]]:
    """The rows of all records in a folder; None for those that ship with the package."""
    return [row for path in sorted(Path(store or SHIPPED).glob("*.jsonl")) for row in read(path)]


def _lines_of(path: Path) -> list[dict[str, Any]]:
    found = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # cut, perhaps in the middle of a letter
                continue
    return found


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
    _write(Path(path), _line(row), lambda: False)


def run(
    experiment: Recordable, seeds: Iterable[int], store: str | Path, profile: str = "laptop"
) -> list[dict[str, Any]]:
    """Runs an experiment for each seed that the store lacks; a stop loses at most the seed that it interrupts.

    Args:
        experiment: its fields determine the key under which its rows are found again.
        seeds: each includes the dense training, so seeds are independent.
        store: path of a file of JSON lines.
        profile: whose sizes the experiment has; noted in the record.

    Returns:
        All rows of this experiment in the store, those of earlier runs included.

    Raises:
        ValueError: as :func:`measure` does.
    """
    for seed in seeds:
        if (config_hash(experiment), seed) not in recorded(store):
            append_once(store, measure(experiment, seed, profile))
    return rows_of(read(Path(store)), experiment)


def measure(experiment: Recordable, seed: int, profile: str = "laptop") -> dict[str, Any]:
    """One seed of an experiment, complete: the configuration, :func:`provenance`, and all rows. Nothing is written.

    Floats are kept to seven significant digits.

    Raises:
        ValueError: if :func:`check_record` refuses it.
    """
    begin, origin = time.perf_counter(), provenance()
    record = {"experiment": experiment.name, "key": config_hash(experiment), "seed": seed, "profile": profile}
    record |= {"config": json.loads(json.dumps(asdict(experiment)))} | origin  # type: ignore[call-overload]
    record["rows"] = [_rounded(row) for row in experiment.run(seed)]
    record |= {"seconds": round(time.perf_counter() - begin, 2), "time": _now()}
    check_record(record)
    return record


def append_once(store: str | Path, record: dict[str, Any]) -> bool:
    """Adds one seed, all its rows or none, unless the store has this seed of this configuration already.

    Several processes may add to one store: of two that measured the same seed, the second adds nothing.

    Returns:
        Whether it was added.
    """
    unit = record["key"], record["seed"]
    return _write(Path(store), _line(record), lambda: unit in recorded(store))


def recorded(store: str | Path) -> set[tuple[str, int]]:
    """The keys and seeds that a store has."""
    return {(record["key"], record["seed"]) for record in _lines_of(Path(store)) if "key" in record}


def rows_of(rows: Iterable[dict[str, Any]], experiment: Recordable) -> list[dict[str, Any]]:
    """The rows of one configuration."""
    key = config_hash(experiment)
    return [row for row in rows if row.get("key") == key]


SCHEMA: dict[str, type | tuple[type, ...]] = {
    "experiment": str,
    "key": str,
    "config": dict,
    "seed": int,
    "profile": str,
    "rows": list,
    "seconds": (int, float),
    "ganprune": str,
    "torch": str,
    "package": str,
    "machine": str,
    "processor": str,
    "device": str,
    "threads": int,
    "time": str,
}
"""What the record of a seed holds. Each of its rows has a "stage", and figures under the names of the reports."""


def check_record(record: dict[str, Any]) -> None:
    """Does nothing if a record is complete, its key is that of its configuration, and its figures are plain values.

    Raises:
        TypeError: if a row holds what JSON cannot.
        ValueError: that names the first thing that is missing, of another kind, or not finite.
    """
    for name, kind in SCHEMA.items():
        if not isinstance(record.get(name), kind) or isinstance(record.get(name), bool):
            raise ValueError(f"record must hold {name!r} as {kind}, got {record.get(name)!r}")
    key = config_hash_of(record["experiment"], record["config"])
    if key != record["key"]:
        raise ValueError(f"record must have the key of its configuration, {key!r}, got {record['key']!r}")
    for row in record["rows"]:
        if not isinstance(row, dict) or not isinstance(row.get("stage"), str):
            raise ValueError(f"each row must name its stage, got {row!r}")
        if clash := sorted(row.keys() & (SCHEMA.keys() | {"commit"})):
            raise ValueError(f"rows must not hold what the record does: {', '.join(clash)}")
    _line(record)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def config_hash(config: Any) -> str:
    """Eight hexadecimal digits that name a configuration (a dataclass): equal name and fields, equal digits."""
    return config_hash_of(getattr(config, "name", ""), asdict(config))


def config_hash_of(name: str, fields: dict[str, Any]) -> str:
    """The digits of a configuration that was read from a record."""
    text = json.dumps({"experiment": name, **fields}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def provenance() -> dict[str, Any]:
    """When and with what a row is measured.

    Returns:
        "ganprune" and "torch", the versions; "package", a hash of the package's source files; "commit", that of the
        package's own repository, with "+" if the package differs from it, or None where the package is installed
        elsewhere; "device", "processor", "machine", "threads" and "time" (UTC).
    """
    return {
        "ganprune": ganprune.__version__,
        "torch": torch.__version__,
        "package": _package_hash(),
        "commit": _commit(),
        "device": as_device(None).type,
        "processor": _processor(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "time": _now(),
    }


def _processor() -> str:
    """The name of the processor, or of the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    found = Path("/proc/cpuinfo")
    if found.is_file():
        for line in found.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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


def _write(path: Path, lines: str, superfluous: Callable[[], bool]) -> bool:
    """Adds whole lines at the end, all or none; none if they turn out to be superfluous when it is their turn."""
    make_folder(path.parent)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with _locked(handle):
            if superfluous():
                return False
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
        return True
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
