"""The decks of slides that lie in the chapters' notebooks, as values that have been checked.

A deck is the list ``metadata.ganprune.slides`` of a notebook: twelve entries, each with

- ``title``: a short line;
- ``points``: one to five sentences in Markdown, with formulas between dollars;
- ``show``: what else stands on the slide, named by what the notebook calls it: the id of a code cell for its output,
  ``id:code`` for its code, the id of a Markdown cell for the drawing in it, the label of an equation (``eq-...``);
- ``later``: what waits for another press of the key, after a guess or a vote: names from ``show``, or ``points``;
- ``minutes``: how long the teacher stays there; the twelve add up to ninety;
- ``notes``: what the teacher says, asks and looks out for.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
SLIDES, MINUTES = 12, 90
MOST_POINTS, MOST_WORDS = 5, 75
KEYS = {"title", "points", "show", "later", "minutes", "notes"}
EQUATION = re.compile(r"^\$\$\n(?P<formula>[^$]+)\n\$\$ \((?P<label>eq-[\w-]+)\)", re.MULTILINE)
DRAWING = re.compile(
    r"^```\{figure\} (?P<path>\S+\.svg)\n(?P<options>(?::.*\n)+)\n(?P<caption>.*?)\n```", re.M | re.S
)


class DeckError(ValueError):
    """A deck is not as it should be; the message names the chapter and the slide."""


@dataclass(frozen=True)
class Slide:
    """One slide, as its entry in the notebook describes it."""

    title: str
    minutes: int
    notes: str
    points: tuple[str, ...] = ()
    show: tuple[str, ...] = ()
    later: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deck:
    """The slides of a chapter.

    Attributes:
        chapter: the name of the notebook, such as "05_what_pruning_removes".
        title: the chapter's title without its number.
        slides: twelve slides.
        notebook: the notebook, with the outputs that it has.
    """

    chapter: str
    title: str
    slides: tuple[Slide, ...]
    notebook: nbformat.NotebookNode = field(repr=False)

    @property
    def number(self) -> int:
        """The chapter's number."""
        return int(self.chapter[:2])

    def clock(self) -> list[tuple[int, int]]:
        """For each slide the minute at which it begins and the one at which it ends."""
        ends = [sum(slide.minutes for slide in self.slides[: place + 1]) for place in range(len(self.slides))]
        return list(zip([0, *ends[:-1]], ends, strict=True))


def chapters(folder: Path = NOTEBOOKS) -> list[Path]:
    """Return the notebooks of all chapters."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def title_of(notebook: nbformat.NotebookNode) -> str:
    """Return a chapter's title without its number."""
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.sub(r"^# \d+ · ", "", first.splitlines()[0])


def read_deck(path: Path) -> Deck | None:
    """Return the deck of a notebook, or None if it has none.

    Raises:
        DeckError: the deck is not as it should be.
    """
    notebook = nbformat.read(path, as_version=4)
    entries = notebook.metadata.get("ganprune", {}).get("slides")
    if entries is None:
        return None
    slides = tuple(
        slide(entry, f"{path.name}, slide {place}") for place, entry in enumerate(entries, start=1)
    )
    deck = Deck(path.stem, title_of(notebook), slides, notebook)
    check(deck)
    return deck


def slide(entry: dict, where: str) -> Slide:
    """Return an entry of a deck as a slide."""
    unknown, missing = set(entry) - KEYS, {"title", "minutes", "notes"} - set(entry)
    if unknown or missing:
        raise DeckError(
            f"{where}: unknown {sorted(unknown)}, missing {sorted(missing)}; known are {sorted(KEYS)}"
        )
    for name in ("points", "show", "later"):
        strange = [one for one in entry.get(name, ()) if not isinstance(one, str)]
        if strange:  # in YAML, a sentence with a colon needs quotes
            raise DeckError(f"{where}: {name} are texts, and {strange[0]!r} is none (a colon needs quotes)")
    return Slide(
        title=entry["title"],
        minutes=entry["minutes"],
        notes=entry["notes"],
        points=tuple(entry.get("points", ())),
        show=tuple(entry.get("show", ())),
        later=tuple(entry.get("later", ())),
    )


def check(deck: Deck) -> None:
    """Raise unless a deck has twelve short slides of ninety minutes that show what the notebook has.

    Raises:
        DeckError: it has not.
    """
    if len(deck.slides) != SLIDES:
        raise DeckError(f"{deck.chapter}: {len(deck.slides)} slides, not {SLIDES}")
    if any(not isinstance(slide.minutes, int) or slide.minutes < 1 for slide in deck.slides):
        raise DeckError(f"{deck.chapter}: minutes are whole numbers from 1 on")
    if (total := sum(slide.minutes for slide in deck.slides)) != MINUTES:
        raise DeckError(f"{deck.chapter}: the minutes add up to {total}, not {MINUTES}")
    for place, slide in enumerate(deck.slides, start=1):
        where = f"{deck.chapter}, slide {place}"
        for name in slide.show:
            find(deck.notebook, name, where)
        if strange := set(slide.later) - {*slide.show, "points"}:
            raise DeckError(f"{where}: {sorted(strange)} cannot come later, as it is not shown at all")
        words = sum(len(point.split()) for point in slide.points)
        if len(slide.points) > MOST_POINTS or words > MOST_WORDS:
            raise DeckError(
                f"{where}: {len(slide.points)} points, {words} words; at most {MOST_POINTS} and {MOST_WORDS}"
            )
        for point in slide.points:
            if not re.search(r"[.?!:][*_)]*$|\$$", point):
                raise DeckError(f"{where}: {point!r} is not a sentence")
        if not slide.points and not slide.show:
            raise DeckError(f"{where}: nothing is on it")
        if len(slide.notes.split()) < 10:
            raise DeckError(f"{where}: the notes say nothing")


@dataclass(frozen=True)
class Shown:
    """What an entry of ``show`` names: its kind, and where it is."""

    kind: str  # "output", "code", "drawing" or "equation"
    cell: nbformat.NotebookNode
    text: str = ""  # the formula of an equation
    path: str = ""  # the file of a drawing
    alt: str = ""
    caption: str = ""


def find(notebook: nbformat.NotebookNode, name: str, where: str) -> Shown:
    """Return what ``show`` names in a notebook.

    Raises:
        DeckError: there is no such thing.
    """
    if name.startswith("eq-"):
        for cell in notebook.cells:
            for match in EQUATION.finditer(cell.source if cell.cell_type == "markdown" else ""):
                if match["label"] == name:
                    return Shown("equation", cell, text=match["formula"])
        raise DeckError(f"{where}: there is no equation {name!r}")
    identity, _, part = name.partition(":")
    cell = next((cell for cell in notebook.cells if cell.get("id") == identity), None)
    if cell is None or part not in ("", "code"):
        raise DeckError(f"{where}: there is no cell {name!r}")
    if cell.cell_type == "code":
        if part:
            return Shown("code", cell, text=cell.source)
        settings = cell.metadata.get("mystnb", {})
        alt, caption = settings.get("image", {}).get("alt", ""), settings.get("figure", {}).get("caption", "")
        return Shown("output", cell, alt=alt, caption=caption)
    match = DRAWING.search(cell.source)
    if match is None:
        raise DeckError(f"{where}: the Markdown cell {name!r} has no drawing")
    alt = re.search(r"^:alt: (.+)$", match["options"], flags=re.MULTILINE)
    return Shown(
        "drawing", cell, path=match["path"], alt=alt[1] if alt else "", caption=match["caption"].strip()
    )
