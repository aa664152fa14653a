"""Print pages to PDF with Chromium or Chrome, once their formulas are set and their pictures are there."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import accessibility
from playwright.sync_api import sync_playwright

READY = """
async () => {
  await window.MathJax?.startup?.promise;
  await Promise.all([...document.images].map((image) => image.decode()));
  await document.fonts.ready;
}
"""
FOOT = (
    '<div style="width: 100%; font: 8px sans-serif; color: #444; padding: 0 15mm; display: flex; '
    'justify-content: space-between"><span class="title"></span>'
    '<span><span class="pageNumber"></span> / <span class="totalPages"></span></span></div>'
)
MARGINS = {"top": "14mm", "bottom": "16mm", "left": "15mm", "right": "15mm"}


class NoBrowserError(RuntimeError):
    """No browser was found that could print."""


def browser_path() -> str:
    """Return the browser to print with.

    Raises:
        NoBrowserError: there is none on the path.
    """
    found = next(filter(None, map(shutil.which, accessibility.NAMES)), None)
    if found is None:
        names = ", ".join(accessibility.NAMES[:-1])
        raise NoBrowserError(f"no PDF was written, because none of {names} is on the path")
    return found


def print_pages(pages: Mapping[Path, Path]) -> None:
    """Print HTML files to PDF files, on A4.

    Args:
        pages: HTML file → PDF file. All HTML files lie in one folder, which is served while they are printed.

    Raises:
        NoBrowserError: there is no browser.
    """
    path = browser_path()
    folder = next(iter(pages)).parent
    with accessibility.served(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=accessibility.FLAGS)
        for source, target in pages.items():
            page = browser.new_page()
            page.goto(f"{address}{source.name}", wait_until="networkidle")
            page.evaluate(READY)
            page.pdf(
                path=target,
                format="A4",
                margin=MARGINS,
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOT,
                tagged=True,
            )
            page.close()
        browser.close()
