"""The exam bank: sixty questions, every answer in a second way, other numbers with another seed, sheets that hold."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "tools"), str(ROOT / "assignments")]

import exam_oracles_later  # noqa: E402, F401
import exam_sheets  # noqa: E402
from exam import BANK, Entry, Question  # noqa: E402
from exam.question import num  # noqa: E402
from exam_oracles import ORACLES  # noqa: E402

CHAPTERS = [1, 2, 3, 4, 5, 6, 7, 10, 13]
SEEDS = [f"a secret of {number}" for number in range(4)]
every_question = pytest.mark.parametrize("entry", BANK.values(), ids=BANK.keys())


# ---------------------------------------------------------------- the bank


def test_the_bank_has_sixty_questions_on_all_chapters_and_of_all_difficulties() -> None:
    assert len(BANK) == 60
    by_chapter = Counter(entry.chapter for entry in BANK.values())
    assert sorted(by_chapter) == CHAPTERS
    assert min(by_chapter.values()) >= 5
    for chapter in CHAPTERS:
        assert {entry.difficulty for entry in BANK.values() if entry.chapter == chapter} == {1, 2, 3}, chapter
    assert all(4 <= entry.minutes <= 12 for entry in BANK.values())
    assert len({entry.title for entry in BANK.values()}) == 60


@every_question
def test_a_seed_fixes_a_question_and_other_seeds_change_it(entry: Entry) -> None:
    first = entry.drawn(SEEDS[0])
    assert first == entry.drawn(SEEDS[0])
    drawn = [entry.drawn(f"seed {number}") for number in range(20)]
    assert len({question.text + question.figure for question in drawn}) == 20
    assert len({str(question.answer) for question in drawn}) == 20, "an answer would be right on two sheets"


@every_question
def test_a_question_is_made_of_sentences_and_its_numbers_are_shown(entry: Entry) -> None:
    question = entry.drawn(SEEDS[1])
    assert question.text.count("(a)") >= 1
    assert "(b)" in question.text
    for text in (question.text, question.solution):
        assert text.count("$") % 2 == 0
        assert not re.search(r"\bNone\b|\bnan\b|\binf\b|Fraction|\{[a-z_]+\}(?![$\\])\w", text)
    parts = re.findall(r"\(([a-f])\) ", question.text)
    for part in parts:
        assert f"({part})" in question.solution, f"the solution leaves out ({part})"


@every_question
def test_parts_have_points(entry: Entry) -> None:
    question = entry.drawn(SEEDS[2])
    assert sum(question.parts) == entry.minutes
    assert min(question.parts) >= 1
    letters = "abcdefg"
    assert all(f"({letter}) " in question.text.replace("\n", " ") for letter in letters[: len(entry.parts)])
    assert not re.search(rf"(^|[\s]|\))\({letters[len(entry.parts)]}\) ", question.text)
    assert exam_sheets.points_of_parts(question).startswith(f"(a) {entry.parts[0]}, (b) ")


SIGNS = re.compile(r"\+ ?-[\d.]|- -[\d.]|(?<![\d.}])-0(\.0+)?(?![.\d])|times 10\^\{[1-6]\}")


def test_numbers_are_written_as_people_write_them() -> None:
    assert num(13_533.4) == r"13\,530"
    assert num(13_533.4, 6) == r"13\,533.4"
    assert num(-0.0) == num(1.8e-17) == "0"
    for entry in BANK.values():
        for number in range(6):
            question = entry.drawn(f"number {number}")
            assert not SIGNS.search(question.text + question.solution), entry.name


def test_draws_that_would_make_a_question_pointless_are_not_taken() -> None:
    for number in range(40):
        drawn = {name: BANK[name].drawn(f"draw {number}") for name in BANK if name[:2] in ("02", "04", "13")}
        given = {name: question.given for name, question in drawn.items()}
        assert given["02-stamping"]["p"] > 0
        assert given["02-which-stamps"]["k"] % given["02-which-stamps"]["s"]
        kernels = drawn["02-kernel-for-size"].answer
        assert 0 < len(kernels["even"]) < len(kernels["pairs"])
        variety = drawn["04-variety"].answer
        assert variety["coverage of copies"] < variety["coverage"]
        assert variety["density of copies"] >= variety["density"]
        assert drawn["13-barrier"].answer["naive"] < drawn["13-barrier"].answer["barrier"]


def test_only_what_was_asked_is_compared() -> None:
    assert set(BANK["07-fisher"].drawn(SEEDS[0]).answer) == {"squared", "curvature", "share", "w"}


# ---------------------------------------------------------------- the answers


def assert_same(found: Any, expected: Any, within: float, where: str) -> None:
    """Compare numbers, words and rows of them."""
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, within, where)
    elif isinstance(expected, (str, bool)):
        assert found == expected, where
    else:
        assert found == pytest.approx(expected, rel=within, abs=within), where


def test_every_question_has_an_oracle() -> None:
    assert set(ORACLES) == set(BANK)


@pytest.mark.parametrize("seed", SEEDS)
@every_question
def test_an_answer_holds_in_a_second_way(entry: Entry, seed: str) -> None:
    question = entry.drawn(seed)
    other = ORACLES[entry.name](question.given)
    within = other.pop("within", 1e-6)
    assert set(other) <= set(question.answer)
    assert len(other) >= 2
    for name, value in other.items():
        assert_same(value, question.answer[name], within, f"{entry.name}: {name}")


@every_question
def test_a_wrong_answer_would_be_noticed(entry: Entry) -> None:
    question = entry.drawn(SEEDS[0])
    other = ORACLES[entry.name](entry.drawn(SEEDS[1]).given)
    with pytest.raises(AssertionError):
        for name, value in other.items():
            if name != "within":
                assert_same(value, question.answer[name], 1e-6, name)


# ---------------------------------------------------------------- sheets


@pytest.mark.parametrize("seed", ["first", "second", "third", "fourth"])
def test_ninety_minutes_are_filled_by_all_chapters_and_difficulties(seed: str) -> None:
    chosen = exam_sheets.choose(seed, CHAPTERS, 90)
    assert 82 <= sum(entry.minutes for entry in chosen) <= 90
    assert {entry.chapter for entry in chosen} == set(CHAPTERS)
    assert {entry.difficulty for entry in chosen} == {1, 2, 3}
    assert len(set(chosen)) == len(chosen)
    assert chosen == exam_sheets.choose(seed, CHAPTERS, 90)


def test_chapters_and_time_can_be_chosen() -> None:
    assert {entry.chapter for entry in exam_sheets.choose("s", [5, 6], 60)} == {5, 6}
    assert len(exam_sheets.choose("s", CHAPTERS, None)) == 60
    with pytest.raises(exam_sheets.ExamError, match="no questions on chapter 8"):
        exam_sheets.choose("s", [8], 90)
    with pytest.raises(exam_sheets.ExamError, match="no question fits into 2 minutes"):
        exam_sheets.choose("s", CHAPTERS, 2)


@pytest.fixture
def questions() -> list[Question]:
    return [entry.drawn("the secret of a teacher") for entry in BANK.values()]


def test_the_sheet_gives_no_solution_and_no_seed_away(questions: list[Question]) -> None:
    sheet = exam_sheets.page(questions, exam_sheets.mark("the secret of a teacher"), solved=False)
    solutions = exam_sheets.page(questions, exam_sheets.mark("the secret of a teacher"), solved=True)
    assert "the secret of a teacher" not in sheet + solutions
    assert "To compare" not in sheet
    assert 'class="way"' not in sheet
    assert solutions.count('class="way"') == solutions.count("To compare") == 60
    assert sheet.count("<section>") == 60
    outside = [
        link for link in re.findall(r"[a-z]+://[^\s\"<]+", sheet + solutions) if "www.w3.org" not in link
    ]
    assert outside == []


def test_parts_of_a_question_are_paragraphs_and_references_stay(questions: list[Question]) -> None:
    text = "Given.\n\n(a) How many? (b) What is it after\nthe weight of (a) is gone? (c) Why?"
    assert exam_sheets.parted(text).count("\n\n(") == 3
    assert "weight of (a) is" in exam_sheets.parted(text)


def test_figures_say_in_words_what_they_show(questions: list[Question]) -> None:
    figures = [question.figure for question in questions if question.figure]
    assert len(figures) >= 12
    for figure in figures:
        words = html.unescape(re.search(r'aria-label="([^"]+)"', figure)[1])
        assert len(words.split()) >= 5


@pytest.mark.parametrize(
    ("seed", "options", "words", "code"),
    [
        ("", [], "choose a secret", 1),
        ("a-long-secret", ["--chapters", "8"], "no questions on chapter 8", 1),
        ("a-long-secret", ["--minutes", "many"], "whole number of minutes or all", 2),
        ("short", ["--minutes", "30"], "can be found by trying", 0),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, seed: str, options: list[str], words: str, code: int
) -> None:
    command = [
        sys.executable,
        "tools/exam_sheets.py",
        "--no-pdf",
        "--output",
        str(tmp_path / "exam"),
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), exam_sheets.SEED: seed}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert words in done.stderr
    assert done.returncode == code
    if code == 0:
        assert (tmp_path / "exam" / "sheet" / "sheet.html").is_file()
        assert not list((tmp_path / "exam" / "sheet").glob("*solution*"))
        assert (tmp_path / "exam" / "solutions" / "solutions.html").is_file()
