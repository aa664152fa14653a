"""Notebooks with their outputs, taken from the book's cache, or run and put there.

The stored outputs of a chapter have no pictures, so slides need a run. It is the book's: what `make book` has run is
not run again, and what is run here, `make book` finds.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "book" / "_ext"))

import nbformat
from ganprune_site import CACHED_BY
from jupyter_cache import get_cache
from jupyter_cache.cache.main import CacheBundleIn
from nbclient import NotebookClient

import book

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 600  # seconds for a cell, as for the book


def cache_folder() -> Path:
    """Return the folder of the cache that belongs to the package, the lock and the settings."""
    settings = ("GANPRUNE_PROFILE", "GANPRUNE_DEVICE", "GANPRUNE_PRECISION")
    folder = ROOT / "_build" / "cache" / book.digest(*CACHED_BY, settings=settings, root=ROOT)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def with_outputs(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of a run in the profile of the environment.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook, cache = nbformat.read(path, as_version=4), get_cache(str(cache_folder()))
    try:
        _, merged = cache.merge_match_into_notebook(notebook)
        return merged
    except KeyError:
        print(f"running {path.name}", flush=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "GANPRUNE_PROGRESS": "0",
        "PYTHONWARNINGS": "ignore",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    environment.pop("MPLBACKEND", None)  # a kernel has its own, which puts figures into the notebook
    start = time.monotonic()
    folder = {"metadata": {"path": str(path.parent)}}
    # times written into cells would change the notebook's key in the cache
    client = NotebookClient(notebook, timeout=TIMEOUT, resources=folder, record_timing=False)
    client.execute(env=environment)
    seconds = {"execution_seconds": time.monotonic() - start}
    bundle = CacheBundleIn(notebook, str(path), data=seconds)
    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    return notebook
