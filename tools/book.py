"""Build the book: fetch the pinned JavaScript, run Jupyter Book, say where the result is.

    python tools/book.py                          the whole book, to _build/html
    python tools/book.py --output _build/smoke    the same below another folder

A build whose inputs have not changed does nothing. A new book is built beside the one that is there and takes its
place when it is whole, so a build that fails or is killed costs nothing. Only one build runs at a time. The
environment variable GANPRUNE_PROFILE (smoke, laptop, gpu) sets the size of what the notebooks run.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent))

import javascript
import lock

ROOT = Path(__file__).resolve().parents[1]
INPUTS = (
    "book",
    "notebooks",
    "ganprune",
    "tools",
    "benchmarks/latest.json",
    "_config.yml",
    "constraints.txt",
    "pyproject.toml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
)
SETTINGS = (
    "GANPRUNE_PROFILE",
    "GANPRUNE_DEVICE",
    "GANPRUNE_PRECISION",
    "GANPRUNE_REPOSITORY_URL",
    "GANPRUNE_REPOSITORY_BRANCH",
)
LENGTHS = {  # profile → how long a first build takes
    "smoke": "about 6 minutes on two cores",
    "laptop": "about 10 minutes on two cores",
    "gpu": "longer than the 10 minutes of the profile laptop, since it trains longer",
}
# Jupyter Book's last words name the folder that the book is built in, which is not where the book will be.
PROGRAM = """
import sys
from jupyter_book.cli import main as command

def finish(result, *_):
    if isinstance(result, Exception):
        raise result
    sys.exit(result)

command.builder_specific_actions = finish
sys.exit(command.main())
"""
SKIPPED = {"__pycache__", ".ipynb_checkpoints"}


class BuildError(RuntimeError):
    """The book could not be built, or not be put in its place."""


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


@dataclass(frozen=True)
class Places:
    """Where a build puts what: the finished book, the one in the making, the one that is being replaced.

    Attributes:
        folder: the folder ``_build`` of this output.
    """

    folder: Path

    @classmethod
    def below(cls, output: Path) -> "Places":
        """Return the places below the folder that ``--output`` names."""
        return cls(output if output.name == "_build" else output / "_build")

    @property
    def html(self) -> Path:
        """The finished book."""
        return self.folder / "html"

    @property
    def stamp(self) -> Path:
        """The fingerprint of what the finished book was built from."""
        return self.folder / "fingerprint"

    @property
    def stage(self) -> Path:
        """The folder of a build in the making; Jupyter Book adds ``_build/html``."""
        return self.folder / "building"

    @property
    def previous(self) -> Path:
        """The old book, for the moment between two renamings."""
        return self.folder / "previous"

    def is_built_from(self, fingerprint: str) -> bool:
        """Whether the finished book is there and was built from these inputs."""
        there = (self.html / "index.html").is_file() and self.stamp.is_file()
        return there and self.stamp.read_text(encoding="utf-8") == fingerprint

    def tidy(self) -> None:
        """Put right what a killed build may have left: an unfinished book, or an old one not yet put back."""
        if self.previous.is_dir() and not self.html.exists():
            self.previous.rename(self.html)
        shutil.rmtree(self.previous, ignore_errors=True)
        shutil.rmtree(self.stage, ignore_errors=True)

    def publish(self, fingerprint: str) -> None:
        """Put the book that was just built in the place of the old one."""
        built = self.stage / "_build"
        self.stamp.unlink(missing_ok=True)
        if self.html.exists():
            self.html.rename(self.previous)
        (built / "html").rename(self.html)
        if (built / "timings.json").is_file():
            (built / "timings.json").replace(self.folder / "timings.json")
        self.stamp.write_text(fingerprint, encoding="utf-8")


def how_to_open(html: Path) -> str:
    """Return what a reader does next."""
    where = os.path.relpath(html)
    return (
        f"The book is in {where}\n"
        f"Read it:     make serve   (or: python tools/serve.py)\n"
        f"Without it:  open {where}/index.html (diagrams and search need the server)"
    )


def check_profile() -> str:
    """Return the profile that the environment names, "laptop" if it names none.

    Raises:
        ValueError: there is no such profile.
    """
    profile = os.environ.get("GANPRUNE_PROFILE") or "laptop"
    if profile not in LENGTHS:
        raise ValueError(f"GANPRUNE_PROFILE must be one of {', '.join(LENGTHS)}; got {profile!r}")
    return profile


def run_jupyter_book(stage: Path, held: TextIO) -> int:
    """Build the book below ``stage`` in a process of its own, which shares the lock; return its exit code."""
    options = ["build", ".", "--toc", "book/_toc.yml", "--path-output", str(stage)]
    options += ["-W", "-n", "--keep-going", "--all"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "GANPRUNE_PROGRESS": "0",
        "PYTHONWARNINGS": "ignore",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    inherited = (held.fileno(),) if os.name == "posix" else ()
    command = [sys.executable, "-c", PROGRAM, *options]
    with subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=inherited) as process:
        lock.sign(held, process.pid)
        try:
            return process.wait()
        except BaseException:
            process.kill()
            process.wait()  # until then it may write into the folder that is about to be removed
            raise


def build_and_publish(places: Places, fingerprint: str, held: TextIO) -> None:
    """Build the book beside the old one and, if it is whole, put it in its place.

    Raises:
        BuildError: it did not build; the old book is as it was.
    """
    places.tidy()
    try:
        javascript.install()
        javascript.install(javascript.KERNEL_TARGET, javascript.KERNEL_PINS)
        if run_jupyter_book(places.stage, held):
            raise BuildError("the book did not build; the messages above say why")
        try:
            places.publish(fingerprint)
        except OSError as problem:  # on Windows, a program that has a page of the old book open
            raise BuildError(f"the new book could not be put in place: {problem}") from problem
    finally:
        places.tidy()


def build(output: Path) -> int:
    """Build the book below a folder, unless it is there already; return the exit code."""
    places, start = Places.below(output), time.monotonic()
    try:
        profile = os.environ["GANPRUNE_PROFILE"] = check_profile()
        fingerprint = digest(*INPUTS, settings=SETTINGS)
        if places.is_built_from(fingerprint):
            print("Nothing has changed since the last build.")
            return 0
        with lock.hold(ROOT / "_build" / "build.lock") as held:
            print(f"Building the book (profile {profile}). A first build takes {LENGTHS[profile]};")
            print("later ones run only the notebooks that changed.", flush=True)
            build_and_publish(places, fingerprint, held)
    except lock.LockedError as holder:
        print(f"error: another build is running ({holder}): wait for it, or end it", file=sys.stderr)
        return 1
    except (BuildError, javascript.FetchError, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        if places.html.is_dir():
            print(f"The last good book is still in {os.path.relpath(places.html)}.", file=sys.stderr)
        return 1
    print(f"\nBuilt in {time.monotonic() - start:.0f} s.")
    return 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "_build", help="folder to build below (default: _build)"
    )
    output = parser.parse_args().output.resolve()
    os.chdir(ROOT)
    try:
        code = build(output)
    except KeyboardInterrupt:
        print("\nstopped; a book that was there before is as it was", file=sys.stderr)
        return 130
    if code == 0:
        print(how_to_open(Places.below(output).html))
    return code


if __name__ == "__main__":
    sys.exit(main())
