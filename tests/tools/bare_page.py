"""The scripts of the page that draws in the browser, on a bare page: seconds instead of a whole book."""

from __future__ import annotations

import base64
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accessibility
import in_your_browser
import numpy as np
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
MODULES = """
window.modules = async () => ({
  ...await import("/in-your-browser/latents.js"), ...await import("/in-your-browser/network.js"),
  ...await import("/in-your-browser/sparse-file.js"),
  bytes: (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)).buffer,
  text: (numbers) => new Uint8Array(numbers.buffer).toBase64?.()
    ?? btoa(Array.from(new Uint8Array(numbers.buffer), (byte) => String.fromCharCode(byte)).join("")),
  kernel: await (await fetch("/in-your-browser/sparse.wasm")).arrayBuffer(),
});
"""


@contextlib.contextmanager
def bare_page(folder: Path, browser: str) -> Iterator[Page]:
    """A page that has loaded nothing yet; ``call`` runs code on it that uses the site's modules.

    Args:
        folder: empty, to be served.
        browser: the program.
    """
    shutil.copytree(in_your_browser.prepare(), folder, dirs_exist_ok=True)
    shutil.copytree(
        ROOT / "book" / "_static" / "in-your-browser", folder / "in-your-browser", dirs_exist_ok=True
    )
    (folder / "index.html").write_text(f"<!doctype html><title>bare</title><script>{MODULES}</script>")
    with accessibility.served(folder) as address, sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        page = started.new_page()
        page.goto(f"{address}index.html")
        yield page
        started.close()


def call(page: Page, body: str, **arguments: Any) -> Any:
    """What a function body gives back that sees the modules as ``m`` and the arguments as ``a``."""
    return page.evaluate(f"async (a) => {{ const m = await modules(); {body} }}", arguments)


def packed(values: np.ndarray | bytes) -> str:
    """Numbers as float32, or bytes, as text that ``m.bytes`` reads."""
    data = values if isinstance(values, bytes) else np.ascontiguousarray(values, "<f4").tobytes()
    return base64.b64encode(data).decode()


def unpacked(text: str) -> np.ndarray:
    """The float32 numbers that ``m.text`` wrote."""
    return np.frombuffer(base64.b64decode(text), "<f4")
