"""The engine: the verbs, each handed to who does it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from hpcsh.engines import checks
from hpcsh.engines.base import Engine
from hpcsh.engines.context import Context
from hpcsh.engines.jobs import Jobs, JobSpec
from hpcsh.engines.jobs.core import LogFiles
from hpcsh.engines.pmix import containers, doctor
from hpcsh.engines.pmix.commands import check_options
from hpcsh.engines.pmix.containers import Containers
from hpcsh.engines.pmix.environments import Environments, S
from hpcsh.engines.pmix.heads import Heads
from hpcsh.engines.pmix.launches import Launches
from hpcsh.engines.pmix.lifecycle import Lifecycle
from hpcsh.engines.pmix.oneshot import OneShot, log_files
from hpcsh.engines.pmix.submitting import job_spec
from hpcsh.errors import HpcshError
from hpcsh.images.pool import Entry
from hpcsh.model import (
    CleanItem,
    Detail,
    Environment,
    Finding,
    Image,
    Kind,
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

replace = msgspec.structs.replace


class Pmix:
    """Virtual clusters: PRRTE's DVMs on Slurm allocations. The methods are those of `Engine`."""

    name = "pmix"
    capabilities = frozenset(
        {
            "doctor", "nodes", "submit", "run", "ps", "show", "logs", "wait", "cancel", "clean", "pull",
            "images", "up", "down", "status", "prun", "prterun",
        }
    )  # fmt: skip

    def __init__(self, context: Context) -> None:
        self._c = context
        self._jobs = Jobs(context)
        self._heads = Heads(context)
        self._environments = Environments(context, self._jobs)
        self._lifecycle = Lifecycle(context, self._jobs, self._environments, self._heads)
        self._launches = Launches(context, self._environments, self._heads)
        self._one_shot = OneShot(context, self._jobs)
        self._containers = Containers(context)

    async def open(self) -> None:
        """Settle submissions whose outcome an earlier process did not know."""
        await self._jobs.settle()

    async def close(self) -> None:
        """Close our agents; environments stay up."""
        await self._heads.close()

    async def doctor(self) -> list[Finding]:
        """PRRTE's tools and what all engines need."""
        return [
            *await checks.slurm(self._c),
            *await checks.containers(self._c.boundary, self._containers.pool),
            *await doctor.look(self._c.boundary),
        ]

    async def nodes(self) -> list[Node]:
        """The cluster's nodes."""
        return await self._c.cluster.nodes()

    # Jobs

    async def _job(self, spec: SubmitSpec) -> JobSpec:
        return await job_spec(self._c, self._jobs, self._containers, spec)

    async def plan(self, spec: SubmitSpec) -> Plan:
        """What `submit` would do."""
        plan = await self._jobs.plan(await self._job(spec))
        if spec.image and spec.file is None:
            plan = _with_pull(plan, await self._containers.entry(spec.image))
        return plan

    async def submit(self, spec: SubmitSpec) -> Workload:
        """Submit a batch script or a command as a plain Slurm job."""
        if spec.image and spec.file is None:
            entry = await self._containers.entry(spec.image)
            if not entry.present:
                await self._jobs.plan(await self._job(spec))  # all is checked before an image is pulled
            await self._containers.fetched(spec.image, entry)
        return await self._jobs.submit(await self._job(spec))

    async def workloads(self, *, mine_only: bool = False, fresh: bool = False) -> Snapshot:
        """The user's jobs; an environment's allocation is one of them."""
        return await self._jobs.snapshot(mine_only=mine_only, fresh=fresh)

    async def show(self, ref: str) -> Detail:
        """All facts about one workload."""
        return await self._jobs.show(ref)

    def logs(self, ref: str, options: LogOptions) -> AsyncIterator[LogChunk]:
        """Its output; of a one-shot launch the program's standard output and error."""
        return self._logs(ref, options)

    async def _logs(self, ref: str, options: LogOptions) -> AsyncGenerator[LogChunk, None]:
        workload = await self._jobs.resolve(ref)
        files: LogFiles | None = None
        if workload.ours and workload.kind is Kind.LAUNCH:
            files = _files
            options = replace(options, all_containers=options.all_containers or not options.container)
        async for chunk in self._jobs.logs(workload.id, options, files):
            yield chunk

    async def wait(self, refs: Sequence[str], *, timeout: float | None = None) -> list[Workload]:
        """Wait until all have ended."""
        return await self._jobs.wait(refs, timeout=timeout)

    async def cancel(self, refs: Sequence[str]) -> Report:
        """Cancel jobs."""
        return await self._jobs.cancel(refs)

    async def clean_plan(self, *, everything: bool = False) -> list[CleanItem]:
        """What is over; with `everything` also what runs, environments among it."""
        items = await self._jobs.clean_plan(everything=everything)
        known = {e.id: e for e in self._environments.stored()}
        alive = [i for i in items if i.kind == "job" and i.target in known]
        changed = [
            replace(i, kind="environment", detail=f"{known[i.target].name}: {i.detail}") if i in alive else i
            for i in items
        ]
        listed = {i.target for i in items}
        lost = [e for e in known.values() if e.id not in listed and self._c.store.get(e.id) is None]
        return [*changed, *(CleanItem(kind="environment", target=e.id, detail=e.name) for e in lost)]

    async def clean(self, items: Sequence[CleanItem]) -> Report:
        """Remove exactly these; an environment is ended as by `down`."""
        done: list[str] = []
        failed: list[tuple[str, str]] = []
        for item in (i for i in items if i.kind == "environment"):
            known = next((e for e in self._environments.stored() if e.id == item.target), None)
            try:
                if known is not None:
                    async for _ in self._lifecycle.down(known.name):
                        pass
                done.append(item.target)
            except HpcshError as error:
                failed.append((item.target, str(error)))
        rest = await self._jobs.clean([i for i in items if i.kind != "environment"])
        for known in self._environments.stored():
            if known.id in rest.done:
                self._environments.forget(known)
        return Report(done=(*done, *rest.done), failed=(*failed, *rest.failed), message=rest.message)

    # Images

    def pull(self, references: Sequence[str]) -> AsyncIterator[Progress]:
        """Bring images into the pool."""
        return self._containers.pull(references)

    async def images(self) -> list[Image]:
        """The images in the pool."""
        return await self._containers.images()

    # Environments and launches

    async def plan_up(self, spec: UpSpec) -> Plan:
        """The exact allocation that `up` would submit."""
        return await self._lifecycle.plan(spec)

    def up(self, spec: UpSpec) -> AsyncIterator[Progress]:
        """Start a DVM on a new allocation."""
        return self._lifecycle.up(spec)

    def down(self, name: str) -> AsyncIterator[Progress]:
        """End a DVM and release its allocation."""
        return self._lifecycle.down(name)

    async def environments(self) -> list[Environment]:
        """The environments as they are now."""
        return await self._environments.status()

    async def _inside(self, spec: LaunchSpec) -> bool:
        """True when a launch goes into an environment, and not into a job of its own."""
        if spec.tool == "prun":
            return True
        known = self._environments.named(spec.environment)
        if known is None:
            if spec.environment in ("", "default"):
                return False
            raise self._environments.absent(spec.environment)
        if known.state is not S.READY or not self._heads.known(known.id):
            known = await self._environments.look(known, fresh=True)
        return known.state is S.READY

    async def plan_launch(self, spec: LaunchSpec) -> Plan:
        """The exact command lines of a launch."""
        check_options(spec.tool, spec.options, spec.program)
        containers.check(spec)
        inside = await self._inside(spec)
        if not spec.image:
            return await self._planned(spec, spec, inside)
        entry = await self._containers.entry(spec.image)
        plan = await self._planned(containers.inside(spec, entry), spec, inside)
        return _with_pull(plan, entry)

    async def _planned(self, resolved: LaunchSpec, spec: LaunchSpec, inside: bool) -> Plan:
        if inside:
            return await self._launches.plan(resolved)
        return await self._one_shot.plan(resolved, spec)

    def launch(self, spec: LaunchSpec) -> AsyncIterator[LaunchFrame]:
        """Launch and stream; raises why when PRRTE started nothing."""
        return self._launch(spec)

    async def _launch(self, spec: LaunchSpec) -> AsyncGenerator[LaunchFrame, None]:
        check_options(spec.tool, spec.options, spec.program)
        containers.check(spec)
        inside = await self._inside(spec)
        resolved = spec
        if spec.image:
            if inside:
                await self._launches.reach(spec.environment)
            entry = await self._containers.entry(spec.image)
            if not entry.present:
                await self._planned(containers.inside(spec, entry), spec, inside)  # checked before the pull
                yield LaunchFrame(data=f"pulling {spec.image}\n".encode())
            resolved = containers.inside(spec, await self._containers.fetched(spec.image, entry))
        launches = self._launches.launch if inside else self._one_shot.launch
        frames = launches(resolved, spec)
        try:
            async for frame in frames:
                yield frame
        finally:
            if isinstance(frames, AsyncGenerator):
                await frames.aclose()


if TYPE_CHECKING:
    _MAKES_AN_ENGINE: Callable[[Context], Engine] = Pmix


def _files(record: Record, workload: Workload) -> dict[str, str]:
    """The two log files of a one-shot launch."""
    return log_files(record.directory)


def _with_pull(plan: Plan, entry: Entry) -> Plan:
    """The plan with the pull that it needs first, as a command of hpcsh."""
    if entry.present:
        return plan
    return replace(plan, commands=(("hpcsh", "pull", entry.reference.canonical), *plan.commands))
