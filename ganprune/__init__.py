"""ganprune: the package behind the course on pruning generative adversarial networks.

``import ganprune as gp`` gives the names that chapters use often (``gp.prune``) and the rooms that hold the rest
(``gp.records.interval``). They are listed in ``__init__.pyi``, where editors and type checkers see them; the module
behind a name is imported when the name is first used.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
