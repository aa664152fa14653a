"""What a reader waits for: ``make book``, ``make test`` in a fresh clone; the book again after changes.

It clones the committed state into a temporary folder and installs everything there, so it needs the package
registry (or WHEELHOUSE) and some gigabytes of disk.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.record import Row

MINUTES = 30
ON_REQUEST = True
ROOT = Path(__file__).parents[1]


def clone(folder: Path) -> Path:
    """A clone of the repository's committed state, uncommitted changes left out."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    return folder


def timed_make(target: str, folder: Path) -> float:
    """Seconds that ``make target`` takes there, as a reader would type it.

    Raises:
        RuntimeError: if it fails; the message holds the end of what it said.
    """
    own = ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL")
    environment = {k: v for k, v in os.environ.items() if k not in own and not k.startswith("GANPRUNE_")}
    begin = time.perf_counter()
    command = ["make", target, f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    print(f"  make {target}: {seconds:.0f} s", file=sys.stderr)
    if done.returncode:
        raise RuntimeError(f"make {target} failed in a fresh clone: {(done.stdout + done.stderr)[-3_000:]}")
    return seconds


def edit_prose(folder: Path) -> None:
    """Adds a sentence to the landing page."""
    with (folder / "book" / "intro.md").open("a", encoding="utf-8") as page:
        page.write("\nA sentence that no reader has seen before.\n")


def measure(quick: bool) -> Iterator[Row]:
    """Seconds of each command; the bars are those that the README promises."""
    with tempfile.TemporaryDirectory() as temporary:
        first = clone(Path(temporary) / "book")
        if quick:
            yield Row("fresh clone: make help", timed_make("help", first), "s")
            return
        yield Row(
            "fresh clone: make book, installation included", timed_make("book", first), "s", at_most=600
        )
        yield Row("make book when nothing has changed", timed_make("book", first), "s", at_most=5)
        edit_prose(first)
        yield Row("make book after an edit of prose", timed_make("book", first), "s", at_most=60)
        second = clone(Path(temporary) / "test")
        yield Row(
            "fresh clone: make test, installation included", timed_make("test", second), "s", at_most=900
        )
