"""Write constraints.txt: exact pins of everything that is installed in the running environment.

Run it in a fresh environment made from pyproject.toml alone: ``make lock``.
"""

import sys
from importlib.metadata import distributions
from pathlib import Path

HEADER = """\
# Exact versions of everything the book, its tests and their dependencies need. Made by `make lock`.
# These are constraints, not demands: a line for a package that a platform does not want installs nothing.
"""
OWN = {"ganprune", "pip"}


def canonical(name: str) -> str:
    """Return the normalised name under which an index lists a package."""
    return name.lower().replace("_", "-").replace(".", "-")


def pins() -> list[str]:
    """Return ``name==version`` for every installed distribution but the project and its installer."""
    found = {canonical(item.metadata["Name"]): item.version.split("+")[0] for item in distributions()}
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name not in OWN]


def main() -> int:
    """Write the file and say so."""
    path = Path(__file__).resolve().parents[1] / "constraints.txt"
    lines = pins()
    path.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(lines)} pins")
    return 0


if __name__ == "__main__":
    sys.exit(main())
