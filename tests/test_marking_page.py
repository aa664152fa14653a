"""The page of schemes: each exercise that no check decides has its scheme, and the points add up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import students
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "book" / "marking.md").read_text(encoding="utf-8")
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
HEAD = re.compile(
    r"^\(mark-(?P<anchor>[\d-]+)\)=\n\{ref\}`(?P<number>[\d.]+) · (?P<title>.+) <(?P<label>[\w-]+)>`, "
    r"(?P<points>\d+) points?(?P<beside> beside its checks?)?.*\n",
    re.MULTILINE,
)
OFTEN = re.compile(r"^  \*Often:\* .+ \*\*(\d+) of (\d+)\*\*(?: \(([\d, ]+)\))?\. \*Say:\* \".+[.?]\"$", re.M)
ROW = re.compile(r"^\| \{ref\}`(\d+) <marking-(\d\d)>` \| (\d+) \| (.+) \|$", re.MULTILINE)
CHECK = re.compile(r"\bdef check_|\bfind_mistakes\(")


@dataclass(frozen=True)
class Scheme:
    """What the page has for one exercise."""

    anchor: str
    number: str
    title: str
    points: int
    beside_a_check: bool
    text: str


@dataclass(frozen=True)
class Exercise:
    """What a chapter has: the title without stars, and whether a check stands between it and its solution."""

    title: str
    checked: bool


def read_schemes(page: str) -> dict[str, Scheme]:
    """Label → scheme, in the page's order."""
    heads = list(HEAD.finditer(page))
    assert len(heads) == len(re.findall(r"^\(mark-", page, flags=re.MULTILINE)), "a scheme cannot be read"
    assert len({head["label"] for head in heads}) == len(heads), "an exercise has two schemes"
    found = {}
    for head, after in zip(heads, [*heads[1:], None], strict=True):
        text = page[head.end() : after.start() if after else len(page)].split("\n(marking-")[0]
        found[head["label"]] = Scheme(
            head["anchor"], head["number"], head["title"], int(head["points"]), bool(head["beside"]), text
        )
    return found


def read_exercises() -> dict[str, Exercise]:
    """Label → exercise, of all chapters in order."""
    found: dict[str, Exercise] = {}
    for path in CHAPTERS:
        label = None
        for cell in nbformat.read(path, as_version=4).cells:
            head = re.search(r"\{exercise\}[ ★]*(.+)\n:label: (\S+)", cell.source)
            if cell.cell_type == "markdown" and head:
                label = head[2]
                found[label] = Exercise(head[1], False)
            elif cell.cell_type == "markdown" and "{solution-start}" in cell.source:
                label = None
            elif cell.cell_type == "code" and label and CHECK.search(cell.source):
                found[label] = Exercise(found[label].title, True)
    return found


SCHEMES, EXERCISES = read_schemes(PAGE), read_exercises()
BY_CHECK = [label for *_, named in ROW.findall(PAGE) for label in re.findall(r"<(ex-[\d-]+)>", named)]


def test_each_exercise_has_a_scheme_or_a_check_that_decides_it() -> None:
    assert not set(SCHEMES) & set(BY_CHECK)
    assert sorted([*SCHEMES, *BY_CHECK]) == sorted(EXERCISES)
    assert list(SCHEMES) == [label for label in EXERCISES if label in SCHEMES], "not in the chapters' order"


def test_what_a_check_is_said_to_decide_has_one() -> None:
    assert [label for label in BY_CHECK if not EXERCISES[label].checked] == []
    said = {label: scheme.beside_a_check for label, scheme in SCHEMES.items()}
    assert said == {label: EXERCISES[label].checked for label in SCHEMES}


@pytest.mark.parametrize("label", SCHEMES)
def test_a_scheme_names_its_exercise_and_its_points_add_up(label: str) -> None:
    scheme = SCHEMES[label]
    _, chapter, number = label.split("-")
    assert (scheme.anchor, scheme.number) == (f"{chapter}-{number}", f"{int(chapter)}.{number}")
    assert scheme.title == EXERCISES[label].title
    lines = [int(line) for line in re.findall(r"^(?:: |  )(\d+)\. \S.*[.\"')]$", scheme.text, flags=re.M)]
    assert lines == list(range(1, scheme.points + 1)), "one line for each point"
    (earned, of, which), *others = OFTEN.findall(scheme.text)
    assert not others
    kept = [int(line) for line in which.split(", ")] if which else []
    assert (int(earned), int(of)) == (len(kept), scheme.points)
    assert kept == sorted(set(kept) & set(lines))
    assert len(kept) < scheme.points


def test_the_table_has_the_sums_of_all_chapters() -> None:
    rows = ROW.findall(PAGE)
    assert [chapter for _, chapter, *_ in rows] == [path.name[:2] for path in CHAPTERS]
    for shown, chapter, points, named in rows:
        assert f"\n(marking-{chapter})=\n## Chapter {shown}: " in PAGE
        mine = {label: scheme for label, scheme in SCHEMES.items() if label.startswith(f"ex-{chapter}-")}
        assert int(points) == sum(scheme.points for scheme in mine.values()), chapter
        linked = re.findall(r"\{ref\}`([\d.]+) <ex-(\d\d)-(\d)>`", named)
        assert all((number, of) == (f"{int(of)}.{last}", chapter) for number, of, last in linked)
        assert linked or named == "none"


def test_the_reader_of_schemes_sees_faults() -> None:
    head = "(mark-01-1)=\n{ref}`1.1 · A <ex-01-1>`, 1 point\n: 1. Says it.\n\n"
    good = head + '  *Often:* "No." **0 of 1**. *Say:* "Why?"\n'
    assert read_schemes(good)["ex-01-1"].points == 1
    assert OFTEN.search(good)
    assert not OFTEN.search(good.replace("**0 of 1**", "0 of 1"))
    for bad in (good.replace("1 point", "one point"), good + "\n" + good):
        with pytest.raises(AssertionError):
            read_schemes(bad)


def test_the_page_is_in_the_book_behind_the_guide_and_in_no_copy(tmp_path: Path) -> None:
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    assert files.index("book/marking") == files.index("book/teaching") + 1
    written = students.write_copies(tmp_path, pattern=students.CHAPTERS)
    assert sorted(tmp_path.rglob("*")) == sorted(written)
    text = "\n".join(cell.source for path in written for cell in nbformat.read(path, as_version=4).cells)
    lines = [line.strip(": ") for scheme in SCHEMES.values() for line in scheme.text.splitlines()]
    assert not [line for line in lines if len(line) > 40 and line.split(". ", 1)[-1] in text]
