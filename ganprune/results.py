"""Recorded experiments: rows with provenance in JSON lines, runs that go on where they stopped, intervals."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy import stats

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


@dataclass(frozen=True)
class Interval:
    """A mean with a confidence interval of n independent values; low and high are NaN for n = 1."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:.3g} (n = {self.n})"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}] (n = {self.n})"


def interval(values: Sequence[float], confidence: float = 0.95, log: bool = False) -> Interval:
    """Student's t interval of the mean.

    Args:
        values: one per seed, finite; positive if ``log``.
        confidence: in (0, 1).
        log: work on logarithms and transform back, so that the mean is geometric (right for digit-FID).

    Raises:
        ValueError: if there is no value, or one is not finite, or not positive with ``log``.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0 or array.ndim != 1 or not np.isfinite(array).all() or (log and (array <= 0).any()):
        raise ValueError(
            f"values must be finite{' and positive' if log else ''}, at least one of them, in one list, got {values!r}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    array = np.log(array) if log else array
    mean, n = float(array.mean()), array.size
    half = math.nan
    if n > 1:
        half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * array.std(ddof=1) / math.sqrt(n))
    ends = [mean, mean - half, mean + half]
    centre, low, high = (math.exp(x) for x in ends) if log else ends
    return Interval(centre, low, high, n)


def paired_ratio(treated: Sequence[float], control: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of the ratio treated / control, paired by seed: a t interval of the differences of logarithms.

    Args:
        treated: positive values, one per seed.
        control: positive values of the same seeds, in the same order.
        confidence: in (0, 1); divide 1 − confidence by the number of arms when several are compared (Bonferroni).

    Raises:
        ValueError: if the numbers of values differ, there is none, or one is not finite and positive.
    """
    if len(treated) != len(control):
        raise ValueError(f"treated and control must pair up, got {len(treated)} and {len(control)} values")
    for name, values in (("treated", treated), ("control", control)):
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError(f"{name} must be finite and positive, got {values!r}")
    ratios = np.asarray(treated, dtype=float) / np.asarray(control, dtype=float)
    return interval(ratios.tolist(), confidence, log=True)


def verdict(ratio: Interval, margin: float = 0.10, seeds_needed: int = 5) -> str:
    """What an interval of digit-FID ratios says: "matches", "better", "worse" or "inconclusive (n)".

    It *matches* when the whole interval lies within ±margin of 1. Below ``seeds_needed`` seeds the verdict can only be
    inconclusive.
    """
    if ratio.n < seeds_needed:
        return f"inconclusive ({ratio.n})"
    if 1 - margin < ratio.low and ratio.high < 1 + margin:
        return "matches"
    if ratio.high < 1:
        return "better"
    if ratio.low > 1:
        return "worse"
    return f"inconclusive ({ratio.n})"


def _commit() -> str | None:
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
