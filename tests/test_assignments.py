"""The assignments: sources that hold together, releases that give nothing away, and grading that nothing upsets."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import collected
import feedback
import marking
import nbformat
import points as table
import pytest
import sandbox
import torch
from marking import Notebook, is_setup, is_test, nbgrader_of, ours
from student_process import encode

import assignments

ROOT = Path(__file__).resolve().parents[1]
NAMES = list(assignments.sources())
SEED = "a-secret-of-the-teacher"
GAME = "01_the_game"
every_assignment = pytest.mark.parametrize("name", NAMES)


def source_of(name: str) -> Notebook:
    """Return a source notebook."""
    return nbformat.read(assignments.sources()[name], as_version=4)


def hidden_lines(source: Notebook) -> set[str]:
    """Return the lines of a source that no student may see: hidden tests and solutions, where they are telling."""
    secret, open_to_all = set(), set()
    for cell in source.cells:
        inside = False
        for line in cell.source.splitlines():
            if re.search(r"### BEGIN (SOLUTION|HIDDEN TESTS)", line):
                inside = True
            elif re.search(r"### END (SOLUTION|HIDDEN TESTS)", line):
                inside = False
            else:
                (secret if inside else open_to_all).add(line.strip())
    return {line for line in secret - open_to_all if len(line) > 24}


def hidden_tests(source: Notebook) -> set[str]:
    """Return the telling lines of hidden tests alone."""
    solved = assignments.solution_version(source)
    known = {line.strip() for cell in solved.cells for line in cell.source.splitlines()}
    return hidden_lines(source) - known


# ---------------------------------------------------------------- sources


def test_there_are_five() -> None:
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04", "05"]


@every_assignment
def test_points_and_exercises(name: str) -> None:
    source = source_of(name)
    nbformat.validate(source)
    parts = assignments.exercises(source)
    assert list(parts) == [str(number) for number in range(1, len(parts) + 1)]
    assert 4 <= len(parts) <= 6
    assert sum(map(assignments.points_of, parts.values())) == 16
    heads = assignments.titles(source)
    text = "\n".join(cell.source for cell in source.cells if cell.cell_type == "markdown")
    for number, cells in parts.items():
        total = f"{assignments.points_of(cells):g}"
        assert f"## {number} · {heads[number]} ({total} points)" in text
        assert all(ours(cell)["asks"] for cell in cells)
        assert all(len(cell.source.splitlines()) <= 60 for cell in cells)
    words = [cell for cell in source.cells if "rubric" in ours(cell)]
    assert [nbgrader_of(cell)["points"] for cell in words] == [4]
    assert len(ours(words[0])["rubric"]) == 4


@every_assignment
def test_every_hidden_test_draws_from_the_teachers_seed(name: str) -> None:
    for cell in source_of(name).cells:
        if is_test(cell) and "BEGIN HIDDEN TESTS" in cell.source:
            known = any(name in cell.source for name in ("draws(", "hand_in(", "trials", "experiments"))
            assert known or ours(cell).get("own"), nbgrader_of(cell)["grade_id"]


def test_all_sources_share_one_tool_box() -> None:
    boxes = []
    for name in NAMES[:4]:
        boxes.append(next(cell.source for cell in source_of(name).cells if is_setup(cell)))
    assert len(set(boxes)) == 1
    for function in ("def seed_of", "def dice", "def draws", "def at_most", "def at_least"):
        assert all(function in cell.source for cell in [next(filter(is_setup, source_of(NAMES[4]).cells))])


@every_assignment
def test_no_outputs_are_stored(name: str) -> None:
    for cell in source_of(name).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("name", NAMES[:4])
def test_right_solutions_stay_away_from_every_threshold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANPRUNE_GRADING_SEED", "")
    source, found = source_of(name), []
    for seed in range(3):
        found += assignments.margins(source, f"student-{seed}", f"test {seed}")
    near = [row for row in assignments.distances(found) if row["away"] < assignments.SIGMAS]
    assert found
    assert not near


# ---------------------------------------------------------------- wrong answers

WRONG = {
    "03_criteria_and_controls": [
        ("synflow-mask", "density ** (k / rounds)", "density"),
        ("synflow-mask", "w *= mask[name]", "pass"),
        ("taylor-scores", "(g * w.detach()) ** 2", "g * w.detach()"),
        ("shuffle-mask", "torch.Generator().manual_seed(seed)", "torch.Generator().manual_seed(0)"),
        (
            "shuffle-mask",
            "torch.randperm(flags.numel(), generator=random)",
            "torch.randperm(flags.numel(), generator=torch.Generator().manual_seed(seed))",
        ),
        ("decide-words", "0.90", "0.95"),
        ("repaired-price", "(2 * torch", "(1 * torch"),
        ("removal-price", "0.5 * delta @ H @ delta", "0.5 * (H.diag() * delta**2).sum()"),
    ],
    "02_masks_that_hold": [
        (
            "prune-further",
            "round(sparsity * len(flat))",
            "int((~alive).sum()) + round(sparsity * int(alive.sum()))",
        ),
        ("prune-further", "stable=True", "descending=False"),
        ("prune-further", "torch.where(alive, flat, -1.0)", "flat"),
        ("train-pruned", "step >= before", "step == before"),
        ("train-pruned", "    project()\n    ### END", "    ### END"),
        (
            "needed",
            '"transposed":\n            kept *= layer["input"][0] * layer["input"][1]',
            '"transposed":\n            kept *= layer["output"][0] * layer["output"][1]',
        ),
        ("remove-channels", "norm.bias.detach()[left]", "torch.zeros(len(left)).double()"),
    ],
    "01_the_game": [
        ("best-logit", " + math.log(share / (1 - share))", " + (share - 0.5)"),
        ("r1", ".sum(1).mean()", ".sum(1).sum() / 5"),
        ("play", "d_step.zero_grad()", "pass"),
        ("play", "generator(new_z)", "generator(z)"),
        ("frechet", ".clamp(min=0)", ""),
        ("divergence", "share * log_p.exp() * (log_p - log_m)", "log_p.exp() * (log_p - log_m)"),
    ],
    "04_schedules_and_tickets": [
        (
            "find-ticket",
            "trained = copy.deepcopy(network)",
            "trained = copy.deepcopy(network) if _ == 0 else trained",
        ),
        ("find-ticket", "weights[n] *= mask[n]", "pass"),
        ("sparse-weights", "mask.sum(1, keepdim=True).clamp(min=1)", "torch.tensor(float(mask.shape[1]))"),
        ("sparse-weights", "mask.sum(1, keepdim=True).clamp(min=1)", "mask.float().sum(1).mean()"),
        ("live", " & read[i + 1][:, None]", ""),
        ("mean-density", "(power + 1)", "2"),
        ("sparsity-at", "left**power", "left**3"),
    ],
}
"""Typical wrong answers, by assignment: the cell, what is right in it, what somebody writes instead."""


@pytest.mark.parametrize("name", WRONG)
def test_typical_wrong_answers_are_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANPRUNE_GRADING_SEED", SEED)
    for place, right, wrong in WRONG[name]:
        namespace: dict[str, Any] = {"__name__": "wrong", "STUDENT": "ada"}
        failed = []
        for cell in source_of(name).cells:
            found = nbgrader_of(cell)
            if cell.cell_type != "code" or not found:
                continue
            assert found["grade_id"] != place or right in cell.source, (place, right)
            text = cell.source.replace(right, wrong) if found["grade_id"] == place else cell.source
            try:
                exec(compile(text, found["grade_id"], "exec"), namespace)
            except AssertionError as error:
                failed.append(str(error))
            except Exception:
                failed.append("")
        assert any(failed), f"nobody notices {wrong!r} in {place}"


# ---------------------------------------------------------------- releases


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make assignments` writes."""
    folder = tmp_path_factory.mktemp("kit") / "assignments"
    assignments.write_release(folder)
    return folder


