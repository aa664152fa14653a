"""Make, grade and check the assignments: one source notebook each, everything else is generated.

    python tools/assignments.py release                     what students get, and what the teacher keeps
    python tools/assignments.py grade DIR                   points, feedback and leaderboard of submissions
    python tools/assignments.py totals                      add the teacher's marks for words to points and feedback
    python tools/assignments.py thresholds --seeds 50       how far right solutions are from every threshold

The sources are `assignments/*.ipynb`, in nbgrader's cell format. `release` writes to _build/assignments: `release/` to
hand out, and `teacher/` with solutions, autograders, a rubric, and a course folder for nbgrader itself. `grade` takes
DIR/STUDENT/ASSIGNMENT.ipynb, or DIR/STUDENT/ASSIGNMENT/ASSIGNMENT.ipynb, with the files that belong to it, and writes
points.csv, feedback/ and leaderboard.html to _build/grading. What an earlier run wrote there about other work stays,
and so do the teacher's marks for words. The seed of its tests is the environment variable GANPRUNE_GRADING_SEED, or
else that of the earlier run, in seed.txt.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import nbformat
from collected import LAYOUT, Submission, collect, plain_id
from feedback import feedback_page, leaderboard_page, with_total
from marking import Marked, Marker, Notebook, fits_another, is_setup, is_test, nbgrader_of, ours
from points import UNMARKED, add_up, bring_together, doubtful, place_of, read_points, write_points
from sandbox import WAYS, SandboxError, choose

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "assignments"
TEACHERS = ROOT / "_build" / "assignments" / "teacher"
STUB = 'raise NotImplementedError("write me")'
LARGEST = 64 * 2**20
DAMAGED = "the file is damaged or empty: save the notebook again in JupyterLab and hand in anew"
SIGMAS = 6.0


def sources(only: str | None = None) -> dict[str, Path]:
    """Return the source notebooks by name."""
    found = {path.stem: path for path in sorted(SOURCES.glob("[0-9]*.ipynb"))}
    return {name: path for name, path in found.items() if only is None or only in name}


# ---------------------------------------------------------------- what students and teachers get


def preprocess(notebook: Notebook, *names: str) -> Notebook:
    """Return a copy of a notebook after some of nbgrader's preprocessors."""
    from nbgrader import preprocessors
    from traitlets.config import Config

    settings = Config()
    settings.ClearSolutions.code_stub = {"python": STUB}
    settings.ClearSolutions.text_stub = "*Your answer.*"
    notebook, resources = copy.deepcopy(notebook), {}
    for name in names:
        notebook, resources = getattr(preprocessors, name)(config=settings).preprocess(notebook, resources)
    return notebook


def without(notebook: Notebook, *keys: str) -> Notebook:
    """Return a copy of a notebook whose cells lack some of the course's metadata."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        for key in keys:
            ours(cell).pop(key, None)
    return notebook


def release_version(source: Notebook) -> Notebook:
    """Return what students get: no solutions, no hidden tests, no marking scheme."""
    made = preprocess(
        without(source, "rubric"), "LockCells", "ClearSolutions", "ClearOutput", "CheckCellMetadata"
    )
    return preprocess(
        made,
        "ComputeChecksums",
        "ClearHiddenTests",
        "ClearMarkScheme",
        "ComputeChecksums",
        "CheckCellMetadata",
    )


def autograder_version(source: Notebook) -> Notebook:
    """Return the notebook with all tests and no solutions."""
    return preprocess(
        source, "LockCells", "ClearSolutions", "ClearOutput", "ComputeChecksums", "CheckCellMetadata"
    )


def solution_version(source: Notebook) -> Notebook:
    """Return the notebook with solutions and the tests that students see."""
    return preprocess(source, "ClearOutput", "ClearHiddenTests")


def exercises(source: Notebook) -> dict[str, list[Notebook]]:
    """Return the tests by exercise."""
    found: dict[str, list[Notebook]] = {}
    for cell in source.cells:
        if is_test(cell):
            found.setdefault(str(ours(cell).get("exercise", "")), []).append(cell)
    return found


def titles(source: Notebook) -> dict[str, str]:
    """Return the headings of the exercises by number."""
    lines = [
        line for cell in source.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()
    ]
    heads = [line[3:].split(" · ", 1) for line in lines if line.startswith("## ") and " · " in line]
    return {number: title.rsplit(" (", 1)[0] for number, title in heads}


def points_of(cells: Iterable[Notebook]) -> float:
    """Return the sum of the points of some cells."""
    return sum(float(nbgrader_of(cell)["points"]) for cell in cells)


def rubric(name: str, source: Notebook) -> str:
    """Return the rubric of an assignment in Markdown."""
    told = source.metadata.ganprune
    lines = [
        f"## {name}: {told['title']}",
        "",
        f"Chapters {told['chapters']}, about {told['minutes']} minutes.",
        "",
    ]
    lines += ["| exercise | points | what the tests ask |", "|---|---|---|"]
    heads, automatic = titles(source), 0.0
    for number, cells in exercises(source).items():
        asks = "; ".join(f"{ours(cell)['asks']} ({nbgrader_of(cell)['points']})" for cell in cells)
        automatic += points_of(cells)
        lines.append(f"| {number} · {heads.get(number, '')} | {points_of(cells):g} | {asks} |")
    lines += [f"| all tests | {automatic:g} | |", ""]
    for cell in source.cells:
        if "rubric" in ours(cell):
            lines += [f"In words, {nbgrader_of(cell)['points']:g} points, marked by you:", ""]
            lines += [f"- {item}" for item in ours(cell)["rubric"]]
            answer = [line for line in cell.source.splitlines() if not line.startswith("### ")]
            lines += ["", "An answer that gets all of them:", "", *(f"> {line}" for line in answer), ""]
    return "\n".join(lines)


HANDOUT = """\
# Assignments

