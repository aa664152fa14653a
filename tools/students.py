"""Write copies of the notebooks without solutions, for a class.

    python tools/students.py                      every chapter of notebooks/ to _build/student
    python tools/students.py --output FOLDER      to another folder

The solution of an exercise is everything between ``{solution-start}`` and ``{solution-end}``, or one
``{solution}`` block. In its place stands one empty cell. Stored outputs and the slides are removed as well. Where
`_config.yml` names the repository's address, a first cell installs the package if it is missing. The template for
new chapters is not for students and is left out. `make test` runs the copies in a folder outside the repository.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import address
import nbformat

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = "[0-9]*.ipynb"
FENCE = re.compile(r"^\s*(?P<fence>`{3,}|:{3,})\s*(?:\{(?P<name>[\w-]+)\})?")


class SolutionError(ValueError):
    """A notebook's solutions do not begin and end in turn."""


def directives(text: str) -> list[tuple[str | None, str]]:
    """Split Markdown into (directive name or None, text) pieces, by its outermost fences."""
    pieces: list[tuple[str | None, str]] = []
    name, fence, lines = None, "", []
    for line in text.splitlines():
        opening = None if fence else FENCE.match(line)
        if opening:
            pieces.append((None, "\n".join(lines)))
            name, fence, lines = opening["name"], opening["fence"], [line]
        elif fence and re.fullmatch(rf"\s*{fence[0]}{{{len(fence)},}}\s*", line):
            pieces.append((name, "\n".join([*lines, line])))
            name, fence, lines = None, "", []
        else:
            lines.append(line)
    return [*pieces, (name, "\n".join(lines))]


def installation(repository: address.Repository) -> nbformat.NotebookNode:
    """Return the cell that installs the package on a hosted service, and does nothing where it is there."""
    cell = nbformat.v4.new_code_cell(
        "# Installs the course's package where it is missing, as on Colab.\n"
        "import importlib.util\n\n"
        'if importlib.util.find_spec("ganprune") is None:\n'
        f'    %pip install --quiet "{repository.requirement}"'
    )
    cell["id"] = "installation"
    return cell


def place_for_answer(number: int) -> nbformat.NotebookNode:
    """Return the empty cell that stands in place of a solution."""
    cell = nbformat.v4.new_code_cell("# Your answer\n")
    cell["id"] = f"answer-{number}"
    return cell


def without_outputs(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a copy of a cell without what it printed."""
    copy = cell.copy()
    if cell.cell_type == "code":
        copy.update(outputs=[], execution_count=None)
    return copy


def without_solutions(notebook: nbformat.NotebookNode, name: str = "notebook") -> nbformat.NotebookNode:
    """Return a copy of a notebook without solutions and outputs.

    Raises:
        SolutionError: a solution begins twice, ends without a beginning, or never ends.
    """
    cells: list[nbformat.NotebookNode] = []
    inside, answers = False, 0
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            if not inside:
                cells.append(without_outputs(cell))
            continue
        kept: list[str] = []
        answers_before = answers
        for directive, text in directives(cell.source):
            if directive in ("solution-start", "solution-end") and inside == (directive == "solution-start"):
                raise SolutionError(f"{name}: {{{directive}}} out of turn in cell {cell.get('id')!r}")
            if directive in ("solution-start", "solution-end"):
                inside = not inside
                answers += inside
            elif directive == "solution":
                answers += not inside
            elif not inside:
                kept.append(text)
        if "".join(kept).strip():
            copy = cell.copy()
            copy["source"] = "\n".join(kept).strip("\n")
            cells.append(copy)
        cells += [place_for_answer(number + 1) for number in range(answers_before, answers)]
    if inside:
        raise SolutionError(f"{name}: the last solution has no {{solution-end}}")
    result = notebook.copy()
    result["cells"], result["metadata"] = cells, notebook.metadata.copy()
    if "slides" in notebook.metadata.get("ganprune", {}):  # their notes tell the teacher the answers
        kept = {key: value for key, value in notebook.metadata["ganprune"].items() if key != "slides"}
        result["metadata"]["ganprune"] = nbformat.from_dict(kept)
    return result


def write_copies(output: Path, source: Path = ROOT / "notebooks", pattern: str = "*.ipynb") -> list[Path]:
    """Write a copy of every notebook of a folder whose name fits a pattern, and return where they are."""
    output.mkdir(parents=True, exist_ok=True)
    written, repository = [], address.repository()
    for path in sorted(source.glob(pattern)):
        copy = without_solutions(nbformat.read(path, as_version=4), path.name)
        if repository is not None:
            copy.cells.insert(1, installation(repository))  # after the title
        written.append(output / path.name)
        nbformat.write(copy, written[-1])
    return written


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "_build" / "student", help="folder to write to")
    try:
        for path in write_copies(parser.parse_args().output, pattern=CHAPTERS):
            print(path)
    except SolutionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
