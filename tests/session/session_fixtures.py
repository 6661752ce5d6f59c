"""Private places for a session host, and the same sessions in this process and attached to it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parent / "site"
sys.path.insert(0, str(SITE))

import hpcsh_test_engine  # noqa: E402

from hpcsh.client import connect  # noqa: E402
from hpcsh.host import control  # noqa: E402
from hpcsh.session import Session  # noqa: E402

hpcsh_test_engine.register()

PROFILES = {
    "here": "{engine: local_processes, description: the first, target: {local: true}}",
    "also": "{engine: local_processes, target: {local: true}}",
    "asks": "{engine: local_processes, target: {ssh: {host: asks}}}",
    "prepared": "engine: local_processes\ntarget: {local: true}\nsetup: |\n"
    "  noisy() { echo noise; false; true; }\n  noisy\n"
    "  export HPCSH_SETUP_SAYS='two\n    lines'\n  unset HOSTILE\n",
    "broken": "engine: local_processes\ntarget: {local: true}\nsetup: |\n"
    "  echo before\n  module-that-is-not load nothing\n  echo after\n",
    "no-lab": "{engine: local_processes, target: {lab: is-not-up}}",
    "wrong": "{engine: local_processes, target: {local: true}, color: red}",
}


@dataclass
class Place:
    """One user's directories, in a path short enough for a socket."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    def profile(self, name: str, text: str) -> None:
        path = self.root / "config" / "hpcsh" / "profiles" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def processes(self, *, but: frozenset[int] = frozenset()) -> dict[int, str]:
        """Every process that was started here, found by its environment and not by our bookkeeping."""
        mark = f"HPCSH_RUNTIME_DIR={self.run}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in {os.getpid(), *but}:
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().decode().replace("\0", " ")
                except OSError:
                    continue
        return found


def alive(pid: int) -> bool:
    """False for a process that only waits to be reaped: it has closed everything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def eventually(condition: Callable[[], object], within: float = 15.0) -> None:
    """Wait until something becomes true; how long it takes is not what is tested."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.02)


def _environment(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    for name in ("XDG_RUNTIME_DIR", "HPCSH_IN_PROCESS", "HPCSH_PROFILE", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
    given = {
        "HOME": root / "home", "XDG_STATE_HOME": root / "state", "XDG_CONFIG_HOME": root / "config",
        "HPCSH_RUNTIME_DIR": root / "run", "HPCSH_IDLE": 120, "PYTHONPATH": SITE, "HOSTILE": "yes",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError("this test hangs")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Fresh directories; at the end the host is stopped and no process of the test may be left."""
    root = Path(tempfile.mkdtemp(prefix="hpcsh-t-"))
    (root / "home").mkdir()
    _environment(monkeypatch, root)
    made = Place(root)
    for name, text in PROFILES.items():
        made.profile(name, text)
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(120)
    yield made
    signal.alarm(60)

    async def stop() -> None:
        await control.stop()
        await eventually(lambda: not made.processes())

    try:
        asyncio.run(stop())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        for pid in made.processes():
            os.kill(pid, 9)
        shutil.rmtree(root, ignore_errors=True)


Open = Callable[..., Awaitable[Session]]


@pytest.fixture(params=["in-process", "attached"])
async def opened(request: pytest.FixtureRequest, place: Place) -> AsyncIterator[Open]:
    """`await opened("PROFILE", ask=…)`: a session, closed at the end; the test runs with both kinds."""
    async with AsyncExitStack() as stack:

        async def open_one(profile: str = "here", **more: object) -> Session:
            session = await connect(profile, in_process=request.param == "in-process", **more)  # type: ignore[arg-type]
            stack.push_async_callback(session.close)
            return session

        yield open_one


@pytest.fixture
async def attached(place: Place) -> AsyncIterator[Open]:
    """As `opened`, attached only."""
    async with AsyncExitStack() as stack:

        async def open_one(profile: str = "here", **more: object) -> Session:
            session = await connect(profile, **more)  # type: ignore[arg-type]
            stack.push_async_callback(session.close)
            return session

        yield open_one
