"""The box "In ninety minutes" of a chapter: its deck's blocks and minutes, and what the teacher's guide says of it.

Both have one place: the slides lie in the notebook's metadata, the parts of a lesson and the rows by chapter in
``book/teaching.md``. Copies of a notebook do not have the box.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import decks
from docutils import nodes
from hosted import is_chapter
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "book" / "teaching.md"
PART = re.compile(r"^\| [^|]+ \| (\d+)(?: to (\d+))? \| \d+ \|$", re.M)
CHAPTER = re.compile(r"^\| (\d+) \| [^|]+ \| \{ref\}`([^<`]+) <([^>`]+)>` \| ([^|]+) \|$", re.M)
NAMES = ("To begin with", "At the board", "With the notebook", "At the end")


@dataclass(frozen=True)
class Lesson:
    """What the guide says of a chapter.

    Attributes:
        exercise: number and title of the one for pairs.
        label: where it is.
        left_out: what can go if time is short.
    """

    exercise: str
    label: str
    left_out: str


def lessons(guide: str) -> dict[int, Lesson]:
    """Number of a chapter → its row in the guide."""
    return {int(number): Lesson(*found) for number, *found in CHAPTER.findall(guide)}


def parts(guide: str) -> list[range]:
    """The parts of a lesson, as the places of their slides from 0 on."""
    return [range(int(first) - 1, int(last or first)) for first, last in PART.findall(guide)]


def make_box(deck: decks.Deck, guide: str) -> nodes.admonition:
    """The box of a chapter that has a deck."""
    lesson = lessons(guide)[int(deck.chapter[:2])]
    lines = nodes.bullet_list()
    for name, part in zip(NAMES, parts(guide), strict=True):
        slides = [deck.slides[place] for place in part]
        minutes = f"{name}, {sum(slide.minutes for slide in slides)} minutes: "
        titles = "; ".join(f"{slide.title} ({slide.minutes})" for slide in slides)
        lines += nodes.list_item("", nodes.paragraph("", "", nodes.strong("", minutes), nodes.Text(titles)))
    last = nodes.paragraph("", "In pairs: exercise ")
    last += nodes.reference("", lesson.exercise, refid=lesson.label, internal=True)
    last += nodes.Text(f". If time is short, leave out: {lesson.left_out}.")
    title = nodes.title("", "In ninety minutes")
    return nodes.admonition("", title, lines, last, classes=["tip", "dropdown"])


def add_box(app: Sphinx, doctree: nodes.document) -> None:
    """Put the box at the end of a chapter's section "Prerequisites"."""
    if not is_chapter(app.env.docname):
        return
    app.env.note_dependency(str(GUIDE))
    deck = decks.read_deck(ROOT / f"{app.env.docname}.ipynb")
    for section in list(doctree.findall(nodes.section)) if deck is not None else ():
        if [title.astext() for title in section.children[:1]] == ["Prerequisites"]:
            section += make_box(deck, GUIDE.read_text(encoding="utf-8"))
