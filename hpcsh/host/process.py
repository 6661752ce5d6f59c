"""The life of the session host's process: alone in its place, ready, serving, gone without a trace.

It may be killed at any instant: the locks go with the process, and the next host clears the dead socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Generator
from pathlib import Path

import hpcsh
from hpcsh.errors import RefusedError, UsageError
from hpcsh.host.server import Host
from hpcsh.serving import places, record
from hpcsh.serving.server import Limits
from hpcsh.serving.unix import listen
from hpcsh.session.registry import Sessions
from hpcsh.store import Store

log = logging.getLogger(__name__)

IDLE = 600.0
PREDECESSOR = 10.0
"""Seconds that a host which is just stopping is waited for."""
_LOG_LIMIT = 1 << 20


def idle_seconds() -> float:
    """How long a host without front ends stays: `$HPCSH_IDLE`, default 600."""
    text = os.environ.get("HPCSH_IDLE") or str(IDLE)
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1e9:
        raise UsageError(f"HPCSH_IDLE is {text!r}; it is a number of seconds.")
    return value


def detach() -> None:
    """Become a process of its own: no terminal, no parent, output to the log."""
    if os.fork():
        os._exit(0)
    os.setsid()
    path = places.log_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_LIMIT:
            path.replace(path.with_name("host.log.1"))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (fd, 1), (fd, 2)):
        os.dup2(source, target)
    os.close(fd)
    os.close(null)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextlib.contextmanager
def _alone() -> Generator[Path, None, None]:
    """The socket's path, while no other host can serve there."""
    path = places.socket_path()
    places.make_private(path.parent)
    deadline = time.monotonic() + PREDECESSOR
    while (lock := record.try_lock(path.parent / "host.lock")) is None:
        if time.monotonic() > deadline:
            raise RefusedError("Another session host serves here.", why=str(path), fix="hpcsh host stop")
        time.sleep(0.02)
    try:
        yield path
    finally:
        os.close(lock)


def _open_store() -> Store:
    """The store; a predecessor in another place that is just stopping is waited for."""
    deadline = time.monotonic() + 2
    while True:
        try:
            return Store()
        except RefusedError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


async def serve(ready: Callable[[], None]) -> None:
    """Be the session host until idle or told to stop. Calls `ready` when front ends can connect."""
    idle = idle_seconds()
    with _alone() as path, contextlib.closing(_open_store()) as store:
        listener = listen(path)
        sessions = Sessions(store, keep=True)
        host = Host(sessions, listener, idle=idle, limits=Limits())
        record.write(
            record.HostRecord(
                pid=os.getpid(),
                host=socket.gethostname(),
                boot=record.boot_id(),
                socket=str(path),
                version=hpcsh.__version__,
            )
        )
        _stop_on_signals(host)
        log.info("hpcsh %s, pid %d, serves %s", hpcsh.__version__, os.getpid(), path)
        try:
            await host.run(ready)
        finally:
            await sessions.close()
            places.record_path().unlink(missing_ok=True)
            log.info("stopped")


def _stop_on_signals(host: Host) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, host.stop, signal.Signals(number).name)
