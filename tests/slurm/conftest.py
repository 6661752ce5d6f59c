"""A user on the lab, with a workdir of the test's own, and ways to make Slurm's commands misbehave."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcsh.boundary.base import Completed
from hpcsh.boundary.ssh import SSHBoundary
from hpcsh.clock import SystemClock
from hpcsh.engines.context import Context
from hpcsh.engines.jobs import Jobs, JobSpec, Refine
from hpcsh.events import EventBus
from hpcsh.lab.paths import ssh_config
from hpcsh.model import Kind, LogOptions, Resources, Workload
from hpcsh.profiles import parse
from hpcsh.slurm.cluster import Cluster
from hpcsh.store import Store


@pytest.fixture(scope="session")
def cluster_lab(lab: str) -> str:
    """Name of a lab that is up."""
    return lab


class Meddling:
    """A boundary that lays variables under the environment of every call, and counts the calls."""

    def __init__(self, inner: SSHBoundary) -> None:
        self._inner = inner
        self.env: dict[str, str] = {}
        self.runs: list[tuple[str, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str | None] | None = None, **more: Any
    ) -> Completed:
        self.runs.append(tuple(argv))
        return await self._inner.run(argv, env={**self.env, **(env or {})}, **more)


class Site:
    """One user's session parts on the lab; `again()` is the same after a crash of the session host."""

    def __init__(self, boundary: Meddling, root: Path, workdir: str, setup: str) -> None:
        self.boundary = boundary
        self.root = root
        self.workdir = workdir
        self.profile = parse(
            f"engine: virtual_node\ntarget: {{lab: x}}\nworkdir: {workdir}\n".encode(), "t", "t"
        )
        self.setup = setup
        self.open()

    def open(self, refine: Refine | None = None, **resources: Any) -> Jobs:
        import msgspec

        self.cluster = Cluster(self.boundary, SystemClock(), floor=1.0)
        self.store = Store(self.root)
        profile = msgspec.structs.replace(self.profile, setup=self.setup, resources=Resources(**resources))
        self.context = Context(
            profile=profile, boundary=self.boundary, cluster=self.cluster, store=self.store, bus=EventBus()
        )
        self.jobs = Jobs(self.context, refine)
        return self.jobs

    def again(self, refine: Refine | None = None, **resources: Any) -> Jobs:
        self.store.close()
        return self.open(refine, **resources)

    async def shell(self, command: str, timeout: float = 60) -> str:
        done = await self.boundary.run(["bash", "-c", command], timeout=timeout)
        assert done.code == 0, (command, done.text, done.error_text)
        return done.text

    def spec(self, body: str, name: str = "body", **resources: Any) -> JobSpec:
        return JobSpec(
            id=self.context.new_id(), name=name, kind=Kind.JOB, resources=Resources(**resources), body=body
        )

    async def batch(self, script: str, *args: str, inherit_env: bool = False, **resources: Any) -> Workload:
        spec = await self.jobs.batch_script(
            script.encode(),
            args,
            "dir/job.sh",
            Resources(**resources),
            cwd=self.workdir,
            inherit_env=inherit_env,
        )
        return await self.jobs.submit(spec)

    async def log(self, ref: str, **options: Any) -> bytes:
        return b"".join([c.data async for c in self.jobs.logs(ref, LogOptions(**options))])

    async def fake(self, command: str, script: str) -> None:
        """Put a program before the real one; in it `$REAL` is the path of the real one."""
        path = f"{self.workdir}/bin/{command}"
        real = (await self.shell(f"PATH=/usr/local/bin:/usr/bin:/bin command -v {command}")).strip()
        await self.boundary.mkdir(f"{self.workdir}/bin")
        await self.boundary.write(path, f"#!/bin/bash\nREAL={real}\n{script}\n".encode(), mode=0o755)
        self.boundary.env["PATH"] = f"{self.workdir}/bin:/usr/local/bin:/usr/bin:/bin"

    async def accounted(self, word: str) -> list[list[str]]:
        """Job id and state of every job whose submit line has the word, from accounting."""
        text = await self.shell("sacct -n -X -P -S now-1hour -o JobID,State,SubmitLine -u $(id -u)")
        return [line.split("|")[:2] for line in text.splitlines() if word in line]

    async def until_gone(self, job: str) -> None:
        """Wait until slurmctld has forgotten a job (MinJobAge)."""
        for _ in range(120):
            done = await self.boundary.run(["scontrol", "show", "job", job], timeout=30)
            if done.code:
                return
            await asyncio.sleep(0.5)
        raise AssertionError(f"slurmctld still knows {job}")


@pytest.fixture
async def site(cluster_lab: str, tmp_path: Path) -> AsyncIterator[Site]:
    """Alice on the lab; what she leaves is cancelled and removed."""
    async with SSHBoundary("login", ssh_config=str(ssh_config(cluster_lab))) as inner:
        boundary = Meddling(inner)
        workdir = f"{await inner.home()}/t-{uuid.uuid4().hex[:8]}"
        await inner.mkdir(workdir)
        made = Site(boundary, tmp_path / "store", workdir, "")
        yield made
        boundary.env.clear()
        await inner.run(["bash", "-c", "scancel -u $(id -u)"], timeout=30)
        made.store.close()
        await inner.remove(workdir, recursive=True)
