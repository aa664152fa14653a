"""One build at a time: a lock that the operating system takes back when its holder ends, however it ends.

The file stays where it is; what counts is the system's lock on it. A build that was killed therefore never blocks
the next one. Inside the file stands, for people, which process holds the lock and since when.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

TAKEN = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
FAR_BEHIND_THE_TEXT = 1 << 20  # on Windows a locked byte cannot be read, so the lock keeps away from the text


class LockedError(RuntimeError):
    """Somebody else holds the lock; the message says which process, and since when."""


@contextlib.contextmanager
def hold(path: Path) -> Iterator[TextIO]:
    """Hold the lock on a file, which is made if need be, for the length of a ``with`` block.

    Yields:
        The open file. A child process that inherits its descriptor holds the lock as well, until it ends too.

    Raises:
        LockedError: another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not take(file.fileno()):
            raise LockedError(path.read_text(encoding="utf-8").strip() or "a process that has just begun")
        sign(file, os.getpid())
        yield file


def take(descriptor: int) -> bool:
    """Lock an open file without waiting; return False if another process has it.

    Some network file systems know no locks. There a build goes on without one: two builds at once are slow, but a
    build that never starts is worse.
    """
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(descriptor, FAR_BEHIND_THE_TEXT, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as problem:
        return problem.errno not in TAKEN
    return True


def sign(file: TextIO, process: int) -> None:
    """Write into a locked file which process to look at, and when it began."""
    file.seek(0)
    file.truncate()
    file.write(f"process {process}, since {time.strftime('%H:%M:%S on %d %B')}\n")
    file.flush()
