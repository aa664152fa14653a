"""What `make` promises: commands that exist, settings that are never ignored, files that stay as they are."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import environment as made_with
import nbformat
import pytest
import timings

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):(?!=)", MAKEFILE, flags=re.MULTILINE))


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize(
    "target", ["book", "test", "lab", "serve", "lint", "clean", "help", "bench", "student"]
)
def test_make_has_the_target(target: str) -> None:
    assert target in TARGETS


def test_commands_in_the_documents_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]
    for page in pages:
        named = re.findall(
            r"(?:`|^\s*|[A-Z]=\w+ )make ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        assert set(named) <= TARGETS, f"{page.name} names a command that does not exist"
    for path in re.findall(r"(tools/\w+\.py)", "".join(page.read_text(encoding="utf-8") for page in pages)):
        assert (ROOT / path).is_file(), path


def test_help_lists_every_documented_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    documented = re.findall(r"^([a-z]+):.*##", MAKEFILE, flags=re.MULTILINE)
    assert documented
    for target in documented:
        assert re.search(rf"^\s+{target} ", done.stdout, flags=re.MULTILINE), target


def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in the repository; settings of a make that runs the tests do not reach it."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment)


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what a command said went wrong, without make's own words."""
    return [line for line in done.stderr.splitlines() if not line.startswith("make")]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """What looks like a finished environment, made with this Python and nothing else."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").write_text(f"version = {platform.python_version()}\n", encoding="utf-8")
    (folder / ".ready").touch()
    return folder


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('case "$2" in *platform*) echo 3.10.4 ;; *) exit 1 ;; esac', "is 3.10.4:"),
        ("exit 1", "did not answer with a version:"),
        ('echo "$@"', "did not answer with a version:"),
        (None, "is not there:"),
    ],
)
def test_a_wrong_python_gets_one_clear_sentence(
    tmp_path: Path, environment: Path, script: str | None, words: str, there: bool
) -> None:
    python, folder = tmp_path / "some python", environment if there else tmp_path / "none"
    if script:
        python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        python.chmod(0o755)
    done = run_make("env", f"VENV={folder}", f"PYTHON={python}")
    assert done.returncode != 0
    (said,) = complaints(done)
    assert "needs Python 3.11, 3.12 or 3.13" in said
    assert f"'{python}' {words}" in said
    assert folder.exists() == there


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("TORCH=cpu", "TORCH=cpu needs TORCH_INDEX=ADDRESS"),
        ("TORCH=gpu", "TORCH must be empty or cpu, got 'gpu'"),
    ],
)
def test_torch_settings_are_checked(
    tmp_path: Path, environment: Path, setting: str, message: str, there: bool
) -> None:
    folder = environment if there else tmp_path / "none"
    done = run_make("env", f"VENV={folder}", f"PYTHON={sys.executable}", setting)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("target", ["book", "serve", "lab"])
def test_a_misspelt_profile_is_refused_before_anything_is_installed(tmp_path: Path, target: str) -> None:
    done = run_make(target, f"VENV={tmp_path / 'none'}", "PROFILE=laptp")
    assert done.returncode != 0
    assert complaints(done) == ["PROFILE must be smoke, laptop or gpu, got 'laptp'."]
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------- an environment that is there already


def test_what_is_not_set_by_hand_follows_the_environment(environment: Path) -> None:
    done = run_make("env", f"VENV={environment}")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_same_settings_again_are_no_news(environment: Path) -> None:
    settings = {"TORCH_INDEX": "https://reader:secret@index.example/cpu", "WHEELHOUSE": "some folder"}
    made_with.remember(environment, settings)
    given = [f"{name}={value}" for name, value in settings.items()]
    done = run_make("env", f"VENV={environment}", f"PYTHON={sys.executable}", "TORCH=cpu", *given)
    assert (done.returncode, done.stderr) == (0, "")
    assert all("secret" not in path.read_text() for path in environment.iterdir() if path.is_file())


def test_another_python_than_the_environments_is_not_ignored(environment: Path) -> None:
    other = "3.12.1" if sys.version_info[:2] == (3, 11) else "3.11.1"
    (environment / "pyvenv.cfg").write_text(f"version = {other}\n", encoding="utf-8")
    done = run_make("env", f"VENV={environment}", f"PYTHON={sys.executable}")
    assert done.returncode != 0
    (said,) = complaints(done)
    assert f"made with Python {other}, not {platform.python_version()}" in said
    assert f"remove {environment}" in said
    assert run_make("env", f"VENV={environment}").returncode == 0


def test_another_torch_than_the_environments_is_not_ignored(environment: Path) -> None:
    settings = ["TORCH=cpu", "TORCH_INDEX=https://index.example/cpu"]
    done = run_make("env", f"VENV={environment}", *settings)
    assert done.returncode != 0
    (said,) = complaints(done)
    assert "made with the usual torch, not with torch from https://index.example/cpu" in said
    assert f"remove {environment}" in said
    made_with.remember(environment, {"TORCH_INDEX": "https://index.example/older"})
    (said,) = complaints(run_make("env", f"VENV={environment}", *settings))
    assert "made with torch from https://index.example/older" in said


def test_a_wheelhouse_that_comes_too_late_is_noted(environment: Path) -> None:
    done = run_make("env", f"VENV={environment}", "WHEELHOUSE=wheels")
    assert done.returncode == 0
    (said,) = complaints(done)
    assert said.startswith("note:")
    assert "was not made from WHEELHOUSE=wheels" in said


def test_settings_are_remembered_even_if_the_installation_fails(tmp_path: Path) -> None:
    folder, wheels = tmp_path / "venv", tmp_path / "wheels"
    wheels.mkdir()
    settings = [f"VENV={folder}", f"PYTHON={sys.executable}", f"WHEELHOUSE={wheels}"]
    first = run_make("env", *settings)
    assert first.returncode != 0
    assert "minutes" in first.stdout
    assert not (folder / ".ready").exists()
    late = run_make("env", *settings, "TORCH=cpu", "TORCH_INDEX=https://index.example/cpu")
    assert "made with the usual torch" in complaints(late)[0]


# ---------------------------------------------------------------- what commands say and where they write


def test_long_commands_say_how_long_they_take(environment: Path) -> None:
    for target in ("test", "wheelhouse", "lock"):
        shown = run_make("--dry-run", target, f"VENV={environment}").stdout
        assert re.search(r"echo .*\bminutes\b", shown), target


def test_jupyterlab_gets_its_options(environment: Path) -> None:
    shown = run_make("--dry-run", "lab", f"VENV={environment}", "LAB=--allow-root --ip=0.0.0.0").stdout
    assert f"{environment}/bin/jupyter lab --allow-root --ip=0.0.0.0 notebooks" in shown


def test_benchmarks_reach_the_tracked_record_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    command, record = (importlib.import_module(f"benchmarks.{name}") for name in ("__main__", "record"))
    selection = importlib.import_module("benchmarks.selection")
    monkeypatch.setattr(selection, "measure", lambda quick: [record.Row("a figure", 1.0, "×")])
    assert record.LATEST == ROOT / "benchmarks" / "latest.json"
    assert (ROOT / "_build") in record.SCRATCH.parents
    tracked, scratch = tmp_path / "tracked.json", tmp_path / "new folder" / "latest.json"
    monkeypatch.setattr(record, "LATEST", tracked)
    monkeypatch.setattr(record, "SCRATCH", scratch)
    assert command.main(["--only", "selection"]) == 0
    assert scratch.is_file()
    assert not tracked.exists()
    said = capsys.readouterr()
    assert "About 1 min" in said.err
    assert f"kept in {os.path.relpath(scratch)}" in said.out
    scratch.unlink()
    assert command.main(["--only", "selection", "--record"]) == 0
    assert tracked.is_file()
    assert not scratch.exists()
    with pytest.raises(SystemExit, match="2"):
        command.main(["--quick", "--record"])


@pytest.mark.parametrize(("setting", "recorded"), [([], False), (["RECORD=1"], True)])
def test_make_bench_passes_on_what_is_to_be_recorded(
    environment: Path, setting: list[str], recorded: bool
) -> None:
    shown = run_make("--dry-run", "bench", f"VENV={environment}", *setting).stdout
    assert ("--record" in shown) == recorded


def test_run_times_replace_older_ones_of_the_same_machine(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    device = timings.device_name()
    assert device.strip()
    row = {"notebook": "notebooks/01_a", "device": device, "profile": "laptop"}
    for seconds, profile in ((3.0, "laptop"), (9.0, "gpu"), (2.0, "laptop")):
        timings.record(row | {"seconds": seconds, "profile": profile}, path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(found["profile"], found["seconds"]) for found in rows] == [("gpu", 9.0), ("laptop", 2.0)]


# ---------------------------------------------------------------- copies for students


def test_students_get_the_chapters_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    command = [sys.executable, "tools/students.py", "--output", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    chapters = {path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert chapters
    assert {path.name for path in folder.iterdir()} == chapters


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_cell_depends_on_the_folder_of_its_notebook(path: Path) -> None:
    """A notebook on a hosted service has no repository around it: records and data come from the package."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not re.search(r"""["'](?:\.\.?/|(?:results|ganprune|notebooks)/)""", cell.source), (
                cell.source
            )


