"""The decks in the notebooks, and the tool that makes slides, handouts and teacher's plans of them."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path

import decks
import markup
import nbformat
import outputs
import pytest
import slide_parts
import slides
import students
import yaml
from decks import Deck, DeckError

FOUND = {path.stem: deck for path in decks.chapters() if (deck := decks.read_deck(path))}
LACKING = [path.stem for path in decks.chapters() if path.stem not in FOUND]
WITH_DECK = {"01", "02", "03", "04", "05", "06", "07", "10", "13"}  # a deck that was there stays there

every_deck = pytest.mark.parametrize("deck", FOUND.values(), ids=FOUND.keys())


@pytest.fixture
def deck() -> Deck:
    """A deck that is as it should be."""
    return next(iter(FOUND.values()))


# ---------------------------------------------------------------- the decks of the chapters


def test_chapters_without_a_deck_are_named() -> None:
    assert {name[:2] for name in FOUND} >= WITH_DECK
    if LACKING:
        warnings.warn(f"chapters without slides: {', '.join(LACKING)}", stacklevel=1)


@every_deck
def test_a_deck_has_twelve_slides_and_ninety_minutes(deck: Deck) -> None:
    assert len(deck.slides) == 12
    assert sum(slide.minutes for slide in deck.slides) == 90
    assert deck.clock()[0][0] == 0
    assert deck.clock()[-1][1] == 90


@every_deck
def test_what_a_deck_shows_is_there_and_has_words_for_those_who_do_not_see_it(deck: Deck) -> None:
    shown = [decks.find(deck.notebook, name, deck.chapter) for slide in deck.slides for name in slide.show]
    assert len({each.cell["id"] for each in shown}) >= 8, "a deck shows what the notebook has"
    assert any(each.kind in ("output", "drawing") and each.alt for each in shown)
    for each in shown:
        if each.kind == "drawing":
            assert (decks.NOTEBOOKS / each.path).resolve().is_file()
            assert len(each.alt.split()) >= 5


@every_deck
def test_a_deck_asks_and_its_notes_help(deck: Deck) -> None:
    notes = [slide.notes for slide in deck.slides]
    assert all(len(note.split()) >= 20 for note in notes)
    texts = [text for slide in deck.slides for text in (slide.notes, *slide.points)]
    assert sum(bool(re.search(r"\?|\b[Aa]sk\b", text)) for text in texts) >= 6
    text = " ".join([*texts, *(slide.title for slide in deck.slides)]).lower()
    assert "predict" in text or "write down" in text


@every_deck
def test_a_slide_that_asks_for_a_guess_does_not_show_the_answer(deck: Deck) -> None:
    for slide in deck.slides:
        shown = [decks.find(deck.notebook, name, deck.chapter) for name in slide.show]
        answers = [each for each in shown if each.kind == "output" and "show_frames" not in each.cell.source]
        if re.search(r"predict|write .*down", " ".join([slide.title, *slide.points]), re.I) and answers:
            assert slide.later, slide.title
        # a projector cannot be covered in part
        assert not re.search(r"\b(un)?(cover|hide) the\b", slide.notes, re.I), slide.title


@every_deck
def test_students_copies_hold_no_notes(deck: Deck) -> None:
    copy = students.without_solutions(deck.notebook, deck.chapter)
    assert "slides" not in copy.metadata.get("ganprune", {})
    assert "slides" in deck.notebook.metadata["ganprune"]
    assert copy.metadata.kernelspec == deck.notebook.metadata.kernelspec


# ---------------------------------------------------------------- checks that say what is wrong


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"show": ("no-such-cell",)}, "there is no cell 'no-such-cell'"),
        ({"show": ("eq-99-nothing",)}, "there is no equation"),
        ({"show": ("objectives",)}, "has no drawing"),
        ({"points": ("no sentence",)}, "is not a sentence"),
        ({"points": ("One.",) * 6}, "6 points"),
        ({"points": ("word " * 80 + ".",)}, "81 words"),
        ({"points": (), "show": ()}, "nothing is on it"),
        ({"notes": "Too short."}, "notes say nothing"),
        ({"later": ("check-best",)}, "cannot come later"),
        ({"minutes": 0}, "whole numbers"),
        ({"minutes": 30}, "add up to"),
    ],
)
def test_a_wrong_slide_is_named(deck: Deck, change: dict, words: str) -> None:
    first = dataclasses.replace(deck.slides[0], **change)
    with pytest.raises(DeckError, match=words):
        decks.check(dataclasses.replace(deck, slides=(first, *deck.slides[1:])))


def test_eleven_slides_are_no_deck(deck: Deck) -> None:
    with pytest.raises(DeckError, match="11 slides, not 12"):
        decks.check(dataclasses.replace(deck, slides=deck.slides[1:]))


def test_unknown_keys_and_sentences_that_yaml_misread_are_named() -> None:
    entry = {"title": "A", "minutes": 5, "notes": "b"}
    with pytest.raises(DeckError, match="unknown \\['cells'\\]"):
        decks.slide(entry | {"cells": []}, "here")
    with pytest.raises(DeckError, match="a colon needs quotes"):
        decks.slide(entry | {"points": [{"One line": "a maximum."}]}, "here")


def test_a_deck_is_exported_edited_and_stored(
    deck: Deck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"{deck.chapter}.ipynb"
    nbformat.write(deck.notebook, path)
    before = path.read_text(encoding="utf-8")
    monkeypatch.setattr(slides.decks, "chapters", lambda: [path])
    text = slides.export(deck.chapter[:2])
    file = tmp_path / "deck.yml"
    file.write_text(text, encoding="utf-8")
    slides.store(deck.chapter[:2], file)
    assert path.read_text(encoding="utf-8") == before
    entries = yaml.safe_load(text)
    entries[0]["minutes"] += 1
    file.write_text(yaml.safe_dump(entries), encoding="utf-8")
    with pytest.raises(DeckError, match="add up to 91"):
        slides.store(deck.chapter[:2], file)
    assert path.read_text(encoding="utf-8") == before


def test_a_chapter_without_a_deck_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DeckError, match="no deck for 98"):
        slides.make(tmp_path, ["98"], with_pdf=False)


# ---------------------------------------------------------------- markup


def test_formulas_are_left_to_mathjax_and_html_is_not_let_through() -> None:
    assert r"\(a &lt; b_1\)" in markup.line("for $a < b_1$ and *no* other")
    assert "<em>no</em>" in markup.line("for $a < b_1$ and *no* other")
    assert "<script>" not in markup.block("<script>alert(1)</script>")
    assert r"\[x^2\]" in markup.block("$$\nx^2\n$$")


def test_an_equation_is_found_by_its_label_alone(deck: Deck) -> None:
    names = [name for slide in deck.slides for name in slide.show if name.startswith("eq-")]
    for name in names:
        assert "$" not in decks.find(deck.notebook, name, "here").text


def test_sentences_take_numbers_from_the_run() -> None:
    cell = nbformat.v4.new_code_cell("")
    data = {"application/papermill.record/text/plain": "'7.3'"}
    cell.outputs = [nbformat.v4.new_output("display_data", data, metadata={"scrapbook": {"name": "fid"}})]
    glued = slide_parts.glued_texts(nbformat.v4.new_notebook(cells=[cell]))
    assert slide_parts.fill("It is {glue:text}`fid`.", glued, "here") == "It is 7.3."
    with pytest.raises(DeckError, match="nothing is glued as 'other'"):
        slide_parts.fill("It is {glue:text}`other`.", glued, "here")


def test_what_the_ledger_does_not_say_is_an_error() -> None:
    with pytest.raises(DeckError, match="the ledger does not say"):
        slide_parts.fill("Claim 999 is {says}`999 supported`.", {}, "here")


def test_type_is_as_large_as_its_place_allows() -> None:
    assert slide_parts.size(700, 10, 0.6, 1, 1.3, 20) == 20
    assert slide_parts.size(700, 76, 0.6, 1, 1.3, 20) == pytest.approx(15.35, abs=0.06)
    assert slide_parts.size(700, 10, 0.6, 30, 1.3, 20) < 14


# ---------------------------------------------------------------- pages


def part(**parts: tuple | bool) -> slide_parts.Part:
    """What stands on a slide, with nothing but what is given."""
    return slide_parts.Part(**({"points": ("One point.",), "equations": (), "items": ()} | parts))


def test_the_layout_follows_what_is_shown() -> None:
    tall, wide = (slide_parts.Item("", "", "picture", wide=flag) for flag in (False, True))
    assert part().layout == "alone"
    assert part(items=(tall,)).layout == "side"
    assert part(items=(wide,)).layout == "wide"
    assert part(items=(slide_parts.Item("", "", "source"),)).layout == "code"


def test_what_waits_appears_on_the_screen_at_another_key_and_on_paper_at_once() -> None:
    waits = slide_parts.Item('<div class="text">14</div>', "14", "text", waits=True)
    shown = slide_parts.Item('<div class="text">15</div>', "15", "text")
    some = part(equations=("x",), items=(shown, waits), equations_wait=True)
    screen = some.on_screen()
    assert screen.count('data-fragment-index="0" class="fragment ') == 2
    assert 'class="fragment equations"' in screen
    assert 'class="fragment text">14' in screen
    assert '<div class="points">' in screen
    assert 'class="fragment points"' in part(points_wait=True).on_screen()
    assert "fragment" not in some.on_paper()


def test_notes_are_for_the_teacher_alone(deck: Deck) -> None:
    parts = [part() for _ in deck.slides]
    first = markup.block(deck.slides[0].notes)
    assert first in slides.paper_page(deck, parts, teacher=True)
    assert "minutes 0–" in slides.paper_page(deck, parts, teacher=True)
    assert first not in slides.paper_page(deck, parts, teacher=False)
    page = slides.deck_page(deck, parts)
    assert page.count('<aside class="notes">') == page.count("<section") == 12
    assert f'data-timing="{60 * deck.slides[0].minutes}"' in page
    assert "://" not in page.replace("http://www.w3.org", "")


def test_the_index_says_what_is_lacking(deck: Deck) -> None:
    page = slides.index_page([deck], ["99_not_yet"], with_pdf=True)
    assert f'href="{deck.chapter}-handout.pdf"' in page
    assert "Without a deck so far: 99_not_yet" in page


def test_a_run_has_figures_whatever_backend_is_set_and_its_key_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import matplotlib.pyplot as plt\n_ = plt.plot([0, 1])"
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(outputs, "cache_folder", lambda: tmp_path / "cache")
    first = outputs.with_outputs(path)
    assert any("image/png" in output.get("data", {}) for output in first.cells[0].outputs)
    monkeypatch.setattr(outputs, "NotebookClient", None)  # a second run would fail
    assert outputs.with_outputs(path).cells[0].outputs == first.cells[0].outputs