Open a notebook in JupyterLab, write your id into its first code cell, and answer from top to bottom. What needs doing
is a cell with `{stub}`. Run everything once from the beginning before you hand in
(Kernel, Restart and run all), and hand in the notebook under the name that it has now, with the files that it wrote
beside it.

How your work is judged, and which help is allowed, stands on the course's page "Handing in".
"""

NBGRADER = """\
# For nbgrader itself: copy this folder, and run `nbgrader generate_assignment NAME` inside it.
# It needs the environment's programs on PATH.
c = get_config()
c.CourseDirectory.course_id = "ganprune"
c.ClearSolutions.code_stub = {{"python": {stub!r}}}
c.ClearSolutions.text_stub = "*Your answer.*"
c.Execute.timeout = 240
"""


def write_release(output: Path) -> list[Path]:
    """Write everything that is generated from the sources; return the notebooks for students."""
    staged = output.with_name(output.name + ".new")
    shutil.rmtree(staged, ignore_errors=True)
    folders = {name: staged / name for name in ("release", "teacher/solution", "teacher/autograder")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    versions = {
        "release": release_version,
        "teacher/solution": solution_version,
        "teacher/autograder": autograder_version,
    }
    rubrics = ["# Rubric", ""]
    course = staged / "teacher" / "nbgrader"
    for name, path in sources().items():
        source = nbformat.read(path, as_version=4)
        for folder, make in versions.items():
            nbformat.write(make(source), staged / folder / path.name)
        rubrics.append(rubric(name, source))
        (course / "source" / name).mkdir(parents=True)
        shutil.copy(path, course / "source" / name / path.name)
    (staged / "teacher" / "rubric.md").write_text("\n".join(rubrics), encoding="utf-8")
    (staged / "release" / "README.md").write_text(HANDOUT.format(stub=STUB), encoding="utf-8")
    (course / "nbgrader_config.py").write_text(NBGRADER.format(stub=STUB), encoding="utf-8")
    (staged / "teacher").chmod(0o700)
    shutil.rmtree(output, ignore_errors=True)
    staged.rename(output)
    return sorted((output / "release").glob("*.ipynb"))


# ---------------------------------------------------------------- grading


def copy_files(notebook: Path, wanted: Iterable[str], folder: Path) -> None:
    """Copy the files that an assignment asks for, where they are plain files of a decent size."""
    for name in wanted:
        path = notebook.parent / name
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST:
            shutil.copyfile(path, folder / name)


def read_notebook(path: Path) -> Notebook:
    """Return a notebook that was handed in.

    Raises:
        ValueError: if it cannot be read; the message is for its author.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError("the file is too large: clear all outputs, save the notebook again and hand in anew")
    try:
        submission = preprocess(nbformat.read(path, as_version=4), "DeduplicateIds")
        [str(cell.source) + str(nbgrader_of(cell)) for cell in submission.cells]
    except Exception as error:
        raise ValueError(DAMAGED) from error
    return submission


