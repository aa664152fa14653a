"""What every test shares: the smoke profile, one thread per process, Hypothesis without a clock."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

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

from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

MAC_BROWSER = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", MAC_BROWSER)
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

# Without a browser the tests that need one are not collected; .ci/run installs one.
NEED_BROWSER = [
    "test_browser_kernel.py",
    "test_exam_browser.py",
    "test_in_the_browser.py",
    "test_site_browser.py",
    "test_slides_browser.py",
]
collect_ignore = [] if BROWSER else NEED_BROWSER


def pytest_report_header() -> str:
    """Say whether the built site is looked at in a browser."""
    return f"browser: {BROWSER or 'none found, so these are left out: ' + ', '.join(NEED_BROWSER)}"
