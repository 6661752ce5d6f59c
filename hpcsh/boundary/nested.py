"""A target behind a target: an agent started by a command on another one (`srun … python3` on a node)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from hpcsh.boundary import bootstrap
from hpcsh.boundary.base import Boundary, Process
from hpcsh.boundary.client import AgentBoundary
from hpcsh.boundary.transport import CLOSE_TIMEOUT, HIGH_WATER, KEEP_ERRORS, Lost, Receive, Transport
from hpcsh.errors import HpcshError


class NestedBoundary(AgentBoundary):
    """Where `argv` leads from `outer`, for example `["srun", "--jobid=7", "--overlap", "-N1", "-n1"]`.

    A command that looks for a Python is added to `argv`, as arguments of their own: `argv` must be a program
    that runs its arguments as they are. Closing this boundary does not close `outer`.
    """

    def __init__(self, outer: Boundary, argv: Sequence[str], name: str, *, python: str | None = None) -> None:
        super().__init__(name, python=python)
        self._outer, self._argv = outer, list(argv)
        bootstrap.script(python)  # an unusable `python` is an error now

    def _transport(self) -> Transport:
        return ProcessTransport(self._outer, [*self._argv, "/bin/sh", "-c", bootstrap.script(self._python)])


class ProcessTransport:
    """The agent's streams as those of a process of another boundary."""

    keepalive = 0.0  # the outer connection watches itself

    def __init__(self, outer: Boundary, argv: Sequence[str]) -> None:
        self._outer, self._argv = outer, argv
        self._stack = contextlib.AsyncExitStack()
        self._process: Process | None = None
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting = 0
        self._room = asyncio.Event()
        self._room.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = asyncio.Event()
        self.status: int | None = None
        self.errors = b""

    async def start(self, receive: Receive, lost: Lost) -> None:
        """Start the command through the outer boundary."""
        self._process = await self._stack.enter_async_context(self._outer.stream(self._argv, grace=10.0))
        self._tasks = [
            asyncio.ensure_future(self._read(self._process, receive, lost)),
            asyncio.ensure_future(self._send(self._process)),
        ]

    async def _read(self, process: Process, receive: Receive, lost: Lost) -> None:
        why = "the agent ended"
        try:
            async for stream, data in process.output():
                if stream == 1:
                    receive(data)
                else:
                    self.errors = (self.errors + data)[-KEEP_ERRORS:]
            self.status = await process.wait()
        except HpcshError as error:
            why = str(error)
        finally:
            self._ended.set()
            self._room.set()
            lost(why)

    async def _send(self, process: Process) -> None:
        with contextlib.suppress(HpcshError):  # the reader says why
            while data := await self._out.get():
                await process.write(data)
                self._waiting -= len(data)
                if self._waiting <= HIGH_WATER:
                    self._room.set()
            await process.close_stdin()

    def write(self, data: bytes) -> None:
        """Send bytes, without waiting."""
        self._waiting += len(data)
        if self._waiting > HIGH_WATER and not self._ended.is_set():
            self._room.clear()
        self._out.put_nowait(data)

    async def drain(self) -> None:
        """Wait until there is room to send more."""
        await self._room.wait()

    async def close(self, *, patient: bool) -> None:
        """End the agent's input, give it the time it needs to end its processes, then end the command."""
        if self._process is not None:
            self._out.put_nowait(b"")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT if patient else 0):
                    await self._ended.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(HpcshError):
            await self._stack.aclose()