def test_the_release_holds_no_hidden_test_and_no_solution(generated: Path) -> None:
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in (generated / "release").rglob("*") if path.is_file()
    )
    for name in NAMES:
        lines = hidden_lines(source_of(name))
        assert len(lines) > 20
        assert not [line for line in lines if json.dumps(line)[1:-1] in text]
    for word in ("SOLUTION", "HIDDEN TESTS", "MARK SCHEME", '"rubric"'):
        assert word not in text
    assert sorted(path.name for path in (generated / "release").iterdir()) == [
        f"{n}.ipynb" for n in NAMES
    ] + ["README.md"]


def test_a_release_can_be_answered(generated: Path) -> None:
    for name in NAMES:
        made = nbformat.read(generated / "release" / f"{name}.ipynb", as_version=4)
        nbformat.validate(made)
        for cell in made.cells:
            found = nbgrader_of(cell)
            if found.get("solution") and cell.cell_type == "code":
                assert assignments.STUB in cell.source
            if is_test(cell) or is_setup(cell):
                assert cell.metadata["editable"] is False
                assert found["checksum"]


def test_the_teacher_gets_solutions_tests_and_a_rubric(generated: Path) -> None:
    assert (generated / "teacher").stat().st_mode & 0o077 == 0 or os.name == "nt"
    rubric = (generated / "teacher" / "rubric.md").read_text(encoding="utf-8")
    for name in NAMES:
        solution = (generated / "teacher" / "solution" / f"{name}.ipynb").read_text(encoding="utf-8")
        autograder = (generated / "teacher" / "autograder" / f"{name}.ipynb").read_text(encoding="utf-8")
        assert assignments.STUB not in solution
        assert "BEGIN HIDDEN TESTS" not in solution
        assert "BEGIN HIDDEN TESTS" in autograder
        assert "BEGIN SOLUTION" not in autograder
        assert f"## {name}: " in rubric
        assert (generated / "teacher" / "nbgrader" / "source" / name / f"{name}.ipynb").is_file()


def test_neither_chapters_nor_their_copies_hold_an_answer(tmp_path: Path) -> None:
    import students

    copies = students.write_copies(tmp_path, pattern=students.CHAPTERS)
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*copies, *(ROOT / "book").glob("*.md")])
    for name in NAMES:
        lines = {line for line in hidden_tests(source_of(name)) if len(line) > 40}
        assert not [line for line in lines if json.dumps(line)[1:-1] in text]


# ---------------------------------------------------------------- values that cross the border


def test_values_arrive_as_they_left() -> None:
    values: list[Any] = [None, True, 3, -2.5, float("inf"), "text", [1, (2.0, "b")], {"a": {1: 2}}]
    for value in values:
        assert marking.decode(json.loads(json.dumps(encode(value)))) == value
    for tensor in (
        torch.randn(2, 3),
        torch.zeros(0, 4),
        torch.tensor(True),
        torch.ones(2).bfloat16(),
        torch.arange(3),
    ):
        back = marking.decode(json.loads(json.dumps(encode(tensor))))
        assert back.dtype == tensor.dtype
        assert back.equal(tensor)
    assert marking.decode(encode(object())) == marking.Opaque("object")


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "tensor", "dtype": "float32", "shape": [10**9], "data": "AAAA"},
        {"kind": "tensor", "dtype": "float32", "shape": [-1, -1], "data": ""},
        {"kind": "dict", "items": [[{"kind": "list", "items": []}, 1]]},
        {"number": "1+1"},
        {"kind": "list", "items": 3},
        {"unknown": 1},
    ],
)
def test_nonsense_is_refused(bad: Any) -> None:
    with pytest.raises(marking.StudentError):
        marking.decode(bad)


def test_names_in_a_test() -> None:
    source = "import math\nfor i in range(3):\n    x = f(i, math.pi)\ng = lambda y: y + h\nassert x, [z for z in k]"
    assert marking.names_in(source) == {"f", "h", "k"}


def test_a_table_cell_is_no_formula() -> None:
    assert table.safe_cell("=HYPERLINK(1)") == "'=HYPERLINK(1)"
    assert table.safe_cell("-3.5") == "-3.5"
    assert table.safe_cell("two\nlines") == "two lines"
    for text in ("=HYPERLINK(1)", "-3.5", "plain", "'quoted'"):
        assert table.plain_cell(table.safe_cell(text)) == text


