"""`hpcsh host status|stop|logs`: look at the session host and stop it. Imports nothing heavy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hpcsh.client.start import find
from hpcsh.errors import FAILED, OK, HpcshError, TargetError, TimedOutError, UsageError
from hpcsh.host.status import HostStatus
from hpcsh.serving import places, record

__all__ = ["log_path", "main", "status", "stop"]

USAGE = """\
hpcsh host status [--json]   the session host: process, memory, front ends, sessions
hpcsh host stop              end it; jobs go on, and the next command starts another
hpcsh host logs              what it wrote down
"""


def log_path() -> Path:
    """The session host's log; the one before it is beside it as `host.log.1`."""
    return places.log_path()


async def status() -> HostStatus | None:
    """What the running host says about itself; None when none runs. Never starts one."""
    found = await find()
    if found is None:
        return None
    caller, _ = found
    try:
        return msgspec.msgpack.decode(await caller.call("status", {}), type=HostStatus)
    finally:
        await caller.close()


async def stop(timeout: float = 40.0) -> int | None:
    """Stop the running host and wait until it is gone; its pid, or None when none ran.

    What front ends have under way ends; jobs go on. A host that does not answer gets SIGTERM, and after
    half of `timeout` SIGKILL, which is safe. Raises `TimedOutError` when even that does not help.
    """
    pid = await _ask_to_stop()
    if pid is None:
        return None
    deadline = time.monotonic() + timeout
    killed = False
    while _lives(pid):
        left = deadline - time.monotonic()
        if left < timeout / 2 and not killed:
            killed = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if left < 0:
            raise TimedOutError(f"The session host (pid {pid}) does not end.", fix=f"kill -9 {pid}")
        await asyncio.sleep(0.02)
    return pid


async def _ask_to_stop() -> int | None:
    try:
        found = await find()
    except TargetError:
        known = record.read()
        if known is None or not _lives(known.pid):
            raise
        os.kill(known.pid, signal.SIGTERM)
        return known.pid
    if found is None:
        return None
    caller, welcome = found
    try:
        await caller.call("stop", {})
    except HpcshError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(welcome.pid, signal.SIGTERM)
    finally:
        await caller.close()
    return welcome.pid


def _lives(pid: int) -> bool:
    """True while the process is our host: not another's, not one that only waits to be reaped."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and b"hpcsh.host" in command


def main(argv: Sequence[str]) -> int:
    """Run `hpcsh host …`; the exit code. `status` fails when no host runs. Raises `HpcshError`."""
    words = list(argv)
    if words in (["status"], ["status", "--json"]):
        return _show(asyncio.run(status()), json="--json" in words)
    if words == ["stop"]:
        pid = asyncio.run(stop())
        print("No session host runs." if pid is None else f"Stopped the session host (pid {pid}).")
        return OK
    if words == ["logs"]:
        sys.stdout.flush()
        with contextlib.suppress(FileNotFoundError), open(log_path(), "rb") as log:
            shutil.copyfileobj(log, sys.stdout.buffer)
        return OK
    if words in (["--help"], ["-h"]):
        print(USAGE, end="")
        return OK
    raise UsageError(f"hpcsh host: {' '.join(words) or 'what?'}", fix="hpcsh host status|stop|logs")


def _show(found: HostStatus | None, *, json: bool) -> int:
    if json:
        print(msgspec.json.encode(found).decode())
    elif found is None:
        print("No session host runs. The next command starts one.")
    else:
        sessions = ", ".join(f"{name} ({users})" for name, users in found.sessions.items()) or "none"
        age = int(time.time() - found.started)
        clock = f"{age // 3600}:{age // 60 % 60:02}:{age % 60:02}"
        print(f"pid       {found.pid}, version {found.version}, for {clock}")
        print(f"memory    {found.rss / 1e6:.0f} MB")
        print(f"clients   {found.clients - 1} besides this one, {found.calls - 1} calls under way")
        print(f"sessions  {sessions}")
        print(f"ends      {found.idle:g} s after its last front end has left")
        print(f"socket    {found.socket}")
        print(f"log       {found.log}")
    return FAILED if found is None else OK
