"""What stands on a slide beside its title: sentences, equations, and what the notebook made."""

import base64
import html
import io
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "book" / "_ext"))

import decks
import markup
import nbformat
from bs4 import BeautifulSoup
from decks import Deck, DeckError, Shown
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

WIDE = 1.75  # a picture that is wider than this many times its height stands below the sentences
MANY_LINES = 4  # sentences: from here on they take two columns
WHOLE, HALF, CODE = 1184, 640, 716  # pixels: widths of a slide, of its right half, of the code on it
HIGH = 535  # pixels below a title
SHORT = 14  # lines: code that is not longer stands below the sentences, in larger type
MONOSPACE, SANS = 0.603, 0.56  # width of a letter over the size of the type, the second for digits and words
ROLE = re.compile(r"\{(?P<role>glue:text|says|effect)\}`(?P<text>[^`]+)`")


@dataclass(frozen=True)
class Item:
    """One thing that is shown: as HTML for the screen and for paper, whether it needs the whole width, and waits."""

    screen: str
    paper: str
    kind: str
    wide: bool = False
    waits: bool = False


@dataclass(frozen=True)
class Part:
    """What stands on a slide below its title."""

    points: tuple[str, ...]
    equations: tuple[str, ...]
    items: tuple[Item, ...]
    points_wait: bool = False
    equations_wait: bool = False

    @property
    def layout(self) -> str:
        """Names of styles: sentences beside what is shown, above it, or alone."""
        if not self.items:
            return "alone"
        if not self.points or any(item.wide for item in self.items):
            return "wide many" if len(self.points) >= MANY_LINES else "wide"
        return "code" if any(item.kind == "source" for item in self.items) else "side"

    def _body(self, shown: list[str], on_screen: bool) -> str:
        """Sentences, equations and what is shown, as HTML."""
        formulas = "".join(rf"<div>\[{html.escape(formula)}\]</div>" for formula in self.equations)
        lines = "".join(f"<li>{markup.line(point)}</li>" for point in self.points)
        equations = f'<div class="equations">{formulas}</div>' if formulas else ""
        points = f'<div class="points"><ul>{lines}</ul></div>' if lines else ""
        return (
            (later(equations) if on_screen and self.equations_wait else equations)
            + '<div class="body">'
            + (later(points) if on_screen and self.points_wait else points)
            + (f'<div class="media">{"".join(shown)}</div>' if shown else "")
            + "</div>"
        )

    def on_screen(self) -> str:
        """The part as a slide shows it."""
        return self._body([later(item.screen) if item.waits else item.screen for item in self.items], True)

    def on_paper(self) -> str:
        """The part as a handout shows it."""
        return self._body([item.paper for item in self.items], False)


def later(box: str) -> str:
    """Return a box that Reveal shows at another press of the key, together with all others that wait."""
    return box.replace('<div class="', '<div data-fragment-index="0" class="fragment ', 1)


def of_deck(deck: Deck, run: nbformat.NotebookNode) -> list[Part]:
    """Return what stands on each slide of a deck, with the outputs of a run of its notebook.

    Raises:
        DeckError: a cell that should be shown has put out nothing, or a sentence names what the run does not know.
    """
    results = {cell["id"]: cell.outputs for cell in run.cells if cell.cell_type == "code"}
    glued = glued_texts(run)
    parts = []
    for place, slide in enumerate(deck.slides, start=1):
        where = f"{deck.chapter}, slide {place}"
        shown = {name: decks.find(deck.notebook, name, where) for name in slide.show}
        equations = {name: each.text for name, each in shown.items() if each.kind == "equation"}
        items = [
            replace(item, waits=name in slide.later)
            for name, each in shown.items()
            if name not in equations
            for item in items_of(each, results, where)
        ]
        points = tuple(fill(point, glued, where) for point in slide.points)
        waits = "points" in slide.later, not equations.keys().isdisjoint(slide.later)
        parts.append(Part(points, tuple(equations.values()), tuple(items), *waits))
    return parts


# ---------------------------------------------------------------- sentences


def glued_texts(run: nbformat.NotebookNode) -> dict[str, str]:
    """Return the texts that a notebook has glued, by name."""
    found = {}
    for cell in run.cells:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            for kind, value in output.get("data", {}).items() if name else ():
                if kind.endswith("text/plain"):
                    found[name] = str(value).strip("'\"")
    return found


def fill(point: str, glued: Mapping[str, str], where: str) -> str:
    """Replace the roles of a sentence by what the run or the records say.

    Raises:
        DeckError: a name is unknown, or the record says something else.
    """

    def text(match: re.Match[str]) -> str:
        if match["role"] == "glue:text":
            if match["text"] not in glued:
                raise DeckError(f"{where}: nothing is glued as {match['text']!r}")
            return glued[match["text"]]
        import ganprune_ledger  # needs seconds, and few decks name a claim

        claim, _, word = match["text"].partition(" ")
        verdict = ganprune_ledger.verdicts().get(claim)
        if verdict is None or (match["role"] == "says" and verdict.verdict != word):
            raise DeckError(f"{where}: the ledger does not say {match['text']!r}")
        return f"*{word}*" if match["role"] == "says" else ganprune_ledger.effect(verdict)

    return ROLE.sub(text, point)


# ---------------------------------------------------------------- what is shown


