"""Build the book: fetch the pinned JavaScript, run Jupyter Book, say where the result is.

    python tools/book.py                          the whole book, to _build/html
    python tools/book.py --output _build/smoke    the same below another folder

A build whose inputs have not changed does nothing. The environment variable GANPRUNE_PROFILE (smoke, laptop,
gpu) sets the size of what the notebooks run.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import javascript

ROOT = Path(__file__).resolve().parents[1]
INPUTS = (
    "book",
    "notebooks",
    "ganprune",
    "results",
    "tools",
    "benchmarks/latest.json",
    "_config.yml",
    "constraints.txt",
)
INPUTS += ("pyproject.toml", "CHANGELOG.md", "CONTRIBUTING.md", ".git/config")
SETTINGS = ("GANPRUNE_PROFILE", "GANPRUNE_DEVICE", "GANPRUNE_REPOSITORY_URL")
SKIPPED = {"__pycache__", ".ipynb_checkpoints"}


def files_of(*names: str, root: Path = ROOT) -> list[Path]:
    """Return the files under some folders, in order, without caches and editor leftovers."""
    found: list[Path] = []
    for name in names:
        path = root / name
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.is_file() and not SKIPPED & set(p.parts))
    return [path for path in found if path.suffix != ".pyc"]


def digest(*names: str, settings: tuple[str, ...] = (), root: Path = ROOT) -> str:
    """Return a hash of the files under some folders (names, contents) and of some environment variables."""
    state = hashlib.sha256()
    for path in files_of(*names, root=root):
        state.update(path.relative_to(root).as_posix().encode() + b"\0")
        state.update(hashlib.sha256(path.read_bytes()).digest())
    for name in settings:
        state.update(f"{name}={os.environ.get(name, '')}\0".encode())
    return state.hexdigest()


def how_to_open(html: Path) -> str:
    """Return what a reader does next."""
    where = os.path.relpath(html)
    return (
        f"The book is in {where}\n"
        f"Read it:     make serve   (or: python -m http.server --directory {where})   and open http://localhost:8000\n"
        f"Without it:  open {where}/index.html (diagrams and search need the server)"
    )


def build(output: Path) -> int:
    """Build the book below a folder; return the exit code."""
    html = output / "html" if output.name == "_build" else output / "_build" / "html"
    stamp = html.parent / "fingerprint"
    fingerprint = digest(*INPUTS, settings=SETTINGS)
    if (html / "index.html").is_file() and stamp.is_file() and stamp.read_text() == fingerprint:
        print("Nothing has changed since the last build.\n" + how_to_open(html))
        return 0
    start = time.monotonic()
    try:
        javascript.install()
    except javascript.FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stamp.unlink(missing_ok=True)
    shutil.rmtree(html, ignore_errors=True)  # or removed pages linger
    options = ["build", ".", "--toc", "book/_toc.yml", "--path-output", str(html.parent.parent)]
    options += ["-W", "-n", "--keep-going", "--all"]
    program = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {
        "GANPRUNE_PROGRESS": "0",
        "PYTHONWARNINGS": "ignore",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    done = subprocess.run([sys.executable, "-c", program, *options], cwd=ROOT, env=environment)
    if done.returncode:
        print("error: the book did not build; the messages above say why", file=sys.stderr)
        return done.returncode
    stamp.write_text(fingerprint)
    print(f"\nBuilt in {time.monotonic() - start:.0f} s.\n" + how_to_open(html))
    return 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "_build", help="folder to build below (default: _build)"
    )
    os.chdir(ROOT)
    return build(parser.parse_args().output.resolve())


if __name__ == "__main__":
    sys.exit(main())
