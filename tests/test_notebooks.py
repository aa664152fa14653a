"""Guards over the notebooks: parts of a chapter, cells that can be compared, copies for students."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import students
import yaml

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HEADINGS = [
    "Objectives",
    "Prerequisites",
    "What it means",
    "Exercises",
    "Check yourself",
    "Summary",
    "Further reading",
]
COMPARED, FOLDED = "nbval-check-output", "hide-input"  # tags of cells
LONGEST_CELL = 20  # lines that begin a statement
LONGEST_ON_THE_PAGE = 31  # lines that a reader sees

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    """Return a notebook's cells of one kind."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def prose(path: Path) -> str:
    """Return a notebook's Markdown."""
    return "\n\n".join(cell.source for cell in cells(path, "markdown"))


def chapter(path: Path) -> str:
    """Return the number in a notebook's name; the template's is 00."""
    return "00" if path.stem == "template" else path.stem[:2]


def section(path: Path, heading: str) -> str:
    """Return the Markdown from one second-level heading to the next."""
    found = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", prose(path), flags=re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def test_there_are_chapters_and_a_template() -> None:
    assert ROOT / "notebooks" / "template.ipynb" in PATHS
    assert len(PATHS) > 1


def test_the_contents_list_every_chapter_and_not_the_template() -> None:
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    listed = {page["file"] for part in contents["parts"] for page in part["chapters"]}
    chapters = {f"notebooks/{path.stem}" for path in PATHS if path.stem != "template"}
    assert {name for name in listed if name.startswith("notebooks/")} == chapters


# ---------------------------------------------------------------- parts


@every_notebook
def test_the_name_and_the_title_carry_the_number(path: Path) -> None:
    assert path.stem == "template" or re.fullmatch(r"\d\d(_[a-z0-9]+)+", path.stem)
    title = prose(path).splitlines()[0]
    assert re.match(rf"# {int(chapter(path))} · \S", title), title
    assert len(re.findall(r"^# ", prose(path), flags=re.MULTILINE)) == 1


@every_notebook
def test_the_parts_are_there_in_order(path: Path) -> None:
    found = re.findall(r"^## (.+)$", prose(path), flags=re.MULTILINE)
    assert [heading for heading in found if heading in HEADINGS] == HEADINGS


@every_notebook
def test_the_parts_say_something(path: Path) -> None:
    assert len(re.findall(r"^[-*] ", section(path, "Objectives"), flags=re.MULTILINE)) >= 3
    assert len(section(path, "Prerequisites").split()) >= 10
    assert len(section(path, "What it means").split()) >= 20
    assert len(section(path, "Summary").split()) >= 15
    assert "{cite" in section(path, "Further reading")


@every_notebook
def test_exercises_have_solutions(path: Path) -> None:
    text = prose(path)
    labels = re.findall(r"^```+\{exercise[^}]*\}.*\n:label: (\S+)", text, flags=re.MULTILINE)
    gated = re.findall(r"^```+\{solution-start\} (\S+)\n:class: dropdown", text, flags=re.MULTILINE)
    single = re.findall(r"^```+\{solution\} (\S+)\n:class: dropdown", text, flags=re.MULTILINE)
    assert labels == [f"ex-{chapter(path)}-{number}" for number in range(1, len(labels) + 1)]
    assert len(labels) >= 5
    assert sorted(gated + single) == sorted(labels)
    assert text.count("{solution-end}") == len(gated)


@every_notebook
def test_at_least_two_solutions_have_code(path: Path) -> None:
    kept = students.without_solutions(nbformat.read(path, as_version=4), path.name).cells
    kept_code = {cell["id"] for cell in kept if cell.cell_type == "code"}
    in_solutions = [cell for cell in cells(path, "code") if cell["id"] not in kept_code]
    assert len(in_solutions) >= 2