def test_the_tests_run_the_copies_in_a_folder_of_their_own(environment: Path) -> None:
    shown = run_make("--dry-run", "test", f"VENV={environment}").stdout
    folder = re.search(r'copies="\$\(mktemp -d\)"', shown)
    written, run = shown.find('students.py --output "$copies"'), shown.find('tests notebooks "$copies"')
    assert folder
    assert folder.start() < written < run


def test_ci_runs_the_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"\bmake lint test$", script, flags=re.MULTILINE)
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- continuous integration


@pytest.mark.parametrize(
    ("programs", "code", "says"),
    [
        ((), 1, "need Chromium"),
        (("firefox",), 1, "need Chromium"),
        (("chromium",), 0, "Chromium alone looks"),
        (("chromium", "firefox-esr"), 0, ""),
    ],
)
def test_ci_runs_the_tests_only_where_a_browser_is_there(
    tmp_path: Path, programs: tuple[str, ...], code: int, says: str
) -> None:
    for name in ("bash", "dirname", "id"):
        (tmp_path / name).symlink_to(shutil.which(name))
    for name in ("make", *programs):
        (tmp_path / name).write_text('#!/bin/sh\necho "$0 $*"\n')
        (tmp_path / name).chmod(0o755)
    run = ["/bin/bash", str(ROOT / ".ci" / "run")]
    done = subprocess.run(run, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == code
    assert says in done.stderr if says else not done.stderr
    assert done.stdout.endswith("make lint test\n") == (code == 0)
