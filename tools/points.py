"""The table of points: read, written, brought together with an earlier one, and added up.

A row is a student's exercise in an assignment. The row ``words`` is the teacher's: what stands there as points counts
in the row ``total`` and is never overwritten. The file begins with a byte-order mark, so that Excel shows every name
as it is, and a table that Excel saved with semicolons can be read again.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("student", "assignment", "exercise", "points", "of", "value", "note")
UNMARKED = "yours to mark: write the points into this row, then make totals"
Row = dict[str, Any]


def number(text: Any) -> float | None:
    """Return a number, also one with a decimal comma, or None."""
    try:
        value = float(str(text).strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def safe_cell(text: Any) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    text = str(text).replace("\n", " ").replace("\r", " ")
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t") and number(text) is None else text


def plain_cell(text: str) -> str:
    """Return what `safe_cell` was given."""
    text = text.strip()
    return text[1:] if text[:1] == "'" and safe_cell(text[1:]) == text else text


def write_points(rows: Iterable[Row], path: Path) -> None:
    """Write the table of points."""
    with path.open("w", newline="", encoding="utf-8-sig") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows({key: safe_cell(value) for key, value in row.items()} for row in rows)


def read_points(path: Path) -> list[Row]:
    """Return the rows of a table of points; without a file there are none.

    Raises:
        ValueError: if the file is no such table, so that nobody writes over it.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    head = text.splitlines()[0] if text.strip() else ""
    mark = max(",;\t", key=head.count)
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=mark))
    if not set(COLUMNS[:5]) <= set(head.replace('"', "").split(mark)):
        raise ValueError(
            f"{path} cannot be read as a table of points with the columns {', '.join(COLUMNS)}: save it as CSV "
            "again, or move it away. Nothing was changed"
        )
    found = [{name: plain_cell(str(row.get(name) or "")) for name in COLUMNS} for row in rows]
    return [row for row in found if row["student"] and row["assignment"]]


def place_of(row: Row) -> tuple[str, str]:
    """Return whose row it is, and of which assignment."""
    return row["student"], row["assignment"]


def bring_together(earlier: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return an earlier table with new rows in it.

    New rows replace those of the same student and assignment, except what a teacher gave for words. All others stay.
    """
    replaced = {place_of(row) for row in new}
    marked = {place_of(row): row for row in earlier if row["exercise"] == "words" and row["points"]}
    rows = [row for row in earlier if place_of(row) not in replaced]
    for row in new:
        if row["exercise"] == "words" and place_of(row) in marked:
            kept = marked[place_of(row)]
            row = {**row, "points": kept["points"], "note": kept["note"]}
        rows.append(row)
    return add_up(sorted(rows, key=lambda row: (row["assignment"], row["student"])))


def points_for_words(row: Row) -> float | None:
    """Return what a row of words gives, or None as long as it is not marked, or not with a possible number."""
    got, of = number(row["points"]), number(row["of"])
    return got if got is not None and of is not None and 0 <= got <= of else None


def add_up(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with new totals: of the tests, and of the words where they are marked."""
    sums: dict[tuple[str, str], list[float]] = {}
    rows = [dict(row) for row in rows]
    for row in rows:
        words = row["exercise"] == "words"
        if words:
            given = points_for_words(row)
            if given is not None and row.get("note") == UNMARKED:
                row["note"] = ""
            elif given is None and not row["points"] and not row.get("note"):
                row["note"] = UNMARKED
        if row["exercise"] == "total" or (words and given is None) or number(row.get("of", "")) is None:
            continue
        total = sums.setdefault(place_of(row), [0.0, 0.0])
        total[0] += number(row["points"]) or 0.0
        total[1] += number(row["of"]) or 0.0
    for row in rows:
        if row["exercise"] == "total" and place_of(row) in sums:
            row["points"], row["of"] = (f"{value:g}" for value in sums[place_of(row)])
    return rows


def doubtful(rows: Iterable[Row]) -> list[str]:
    """Return what is wrong with marks for words, in sentences."""
    return [
        f"{row['student']}, {row['assignment']}: {row['points']!r} for words is no number from 0 to {row['of']}, so it "
        "is not in the total"
        for row in rows
        if row["exercise"] == "words" and row["points"] and points_for_words(row) is None
    ]