def test_merging_restores_what_is_locked() -> None:
    source = source_of(GAME)
    work = assignments.solution_version(source)
    for cell in work.cells:
        if is_test(cell) or is_setup(cell):
            cell.source = "pass"
    work.cells = [cell for cell in work.cells if nbgrader_of(cell).get("grade_id") != "test-1"]
    work.cells.append(nbformat.v4.new_code_cell("mine = 1"))
    merged = marking.merge(source, work)
    theirs = {nbgrader_of(cell)["grade_id"]: cell.source for cell in source.cells if nbgrader_of(cell)}
    for cell in merged:
        if is_test(cell) or is_setup(cell):
            assert cell.source == theirs[nbgrader_of(cell)["grade_id"]]
    assert sum(map(is_test, merged)) == sum(map(is_test, source.cells))
    assert any(cell.source == "mine = 1" for cell in merged)


# ---------------------------------------------------------------- made-up submissions


def set_answer(work: Notebook, name: str, source: str) -> None:
    """Put code into an answer cell."""
    next(cell for cell in work.cells if nbgrader_of(cell).get("grade_id") == name)["source"] = source


def insert(work: Notebook, position: int, source: str) -> None:
    """Add a cell of the student's own."""
    work.cells.insert(position, nbformat.v4.new_code_cell(source))


def crash(work: Notebook) -> None:
    """One cell ends the process, one function does, another raises."""
    set_answer(work, "best-logit", "import os\nos._exit(3)")
    set_answer(work, "r1", "import os\n\ndef r1(discriminator, real):\n    os.abort()")
    set_answer(work, "frechet", "def frechet(x, y):\n    return [][1]")


def loop(work: Notebook) -> None:
    """A function and a cell that never end."""
    set_answer(work, "divergence", "def divergence(log_p, log_q, x, share):\n    while True:\n        pass")


SNOOP = """\
import gc, inspect, os, sys
print([name for name in globals() if "test" in name.lower()], In, dir(sys.modules["__main__"]))
print([str(o)[:2000] for o in gc.get_objects() if isinstance(o, str) and "HIDDEN" in o])
print([f.frame.f_locals for f in inspect.stack()], os.environ, sys.argv)
get_ipython().events.register("pre_run_cell", lambda info: print(info.raw_cell))
get_ipython().ast_transformers.append(type("T", (), {"visit": lambda self, tree: print(tree) or tree})())
"""


def snoop(work: Notebook) -> None:
    """Look for tests everywhere in the process, from a cell and from a function that is tested."""
    insert(work, 1, SNOOP)
    source = next(cell for cell in work.cells if nbgrader_of(cell).get("grade_id") == "best-logit")
    source["source"] = source.source.replace("    return", "    exec(SNOOPED)\n    return").replace(
        "def best_logit", f"SNOOPED = {SNOOP!r}\n\n\ndef best_logit"
    )


def overwrite(work: Notebook) -> None:
    """Answer nothing, and change everything that judges."""
    for cell in work.cells:
        if is_test(cell):
            cell["source"] = "print('all is well')"
        elif nbgrader_of(cell).get("solution") and cell.cell_type == "code":
            cell["source"] = "pass"
    insert(
        work, 3, "def at_most(*_): pass\ndef at_least(*_): pass\nAssertionError = type('E', (Exception,), {})"
    )
    insert(
        work, 3, "import torch\ntorch.Tensor.__gt__ = lambda *_: torch.tensor(True)\nfloat = lambda x: 0.0"
    )
    work.cells = [cell for cell in work.cells if nbgrader_of(cell).get("grade_id") != "test-4"]


SEARCH = """\
import json, os
from pathlib import Path
import ganprune
places = [Path.cwd(), *Path(ganprune.__file__).resolve().parents, *Path("/proc").glob("[0-9]*/cwd"), Path("/tmp")]
seen = []
for place in places:
    for pattern in ("assignments/*.ipynb", "*.ipynb", "*/assignments/*.ipynb"):
        try:
            seen += [path for path in list(place.glob(pattern))[:50] if "BEGIN SOLUTION" in path.read_text()]
        except OSError:
            pass
print("found", len(seen), [str(path) for path in seen])
for path in seen:
    for cell in json.loads(path.read_text())["cells"]:
        try:
            exec("".join(cell["source"]), globals())
        except Exception:
            pass
"""


def read_sources(work: Notebook) -> None:
    """Look for the sources on the disk and run what they hold."""
    empty(work)
    insert(work, len(work.cells) - 1, SEARCH)
    insert(work, 3, SEARCH)


def empty(work: Notebook) -> None:
    """Hand in what was handed out."""
    for cell in work.cells:
        if nbgrader_of(cell).get("solution") and cell.cell_type == "code":
            cell["source"] = assignments.STUB


def constants(work: Notebook) -> None:
    """Satisfy the visible checks and nothing else."""
    empty(work)
    set_answer(
        work,
        "best-logit",
        "def best_logit(log_p, log_q, share):\n    return log_p - log_q + 10 * (share > 0.5)",
    )
    set_answer(
        work,
        "divergence",
        "def divergence(log_p, log_q, x, share):\n    return 0.0 if log_p is log_q or log_p.equal(log_q) else 0.5",
    )
    set_answer(work, "my-divergence", "my_divergence = 0.1")
    set_answer(
        work,
        "r1",
        "def r1(discriminator, real):\n    w = next(discriminator.parameters()).detach()\n"
        "    return float((w**2).sum()), [2 * w, torch.zeros(1)]",
    )
    set_answer(
        work,
        "play",
        "def play(generator, discriminator, *_):\n    for net in (generator, discriminator):\n"
        "        for w in net.parameters():\n            w.data += 1",
    )
    set_answer(
        work, "frechet", "def frechet(x, y):\n    return float((x.mean(0) - y.mean(0)).square().sum())"
    )


