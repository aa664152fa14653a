"""The built site draws digits in the reader's browser: by keyboard, on a phone, in the dark; and what if it cannot."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import accessibility
import in_your_browser
import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Locator, Page, expect
from test_site import CHAPTERS, PAGES, SITE, file_of
from test_site_browser import DESK, PHONE, Visit

from ganprune.experiments.page_files import SPARSITIES, page_path
from ganprune.inference.sparse_file import load_sparse

pytestmark = pytest.mark.site

PAGE, LANDING = "book/in-your-browser", "book/intro"
LISTEN = """
addEventListener("DOMContentLoaded", () => {
  window.drawings = [];
  for (const part of document.querySelectorAll(".gp-generator")) {
    part.addEventListener("drawn", ({ detail }) => window.drawings.push(detail));
  }
});
"""
LAST = "() => { const { images, ...rest } = drawings.at(-1); return { ...rest, images: [...images] }; }"
WITHOUT_SIMD = "WebAssembly.validate = () => false;"


class Generator:
    """A page's generator, in sight and drawn once."""

    def __init__(self, page: Page) -> None:
        self.page, self.part = page, page.locator(".gp-generator")
        self.slider = self.part.locator("input[type=range]")
        self.seed = self.part.locator("input[type=number]")
        self.button = self.part.locator("button[type=submit]")
        self.status = self.part.locator(".gp-generator-status")
        self.canvas = self.part.locator("canvas")
        self.part.scroll_into_view_if_needed()

    def waits_for(self, drawings: int) -> dict:
        """The last drawing, when so many have been made."""
        self.page.wait_for_function("(count) => drawings.length >= count", arg=drawings)
        return self.page.evaluate(LAST)


def visit(
    browser: Browser, address: str, page: str, viewport: dict[str, int], script: str = "", **options: str
) -> Visit:
    """A visit that listens to what is drawn."""
    return Visit(browser, address, page, viewport, LISTEN + script, **options)


def loaded(visit: Visit, part: str = "/in-your-browser/") -> dict[str, int]:
    """Name of each file of the generator → its bytes, for those that were loaded."""
    answers = [answer for answer in visit.answers if part in answer.url]
    return {urlsplit(answer.url).path.rsplit("/", 1)[1]: len(answer.body()) for answer in answers}


def test_each_sparsity_draws_what_pytorch_draws_and_asks_nobody_else(
    browser: Browser,
    address: str,
) -> None:
    with visit(browser, address, PAGE, DESK) as seen:
        generator = Generator(seen.page)
        generator.waits_for(1)
        for number, sparsity in enumerate(SPARSITIES):
            generator.slider.fill(str(number))
            seen.page.wait_for_function(
                "(percent) => drawings.at(-1).percent === percent", arg=round(100 * sparsity)
            )
            drawing = seen.page.evaluate(LAST)
            latents = torch.from_numpy(in_your_browser.normals(0, 64 * 64)).reshape(64, 64)
            file = load_sparse(page_path(sparsity))
            with torch.inference_mode():
                expected = file.network(latents).numpy().reshape(-1)
            assert np.abs(np.array(drawing["images"]) - expected).max() < 1e-4
            figures = generator.part.locator(".gp-generator-figures").inner_text()
            assert f"{file.program.nonzeros:,} of " in figures
            for name, places in (("digit_fid", 2), ("precision", 3), ("recall", 3)):
                assert f"{file.metadata[name]:.{places}f}" in figures
            expect(generator.status).to_contain_text(
                f"64 digits at {sparsity:.0%} sparsity, seed 0: drawn in "
            )
        assert seen.problems == []


def test_the_keyboard_does_everything(browser: Browser, address: str) -> None:
    with visit(browser, address, PAGE, DESK) as seen:
        generator, keyboard = Generator(seen.page), seen.page.keyboard
        first = generator.waits_for(1)
        generator.slider.focus()
        keyboard.press("ArrowRight")
        second = generator.waits_for(2)
        assert (first["percent"], second["percent"]) == (90, 95)
        assert generator.slider.evaluate("slider => slider.ariaValueText") == "95% of the weights are zero"
        keyboard.press("Tab")
        keyboard.type("7")
        keyboard.press("Enter")
        third = generator.waits_for(3)
        assert third["seed"] in (7, 70) and third["images"] != second["images"]
        keyboard.press("Tab")
        expect(generator.button).to_be_focused()
        keyboard.press("Space")
        assert generator.waits_for(4)["images"] == third["images"]
        assert seen.problems == []


