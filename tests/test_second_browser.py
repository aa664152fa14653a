"""The built site in Firefox: what holds in one browser's engine holds in another's."""

from __future__ import annotations

from collections.abc import Iterator

import in_your_browser
import numpy as np
import pytest
import torch
from conftest import FIREFOX
from test_in_the_browser import LANDING, LISTEN, PAGE
from test_site import CHAPTERS
from test_site_browser import CUT_OFF, DESK, PHONE
from tools.firefox import Firefox

from ganprune.experiments.page_files import SPARSITIES, page_path
from ganprune.inference.sparse_file import load_sparse

pytestmark = pytest.mark.site

DRAWN = """
while (!drawings.some((one) => one.percent === PERCENT)) await new Promise((next) => setTimeout(next, 50));
return [...drawings.findLast((one) => one.percent === PERCENT).images];
"""
FITTED = """
const width = () => document.documentElement.scrollWidth;
for (let turn = 0; turn < 200 && width() > innerWidth; turn += 1) await new Promise((next) => setTimeout(next, 50));
return width();
"""  # the page's own script measures long formulas once they are set


@pytest.fixture(scope="module")
def firefox(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    browser = Firefox(FIREFOX, tmp_path_factory.mktemp("firefox"), address)
    yield browser
    browser.close()


def test_each_sparsity_draws_what_pytorch_draws(firefox: Firefox) -> None:
    firefox.visit(PAGE, **DESK, script=f"() => {{ {LISTEN} }}")
    firefox.run("document.querySelector('.gp-generator').scrollIntoView()")
    latents = torch.from_numpy(in_your_browser.normals(0, 64 * 64)).reshape(64, 64)
    for number, sparsity in enumerate(SPARSITIES):
        firefox.run(
            "const slider = document.querySelector('.gp-generator [type=range]');"
            f"slider.value = {number}; slider.dispatchEvent(new Event('input'))"
        )
        images = firefox.run(DRAWN.replace("PERCENT", str(round(100 * sparsity))))
        with torch.inference_mode():
            expected = load_sparse(page_path(sparsity)).network(latents).numpy().reshape(-1)
        assert np.abs(np.array(images) - expected).max() < 1e-4
    assert firefox.problems == []


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("page", [LANDING, *CHAPTERS])
def test_a_page_asks_nobody_else_raises_nothing_and_fits(
    firefox: Firefox, page: str, size: dict[str, int]
) -> None:
    firefox.visit(page, **size)
    formulas = "return document.querySelectorAll('main mjx-container').length"
    if page in CHAPTERS:
        firefox.run("await MathJax.startup.promise")
        assert firefox.run(formulas) > 10
    assert firefox.run(FITTED) <= size["width"]
    if size is DESK:
        assert firefox.run(f"return ({CUT_OFF})()") == []
    assert firefox.problems == []


def test_a_strip_of_frames_is_a_slider(firefox: Firefox) -> None:
    firefox.visit(CHAPTERS[0], **DESK)
    seen = firefox.run(
        """
        const part = document.querySelector('.gp-frames.is-slider'), slider = part.querySelector('input');
        slider.value = 1; slider.dispatchEvent(new Event('input'));
        return [...part.querySelectorAll('.gp-frame')].map((frame) => !frame.hidden);
        """
    )
    assert seen.index(True) == 1 and sum(seen) == 1