STUDENTS: dict[str, Callable[[Notebook], None] | None] = {
    "ada": None,
    "blank": empty,
    "carl-crashes": crash,
    "lea-loops": loop,
    "noor-snoops": snoop,
    "otto-overwrites": overwrite,
    "rita-reads": read_sources,
    "stan-is-constant": constants,
}
EXPECTED = {
    "ada": [3, 3, 4, 4, 2],
    "blank": [0, 0, 0, 0, 0],
    "carl-crashes": [0, 3, 0, 4, 0],
    "lea-loops": [3, 0, 4, 4, 2],
    "noor-snoops": [3, 3, 4, 4, 2],
    "otto-overwrites": [0, 0, 0, 0, 0],
    "rita-reads": [0, 0, 0, 0, 0],
    "stan-is-constant": [1, 1, 1, 1, 1],
    "zoe-copies": [3, 2, 4, 4, 2],
    "broken": [0, 0, 0, 0, 0],
}


def hand_in(
    folder: Path, student: str, change: Callable[[Notebook], None] | None = None, name: str = GAME
) -> None:
    """Write a student's notebook, made from the solution."""
    work = assignments.solution_version(source_of(name))
    next(cell for cell in work.cells if cell.id == "student")["source"] = f'STUDENT = "{student}"'
    if change:
        change(work)
    (folder / student).mkdir(parents=True)
    nbformat.write(work, folder / student / f"{name}.ipynb")


def claim_to_be_ada(work: Notebook) -> None:
    """Hand in somebody else's notebook."""
    next(cell for cell in work.cells if cell.id == "student")["source"] = 'STUDENT = "ada"'


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class of ten, graded in one go."""
    folder = tmp_path_factory.mktemp("class")
    for student, change in STUDENTS.items():
        hand_in(folder / "in", student, change)
    hand_in(folder / "in", "zoe-copies", claim_to_be_ada)
    (folder / "in" / "broken").mkdir()
    (folder / "in" / "broken" / f"{GAME}.ipynb").write_text('{"cells": [', encoding="utf-8")
    (folder / "in" / "notes.txt").write_text("not a student", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANPRUNE_GRADING_SEED", SEED)
        patch.setattr(marking, "CELL_SECONDS", 12.0)
        patch.setattr(marking, "CALL_SECONDS", 6.0)
        try:
            assignments.grade(folder / "in", folder / "out", "auto", 4096)
        except sandbox.SandboxError as error:
            pytest.skip(str(error))
    return folder / "out"


def rows(graded: Path) -> list[dict[str, str]]:
    """Return the table of points."""
    with (graded / "points.csv").open(newline="", encoding="utf-8-sig") as handle:
        return list(csv.DictReader(handle))


def points(graded: Path, student: str) -> list[float]:
    """Return a student's points by exercise."""
    return [
        float(row["points"])
        for row in rows(graded)
        if row["student"] == student and row["exercise"].isdigit()
    ]


@pytest.mark.parametrize("student", EXPECTED)
def test_made_up_submissions_get_what_they_deserve(graded: Path, student: str) -> None:
    assert points(graded, student) == EXPECTED[student]


def test_everybody_is_in_the_table_and_gets_a_page(graded: Path) -> None:
    assert {row["student"] for row in rows(graded)} == set(EXPECTED)
    assert {path.parent.name for path in graded.rglob("feedback/*/*.html")} == set(EXPECTED)
    assert graded.stat().st_mode & 0o077 == 0


def test_nothing_leaks(graded: Path) -> None:
    secret = hidden_tests(source_of(GAME))
    assert len(secret) > 20
    for path in [graded / "points.csv", *graded.rglob("*.html")]:
        text = path.read_text(encoding="utf-8")
        assert SEED not in text
        plain = html.unescape(text)
        assert not [line for line in secret if line in plain], path
    for student in EXPECTED:
        page = (graded / "feedback" / student / f"{GAME}.html").read_text(encoding="utf-8")
        assert not [other for other in EXPECTED if other != student and len(other) > 6 and other in page]


def test_the_sources_are_out_of_reach(graded: Path) -> None:
    page = (graded / "feedback" / "rita-reads" / f"{GAME}.html").read_text(encoding="utf-8")
    assert "found 0 []" in page


def test_copied_numbers_are_seen(graded: Path) -> None:
    note = next(
        row["note"] for row in rows(graded) if row["student"] == "zoe-copies" and row["exercise"] == "total"
    )
    assert "STUDENT = 'ada'" in note
    assert "exercise 2: the number of ada" in note
    assert "the id in the notebook is ada's: a typing mistake, or ada's file" in note
    page = (graded / "feedback" / "zoe-copies" / f"{GAME}.html").read_text(encoding="utf-8")
    assert "file" not in page.partition("<table>")[0]


def test_what_cannot_be_read_was_not_run(graded: Path) -> None:
    own = [row for row in rows(graded) if row["student"] == "broken"]
    assert {row["note"] for row in own if row["exercise"].isdigit()} == {"not run"}
    page = (graded / "feedback" / "broken" / f"{GAME}.html").read_text(encoding="utf-8")
    assert assignments.DAMAGED.capitalize()[:30] in page
    assert "<td>as asked</td>" not in page
    assert "as they ran" not in page


@pytest.mark.parametrize(
    ("code", "least", "most"),
    [("while True: pass", 0.5, 40), ("import time; time.sleep(60)", 1.9, 40)],
    ids=["works", "sleeps"],
)
def test_waiting_for_a_process_ends(code: str, least: float, most: float) -> None:
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        begin = time.monotonic()
        patience = marking.Patience(process.pid, 0.5)
        while not patience.is_over():
            time.sleep(0.02)
        passed = time.monotonic() - begin
        process.kill()
    assert least <= passed < most