@every_notebook
def test_the_self_check_has_one_right_answer_each(path: Path) -> None:
    questions = re.split(r"^\*\*\d+\. .+\*\*$", section(path, "Check yourself"), flags=re.MULTILINE)[1:]
    assert len(questions) >= 3
    for question in questions:
        answers = re.findall(
            r'<details class="choice"><summary>[^<$]+</summary>\n\n(.*?)\n\n</details>',
            question,
            flags=re.DOTALL,
        )
        assert len(answers) == question.count("<details") >= 2
        assert sum(answer.startswith("**Yes.**") for answer in answers) == 1
        assert all(len(answer.split()) >= 3 for answer in answers)


# ---------------------------------------------------------------- cells


@every_notebook
def test_cells_are_short(path: Path) -> None:
    for cell in cells(path, "code"):
        code = "".join(line for line in cell.source.splitlines(keepends=True) if line[:1] not in "%!")
        tree = ast.walk(ast.parse(code))
        starts = {node.lineno for node in tree if isinstance(node, (ast.stmt, ast.ExceptHandler))}
        assert len(starts) <= LONGEST_CELL, (
            f"cell {cell['id']} has {len(starts)} lines that begin a statement"
        )
        if FOLDED not in cell.metadata.get("tags", []):
            lines = len(cell.source.splitlines())
            assert lines <= LONGEST_ON_THE_PAGE, f"cell {cell['id']} takes {lines} lines of the page"


@every_notebook
def test_code_that_only_draws_is_folded(path: Path) -> None:
    for cell in cells(path, "code"):
        tree = ast.parse(
            "".join(line for line in cell.source.splitlines(keepends=True) if line[:1] not in "%!")
        )
        makes_axes = "plt.subplots" in cell.source and len(cell.source.splitlines()) > 8
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if makes_axes and not calls & {"print", "gp.train", "gp.evaluate", "gp.plots.Table"}:
            assert FOLDED in cell.metadata.get("tags", []), f"cell {cell['id']} only draws"


@every_notebook
def test_marked_cells_can_be_compared(path: Path) -> None:
    assert not any("NBVAL_" in cell.source for cell in cells(path, "code")), "a reader sees a marker"
    marked = [cell for cell in cells(path, "code") if COMPARED in cell.metadata.get("tags", [])]
    assert marked, "no cell is marked for comparison"
    for cell in marked:
        assert cell.outputs, f"marked cell {cell['id']} has no stored output: nothing would be compared"
        assert cell.execution_count, f"marked cell {cell['id']} has no execution count"


@every_notebook
def test_stored_outputs_are_text(path: Path) -> None:
    for cell in cells(path, "code"):
        for output in cell.outputs:
            assert output.output_type in ("stream", "execute_result"), f"{output.output_type} in {cell['id']}"
            assert not any(kind.startswith(("image/", "application/")) for kind in output.get("data", {}))
            assert output.get("name") != "stderr", f"stored stderr in {cell['id']}"


@every_notebook
def test_no_cell_needs_a_network_or_an_installation(path: Path) -> None:
    code = "\n".join(cell.source for cell in cells(path, "code"))
    assert not re.search(r"^\s*[!%]\s*(?:pip|conda|wget|curl)", code, flags=re.MULTILINE)
    assert not re.search(r"\b(?:requests|urllib)\b|download=True", code)


@every_notebook
def test_figures_have_a_caption_and_alternative_text(path: Path) -> None:
    for cell in cells(path, "code"):
        settings = cell.metadata.get("mystnb", {})
        if settings.get("figure") or settings.get("image"):
            assert settings.get("figure", {}).get("caption"), f"cell {cell['id']} has no caption"
            assert len(settings.get("image", {}).get("alt", "").split()) >= 5, (
                f"cell {cell['id']} has no alt text"
            )


# ---------------------------------------------------------------- copies for students


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students")
    students.write_copies(folder)
    return folder


