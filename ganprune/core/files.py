"""Files that are whole or absent, and the folder for what can be made again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file beside ``path`` to write to; it takes the place of ``path`` when it is whole, so a kill loses nothing.

    Folders are made as needed. If the block raises, ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def cache_dir() -> Path:
    """Folder for what can be made again: ``GANPRUNE_CACHE``, else ``~/.cache/ganprune``. Created on demand."""
    folder = Path(os.environ.get("GANPRUNE_CACHE") or Path.home() / ".cache" / "ganprune")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
