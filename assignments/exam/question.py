"""What a question of the exam is, how it is drawn from a secret seed, and how its numbers are written."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

DIFFICULTIES = {1: "warm-up", 2: "standard", 3: "hard"}


@dataclass(frozen=True)
class Draft:
    """What a function of the bank draws: a question without its place in the bank.

    Attributes:
        text: the question in Markdown, with formulas between dollars.
        solution: the way to the answer, with the drawn numbers in it.
        answer: each thing that was asked → its value, in full precision.
        given: the drawn numbers, from which a test computes the answer in another way.
        figure: a picture that belongs to the question, as SVG.
    """

    text: str
    solution: str
    answer: dict[str, Any]
    given: dict[str, Any]
    figure: str = ""


@dataclass(frozen=True)
class Question:
    """A question with its numbers, ready to be printed; `Draft` says what its parts are."""

    chapter: int
    difficulty: int
    minutes: int
    text: str
    solution: str
    answer: dict[str, Any]
    name: str = ""
    title: str = ""
    given: dict[str, Any] = field(default_factory=dict)
    figure: str = ""
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A question of the bank before its numbers are drawn; `parts` are the points of (a), (b), ..."""

    name: str
    title: str
    chapter: int
    difficulty: int
    minutes: int
    parts: tuple[int, ...]
    draft: Callable[[random.Random], Draft]

    def drawn(self, seed: str) -> Question:
        """Return the question whose numbers belong to a seed."""
        made = self.draft(stream(seed, self.name))
        place = {
            "chapter": self.chapter,
            "difficulty": self.difficulty,
            "minutes": self.minutes,
            "parts": self.parts,
        }
        return Question(**place, **vars(made), name=self.name, title=self.title)


BANK: dict[str, Entry] = {}


def question(title: str, chapter: int, difficulty: int, minutes: int, parts: tuple[int, ...]) -> Callable:
    """Enter a function into the bank: it gets a source of random numbers and returns a `Draft`."""

    def enter(draft: Callable[[random.Random], Draft]) -> Callable[[random.Random], Draft]:
        name = f"{chapter:02}-{draft.__name__.replace('_', '-')}"
        if name in BANK or difficulty not in DIFFICULTIES:
            raise ValueError(f"{name} is there already, or has no difficulty {difficulty}")
        if sum(parts) != minutes:
            raise ValueError(f"the parts of {name} have {sum(parts)} minutes of {minutes}")
        BANK[name] = Entry(name, title, chapter, difficulty, minutes, parts, draft)
        return draft

    return enter


def stream(seed: str, name: str) -> random.Random:
    """Return the random numbers of one question: they depend on the seed and on nothing else."""
    return random.Random(hashlib.sha256(f"{seed}\0{name}".encode()).digest())


# ---------------------------------------------------------------- numbers in words


def num(value: Any, digits: int = 4) -> str:
    """A number as it stands in a formula."""
    if isinstance(value, Fraction):
        if value.denominator == 1:
            return num(int(value))
        sign = "-" if value < 0 else ""
        return rf"{sign}\tfrac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", r"\,")
    text = f"{value:.{digits}g}"
    if abs(value) < 1e-12:  # what rounding has left of a zero
        return "0"
    if 1e4 <= abs(float(text)) < 1e7:
        return f"{float(text):,.10g}".replace(",", r"\,")
    mantissa, _, exponent = text.partition("e")
    return rf"{mantissa} \times 10^{{{int(exponent)}}}" if exponent else mantissa


def listed(values: Sequence[Any], digits: int = 4) -> str:
    """Numbers of a row, for a text: a formula each, so that a line may end between them. Dollars stand around it."""
    return ",$ $".join(num(value, digits) for value in values)


def vector(values: Sequence[Any], digits: int = 4) -> str:
    """A row vector as it stands in a formula."""
    return f"({', '.join(num(value, digits) for value in values)})"


def matrix(rows: Sequence[Sequence[Any]]) -> str:
    """A matrix as it stands in a formula."""
    lines = r" \\ ".join(" & ".join(num(value) for value in row) for row in rows)
    return rf"\begin{{pmatrix}} {lines} \end{{pmatrix}}"


def plus(values: Sequence[Any], digits: int = 4) -> str:
    """Numbers of a sum as they stand in a formula; negative ones in brackets."""
    return " + ".join(f"({num(v, digits)})" if v < 0 else num(v, digits) for v in values)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; what is no text is written as a formula."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[x if isinstance(x, str) else f"${num(x)}$" for x in row] for row in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def written(value: Any) -> str:
    """A value of an answer in words, for the last line of a solution."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(written(one) for one in value) + ")"
    return f"${num(value)}$"
