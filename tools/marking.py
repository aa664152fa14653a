"""Mark one submission: its cells run in a student's process, the tests run here and see nothing but values.

A test cell is ordinary code of a notebook. In a plain notebook the names in it are the student's functions; here they
are stand-ins that send the arguments to the student's process and bring back plain numbers and tensors. So a submission
can neither read a test nor change one, and what it breaks or never ends, it breaks for itself.
"""

from __future__ import annotations

import ast
import base64
import builtins
import io
import json
import os
import pickle
import re
import select
import signal
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import psutil
from collected import plain_id
from sandbox import Box
from student_process import LARGEST

CELL_SECONDS = 60.0
"""Of the processor, for one cell of the student."""
CALL_SECONDS = 20.0
"""Of the processor, for one call from a test."""
SLEEPER = 4.0
"""By the clock, how many times as long a process may take that does not use the processor."""
POLL_SECONDS = 0.2
"""How often it is looked at while it has not answered."""
TEST_SECONDS = 300.0
"""By the clock, for one test cell."""
RESTARTS = 8
"""How often a student's process may die or hang before the rest of its exercises is left unmarked."""
DTYPES = {"float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"}
PARTS_OF_TIME = ("user", "system", "children_user", "children_system")
KNOWN = (ValueError, TypeError, KeyError, IndexError, RuntimeError, ZeroDivisionError, NotImplementedError)
"""Exceptions that a test may expect from a student's function by their own type."""
Notebook = nbformat.NotebookNode


class StudentError(Exception):
    """What a student's code did instead of answering, in words for its author."""


class Lost(StudentError):
    """The student's process is gone or hangs; it has to be started anew."""


@dataclass(frozen=True)
class Opaque:
    """A value that is no plain value; only its type is known."""

    type: str


def decode(value: Any) -> Any:
    """Turn an answer into a value; nothing in it is executed.

    Raises:
        StudentError: if it is not an answer.
    """
    import torch

    try:
        if not isinstance(value, dict):
            return value
        if "number" in value:
            text = str(value["number"])[:400]
            return float(text) if {*text.lower()} & {*".ena"} else int(text)
        kind = value["kind"]
        if kind in ("tensor", "array"):
            if value["dtype"] not in DTYPES:
                return Opaque(f"tensor of {value['dtype']}")
            dtype = getattr(torch, value["dtype"])
            data = bytearray(base64.b64decode(value["data"], validate=True))
            shape = [int(size) for size in value["shape"]]
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            tensor = flat.reshape(shape)
            return tensor if kind == "tensor" else tensor.numpy()
        if kind == "dict":
            return {decode(key): decode(item) for key, item in value["items"]}
        if kind in ("list", "tuple", "set"):
            return {"list": list, "tuple": tuple, "set": set}[kind](decode(item) for item in value["items"])
        return Opaque(str(value["type"])[:80])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise StudentError("your process gave an answer that cannot be read") from error


class Patience:
    """How long an answer is waited for: so many seconds of the processor, so that a busy machine costs nobody points.

    A process that sleeps is waited for a few times as long by the clock, and so is no longer than the limit itself
    where the system does not tell what a process has used.
    """

    def __init__(self, pid: int, seconds: float) -> None:
        self.pid, self.seconds = pid, seconds
        self._begun, self._used_before = time.monotonic(), self._used()

    def is_over(self) -> bool:
        """Whether the time is up."""
        passed, used = time.monotonic() - self._begun, self._used()
        if used is None or self._used_before is None:
            return passed > self.seconds
        return used - self._used_before > self.seconds or passed > SLEEPER * self.seconds

    def _used(self) -> float | None:
        """Processor seconds of the process and of all that it has begun; None where nobody knows."""
        try:
            first = psutil.Process(self.pid)
            times = [one.cpu_times() for one in (first, *first.children(recursive=True))]
        except psutil.Error:
            return None
        return sum(sum(getattr(one, name, 0.0) for name in PARTS_OF_TIME) for one in times)


