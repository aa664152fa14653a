"""Building the book: whatever goes wrong, the last good book stays; one build at a time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import lock
import pytest
from tools.small_book import FIRST, SECOND, Project, end, wait_for, wait_until_half_built

import book
import ganprune as gp


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
        end(process)


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
