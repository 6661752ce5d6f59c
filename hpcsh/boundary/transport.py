"""How bytes get to an agent and back: the protocol, and the pipes of a local process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Protocol

from hpcsh.errors import TargetError

Receive = Callable[[bytes], None]
Lost = Callable[[str], None]

HIGH_WATER = 1024 * 1024
"""Bytes waiting to be sent above which `drain` waits."""

CLOSE_TIMEOUT = 15.0
"""Seconds that an agent gets to end its processes: more than its own limits."""

KEEP_ERRORS = 8192
"""Bytes of an agent's standard error that are kept for messages."""


class Transport(Protocol):
    """A running agent's standard streams. All methods are called in one event loop."""

    keepalive: float
    """Seconds of silence after which the other side is asked whether it lives; 0: it need not be asked."""

    status: int | None
    """Exit status of the agent's command, when it has ended and that is known."""

    errors: bytes
    """The end of what came on standard error."""

    async def start(self, receive: Receive, lost: Lost) -> None:
        """Start the command; from now on `receive` gets its output, and `lost` is called once at its end."""
        ...

    def write(self, data: bytes) -> None:
        """Send bytes, without waiting."""
        ...

    async def drain(self) -> None:
        """Wait until there is room to send more."""
        ...

    async def close(self, *, patient: bool) -> None:
        """Close the agent's stdin, which makes it end all it started, and wait until it is gone.

        Not `patient`: there is no agent to wait for, or it does not answer; end the command.
        """
        ...


class _Output(asyncio.Protocol):
    """The reading end of a pipe."""

    def __init__(self, receive: Receive, ended: Callable[[], None]) -> None:
        self._receive, self._ended = receive, ended

    def data_received(self, data: bytes) -> None:
        self._receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()


class _Input(asyncio.BaseProtocol):
    """The writing end of a pipe, with the loop's signals for back pressure."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()

    def pause_writing(self) -> None:
        """Too much is waiting."""
        self.room.clear()

    def resume_writing(self) -> None:
        """There is room again."""
        self.room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody reads any more; whoever waits for room must not wait for ever."""
        self.room.set()


class PipeTransport:
    """An agent as a child process of this one, in a session of its own (a Ctrl-C here does not reach it)."""

    keepalive = 0.0

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.WriteTransport | None = None
        self._input = _Input()
        self._ended = asyncio.Event()
        self.status: int | None = None
        self.errors = b""

    async def start(self, receive: Receive, lost: Lost) -> None:
        """Start the process; an interpreter that is not there is a `TargetError`."""
        loop = asyncio.get_running_loop()
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(  # noqa: ASYNC220  (a vfork; asyncio would do the same)
                self._argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, bufsize=0
            )
        except OSError as error:
            raise TargetError(f"cannot start {self._argv[0]}", why=str(error)) from error
        self._process = process
        assert process.stdin
        assert process.stdout
        assert process.stderr
        for file in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                fcntl.fcntl(file.fileno(), fcntl.F_SETPIPE_SZ, HIGH_WATER)

        def ended() -> None:
            self._ended.set()
            self.status = process.poll()
            lost("its process ended")

        await loop.connect_read_pipe(lambda: _Output(self._keep, lambda: None), process.stderr)
        await loop.connect_read_pipe(lambda: _Output(receive, ended), process.stdout)
        self._writer, _ = await loop.connect_write_pipe(lambda: self._input, process.stdin)
        self._writer.set_write_buffer_limits(HIGH_WATER)

    def _keep(self, data: bytes) -> None:
        self.errors = (self.errors + data)[-KEEP_ERRORS:]

    def write(self, data: bytes) -> None:
        """Send bytes, without waiting."""
        if self._writer and not self._writer.is_closing():
            self._writer.write(data)

    async def drain(self) -> None:
        """Wait until there is room to send more."""
        await self._input.room.wait()

    async def close(self, *, patient: bool) -> None:
        """Close the pipe; an agent that does not end within its own limits is killed."""
        if self._writer and not self._writer.is_closing():
            self._writer.abort()
        process = self._process
        if process is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT if patient else 0):
                await self._ended.wait()
        self.status = await asyncio.get_running_loop().run_in_executor(None, _bury, process, patient)


def _bury(process: subprocess.Popen[bytes], patient: bool) -> int:
    """Wait for a process that should have ended; kill it when it does not go."""
    try:
        return process.wait(2 if patient else 0.2)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()
