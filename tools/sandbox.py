"""Start a student's process where it sees the package and its own folder, and nothing else.

Three ways, the first that works is taken:

- ``unshare``: namespaces of Linux, no rights needed. The process has a file system of its own, made of the system's
  programs, Python, the package (all read-only) and a small disk in memory; no network; no other process in sight.
- ``user``: another user of this machine (`STUDENT_USER`, default nobody), for which the grader must be root, as in a
  container. It is refused while that user can read the sources. Processes and files that it leaves behind are removed,
  so that they reach nobody else's work.
- ``none``: a process in a temporary folder. It hides nothing, and is never taken by itself.

All three limit memory, the size of files and the environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).resolve().with_name("student_process.py")
WAYS = ("unshare", "user", "none")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock")
"""Folders in which every user of a machine may write."""
IMPORTS = "import IPython, torch, ganprune"
"""What a student's process begins with."""
SUBREAPER = 36
"""Of Linux: a process that becomes the parent of orphans among its descendants."""
HOME = "/student"
MEBIBYTE = 2**20


class SandboxError(RuntimeError):
    """No way to keep students' code away from the sources; the message says what to do."""


def python() -> Path:
    """Return the Python that runs students' code."""
    return Path(sys.executable)


def package_folder() -> Path:
    """Return the folder of the package that students import."""
    own = ROOT / "ganprune"
    if own.is_dir():
        return own
    import ganprune

    return Path(ganprune.__file__).resolve().parent


def environment(home: str, temporary: str = "/tmp") -> dict[str, str]:
    """Return all that a student's process finds in its environment."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": temporary,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(package_folder().parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": temporary,
        "GANPRUNE_DEVICE": "cpu",
        "GANPRUNE_PROFILE": os.environ.get("GANPRUNE_PROFILE", "laptop"),
        "GANPRUNE_PROGRESS": "0",
        "IPYTHONDIR": temporary,
    }


def limits(memory: int) -> list[str]:
    """Return the options of prlimit: MiB of memory, of a file, and the number of open files."""
    room = memory * MEBIBYTE
    return [f"--data={room}", f"--fsize={256 * MEBIBYTE}", "--nofile=256", "--core=0"]


def visible() -> list[Path]:
    """Return what the file system of a student's process holds, read-only."""
    own = [Path(sys.prefix), Path(sys.base_prefix), python().resolve().parents[1]]
    found = [Path(name) for name in SYSTEM]
    found += [path for path in own if not str(path).startswith("/usr")]
    # the package may be inside what is there already
    found += [package_folder()]
    kept: list[Path] = []
    for path in found:
        inside = any(other == path or other in path.parents for other in kept)
        if path.exists() and not inside:
            kept.append(path)
    return kept


def namespace_script(root: Path, files: Path, memory: int) -> str:
    """Return the shell script that builds the file system and becomes the student's process."""
    quote = shlex.quote
    lines = ["set -e", f"mount -t tmpfs -o mode=755,size=64m tmpfs {quote(str(root))}"]
    for folder, size in (("/tmp", "256m"), (HOME, "256m"), ("/dev/shm", "64m")):
        target = quote(f"{root}{folder}")
        lines += [f"mkdir -p {target}", f"mount -t tmpfs -o size={size},nosuid,nodev tmpfs {target}"]
    for path in visible():
        target = quote(f"{root}{path}")
        if path.is_symlink() and str(path) in SYSTEM:
            lines += [f"ln -s {quote(os.readlink(path))} {target}"]
            continue
        if path.is_dir():
            lines += [f"mkdir -p {target}"]
        else:
            lines += [f"mkdir -p {quote(f'{root}{path.parent}')}", f"touch {target}"]
        lines += [f"mount --rbind {quote(str(path.resolve()))} {target}", f"lock {target}"]
    for device in DEVICES:
        lines += [f"mkdir -p {quote(f'{root}/dev')}", f"touch {quote(f'{root}{device}')}"]
        lines += [f"mount --bind {device} {quote(f'{root}{device}')}"]
    lines += [f"cp -R {quote(str(files))}/. {quote(f'{root}{HOME}')}"]
    lines += [f"cp {quote(str(WORKER))} {quote(f'{root}/student_process.py')}"]
    lines += [f"mkdir -p {quote(f'{root}/proc')}", f"mount -t proc proc {quote(f'{root}/proc')}"]
    lines += [f"cd {quote(str(root))}", "mkdir .old", "pivot_root . .old", f"cd {HOME}"]
    lines += ["umount -l /.old", "rmdir /.old", "mount -o remount,ro /"]
    values = [f"{name}={value}" for name, value in environment(HOME).items()]
    command = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"]
    command += ["prlimit", *limits(memory), "--nproc=512", "--", "env", "-i", *values]
    command += [str(python()), "-B", "/student_process.py"]
    lines += ["exec " + shlex.join(command)]
    lock = (
        'lock() { mount -o remount,bind,ro "$1" 2>/dev/null || mount -o remount,bind,ro,nosuid,nodev "$1"; }'
    )
    return "\n".join([lock, *lines])


UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork"]


def student_user() -> str:
    """Return the name of the other user."""
    return os.environ.get("STUDENT_USER", "nobody")


def student_numbers() -> tuple[int, int]:
    """Return the numbers of the other user and of its group.

    Raises:
        KeyError: if this machine has no such user.
    """
    import pwd

    entry = pwd.getpwnam(student_user())
    return entry.pw_uid, entry.pw_gid


def as_user(command: Iterable[str]) -> list[str]:
    """Return a command that runs as the other user, without a way back."""
    user, group = student_numbers()
    change = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    return [*change, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--", *command]


def may(permission: str, path: Path) -> bool:
    """Say whether the other user may read ("r") or pass ("x") a path."""
    return subprocess.run(as_user(["test", f"-{permission}", str(path)])).returncode == 0


def readable_sources(secrets: Iterable[Path]) -> list[Path]:
    """Return which of some folders and files the other user can read."""
    return [
        path for path in secrets if path.exists() and may("r", path) and (path.is_file() or may("x", path))
    ]


def closed_folder(path: Path) -> Path | None:
    """Return the outermost folder on the way to a path that the other user may not enter, None if there is none."""
    return next((place for place in [*reversed(path.parents), path] if not may("x", place)), None)


def why_not_user(secrets: Iterable[Path]) -> str | None:
    """Return why students' code cannot run as the other user, and what to do about it; None if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("setpriv"):
        return "only root can become another user"
    user = student_user()
    try:
        command = as_user([str(python()), "-c", IMPORTS])
    except KeyError:
        return f"this machine has no user {user}: set STUDENT_USER to one that it has"
    with tempfile.TemporaryDirectory(prefix="ganprune-student-") as folder:
        Path(folder).chmod(0o755)
        if closed := closed_folder(Path(folder)):
            return (
                f"{user} cannot enter {closed}, where temporary files lie: set TMPDIR to a folder open to all"
            )
        for path in (python(), python().resolve()):
            if closed := closed_folder(path):
                return (
                    f"{user} cannot run {python()}, as {closed} is closed to others: make an environment "
                    "where all can read it, from a Python that all can run (make env VENV=FOLDER "
                    "PYTHON=/usr/bin/python3), and grade with it (make grade VENV=FOLDER ...)"
                )
        if closed := closed_folder(package_folder()):
            return f"{user} cannot read {package_folder()}, as {closed} is closed to others: put the course elsewhere"
        values = environment(folder, folder)
        tried = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=values)
    if tried.returncode:
        last = (tried.stderr.strip().splitlines() or ["no reason"])[-1]
        return f"{user} cannot use the package with {python()}: {last}"
    names = ", ".join(map(str, readable_sources(secrets)))
    return f"{user} can read {names}: chmod -R go-rwx them" if names else None


def why_not(way: str, secrets: Iterable[Path] = ()) -> str | None:
    """Return why a way does not work here, or None if it does."""
    if way == "none":
        return None
    if way == "unshare":
        if not sys.platform.startswith("linux") or not shutil.which("unshare"):
            return "this system has no unshare"
        tried = subprocess.run(
            [*UNSHARE, "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True, text=True
        )
        return None if tried.returncode == 0 else f"unshare says: {tried.stderr.strip()}"
    if way == "user":
        return why_not_user(secrets)
    return f"it is none of {', '.join(WAYS)}"


def choose(way: str, secrets: Iterable[Path] = ()) -> str:
    """Return a way that works: the one asked for, or for "auto" the first.

    Raises:
        SandboxError: if it does not work.
    """
    secrets = list(secrets)
    reasons = {}
    for name in ("unshare", "user") if way == "auto" else (way,):
        reason = why_not(name, secrets)
        if reason is None:
            return name
        reasons[name] = reason
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise SandboxError(
        f"cannot keep students' code away from the sources ({told}). Grade in the container of assignments/Dockerfile, "
        "or, if you trust every submission, with ISOLATION=none"
    )


def adopt_orphans() -> None:
    """Become the parent of whatever a student's process leaves behind, so that it can be found."""
    ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0)