class Student:
    """The student's process, from the grader's side."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.process: Any = None

    def start(self) -> None:
        """Start it anew."""
        self.process = self.box.start()

    def ask(self, *request: Any, seconds: float) -> Any:
        """Send a request and wait for the answer.

        Raises:
            Lost: if none comes in time, or the process has ended.
        """
        body = pickle.dumps(request)
        try:
            self.process.stdin.write(struct.pack(">Q", len(body)) + body)
            self.process.stdin.flush()
        except (BrokenPipeError, OSError) as error:
            raise Lost("it ended Python itself (os._exit, a crash, or too much memory)") from error
        patience = Patience(self.process.pid, seconds)
        (size,) = struct.unpack(">Q", self._read(8, patience))
        if size > 3 * LARGEST:
            raise Lost("your process gave an answer that is too long")
        try:
            answer = json.loads(self._read(size, patience))
        except (ValueError, RecursionError) as error:
            raise Lost("your process gave an answer that cannot be read") from error
        if not isinstance(answer, dict):
            raise Lost("your process gave an answer that cannot be read")
        return answer

    def _read(self, count: int, patience: Patience) -> bytes:
        handle, parts, missing = self.process.stdout.fileno(), [], count
        while missing:
            if not select.select([handle], [], [], POLL_SECONDS)[0]:
                if patience.is_over():
                    raise Lost(f"it did not end within {patience.seconds:.0f} s")
                continue
            part = os.read(handle, min(missing, 1 << 20))
            if not part:
                raise Lost("it ended Python itself (os._exit, a crash, or too much memory)")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


class StudentFunction:
    """A stand-in for a function of the student's notebook."""

    def __init__(self, student: Student, name: str, seconds: float) -> None:
        self._student, self._name, self._seconds = student, name, seconds

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call it in the student's process; modules and tensors among the arguments are changed as they are there."""
        import torch

        try:
            answer = self._student.ask("call", self._name, arguments, options, seconds=self._seconds)
        except Lost as error:
            raise Lost(f"{self._name}: {error}") from error
        if answer.get("error"):
            raise self._error(answer["error"])
        for argument, after in zip(arguments, answer.get("after") or [], strict=False):
            changed = decode(after)
            try:
                if isinstance(argument, torch.nn.Module) and isinstance(changed, dict):
                    argument.load_state_dict(changed)
                elif isinstance(argument, torch.Tensor) and isinstance(changed, torch.Tensor):
                    with torch.no_grad():
                        argument.copy_(changed)
            except (RuntimeError, TypeError, ValueError) as error:
                raise StudentError(f"{self._name} changed the shape of its arguments") from error
        return decode(answer.get("result"))

    def _error(self, told: Any) -> Exception:
        name, words = str(told.get("name"))[:80], str(told.get("message"))[:300]
        message = f"{self._name}: {in_words(name, words)}"
        known = {kind.__name__: kind for kind in KNOWN}.get(name)
        return type(name, (StudentError, known), {})(message) if known else StudentError(message)


# ---------------------------------------------------------------- notebooks


def nbgrader_of(cell: Notebook) -> dict[str, Any]:
    """Return a cell's nbgrader metadata, empty without."""
    return cell.metadata.get("nbgrader", {})


def ours(cell: Notebook) -> dict[str, Any]:
    """Return a cell's own metadata of the course, empty without."""
    return cell.metadata.get("ganprune", {})


def is_test(cell: Notebook) -> bool:
    """Say whether a cell is a test with points."""
    found = nbgrader_of(cell)
    return cell.cell_type == "code" and bool(found.get("grade")) and not found.get("solution")


def is_setup(cell: Notebook) -> bool:
    """Say whether a cell is locked code that is no test."""
    found = nbgrader_of(cell)
    return cell.cell_type == "code" and bool(found.get("locked")) and not found.get("grade")


def merge(source: Notebook, submission: Notebook) -> list[Notebook]:
    """Return the source's cells with the student's answers, and the student's own cells where he put them.

    Locked cells and tests are the source's, whatever the submission made of them. An answer that is missing is empty.
    Of two cells with one name the later counts.
    """
    answers: dict[str, Notebook] = {}
    extra: dict[str, list[Notebook]] = {}
    known = {nbgrader_of(cell).get("grade_id") for cell in source.cells} - {None}
    last = ""
    for cell in submission.cells:
        name = nbgrader_of(cell).get("grade_id")
        if name in known:
            answers[name], last = cell, name
        elif cell.cell_type == "code" and str(cell.source).strip():
            extra.setdefault(last, []).append(cell)
    merged = list(extra.get("", []))
    for cell in source.cells:
        found = nbgrader_of(cell)
        if "grade_id" not in found:
            continue
        cell = cell.copy()
        if found.get("solution"):
            own = answers.get(found["grade_id"])
            cell["source"] = str(own.source) if own is not None else ""
        merged += [cell, *extra.get(found["grade_id"], [])]
    return merged


def names_in(source: str) -> set[str]:
    """Return the names that code reads and does not define."""
    tree = ast.parse(source)
    read, defined = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
    return read - defined - set(dir(builtins))


# ---------------------------------------------------------------- marking


@dataclass
class Mark:
    """What one test gave."""

    name: str
    exercise: str
    points: float
    of: float
    note: str = ""
    own: bool = False


