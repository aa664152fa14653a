"""The slides in a browser: they ask nobody else, nothing leaves a slide, pictures and formulas are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import accessibility
import decks
import pytest
import slides
from conftest import BROWSER
from playwright.sync_api import Browser, Page, sync_playwright

pytestmark = pytest.mark.site

CHAPTERS = [path.stem for path in decks.chapters() if decks.read_deck(path)]
SCREENS = [(1280, 720), (1920, 1080)]
# What is wrong with the slide that is to be seen; type is measured as on a slide of 1,280 by 720.
PROBLEMS = """
(smallest) => {
  const slide = document.querySelector("section.present .slide"), found = [];
  const box = slide.getBoundingClientRect(), scale = box.width / 1280;
  const foot = slide.querySelector("footer").getBoundingClientRect(), body = slide.querySelector(".body");
  const inside = (part, area, bottom) => {
    const at = part.getBoundingClientRect();
    return !at.width || (at.left > area.left - 1 && at.right < area.right + 1 && at.top > area.top - 1
      && at.bottom < bottom + 1);
  };
  if (slide.scrollHeight > slide.clientHeight + 1 || slide.scrollWidth > slide.clientWidth + 1) {
    found.push(`the slide overflows: ${slide.scrollWidth} by ${slide.scrollHeight}`);
  }
  for (const part of slide.querySelectorAll("h1, h2, li, img, pre, table, mjx-container, .points, .media")) {
    if (!inside(part, box, foot.top)) { found.push(`${part.tagName} leaves the slide: ${part.innerText}`); }
  }
  for (const part of body.children) {
    if (!inside(part, body.getBoundingClientRect(), body.getBoundingClientRect().bottom)) {
      found.push(`${part.className} leaves its place`);
    }
  }
  for (const code of slide.querySelectorAll("pre")) {
    if (code.scrollWidth > code.clientWidth + 1) { found.push(`code is cut off: ${code.innerText.slice(0, 50)}`); }
  }
  for (const part of slide.querySelectorAll("h1, h2, li, pre, td, th, footer")) {
    const type = parseFloat(getComputedStyle(part).fontSize);
    if (type < smallest) { found.push(`type of ${type} pixels: ${part.innerText.slice(0, 50)}`); }
  }
  for (const image of slide.querySelectorAll("img")) {
    const at = image.getBoundingClientRect();
    if (!at.width) { continue; }
    if (!(image.complete && image.naturalWidth)) { found.push(`a picture is not loaded: ${image.alt}`); }
    if (at.height / scale < 100 || at.width / scale < 200) { found.push(`a picture is tiny: ${image.alt}`); }
  }
  if (slide.querySelector("[data-mjx-error], mjx-merror") || /\\\\[(\\[]/.test(slide.innerText)) {
    found.push("a formula is not set");
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("slides")
    slides.make(output)
    return output


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with accessibility.served(folder) as served:
        yield served


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Browser]:  # after the printing, which has a browser of its own
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=accessibility.FLAGS)
        yield started
        started.close()


def opened(browser: Browser, address: str, name: str, screen: tuple[int, int], problems: list[str]) -> Page:
    """Open a page, note what it asks for and what goes wrong, and wait until it is whole."""
    page = browser.new_page(viewport={"width": screen[0], "height": screen[1]})
    page.on(
        "request",
        lambda asked: (
            asked.url.startswith((address, "data:", "blob:")) or problems.append(f"outside: {asked.url}")
        ),
    )
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    page.on(
        "response",
        lambda answer: (
            answer.status >= 400
            and not answer.url.endswith("favicon.ico")
            and problems.append(f"{answer.status}: {answer.url}")
        ),
    )
    page.goto(f"{address}{name}.html", wait_until="networkidle")
    return page


@pytest.mark.parametrize("screen", SCREENS, ids=["720", "1080"])
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_slide_is_whole(browser: Browser, address: str, chapter: str, screen: tuple[int, int]) -> None:
    problems: list[str] = []
    page = opened(browser, address, chapter, screen, problems)
    page.wait_for_selector("html[data-ready=yes]")
    assert page.evaluate("Reveal.getTotalSlides()") == 12
    for number in range(12):
        page.evaluate(f"Reveal.slide({number}, 0, 0)")  # with what waits
        page.wait_for_function(
            "[...document.querySelectorAll('section.present img')].every((i) => i.complete)"
        )
        problems += [f"slide {number + 1}: {line}" for line in page.evaluate(PROBLEMS, 12.5)]
    page.close()
    assert problems == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_keys_move_on_and_frames_move_too(browser: Browser, address: str, chapter: str) -> None:
    problems: list[str] = []
    page = opened(browser, address, chapter, SCREENS[0], problems)
    page.wait_for_selector("html[data-ready=yes]")
    if waits := page.locator("section.present .fragment").all():
        assert not any(part.is_visible() for part in waits)
        page.keyboard.press("ArrowRight")
        assert page.evaluate("Reveal.getIndices().h") == 0
        for part in waits:
            part.wait_for(state="visible")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("Reveal.getIndices().h") == 1
    slider = page.locator(".slide .gp-frames-control input")
    if slider.count():
        place = page.evaluate(
            "[...document.querySelectorAll('section')].findIndex((s) => s.querySelector('.gp-frames'))"
        )
        page.evaluate(f"Reveal.slide({place})")
        slider.first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("Reveal.getIndices().h") == place
        assert slider.first.input_value() == "1"
    assert problems == []
    page.close()


def test_the_speakers_view_has_notes_and_asks_nobody(browser: Browser, address: str) -> None:
    problems: list[str] = []
    page = opened(browser, address, CHAPTERS[0], SCREENS[0], problems)
    page.wait_for_selector("html[data-ready=yes]")
    with page.expect_popup() as popup:
        page.keyboard.press("s")
    view = popup.value
    view.on(
        "request",
        lambda asked: (
            asked.url.startswith((address, "data:", "blob:", "about:")) or problems.append(asked.url)
        ),
    )
    view.locator(".speaker-controls-notes .value", has_text="Minutes 0 to").wait_for()
    assert problems == []
    page.context.close()


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("kind", ["handout", "teacher"])
def test_paper_is_whole_and_printed(
    browser: Browser, address: str, folder: Path, chapter: str, kind: str
) -> None:
    problems: list[str] = []
    page = opened(browser, address, f"{chapter}-{kind}", (794, 1123), problems)
    assert page.locator("article").count() == 12
    assert page.evaluate("document.documentElement.scrollWidth") <= 794
    assert page.locator("[data-mjx-error], mjx-merror").count() == 0
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert problems == []
    page.close()
    printed = (folder / f"{chapter}-{kind}.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000
