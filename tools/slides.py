"""Make the slides of the chapters, their handouts and the teacher's plans, from the chapters' own notebooks.

    python tools/slides.py                          every chapter that has a deck, to _build/slides
    python tools/slides.py --chapters 01 05         some of them
    python tools/slides.py --export 05 > deck.yml   a deck to edit, as YAML
    python tools/slides.py --store 05 deck.yml      put it back into its notebook

Pictures and tables are those of a run of the notebook, in the profile of the environment (GANPRUNE_PROFILE); what
`make book` has run is taken from its cache. The folder that is written asks no other machine for anything. PDF files
need Chromium or Chrome; without one the pages are written all the same.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import decks
import javascript
import markup
import nbformat
import outputs
import printing
import slide_parts
import yaml
from decks import Deck, DeckError

import book

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"
FRAMES = ROOT / "book" / "_static" / "frames.js"
START = """
<script defer src="assets/reveal/reveal.js"></script>
<script defer src="assets/reveal/notes.js"></script>
<script>
addEventListener("DOMContentLoaded", async () => {
  await window.MathJax.startup.promise;
  await Reveal.initialize({
    width: 1280, height: 720, margin: 0, minScale: 0.1, maxScale: 4, center: false, hash: true,
    transition: "none", slideNumber: "c/t", controls: false, plugins: [RevealNotes],
  });
  document.documentElement.dataset.ready = "yes";
});
</script>
"""
LICENCE = "Text and figures: CC BY 4.0. Code: MIT."


def deck_page(deck: Deck, parts: list[slide_parts.Part]) -> str:
    """A deck as Reveal shows it."""
    sections = []
    for place, (slide, part, (begin, end)) in enumerate(
        zip(deck.slides, parts, deck.clock(), strict=True), start=1
    ):
        heading = "h1" if place == 1 else "h2"
        kicker = (
            f'<p class="kicker">Chapter {deck.number} · {markup.line(deck.title)}</p>' if place == 1 else ""
        )
        notes = (
            f"<p><strong>Minutes {begin} to {end} ({slide.minutes})</strong></p>{markup.block(slide.notes)}"
        )
        sections.append(
            f'<section data-timing="{60 * slide.minutes}"><div class="slide {part.layout}">{kicker}'
            f"<{heading}>{markup.line(slide.title)}</{heading}>{part.on_screen()}"
            f"<footer>{deck.number} · {markup.line(deck.title)}</footer></div>"
            f'<aside class="notes">{notes}</aside></section>'
        )
    body = f'<div class="reveal"><div class="slides">\n{"".join(sections)}\n</div></div>'
    body += f"\n<script>{FRAMES.read_text(encoding='utf-8')}</script>"
    head = '<link rel="stylesheet" href="assets/reveal/reveal.css">\n' + markup.mathjax() + START
    style = (TOOLS / "slides.css").read_text(encoding="utf-8")
    return markup.page(f"Slides: {deck.number} · {markup.plain(deck.title)}", body, style, head)


def paper_page(deck: Deck, parts: list[slide_parts.Part], teacher: bool) -> str:
    """A deck on paper: the handout, or with notes and clock the teacher's plan."""
    articles = []
    for place, (slide, part, (begin, end)) in enumerate(
        zip(deck.slides, parts, deck.clock(), strict=True), start=1
    ):
        clock = f'<span class="clock">minutes {begin}–{end}</span>' if teacher else ""
        notes = f'<div class="notes">{markup.block(slide.notes)}</div>' if teacher else ""
        articles.append(
            f'<article class="{part.layout}"><h2><span>{place}. {markup.line(slide.title)}</span>{clock}</h2>'
            f"{part.on_paper()}{notes}</article>"
        )
    what = f"Teacher's plan, {decks.MINUTES} minutes" if teacher else "Handout"
    title = f"{deck.number} · {markup.plain(deck.title)}"
    lines = f"<h1>{title}</h1><p>{what}. Pruning Generative Adversarial Networks. {LICENCE}</p>"
    body = f"<header>{lines}</header>\n{''.join(articles)}"
    style = (TOOLS / "handout.css").read_text(encoding="utf-8")
    return markup.page(f"{what}: {title}", body, style, markup.mathjax())


def index_page(found: list[Deck], lacking: list[str], with_pdf: bool) -> str:
    """The page that leads to everything, and says which chapters have no deck."""
    rows = []
    for deck in found:
        kind = "pdf" if with_pdf else "html"
        rows.append(
            f"<tr><td>{deck.number} · {markup.line(deck.title)}</td>"
            f'<td><a href="{deck.chapter}.html">slides</a></td>'
            f'<td><a href="{deck.chapter}-handout.{kind}">handout</a></td>'
            f'<td><a href="{deck.chapter}-teacher.{kind}">teacher\'s plan</a></td></tr>'
        )
    body = f"<h1>Slides</h1><table>{''.join(rows)}</table>"
    body += "<p>In a deck: arrows move, <code>S</code> opens the speaker's view with notes and clock, "
    body += "<code>F</code> fills the screen, <code>Esc</code> shows all slides.</p>"
    if lacking:
        body += f"<p>Without a deck so far: {', '.join(lacking)}.</p>"
    return markup.page("Slides", body, (TOOLS / "handout.css").read_text(encoding="utf-8"))


