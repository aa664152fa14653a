"""Code of the user's own, named by ``module:Class`` or ``path/to/file.py:Class``, and how it is imported."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_NAME = r"[^\W\d]\w*"
_MODULE = re.compile(rf"{_NAME}(\.{_NAME})*:{_NAME}")
_FILE = re.compile(rf"[^\0]*[^\0/\\]\.py:{_NAME}")


def check_import_path(path: str) -> str:
    """The path, if it has the form "module:Class", "package.module:Class" or "path/to/file.py:Class".

    Raises:
        ValueError: if it has not.
    """
    if not isinstance(path, str) or not (_MODULE.fullmatch(path) or _FILE.fullmatch(path)):
        raise ValueError(f"must have the form module:Class or path/to/file.py:Class, got {path!r}")
    return path


def is_file(path: str) -> bool:
    """Whether a path names a file instead of a module."""
    return _FILE.fullmatch(path) is not None


def file_key(path: str) -> str:
    """What stays of a path when the file is moved: its name and the class."""
    return re.split(r"[/\\]", path)[-1] if is_file(path) else path


def import_object(path: str) -> Callable[..., Any]:
    """The class or function that a path names.

    The current folder is searched first, as it is by ``python -m``; for a file, the folder in which it (or the package
    that it belongs to) lies, as it is by ``python path/to/file.py``.

    Raises:
        ValueError: if there is none.
    """
    place, _, name = path.rpartition(":")
    importlib.invalidate_caches()
    try:
        if is_file(path):
            module = _import_file(Path(place))
        else:
            _search_first(os.getcwd(), also_as="")
            module = importlib.import_module(place)
    except (Exception, SystemExit) as error:  # a script without a guard may leave
        raise ValueError(f"{path} cannot be imported: {describe(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        kind = "file" if is_file(path) else "module"
        raise ValueError(f"{path} cannot be imported: {kind} {place} has no class {name}")
    return found


def _search_first(folder: str, also_as: str | None = None) -> None:
    if not {folder, also_as} & set(sys.path):
        sys.path.insert(0, folder)


def _import_file(file: Path) -> ModuleType:
    """A file as the module that it is: inside of its package, if there is an ``__init__.py`` beside it."""
    file = file.resolve()
    if not file.is_file():
        raise FileNotFoundError(f"expected a file at {file}")
    words, root = [file.stem], file.parent
    while (root / "__init__.py").is_file():
        words.insert(0, root.name)
        root = root.parent
    _search_first(str(root))
    name = ".".join(words)
    if len(words) > 1:
        module = importlib.import_module(name)
        if Path(module.__file__ or "").resolve() == file:
            return module
        raise ImportError(f"a module {name} of another folder is loaded already: {module.__file__}")
    alone = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if alone in sys.modules:  # two repositories may both have a model.py
        return sys.modules[alone]
    spec = importlib.util.spec_from_file_location(alone, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[alone] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alone]
        raise
    return module


def describe(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
