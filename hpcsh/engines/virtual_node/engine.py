"""The engine: pods, programs and batch scripts as Slurm jobs, images from the pool on the cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import msgspec

from hpcsh.engines import checks
from hpcsh.engines.context import Context
from hpcsh.engines.jobs import Jobs
from hpcsh.engines.virtual_node.status import log_files, pod_facts, refine
from hpcsh.engines.virtual_node.submissions import Submissions
from hpcsh.errors import RefusedError
from hpcsh.events import ImagePulled
from hpcsh.images.pool import Entry, Pool
from hpcsh.model import (
    CleanItem,
    Detail,
    Environment,
    Finding,
    Image,
    LaunchFrame,
    LaunchSpec,
    LogChunk,
    LogOptions,
    Node,
    Plan,
    Progress,
    Report,
    Snapshot,
    SubmitSpec,
    UpSpec,
    Workload,
)
from hpcsh.store import Record

CAPABILITIES = frozenset({
    "pull", "images", "submit", "run", "ps", "show", "logs", "wait", "cancel", "clean", "nodes", "doctor",
})  # fmt: skip


class VirtualNode:
    """`engines.base.Engine` for pods on Slurm, in direct mode: without a Kubernetes."""

    name = "virtual_node"
    capabilities = CAPABILITIES

    def __init__(self, context: Context) -> None:
        self._c = context
        self._jobs = Jobs(context, refine)
        self._pool = Pool(context.boundary, context.profile)
        self._submissions = Submissions(context, self._jobs, self._pool)

    async def open(self) -> None:
        """Settle submissions whose outcome an earlier process did not know."""
        await self._jobs.settle()

    async def close(self) -> None:
        """Nothing to give up: all is in the store and on the target."""

    async def doctor(self) -> list[Finding]:
        """Slurm, the profile's settings, the container tool, and where files go."""
        return [*await checks.slurm(self._c), *await checks.containers(self._c.boundary, self._pool)]

    async def nodes(self) -> list[Node]:
        """The cluster's nodes."""
        return await self._c.cluster.nodes()

    async def plan(self, spec: SubmitSpec) -> Plan:
        """What `submit` would do, exactly, with the pulls it would need; changes nothing."""
        ready = await self._submissions.prepare(spec)
        plan = await self._jobs.plan(ready.job)
        pulls = tuple(_pull_line(e) for e in ready.images)
        return msgspec.structs.replace(plan, commands=(*pulls, *plan.commands))

    async def submit(self, spec: SubmitSpec) -> Workload:
        """Pull what is missing, then submit at most once."""
        ready = await self._submissions.prepare(spec)
        if ready.images:
            await self._jobs.plan(ready.job)  # everything is checked before an image is pulled
        for entry in ready.images:
            pulled = await self._pool.fetch(entry)
            self._c.bus.publish(ImagePulled(pulled.image), self._c.clock.now())
        return await self._jobs.submit(ready.job)

    async def workloads(self, *, mine_only: bool = False, fresh: bool = False) -> Snapshot:
        """Pods with their containers, and jobs."""
        return await self._jobs.snapshot(mine_only=mine_only, fresh=fresh)

    async def show(self, ref: str) -> Detail:
        """All facts about one workload."""
        detail = await self._jobs.show(ref)
        record = self._c.store.get(detail.workload.id) if detail.workload.ours else None
        pod = pod_facts(record) if record else {}
        facts = [(k, str(pod[f])) for k, f in (("Namespace", "namespace"), ("Pod UID", "uid")) if f in pod]
        return msgspec.structs.replace(detail, facts=(*detail.facts[:2], *facts, *detail.facts[2:]))

    async def logs(self, ref: str, options: LogOptions) -> AsyncIterator[LogChunk]:
        """The logs of a pod's containers, or a job's own."""
        workload = await self._jobs.resolve(ref)
        record = self._c.store.get(workload.id) if workload.ours else None
        files = None
        if record is not None and pod_facts(record):

            def files_of(record: Record, workload: Workload) -> dict[str, str]:
                return log_files(record, workload, options)

            files = files_of
        async for chunk in self._jobs.logs(workload.id, options, files):
            yield chunk

    async def wait(self, refs: Sequence[str], *, timeout: float | None = None) -> list[Workload]:
        """Wait until all are in a terminal state."""
        return await self._jobs.wait(refs, timeout=timeout)

    async def cancel(self, refs: Sequence[str]) -> Report:
        """Cancel; the containers get SIGTERM and their grace period."""
        return await self._jobs.cancel(refs)

    async def clean_plan(self, *, everything: bool = False) -> list[CleanItem]:
        """What `clean` would remove."""
        return await self._jobs.clean_plan(everything=everything)

    async def clean(self, items: Sequence[CleanItem]) -> Report:
        """Remove exactly these."""
        return await self._jobs.clean(items)

    async def pull(self, references: Sequence[str]) -> AsyncIterator[Progress]:
        """Bring images into the pool, one after the other."""
        checked = [await self._pool.reference(text) for text in references]
        for text, reference in zip(references, checked, strict=True):
            async with aclosing(self._pool.pull(text)) as steps:
                async for step in steps:
                    yield step
            await self._announce(reference.canonical)

    async def _announce(self, canonical: str) -> None:
        newest = [i for i in await self._pool.images() if i.reference == canonical]
        if newest:
            self._c.bus.publish(ImagePulled(newest[0]), self._c.clock.now())

    async def images(self) -> list[Image]:
        """The images in the pool."""
        return await self._pool.images()

    async def plan_up(self, spec: UpSpec) -> Plan:
        """Not of this engine."""
        raise _elsewhere("up")

    def up(self, spec: UpSpec) -> AsyncIterator[Progress]:
        """Not of this engine."""
        raise _elsewhere("up")

    def down(self, name: str) -> AsyncIterator[Progress]:
        """Not of this engine."""
        raise _elsewhere("down")

    async def environments(self) -> list[Environment]:
        """There are none: a pod's job is its environment."""
        return []

    async def plan_launch(self, spec: LaunchSpec) -> Plan:
        """Not of this engine."""
        raise _elsewhere(spec.tool)

    def launch(self, spec: LaunchSpec) -> AsyncIterator[LaunchFrame]:
        """Not of this engine."""
        raise _elsewhere(spec.tool)


def _elsewhere(verb: str) -> RefusedError:
    return RefusedError(
        f"The engine virtual_node has no `{verb}`.",
        why="It runs pods, programs and batch scripts as Slurm jobs.",
        fix="choose a profile with `engine: pmix` (see `hpcsh profiles`)",
    )


def _pull_line(entry: Entry) -> tuple[str, ...]:
    """The pull that a submission needs first, as a command of hpcsh."""
    return ("hpcsh", "pull", entry.reference.canonical)
