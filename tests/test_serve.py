"""Serving the book: the port is taken first, and exactly one address is printed."""

from __future__ import annotations

import os
import re
import signal
import socket
import urllib.request
from pathlib import Path

import pytest
from tools.small_book import Project, end


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def addresses(text: str) -> list[str]:
    """Return the web addresses in a text."""
    return re.findall(r"https?://[^\s)]+", text)


def test_serving_builds_and_prints_one_address(project: Project) -> None:
    process = project.start("tools/serve.py", "--port", "0")
    try:
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        (address,) = addresses(said)
        assert urllib.request.urlopen(f"{address}/intro.html", timeout=10).read() == b"first"
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    finally:
        end(process)


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


def test_a_book_that_does_not_build_is_not_served(project: Project) -> None:
    code, said = project.run("tools/serve.py", "--port", "0", behaviour="fail")
    assert code == 1
    assert addresses(said) == []