def write(path: Path, text: str) -> Path:
    """Write a page and return where it is."""
    path.write_text(text, encoding="utf-8")
    return path


def make(output: Path, wanted: list[str] | None = None, with_pdf: bool = True) -> list[Deck]:
    """Write decks, handouts and plans, and return the decks.

    Args:
        output: folder to write to.
        wanted: two-digit numbers of chapters; None takes all that have a deck.
        with_pdf: print the handouts and plans too, if there is a browser.

    Raises:
        DeckError: a deck is not as it should be, or a wanted chapter has none.
        FetchError: Reveal or MathJax could not be fetched.
    """
    paths = [path for path in decks.chapters() if wanted is None or path.name[:2] in wanted]
    read = {path: decks.read_deck(path) for path in paths}
    found, lacking = (
        [deck for deck in read.values() if deck],
        [p.stem for p, deck in read.items() if not deck],
    )
    if wanted is not None and (lacking or len(paths) < len(set(wanted))):
        missing = lacking or sorted(set(wanted) - {path.name[:2] for path in paths})
        raise DeckError(f"no deck for {', '.join(missing)}")
    output.mkdir(parents=True, exist_ok=True)
    markup.copy_assets(output, reveal=True)
    to_print: dict[Path, Path] = {}
    for deck in found:
        parts = slide_parts.of_deck(deck, outputs.with_outputs(decks.NOTEBOOKS / f"{deck.chapter}.ipynb"))
        write(output / f"{deck.chapter}.html", deck_page(deck, parts))
        for name, teacher in (("handout", False), ("teacher", True)):
            page = write(output / f"{deck.chapter}-{name}.html", paper_page(deck, parts, teacher))
            to_print[page] = page.with_suffix(".pdf")
    if with_pdf and to_print:
        try:
            printing.print_pages(to_print)
        except printing.NoBrowserError as problem:
            print(problem, file=sys.stderr)
            with_pdf = False
    write(output / "index.html", index_page(found, lacking, with_pdf))
    if lacking:
        print(f"Without a deck so far: {', '.join(lacking)}")
    return found


def path_of(number: str) -> Path:
    """Return the notebook of a chapter by its two-digit number.

    Raises:
        DeckError: there is none.
    """
    path = next((path for path in decks.chapters() if path.name[:2] == number), None)
    if path is None:
        raise DeckError(f"there is no chapter {number}")
    return path


def export(number: str) -> str:
    """Return a chapter's deck as YAML."""
    notebook = nbformat.read(path_of(number), as_version=4)
    entries = notebook.metadata.get("ganprune", {}).get("slides", [])
    plain = [
        {key: entry[key] for key in ("title", "minutes", "points", "show", "later", "notes") if key in entry}
        for entry in entries
    ]
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)


def store(number: str, file: Path) -> None:
    """Put a deck that was edited as YAML into its notebook, if it is as it should be.

    Raises:
        DeckError: it is not.
    """
    path = path_of(number)
    notebook = nbformat.read(path, as_version=4)
    entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    for entry in entries:
        entry["notes"] = " ".join(str(entry.get("notes", "")).split())
    notebook.metadata.setdefault("ganprune", {})["slides"] = entries
    slides = tuple(decks.slide(entry, f"{file.name}, slide {n}") for n, entry in enumerate(entries, start=1))
    decks.check(Deck(path.stem, decks.title_of(notebook), slides, notebook))
    nbformat.write(notebook, path)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "_build" / "slides", help="folder to write to")
    parser.add_argument(
        "--chapters", nargs="+", metavar="NN", help="chapters by number (default: all with a deck)"
    )
    parser.add_argument("--no-pdf", action="store_true", help="write the pages alone")
    parser.add_argument("--export", metavar="NN", help="print a chapter's deck as YAML, and do nothing else")
    parser.add_argument(
        "--store", nargs=2, metavar=("NN", "FILE"), help="put a deck from YAML into its notebook"
    )
    arguments = parser.parse_args()
    try:
        if arguments.export:
            print(export(arguments.export), end="")
            return 0
        if arguments.store:
            store(arguments.store[0], Path(arguments.store[1]))
            return 0
        os.environ["GANPRUNE_PROFILE"] = book.check_profile()
        found = make(arguments.output.resolve(), arguments.chapters, not arguments.no_pdf)
    except (DeckError, ValueError, OSError, yaml.YAMLError, javascript.FetchError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(f"{len(found)} decks: open {os.path.relpath(arguments.output)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
