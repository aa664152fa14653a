"""Rows of figures, the machine behind them, and the files that keep the last ones."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision

import ganprune as gp

LATEST = Path(__file__).with_name("latest.json")  # in the repository: the book shows it
# Figures that nobody asked to record stay out of the repository.
SCRATCH = Path(__file__).parents[1] / "_build" / "bench" / "latest.json"


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured, in words.
        value: the figure; None if it could not be reached at all, which misses any bar.
        unit: of value and bar.
        at_least: the bar, where more is better.
        at_most: the bar, where less is better.
        details: further facts, by name.
    """

    name: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def bar(self) -> float | None:
        """The value that was promised; None for a figure that is only shown."""
        return self.at_least if self.at_least is not None else self.at_most

    @property
    def sense(self) -> str | None:
        """How to read the bar: "at least" or "at most"."""
        if self.bar is None:
            return None
        return "at least" if self.at_least is not None else "at most"

    @property
    def holds(self) -> bool | None:
        """Whether the value meets the bar; None without a bar."""
        if self.bar is None:
            return None
        if self.value is None:
            return False
        return self.value >= self.bar if self.at_least is not None else self.value <= self.bar

    def as_dict(self, benchmark: str) -> dict[str, Any]:
        """The row as it is kept, with the benchmark it belongs to, the time and the threads."""
        return {
            "name": self.name,
            "value": None if self.value is None else float(f"{self.value:.4g}"),
            "bar": self.bar,
            "unit": self.unit,
            "holds": self.holds,
            "sense": self.sense,
            "details": {key: _rounded(value) for key, value in self.details.items()},
            "benchmark": benchmark,
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
            "threads": torch.get_num_threads(),
            "commit": gp.records.provenance()["commit"],
        }


def _rounded(value: Any) -> Any:
    """Floats to four digits, in lists too."""
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory, system, accelerator and arithmetic."""
    device = gp.core.default_device()
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory": f"{_memory_gib():.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": gp.core.best_precision(device),
    }
    return facts


def versions() -> dict[str, str]:
    """Versions of what was measured and of what it was measured with."""
    return {
        "ganprune": gp.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def read(path: Path = LATEST) -> dict[str, Any]:
    """The kept record, or an empty one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}


def merge(
    record: dict[str, Any], benchmark: str, rows: Iterable[dict[str, Any]], here: dict[str, Any]
) -> dict[str, Any]:
    """The record with one benchmark's rows replaced, and with the machine, versions and time that stand behind them.

    Benchmarks are measured apart, so each has conditions of its own; ratios are taken within one of them.
    """
    kept = [row for row in record["rows"] if row["benchmark"] != benchmark]
    merged = sorted(
        [*kept, *rows], key=lambda row: row["benchmark"]
    )  # stable: rows of a benchmark stay in order
    time = datetime.now(UTC).isoformat(timespec="seconds")
    there = {row["benchmark"] for row in merged}
    conditions = {name: found for name, found in record.get("conditions", {}).items() if name in there}
    conditions[benchmark] = {"machine": here, "versions": versions(), "time": time}
    return {"conditions": dict(sorted(conditions.items())), "rows": merged}


def write(record: dict[str, Any], path: Path = LATEST) -> None:
    """Keeps a record, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as text in columns."""
    lines = [("what", "measured", "bar", "unit", "verdict")]
    for row in rows:
        bar = "" if row["bar"] is None else f"{row['sense']} {row['bar']:g}"
        value = "never" if row["value"] is None else f"{row['value']:.4g}"
        lines.append(
            (row["name"], value, bar, row["unit"], {True: "holds", False: "MISSED", None: ""}[row["holds"]])
        )
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    aligned = ("<", ">", ">", "<", "<")
    return "\n".join(
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(line, aligned, widths, strict=True)).rstrip()
        for line in lines
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
