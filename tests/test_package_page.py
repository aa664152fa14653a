"""The code of the page "The package in an hour" runs from top to bottom, with fewer steps and images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ganprune.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "book" / "the-package.md").read_text(encoding="utf-8")
FEWER = {
    "gp.profile()": 'gp.profile("smoke", "cpu")',
    "steps=1_000": "steps=6, log_every=2",
    "until=200": "until=2",
    "gp.every(100, ": "gp.every(2, ",
    "gp.every(500, ": "gp.every(3, ",
    "samples=10_000": "samples=64",
    "shipped.generator_ema, 10_000": "shipped.generator_ema, 64",
    'network="generator")': 'network="generator", samples=64, metrics="fid")',
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def code() -> str:
    joined = "\n".join(blocks("python"))
    for long, short in FEWER.items():
        assert long in joined, f"the page no longer says {long}"
        joined = joined.replace(long, short)
    return joined


def test_the_code_runs_and_a_second_run_resumes(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(code, "book/the-package.md", "exec"), found)
    assert found["state"].step == found["fresh"].step == 6
    assert (tmp_path / "run.safetensors").is_file()
    assert [row["step"] for row in found["meter"].rows] == [3, 6]
    assert found["fresh"].rows["alarm"] == []
    assert found["report"].digit_fid > found["report"].digit_fid_floor
    assert found["begin"]().step == 0
    resumed = type(found["state"]).resume(found["path"], found["begin"], device="cpu")
    assert resumed.step == 6
    assert resumed.history == found["state"].history


def test_the_commands_exist() -> None:
    for line in "".join(blocks("bash")).splitlines():
        assert line.startswith("ganprune ")
        assert main(line.split()[1:]) == 0
