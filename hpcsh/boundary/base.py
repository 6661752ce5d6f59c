"""The boundary: everything hpcsh does to a target goes through this protocol.

A target is a machine: this one (`local`) or a login node (`ssh`). Both implementations drive the same
agent (`agent.py`), so that a csh login, a noisy `.bashrc`, argument quoting and sshd's limit on channels
make no difference. Paths are strings on the target; `~` is expanded by `home`, nowhere else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from hpcsh.errors import CommandError


class Completed(msgspec.Struct, frozen=True):
    """A process that has ended. `code` is the exit status, or 128 + n when signal n ended it."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 survive as surrogates."""
        return self.stdout.decode("utf-8", "surrogateescape")

    @property
    def error_text(self) -> str:
        """Standard error as text, stripped."""
        return self.stderr.decode("utf-8", "replace").strip()

    def check(self, what: str, *, fix: str = "") -> Completed:
        """Return self when the exit status is 0; raise `CommandError(what)` with the tool's own words."""
        if self.code == 0:
            return self
        words = self.error_text or self.text.strip() or f"{self.argv[0]} ended with status {self.code}"
        raise CommandError(what, why=words[-2000:], fix=fix)


class FileInfo(msgspec.Struct, frozen=True):
    """What `stat` and `list` say. `kind` is "file", "dir", "link" or "other"; `mtime` is Unix seconds."""

    path: str
    kind: str
    size: int
    mode: int
    mtime: float
    uid: int


class Follow(msgspec.Struct, frozen=True):
    """A piece of a followed file. `offset` is where `data` begins.

    `event` is "data", "waiting" (the file does not exist yet; said once), "truncated" or "rotated"
    (reading starts again at 0), or "end" (told to stop at the end of file, and it is reached).
    """

    event: str
    data: bytes = b""
    offset: int = 0


class Process(Protocol):
    """A running process on the target. Reading too slowly slows the process; nothing piles up."""

    pid: int

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield `(1, bytes)` for standard output and `(2, bytes)` for standard error until both close."""
        ...

    async def write(self, data: bytes) -> None:
        """Write to standard input; returns when the target has taken it."""
        ...

    async def close_stdin(self) -> None:
        """Close standard input."""
        ...

    async def signal(self, number: int) -> None:
        """Send a signal to the whole remote process group."""
        ...

    async def resize(self, columns: int, rows: int) -> None:
        """Tell a process that has a terminal the terminal's new size."""
        ...

    async def wait(self) -> int:
        """Exit status, or 128 + n when signal n ended it."""
        ...


class Boundary(Protocol):
    """Access to one target. Every call has a time-out or can be cancelled, and leaves nothing behind.

    Raises `TargetError` when the target cannot be reached or the connection broke, `TimedOutError` when
    a time-out passed (the remote process group is dead by then), `NotFoundError` for a missing file,
    `CommandError` for another file error (its `why` is the system's message).
    """

    name: str
    """For messages: "this machine" or "alice@login"."""

    async def open(self) -> None:
        """Connect; harmless when already connected."""
        ...

    async def close(self) -> None:
        """Disconnect; every process started through this boundary ends."""
        ...

    async def home(self) -> str:
        """The user's home directory on the target."""
        ...

    async def identity(self) -> tuple[str, int, str]:
        """User name, uid and host name on the target."""
        ...

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str | None] | None = None,
        cwd: str | None = None,
        timeout: float,
    ) -> Completed:
        """Run to the end and collect the output.

        `env` is laid over the target's environment; None as a value removes a name. On time-out or
        cancellation the whole process group is killed before the error is raised. A program that does
        not exist is `CommandError`.
        """
        ...

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: str | None = None,
        tty: tuple[int, int] | None = None,
        grace: float = 2.0,
    ) -> AbstractAsyncContextManager[Process]:
        """Run with live streams. Leaving the context ends the group: SIGTERM, `grace` seconds, SIGKILL.

        With `tty=(columns, rows)` the process gets a terminal, and its output arrives as stream 1.
        """
        ...

    async def read(self, path: str, *, offset: int = 0, limit: int = -1) -> bytes:
        """Bytes of a file from `offset`, at most `limit` (-1: all). A negative offset counts from the end."""
        ...

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Replace a file as one step: a temporary file beside it, fsync, chmod, rename."""
        ...

    async def create(self, path: str, data: bytes, *, mode: int = 0o600) -> bool:
        """Create a file exclusively; False when it already exists (and is left as it is)."""
        ...

    async def stat(self, path: str) -> FileInfo | None:
        """Facts of a path (links are not followed), or None when it does not exist."""
        ...

    async def list(self, path: str) -> list[FileInfo]:
        """Entries of a directory, sorted by name."""
        ...

    async def mkdir(self, path: str, *, mode: int = 0o700) -> None:
        """Make a directory and its parents; harmless when it is there. `mode` counts for those it makes."""
        ...

    async def remove(self, path: str, *, recursive: bool = False) -> bool:
        """Remove a file, or a tree without following links; False when there was nothing."""
        ...

    async def rename(self, old: str, new: str) -> None:
        """Rename within a file system, replacing a file at `new`."""
        ...

    def follow(self, path: str, *, offset: int = 0, to_end: bool = False) -> AsyncIterator[Follow]:
        """Yield a file's bytes from `offset` and go on as it grows.

        Survives late creation, truncation and rotation. With `to_end` it stops at the end of the file as
        it is now. Change is noticed by inotify and, for network file systems, by polling as well.
        """
        ...

    def connect(self, address: str | tuple[str, int]) -> AbstractAsyncContextManager[Process]:
        """Connect to a TCP port or Unix socket as seen from the target; stream 1 is what it sends."""
        ...