def test_a_process_that_does_not_get_the_processor_is_waited_for() -> None:
    """A stopped process stands for one that a busy machine leaves waiting."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        process.send_signal(signal.SIGSTOP)
        patience = marking.Patience(process.pid, 0.5)
        time.sleep(0.8)
        waited = not patience.is_over()
        process.send_signal(signal.SIGCONT)
        process.kill()
    assert waited


def test_feedback_says_what_happened(graded: Path) -> None:
    notes = {row["student"]: row["note"] for row in rows(graded) if row["exercise"] == "2" and row["note"]}
    assert "did not end within" in notes["lea-loops"]
    crashed = [row["note"] for row in rows(graded) if row["student"] == "carl-crashes"]
    assert any(
        "best_logit is not defined. Its cell failed: it ended Python itself" in note for note in crashed
    )
    assert any("r1: it ended Python itself" in note for note in crashed)
    assert any("raised IndexError" in note for note in crashed)
    assert any("it has no answer yet" in row["note"] for row in rows(graded) if row["student"] == "blank")
    page = (graded / "feedback" / "ada" / f"{GAME}.html").read_text(encoding="utf-8")
    assert "16 of 16 points" in page
    assert "http" not in page
    assert "<script" not in page


def test_what_root_has_written_goes_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can give files away")
    (tmp_path / "result" / "feedback").mkdir(parents=True, mode=0o700)
    (tmp_path / "result" / "points.csv").touch()
    os.chown(tmp_path, 4321, 4321)
    assignments.give_to_owner(tmp_path / "result")
    assert {path.stat().st_uid for path in tmp_path.rglob("*")} == {4321}


# ---------------------------------------------------------------- one run after another

MASKS = "02_masks_that_hold"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Grade made-up points: every test of what was handed in is passed, and nothing runs."""

    def mark_one(item: collected.Submission, source: Notebook, *_: Any) -> marking.Marked:
        marks = [
            marking.Mark(
                nbgrader_of(cell)["grade_id"],
                str(ours(cell)["exercise"]),
                nbgrader_of(cell)["points"] if item.notebook else 0.0,
                nbgrader_of(cell)["points"],
            )
            for cell in source.cells
            if is_test(cell)
        ]
        return marking.Marked(marks, note=item.note)

    monkeypatch.setenv("GANPRUNE_GRADING_SEED", "")
    monkeypatch.setattr(assignments, "mark_one", mark_one)
    monkeypatch.setattr(assignments, "choose", lambda *_: "none")

    def run(submitted: dict[str, str], seed: str = "") -> Path:
        folder = tmp_path / "in"
        shutil.rmtree(folder, ignore_errors=True)
        for name, text in submitted.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if text:
                (folder / name).write_text(text, encoding="utf-8")
        monkeypatch.setenv("GANPRUNE_GRADING_SEED", seed)
        return assignments.grade(folder, tmp_path / "out", "auto", 4096).parent

    return run


def found(graded: Path, student: str, name: str, exercise: str) -> dict[str, str]:
    """Return a row of the table of points."""
    place = {"student": student, "assignment": name, "exercise": exercise}
    return next(row for row in rows(graded) if place.items() <= row.items())


def test_a_second_run_keeps_the_first_and_the_marks_for_words(quick: Callable[..., Path]) -> None:
    graded = quick({f"ada/{GAME}.ipynb": "{}", f"bob/{GAME}.ipynb": "{}"}, "first")
    (graded / "notes.txt").write_text("the teacher's", encoding="utf-8")
    page = graded / "feedback" / "ada" / f"{GAME}.html"
    assert "not marked yet" in page.read_text(encoding="utf-8")
    assert found(graded, "ada", GAME, "total")["of"] == "16"
    marked = (graded / "points.csv").read_text(encoding="utf-8-sig")
    marked = marked.replace(f"ada,{GAME},words,,4", f"ada,{GAME},words,3,4").replace(
        ",", ";"
    )  # as Excel saves it
    (graded / "points.csv").write_text(marked, encoding="utf-8")
    assert assignments.count_words(graded) == graded / "points.csv"
    assert "19 of 20" in page.read_text(encoding="utf-8")
    before = page.read_text(encoding="utf-8")
    graded = quick({f"ada/{MASKS}.ipynb": "{}"})
    assert found(graded, "ada", GAME, "words")["points"] == "3"
    assert [found(graded, "ada", GAME, "total")[name] for name in ("points", "of")] == ["19", "20"]
    assert found(graded, "bob", GAME, "total")["points"] == "16"
    assert found(graded, "ada", MASKS, "total")["points"] == "16"
    assert page.read_text(encoding="utf-8") == before
    assert (graded / "notes.txt").is_file()
    graded = quick({f"ada/{GAME}.ipynb": "{}"})
    assert found(graded, "ada", GAME, "words")["points"] == "3"
    assert found(graded, "ada", GAME, "total")["points"] == "19"
    assert (graded / "seed.txt").read_text(encoding="utf-8").strip() == "first"
    assert graded.stat().st_mode & 0o077 == 0


def test_a_table_that_cannot_be_read_is_not_written_over(quick: Callable[..., Path]) -> None:
    graded = quick({f"ada/{GAME}.ipynb": "{}"})
    (graded / "points.csv").write_text("my own notes", encoding="utf-8")
    with pytest.raises(ValueError, match="Nothing was changed"):
        quick({f"ada/{GAME}.ipynb": "{}"})
    assert (graded / "points.csv").read_text(encoding="utf-8") == "my own notes"


def test_marks_for_words_that_are_no_points_are_named(tmp_path: Path) -> None:
    base = {"student": "ada", "assignment": GAME, "of": "4", "note": ""}
    for given, total in (("2,5", "2.5"), ("5", "0"), ("good", "0")):
        entries = [
            {**base, "exercise": "1", "points": "0"},
            {**base, "exercise": "total", "points": "0"},
            {**base, "exercise": "words", "points": given},
        ]
        assert table.add_up(entries)[1]["points"] == total
        assert len(table.doubtful(entries)) == (given != "2,5")


