"""What every test shares: the smoke profile, one thread per process, Hypothesis without a clock."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

os.environ.setdefault("GANPRUNE_PROFILE", "smoke")
os.environ.setdefault("GANPRUNE_PROGRESS", "0")
os.environ.setdefault("MPLBACKEND", "agg")

# A shell that starts the tests in the background has Ctrl-C ignored, and commands that tests start would inherit that.
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

MAC_BROWSER = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", MAC_BROWSER)
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FIREFOX = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Without a browser the tests that need one are not collected; .ci/run installs one.
NEED_BROWSER = [
    "test_browser_kernel.py",
    "test_exam_browser.py",
    "test_in_the_browser.py",
    "test_site_browser.py",
    "test_slides_browser.py",
]
NEED_FIREFOX = ["test_second_browser.py"]
collect_ignore = ([] if BROWSER else NEED_BROWSER) + ([] if BROWSER and FIREFOX else NEED_FIREFOX)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of the built site, served on this machine."""
    import accessibility
    from test_site import SITE

    assert (SITE / "index.html").is_file(), f"no site in {SITE}: `make test` builds it"
    with accessibility.served(SITE) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without what it does of its own accord in the background."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield started
        started.close()


def pytest_report_header() -> list[str]:
    """Say in which browsers the built site is looked at."""
    needed = {"Chromium": (BROWSER, NEED_BROWSER), "Firefox": (FIREFOX, NEED_FIREFOX)}
    return [
        f"{name}: {found or 'not found, so these are left out: ' + ', '.join(tests)}"
        for name, (found, tests) in needed.items()
    ]
