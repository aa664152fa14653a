"""What the book makes of records: the ledger's figure and the table of run times show what was measured, only that."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes

from ganprune.experiments.verdicts import Verdict

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

ganprune_ledger = pytest.importorskip("ganprune_ledger")  # Sphinx comes with the extra "book"
ganprune_site = pytest.importorskip("ganprune_site")
PAGES = ["notebooks/01_one", "notebooks/02_two"]


def claim(number: str, n: int, effect: float | None = 0.9) -> Verdict:
    low, high = (0.8, 1.0) if effect else (None, None)
    return Verdict(number, "a sentence", n, "not decided", effect, low, high, None, "ratio", "curve", "")


def test_the_figure_draws_what_has_seeds_only() -> None:
    figure = ganprune_ledger.draw([claim("1a", 5), claim("22b", 0), claim("2a", 0, None), claim("3a", 3)])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["3a", "1a"]
    assert ganprune_ledger.effect(claim("22b", 0)) == "–"


@pytest.mark.parametrize(
    ("recorded", "last"),
    [
        ([], []),
        (["notebooks/02_two"], ["Recorded elsewhere", "not recorded", "8 s (a GPU)"]),
    ],
)
def test_a_column_of_run_times_that_says_nothing_is_left_out(
    monkeypatch: pytest.MonkeyPatch, recorded: list[str], last: list[str]
) -> None:
    row = {"seconds": 8, "device": "a GPU"}
    monkeypatch.setattr(ganprune_site, "recorded_times", lambda page: [row] if page in recorded else [])
    env = SimpleNamespace(
        nb_metadata={page: {"exec_data": {"runtime": 5}} for page in PAGES},
        titles={page: nodes.title("", page) for page in PAGES},
    )
    builder = SimpleNamespace(get_relative_uri=lambda page, name: name)
    section = nodes.section("", ganprune_site.PendingTimes())
    ganprune_site.fill_chapter_times(SimpleNamespace(env=env, builder=builder), section, "book/status")
    rows = [[cell.astext() for cell in row] for row in section.findall(nodes.row)]
    assert [row[1] for row in rows[1:]] == ["5 s", "5 s"]
    assert [cell for row in rows for cell in row[2:]] == last
