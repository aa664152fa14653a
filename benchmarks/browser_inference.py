"""Drawing in the browser: ONNX Runtime Web with the dense generator over the page's kernel, which skips zeros."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import Row
from benchmarks.timing import Times

ROOT = Path(__file__).parents[1]
MINUTES = 1
BAR = 5.0
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
RACE = """
async ({ percents, count, turns, passes }) => {
  const place = (name) => `/_static/in-your-browser/${name}`;
  const load = async (name) => (await fetch(place(name))).arrayBuffer();
  const { normals } = await import(place("latents.js"));
  const { Kernel, Network } = await import(place("network.js"));
  const { readSparseFile } = await import(place("sparse-file.js"));
  const { denseRun, race } = await import(place("compare.js"));
  const [code, latents] = [await load("sparse.wasm"), normals(0, 64 * count)];
  const repeated = (run) => async () => { for (let pass = 0; pass < passes; pass += 1) await run(); };
  const arms = { runtime: repeated(await denseRun(latents, count)) };
  for (const percent of percents) {
    const file = readSparseFile(await load(`dcgan-mnist-${String(percent).padStart(3, "0")}.gps`));
    const network = new Network(new Kernel(code), file);
    arms[percent] = repeated(() => network.draw(latents, count));
  }
  return { times: await race(arms, turns), browser: navigator.userAgent };
}
"""


@contextlib.contextmanager
def bare_page() -> Iterator[Any]:
    """A page of the browser, beside everything that the book's page loads; it has loaded nothing yet.

    Raises:
        RuntimeError: if there is no browser, or no playwright to drive it.
    """
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise RuntimeError("install playwright (the extra `test`) to measure in a browser") from error
    import accessibility
    import in_your_browser
    import javascript

    program = next(filter(None, map(shutil.which, accessibility.NAMES)), None)
    if program is None:
        raise RuntimeError(f"install one of {', '.join(accessibility.NAMES)} to measure in a browser")
    with tempfile.TemporaryDirectory() as folder:
        static = Path(folder) / "_static"
        for source in (in_your_browser.prepare(), javascript.install(), ROOT / "book" / "_static"):
            shutil.copytree(source, static, dirs_exist_ok=True)
        (Path(folder) / "index.html").write_text("<!doctype html><title>benchmark</title>", encoding="utf-8")
        with accessibility.served(Path(folder)) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
            page = browser.new_page()
            page.goto(f"{address}index.html")
            yield page
            browser.close()


def measure(quick: bool) -> Iterator[Row]:
    """Rows for 64 images and for one: the runtime over the kernel, and what the zeros alone save."""
    percents = [0, 90] if quick else [0, 50, 80, 90, 95, 98]
    with bare_page() as page:
        for count in (64, 1):
            passes = 1 if quick else {64: 4, 1: 16}[count]
            settings = {"percents": percents, "count": count, "turns": 2 if quick else 30, "passes": passes}
            found = page.evaluate(RACE, settings)
            times = Times(
                {arm: [ms / 1e3 / passes for ms in rounds] for arm, rounds in found["times"].items()}
            )
            yield from rows(times, percents, count, found["browser"])


def rows(times: Times, percents: list[int], count: int, browser: str) -> Iterator[Row]:
    """The ratios of one number of images."""
    images = "64 images" if count == 64 else "one image"
    for percent in percents:
        ratio = times.ratio("runtime", str(percent))
        zeros = times.ratio("0", str(percent))
        yield Row(
            f"browser, {images}: dense in ONNX Runtime Web over our kernel at {percent}%",
            ratio.value,
            "×",
            at_least=BAR if (percent, count) == (90, 64) else None,
            details={
                "low": ratio.low,
                "high": ratio.high,
                "runtime_ms": 1e3 * times.median("runtime"),
                "kernel_ms": 1e3 * times.median(str(percent)),
                "zeros_alone": zeros.value,
                "zeros_alone_low": zeros.low,
                "zeros_alone_high": zeros.high,
                "browser": browser,
            },
        )
        if percent == 90:
            yield Row(
                f"browser, {images}: our kernel at 0% over our kernel at {percent}%",
                zeros.value,
                "×",
                details={"low": zeros.low, "high": zeros.high},
            )
