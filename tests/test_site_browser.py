"""The built site in a browser: it asks nobody else, formulas and diagrams render, and it works on a phone."""

from __future__ import annotations

import accessibility
import pytest
from playwright.sync_api import Browser, Locator, Page, Response
from test_site import CHAPTERS, PAGES, file_of

pytestmark = pytest.mark.site

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
NARROWEST = {"width": 320, "height": 640}  # WCAG's reflow: down to here nobody scrolls in two directions


class Visit:
    """A page in the browser, with what it asked for and what went wrong; a script runs before those of the page."""

    def __init__(
        self,
        browser: Browser,
        address: str,
        page: str,
        viewport: dict[str, int],
        script: str = "",
        **options: str,
    ) -> None:
        self.problems: list[str] = []
        self.answers: list[Response] = []
        self.context = browser.new_context(viewport=viewport, **options)
        self.context.add_init_script(script)
        self.page: Page = self.context.new_page()
        self.page.on("request", lambda request: self.note_request(request.url, address))
        self.page.on("response", self.note_answer)
        self.page.on("pageerror", lambda error: self.problems.append(f"script error: {error}"))
        self.page.on("console", self.note_console)
        self.page.goto(f"{address}{page}.html")
        self.page.wait_for_load_state("networkidle")

    def note_request(self, url: str, address: str) -> None:
        """Note a request to anyone but the site."""
        if not url.startswith((address, "data:", "blob:")):
            self.problems.append(f"outside request: {url}")

    def note_answer(self, answer: Response) -> None:
        """Note a file, and whether it is not there."""
        self.answers.append(answer)
        if answer.status >= 400 and not answer.url.endswith("favicon.ico"):
            self.problems.append(f"{answer.status}: {answer.url}")

    def weight(self) -> int:
        """Return how many bytes were loaded, uncompressed and without pictures."""
        loaded = [answer for answer in self.answers if answer.request.resource_type != "image"]
        return sum(len(answer.body()) for answer in loaded if answer.ok)

    def note_console(self, message: object) -> None:
        """Note an error on the console."""
        if getattr(message, "type", "") == "error":
            self.problems.append(f"console: {getattr(message, 'text', '')}")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


CUT_OFF = """
() => [...document.querySelectorAll("main pre, main table, main .output")]
    .filter((part) => part.offsetParent && part.scrollWidth > part.clientWidth + 1)
    .map((part) => part.innerText.slice(0, 200))
"""


@pytest.mark.parametrize("page", PAGES)
def test_a_page_asks_nobody_else_raises_nothing_and_cuts_nothing_off(
    browser: Browser, address: str, page: str
) -> None:
    with Visit(browser, address, page, DESK) as visit:
        assert visit.problems == []
        assert visit.page.evaluate(CUT_OFF) == []
        assert visit.weight() <= heaviest(page)


def heaviest(page: str) -> float:
    """Return how many bytes a page may load without pictures: 2.5 MB with formulas, 0.8 MB without, diagrams more."""
    text = file_of(page).read_text(encoding="utf-8")
    if 'class="mermaid' in text:
        return 4.5e6
    return 2.5e6 if 'class="math' in text else 0.8e6


@pytest.fixture(scope="module")
def axe() -> str:
    return accessibility.axe_script()


@pytest.mark.parametrize("page", [*PAGES, "search"])
def test_a_page_is_accessible(browser: Browser, address: str, page: str, axe: str) -> None:
    with Visit(browser, address, page, DESK) as visit:
        assert accessibility.violations(visit.page, axe) == []