def mark_one(item: Submission, source: Notebook, way: str, memory: int) -> Marked:
    """Mark a submission; what is wrong with it becomes a note."""
    with tempfile.TemporaryDirectory(prefix="ganprune-submission-") as folder:
        marker = Marker(source, item.student, Path(folder), way, memory)
        try:
            if item.notebook is None:
                raise ValueError(item.note)
            submission = read_notebook(item.notebook)
        except ValueError as error:
            marks = [marker.unmarked(cell, "not run") for cell in source.cells if is_test(cell)]
            return Marked(marks, note=str(error))
        copy_files(item.notebook, source.metadata.ganprune.get("files", []), Path(folder))
        return marker.mark(submission)


def rows_of(item: Submission, source: Notebook, marked: Marked) -> list[dict[str, Any]]:
    """Return the rows of the table of points for one submission."""
    base = {"student": item.student, "assignment": item.assignment}
    rows = []
    for number in exercises(source):
        marks = [mark for mark in marked.marks if mark.exercise == number]
        notes = "; ".join(dict.fromkeys(mark.note for mark in marks if mark.note))
        got, of = sum(mark.points for mark in marks), sum(mark.of for mark in marks)
        rows.append({**base, "exercise": number, "points": f"{got:g}", "of": f"{of:g}", "note": notes})
    got, of = sum(mark.points for mark in marked.marks), sum(mark.of for mark in marked.marks)
    told = "; ".join(filter(None, [marked.note, marked.aside]))
    rows.append({**base, "exercise": "total", "points": f"{got:g}", "of": f"{of:g}", "note": told})
    for cell in source.cells:
        if "rubric" in ours(cell):
            note = UNMARKED if item.notebook else "nothing to mark"
            words = {"points": "", "of": f"{nbgrader_of(cell)['points']:g}", "note": note}
            rows.append({**base, "exercise": "words", **words})
    rows += [{**base, "exercise": name, "value": f"{value:.6g}"} for name, value in marked.measures.items()]
    return rows


def stage(output: Path) -> Path:
    """Return a new folder beside an output folder, with all that lies there."""
    staged = output.with_name(output.name + ".new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True, mode=0o700)
    if output.is_dir():
        shutil.copytree(output, staged, symlinks=True, dirs_exist_ok=True)
    staged.chmod(0o700)
    return staged


def seed_for(folder: Path) -> str:
    """Return the seed of the tests, and keep it: that of the environment, or of an earlier run, or a new one."""
    kept = folder / "seed.txt"
    earlier = kept.read_text(encoding="utf-8").strip() if kept.is_file() else ""
    seed = os.environ.get("GANPRUNE_GRADING_SEED") or earlier or secrets.token_hex(8)
    if earlier and seed == earlier:
        print("The tests draw the same numbers as in the run before (seed.txt).")
    kept.write_text(seed + "\n", encoding="utf-8")  # to grade again with the same numbers
    return seed


def unseen_images() -> list[Path]:
    """Return the teacher's file of images for the capstone, if there is one; tests find it from any folder.

    Raises:
        ValueError: if it is not there.
    """
    if not (named := os.environ.get("GANPRUNE_UNSEEN")):
        return []
    path = Path(named).resolve()
    if not path.is_file():
        raise ValueError(f"GANPRUNE_UNSEEN: there is no file {path}")
    os.environ["GANPRUNE_UNSEEN"] = str(path)
    return [path]


def grade(submitted: Path, output: Path, isolation: str, memory: int, only: str | None = None) -> Path:
    """Grade a folder of submissions and return the table of points.

    Rows and pages about other work, from earlier runs, stay as they are.

    Raises:
        SandboxError: if students' code cannot be kept away from the sources.
        ValueError: if there is nothing to grade, the earlier table cannot be read, or unseen images are not there.
    """
    if not submitted.is_dir():
        raise ValueError(f"{submitted} is no folder")
    notebooks = {name: nbformat.read(path, as_version=4) for name, path in sources(only).items()}
    if not notebooks:
        raise ValueError(f"no assignment has {only!r} in its name; there are {', '.join(sources())}")
    made = collect(submitted, sources(), notebooks)
    for sentence in made.left_out:
        print(f"Not graded: {sentence}", file=sys.stderr)
    if not made.found:
        raise ValueError(f"{submitted} holds no STUDENT/ASSIGNMENT.ipynb of {', '.join(notebooks)}: {LAYOUT}")
    earlier = read_points(output / "points.csv")
    known = set(map(place_of, earlier))
    found = made.found + [item for item in made.missing if (item.student, item.assignment) not in known]
    way = choose(isolation, [SOURCES, ROOT / ".git", TEACHERS, submitted, *unseen_images()])
    staged = stage(output)
    os.environ["GANPRUNE_GRADING_SEED"] = seed_for(staged)
    students = {item.student for item in found}
    rows: list[dict[str, Any]] = []
    for number, item in enumerate(found, 1):
        started, source = time.monotonic(), notebooks[item.assignment]
        marked = mark_one(item, source, way, memory)
        name_the_owner(item, source, marked, sorted(students - {item.student}))
        rows += rows_of(item, source, marked)
        page = staged / "feedback" / item.student / f"{item.assignment}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(
            feedback_page(item.assignment, item.student, source, marked, titles(source)), encoding="utf-8"
        )
        got, of = sum(mark.points for mark in marked.marks), sum(mark.of for mark in marked.marks)
        told = f"{item.student} {item.assignment}: {got:g} of {of:g}"
        print(f"{number}/{len(found)} {told} ({time.monotonic() - started:.0f} s)", flush=True)
        write_points(bring_together(earlier, rows), staged / "points.csv")
    write_results(bring_together(earlier, rows), staged)
    shutil.rmtree(output, ignore_errors=True)
    staged.rename(output)
    give_to_owner(output)
    return output / "points.csv"


