"""Run the notebooks on this machine and record how long each takes, for the table of run times in the book.

    GANPRUNE_PROFILE=gpu python tools/timings.py                 every chapter
    GANPRUNE_PROFILE=gpu python tools/timings.py 06_magnitude_pruning

A row per notebook goes to ``book/timings.jsonl`` (notebook, seconds, device, profile); it replaces an older row of the
same notebook, device and profile. The notebooks themselves are not changed.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient

import ganprune as gp

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "book" / "timings.jsonl"


def device_name() -> str:
    """Return what the notebooks run on, in words."""
    device = gp.core.default_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores" if device.type == "cpu" else device.type.upper()


def seconds_of(path: Path) -> float:
    """Execute a notebook in its folder and return the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    begin = time.perf_counter()
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(path.parent)}}).execute()
    return round(time.perf_counter() - begin, 1)


def record(row: dict, path: Path = RECORD) -> None:
    """Put a row into the record, in place of an older one of the same notebook, device and profile."""
    key = ("notebook", "device", "profile")
    old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [found for found in map(json.loads, old) if any(found[name] != row[name] for name in key)]
    lines = [json.dumps(item) for item in sorted([*rows, row], key=lambda item: [item[name] for name in key])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks by name (default: every chapter)")
    found = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    names = parser.parse_args().names or [path.stem for path in found]
    for name in names:
        seconds = seconds_of(ROOT / "notebooks" / f"{name}.ipynb")
        row = {"notebook": f"notebooks/{name}", "seconds": seconds, "device": device_name()}
        record(row | {"profile": gp.profile().name})
        print(f"{name}: {seconds} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