@dataclass
class Marked:
    """What one submission gave.

    Attributes:
        marks: of its tests, in order.
        cells: (text, output, error) of each of the student's cells.
        measures: numbers that a test reported, such as a digit-FID.
        answers: values of the student's numbers, by test.
        written: the answer in words.
        claimed: the id in the notebook.
        note: about the whole submission.
        aside: what the teacher alone should know.
    """

    marks: list[Mark] = field(default_factory=list)
    cells: list[tuple[str, str, str]] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    written: str = ""
    claimed: str = ""
    note: str = ""
    aside: str = ""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this thread after so many seconds, where the system can."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError("the test took too long")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Change to a folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def teacher_namespace(cells: list[Notebook], student_id: str) -> dict[str, Any]:
    """Return a namespace in which the locked cells of the source have run."""
    namespace: dict[str, Any] = {"__name__": "tests", "STUDENT": student_id}
    for cell in cells:
        if is_setup(cell):
            exec(compile(cell.source, "<set-up>", "exec"), namespace)
    return namespace


def run_test(source: str, namespace: dict[str, Any], measures: dict[str, float]) -> None:
    """Run a test cell in a copy of a namespace.

    Raises:
        Exception: whatever the test raises.
    """
    scope = {**namespace, "record_measure": lambda name, value: measures.update({name: float(value)})}
    with redirect_stdout(io.StringIO()):
        exec(compile(source, "<test>", "exec"), scope)


def in_words(name: str, message: str) -> str:
    """Return an exception of a student's code in words that say what to do."""
    if name in ("MemoryError", "_ArrayMemoryError") or ("allocate" in message and "memory" in message):
        asked = re.search(r"tried to allocate (\d+) bytes", message)
        size = f" ({int(asked[1]) / 2**30:.3g} GB)" if asked else ""
        return f"it wanted more memory{size} than it has: compute in smaller batches"
    if name == "SystemExit" or "ask_exit" in message:  # IPython's own exit
        return "it ended itself with exit or sys.exit: take that out"
    if name == "NotImplementedError" and message == "write me":
        return "it has no answer yet"
    return f"it raised {name}: {message}"