UNREADABLE = """
async () => {
  await window.MathJax?.startup?.promise;
  document.querySelectorAll("main details").forEach((part) => { part.open = true; });
  document.querySelectorAll("main .toggle-hidden").forEach((part) => part.classList.remove("toggle-hidden"));
  dispatchEvent(new Event("resize"));
  const box = (part) => part.getBoundingClientRect(), found = [];
  for (const part of document.querySelectorAll("main *")) {
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(part).overflowX);
    const reached = part.tabIndex >= 0 || part.querySelector("[tabindex='0']");
    if (scrolls && part.scrollWidth > part.clientWidth + 1 && !reached)
      found.push(["no focus", part.outerHTML.slice(0, 200)]);
  }
  for (const formula of document.querySelectorAll("main span.math:not(.scrolls)")) {
    const ends = [...formula.querySelectorAll("mjx-math > *")].map((part) => box(part).right);
    if (Math.max(...ends) > box(formula.parentElement.closest("p, li, dd, td, th, figcaption, div")).right + 2)
      found.push(["cut off", formula.textContent]);
  }
  for (const number of document.querySelectorAll("main div.math .eqno"))
    if (box(number).top < box(number.parentElement.querySelector("mjx-container")).bottom - 1)
      found.push(["covered", number.textContent]);
  for (const cell of document.querySelectorAll("main td"))
    if (cell.offsetParent && cell.textContent.trim().length > 40 && cell.clientWidth < 150)
      found.push(["squeezed", cell.textContent]);
  if (document.documentElement.scrollWidth > innerWidth) found.push(["wide", document.documentElement.scrollWidth]);
  return found;
}
"""


@pytest.mark.parametrize("page", [*CHAPTERS, "book/ledger", "book/teaching", "book/notation"])
def test_formulas_and_tables_can_be_read_on_a_phone(browser: Browser, address: str, page: str) -> None:
    with Visit(browser, address, page, PHONE) as visit:
        assert visit.page.evaluate(UNREADABLE) == []
        visit.page.set_viewport_size(NARROWEST)
        visit.page.wait_for_timeout(300)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= NARROWEST["width"]


def seen_frame(frames: Locator) -> Locator:
    """Return the one frame of a slider that is to be seen."""
    seen = frames.locator(".gp-frame:not([hidden])")
    assert seen.count() == 1
    return seen


def test_the_keyboard_moves_the_frames(browser: Browser, address: str) -> None:
    with Visit(browser, address, CHAPTERS[0], PHONE) as visit:
        frames = visit.page.locator(".gp-frames").first
        slider = frames.locator("input[type=range]")
        slider.scroll_into_view_if_needed()
        before = seen_frame(frames)
        words, label = before.locator("img").get_attribute("alt"), before.locator("figcaption").inner_text()
        slider.focus()
        visit.page.keyboard.press("ArrowRight")
        after = seen_frame(frames)
        assert after.locator("img").get_attribute("alt") not in (words, "", None)
        assert after.locator("figcaption").inner_text() != label
        assert slider.get_attribute("aria-valuetext") == after.locator("figcaption").inner_text()
        drawn = "image => image.decode().then(() => image.naturalWidth > 0 && image.offsetWidth > 200)"
        assert after.locator("img").evaluate(drawn)
        visit.page.keyboard.press("End")
        assert seen_frame(frames).evaluate("frame => frame.nextElementSibling === null")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert visit.problems == []
        visit.page.emulate_media(media="print")
        assert not slider.is_visible()
        assert all(frame.is_visible() for frame in frames.locator(".gp-frame").all())


