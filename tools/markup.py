"""Text of slides and exam sheets as HTML: Markdown whose formulas MathJax sets, from files beside the page.

The pages ask no other machine for anything: ``copy_assets`` puts MathJax (for slides also Reveal) beside them.
"""

import html
import json
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import javascript
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

ASSETS = "assets"  # the folder beside the pages
MATHJAX = ("core", "input/tex-base", "[tex]/ams", "[tex]/boldsymbol", "output/chtml", "a11y/assistive-mml")
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
{head}
<style>
{style}
</style>
</head>
<body{attributes}>
{body}
</body>
</html>
"""


def _formula(text: str, options: dict) -> str:
    """Leave a formula to MathJax, between its own delimiters."""
    left, right = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
    return f"{left}{html.escape(text.strip())}{right}"


def _parser() -> MarkdownIt:
    """The Markdown of slides and sheets: CommonMark with tables and dollar formulas, and no raw HTML."""
    parser = MarkdownIt("commonmark", {"html": False, "typographer": True})
    parser.enable(["table", "smartquotes"])
    return parser.use(dollarmath_plugin, renderer=_formula, allow_space=True, double_inline=True)


PARSER = _parser()


def block(text: str) -> str:
    """Markdown with paragraphs, lists, tables and display formulas as HTML."""
    return PARSER.render(text)


def line(text: str) -> str:
    """A single line of Markdown as HTML, without a paragraph around it."""
    return PARSER.renderInline(text)


def plain(text: str) -> str:
    """Markdown without its marks, for a page's title."""
    return re.sub(r"<[^>]+>", "", line(text))


def mathjax(folder: str = ASSETS) -> str:
    """The scripts that set a page's formulas."""
    packages = ["base", *(name.removeprefix("[tex]/") for name in MATHJAX if name.startswith("[tex]/"))]
    settings = {"loader": {"load": [*MATHJAX]}, "tex": {"packages": packages}}
    return (
        f"<script>window.MathJax = {json.dumps(settings)};</script>\n"
        f'<script defer src="{folder}/mathjax/startup.js"></script>'
    )


def page(title: str, body: str, style: str, head: str = "", attributes: str = "") -> str:
    """A whole page."""
    return PAGE.format(title=html.escape(title), head=head, style=style, body=body, attributes=attributes)


def copy_assets(folder: Path, reveal: bool = False) -> None:
    """Put MathJax, and Reveal if wanted, beside pages of a folder.

    Raises:
        FetchError: a package could not be fetched.
    """
    target = folder / ASSETS
    shutil.copytree(javascript.install() / "mathjax", target / "mathjax", dirs_exist_ok=True)
    if reveal:
        source = javascript.install(javascript.SLIDE_TARGET, javascript.SLIDE_PINS)
        shutil.copytree(source / "reveal", target / "reveal", dirs_exist_ok=True)
