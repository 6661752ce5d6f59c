"""Boundaries to test: this machine, this machine through sshd, and an agent started by another agent."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hpcsh.boundary.client import AgentBoundary
from hpcsh.boundary.local import LocalBoundary
from hpcsh.boundary.nested import NestedBoundary
from hpcsh.boundary.ssh import SSHBoundary
from tests.boundary.sshd_server import Sshd, Users


@pytest.fixture(autouse=True)
def hang() -> Iterator[None]:
    """A test that hangs fails, and the others run."""

    def ring(number: int, frame: object) -> None:
        raise AssertionError("the test hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(90)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server that allows two sessions a connection, shared by all tests that do not break it."""
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.remove()


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[Sshd]:
    """A server of the test's own."""
    server = Sshd(tmp_path / "sshd")
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def users() -> Iterator[Users]:
    made = Users()
    yield made
    made.remove()


@pytest.fixture(params=["local", "ssh", "nested"])
async def boundary(request: pytest.FixtureRequest) -> AsyncIterator[AgentBoundary]:
    """An open boundary of each kind. Our own Python, because a `python3` may be a slow script (pyenv)."""
    kind = request.param
    if kind == "ssh":
        server: Sshd = request.getfixturevalue("sshd")
        async with SSHBoundary("target", ssh_config=server.config(), python=sys.executable) as target:
            yield target
    elif kind == "local":
        async with LocalBoundary() as target:
            yield target
    else:
        inner = {"argv": ["env"], "name": "inner", "python": sys.executable}
        async with LocalBoundary() as outer, NestedBoundary(outer, **inner) as target:  # type: ignore[arg-type]
            yield target


@pytest.fixture
async def local() -> AsyncIterator[LocalBoundary]:
    async with LocalBoundary() as target:
        assert isinstance(target, LocalBoundary)
        yield target
