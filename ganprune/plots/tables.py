"""Rows in, a table out, as wide as a line of the book."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

TEXT_WIDTH = 76
"""Characters in a line of the book: what is printed fits into it."""

_COLUMN_WIDTH = (TEXT_WIDTH - 2) // 2
_WHOLE = re.compile(r"\(n = \d+\)")
"""The number of seeds: no line of the page ends inside."""


class Table:
    """Rows under headings: a notebook and the book set it as HTML, everything else as aligned text.

    Args:
        rows: heading → value, the same headings in each row.

    Raises:
        ValueError: if there is no row, or the headings differ.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows = [dict(row) for row in rows]
        if not self.rows:
            raise ValueError("rows must have at least one row, got none")
        self.headings = list(self.rows[0])
        for number, row in enumerate(self.rows):
            if list(row) != self.headings:
                raise ValueError(f"row {number} must have the headings {self.headings}, got {list(row)}")

    def _cells(self) -> list[list[str]]:
        return [[_cell(row[heading]) for heading in self.headings] for row in self.rows]

    def _is_number(self, heading: str) -> bool:
        values = [row[heading] for row in self.rows if row[heading] is not None]
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)

    def _repr_html_(self) -> str:
        sides = ["right" if self._is_number(heading) else "left" for heading in self.headings]

        def line(tag: str, texts: Iterable[str]) -> str:
            pairs = zip(texts, sides, strict=True)
            cells = (f'<{tag} style="text-align: {side}">{_unbroken(t)}</{tag}>' for t, side in pairs)
            return f"<tr>{''.join(cells)}</tr>"

        body = "".join(line("td", cells) for cells in self._cells())
        head = line("th", self.headings)
        return f'<table class="table"><thead>{head}</thead><tbody>{body}</tbody></table>'

    def __repr__(self) -> str:
        """Aligned text; what is wider than a line is wrapped, and further columns follow below under the first one."""
        lines = [[textwrap.wrap(text, _COLUMN_WIDTH) or [""] for text in line] for line in self._lines()]
        widths = [max(len(part) for cell in column for part in cell) for column in zip(*lines, strict=True)]
        blocks: list[list[int]] = []
        for column, width in enumerate(widths):
            if not blocks or sum(widths[c] + 2 for c in blocks[-1]) + width > TEXT_WIDTH:
                blocks.append([0] if column else [])
            blocks[-1].append(column)
        return "\n\n".join(self._aligned(lines, widths, block) for block in blocks)

    def _lines(self) -> list[list[str]]:
        return [self.headings, *self._cells()]

    def _aligned(self, lines: list[list[list[str]]], widths: list[int], columns: list[int]) -> str:
        """Some columns of wrapped cells as text."""
        numbers = {column: self._is_number(self.headings[column]) for column in columns}
        text = []
        for line in lines:
            for parts in zip_longest(*(line[column] for column in columns), fillvalue=""):
                pairs = zip(columns, parts, strict=True)
                cells = (part.rjust(widths[c]) if numbers[c] else part.ljust(widths[c]) for c, part in pairs)
                text.append("  ".join(cells).rstrip())
        return "\n".join(text)


def _unbroken(text: str) -> str:
    """A cell's HTML, in which the number of seeds stays in one line."""
    return html.escape(_WHOLE.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text))


def _cell(value: Any) -> str:
    """A value as a table shows it: three significant digits, yes and no, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