@pytest.mark.parametrize(("typed", "seed"), [("", 0), ("-5", 0), ("3.9", 3), ("99999999999", 2**32 - 1)])
def test_any_seed_is_made_a_whole_number(browser: Browser, address: str, typed: str, seed: int) -> None:
    with visit(browser, address, PAGE, DESK) as seen:
        generator = Generator(seen.page)
        generator.waits_for(1)
        generator.seed.fill(typed)
        generator.part.locator("form").evaluate(
            "form => form.dispatchEvent(new Event('submit', {cancelable: true}))"
        )
        assert generator.waits_for(2)["seed"] == seed
        assert generator.seed.input_value() == str(seed)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", [PAGE, LANDING])
def test_it_works_on_a_phone_in_both_themes(browser: Browser, address: str, page: str, theme: str) -> None:
    with visit(browser, address, page, PHONE, color_scheme=theme, reduced_motion="reduce") as seen:
        generator = Generator(seen.page)
        generator.waits_for(1)
        assert seen.page.locator("html").get_attribute("data-theme") == theme
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for part in (generator.slider, generator.button, generator.canvas):
            box = part.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] and box["height"] >= 24
        assert seen.page.evaluate("document.getAnimations().length") == 0
        assert accessibility.violations(seen.page, accessibility.axe_script()) == []
        assert seen.problems == []


def test_memory_is_bounded_after_many_drawings(browser: Browser, address: str) -> None:
    with visit(browser, address, PAGE, DESK) as seen:
        generator = Generator(seen.page)
        generator.waits_for(1)
        tools = seen.page.context.new_cdp_session(seen.page)

        def after(clicks: int) -> float:
            seen.page.evaluate(
                """async ([clicks, last]) => {
                  const part = document.querySelector(".gp-generator");
                  const [slider, button] = [part.querySelector("[type=range]"), part.querySelector("[type=submit]")];
                  for (let turn = 0; turn < clicks; turn += 1) {
                    const drawn = new Promise((done) => part.addEventListener("drawn", done, { once: true }));
                    if (turn % 4) button.click();
                    else {
                      slider.value = (slider.valueAsNumber + 1) % (last + 1);
                      slider.dispatchEvent(new Event("input"));
                    }
                    await drawn;
                  }
                  drawings.length = 0;
                }""",
                [clicks, len(SPARSITIES) - 1],
            )
            tools.send("HeapProfiler.collectGarbage")
            return tools.send("Runtime.getHeapUsage")["backingStorageSize"]

        before = after(28)  # every sparsity was there
        assert after(200) < before + 2e6


def recorded(generator: Generator) -> Locator:
    """The recorded picture, which is to be seen, and nothing else."""
    picture = generator.part.locator("img")
    picture.wait_for(state="visible")
    assert picture.evaluate(
        "image => { image.loading = 'eager'; return image.decode().then(() => image.naturalWidth) }"
    )
    for part in (generator.canvas, generator.seed, generator.button):
        assert not part.is_visible()
    return picture


@pytest.mark.parametrize("page", [PAGE, LANDING])
def test_without_simd_it_says_so_and_shows_recorded_pictures(
    browser: Browser, address: str, page: str
) -> None:
    with visit(browser, address, page, DESK, WITHOUT_SIMD) as seen:
        generator = Generator(seen.page)
        expect(generator.status).to_contain_text("its WebAssembly has no SIMD")
        assert (
            recorded(generator)
            .get_attribute("src")
            .endswith(f"dcgan-mnist-090-{64 if page == PAGE else 8}.png")
        )
        generator.slider.press("ArrowRight")
        picture = recorded(generator)
        assert "dcgan-mnist-095" in picture.get_attribute("src") and "95%" in picture.get_attribute("alt")
        assert not generator.part.locator(".gp-generator-compare-button").is_visible()
        assert not [name for name in loaded(seen) if name.endswith(".gps")]
        assert seen.problems == []


