"""The session host: one process per user that holds the store, the sessions and their targets."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec

import hpcsh
from hpcsh.errors import UsageError
from hpcsh.host.methods import METHODS, arguments
from hpcsh.host.status import HostStatus
from hpcsh.serving import frames, places
from hpcsh.serving.frames import Hello, Welcome
from hpcsh.serving.server import Ask, Connection, Limits
from hpcsh.serving.unix import is_ours, peer
from hpcsh.session.local import LocalSession
from hpcsh.session.registry import Sessions

log = logging.getLogger(__name__)

CLIENTS = 128
"""Connections at once."""
STOPPING = 30
"""Seconds after which a host that was told to stop is killed."""
_LOGIN_NAMES = frozenset({"SSH_AUTH_SOCK"})


def fingerprint() -> tuple[int, int]:
    """Number and newest change of our source files: tells a host that it runs code that was replaced."""
    times: list[int] = []
    directories = [str(Path(hpcsh.__file__).parent)]
    while directories:
        with os.scandir(directories.pop()) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    times.append(entry.stat().st_mtime_ns)
                elif "." not in entry.name and entry.name != "__pycache__" and entry.is_dir():
                    directories.append(entry.path)
    return len(times), max(times)


async def _nothing() -> None:
    """For a view of a session that has nothing to close."""


class _Client:
    """A front end: its connection, and the session that it is attached to."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.session: LocalSession | None = None
        self.connection: Connection | None = None

    async def handle(self, method: str, args: msgspec.Raw, ask: Ask) -> Any:
        """Answer a call (`serving.server.Handler`)."""
        given = arguments(method, args)
        if method not in METHODS:
            return await getattr(self, f"_{method}")(**given)
        if self.session is None:
            raise UsageError("No session is attached to this connection.")
        # A view of the session that asks the person who waits for this very call.
        result = getattr(LocalSession(self.session.shared, ask, _nothing), method)(**given)
        return result if isinstance(result, AsyncGenerator) else await result

    async def _attach(self, profile: str) -> None:
        if self.session is not None:
            raise UsageError("A session is attached to this connection already.")
        self.session = await self._host.sessions.attach(profile)

    async def _status(self) -> HostStatus:
        return self._host.status()

    async def _stop(self) -> bool:
        self._host.stop("told to")
        return True

    async def _retire(self) -> bool:
        return self._host.retire()

    async def leave(self) -> None:
        """The front end is gone."""
        if self.session:
            await self.session.close()


class Host:
    """Serves one listening socket until it is idle for `idle` seconds, or told to stop."""

    def __init__(self, sessions: Sessions, listener: socket.socket, *, idle: float, limits: Limits) -> None:
        self.sessions = sessions
        self._listener = listener
        self._path = Path(listener.getsockname())
        self._idle = idle
        self._limits = limits
        self._clients: set[_Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._started = time.time()
        self._code = fingerprint()
        self._directories = places.directories()

    def stop(self, why: str) -> None:
        """Begin to stop."""
        log.info("stopping: %s", why)
        self._stopping.set()

    def retire(self) -> bool:
        """Stop if no front end uses a session; whether it does."""
        if any(client.session for client in self._clients):
            return False
        self.stop("a newer version takes over")
        return True

    def status(self) -> HostStatus:
        """The host as it is now."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        connections = [client.connection for client in self._clients if client.connection]
        return HostStatus(
            pid=os.getpid(),
            version=hpcsh.__version__,
            protocol=frames.PROTOCOL,
            socket=str(self._path),
            log=str(places.log_path()),
            started=self._started,
            rss=pages * os.sysconf("SC_PAGE_SIZE"),
            idle=self._idle,
            clients=len(self._clients),
            calls=sum(connection.calls for connection in connections),
            sessions=self.sessions.users(),
        )

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until told to stop or idle; then refuse new clients and end what the others still run."""
        server = await asyncio.start_unix_server(self._accept, sock=self._listener, limit=1 << 20)
        self._quiet(at_least=5)
        ready()
        try:
            await self._stopping.wait()
            signal.alarm(STOPPING)  # whatever hangs from here on, the process ends
        finally:
            if self._timer:
                self._timer.cancel()
            server.close()
            self._path.unlink(missing_ok=True)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _quiet(self, *, at_least: float = 0) -> None:
        """Arm the idle timer: while it runs nothing wakes the process."""
        if not self._clients and not self._stopping.is_set():
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(self._idle, at_least), self.stop, f"idle for {self._idle:g} s")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        if not is_ours(sock):
            log.warning("refused a connection from pid %d, uid %d", *peer(sock))
            writer.transport.abort()
            return
        if len(self._clients) >= CLIENTS:
            log.warning("refused a connection: %d are open", CLIENTS)
            failure = frames.Failure(0, "refused", f"More than {CLIENTS} front ends at once.", exit_code=3)
            writer.write(frames.encode(failure))
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
        finally:
            self._tasks.discard(task)
            self._quiet()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(self)
        self._clients.add(client)
        if self._timer:
            self._timer.cancel()
        client.connection = Connection(
            reader, writer, welcome=self._welcome, handler=client.handle, limits=self._limits
        )
        try:
            await client.connection.serve()
        finally:
            self._clients.discard(client)
            await client.leave()

    def _welcome(self, hello: Hello) -> Welcome:
        for name in _LOGIN_NAMES & hello.environment.keys():
            os.environ[name] = hello.environment[name]
        return Welcome(
            frames.PROTOCOL, hpcsh.__version__, os.getpid(), self._directories, fingerprint() != self._code
        )