def items_of(shown: Shown, results: Mapping[str, list], where: str) -> list[Item]:
    """Return what stands on the slide for one entry of ``show``.

    Raises:
        DeckError: the cell has put out nothing that could be shown.
    """
    if shown.kind == "drawing":
        data = (decks.NOTEBOOKS / shown.path).resolve().read_bytes()
        return [picture(data, "image/svg+xml", svg_shape(data), shown)]
    if shown.kind == "code":
        return [source(shown.text)]
    items = [item for output in results[shown.cell["id"]] if (item := of_output(output, shown))]
    if not items:
        raise DeckError(f"{where}: the cell {shown.cell['id']!r} has put out nothing to show")
    return items


def of_output(output: nbformat.NotebookNode, shown: Shown) -> Item | None:
    """Return one output of a cell: a picture, frames, a table or text; None for what readers do not see."""
    if output.output_type == "stream":
        return text(output.text) if output.get("name") == "stdout" else None
    data = output.get("data", {})
    if output.get("metadata", {}).get("scrapbook"):
        return None
    if "image/png" in data:
        raw = base64.b64decode(data["image/png"])
        width, height = Image.open(io.BytesIO(raw)).size
        return picture(raw, "image/png", width / height, shown)
    written = "".join(data.get("text/html", ""))
    if 'class="gp-frames"' in written:
        return frames(written)
    if "<table" in written:
        return table(written)
    return text("".join(data["text/plain"])) if "text/plain" in data else None


def picture(data: bytes, kind: str, shape: float, shown: Shown) -> Item:
    """A picture that lies inside the page."""
    address = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{address}" alt="{html.escape(shown.alt)}">'
    caption = re.sub(r"\{[\w:]+\}`([^`<]+)(?:<[^`]*)?`", r"\1", shown.caption)
    below = f'<p class="caption">{markup.line(caption)}</p>' if caption else ""
    box = f'<div class="picture">{image}</div>'
    return Item(box, box + below, "picture", wide=shape > WIDE)


def svg_shape(data: bytes) -> float:
    """Width over height of a drawing."""
    box = re.search(rb'viewBox="([^"]+)"', data)
    if box is None:
        return 1.0
    _, _, width, height = (float(number) for number in box[1].replace(b",", b" ").split())
    return width / height


def frames(written: str) -> Item:
    """Frames: a slider on the screen; the first, a middle and the last of them on paper."""
    written = written.replace('loading="lazy"', 'loading="eager"')
    found = BeautifulSoup(written, "html.parser").select(".gp-frame")
    chosen = dict.fromkeys((0, len(found) // 2, len(found) - 1))
    figures = []
    for place in chosen:
        image = found[place].img
        label = html.escape(found[place].figcaption.get_text())
        alt = html.escape(image["alt"])
        figures.append(
            f'<figure><img src="{image["src"]}" alt="{alt}"><figcaption>{label}</figcaption></figure>'
        )
    width, height = int(found[0].img["width"]), int(found[0].img["height"])
    paper = f'<div class="frames">{"".join(figures)}</div>'
    return Item(f'<div class="frames">{written}</div>', paper, "frames", wide=width / height > WIDE)


def size(width: float, letters: int, letter: float, lines: int, spacing: float, largest: float) -> float:
    """The size of type, in pixels, at which so many letters and lines fit; not above the largest."""
    return round(min(largest, width / (letter * letters), HIGH / (spacing * lines)), 1)


def table(written: str) -> Item:
    """A table, in letters as large as its width allows."""
    found = BeautifulSoup(written, "html.parser").table
    rows = [[cell.get_text() for cell in row.select("th, td")] for row in found.select("tr")]
    longest = sum(max(map(len, column)) for column in zip(*rows, strict=True))
    wide = longest > 48
    room = (WHOLE if wide else HALF) - 18 * len(rows[0])
    large = size(room, longest, SANS, len(rows), 1.8, 22)
    return Item(
        f'<div class="table" style="font-size: {large}px">{found}</div>',
        f'<div class="table">{found}</div>',
        "table",
        wide,
    )


def text(written: str) -> Item:
    """What a cell printed."""
    lines = written.rstrip().splitlines()
    longest = max(map(len, lines))
    wide = longest > 56
    large = size((WHOLE if wide else HALF) - 26, longest, MONOSPACE, len(lines), 1.34, 21)
    return _typed("text", html.escape(written.rstrip()), large, wide)


def source(code: str) -> Item:
    """The code of a cell."""
    lines, inner = code.splitlines(), highlight(code, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip()
    longest = max(map(len, lines))
    if len(lines) > SHORT:
        return _typed("source", inner, size(CODE, longest, MONOSPACE, len(lines), 1.34, 20), wide=False)
    return _typed(
        "source", inner, min(size(WHOLE - 26, longest, MONOSPACE, 1, 1, 22), 340 / 1.34 / len(lines)), True
    )


def _typed(kind: str, inner: str, large: float, wide: bool) -> Item:
    """A box of typewriter type, of the given size on the screen."""
    pre = f'<pre style="font-size: {large:.1f}px">{inner}</pre>'
    return Item(
        f'<div class="{kind}">{pre}</div>', f'<div class="{kind}"><pre>{inner}</pre></div>', kind, wide
    )
