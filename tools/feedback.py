"""The pages that grading writes, feedback and the capstone's leaderboard: plain HTML that loads nothing."""

from __future__ import annotations

import csv
from html import escape
from pathlib import Path
from typing import Any

from points import points_for_words

TOTAL = ("<!-- total -->", "<!-- /total -->")
"""What stands around the sum of all points, which changes when the words are marked."""
STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #8886; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
main { overflow-x: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem; background: #8882; }
pre.error { border-left: 4px solid #c60; }
"""


def page(title: str, body: str) -> str:
    """Return a page of HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n<h1>{escape(title)}</h1>\n"
        f"{body}\n</main></body></html>\n"
    )


def feedback_page(assignment: str, student: str, source: Any, marked: Any, titles: dict[str, str]) -> str:
    """Return what a student reads: points and words for each test, and what each of his own cells did."""
    asks = {
        cell.metadata["nbgrader"]["grade_id"]: cell.metadata["ganprune"].get("asks", "")
        for cell in source.cells
        if "ganprune" in cell.metadata and "nbgrader" in cell.metadata
    }
    got, of = sum(mark.points for mark in marked.marks), sum(mark.of for mark in marked.marks)
    parts = [
        f"<p>{escape(student)}: <strong>{got:g} of {of:g} points</strong> by the tests.</p>",
        TOTAL[0] + TOTAL[1],
    ]
    if marked.note:
        parts.append(f"<p>{escape(marked.note[:1].upper() + marked.note[1:])}.</p>")
    parts.append(
        '<table><thead><tr><th scope="col">exercise</th><th scope="col">what was asked</th>'
        '<th scope="col" class="number">points</th><th scope="col">what was seen</th></tr></thead><tbody>'
    )
    for mark in marked.marks:
        head = f"{mark.exercise} · {titles.get(mark.exercise, '')}"
        seen = mark.note or ("as asked" if mark.points == mark.of else "not run")
        parts.append(
            f"<tr><td>{escape(head)}</td><td>{escape(asks.get(mark.name, ''))}</td>"
            f'<td class="number">{mark.points:g} of {mark.of:g}</td><td>{escape(seen)}</td></tr>'
        )
    parts.append("</tbody></table>")
    if marked.measures:
        parts.append("<h2>Measured</h2><ul>")
        parts += [f"<li>{escape(name)}: {value:.4g}</li>" for name, value in marked.measures.items()]
        parts.append("</ul>")
    if marked.cells:
        parts.append("<h2>Your cells, as they ran</h2>")
    for text, shown, error in marked.cells:
        parts.append(f"<pre>{escape(text)}</pre>")
        if shown and not error:
            parts.append(f"<pre>{escape(shown)}</pre>")
        if error:
            parts.append(f'<pre class="error">{escape(error)}</pre>')
    if marked.written.strip():
        parts.append(f"<h2>In words</h2><pre>{escape(marked.written)}</pre>")
    return page(f"Feedback: {assignment}", "\n".join(parts))


def with_total(text: str, total: dict[str, Any], words: dict[str, Any]) -> str:
    """Return a page of feedback that says what the answer in words gave, and the sum of all points.

    Args:
        text: the page.
        total: the row with the sum, from the table of points.
        words: the row of the words, empty for an assignment without.
    """
    before, mark, rest = text.partition(TOTAL[0])
    if not mark or TOTAL[1] not in rest or not words:
        return text
    of = escape(str(words["of"]))
    if points_for_words(words) is None:
        told = f"<p>The answer in words gives up to {of} points more. A person reads it; it is not marked yet.</p>"
    else:
        got = f"{points_for_words(words):g} of {of} points for the answer in words"
        told = f"<p>{got}, <strong>{total['points']} of {total['of']}</strong> in all.</p>"
    return before + TOTAL[0] + told + TOTAL[1] + rest.partition(TOTAL[1])[2]


def leaderboard_page(table: Path) -> str:
    """Return the leaderboard of the capstone, made from the table of points alone."""
    entries: dict[str, dict[str, float]] = {}
    with table.open(newline="", encoding="utf-8-sig") as handle:
        for row in csv.DictReader(handle):
            if row["value"]:
                entries.setdefault(row["student"], {})[row["exercise"]] = float(row["value"])
    judged = {student: found for student, found in entries.items() if "digit_fid" in found}
    ranked = sorted(judged, key=lambda student: judged[student]["digit_fid"])
    images = {int(found["images"]) for found in judged.values() if "images" in found}
    count = " or ".join(f"{n:,}" for n in sorted(images))
    parts = [
        f"<p>Generators that keep at most a tenth of their weights, judged with {count} images each against a split on "
        "which nothing was chosen. Lower digit-FID is better; recall says how much of the variety of real digits is "
        "there. One generator is one seed, so neighbours on this list may owe their places to luck.</p>",
        '<table><thead><tr><th scope="col" class="number">place</th><th scope="col">student</th>',
    ]
    columns = {"digit_fid": "digit-FID", "precision": "precision", "recall": "recall", "kept": "weights kept"}
    parts += [f'<th scope="col" class="number">{head}</th>' for head in columns.values()]
    parts.append("</tr></thead><tbody>")
    for place, student in enumerate(ranked, 1):
        cells = [f'<td class="number">{place}</td><td>{escape(student)}</td>']
        for name in columns:
            value = judged[student].get(name)
            text = "" if value is None else f"{value:,.0f}" if name == "kept" else f"{value:.3g}"
            cells.append(f'<td class="number">{text}</td>')
        parts.append(f"<tr>{''.join(cells)}</tr>")
    parts.append("</tbody></table>")
    return page("Leaderboard of the capstone", "\n".join(parts))
