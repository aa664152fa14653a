"""Make an exam and, apart from it, its solutions: numbers, networks and figures are drawn from a secret seed.

    make exam SEED=YOUR-SECRET                     ninety minutes from all chapters, to _build/exam
    make exam SEED=YOUR-SECRET CHAPTERS="01 02 04" MINUTES=60
    make exam SEED=YOUR-SECRET MINUTES=all         the whole bank, sixty questions

The seed comes from the environment (GANPRUNE_EXAM_SEED), where other users of the machine do not see it. The same seed
and settings give the same sheet. PDF files need Chromium or Chrome; without one the pages are written all the same.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "assignments"))

import javascript
import markup
import printing
from exam import BANK, Entry, Question
from exam.question import DIFFICULTIES, written

ROOT = Path(__file__).resolve().parents[1]
SEED = "GANPRUNE_EXAM_SEED"
SHORT = 8  # letters: a shorter seed can be found by trying
RULES = (
    "Logarithms are natural unless a base is named. Give numbers with three significant digits, and the way to "
    "them: the way counts, and the right way with a wrong number gives half of a part's points. A calculator without "
    "a network is allowed. Points are minutes."
)

MARKING = "The right way with a wrong number gives half of a part's points."


class ExamError(ValueError):
    """No sheet can be made of this; the message says why."""


def choose(seed: str, chapters: Sequence[int], minutes: int | None) -> list[Entry]:
    """Choose questions for an exam: chapters take turns until the time is spent, and each difficulty has its turn.

    Args:
        seed: decides what is chosen.
        chapters: numbers of chapters.
        minutes: the time, or None for all questions of the chapters.

    Raises:
        ExamError: a chapter has no questions, or none fits into the time.
    """
    known = {entry.chapter for entry in BANK.values()}
    if unknown := sorted(set(chapters) - known):
        raise ExamError(f"no questions on chapter {unknown[0]}; there are some on {sorted(known)}")
    pool = [entry for entry in BANK.values() if entry.chapter in chapters]
    if minutes is None:
        return pool
    draw = random.Random(hashlib.sha256(f"{seed}\0choice".encode()).digest())
    waiting = {chapter: [entry for entry in pool if entry.chapter == chapter] for chapter in chapters}
    for entries in waiting.values():
        draw.shuffle(entries)
    chosen: list[Entry] = []
    counts = dict.fromkeys(DIFFICULTIES, 0)
    while True:
        left = minutes - sum(entry.minutes for entry in chosen)
        fits = [entry for entries in waiting.values() for entry in entries if entry.minutes <= left]
        if not fits:
            break
        turns = {chapter: sum(entry.chapter == chapter for entry in chosen) for chapter in chapters}
        fewest = min(turns[entry.chapter] for entry in fits)
        candidates = [entry for entry in fits if turns[entry.chapter] == fewest]
        rarest = min(counts[entry.difficulty] for entry in candidates)
        entry = draw.choice([entry for entry in candidates if counts[entry.difficulty] == rarest])
        waiting[entry.chapter].remove(entry)
        counts[entry.difficulty] += 1
        chosen.append(entry)
    if not chosen:
        raise ExamError(f"no question fits into {minutes} minutes")
    return sorted(chosen, key=lambda entry: (entry.chapter, entry.difficulty, entry.name))


def mark(seed: str) -> str:
    """Six letters that stand on a sheet and on its solutions, so that they are not mixed up."""
    return hashlib.sha256(f"{seed}\0mark".encode()).hexdigest()[:6]


def parted(text: str) -> str:
    """Markdown in which each of the parts (a), (b), (c) is a paragraph of its own."""
    return re.sub(r"(?:(?:(?<=[.?!])|(?<=[.?!]\)))[ \n]+|\n+)(\([a-f]\))\s", r"\n\n\1 ", text)


def points_of_parts(question: Question) -> str:
    """The points of the parts of a question, in words."""
    return ", ".join(f"({letter}) {points}" for letter, points in zip("abcdef", question.parts, strict=False))


def section(number: int, question: Question, solved: bool) -> str:
    """A question as it is printed; with the way to its answer if wanted."""
    place = f"chapter {question.chapter} · {DIFFICULTIES[question.difficulty]} · {question.minutes} points"
    parts = [f'<h2><span>{number}. {question.title}</span><span class="place">{place}</span></h2>']
    parts.append(f'<p class="parts">Points: {points_of_parts(question)}</p>')
    parts.append(markup.block(parted(question.text)))
    if question.figure:
        parts.append(f'<div class="figure">{question.figure}</div>')
    if solved:
        parts.append(f'<div class="way">{markup.block(parted(question.solution))}</div>')
        values = "; ".join(f"{name}: {written(value)}" for name, value in question.answer.items())
        parts.append(f'<p class="answer"><strong>To compare:</strong> {markup.line(values)}</p>')
    return f"<section>{''.join(parts)}</section>"


def page(questions: Sequence[Question], code: str, solved: bool) -> str:
    """The sheet, or its solutions."""
    minutes = sum(question.minutes for question in questions)
    title = "Solutions" if solved else "Exam"
    count = (
        f"{len(questions)} question{'s' if len(questions) > 1 else ''}, {minutes} minutes, {minutes} points"
    )
    head = f"<h1>{title}</h1><p>Pruning Generative Adversarial Networks. {count}. Sheet {code}.</p>"
    if solved:
        head += f"<p>{MARKING}</p>"
    else:
        head += f'<p>{RULES}</p><div class="who"><span>Name</span><span>Id</span><span>Date</span></div>'
    body = "".join(section(number, each, solved) for number, each in enumerate(questions, start=1))
    style = (ROOT / "tools" / "exam.css").read_text(encoding="utf-8")
    attributes = ' class="solutions"' if solved else ""
    whole = f"<header>{head}</header>{body}"
    return markup.page(f"{title} {code}", whole, style, markup.mathjax(), attributes)


def make(
    output: Path, seed: str, chapters: Sequence[int], minutes: int | None, with_pdf: bool = True
) -> list[Question]:
    """Write the sheet and its solutions into two folders, and return the questions.

    Raises:
        ExamError: no sheet can be made of this.
        FetchError: MathJax could not be fetched.
    """
    questions = [entry.drawn(seed) for entry in choose(seed, chapters, minutes)]
    for name, solved in (("sheet", False), ("solutions", True)):
        folder = output / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        markup.copy_assets(folder)
        file = folder / f"{name}.html"
        file.write_text(page(questions, mark(seed), solved), encoding="utf-8")
        if with_pdf:
            try:
                printing.print_pages({file: file.with_suffix(".pdf")})
            except printing.NoBrowserError as problem:
                print(problem, file=sys.stderr)
                with_pdf = False
    return questions


def minutes_of(text: str) -> int | None:
    """Return a number of minutes, or None for "all", for argparse."""
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of minutes or all, got {text!r}")
    return int(text)


def main() -> int:
    """Run the command line."""
    everywhere = sorted({entry.chapter for entry in BANK.values()})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "_build" / "exam", help="folder to write to")
    parser.add_argument(
        "--chapters", nargs="+", type=int, default=everywhere, metavar="NN", help="chapters (default: all)"
    )
    parser.add_argument("--minutes", type=minutes_of, default=90, help="the time, or all (default: 90)")
    parser.add_argument("--no-pdf", action="store_true", help="write the pages alone")
    arguments = parser.parse_args()
    seed = os.environ.get(SEED, "")
    if not seed:
        print("error: choose a secret: make exam SEED=YOUR-SECRET", file=sys.stderr)
        return 1
    if len(seed) < SHORT:
        print(
            f"A seed of fewer than {SHORT} letters can be found by trying; choose a longer one.",
            file=sys.stderr,
        )
    try:
        questions = make(
            arguments.output.resolve(), seed, arguments.chapters, arguments.minutes, not arguments.no_pdf
        )
    except (ExamError, javascript.FetchError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    where, minutes = os.path.relpath(arguments.output), sum(question.minutes for question in questions)
    print(f"Sheet {mark(seed)}: {len(questions)} questions, {minutes} minutes.")
    print(f"To hand out: {where}/sheet    For you: {where}/solutions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
