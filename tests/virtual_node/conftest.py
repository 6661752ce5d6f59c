"""The engine on the lab, as alice, with a workdir of the test's own and one image pool for the run."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hpcsh.boundary.ssh import SSHBoundary
from hpcsh.clock import SystemClock
from hpcsh.engines.context import Context
from hpcsh.engines.virtual_node import VirtualNode
from hpcsh.events import EventBus
from hpcsh.lab.paths import ssh_config
from hpcsh.model import File, LogOptions, SubmitSpec, Workload
from hpcsh.profiles import parse
from hpcsh.slurm.cluster import Cluster
from hpcsh.store import Store

PATIENCE = 120.0


class Node:
    """The engine and short ways to use it."""

    def __init__(self, boundary: SSHBoundary, root: Path, workdir: str, pool: str) -> None:
        self.boundary = boundary
        self.root = root
        self.workdir = workdir
        self.pool = pool
        self.store = Store(root)

    def open(self, extra: str = "", images: str = "") -> VirtualNode:
        """The engine of a profile with these further lines."""
        text = (
            f"engine: virtual_node\ntarget: {{lab: x}}\nworkdir: {self.workdir}\n"
            f"images: {{pool: '{self.pool}', plain_http: ['login:5000']{images}}}\n{extra}"
        )
        self.profile = parse(text.encode(), "t", "t")
        self.context = Context(
            profile=self.profile,
            boundary=self.boundary,
            cluster=Cluster(self.boundary, SystemClock(), floor=1.0),
            store=self.store,
            bus=EventBus(),
        )
        self.engine = VirtualNode(self.context)
        return self.engine

    async def submit(self, text: str, name: str = "pod.yaml", **more: Any) -> Workload:
        return await self.engine.submit(SubmitSpec(file=File(name, text.encode()), **more))

    async def run(self, text: str, **more: Any) -> Workload:
        """Submit, wait for the end, and return the workload."""
        workload = await self.submit(text, **more)
        return await self.ended(workload)

    async def ended(self, workload: Workload) -> Workload:
        return (await self.engine.wait([workload.id], timeout=PATIENCE))[0]

    async def log(self, workload: Workload, container: str = "", **options: Any) -> bytes:
        chosen = LogOptions(container=container, **options)
        return b"".join([c.data async for c in self.engine.logs(workload.id, chosen)])

    async def shell(self, command: str) -> str:
        done = await self.boundary.run(["bash", "-c", command], timeout=60)
        assert done.code == 0, (command, done.text, done.error_text)
        return done.text


def child(workload: Workload, name: str) -> Workload:
    return next(c for c in workload.children if c.name == name)


@pytest.fixture
async def node(lab: str, tmp_path: Path) -> AsyncIterator[Node]:
    """Alice's engine on the lab; what the test leaves is cancelled and removed."""
    async with SSHBoundary("login", ssh_config=str(ssh_config(lab))) as boundary:
        home = await boundary.home()
        workdir = f"{home}/vn-{uuid.uuid4().hex[:8]}"
        made = Node(boundary, tmp_path / "store", workdir, f"{home}/vn-pool")
        made.open()
        yield made
        items = await made.engine.clean_plan(everything=True)
        await made.engine.clean(items)
        made.store.close()
        await boundary.remove(workdir, recursive=True)
