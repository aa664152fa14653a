"""A project of two pages with the real tools, and a stand-in for Jupyter Book that is told what to do."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"

# Writes half of a book, waits or fails if asked to, then writes the other half: a page for each page of book/.
JUPYTER_BOOK = """
import os, sys, time
from pathlib import Path

def builder_specific_actions(*_):
    sys.exit("the last words of Jupyter Book name a folder that will not be there")

def main():
    output = Path(sys.argv[sys.argv.index("--path-output") + 1]) / "_build" / "html"
    output.mkdir(parents=True)
    (output / "index.html").write_text(Path("book/intro.md").read_text())
    (output.parent / "timings.json").write_text(Path("book/intro.md").read_text())
    print("half built", flush=True)
    while os.environ["BEHAVIOUR"] == "wait" and not Path("go").exists():
        time.sleep(0.02)
    if os.environ["BEHAVIOUR"] == "fail":
        builder_specific_actions(1, "html")
    for page in Path("book").glob("*.md"):
        (output / f"{page.stem}.html").write_text(page.read_text())
    builder_specific_actions(0, "html")
"""


class Project:
    """A small project with the real tools."""

    def __init__(self, root: Path) -> None:
        self.root, self.html = root, root / "_build" / "html"
        shutil.copytree(TOOLS, root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
        for name, text in {
            "book/javascript.json": "[]",
            "tools/kernel.json": "[]",
            "book/intro.md": "first",
            "book/more.md": "more",
            "stand-in/jupyter_book/__init__.py": "",
            "stand-in/jupyter_book/cli/__init__.py": "",
            "stand-in/jupyter_book/cli/main.py": JUPYTER_BOOK,
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")

    def start(self, *command: str, behaviour: str = "work", **settings: str) -> subprocess.Popen[str]:
        """Start one of the tools."""
        environment = (
            os.environ | {"BEHAVIOUR": behaviour, "PYTHONPATH": str(self.root / "stand-in")} | settings
        )
        return subprocess.Popen(
            [sys.executable, *(command or ["tools/book.py"])],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, behaviour: str = "work", **settings: str) -> tuple[int, str]:
        """Run one of the tools to its end; return the exit code and all that it said."""
        process = self.start(*command, behaviour=behaviour, **settings)
        said, complained = process.communicate(timeout=60)
        return process.returncode, said + complained

    def pages(self) -> dict[str, str]:
        """Return the finished book: page → text."""
        return {path.name: path.read_text() for path in self.html.iterdir()} if self.html.is_dir() else {}

    def write(self, text: str) -> None:
        """Change the book's first page."""
        (self.root / "book" / "intro.md").write_text(text, encoding="utf-8")


FIRST = {"index.html": "first", "intro.html": "first", "more.html": "more"}
SECOND = {"index.html": "second", "intro.html": "second", "more.html": "more"}


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is true, for a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for a minute in vain"
        time.sleep(0.02)


def wait_until_half_built(process: subprocess.Popen[str]) -> None:
    """Wait until the stand-in has written half of its book."""
    assert process.stdout
    assert any("half built" in line for line in process.stdout)


def end(process: subprocess.Popen[str]) -> None:
    """End a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