def give_to_owner(output: Path) -> None:
    """Give what root has written to the owner of the folder that it lies in: a teacher who grades in a container."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        owner = output.parent.stat()
        for path in [output, *output.rglob("*")]:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def write_results(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write the table of points, and what depends on it: sums on the pages of feedback, and the leaderboard."""
    for sentence in doubtful(rows):
        print(f"Not counted: {sentence}", file=sys.stderr)
    write_points(rows, folder / "points.csv")
    words = {place_of(row): row for row in rows if row["exercise"] == "words"}
    for row in rows:
        page = folder / "feedback" / row["student"] / f"{row['assignment']}.html"
        if row["exercise"] == "total" and page.is_file():
            text = with_total(page.read_text(encoding="utf-8"), row, words.get(place_of(row), {}))
            page.write_text(text, encoding="utf-8")
    if any(row["exercise"] == "digit_fid" for row in rows):
        (folder / "leaderboard.html").write_text(leaderboard_page(folder / "points.csv"), encoding="utf-8")


def count_words(output: Path) -> Path:
    """Add up a table of points again, after the teacher has marked the words, and return it.

    Raises:
        ValueError: if there is no table, or it cannot be read.
    """
    rows = read_points(output / "points.csv")
    if not rows:
        raise ValueError(f"{output / 'points.csv'} holds no points yet: run make grade first")
    write_results(add_up(rows), output)
    give_to_owner(output)
    return output / "points.csv"


def name_the_owner(item: Submission, source: Notebook, marked: Marked, others: list[str]) -> None:
    """Tell the teacher whose id a notebook has, and where a wrong number of one's own is right for somebody else."""
    said, claimed, here = [], plain_id(marked.claimed), set(others)
    if claimed and claimed != item.student:
        if claimed in others:
            said.append(f"the id in the notebook is {claimed}'s: a typing mistake, or {claimed}'s file")
        else:
            said.append("the id in the notebook is nobody's here: a typing mistake?")
        others = [claimed, *(other for other in others if other != claimed)]
    for mark in marked.marks:
        if mark.own and mark.points == 0 and marked.answers.get(mark.name):
            cell = next(cell for cell in source.cells if nbgrader_of(cell).get("grade_id") == mark.name)
            owner = fits_another(cell, source, marked.answers[mark.name], others)
            if owner:
                whose = f"the number of {owner}" if owner in here else "right for the id in the notebook"
                said.append(f"exercise {mark.exercise}: {whose}")
    marked.aside = "; ".join(filter(None, [marked.aside, *said]))


# ---------------------------------------------------------------- thresholds


def margins(source: Notebook, student: str, seed: str) -> list[tuple[str, str, str, float, float]]:
    """Run the solutions and tests in this process; return (test, what, kind, value, threshold) of each comparison.

    Raises:
        AssertionError: if a right solution fails.
    """
    found: list[tuple[str, str, str, float, float]] = []
    where = ""

    def at_most(value: Any, limit: float, what: str) -> None:
        found.append((where, what, "at most", float(value), float(limit)))
        assert float(value) <= limit, f"{where}: {what} ({float(value)} > {limit})"

    def at_least(value: Any, limit: float, what: str) -> None:
        found.append((where, what, "at least", float(value), float(limit)))
        assert float(value) >= limit, f"{where}: {what} ({float(value)} < {limit})"

    os.environ["GANPRUNE_GRADING_SEED"] = seed
    namespace: dict[str, Any] = {"__name__": "solution", "STUDENT": student}
    for cell in source.cells:
        if cell.cell_type != "code" or not nbgrader_of(cell):
            continue
        where = nbgrader_of(cell)["grade_id"]
        exec(compile(cell.source, where, "exec"), namespace)
        if is_setup(cell):
            namespace |= {"at_most": at_most, "at_least": at_least, "record_measure": lambda *_: None}
    return found


