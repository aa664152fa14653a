"""What prose says about measurements: verdict words agree with the records, and no figure is typed by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ganprune.experiments.claims import shipped_verdicts

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("[0-9]*.ipynb"), ROOT / "README.md"]
)
UNMEASURED = {"changelog.md", "references.md", "contributing.md", "glossary.md", "notation.md"}
MEASURES = r"(?:digit-)?FID|KID|precision|recall|density|coverage|accuracy|seconds|times"
NUMBER = r"(?<![\w.,-])(?:\d[\d,]*(?:\.\d+)?|\.\d+)%?"
TYPED = re.compile(
    rf"(?:{NUMBER}\s+(?:{MEASURES})\b|\b(?:{MEASURES})\s+(?:of|is|was|at|to|from)\s+{NUMBER})", re.IGNORECASE
)


def prose(path: Path) -> list[str]:
    """Return the paragraphs of a page before its exercises, without code, maths, citations and directives."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
        text = text.split("\n## Exercises")[0]
    text = re.sub(r"^(`{3,}|:{3,}).*?^\1\s*$", " ", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", " ", text, flags=re.DOTALL)
    found = re.split(r"\n\s*\n", (path.suffix == ".ipynb" and text) or text)
    return [paragraph for paragraph in found if "{cite" not in paragraph and "{glue" not in paragraph]


@pytest.mark.parametrize(
    "path", [page for page in PAGES if page.name not in UNMEASURED], ids=lambda page: page.name
)
def test_no_measured_figure_is_typed_by_hand(path: Path) -> None:
    found = [match.group() for paragraph in prose(path) for match in TYPED.finditer(paragraph)]
    assert not found, f"glue these from a record or a cell: {found}"


def test_the_lint_sees_what_it_should() -> None:
    for text in (
        "a digit-FID of 7.1",
        "it took 90 seconds",
        "precision is .74 or 0.74",
        "3.5 times faster",
        "a recall of 84%",
    ):
        assert TYPED.search(text), text
    for text in (
        "the FID of two Gaussians",
        "precision and recall",
        "10,000 images",
        "the first time",
        "at times",
    ):
        assert not TYPED.search(text), text


@pytest.mark.parametrize("path", PAGES, ids=lambda page: page.name)
def test_verdict_words_agree_with_the_records(path: Path) -> None:
    known = {claim: found.verdict for claim, found in shipped_verdicts().items()}
    said = re.findall(r"\{says\}`(\S+) ([^`]+)`", path.read_text(encoding="utf-8"))
    wrong = [(claim, word, known.get(claim)) for claim, word in said if known.get(claim) != word]
    assert not wrong, f"claim, said, recorded: {wrong}"
