"""Building and serving: whatever goes wrong, the last good book stays; one build at a time; one address.

Everything runs the real tools on a project of two pages, with a stand-in for Jupyter Book that is told what to do.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import lock
import pytest

import book
import ganprune as gp

TOOLS = Path(__file__).resolve().parents[1] / "tools"

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


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "a course in a café")


@pytest.fixture
def built(project: Project) -> Project:
    """A project with a book, whose first page has changed since."""
    code, said = project.run()
    assert code == 0, said
    assert project.pages() == FIRST
    project.write("second")
    return project


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test, and their children with them."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


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


# ---------------------------------------------------------------- the last good book


def test_a_whole_book_takes_the_place_of_the_old_one(built: Project) -> None:
    (built.root / "book" / "more.md").unlink()
    code, said = built.run()
    assert code == 0, said
    assert built.pages() == {"index.html": "second", "intro.html": "second"}
    assert (built.root / "_build" / "timings.json").read_text() == "second"
    assert "_build/html" in said
    assert "building" not in said.lower().split("the book is in")[1]
    assert built.run()[1].startswith("Nothing has changed")


@pytest.mark.parametrize("tool", ["book", "serve"])
def test_a_misspelt_profile_is_refused_before_anything_is_touched(built: Project, tool: str) -> None:
    port = [] if tool == "book" else ["--port", "0"]
    code, said = built.run(f"tools/{tool}.py", *port, GANPRUNE_PROFILE="laptp")
    assert code == 1
    assert "must be one of smoke, laptop, gpu; got 'laptp'" in said
    assert "half built" not in said
    assert built.pages() == FIRST


def test_the_profiles_are_those_of_the_package() -> None:
    assert [gp.profile(name).name for name in book.LENGTHS] == list(book.LENGTHS)
    with pytest.raises(ValueError, match="profile") as refusal:
        gp.profile("laptp")
    assert re.findall(r"\b(?:smoke|laptop|gpu)\b", str(refusal.value)) == list(book.LENGTHS)


@pytest.mark.parametrize("profile", book.LENGTHS)
def test_a_build_says_beforehand_how_long_it_takes(project: Project, profile: str) -> None:
    said = project.run(GANPRUNE_PROFILE=profile)[1]
    assert f"profile {profile}" in said
    assert re.search(r"(?s)A first build takes .*minutes.*half built", said)


def test_a_build_that_fails_leaves_the_old_book(built: Project) -> None:
    before = sorted(path.name for path in (built.root / "_build").iterdir())
    code, said = built.run(behaviour="fail")
    assert code == 1
    assert "the last good book is still in _build/html" in said.lower()
    assert built.pages() == FIRST
    assert sorted(path.name for path in (built.root / "_build").iterdir()) == before
    built.write("first")
    assert built.run()[1].startswith("Nothing has changed")


def test_a_first_build_that_fails_promises_no_book(project: Project) -> None:
    code, said = project.run(behaviour="fail")
    assert code == 1
    assert "good book" not in said
    assert not project.html.exists()


def test_a_build_that_is_stopped_leaves_the_old_book(
    built: Project, processes: list[subprocess.Popen[str]]
) -> None:
    processes.append(built.start(behaviour="wait"))
    wait_until_half_built(processes[0])
    assert built.pages() == FIRST
    os.killpg(processes[0].pid, signal.SIGINT)  # what Ctrl-C does
    assert processes[0].wait(60) == 130
    assert built.pages() == FIRST
    assert built.run()[0] == 0
    assert built.pages() == SECOND


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_build_that_dies_while_it_puts_the_book_in_place_loses_none(built: Project, number: int) -> None:
    program = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, "tools")
import book
calls = 0
def dying(method):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == {number}:
            os._exit(9)
        return method(*arguments, **options)
    return call
for name in ("rename", "replace", "unlink", "write_text"):
    setattr(Path, name, dying(getattr(Path, name)))
sys.exit(book.main())
"""
    (built.root / "_build" / "javascript").mkdir(exist_ok=True)
    assert built.run("-c", program)[0] == 9
    code, said = built.run(behaviour="fail")
    assert code == 1
    assert built.pages() in (FIRST, SECOND), said
    assert built.run()[0] == 0
    assert built.pages() == SECOND


# ---------------------------------------------------------------- one build at a time


