"""The set-up: three descriptions that agree, a whole wheel, nothing that names a machine, pinned JavaScript."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import javascript
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import ganprune as gp

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def by_name(lines: list[str]) -> dict[str, Requirement]:
    """Return requirements by their normalised names."""
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(item.name): item for item in found}


def declared() -> dict[str, Requirement]:
    """Return what pyproject.toml asks for, extras included."""
    extras = PROJECT["optional-dependencies"]
    return by_name(PROJECT["dependencies"] + extras["book"] + extras["grading"] + extras["test"])


def pins() -> dict[str, str]:
    """Return name → version of the lock."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def conda_pip() -> list[str]:
    """Return the pip part of environment.yml."""
    return next(item["pip"] for item in CONDA["dependencies"] if isinstance(item, dict))


def tracked_text() -> dict[Path, str]:
    """Return every text file that belongs to the repository."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.split("\0") if done.returncode == 0 else []
    found = {}
    for path in (ROOT / name for name in names if name):
        if path.is_file():
            data = path.read_bytes()
            if b"\0" not in data:
                found[path] = data.decode("utf-8")
    return found


# ---------------------------------------------------------------- the three descriptions


def test_environment_and_project_agree() -> None:
    lines = [line for line in conda_pip() if not line.startswith("-")]
    theirs = {name: item.specifier for name, item in by_name(lines).items()}
    ours = {name: item.specifier for name, item in declared().items()}
    assert theirs == ours
    assert "-c constraints.txt" in conda_pip()
    assert "-e ." in conda_pip()


def test_python_versions_agree() -> None:
    wanted = SpecifierSet(PROJECT["requires-python"])
    conda = next(item for item in CONDA["dependencies"] if str(item).startswith("python>"))
    assert SpecifierSet(conda.removeprefix("python")) == wanted
    accepted = [f"3.{minor}" for minor in range(20) if f"3.{minor}.0" in wanted]
    assert accepted == ["3.11", "3.12", "3.13"]
    assert re.search(r'case "\$\$version" in (\S+)\) ;;', MAKEFILE)[1].split("|") == [
        f"{v}.*" for v in accepted
    ]
    for name in ("README.md", "book/setup.md"):
        assert "Python 3.11, 3.12 or 3.13" in (ROOT / name).read_text(encoding="utf-8")


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    lock = pins()
    for name, requirement in declared().items():
        assert name in lock, f"constraints.txt has no line for {name}"
        assert requirement.specifier.contains(lock[name]), f"{name}=={lock[name]} is outside {requirement}"
        assert {item.operator for item in requirement.specifier} == {">=", "<"}, f"{name} lacks a bound"


def test_the_lock_is_closed() -> None:
    lock, seen = pins(), set()
    waiting = [(name, extra) for name, item in declared().items() for extra in (item.extras or {""})]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        assert name in lock, f"{name} is needed but not pinned"
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for line in lines:
            item = Requirement(line)
            if item.marker is None or item.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(item.name), inner) for inner in (item.extras or {""})]


def test_the_lock_names_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    body = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in body)
    names = [line.split("==")[0] for line in body]
    assert names == sorted(set(names))


def test_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert gp.__version__ == PROJECT["version"] == citation["version"]
    assert f"## {PROJECT['version']}" in changelog


# ---------------------------------------------------------------- the package


def test_the_wheel_holds_the_assets(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "ganprune", source / "ganprune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-TEXT"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True, cwd=tmp_path)
    names = set(zipfile.ZipFile(next(tmp_path.glob("ganprune-*.whl"))).namelist())
    wanted = {path for path in (source / "ganprune").rglob("*") if path.is_file()}
    missing = {path.relative_to(source).as_posix() for path in wanted} - names
    assert missing == set()
    assert any(name.startswith("ganprune/assets/mnist/") for name in names)
    assert any(name.endswith("entry_points.txt") for name in names)


# ---------------------------------------------------------------- nothing that names a machine


def test_no_machine_is_named() -> None:
    files = tracked_text()
    patterns = [
        r"(?<![\w.~$}])/(?:work|root|home|Users|opt|mnt)/\w",
        r"\bpypi\.(?:org|python)",
        r"registry\.npm",
        r"npmjs\.",
        r"files\.pythonhosted",
        r"download\.pytorch",
        r"jsdelivr|unpkg\.com|cdnjs",
    ]
    for path, text in files.items():
        if path.resolve() != Path(__file__).resolve():
            for pattern in patterns:
                assert not re.search(pattern, text), f"{path.relative_to(ROOT)} matches {pattern}"


def test_no_reminders_are_left() -> None:
    words = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"])
    for path, text in tracked_text().items():
        assert not re.search(rf"\b(?:{words})\b", text), path.relative_to(ROOT)


# ---------------------------------------------------------------- JavaScript


def test_no_third_party_javascript_is_committed() -> None:
    scripts = [path for path in tracked_text() if path.suffix in (".js", ".mjs")]
    ours = {"course.js", "frames.js", "mermaid-module.js"}
    drawing = {
        "compare.js",
        "drawing.js",
        "generator.js",
        "geometry.js",
        "latents.js",
        "network.js",
        "sparse-file.js",
    }
    assert {path.name for path in scripts} <= ours | drawing
    assert all(path.stat().st_size < 3_000 for path in scripts if path.name in ours)
    assert all(path.stat().st_size < 9_000 for path in scripts)


def test_javascript_is_pinned_without_addresses() -> None:
    pinned = {
        javascript.PINS: {"mathjax", "mermaid", "onnxruntime-web"},
        javascript.TEST_PINS: {"axe-core"},
        javascript.SLIDE_PINS: {"reveal.js"},
        javascript.KERNEL_PINS: {"wabt"},
    }
    for path, names in pinned.items():
        packages = json.loads(path.read_text(encoding="utf-8"))
        assert {package["name"] for package in packages} == names
        for package in packages:
            assert re.fullmatch(r"\d+\.\d+\.\d+", package["version"])
            assert len(base64.b64decode(package["integrity"].removeprefix("sha512-"))) == 64
        assert "://" not in path.read_text(encoding="utf-8")


def test_files_and_whole_folders_are_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for name in ("one.js", "fonts/a.woff", "fonts/deep/b.woff", "other.js"):
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    package = {"files": {"package/one.js": "x/1.js", "package/fonts/": "x/f/"}}
    javascript.unpack(package, tmp_path / "a.tgz", tmp_path / "out")
    found = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_text()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert found == {
        "x/1.js": "one.js",
        "x/f/a.woff": "fonts/a.woff",
        "x/f/deep/b.woff": "fonts/deep/b.woff",
    }


def test_a_wrong_tarball_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"name": "thing", "version": "1.0.0", "integrity": "sha512-AAAA", "files": {}}
    shelf, folder = tmp_path / "shelf", tmp_path / "folder"
    shelf.mkdir()
    folder.mkdir()
    (shelf / "thing-1.0.0.tgz").write_bytes(b"something else")
    monkeypatch.setenv("WHEELHOUSE", str(shelf))
    with pytest.raises(javascript.FetchError, match="not the pinned file: expected sha512-AAAA, got sha512-"):
        javascript.fetch(package, folder)
    assert list(folder.iterdir()) == []


def test_a_right_tarball_is_taken_from_the_wheelhouse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"the pinned bytes"
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    package = {"name": "@scope/thing", "version": "1.0.0", "integrity": f"sha512-{digest}", "files": {}}
    shelf, folder = tmp_path / "shelf", tmp_path / "folder"
    shelf.mkdir()
    folder.mkdir()
    (shelf / "scope-thing-1.0.0.tgz").write_bytes(data)
    monkeypatch.setenv("WHEELHOUSE", str(shelf))
    assert javascript.fetch(package, folder).read_bytes() == data