def test_nothing_that_was_handed_in_vanishes(
    quick: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    graded = quick(
        {
            f"ada/{MASKS}.ipynb": "{}",
            f"ada/{GAME}.ipynb": "{}",
            f"ada/{GAME} (2).ipynb": "{}",
            f"bob/{MASKS} (1).ipynb": "{}",
            f"cleo/{MASKS}/{MASKS}.ipynb": "{}",
            "dan/nothing.txt": "",
            "homework.ipynb": "{}",
            "eve.zip": "x",
            "list.txt": "x",
        }
    )
    told = capsys.readouterr().err
    assert f"Not graded: bob/{MASKS} (1).ipynb: rename it to {MASKS}.ipynb" in told
    assert f"Not graded: ada/{GAME} (2).ipynb: ada/{GAME}.ipynb is there as well" in told
    assert "Not graded: dan/ holds no notebook" in told
    assert "Not graded: homework.ipynb lies in no student's folder: move it to FOLDER/STUDENT" in told
    assert "Not graded: eve.zip is packed" in told
    assert "list.txt" not in told
    assert found(graded, "cleo", MASKS, "total")["points"] == "16"
    lost = found(graded, "bob", MASKS, "total")
    assert lost["points"] == "0"
    assert f"there is no {MASKS}.ipynb, but {MASKS} (1).ipynb" in lost["note"]
    assert found(graded, "dan", GAME, "total")["points"] == "0"
    graded = quick({f"bob/{MASKS}.ipynb": "{}", "cleo/nothing.txt": ""})
    assert found(graded, "bob", MASKS, "total")["points"] == "16"
    assert found(graded, "cleo", MASKS, "total")["points"] == "16", "an earlier row is no missing one"


def test_an_accent_is_the_same_however_it_is_stored(tmp_path: Path) -> None:
    stored, typed = (unicodedata.normalize(form, "zoé") for form in ("NFD", "NFC"))
    assert stored != typed
    (tmp_path / stored).mkdir()
    (tmp_path / stored / f"{GAME}.ipynb").write_text("{}", encoding="utf-8")
    (item,) = collected.collect(tmp_path, NAMES).found
    assert item.student == typed
    for name in NAMES:
        namespace = marking.teacher_namespace(source_of(name).cells, item.student)
        seed_of = namespace["seed_of"]
        assert seed_of("game", stored) == seed_of("game", typed) == seed_of("game", f" {typed} ")
        assert seed_of("game", "zoe") != seed_of("game", typed)


@pytest.mark.parametrize(
    ("name", "message", "words"),
    [
        (
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 42949672960 bytes.",
            "more memory (40 GB) than it has",
        ),
        ("MemoryError", "", "more memory than it has"),
        (
            "AttributeError",
            "'InteractiveShell' object has no attribute 'ask_exit'",
            "it ended itself with exit",
        ),
        ("SystemExit", "0", "it ended itself with exit or sys.exit"),
        ("NotImplementedError", "write me", "no answer yet"),
        ("ValueError", "no", "it raised ValueError: no"),
    ],
)
def test_causes_are_said_in_words(name: str, message: str, words: str) -> None:
    assert words in marking.in_words(name, message)


def test_the_cell_that_would_define_a_name_is_found() -> None:
    assert marking.defines("def f(x):\n    return g(x)", "f")
    assert not marking.defines("def f(x):\n    g = 1", "g")
    assert not marking.defines("y = f(1)", "f")
    assert marking.defines("f, y = 1, 2", "f")
    assert marking.defines("def f(:", "f")


MISTAKES = {
    "Adam's memory goes on": [
        ("step >= before", "step == before"),
        (
            "        optimizer.step()",
            "        if step >= before:\n            for name, kept in mask.items():\n"
            "                parameters[name].grad.mul_(kept)\n        optimizer.step()",
        ),
        ("    project()\n    ### END", "    ### END"),
    ],
    "a fresh Adam has forgotten": [
        (
            "        optimizer.zero_grad()",
            "        if step == before:\n            optimizer = torch.optim.Adam(network.parameters(), lr=rate)\n"
            "        optimizer.zero_grad()",
        )
    ],
    "the first step after pruning": [("step >= before", "step > before")],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mask_that_does_not_hold_is_named_by_its_cause(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANPRUNE_GRADING_SEED", SEED)
    cells = {nbgrader_of(cell).get("grade_id"): cell.source for cell in source_of(MASKS).cells}
    answer = cells["train-pruned"]
    for right, wrong in MISTAKES[words]:
        assert right in answer
        answer = answer.replace(right, wrong)
    namespace: dict[str, Any] = {"STUDENT": "ada"}
    for text in (cells["set-up"], answer, cells["problem"]):
        exec(text, namespace)
    with pytest.raises(AssertionError, match=words):
        exec(cells["test-2"], namespace)


# ---------------------------------------------------------------- the sandbox


def test_a_way_that_does_not_work_is_refused_in_words() -> None:
    with pytest.raises(sandbox.SandboxError, match="none of unshare, user, none"):
        sandbox.choose("hope")


def link_or_copy(source: str, target: str) -> None:
    """Make a file appear a second time, by a link where the disk is the same."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def open_to_all() -> Iterator[tuple[Path, Path]]:
    """A Python and the package that the other user can use: what lies in closed folders is linked elsewhere."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can become another user")
    if sandbox.why_not("user") is None:
        yield sandbox.python(), sandbox.package_folder()
        return
    here = Path(tempfile.mkdtemp(prefix="ganprune-open-", dir="/tmp"))
    here.chmod(0o755)

    def shown(path: Path, name: str) -> Path:
        if sandbox.closed_folder(path) is None:
            return path
        leave_out = (
            shutil.ignore_patterns("site-packages", "test", "__pycache__") if name == "python" else None
        )
        shutil.copytree(path, here / name, symlinks=True, ignore=leave_out, copy_function=link_or_copy)
        return here / name

    try:
        base, packages = Path(sys.base_prefix), Path(torch.__file__).parents[1]
        python = shown(base, "python")
        (here / "package").mkdir()
        package = shown(sandbox.package_folder(), "package/ganprune")
        starter = here / "start-python"
        starter.write_text(
            f"#!/bin/sh\nexport LD_LIBRARY_PATH={shlex.quote(str(python / 'lib'))}\n"
            f'export PYTHONPATH="$PYTHONPATH":{shlex.quote(str(shown(packages, "packages")))}\n'
            f'exec {shlex.quote(str(python / Path(sys.executable).resolve().relative_to(base)))} "$@"\n'
        )
        starter.chmod(0o755)
        yield starter, package
    finally:
        shutil.rmtree(here)


@pytest.fixture
def another_user(open_to_all: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Students' code can run as the other user."""
    python, package = open_to_all
    monkeypatch.setattr(sandbox, "python", lambda: python)
    monkeypatch.setattr(sandbox, "package_folder", lambda: package)


def test_sources_that_the_other_user_can_read_are_refused(another_user: None) -> None:
    folder = Path("/tmp") / f"ganprune-readable-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        assert "can read" in str(sandbox.why_not("user", [folder]))
        images = folder / "images.npy"
        images.touch(0o644)
        assert f"can read {images}" in str(sandbox.why_not("user", [images]))
        folder.chmod(0o700)
        assert sandbox.why_not("user", [folder, images]) is None
    finally:
        shutil.rmtree(folder)


def test_a_python_out_of_reach_is_named_with_a_remedy(
    another_user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = Path("/tmp") / f"ganprune-closed-{os.getpid()}"
    closed.mkdir(mode=0o700)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sandbox, "python", lambda: closed / "python")
            reason = str(sandbox.why_not("user"))
            assert f"nobody cannot run {closed}/python, as {closed} is closed to others" in reason
            assert "make grade VENV=" in reason
        with monkeypatch.context() as patch:
            patch.setattr(sandbox, "package_folder", lambda: closed / "ganprune")
            assert f"nobody cannot read {closed}/ganprune" in str(sandbox.why_not("user"))
        with monkeypatch.context() as patch:
            patch.setattr(sandbox, "IMPORTS", "import nothing_of_that_name")
            assert "No module named 'nothing_of_that_name'" in str(sandbox.why_not("user"))
        monkeypatch.setenv("STUDENT_USER", "no-such-user")
        assert "no user no-such-user" in str(sandbox.why_not("user"))
    finally:
        closed.rmdir()


FLEE = """\
import os, subprocess, sys, time
for place in ("/tmp", "/var/tmp", "/dev/shm"):
    open(f"{place}/left-by-a-student", "w").close()
os.makedirs("/tmp/left-by-a-student-too/inside")
code = "import os, time\\nif os.fork():\\n    os._exit(0)\\nos.setsid()\\ntime.sleep(300)  # left by a student"
subprocess.run([sys.executable, "-c", code])
print(sys.executable)
"""
LEFT = """\
import os
for place in ("/tmp", "/var/tmp", "/dev/shm"):
    print([name for name in os.listdir(place) if name.startswith("left-by")])
processes = [name for name in os.listdir("/proc") if name.isdigit()]
print([name for name in processes if b"left by a student" in open(f"/proc/{name}/cmdline", "rb").read()])
"""


def test_what_one_students_process_leaves_behind_reaches_no_other(another_user: None, tmp_path: Path) -> None:
    student = marking.Student(sandbox.Box(tmp_path, "user", memory=3_000))
    try:
        student.start()
        assert student.ask("run", FLEE, seconds=60)["error"] is None
        seen = student.ask("run", LEFT, seconds=60)["shown"].splitlines()
        assert all("left-by" in line for line in seen[:3])
        assert seen[3] != "[]"
        student.start()
        assert student.ask("run", LEFT, seconds=60)["shown"].split() == ["[]"] * 4
    finally:
        student.box.stop()


@pytest.mark.parametrize("way", ["unshare", "user"])
def test_a_students_process_is_alone(way: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if way == "user":
        request.getfixturevalue("another_user")
    reason = sandbox.why_not(way)
    if reason and way == "unshare":
        pytest.skip(reason)
    assert reason is None
    (tmp_path / "given.txt").write_text("for the student", encoding="utf-8")
    student = marking.Student(sandbox.Box(tmp_path, way, memory=3_000))
    try:
        student.start()
        code = (
            "import os, torch\nprint(open('given.txt').read())\nopen('made.txt', 'w').write('by the student')"
        )
        answer = student.ask("run", code, seconds=60)
        assert answer["error"] is None
        assert "for the student" in answer["shown"]
        big = student.ask("run", "x = torch.ones(2**30)", seconds=60)
        assert big["error"]["name"] == "RuntimeError"
        kept = student.ask("run", "import ganprune\nopen(ganprune.__file__, 'a')", seconds=60)
        assert kept["error"]["name"] in ("OSError", "PermissionError")
        assert student.ask("file", "made.txt", seconds=10)["data"]
        student.ask("run", "os.symlink('/etc/passwd', 'link')", seconds=10)
        assert student.ask("file", "link", seconds=10)["data"] is None
        if way == "unshare":
            net = "import socket\nsocket.create_connection(('192.0.2.1', 80), 2)"
            assert "unreachable" in student.ask("run", net, seconds=60)["error"]["message"]
            seen = student.ask("run", "print([p for p in os.listdir('/proc') if p.isdigit()])", seconds=10)
            assert len(json.loads(seen["shown"].strip().replace("'", '"'))) <= 2
    finally:
        student.box.stop()
    assert not list(tmp_path.glob("made*"))


# ---------------------------------------------------------------- the guide


def test_both_pages_have_one_plan_for_a_lesson_and_the_decks_keep_it() -> None:
    import decks

    guide = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    rows_of_plan = re.findall(r"^\| [^|]+ \| (\d+)(?: to (\d+))? \| (\d+) \|$", guide, re.M)
    plan = {range(int(first), int(last or first) + 1): int(minutes) for first, last, minutes in rows_of_plan}
    assert [block for blocks in plan for block in blocks] == list(range(1, 13))
    assert sum(plan.values()) == decks.MINUTES
    other = (ROOT / "book" / "using-this-course.md").read_text(encoding="utf-8")
    lesson = re.search(r"A lesson of 90 minutes.*?\. ", other, re.S)[0]
    assert [int(number) for number in re.findall(r"\d+", lesson)] == [90, *plan.values()]
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        deck = nbformat.read(path, as_version=4).metadata.get("ganprune", {}).get("slides", [])
        for blocks, minutes in plan.items() if deck else ():
            took = sum(deck[block - 1]["minutes"] for block in blocks)
            if path.name[:2] != "02":  # the guide says what this one does
                assert abs(took - minutes) <= 3, (path.name, blocks, took)


def test_guide_and_recipe_have_the_same_commands_for_the_container() -> None:
    guide = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    recipe = (ROOT / "assignments" / "Dockerfile").read_text(encoding="utf-8")
    told = [block for block in re.findall(r"```bash\n(.*?)```", guide, re.S) if "ganprune-grading" in block]
    build, run, count = told
    comments = re.sub(r"^#[ ]*", "", recipe, flags=re.M)
    for line in (build + run).splitlines():
        assert line.strip() in comments
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", recipe, re.M)[1])
    mounted = re.findall(r":/course/([^:\"]+)", run)
    assert [entry[3], str(Path(entry[5]).parent)] == mounted
    assert entry[1:3] == ["tools/assignments.py", "grade"]
    assert count.split()[-3:] == ["totals", *entry[4:]]
    assert "--network none" in run
    assert "--network none" in count


def test_exercises_of_the_guide_exist_under_their_names() -> None:
    guide = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    named = re.findall(r"\{ref\}`(\d+)\.(\d+), ([^<`]+) <(ex-(\d\d)-(\d))>`", guide)
    assert len(named) == 9
    text = "".join(
        cell.source + "\n"
        for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
    )
    for chapter, number, title, label, in_chapter, in_number in named:
        assert (int(chapter), number) == (int(in_chapter), in_number)
        head = re.search(rf"\{{exercise\}} (.*)\n:label: {label}\n", text)[1]
        assert re.sub(r"[ ★]+$|^[★ ]+", "", head).lower() == title.lower()
    for label in re.findall(r"<(ex-[^>]+)>`", guide):
        assert f":label: {label}\n" in text


# ---------------------------------------------------------------- commands


def test_the_command_line_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert assignments.main(["grade", str(tmp_path)]) == 1
    assert "holds no STUDENT/ASSIGNMENT.ipynb" in capsys.readouterr().err
    assert assignments.main(["grade", str(tmp_path / "nowhere")]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert assignments.main(["grade", str(tmp_path), "--only", "7"]) == 1
    assert "no assignment has '7' in its name; there are 01_the_game" in capsys.readouterr().err
    monkeypatch.setenv("GANPRUNE_UNSEEN", "no-such-file.npy")
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / f"{GAME}.ipynb").write_text("{}", encoding="utf-8")
    assert assignments.main(["grade", str(tmp_path)]) == 1
    assert f"there is no file {Path.cwd() / 'no-such-file.npy'}" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images.npy").touch()
    monkeypatch.setenv("GANPRUNE_UNSEEN", "images.npy")
    assert assignments.unseen_images() == [Path(os.environ["GANPRUNE_UNSEEN"])] == [Path.cwd() / "images.npy"]
    assert assignments.main(["totals", "--output", str(tmp_path)]) == 1
    assert "holds no points yet" in capsys.readouterr().err


def test_leaderboard(tmp_path: Path) -> None:
    base = {"assignment": "05_capstone"}
    entries = [
        {**base, "student": "b<script>", "exercise": "digit_fid", "value": "40.5"},
        {**base, "student": "a", "exercise": "digit_fid", "value": "31"},
        {**base, "student": "a", "exercise": "images", "value": "10000"},
        {**base, "student": "a", "exercise": "kept", "value": "23808"},
        {**base, "student": "c", "exercise": "1", "points": "3", "of": "3"},
    ]
    table.write_points(entries, tmp_path / "points.csv")
    page = feedback.leaderboard_page(tmp_path / "points.csv")
    assert page.index("<td>a</td>") < page.index("b&lt;script&gt;")
    assert "10,000 images" in page
    assert "23,808" in page
    assert "<td>c</td>" not in page
    assert "<script" not in page


def test_all_five_from_the_release_to_full_points(tmp_path: Path, generated: Path) -> None:
    for name in NAMES:
        hand_in(tmp_path / "in" / name, "ada", name=name)
        (tmp_path / "all" / "ada").mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "in" / name / "ada" / f"{name}.ipynb", tmp_path / "all" / "ada")
    environment = {**os.environ, "GANPRUNE_GRADING_SEED": SEED}
    command = [
        sys.executable,
        ROOT / "tools" / "assignments.py",
        "grade",
        tmp_path / "all",
        "--output",
        tmp_path / "out",
    ]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    totals = [row for row in rows(tmp_path / "out") if row["exercise"] == "total"]
    assert [row["points"] for row in totals] == ["16"] * 5
    assert "ada" in (tmp_path / "out" / "leaderboard.html").read_text(encoding="utf-8")


def test_nbgrader_itself_understands_the_sources(generated: Path, tmp_path: Path) -> None:
    name, course = "04_schedules_and_tickets", tmp_path / "course"
    shutil.copytree(generated / "teacher" / "nbgrader", course)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "GANPRUNE_GRADING_SEED": SEED}

    def run(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "nbgrader", *arguments], check=True, cwd=course, env=environment
        )

    run("generate_assignment", name)
    made = nbformat.read(course / "release" / name / f"{name}.ipynb", as_version=4)
    ours_made = nbformat.read(generated / "release" / f"{name}.ipynb", as_version=4)
    assert [cell.source for cell in made.cells] == [cell.source for cell in ours_made.cells]
    (course / "submitted" / "ada" / name).mkdir(parents=True)
    shutil.copy(generated / "teacher" / "solution" / f"{name}.ipynb", course / "submitted" / "ada" / name)
    run("autograde", name)
    run("export")
    with (course / "grades.csv").open(newline="", encoding="utf-8") as handle:
        assert [float(row["raw_score"]) for row in csv.DictReader(handle)] == [16.0]
