"""Launch buttons, copies for students, the cell that installs: there with a repository's address, and not without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import address
import nbformat
import pytest
import students
import yaml
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[1]
URL = "https://github.com/some-class/pruning"
CONFIGURED = {"GANPRUNE_REPOSITORY_URL": URL, "GANPRUNE_REPOSITORY_BRANCH": "spring"}
SIGNS = ["colab.research.google.com", "mybinder.org", "student copy", "hosted-cell", URL]
SETTINGS = f"""
import sys
sys.path[:0] = [{str(ROOT / "book" / "_ext")!r}, {str(ROOT / "tools")!r}]
import hosted
project, author, extensions = "small", "x", ["myst_nb"]
html_theme, html_theme_options = "sphinx_book_theme", {{"repository_url": ""}}
nb_execution_mode = "off"
def setup(app):
    hosted.connect(app)
"""


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CONFIGURED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CONFIGURED.items():
        monkeypatch.setenv(name, value)


# ---------------------------------------------------------------- the address


def config(folder: Path, **repository: str) -> Path:
    """Write a configuration that names a repository."""
    path = folder / "_config.yml"
    path.write_text(yaml.safe_dump({"title": "x", **({"repository": repository} if repository else {})}))
    return path


def test_the_address_stands_in_one_place(tmp_path: Path) -> None:
    assert address.repository(config(tmp_path)) is None
    assert address.repository(config(tmp_path, url="", branch="main")) is None
    found = address.repository(config(tmp_path, url=f"{URL}.git"))
    assert found == address.Repository(URL, "main")
    assert found.requirement == f"ganprune[sparse] @ git+{URL}@main"
    assert address.repository(config(tmp_path, url=f"{URL}/", branch="dev")) == address.Repository(URL, "dev")
    assert "repository" in yaml.safe_load(address.CONFIG.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("configured")
def test_the_environment_goes_first(tmp_path: Path) -> None:
    found = address.repository(config(tmp_path, url="https://example.org/a/b"))
    assert found == address.Repository(URL, "spring")


@pytest.mark.parametrize(
    "url", ["git@github.com:a/b.git", "github.com/a/b", "https://user:secret@host/a/b", "https://x.org/a"]
)
def test_what_a_browser_cannot_open_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match=r"repository\.url must be an address such as"):
        address.repository(config(tmp_path, url=url))


# ---------------------------------------------------------------- copies for students


@pytest.mark.usefixtures("configured")
def test_copies_install_the_package_where_it_is_missing(tmp_path: Path) -> None:
    for path in students.write_copies(tmp_path, pattern=students.CHAPTERS):
        title, first, *_ = nbformat.read(path, as_version=4).cells
        assert title.cell_type == "markdown"
        assert f'%pip install --quiet "ganprune[sparse] @ git+{URL}@spring"' in first.source
        exec(TransformerManager().transform_cell(first.source), {})  # the package is there: nothing happens


def test_copies_without_an_address_install_nothing(tmp_path: Path) -> None:
    if address.repository() is None:
        for path in students.write_copies(tmp_path, pattern=students.CHAPTERS):
            assert "%pip" not in path.read_text(encoding="utf-8")


# ---------------------------------------------------------------- a small book


def build(folder: Path, environment: dict[str, str]) -> str:
    """Build a book of one chapter and return the chapter's page."""
    cells = [nbformat.v4.new_markdown_cell("# 1 · One"), nbformat.v4.new_code_cell("1 + 1")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (folder / "notebooks").mkdir(parents=True)
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "notebooks" / "01_one.ipynb"
    )
    (folder / "index.md").write_text("# Small\n\n```{toctree}\nnotebooks/01_one\n```\n")
    (folder / "conf.py").write_text(SETTINGS)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(folder), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment() | environment)
    assert done.returncode == 0, done.stderr
    return (folder / "html" / "notebooks" / "01_one.html").read_text(encoding="utf-8")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in CONFIGURED}


def test_a_book_with_an_address_has_the_buttons_and_one_without_has_none(tmp_path: Path) -> None:
    page = build(tmp_path / "with", CONFIGURED)
    for sign in SIGNS:
        assert sign in page, sign
    assert "/github/some-class/pruning/blob/spring/notebooks/01_one.ipynb" in page
    assert 'href="../_student/01_one.ipynb"' in page
    copies = {path.name for path in (tmp_path / "with" / "html" / "_student").iterdir()}
    assert copies == {path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    if address.repository() is None:
        page = build(tmp_path / "without", {})
        assert not [sign for sign in SIGNS if sign in page]
        assert not (tmp_path / "without" / "html" / "_student").exists()
        assert "01_one.ipynb" in page, "the notebook itself can be downloaded all the same"
