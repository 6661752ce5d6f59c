"""A profile's `setup:` lines, run once, and their effect laid under every command of a session.

Several sessions share a target's boundary and may have different `setup`, so that each session looks at
the target through a `PreparedBoundary` of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from hpcsh.boundary.base import Boundary, Completed, FileInfo, Follow, Process
from hpcsh.errors import CommandError

SETUP_TIMEOUT = 120.0

_RUN_SETUP = """\
_hpcsh_mark=$1 _hpcsh_setup=$(cat; printf x); shift
_hpcsh_failed() { printf '%s\\n' "the line that failed: $2" >&2; exit "$1"; }
exec </dev/null
trap '_hpcsh_failed "$?" "$BASH_COMMAND"' ERR
eval "${_hpcsh_setup%x}"
trap - ERR
printf '%s' "$_hpcsh_mark"
env -0
"""
"""Read the lines from standard input, so that they are in nobody's argv; say which line failed.

`set -e` would reach into the shell functions that `module` consists of; the trap only sees
the lines themselves.
"""  # fmt: skip
_OF_THE_SHELL = frozenset({"_", "SHLVL", "PWD", "OLDPWD"})

Environment = dict[str, str | None]


def _parse(data: bytes) -> dict[str, str]:
    pairs = (entry.partition(b"=") for entry in data.split(b"\0") if b"=" in entry)
    text = {k.decode("utf-8", "surrogateescape"): v.decode("utf-8", "surrogateescape") for k, _, v in pairs}
    return {k: v for k, v in text.items() if k not in _OF_THE_SHELL}


async def setup_environment(boundary: Boundary, setup: str) -> Environment:
    """What a login shell's start files and the `setup` lines change in the environment of commands.

    None as a value: they remove the name. Raises `CommandError` with the failed line and its output.
    """
    plain = await boundary.run(["env", "-0"], timeout=SETUP_TIMEOUT)
    plain.check("The environment of the target could not be read.")
    mark = secrets.token_hex(16)
    argv = ["bash", "-l", "-c", _RUN_SETUP, "hpcsh-setup", mark]
    done = await boundary.run(argv, stdin=setup.encode(), timeout=SETUP_TIMEOUT)
    output, found, environment = done.stdout.partition(mark.encode())
    if done.code != 0 or not found:
        words = (output + b"\n" + done.stderr).decode("utf-8", "replace").strip()
        raise CommandError(
            f"The profile's setup failed on {boundary.name} with status {done.code}.",
            why=words[-2000:] or "It ended the shell without a word.",
            fix="correct `setup:` in the profile; `hpcsh doctor` runs it again",
        )
    before, after = _parse(plain.stdout), _parse(environment)
    changes: Environment = {k: v for k, v in after.items() if before.get(k) != v}
    changes.update({k: None for k in before if k not in after})
    return changes


class PreparedBoundary:
    """A boundary whose commands run with `environment` under what the caller gives."""

    def __init__(self, boundary: Boundary, environment: Mapping[str, str | None] | None = None) -> None:
        self._boundary = boundary
        self.environment: Environment = dict(environment or {})
        self.name = boundary.name

    def _env(self, env: Mapping[str, str | None] | None) -> Environment | None:
        return {**self.environment, **(env or {})} or None

    async def open(self) -> None:
        """Connect."""
        await self._boundary.open()

    async def close(self) -> None:
        """Do nothing: the boundary belongs to all sessions on the target."""

    async def home(self) -> str:
        """The user's home directory on the target."""
        return await self._boundary.home()

    async def identity(self) -> tuple[str, int, str]:
        """User name, uid and host name on the target."""
        return await self._boundary.identity()

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str | None] | None = None,
        cwd: str | None = None,
        timeout: float,
    ) -> Completed:
        """Run to the end, in the prepared environment."""
        return await self._boundary.run(argv, stdin=stdin, env=self._env(env), cwd=cwd, timeout=timeout)

    def stream(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: str | None = None,
        tty: tuple[int, int] | None = None,
        grace: float = 2.0,
    ) -> AbstractAsyncContextManager[Process]:
        """Run with live streams, in the prepared environment."""
        return self._boundary.stream(argv, env=self._env(env), cwd=cwd, tty=tty, grace=grace)

    async def read(self, path: str, *, offset: int = 0, limit: int = -1) -> bytes:
        """Bytes of a file."""
        return await self._boundary.read(path, offset=offset, limit=limit)

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Replace a file as one step."""
        await self._boundary.write(path, data, mode=mode)

    async def create(self, path: str, data: bytes, *, mode: int = 0o600) -> bool:
        """Create a file exclusively."""
        return await self._boundary.create(path, data, mode=mode)

    async def stat(self, path: str) -> FileInfo | None:
        """Facts of a path, or None."""
        return await self._boundary.stat(path)

    async def list(self, path: str) -> list[FileInfo]:
        """Entries of a directory."""
        return await self._boundary.list(path)

    async def mkdir(self, path: str, *, mode: int = 0o700) -> None:
        """Make a directory and its parents."""
        await self._boundary.mkdir(path, mode=mode)

    async def remove(self, path: str, *, recursive: bool = False) -> bool:
        """Remove a file or a tree."""
        return await self._boundary.remove(path, recursive=recursive)

    async def rename(self, old: str, new: str) -> None:
        """Rename within a file system."""
        await self._boundary.rename(old, new)

    def follow(self, path: str, *, offset: int = 0, to_end: bool = False) -> AsyncIterator[Follow]:
        """Yield a file's bytes as it grows."""
        return self._boundary.follow(path, offset=offset, to_end=to_end)

    def connect(self, address: str | tuple[str, int]) -> AbstractAsyncContextManager[Process]:
        """Connect to a port or socket as seen from the target."""
        return self._boundary.connect(address)
