"""Compare what `make` is given for the environment with what the environment was made with.

    python tools/environment.py .venv check PYTHON=python3.12 WHEELHOUSE=wheelhouse
    python tools/environment.py .venv remember TORCH_INDEX=ADDRESS WHEELHOUSE=wheelhouse

`make` runs it with the Python that it is given. An environment is never made anew without being asked: `check` says
what has no effect any more and how to get it.
"""

import argparse
import json
import platform
import re
import sys
from pathlib import Path

MEMORY = "made-with.json"


def without_password(address: str) -> str:
    """Return an address without what stands before its ``@``."""
    return re.sub(r"//[^/@]*@", "//", address)


def remember(folder: Path, settings: dict[str, str]) -> None:
    """Write down what an environment is made with; passwords in addresses are left out."""
    kept = {name: without_password(value) for name, value in settings.items()}
    kept["PYTHON"] = platform.python_version()
    (folder / MEMORY).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def recall(folder: Path) -> dict[str, str]:
    """Return what an environment was made with, as far as it is known."""
    known = {}
    described = folder / "pyvenv.cfg"
    if described.is_file():
        found = re.search(
            r"^version(?:_info)?\s*=\s*(\S+)", described.read_text(encoding="utf-8"), re.MULTILINE
        )
        known = {"PYTHON": found[1]} if found else {}
    if (folder / MEMORY).is_file():
        known |= json.loads((folder / MEMORY).read_text(encoding="utf-8"))
    return known


def minor(version: str) -> list[str]:
    """Return the first two numbers of a version, which an environment cannot change."""
    return version.split(".")[:2]


def check(folder: Path, given: dict[str, str]) -> list[str]:
    """Return what an existing environment contradicts, in words; a WHEELHOUSE contradicts nothing."""
    made, here = recall(folder), platform.python_version()
    problems = []
    if "PYTHON" in given and "PYTHON" in made and minor(made["PYTHON"]) != minor(here):
        problems.append(f"with Python {made['PYTHON']}, not {here} (PYTHON={given['PYTHON']})")
    if "TORCH_INDEX" in given:
        index, before = without_password(given["TORCH_INDEX"]), made.get("TORCH_INDEX")
        if index != before:
            source = f"torch from {before}" if before else "the usual torch"
            problems.append(f"with {source}, not with torch from {index} (TORCH_INDEX)")
    return problems


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the environment")
    parser.add_argument("action", choices=["check", "remember"])
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    options = parser.parse_args()
    settings = dict(text.split("=", 1) for text in options.settings)
    folder = options.folder
    if options.action == "remember":
        remember(folder, settings)
        return 0
    problems = check(folder, settings)
    for problem in problems:
        print(
            f"error: the environment in {folder} was made {problem}. Leave the setting out to go on with this"
            f" environment, or remove {folder} and run the same command again to make it anew.",
            file=sys.stderr,
        )
    if problems:
        return 1
    wheelhouse = settings.get("WHEELHOUSE")
    if wheelhouse and (folder / ".ready").is_file() and recall(folder).get("WHEELHOUSE") != wheelhouse:
        print(
            f"note: the environment in {folder} is there already and was not made from WHEELHOUSE={wheelhouse};"
            " only what is still missing is taken from there.",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