def distances(found: list[tuple[str, str, str, float, float]]) -> list[dict[str, Any]]:
    """Return, for each comparison, how many standard deviations right solutions stay away from its threshold."""
    groups: dict[tuple[str, str, str, float], list[float]] = {}
    for where, what, kind, value, limit in found:
        groups.setdefault((where, what, kind, limit), []).append(value)
    rows = []
    for (where, what, kind, limit), values in groups.items():
        mean = statistics.fmean(values)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        room = limit - mean if kind == "at most" else mean - limit
        away = room / spread if spread > 0 else math.inf
        rows.append(
            {
                "test": where,
                "what": what,
                "n": len(values),
                "mean": mean,
                "sd": spread,
                "threshold": limit,
                "away": away,
            }
        )
    return rows


def check_thresholds(seeds: int, only: str | None = None) -> bool:
    """Repeat right solutions and print how far they stay from every threshold; return whether all is well.

    Raises:
        ValueError: if no assignment has such a name.
    """
    well = True
    if not sources(only):
        raise ValueError(f"no assignment has {only!r} in its name; there are {', '.join(sources())}")
    for name, path in sources(only).items():
        source, found, failed = nbformat.read(path, as_version=4), [], 0
        started, before = time.monotonic(), Path.cwd()
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                try:
                    found += margins(source, f"student-{seed}", f"thresholds {seed}")
                except AssertionError as error:
                    failed += 1
                    print(f"  seed {seed} fails: {error}")
                finally:
                    os.chdir(before)
        rows = distances(found)
        least = min(rows, key=lambda row: row["away"])
        spent = time.monotonic() - started
        print(
            f"{name}: {seeds} runs, {failed} failed, nearest threshold {least['away']:.1f} sd, {spent:.0f} s"
        )
        for row in sorted(rows, key=lambda row: row["away"])[:5]:
            numbers = (
                f"{row['mean']:.3g} ± {row['sd']:.2g}, threshold {row['threshold']:g}, {row['away']:.1f} sd"
            )
            print(f"  {row['test']}: {row['what']}: {numbers}")
        well &= failed == 0 and (seeds < 2 or least["away"] >= SIGMAS)
    return well


# ---------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    release = commands.add_parser("release", help="write what students and teachers get")
    release.add_argument("--output", type=Path, default=ROOT / "_build" / "assignments")
    grading = commands.add_parser("grade", help="grade submissions")
    grading.add_argument("submitted", type=Path)
    grading.add_argument("--output", type=Path, default=ROOT / "_build" / "grading")
    grading.add_argument(
        "--isolation", choices=("auto", *WAYS), default=os.environ.get("ISOLATION") or "auto"
    )
    grading.add_argument("--memory", type=int, default=4096, help="MiB for a student's process")
    grading.add_argument("--only", help="part of an assignment's name")
    adding = commands.add_parser("totals", help="count the teacher's marks for words")
    adding.add_argument("--output", type=Path, default=ROOT / "_build" / "grading")
    checking = commands.add_parser("thresholds", help="repeat right solutions")
    checking.add_argument("--seeds", type=int, default=50)
    checking.add_argument("--only", help="part of an assignment's name")
    options = parser.parse_args(arguments)
    try:
        if options.command == "release":
            made = write_release(options.output)
            print(f"{len(made)} assignments. To hand out: {options.output / 'release'}")
            print(f"For you: {options.output / 'teacher'} (solutions, rubric.md, and a course for nbgrader)")
        elif options.command == "grade":
            table = grade(
                options.submitted.resolve(),
                options.output.resolve(),
                options.isolation,
                options.memory,
                options.only,
            )
            print(f"Points: {table}")
            print(f"To give back: {table.parent / 'feedback'}, a folder for each student")
        elif options.command == "totals":
            print(count_words(options.output.resolve()))
        else:
            return 0 if check_thresholds(options.seeds, options.only) else 1
    except (SandboxError, ValueError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
