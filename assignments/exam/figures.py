"""Small pictures for questions, as SVG without any colour that a black and white printer would lose."""

from __future__ import annotations

import html
from collections.abc import Sequence

FONT = 'font-family="sans-serif" font-size="12"'


def _svg(width: float, height: float, alt: str, parts: Sequence[str]) -> str:
    """A picture with words for those who do not see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'width="{width:g}" height="{height:g}" aria-label="{html.escape(alt)}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, words: object, anchor: str = "middle") -> str:
    """Words at a place."""
    inner = html.escape(str(words))
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {FONT}>{inner}</text>'


def number_line(rows: dict[str, Sequence[float]], low: float, high: float, step: float) -> str:
    """Points above a line with ticks: a row of crosses for the first name, circles for the second."""
    left, width, gap = 90.0, 470.0, 26.0
    scale = width / (high - low)
    base = 14 + gap * len(rows)
    parts = [f'<line x1="{left}" y1="{base}" x2="{left + width}" y2="{base}" stroke="black"/>']
    ticks = round((high - low) / step)
    for tick in range(ticks + 1):
        x = left + tick * step * scale
        parts.append(f'<line x1="{x:g}" y1="{base}" x2="{x:g}" y2="{base + 5}" stroke="black"/>')
        parts.append(_text(x, base + 19, f"{low + tick * step:g}"))
    for place, (name, values) in enumerate(rows.items()):
        y = 14 + gap * place + gap / 3
        parts.append(_text(left - 12, y + 4, name, "end"))
        for value in values:
            x = left + (value - low) * scale
            if place == 0:
                parts.append(
                    f'<path d="M{x - 4:g} {y - 4:g}l8 8m0 -8l-8 8" stroke="black" stroke-width="1.6"/>'
                )
            else:
                parts.append(
                    f'<circle cx="{x:g}" cy="{y:g}" r="4" fill="none" stroke="black" stroke-width="1.6"/>'
                )
    words = "; ".join(f"{name}: {', '.join(f'{v:g}' for v in values)}" for name, values in rows.items())
    return _svg(left + width + 20, base + 28, f"Points on a line. {words}.", parts)


def grid(rows: Sequence[Sequence[object]], names: Sequence[str] = (), head: Sequence[object] = ()) -> str:
    """A table of boxes with a number in each."""
    size, left, top = 44, 8 + 9 * max([0, *map(len, names)]), 18 if head else 4
    parts = []
    for column, word in enumerate(head):
        parts.append(_text(left + size * (column + 0.5), 12, word))
    for number, row in enumerate(rows):
        y = top + 30 * number
        if names:
            parts.append(_text(left - 8, y + 19, names[number], "end"))
        for column, value in enumerate(row):
            x = left + size * column
            parts.append(
                f'<rect x="{x}" y="{y}" width="{size}" height="30" fill="none" stroke="black"/>'
                + _text(x + size / 2, y + 19, value)
            )
    width = left + size * max(map(len, rows)) + 4
    words = "; ".join(" ".join(map(str, row)) for row in rows)
    return _svg(width, top + 30 * len(rows) + 4, f"A grid of numbers. {words}.", parts)


def curve(points: Sequence[tuple[float, float]], x_label: str, y_label: str) -> str:
    """A line through points, with the value beside each of them."""
    left, top, width, height = 60.0, 16.0, 380.0, 150.0
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(0.0, *ys), max(ys) * 1.12
    places = [
        (
            left + width * (x - min(xs)) / (max(xs) - min(xs)),
            top + height * (high - y) / (high - low),
        )
        for x, y in points
    ]
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
    parts = [
        f'<path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="black"/>',
        f'<path d="{path}" fill="none" stroke="black" stroke-width="1.6"/>',
        _text(left + width / 2, top + height + 34, x_label),
        f'<g transform="rotate(-90 16 {top + height / 2:g})">{_text(16, top + height / 2, y_label)}</g>',
    ]
    for (x, y), (px, py) in zip(points, places, strict=True):
        parts.append(f'<circle cx="{px:g}" cy="{py:g}" r="3.5"/>')
        parts.append(_text(px + 6, py - 8, f"{y:g}", "start") + _text(px, top + height + 17, f"{x:g}"))
    words = ", ".join(f"{y:g} at {x:g}" for x, y in points)
    return _svg(left + width + 30, top + height + 44, f"A curve: {words}.", parts)
