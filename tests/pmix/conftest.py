"""Sessions of the pmix engine on the lab, an environment that stands, and a compiled program."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pmix_sessions import EXAMPLES, Open, Session

from hpcsh.boundary.ssh import SSHBoundary
from hpcsh.clock import SystemClock
from hpcsh.engines.context import Context
from hpcsh.events import EventBus
from hpcsh.lab.paths import ssh_config
from hpcsh.model import Progress
from hpcsh.profiles import parse
from hpcsh.slurm.cluster import Cluster
from hpcsh.store import Store


@pytest.fixture(scope="session")
def lab_name(lab: str) -> str:
    """The lab that is up for the whole run; `HPCSH_TEST_LAB` names another one."""
    return os.environ.get("HPCSH_TEST_LAB", lab)


@pytest.fixture(scope="module")
def opened(lab_name: str, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Opens a session; each call makes a new engine on the same store, as a new process would."""
    root = tmp_path_factory.mktemp("pmix")
    profile = parse(
        f"engine: pmix\ntarget: {{lab: {lab_name}}}\nworkdir: ~/.hpcsh-pmix-{root.parent.name}-{root.name}\n"
        "images: {plain_http: ['login:5000']}\npmix: {mca: {OMPI_MCA_btl: '^ofi'}}\n".encode(),
        "lab-pmix",
        "test",
    )

    @asynccontextmanager
    async def open_() -> AsyncIterator[Session]:
        boundary = SSHBoundary(f"hpcsh-lab-{lab_name}", ssh_config=str(ssh_config(lab_name)))
        store = Store(root / "store")
        clock = SystemClock()
        try:
            await boundary.open()
            context = Context(
                profile=profile, boundary=boundary, cluster=Cluster(boundary, clock, floor=1.0), store=store,
                bus=EventBus(), clock=clock,
            )  # fmt: skip
            session = Session(lab_name, boundary, context)
            await session.engine.open()
            try:
                yield session
            finally:
                await session.engine.close()
        finally:
            await boundary.close()
            store.close()

    return open_


@pytest.fixture
async def session(opened: Open) -> AsyncIterator[Session]:
    """A session without an environment of its own."""
    async with opened() as session:
        yield session


@pytest.fixture(scope="module")
def standing(opened: Open) -> Iterator[list[Progress]]:
    """An environment of three nodes and six slots for the tests of a module; what `up` told."""

    async def start() -> list[Progress]:
        async with opened() as session:
            return await session.up(nodes="3", ntasks=6)

    async def stop() -> None:
        async with opened() as session:
            await session.down()
            await session.engine.clean(await session.engine.clean_plan(everything=True))
            home = await session.boundary.home()
            workdir = session.context.profile.workdir.removeprefix("~/")
            await session.boundary.remove(f"{home}/{workdir}", recursive=True)

    told = asyncio.run(start())
    yield told
    asyncio.run(stop())


@pytest.fixture(scope="session")
def program(lab_name: str) -> str:
    """Path of init_finalize, compiled on the login node."""

    async def make() -> str:
        boundary = SSHBoundary(f"hpcsh-lab-{lab_name}", ssh_config=str(ssh_config(lab_name)))
        await boundary.open()
        try:
            place = f"{await boundary.home()}/mpi-examples"
            await boundary.mkdir(place)
            for name in ("init_finalize.c", "init_finalize.job.sh"):
                await boundary.write(f"{place}/{name}", (EXAMPLES / name).read_bytes())
            argv = ["mpicc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", "init_finalize", "init_finalize.c"]
            done = await boundary.run(argv, cwd=place, timeout=60)
            assert done.code == 0, done.error_text
            return f"{place}/init_finalize"
        finally:
            await boundary.close()

    return asyncio.run(make())