def test_a_second_build_is_refused_in_one_sentence(
    built: Project, processes: list[subprocess.Popen[str]]
) -> None:
    processes.append(built.start(behaviour="wait"))
    wait_until_half_built(processes[0])
    code, said = built.run("tools/book.py", "--output", "_build/smoke")
    assert code == 1
    assert re.fullmatch(
        r"error: another build is running \(process \d+, since \d\d:\d\d:\d\d on .+\): wait for it, or end it\n",
        said,
    )
    os.kill(int(re.findall(r"process (\d+)", said)[0]), 0)  # there is such a process
    (built.root / "go").touch()
    assert processes[0].wait(60) == 0
    assert built.pages() == SECOND


def test_a_killed_build_blocks_nobody(built: Project, processes: list[subprocess.Popen[str]]) -> None:
    processes.append(built.start(behaviour="wait"))
    wait_until_half_built(processes[0])
    os.killpg(processes[0].pid, signal.SIGKILL)
    processes[0].wait(60)
    assert built.pages() == FIRST
    code, said = built.run()
    assert code == 0, said
    assert built.pages() == SECOND


def test_what_a_killed_build_left_running_still_counts(
    built: Project, processes: list[subprocess.Popen[str]]
) -> None:
    processes.append(built.start(behaviour="wait"))
    wait_until_half_built(processes[0])
    processes[0].kill()  # not its child
    processes[0].wait(60)
    code, said = built.run()
    assert code == 1
    child = int(re.findall(r"another build is running \(process (\d+)", said)[0])
    assert child != processes[0].pid
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: built.run()[0] == 0)
    assert built.pages() == SECOND


def test_of_many_builds_at_once_one_builds(built: Project, processes: list[subprocess.Popen[str]]) -> None:
    processes.extend(built.start(behaviour="wait") for _ in range(4))
    wait_for(lambda: sum(process.poll() is not None for process in processes) == 3)
    (built.root / "go").touch()
    assert sorted(process.wait(60) for process in processes) == [0, 1, 1, 1]
    assert built.pages() == SECOND


def test_a_lock_is_free_again_after_its_block_and_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.lock"
    with pytest.raises(ZeroDivisionError), lock.hold(path):
        with pytest.raises(lock.LockedError, match=f"process {os.getpid()}, since"), lock.hold(path):
            pass
        _ = 1 / 0
    with lock.hold(path):
        pass


# ---------------------------------------------------------------- one address


def addresses(text: str) -> list[str]:
    """Return the web addresses in a text."""
    return re.findall(r"https?://[^\s)]+", text)


def test_serving_builds_and_prints_one_address(
    project: Project, processes: list[subprocess.Popen[str]]
) -> None:
    processes.append(project.start("tools/serve.py", "--port", "0"))
    said = ""
    while "Ctrl-C" not in said:
        line = processes[0].stdout.readline()
        assert line, processes[0].stderr.read()
        said += line
    (address,) = addresses(said)
    assert urllib.request.urlopen(f"{address}/intro.html", timeout=10).read() == b"first"
    os.killpg(processes[0].pid, signal.SIGINT)
    rest, complained = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 0
    assert rest + complained == ""


def test_building_alone_prints_no_address(project: Project) -> None:
    assert addresses(project.run()[1]) == []


def test_a_taken_port_is_said_before_the_build_and_a_free_one_is_named(project: Project) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        code, said = project.run("tools/serve.py", "--port", str(taken))
        free = int(
            re.fullmatch(rf"error: port {taken} is in use .*; (\d+) is free: make serve PORT=\1\n", said)[1]
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", free))
    assert code == 1
    assert not project.html.exists()


@pytest.mark.parametrize("port", ["eighty", "-1", "65536", "8000.5", ""])
def test_a_port_that_is_none_is_refused(project: Project, port: str) -> None:
    code, said = project.run("tools/serve.py", f"--port={port}")
    assert code == 2
    assert f"must be a whole number from 0 to 65535, got {port!r}" in said


def test_an_address_of_another_machine_is_refused(project: Project) -> None:
    code, said = project.run("tools/serve.py", "--bind", "192.0.2.1", "--port", "0")
    assert code == 1
    assert re.fullmatch(r"error: port 0 of 192\.0\.2\.1 cannot be opened: .+\n", said)


def test_a_book_that_does_not_build_is_not_served(built: Project) -> None:
    code, said = built.run("tools/serve.py", "--port", "0", behaviour="fail")
    assert code == 1
    assert addresses(said) == []