def test_without_scripts_the_frames_stand_side_by_side(browser: Browser, address: str) -> None:
    with browser.new_context(viewport=DESK, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{address}{CHAPTERS[0]}.html")
        frames = page.locator(".gp-frames").first
        assert not frames.locator("input").is_visible()
        boxes = [frame.bounding_box() for frame in frames.locator(".gp-frame").all()]
        assert len(boxes) > 2
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["x"] < boxes[1]["x"]


def test_only_pages_with_frames_load_their_script() -> None:
    for page in PAGES:
        text = file_of(page).read_text(encoding="utf-8")
        assert ("frames.js" in text) == ('class="gp-frames"' in text), page


@pytest.mark.parametrize("page", ["book/notation", *CHAPTERS])
def test_formulas_render(browser: Browser, address: str, page: str) -> None:
    with Visit(browser, address, page, DESK) as visit:
        wanted = visit.page.locator("main .math").count()
        assert wanted > 0
        # Formulas are drawn one after another: the last one is waited for.
        visit.page.locator("main mjx-container:has(mjx-math)").nth(wanted - 1).wait_for(state="attached")
        assert visit.page.locator("[data-mjx-error], mjx-merror").count() == 0
        assert "\\(" not in visit.page.locator("main").inner_text()


def test_diagrams_render(browser: Browser, address: str) -> None:
    with Visit(browser, address, "book/map", DESK) as visit:
        diagrams = visit.page.locator(".mermaid")
        assert diagrams.count() >= 4
        for index in range(diagrams.count()):
            diagram = diagrams.nth(index)
            diagram.scroll_into_view_if_needed()
            diagram.locator("svg .node").first.wait_for()
            assert diagram.locator("svg").bounding_box()["height"] > 60
            assert "Syntax error" not in diagram.inner_text()
        assert visit.problems == []


@pytest.mark.parametrize("page", PAGES)
def test_a_phone_does_not_scroll_sideways(browser: Browser, address: str, page: str) -> None:
    with Visit(browser, address, page, PHONE) as visit:
        visit.page.wait_for_timeout(300)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("page", CHAPTERS)
def test_folded_code_opens(browser: Browser, address: str, page: str) -> None:
    with Visit(browser, address, page, DESK) as visit:
        folded = visit.page.locator("details.hide").first
        code = folded.locator("pre").first
        assert not code.is_visible()
        folded.locator("summary").click()
        code.wait_for(state="visible")


def test_the_menu_opens_on_a_phone(browser: Browser, address: str) -> None:
    with Visit(browser, address, PAGES[1], PHONE) as visit:
        entry = visit.page.locator(".bd-sidebar-primary a", has_text="Glossary").first
        assert not entry.is_visible()
        visit.page.locator("button.primary-toggle:visible").first.click()
        entry.wait_for(state="visible")
        entry.click()
        visit.page.wait_for_url("**/book/glossary.html")


def test_search_finds_a_chapter(browser: Browser, address: str) -> None:
    with Visit(browser, address, "search", DESK) as visit:
        visit.page.goto(f"{address}search.html?q=sparsity")
        # Results are appended one at a time, so each thing expected is waited for.
        visit.page.locator("#search-results li a[href*='notebooks/']").first.wait_for()
        visit.page.locator("#search-results li").nth(2).wait_for()
        assert visit.problems == []


@pytest.mark.parametrize("page", CHAPTERS)
def test_answers_open(browser: Browser, address: str, page: str) -> None:
    with Visit(browser, address, page, PHONE) as visit:
        answer = visit.page.locator("details.choice").first
        assert not answer.locator("p").first.is_visible()
        answer.locator("summary").click()
        assert answer.locator("p").first.is_visible()
        solution = visit.page.locator(".solution.dropdown").first
        body = solution.locator(".section, section, p:not(.admonition-title)").first
        assert not body.is_visible()
        solution.locator(".admonition-title").click(position={"x": 4, "y": 4})  # beside the link in the title
        body.wait_for(state="visible")


def test_the_dark_theme_can_be_chosen(browser: Browser, address: str) -> None:
    with Visit(browser, address, PAGES[0], DESK) as visit:
        root, seen = visit.page.locator("html"), set()
        for _ in range(3):
            visit.page.locator("button.theme-switch-button:visible").first.click()
            seen.add(root.get_attribute("data-theme"))
        assert {"dark", "light"} <= seen


@pytest.mark.parametrize("page", ["book/intro", "notebooks/06_magnitude_pruning"])
def test_pictures_keep_their_proportions(browser: Browser, address: str, page: str) -> None:
    with Visit(browser, address, page, PHONE) as visit:
        # a lazy picture that was not asked for yet is not awaited by the page itself: decode() waits for each
        ratios = visit.page.evaluate(
            """async () => {
                 const pictures = [...document.querySelectorAll('main img')].filter(i => i.clientWidth)
                 pictures.forEach(i => { i.loading = 'eager' })
                 await Promise.all(pictures.map(i => i.decode()))
                 return pictures.map(i => i.clientWidth * i.naturalHeight / (i.clientHeight * i.naturalWidth))
               }"""
        )
        assert ratios and all(abs(ratio - 1) < 0.02 for ratio in ratios)