@every_notebook
def test_a_copy_has_the_exercises_and_no_solution(path: Path, copies: Path) -> None:
    copy = nbformat.read(copies / path.name, as_version=4)
    nbformat.validate(copy)
    whole, text = prose(path), "\n\n".join(cell.source for cell in copy.cells)
    assert "{solution" not in text
    assert text.count("{exercise}") == whole.count("{exercise}")
    assert text.count("# Your answer") == len(re.findall(r"\{solution(?:-start)?\}", whole))
    assert all(not cell.outputs for cell in copy.cells if cell.cell_type == "code")


def test_copies_use_no_name_that_only_a_solution_defines(copies: Path) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F811", str(copies)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def notebook_of(*parts: tuple[str, str]) -> nbformat.NotebookNode:
    """Return a notebook made of (kind, source) pairs."""
    made = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    return nbformat.v4.new_notebook(cells=[made[kind](source) for kind, source in parts])


def sources(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what the cells of a notebook say."""
    return [cell.source.strip() for cell in notebook.cells]


def test_gated_solutions_vanish_with_their_code() -> None:
    notebook = notebook_of(
        ("markdown", "```{exercise}\n:label: ex-1\n\nWhy?\n```"),
        ("markdown", "Think.\n\n```{solution-start} ex-1\n:class: dropdown\n```"),
        ("markdown", "Because."),
        ("code", "answer = 42"),
        ("markdown", "```{solution-end}\n```"),
        ("code", "after = 1"),
    )
    kept = sources(students.without_solutions(notebook))
    assert kept == ["```{exercise}\n:label: ex-1\n\nWhy?\n```", "Think.", "# Your answer", "after = 1"]


def test_a_solution_block_with_fences_inside_vanishes_whole() -> None:
    block = "````{solution} ex-1\n:class: dropdown\n\n```python\nanswer = 42\n```\n\nBecause.\n````\n\nGo on."
    assert sources(students.without_solutions(notebook_of(("markdown", block)))) == [
        "Go on.",
        "# Your answer",
    ]


def test_colon_fences_are_understood() -> None:
    block = ":::{solution} ex-1\nBecause.\n:::"
    assert sources(students.without_solutions(notebook_of(("markdown", block)))) == ["# Your answer"]


def test_a_fenced_example_of_a_solution_stays() -> None:
    text = "````markdown\n```{solution-start} ex-1\n```\n````"
    assert sources(students.without_solutions(notebook_of(("markdown", text)))) == [text]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["```{solution-start} a\n```"], "no {solution-end}"),
        (["```{solution-end}\n```"], "{solution-end} out of turn"),
        (["```{solution-start} a\n```", "```{solution-start} b\n```"], "{solution-start} out of turn"),
    ],
)
def test_unpaired_solutions_are_refused(parts: list[str], message: str) -> None:
    notebook = notebook_of(*(("markdown", part) for part in parts))
    with pytest.raises(students.SolutionError, match=re.escape(message)):
        students.without_solutions(notebook, "06.ipynb")


def test_outputs_are_removed_and_the_original_is_untouched() -> None:
    notebook = notebook_of(("code", "1 + 1"))
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="2")]
    copy = students.without_solutions(notebook)
    assert copy.cells[0].outputs == []
    assert len(notebook.cells[0].outputs) == 1


def test_a_marked_cell_is_really_compared(tmp_path: Path) -> None:
    """nbval compares cells by their tag: a stored output that is wrong fails, and one that is right passes."""
    for stored, passes in (("2", True), ("3", False)):
        cell = nbformat.v4.new_code_cell("print(1 + 1)", execution_count=1)
        cell.metadata["tags"] = [COMPARED]
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"{stored}\n")]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        path = tmp_path / f"stored_{stored}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), path)
        command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", str(path)]
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider"], cwd=tmp_path, capture_output=True, text=True
        )
        assert (done.returncode == 0) == passes, done.stdout