def defines(source: str, name: str) -> bool:
    """Say whether code would define a name at its top level, as far as can be read."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError):
        return re.search(rf"\b{re.escape(name)}\b", source) is not None
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if node.name == name:
                return True
        elif any(
            isinstance(part, ast.Name) and part.id == name and isinstance(part.ctx, ast.Store)
            for part in ast.walk(node)
        ):
            return True
    return False


def told(error: BaseException) -> str:
    """Return what a student is told about a failed test; code is not part of it."""
    if isinstance(error, NameError):
        return f"{error.name or 'a name'} is not defined: its cell is missing or failed"
    if isinstance(error, (AssertionError, StudentError)):
        return str(error) or "not right yet"
    if isinstance(error, TimeoutError):
        return "the test took too long"
    return "the answer has another form than asked: " + type(error).__name__


class Marker:
    """Marks a submission against its source notebook."""

    def __init__(self, source: Notebook, student_id: str, files: Path, way: str, memory: int = 4096) -> None:
        self.source, self.student_id = source, student_id
        self.student = Student(Box(files, way, memory))
        times = source.metadata.get("ganprune", {})
        self.cell_seconds = float(times.get("cell_seconds", CELL_SECONDS))
        self.call_seconds = float(times.get("call_seconds", CALL_SECONDS))
        self.files = list(times.get("files", []))
        self.restarts = 0
        self.done: list[str] = []
        self.solutions = {nbgrader_of(cell).get("grade_id"): cell.source for cell in source.cells}
        self.failed: list[
            tuple[str, str, str]
        ] = []  # what a cell holds, what its solution holds, why it failed

    def mark(self, submission: Notebook) -> Marked:
        """Return the marks; never raises because of what the submission holds."""
        cells = merge(self.source, submission)
        marked = Marked()
        teacher = teacher_namespace(cells, self.student_id)
        try:
            self._start()
            for cell in cells:
                if is_test(cell):
                    marked.marks.append(self._test(cell, dict(teacher), marked))
                elif cell.cell_type == "code":
                    self._run(cell, marked)
                elif nbgrader_of(cell).get("grade"):
                    marked.written = cell.source
            self._claimed(marked)
        finally:
            self.student.box.stop()
        return marked

    def _start(self) -> None:
        """Start the student's process and run again what ran before."""
        for _ in range(2):
            self.student.start()
            try:
                self.student.ask("run", f"STUDENT = {self.student_id!r}", seconds=60 + self.cell_seconds)
                for source in self.done:
                    self.student.ask("run", source, seconds=self.cell_seconds)
                return
            except Lost:
                self.restarts += 1
        self.restarts = RESTARTS + 1

    def _again(self) -> None:
        self.restarts += 1
        if self.restarts <= RESTARTS:
            self._start()

    def _run(self, cell: Notebook, marked: Marked) -> None:
        shown, error, cause = "", "", ""
        if self.restarts > RESTARTS:
            error = "not run: your process died or hung too often"
        else:
            try:
                answer = self.student.ask("run", cell.source, seconds=self.cell_seconds)
                shown = str(answer.get("shown", ""))[:4_000]
                failed = answer.get("error")
                if isinstance(failed, dict):
                    name, words = str(failed.get("name")), str(failed.get("message"))
                    cause, error = in_words(name, words)[:300], f"{name}: {words}"[:600]
                self.done.append(cell.source)
            except Lost as lost:
                error = cause = str(lost)
                self._again()
        if not is_setup(cell):
            marked.cells.append((cell.source, shown, error))
            meant = self.solutions.get(nbgrader_of(cell).get("grade_id"), "")
            self.failed += [(cell.source, meant, cause or error)] if error else []

    def unmarked(self, cell: Notebook, note: str = "") -> Mark:
        """Return a test's mark of zero points."""
        found, told_of = nbgrader_of(cell), ours(cell)
        exercise, of = str(told_of.get("exercise", "")), float(found["points"])
        return Mark(found["grade_id"], exercise, 0.0, of, note, own=bool(told_of.get("own")))

    def _test(self, cell: Notebook, namespace: dict[str, Any], marked: Marked) -> Mark:
        mark = self.unmarked(cell)
        if self.restarts > RESTARTS:
            mark.note = "not tested: your process died or hung too often"
            return mark
        try:
            self._provide(cell.source, namespace, marked.answers.setdefault(mark.name, {}))
            with tempfile.TemporaryDirectory() as folder:
                self._fetch(cell.source, Path(folder))
                with time_limit(TEST_SECONDS), inside(Path(folder)):
                    run_test(cell.source, namespace, marked.measures)
            mark.points = mark.of
        except Lost as error:
            mark.note = str(error)
            self._again()
        except NameError as error:
            mark.note = self._why_missing(error.name or "") or told(error)
        except Exception as error:
            mark.note = told(error)
        return mark

    def _why_missing(self, name: str) -> str:
        """Return why a name is not there: how the cell that defines it, or should do so, has ended."""
        causes = [why for own, meant, why in self.failed if defines(own, name) or defines(meant, name)]
        return f"{name} is not defined. Its cell failed: {causes[-1]}" if name and causes else ""

    def _provide(self, source: str, namespace: dict[str, Any], answers: dict[str, Any]) -> None:
        """Put stand-ins for the student's names into a namespace."""
        for name in names_in(source) - set(namespace) - {"record_measure"}:
            seen = self.student.ask("look", name, seconds=self.call_seconds)
            if seen.get("is") == "function":
                namespace[name] = StudentFunction(self.student, name, self.call_seconds)
            elif seen.get("is") == "value":
                namespace[name] = answers[name] = decode(seen.get("value"))

    def _fetch(self, source: str, folder: Path) -> None:
        """Copy the files that a test looks at out of the student's folder."""
        for name in self.files:
            if name in source:
                data = self.student.ask("file", name, seconds=self.call_seconds).get("data")
                if isinstance(data, str):
                    (folder / name).write_bytes(base64.b64decode(data))

    def _claimed(self, marked: Marked) -> None:
        """Note a notebook that was made for another student."""
        if self.restarts > RESTARTS:
            marked.note = "died or hung too often"
            return
        try:
            claimed = decode(self.student.ask("look", "STUDENT", seconds=self.call_seconds).get("value"))
        except StudentError:
            return
        marked.claimed = str(claimed)[:40]
        if plain_id(marked.claimed) != self.student_id:
            marked.note = (
                f"the notebook says STUDENT = {marked.claimed!r}, but it was handed in as {self.student_id}: numbers "
                "of your own were computed for somebody else"
            )


def fits_another(cell: Notebook, source: Notebook, answers: dict[str, Any], others: list[str]) -> str | None:
    """Return the student whose own numbers an answer fits, if there is one."""
    for other in others:
        namespace = teacher_namespace(source.cells, other) | answers
        try:
            with time_limit(TEST_SECONDS):
                run_test(cell.source, namespace, {})
        except Exception:
            continue
        return other
    return None
