"""Check every page of the built book against the accessibility rules of WCAG 2.2, levels A and AA, with axe.

    python tools/accessibility.py                              the book in _build/html
    python tools/accessibility.py --site FOLDER --pages PAGE   another build, some pages

Every page is looked at 1,280 and 390 pixels wide, in the light and in the dark theme.

It needs Chromium or Chrome, the ``test`` extra and, once, npm. The last line counts what was found; the exit status is
1 if that is not zero.
"""

import argparse
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import javascript
import yaml
from playwright.sync_api import Browser, Page, sync_playwright
from serve import QuietHandler

ROOT = Path(__file__).resolve().parents[1]
WIDTHS, THEMES = (1280, 390), ("light", "dark")
OTHERS = ("search", "genindex", "py-modindex")  # pages that the table of contents does not list
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
MAC_BROWSER = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", MAC_BROWSER)
FLAGS = ["--no-sandbox", "--disable-gpu"]
READY = "async () => { await window.MathJax?.startup?.promise; }"
# One line per element that breaks a rule: the rule, what it is, where, and what to do.
CHECK = """
async (rules) => (await axe.run(document, { runOnly: rules, resultTypes: ["violations"] })).violations.flatMap(
  (rule) => rule.nodes.map((node) => `${rule.id} (${rule.help}): ${node.target.join(" ")}: ${
    node.html.slice(0, 150)}: ${[...node.any, ...node.all, ...node.none].map((each) => each.message).join("; ")}`))
"""


def pages_of(site: Path) -> list[str]:
    """Return the pages of a site: those in the table of contents, and the search and index pages."""
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    listed = [page for part in contents["parts"] for page in part["chapters"]]
    found = [
        contents["root"],
        *(each["file"] for page in listed for each in (page, *page.get("sections", []))),
    ]
    return found + [page for page in OTHERS if (site / f"{page}.html").is_file()]


def axe_script() -> str:
    """Return axe's source, fetched if need be."""
    folder = javascript.install(javascript.TEST_TARGET, javascript.TEST_PINS)
    return (folder / "axe" / "axe.min.js").read_text(encoding="utf-8")


def violations(page: Page, script: str) -> list[str]:
    """Return what a page that has been loaded breaks, one line per element."""
    page.evaluate(READY)
    page.evaluate(script)
    return page.evaluate(CHECK, RULES)


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a folder on this machine; the value is its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def check_all(browser: Browser, address: str, pages: Sequence[str]) -> int:
    """Check pages at every width and in every theme, print what is found, and return how much it is."""
    script, count = axe_script(), 0
    for width in WIDTHS:
        for theme in THEMES:
            with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme) as context:
                for name in pages:
                    page = context.new_page()
                    page.goto(f"{address}{name}.html", wait_until="networkidle")
                    found = violations(page, script)
                    count += len(found)
                    for line in found:
                        print(f"{name} at {width}, {theme}: {line}", flush=True)
                    page.close()
    return count


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--site", type=Path, default=ROOT / "_build" / "html", help="built book (default: _build/html)"
    )
    parser.add_argument("--pages", nargs="+", metavar="PAGE", help="pages such as book/setup (default: all)")
    arguments = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, NAMES)), None)
    if browser_path is None:
        print(
            f"error: no browser was found; one of {', '.join(NAMES[:-1])} must be on the path",
            file=sys.stderr,
        )
        return 1
    if not (arguments.site / "index.html").is_file():
        print(f"error: there is no book in {arguments.site}: run `make book` first", file=sys.stderr)
        return 1
    pages = arguments.pages or pages_of(arguments.site)
    try:
        with served(arguments.site) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
            count = check_all(browser, address, pages)
            browser.close()
    except javascript.FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    states = len(WIDTHS) * len(THEMES)
    print(f"{count} violations on {len(pages)} pages, each in {states} states (two widths, two themes)")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
