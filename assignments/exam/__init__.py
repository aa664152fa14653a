"""A bank of sixty questions whose numbers are drawn from a secret seed; `tools/exam_sheets.py` makes sheets of it."""

from exam import (
    chapter_01,
    chapter_02,
    chapter_03,
    chapter_04,
    chapter_05,
    chapter_06,
    chapter_07,
    chapter_10,
    chapter_13,
)
from exam.question import BANK, Draft, Entry, Question

__all__ = [
    "BANK",
    "Draft",
    "Entry",
    "Question",
    "chapter_01",
    "chapter_02",
    "chapter_03",
    "chapter_04",
    "chapter_05",
    "chapter_06",
    "chapter_07",
    "chapter_10",
    "chapter_13",
]