def end_the_rest(user: int) -> None:
    """End all descendants of this process that belong to a user, wherever they have fled."""
    for _ in range(100):
        rest = [one for one in psutil.Process().children(recursive=True) if _owner(one) == user]
        if not rest:
            return
        for one in rest:
            with contextlib.suppress(psutil.Error):
                one.kill()
        for one in rest:  # orphans come to this process, which has to bury them
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one.pid, os.WNOHANG)
        time.sleep(0.02)


def _owner(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error):
        return process.uids().real
    return None


def remove_the_rest(user: int, since: float) -> None:
    """Remove what a user has left since then in the folders that all share."""
    for place in {*SHARED, tempfile.gettempdir()}:
        for path in Path(place).glob("*") if Path(place).is_dir() else ():
            with contextlib.suppress(OSError):
                found = path.lstat()
                if found.st_uid == user and found.st_ctime >= since:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


class Box:
    """A student's process with its folder; :meth:`start` may be called again after :meth:`stop`."""

    def __init__(self, files: Path, way: str, memory: int = 4096) -> None:
        self.files, self.way, self.memory = files, way, memory
        self.folder: Path | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.begun = 0.0

    def start(self) -> subprocess.Popen[bytes]:
        """Start a fresh process in a fresh copy of the folder."""
        self.stop()
        self.folder = Path(tempfile.mkdtemp(prefix="ganprune-student-"))
        if self.way == "unshare":
            (self.folder / "root").mkdir()
            script = namespace_script(self.folder / "root", self.files, self.memory)
            command = [*UNSHARE, "--kill-child=SIGKILL", "sh", "-c", script]
            where, variables = self.folder, {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
        else:
            where, temporary = self.folder / "home", self.folder / "temporary"
            shutil.copytree(self.files, where)
            temporary.mkdir()
            worker = shutil.copy(WORKER, self.folder)
            command = [str(python()), "-B", str(worker)]
            if shutil.which("prlimit"):
                number = ["--nproc=512"] if self.way == "user" else []
                command = ["prlimit", *limits(self.memory), *number, "--", *command]
            if self.way == "user":
                adopt_orphans()
                self.folder.chmod(0o755)
                for path in [temporary, where, *where.rglob("*")]:
                    shutil.chown(path, student_user())
                command = as_user(command)
            variables = environment(str(where), str(temporary))
        self.begun = time.time() - 1
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=where,
            env=variables,
            start_new_session=True,
        )
        return self.process

    def stop(self) -> None:
        """End the process with all that it started, and remove its folder."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream:
                    with contextlib.suppress(OSError):
                        stream.close()
            self.process = None
            if self.way == "user":
                user, _ = student_numbers()
                end_the_rest(user)
                remove_the_rest(user, self.begun)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None
