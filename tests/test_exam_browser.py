"""Exam sheets in a browser: they ask nobody else, formulas are set, nothing is cut off on paper, PDFs are there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import accessibility
import pytest
from conftest import BROWSER
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "assignments"))

import exam_sheets  # noqa: E402

CHAPTERS = [1, 2, 3, 4, 5, 6, 7, 10, 13]
A4 = {"width": 680, "height": 1000}  # what a page's margins leave, in pixels
CUT_OFF = """
() => [...document.querySelectorAll("mjx-container, .figure svg, table, p, h2")]
    .filter((part) => part.getBoundingClientRect().right > document.body.getBoundingClientRect().right + 2)
    .map((part) => part.closest("section").querySelector("h2").innerText)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exam")
    exam_sheets.make(output, "the secret of a teacher", CHAPTERS, None)
    return output


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Browser]:  # after the printing, which has a browser of its own
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=accessibility.FLAGS)
        yield started
        started.close()


@pytest.mark.parametrize("name", ["sheet", "solutions"])
def test_all_sixty_questions_are_whole_on_paper(browser: Browser, folder: Path, name: str) -> None:
    outside: list[str] = []
    with accessibility.served(folder / name) as address:
        page = browser.new_page(viewport=A4)
        page.on(
            "request",
            lambda asked: asked.url.startswith((address, "data:", "blob:")) or outside.append(asked.url),
        )
        page.goto(f"{address}{name}.html", wait_until="networkidle")
        page.evaluate(accessibility.READY)
        assert page.locator("section").count() == 60
        assert page.locator("mjx-container").count() > 300
        assert page.locator("[data-mjx-error], mjx-merror").count() == 0
        assert "$" not in page.locator("body").inner_text()
        assert "\\(" not in page.locator("body").inner_text()
        assert page.evaluate(CUT_OFF) == []
        page.set_viewport_size({"width": 390, "height": 844})  # and on a telephone
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.close()
    assert outside == []
    assert (folder / name / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_nothing_of_the_solutions_lies_beside_the_sheet(folder: Path) -> None:
    names = {path.name for path in (folder / "sheet").iterdir()}
    assert names == {"sheet.html", "sheet.pdf", "assets"}
