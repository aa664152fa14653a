"""The base of the package's own errors; wrong arguments are ``ValueError`` or ``TypeError`` as everywhere in Python."""

from __future__ import annotations


class GanpruneError(Exception):
    """Something that this package found wrong, other than an argument; each kind has a class of its own."""
