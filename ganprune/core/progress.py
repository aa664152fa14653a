"""Progress bars."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm.auto import tqdm as notebook_tqdm
from tqdm.std import tqdm as console_tqdm


def progress(total: int, description: str, initial: int = 0, show: bool = True) -> Any:
    """A tqdm progress bar on standard error.

    It is silent if ``show`` is false, where nobody looks (no terminal and no notebook), and when the environment
    variable ``GANPRUNE_PROGRESS`` is 0; 1 shows it everywhere.
    """
    in_notebook = "ipykernel" in sys.modules
    silent = os.environ.get("GANPRUNE_PROGRESS", "1") == "0" or not (in_notebook or sys.stderr.isatty())
    if os.environ.get("GANPRUNE_PROGRESS") == "1":
        silent = False
    silent = silent or not show
    bar = console_tqdm if not in_notebook else notebook_tqdm
    return bar(total=total, desc=description, initial=initial, disable=silent, file=sys.stderr, leave=False)
