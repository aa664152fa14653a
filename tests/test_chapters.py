"""What every chapter owes its reader: objectives that are served, symbols that are explained, a length, a drawing."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from tools.chapters import DRAWINGS, ROOT, Chapter

CHAPTERS = [Chapter(path.stem) for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
MOST_WORDS = {"01": 2_700, "02": 2_700}
"""Chapters with a derivation of their own beside the measurement; all others have at most 2,500."""

every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)


@every_chapter
def test_every_objective_is_measured_exercised_and_asked_for(chapter: Chapter) -> None:
    rows, code = chapter.facts["objectives"], chapter.cells("code")
    listed = re.findall(r"^- (.+?)[;.]$", chapter.sources["objectives"], flags=re.MULTILINE)
    questions = {int(number) for number in re.findall(r"^\*\*(\d+)\. ", chapter.prose, flags=re.MULTILINE)}
    assert [row["text"] for row in rows] == listed and listed
    for row in rows:
        assert row["measured_in"] in code
        assert f":label: {row['exercise']}\n" in chapter.prose
        assert row["question"] in questions


@every_chapter
def test_there_are_exercises_and_questions_enough(chapter: Chapter) -> None:
    assert chapter.prose.count("```{exercise}") >= 5
    assert re.findall(r"^\*\*(\d+)\. ", chapter.sources["check"], flags=re.MULTILINE) == list("12345")


@every_chapter
def test_the_symbols_of_the_chapter_are_explained_on_the_page(chapter: Chapter) -> None:
    lists = re.findall(
        r"(?<=Symbols )(?:of|that) this chapter.*?(?=^:::|^## |\Z)", chapter.prose, flags=re.M | re.S
    )
    symbols = chapter.facts["symbols"]
    assert symbols and lists
    for symbol in symbols:
        assert any(re.search(rf"\$[^$]*{re.escape(symbol)}[^$]*\$", text) for text in lists), symbol


@every_chapter
def test_where_time_or_sparsity_is_the_subject_a_picture_moves(chapter: Chapter) -> None:
    assert chapter.path.stem[:2] == "05" or any(
        "show_frames" in text for text in chapter.cells("code").values()
    )


@every_chapter
def test_the_chapter_is_as_long_as_a_chapter(chapter: Chapter) -> None:
    number = chapter.path.stem[:2]
    assert len(chapter.before_the_exercises) <= 60
    assert chapter.words >= 1_200
    assert chapter.words <= MOST_WORDS.get(number, 2_500)


@pytest.mark.parametrize("path", sorted(DRAWINGS.glob("*.svg")), ids=lambda path: path.stem)
def test_a_drawing_describes_itself_and_stands_on_white(path) -> None:
    root, space = ElementTree.parse(path).getroot(), "{http://www.w3.org/2000/svg}"
    assert len(root.findtext(f"{space}title").split()) >= 4
    assert len(root.findtext(f"{space}desc").split()) >= 20
    assert root.find(f"{space}rect").get("fill") == "#fff"


@every_chapter
def test_boxes_of_one_kind_have_one_colour_in_the_whole_course(chapter: Chapter) -> None:
    boxes = re.findall(
        r"^[`:]{3,}\{admonition\} (Predict, change, run|Assumption)s?\b.*\n:class: (.+)$",
        chapter.prose,
        flags=re.M,
    )
    titles = re.findall(
        r"^[`:]{3,}\{admonition\} (?:Predict, change, run|Assumption)", chapter.prose, flags=re.M
    )
    assert len(boxes) == len(titles) > 0
    assert set(boxes) <= {("Predict, change, run", "tip"), ("Assumption", "warning")}


@every_chapter
def test_stars_stand_before_the_title_of_an_exercise(chapter: Chapter) -> None:
    titles = re.findall(r"^`{3,}\{exercise\} (.+)$", chapter.prose, flags=re.MULTILINE)
    assert titles and all(re.fullmatch(r"★{1,3} [^★]+", title) for title in titles)
