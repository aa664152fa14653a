"""The box "In ninety minutes": what it says is what the deck and the teacher's guide say."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import decks
import pytest
from docutils import nodes

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import lesson_plan  # noqa: E402

GUIDE = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def test_the_guide_has_a_row_for_each_chapter() -> None:
    assert [int(path.name[:2]) for path in CHAPTERS] == sorted(lesson_plan.lessons(GUIDE))
    assert [place for part in lesson_plan.parts(GUIDE) for place in part] == list(range(decks.SLIDES))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_box_has_every_slide_once_and_ninety_minutes(path: Path) -> None:
    deck = decks.read_deck(path)
    box = lesson_plan.make_box(deck, GUIDE)
    text = box.astext()
    assert all(text.count(f"{slide.title} ({slide.minutes})") == 1 for slide in deck.slides)
    heads = [strong.astext() for strong in box.findall(nodes.strong)]
    assert (
        sum(int(head.rsplit(" ", 2)[-2]) for head in [head.rstrip(": ") for head in heads]) == decks.MINUTES
    )
    lesson = lesson_plan.lessons(GUIDE)[int(path.name[:2])]
    assert next(box.findall(nodes.reference))["refid"] == lesson.label
    assert text.endswith(f"leave out: {lesson.left_out}.")


def test_the_box_stands_at_the_end_of_the_prerequisites_and_nowhere_else() -> None:
    before = nodes.section("", nodes.title("", "Prerequisites"), nodes.paragraph("", "masks"))
    doctree = nodes.document(None, None, nodes.section("", nodes.paragraph("", "no title")), before)
    env = SimpleNamespace(docname=f"notebooks/{CHAPTERS[0].stem}", note_dependency=lambda path: None)
    lesson_plan.add_box(SimpleNamespace(env=env), doctree)
    assert [isinstance(part, nodes.admonition) for part in before] == [False, False, True]
    assert len(list(doctree.findall(nodes.admonition))) == 1
