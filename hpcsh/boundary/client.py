"""The asyncio side of the agent: the `Boundary` protocol over any transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Self

from hpcsh.boundary.base import Completed
from hpcsh.boundary.files import FileCalls, feed, plain
from hpcsh.boundary.link import START_TIMEOUT, Channel, Link
from hpcsh.boundary.process import RemoteProcess
from hpcsh.boundary.transport import Transport
from hpcsh.boundary.wire import CHUNK, Header
from hpcsh.errors import TargetError, TimedOutError, UsageError

Env = Mapping[str, str | None]

LINGER = 0.5
"""Seconds `run` goes on reading when the program has ended but a child of it keeps its output open."""


class AgentBoundary(FileCalls):
    """Everything of `Boundary`, done by an agent at the other end of a transport.

    Subclasses say how to get there (`_transport`). The first call connects; after a broken connection the
    call that notices fails and the next one connects again. A process that leaves its session (setsid, a
    daemon) outlives its call; every other process ends with it.
    """

    def __init__(self, name: str, *, python: str | None = None) -> None:
        self.name = name
        self.base_env: dict[str, str | None] = {}
        self.start_timeout = START_TIMEOUT
        self._python = python
        self._link: Link | None = None
        self._greeting: Header = {}
        self._opening: asyncio.Task[Link] | None = None
        self._waiting = 0
        self._closed = False

    def set_base_env(self, mapping: Env) -> None:
        """Lay an environment under that of every later call: what a profile's `setup:` lines made.

        None as a value removes a name.
        """
        self.base_env = dict(mapping)

    def _transport(self) -> Transport:
        """A new transport to the target."""
        raise NotImplementedError

    async def open(self) -> None:
        """Connect; harmless when already connected. After `close` it opens anew."""
        self._closed = False
        await self._ready()

    async def close(self) -> None:
        """Disconnect; every process started through this boundary ends."""
        self._closed = True
        if self._opening:
            opening = self._opening
            opening.cancel()
            await asyncio.wait({opening})
        link, self._link = self._link, None
        if link:
            await asyncio.shield(asyncio.ensure_future(link.close()))

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _ready(self) -> Link:
        """The open link. Those who come while it is being opened share one attempt, and its error."""
        if self._link and not self._link.error:
            return self._link
        if self._closed:
            raise TargetError(f"the connection to {self.name} is closed")
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._connect())
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        self._waiting += 1
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            if opening.cancelled():  # by close()
                raise TargetError(f"the connection to {self.name} is closed") from None
            if self._waiting == 1:  # nobody wants it any more
                opening.cancel()
            raise
        finally:
            self._waiting -= 1

    def _opened(self, task: asyncio.Task[Link]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # told to those who wait; without any it is no news

    async def _connect(self) -> Link:
        if self._link:
            await self._link.close()
        transport = self._transport()  # may say a better name
        link = Link(self.name, transport, self._python)
        self._greeting = await link.open(self.start_timeout)
        self._link = link
        return link

    async def home(self) -> str:
        """The user's home directory on the target."""
        await self._ready()
        return str(self._greeting["home"])

    async def identity(self) -> tuple[str, int, str]:
        """User name, uid and host name on the target."""
        await self._ready()
        hello = self._greeting
        return str(hello["user"]), int(hello["uid"]), str(hello["host"])

    # Processes and connections

    def _environment(self, env: Env | None) -> dict[str, str | None]:
        merged = {**self.base_env, **(env or {})}
        for name, value in merged.items():
            if not name or "=" in name:
                raise UsageError(f"{name!r} is not a name of an environment variable")
            plain("an environment variable", name, value or "")
        return merged

    async def _spawn(
        self, argv: Sequence[str], env: Env | None, cwd: str | None, payload: bytes = b"", **more: object
    ) -> Channel:
        if not argv or not argv[0]:
            raise UsageError("no program to run")
        plain("an argument", *argv, cwd or "")
        merged = self._environment(env)
        link = await self._ready()
        fields: Header = {"argv": list(argv), "env": merged, "cwd": cwd, **more}
        return link.request(
            "spawn", f"cannot run {argv[0]!r} on {self.name}", fields, missing=False, payload=payload
        )

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Env | None = None,
        cwd: str | None = None,
        timeout: float,
    ) -> Completed:
        """Run to the end and collect the output (see `Boundary.run`). `timeout` counts from the call."""
        began = time.monotonic()
        taken: dict[int, list[bytes]] = {1: [], 2: []}
        try:
            async with asyncio.timeout(timeout) as limit:
                code = await self._run(argv, stdin, env, cwd, taken)
        except TimeoutError:
            if not limit.expired():
                raise
            words = b"".join(taken[2])[-500:].decode("utf-8", "replace").strip()
            raise TimedOutError(
                f"{argv[0]!r} on {self.name} did not end within {timeout:g} s and was stopped", why=words
            ) from None
        out, err = (b"".join(taken[n]) for n in (1, 2))
        return Completed(tuple(argv), code, out, err, time.monotonic() - began)

    async def _run(
        self,
        argv: Sequence[str],
        stdin: bytes,
        env: Env | None,
        cwd: str | None,
        taken: dict[int, list[bytes]],
    ) -> int:
        first = stdin[:CHUNK]
        channel = await self._spawn(argv, env, cwd, payload=first, eof=len(first) == len(stdin))
        feeder: asyncio.Task[None] | None = None
        try:
            if len(first) < len(stdin):
                feeder = asyncio.ensure_future(feed(channel, stdin, len(first)))
            await _collect(channel, taken)
            header = await channel.until("exit")
            return int(header["code"])
        finally:
            if feeder:
                feeder.cancel()
            await channel.finish(grace=2.0)

    @asynccontextmanager
    async def stream(
        self,
        argv: Sequence[str],
        *,
        env: Env | None = None,
        cwd: str | None = None,
        tty: tuple[int, int] | None = None,
        grace: float = 2.0,
    ) -> AsyncIterator[RemoteProcess]:
        """Run with live streams (see `Boundary.stream`)."""
        channel = await self._spawn(argv, env, cwd, tty=list(tty) if tty else None)
        try:
            started = await channel.until("started")
            yield RemoteProcess(channel, int(started["pid"]))
        finally:
            await channel.finish(grace=grace)

    @asynccontextmanager
    async def connect(self, address: str | tuple[str, int]) -> AsyncIterator[RemoteProcess]:
        """Connect to a TCP port or Unix socket as seen from the target; `close_stdin` half-closes it."""
        place = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
        link = await self._ready()
        where = address if isinstance(address, str) else list(address)
        channel = link.request("connect", f"cannot connect to {place} on {self.name}", {"address": where})
        try:
            await channel.until("started")
            yield RemoteProcess(channel, 0)
        finally:
            await channel.finish()


async def _collect(channel: Channel, taken: dict[int, list[bytes]]) -> None:
    """Collect output until the request ends; with the program ended, until its output falls silent."""
    while True:
        frame = channel.pop()
        if frame:
            taken[frame[0]["s"]].append(frame[1])
        elif channel.error:
            raise channel.error
        elif channel.over:
            return
        elif "exit" not in channel.seen:
            await channel.change()
        else:
            try:
                async with asyncio.timeout(LINGER):
                    await channel.change()
            except TimeoutError:
                return
