"""Finding the session host, and starting it where none runs. Only standard library and msgspec."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from hpcsh import __version__
from hpcsh.errors import HpcshError, RefusedError, TargetError, TimedOutError, UsageError, rebuild
from hpcsh.serving import frames, places, record
from hpcsh.serving.caller import Ask, Caller, ConnectionLostError
from hpcsh.serving.frames import Failure, Hello, Welcome

HANDSHAKE = 10.0
STARTING = 60.0
_PAUSE = 0.02
_LOGIN_NAMES = ("SSH_AUTH_SOCK",)


def _hello() -> Hello:
    environment = {name: os.environ[name] for name in _LOGIN_NAMES if name in os.environ}
    return Hello(frames.PROTOCOL, __version__, places.directories(), environment)


async def find(ask: Ask | None = None) -> tuple[Caller, Welcome] | None:
    """A connection to the running host, of whichever version; None when there is none.

    Raises `RefusedError` for a socket directory that is not private, `TargetError` for a host that hangs.
    """
    paths = [places.socket_path()]
    if (known := record.read()) and Path(known.socket) not in paths:
        paths.append(Path(known.socket))
    for path in paths:
        try:
            places.check_private(path.parent)
            return await Caller.open(path, _hello(), ask=ask, timeout=HANDSHAKE)
        except (OSError, EOFError):
            continue
    return None


async def reach(ask: Ask | None = None) -> tuple[Caller, Welcome]:
    """A connection to a host of our version, started if need be.

    Raises `RefusedError` when one of another version is in use, `TargetError` when none can be started.
    """
    try:
        async with asyncio.timeout(STARTING):
            while True:
                found = await find(ask)
                if found is None:
                    await _start()
                elif await _suits(*found):
                    return found
    except TimeoutError:
        raise TimedOutError(
            f"No session host could be reached or started within {STARTING:g} seconds.",
            fix=f"look into {places.log_path()}; or run with HPCSH_IN_PROCESS=1",
        ) from None


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


async def _suits(caller: Caller, welcome: Welcome) -> bool:
    """True when this host is ours to use; False when it made room. Closes the connection otherwise."""
    theirs, ours = (_order(welcome.version), welcome.protocol), (_order(__version__), frames.PROTOCOL)
    try:
        if theirs == ours and welcome.directories != places.directories():
            raise UsageError(
                f"The running session host (pid {welcome.pid}) uses other directories.",
                why=f"It uses {', '.join(welcome.directories)}; here: {', '.join(places.directories())}",
                fix="set HPCSH_RUNTIME_DIR to another directory of your own for this environment",
            )
        if theirs == ours and not welcome.outdated:
            return True
        if theirs <= ours and await _retire(caller):
            await caller.close()
            return False
        if theirs == ours:  # its code was replaced while it is in use: it goes on until it is idle
            return True
        raise RefusedError(
            f"A session host of version {welcome.version} (pid {welcome.pid}) is running; "
            f"this is version {__version__}.",
            why="It is newer." if theirs > ours else "Other front ends are using it.",
            fix="close them, or `hpcsh host stop`; jobs go on",
        )
    except BaseException:
        await caller.close()
        raise


async def _retire(caller: Caller) -> bool:
    """Ask a host to stop if nobody uses it; whether it does."""
    try:
        return msgspec.msgpack.decode(await caller.call("retire", {}), type=bool)
    except ConnectionLostError:
        return True
    except (HpcshError, msgspec.DecodeError):
        return False


@contextlib.asynccontextmanager
async def _start_lock() -> AsyncGenerator[None, None]:
    """Of all who want to start a host, one at a time."""
    directory = places.runtime_directory()
    places.make_private(directory)
    while (fd := record.try_lock(directory / "start.lock")) is None:
        await asyncio.sleep(_PAUSE)
    try:
        yield
    finally:
        os.close(fd)


async def _start() -> None:
    """Start a host unless somebody else has done so in the meantime; returns when it serves."""
    async with _start_lock():
        found = await find()
        if found is not None:
            await found[0].close()
            return
        ready, process = _spawn()
        try:
            answer = await _read_to_end(ready)
        finally:
            os.close(ready)
            process.wait()  # the host detached itself from this process, which has ended by now
    if answer == b"ready":
        return
    try:
        failure = msgspec.msgpack.decode(answer, type=Failure)
    except msgspec.DecodeError:
        raise TargetError(
            "The session host could not be started.",
            why=_last_words(),
            fix=f"look into {places.log_path()}; or run with HPCSH_IN_PROCESS=1",
        ) from None
    raise rebuild(failure.kind, failure.what, failure.why, failure.fix, failure.exit_code)


def _spawn() -> tuple[int, subprocess.Popen[bytes]]:
    """Start a detached host; a descriptor on which it says that it is ready, or why not."""
    places.state_home().mkdir(parents=True, exist_ok=True, mode=0o700)
    log = os.open(places.log_path(), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    ready, theirs = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hpcsh.host", "--ready-fd", str(theirs)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(theirs,),
            start_new_session=True,
        )
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(log)
        os.close(theirs)
    return ready, process


async def _read_to_end(fd: int) -> bytes:
    """Everything a pipe carries until its other end is closed."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    parts: list[bytes] = []
    while True:
        readable = asyncio.Event()
        loop.add_reader(fd, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(fd)
        part = os.read(fd, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _last_words() -> str:
    try:
        return places.log_path().read_text("utf-8", "replace").strip()[-1000:]
    except OSError as e:
        return str(e)
