"""What lies in the folder of submissions: whose work can be graded, and what to do about everything else."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ARCHIVES = (".zip", ".gz", ".tar", ".7z", ".rar")
LAYOUT = "FOLDER/STUDENT/ASSIGNMENT.ipynb (or FOLDER/STUDENT/ASSIGNMENT/ASSIGNMENT.ipynb)"


def plain_id(text: str) -> str:
    """Return an id as it is compared: without spaces around it, and an accent stored in one way."""
    return unicodedata.normalize("NFC", text).strip()


@dataclass(frozen=True)
class Submission:
    """One student's work on one assignment.

    Attributes:
        student: the id, which is the folder's name.
        assignment: the name of the assignment.
        notebook: what was handed in, or None.
        note: why there is nothing to grade.
    """

    student: str
    assignment: str
    notebook: Path | None
    note: str = ""


@dataclass
class Collected:
    """What a folder of submissions holds.

    Attributes:
        found: work that can be graded.
        missing: students' assignments that others have handed in, and they have not.
        left_out: sentences about what is not graded.
    """

    found: list[Submission] = field(default_factory=list)
    missing: list[Submission] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def notebooks_of(folder: Path) -> list[Path]:
    """Return a student's notebooks, without the copies that JupyterLab keeps."""
    return sorted(
        path
        for path in folder.rglob("*.ipynb")
        if path.is_file() and not path.is_symlink() and ".ipynb_checkpoints" not in path.parts
    )


def meant(path: Path, names: Iterable[str]) -> str | None:
    """Return the assignment that a notebook under another name seems to be."""
    stem = path.stem.lower()
    return next((name for name in names if name in stem or stem.startswith(name[:2])), None)


def collect(folder: Path, names: Iterable[str], wanted: Iterable[str] | None = None) -> Collected:
    """Look through a folder of submissions.

    Args:
        folder: holds a folder for each student.
        names: all assignments that there are.
        wanted: those to be graded; without it, all.
    """
    names = list(names)
    wanted = names if wanted is None else list(wanted)
    made = Collected()
    students: dict[str, tuple[Path, dict[str, str]]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__MACOSX")):
            continue
        student = plain_id(path.name)
        if path.is_symlink():
            made.left_out.append(f"{path.name} is a link: put the folder itself there")
        elif path.suffix == ".ipynb":
            made.left_out.append(f"{path.name} lies in no student's folder: move it to {LAYOUT}")
        elif path.is_file():
            if path.suffix.lower() in ARCHIVES:
                made.left_out.append(f"{path.name} is packed: unpack it to {LAYOUT}")
        elif student in students:
            made.left_out.append(f"{path.name}/ is a second folder of {student}: put both into one")
        else:
            students[student] = path, {}
            _look(student, *students[student], names, wanted, made)
    collected = {item.assignment for item in made.found}
    for student, (_, stray) in students.items():
        here = {item.assignment for item in made.found if item.student == student}
        for name in sorted(collected - here):
            told = stray.get(name, "")
            note = f"not handed in: there is no {name}.ipynb" + (f", but {told}" if told else "")
            made.missing.append(Submission(student, name, None, note))
    return made


def _look(
    student: str, folder: Path, stray: dict[str, str], names: list[str], wanted: list[str], made: Collected
) -> None:
    """Sort the notebooks of one student; stray notebooks go by the assignment that they seem to be."""
    everything, taken = notebooks_of(folder), {}
    for name in names:
        for path in (folder / f"{name}.ipynb", folder / name / f"{name}.ipynb"):
            if path in everything and name not in taken:
                taken[name] = path
    made.found += [Submission(student, name, path) for name, path in taken.items() if name in wanted]
    for path in everything:
        if path in taken.values():
            continue
        where, name = path.relative_to(folder.parent).as_posix(), meant(path, names)
        if name is None:
            told = f"it has the name of no assignment: rename it to one of {', '.join(f'{n}.ipynb' for n in names)}"
        elif name in taken:
            other = taken[name].relative_to(folder.parent).as_posix()
            told = f"{other} is there as well: if this one counts, put it in that one's place"
        else:
            told = f"rename it to {name}.ipynb and put it to {folder.name}/{name}.ipynb"
            stray[name] = path.relative_to(folder).as_posix()
        if name is None or name in wanted:
            made.left_out.append(f"{where}: {told}")
    if not everything:
        made.left_out.append(f"{folder.name}/ holds no notebook: ask {student}, or remove the folder")