def test_without_scripts_a_recorded_picture_stays(browser: Browser, address: str) -> None:
    with browser.new_context(viewport=DESK, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{address}{PAGE}.html")
        generator = page.locator(".gp-generator")
        assert generator.locator("img").is_visible() and "Recorded" in generator.inner_text()
        assert not generator.locator("form").is_visible() and not generator.locator("canvas").is_visible()


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_file_that_cannot_be_drawn_is_named_and_the_next_one_works(
    browser: Browser,
    address: str,
    how: str,
) -> None:
    with visit(browser, address, PAGE, DESK) as seen:
        generator = Generator(seen.page)
        generator.waits_for(1)
        answer = {"status": 404} if how == "missing" else {"body": b"GANPRUNE" + bytes(40)}
        seen.page.route("**/dcgan-mnist-095.gps", lambda route: route.fulfill(**answer))
        generator.slider.press("ArrowRight")
        words = "dcgan-mnist-095.gps could not be loaded" if how == "missing" else "version 0"
        expect(generator.status).to_contain_text(words)
        assert generator.part.locator("img").is_visible() and not generator.canvas.is_visible()
        seen.page.unroute("**/dcgan-mnist-095.gps")
        generator.button.click()
        assert generator.waits_for(2)["percent"] == 95


def test_the_landing_page_draws_when_it_is_looked_at_and_stays_light(browser: Browser, address: str) -> None:
    with visit(browser, address, LANDING, {"width": 390, "height": 400}) as seen:
        assert {*loaded(seen)} <= {"generator.js", "generator.css", "dcgan-mnist-090-8.png"}
        generator = Generator(seen.page)
        drawing = generator.waits_for(1)
        assert drawing["percent"] == 90 and len(drawing["images"]) == 8 * 784
        files = loaded(seen)
        assert {"sparse.wasm", "dcgan-mnist-090.gps", "drawing.js"} <= files.keys()
        assert sum(files.values()) <= 400_000
        generator.button.click()
        others = generator.waits_for(2)
        assert others["seed"] == 1 and others["images"] != drawing["images"]
        assert not [name for name in files if name.endswith(".gps") and "090" not in name]
        assert seen.problems == []


def test_the_comparison_is_loaded_on_request_only_and_draws_the_same(browser: Browser, address: str) -> None:
    with visit(browser, address, PAGE, DESK) as seen:
        generator = Generator(seen.page)
        generator.waits_for(1)
        assert loaded(seen, "/onnxruntime-web/") == {} and "compare.js" not in loaded(seen)
        generator.part.locator(".gp-generator-compare-button").click()
        result = generator.part.locator(".gp-generator-compare-result")
        expect(result).to_contain_text(re.compile(r"times as fast|did not work"), timeout=120_000)
        assert re.search(
            r"Dense in ONNX Runtime Web: [\d.]+ ms\. At 90% .*: [\d.]+ ms, [\d.]+ times as fast",
            result.inner_text(),
        )
        assert len(loaded(seen, "/onnxruntime-web/")) == 3
        assert seen.problems == []


def test_only_pages_with_a_generator_load_its_script() -> None:
    for page in PAGES:
        text = file_of(page).read_text(encoding="utf-8")
        there = 'class="gp-generator"' in text
        assert there == (page in (PAGE, LANDING)), page
        assert (
            ("in-your-browser/generator.js" in text) == ("in-your-browser/generator.css" in text) == there
        ), page
    assert PAGE not in CHAPTERS


def test_what_only_the_build_needs_is_not_served() -> None:
    assert not [path for path in SITE.rglob("*") if "wabt" in path.name]
    assert sorted(path.name for path in (SITE / "_static" / "onnxruntime-web").iterdir()) == [
        "ort-wasm-simd-threaded.mjs",
        "ort-wasm-simd-threaded.wasm",
        "ort.wasm.min.mjs",
    ]
