"""Files that are whole or absent, outputs with one owner, and the folder for what can be made again.

One rule holds for whatever this package writes, in Python and on the command line: folders that are missing are made
(:func:`make_folder`), and where that cannot be, one sentence names the folder.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ganprune.core.errors import GanpruneError

UNFINISHED = ".unfinished"


class OutputInUseError(GanpruneError, RuntimeError):
    """Another run is writing to the same output."""


class CacheError(GanpruneError, RuntimeError):
    """There is no folder for what can be made again; the message names the variable that sets one."""


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, unless they are there.

    Raises:
        OSError: if it cannot be made, for instance because a file has its name; the message names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(error.errno, f"the folder {folder} cannot be made ({error.strerror})") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file beside ``path`` to write to; it takes the place of ``path`` when the block ends, so a kill loses nothing.

    Missing folders are made. A link stays a link: the file it points to is replaced. A new file has the mode that
    the process's umask gives, an old one keeps its own. If the block raises, ``path`` stays as it was.

    Raises:
        ValueError: if ``path`` is a folder, a device or a pipe.
        OSError: if its folder cannot be made, or not be written to.
    """
    target = _target_of(path)
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or a pipe"
        raise ValueError(f"path must be a file to write, got {str(path)!r}, which is {kind}")
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
    try:
        yield temporary
        temporary.chmod(mode)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(path: str | Path) -> Path:
    """Where a run that writes to ``path`` keeps its state until it is done: ``run.0`` → ``run.0.unfinished``.

    The whole name of the output is in it, so two outputs never share one; a link counts as the file it points to.

    Raises:
        ValueError: if ``path`` is itself the name of an unfinished file.
    """
    target = _target_of(path)
    if target.name.endswith(UNFINISHED):
        raise ValueError(
            f"path must not end with {UNFINISHED}, which marks unfinished runs, got {str(path)!r}"
        )
    return target.with_name(target.name + UNFINISHED)


@contextmanager
def owned(path: str | Path) -> Iterator[None]:
    """The output ``path`` (a file or a folder) belongs to this block alone, among all processes of the machine.

    Missing folders are made. A lock file lies beside the output while the block runs. The system frees the lock of a
    process that dies, however it dies, so nothing has to be cleaned up by hand.

    Raises:
        OutputInUseError: if another block, in this process or in another one, owns it.
        ValueError: if ``path`` is a device or a pipe.
    """
    target = _target_of(path)
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise ValueError(f"path must be a file or a folder, got {str(path)!r}, which is a device or a pipe")
    make_folder(target.parent)
    tag = hashlib.blake2b(
        os.fsencode(target.name), digest_size=6
    ).hexdigest()  # a whole name might be too long
    lock = target.with_name(f".{target.name[:40]}.{tag}.lock")
    handle = _open_locked(lock)
    if handle is None:
        raise OutputInUseError(
            f"another run{_owner_of(lock)} is writing to {path}: wait until it has ended, or choose another output"
        )
    try:
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        with suppress(
            PermissionError
        ):  # Windows deletes no open file; an unlocked one that stays does no harm
            lock.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def owned_in_turn(path: str | Path, pause: float = 1.0) -> Iterator[None]:
    """As :func:`owned`, but it waits until the other block has ended, and looks again after each pause, in seconds."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(owned(path))
                break
            except OutputInUseError:
                time.sleep(pause)
        yield


def _owner_of(lock: Path) -> str:
    """Which process holds a lock, in words; nothing where that cannot be read."""
    with suppress(OSError):
        found = lock.read_text(encoding="ascii", errors="ignore").strip()
        return f" (process {found})" if found.isdigit() else ""
    return ""


def cache_dir() -> Path:
    """Folder for what can be made again: ``GANPRUNE_CACHE``, else ``~/.cache/ganprune``. Created on demand.

    Raises:
        CacheError: if there is no home folder, or the folder cannot be made.
    """
    try:
        folder = Path(os.environ.get("GANPRUNE_CACHE") or Path.home() / ".cache" / "ganprune")
        make_folder(folder)
    except (OSError, RuntimeError) as error:
        raise CacheError(
            f"no folder for what can be made again ({error}): name one that can be written to by the environment "
            "variable GANPRUNE_CACHE"
        ) from error
    return folder


def _target_of(path: str | Path) -> Path:
    """The file itself, behind any links; it need not exist."""
    return Path(os.path.realpath(path))


def _open_locked(path: Path) -> int | None:
    """Opens and locks a lock file; None if somebody else has locked it.

    An owner deletes its lock file on leaving. Who opened that file a moment before then locks one without a name, which
    protects nothing, and begins anew.
    """
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        locked = _lock(handle)
        with suppress(FileNotFoundError):
            if locked and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)
        if not locked:
            return None


def _lock(handle: int) -> bool:
    """Locks an open file without waiting; False if somebody else has locked it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
