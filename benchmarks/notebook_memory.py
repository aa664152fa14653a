"""Peak memory of each notebook in the laptop profile, and the time it takes."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.record import Row

MINUTES = 5
ROOT = Path(__file__).parents[1]


def execute(notebook: Path, profile: str) -> dict[str, float]:
    """Runs a notebook in processes of its own; returns the largest one's peak memory in GiB, and the seconds.

    A process in between reads the peak of its descendants alone, the kernel among them.
    """
    program = [sys.executable, "-m", "benchmarks.notebook_memory", str(notebook)]
    environment = os.environ | {
        "GANPRUNE_PROFILE": profile,
        "GANPRUNE_PROGRESS": "0",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{notebook.name} did not run: {done.stderr[-2_000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_between(notebook: Path) -> dict[str, float]:
    """Executes the notebook in a child of this process and asks the system what the children took at most."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", "--output-dir", folder]
        command += ["--ExecutePreprocessor.timeout=1800", str(notebook)]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return {"gib": peak * unit / 2**30, "seconds": time.perf_counter() - begin}


def measure(quick: bool) -> Iterator[Row]:
    """One row per chapter."""
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    for notebook in notebooks[:1] if quick else notebooks:
        found = execute(notebook, "smoke" if quick else "laptop")
        print(f"  {notebook.stem}: {found}", file=sys.stderr)
        yield Row(
            f"peak memory of {notebook.stem}, {'smoke' if quick else 'laptop'} profile",
            found["gib"],
            "GiB",
            at_most=2.0,
            details={"seconds": found["seconds"]},
        )


if __name__ == "__main__":
    print(json.dumps(in_between(Path(sys.argv[1]))))
