"""Let two `hpcsh lab` commands wait for each other."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcsh.errors import TimedOutError
from hpcsh.lab.progress import Progress


@contextmanager
def locked(path: Path, progress: Progress, what: str, timeout: float) -> Iterator[None]:
    """Hold the lock file `path`; say who is waited for. `TimedOutError` after `timeout` seconds.

    The kernel frees the lock when its holder ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = -1
    try:
        # Whoever removed a lab removed its lock file too: a lock on that old file locks nobody out.
        while fd < 0 or not _is_at(fd, path):
            if fd >= 0:
                os.close(fd)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _acquire(fd, progress, what, timeout)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _acquire(fd: int, progress: Progress, what: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    told = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = os.pread(fd, 20, 0).decode(errors="replace") or "?"
            if time.monotonic() > deadline:
                raise TimedOutError(
                    f"Another hpcsh (pid {holder}) has been busy with {what} for {timeout:.0f} s.",
                    fix=f"look at it: ps -fp {holder}",
                ) from None
            if not told:
                progress.line(f"  waiting for another hpcsh (pid {holder}) that is busy with {what}")
                told = True
            time.sleep(0.1)
