"""ganprune: the package behind the course on pruning generative adversarial networks.

``import ganprune as gp`` gives the names that chapters use often (``gp.prune``) and the rooms that hold the rest
(``gp.records.interval``). They are listed in ``__init__.pyi``, where editors and type checkers see them; the module
behind a name is imported when the name is first used.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import lazy_loader

__version__ = "0.1.0"
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Load a public name when it is first used; for a name that is not flat, the error says which room has it."""
    try:
        return _load(name)
    except AttributeError:
        if name in __all__ or name.startswith("_"):
            raise
    found = " or ".join(f"gp.{room}.{name}" for room in __all__ if f'"{name}"' in _exports(room))
    raise AttributeError(f"No ganprune attribute {name}" + (f": it is {found}" if found else ""))


def _exports(room: str) -> str:
    """Return a room's ``__all__`` as it is written, so that nothing is imported; "" for what is no room."""
    spec = find_spec(f"{__name__}.{room}")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return source.partition("__all__ = [")[2].partition("]")[0]
