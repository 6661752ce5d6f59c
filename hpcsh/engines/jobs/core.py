"""The front of this package: what engines call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from hpcsh.engines.context import Context
from hpcsh.engines.jobs import logs as reading
from hpcsh.engines.jobs import view
from hpcsh.engines.jobs.cleaning import Cleaning
from hpcsh.engines.jobs.files import Files
from hpcsh.engines.jobs.lookup import find
from hpcsh.engines.jobs.outputs import LogFiles, Outputs
from hpcsh.engines.jobs.preparing import batch_spec
from hpcsh.engines.jobs.records import facts
from hpcsh.engines.jobs.snapshots import Snapshots
from hpcsh.engines.jobs.submission import Submission
from hpcsh.engines.jobs.types import JobSpec, Refine
from hpcsh.engines.jobs.watching import Watch
from hpcsh.errors import CommandError, HpcshError, NotFoundError, TimedOutError
from hpcsh.events import WorkloadChanged
from hpcsh.model import (
    CleanItem,
    Detail,
    LogChunk,
    LogOptions,
    Plan,
    Report,
    Resources,
    Snapshot,
    State,
    Workload,
)
from hpcsh.slurm.parse import base_id

__all__ = ["Jobs", "LogFiles"]

STOP_TIMEOUT = 120.0
"""Seconds that `clean` waits for a job that it has cancelled."""


class Jobs:
    """Submission at most once, snapshots, logs, waiting, cancelling and cleaning for Slurm jobs."""

    def __init__(self, context: Context, refine: Refine | None = None) -> None:
        """`refine` is applied to every workload of ours of this context's engine."""
        self._c = context
        self._files = Files(context)
        self._submission = Submission(context, self._files)
        self._snapshots = Snapshots(context, self._files, self._submission, refine)
        self._outputs = Outputs(context, self._files)
        self._cleaning = Cleaning(context, self._files, self._submission)

    async def directory(self, workload_id: str) -> str:
        """Absolute path of a workload's directory on the target."""
        return await self._files.directory(workload_id)

    async def plan(self, job: JobSpec) -> Plan:
        """The exact script, files and sbatch line of a job; changes nothing."""
        return await self._submission.preparation.plan(job)

    async def submit(self, job: JobSpec) -> Workload:
        """Commit the intent, stage the files, sbatch, commit the job id. At most once, see design 6.1."""
        record = await self._submission.submit(job)
        self._snapshots.dirty()
        assert record.workload is not None
        self._c.bus.publish(WorkloadChanged(record.workload), self._c.clock.now())
        return record.workload

    async def settle(self) -> None:
        """Settle every intent whose outcome is not known, by looking. Called when a session opens.

        What cannot be settled now (the controller is away, sbatch may still be on its way) is settled by
        later snapshots.
        """
        for record in self._c.store.records(self._c.target):
            if record.phase == "intent":
                try:
                    await self._submission.settle(record)
                except HpcshError:
                    continue
        self._snapshots.dirty()

    async def batch_script(
        self, data: bytes, args: Sequence[str], name: str, resources: Resources, *,
        cwd: str | None, inherit_env: bool,
    ) -> JobSpec:  # fmt: skip
        """The job of a user's own batch script: its `#SBATCH` lines unchanged, its interpreter kept.

        `resources` is what the user says now, without the profile's defaults: those count less than the
        script's own lines and are laid under them by `plan` and `submit`.
        """
        return batch_spec(
            data, args, name, resources, workload_id=self._c.new_id(), cwd=cwd, inherit_env=inherit_env
        )

    async def snapshot(self, *, mine_only: bool = False, fresh: bool = False) -> Snapshot:
        """Ours and the user's other jobs; vanished ones completed from accounting in one call."""
        return await self._snapshots.get(mine_only=mine_only, fresh=fresh)

    async def resolve(self, ref: str) -> Workload:
        """The one workload that a reference names (rules: `engines.base.Engine`)."""
        for fresh in (False, True):
            snapshot = await self.snapshot(fresh=fresh)
            found = find(ref, snapshot.workloads)
            if found is not None:
                return found
        if base_id(ref).isdigit():
            _, uid, _ = await self._c.boundary.identity()
            job = (await self._c.cluster.accounting([ref])).get(ref)
            if job is not None and job.extra.get("uid") == str(uid):
                return view.foreign(job)
        raise NotFoundError(f"There is no workload {ref!r}.", fix="see `ps`")

    async def _resolve_all(self, refs: Sequence[str]) -> list[Workload]:
        """Many references from one snapshot."""
        snapshot = await self.snapshot()
        found = [find(ref, snapshot.workloads) for ref in refs]
        return [w or await self.resolve(ref) for ref, w in zip(refs, found, strict=True)]

    async def show(self, ref: str) -> Detail:
        """All facts, and the script."""
        workload = await self.resolve(ref)
        record = self._c.store.get(workload.id) if workload.ours else None
        native = workload.native_id
        said = await self._c.cluster.facts(native) if native else []
        script = ""
        if record is not None:
            told = dict(said)
            command = told.get("Command", "") or told.get("SubmitLine", "")
            if record.directory not in command and told.get("Comment") != self._c.store.mark(record.id):
                said = []  # the job id is another job's by now
            said = [("Id", record.id), ("Directory", record.directory), *said]
            try:
                data = await self._c.boundary.read(f"{record.directory}/job.slurm")
                script = data.decode("utf-8", "replace")
            except NotFoundError:
                pass
        elif native:
            script = await self._c.cluster.script(base_id(native))
        return Detail(workload=workload, facts=tuple(said), script=script, as_of=self._c.clock.now())

    async def logs(
        self, ref: str, options: LogOptions, files: LogFiles | None = None
    ) -> AsyncIterator[LogChunk]:
        """Stream logs. `files` names an engine's log files by container; default: the job's own output.

        With `follow` until the workload has ended and its files are read to their ends; without it, what is
        there now. Raises `NotFoundError` when there is no log (following: when it ended without one).
        """
        workload = await self.resolve(ref)
        if options.follow and not workload.state.terminal and not workload.started and not files:
            workload = await self._begun(workload)
        sources = reading.choose(await self._outputs.sources(workload, files), options)
        reader = reading.LogReader(self._c.boundary, sources, options.tail)
        await reader.begin()
        if options.follow and not workload.state.terminal:

            async def ended() -> None:
                await self._until([workload.id], None, lambda w: w.state.terminal)

            async for chunk in reader.follow(ended):
                yield chunk
        async for chunk in reader.rest():
            yield chunk
        if not reader.found and sources:
            raise reading.no_log(sources[0].path, workload.state.terminal or options.follow)

    async def _begun(self, workload: Workload) -> Workload:
        """Wait until a job runs: only then the path of its output is certain."""
        done = await self._until(
            [workload.id], None, lambda w: w.state.terminal or w.state in (State.RUNNING, State.SUSPENDED)
        )
        return done[0]

    async def wait(self, refs: Sequence[str], *, timeout: float | None = None) -> list[Workload]:
        """Wait for terminal states, sharing the one poller and noticing marks at once.

        The workloads in the order of `refs`. Raises `TimedOutError` that names what had not ended.
        """
        found = await self._resolve_all(refs)
        over = {w.id: w for w in found if w.state.terminal}
        rest = list(dict.fromkeys(w.id for w in found if not w.state.terminal))
        if rest:
            done = await self._until(rest, timeout, lambda w: w.state.terminal)
            over.update({w.id: w for w in done})
        return [over[w.id] for w in found]

    async def _until(
        self, ids: Sequence[str], timeout: float | None, enough: Callable[[Workload], bool]
    ) -> list[Workload]:
        """Wait until each of these workloads is as it should be."""
        deadline = None if timeout is None else self._c.clock.now() + timeout
        records = [r for r in (self._c.store.get(i) for i in ids) if r is not None]
        foreign = set(ids) - {r.id for r in records}
        self._snapshots.watched |= foreign
        try:
            async with Watch(self._c, [r.directory for r in records]) as watch:
                while True:
                    snapshot = await self.snapshot()
                    now = {w.id: w for w in snapshot.workloads}
                    open_ = [i for i in ids if i not in now or not enough(now[i])]
                    lost = [i for i in open_ if i not in now and i not in foreign]
                    if lost:
                        raise NotFoundError(f"The workload {lost[0]} has been removed.")
                    if not open_:
                        return [now[i] for i in ids]
                    left = None if deadline is None else deadline - self._c.clock.now()
                    if left is not None and left <= 0:
                        raise TimedOutError(f"Not ended in {timeout:g} s: {', '.join(open_)}.")
                    await watch.news(snapshot.as_of, left)
                    self._snapshots.dirty()
        finally:
            self._snapshots.watched -= foreign

    async def cancel(self, refs: Sequence[str]) -> Report:
        """scancel in one call.

        Only jobs that Slurm now lists as this user's, and for ours only those that carry our mark: a job id
        may be another job's by now. What has ended before is in `message`, and not in `done`.
        """
        failed: list[tuple[str, str]] = []
        wanted: dict[str, Workload] = {}
        for ref in refs:
            try:
                wanted[ref] = await self.resolve(ref)
            except HpcshError as error:
                failed.append((ref, str(error)))
        ids: list[str] = []
        over: list[str] = []
        for ref, workload in list(wanted.items()):
            try:
                native = await self._to_cancel(workload)
            except HpcshError as error:
                failed.append((ref, str(error)))
                del wanted[ref]
                continue
            if native is None:
                over.append(ref)
                del wanted[ref]
            else:
                ids.append(native)
        try:
            await self._c.cluster.cancel(list(dict.fromkeys(ids)))
        except HpcshError as error:
            failed += [(ref, str(error)) for ref in wanted]
            wanted = {}
        self._snapshots.dirty()
        message = f"ended already: {', '.join(over)}" if over else ""
        return Report(done=tuple(wanted), failed=tuple(failed), message=message)

    async def _to_cancel(self, workload: Workload) -> str | None:
        """The job id to cancel, None when it has ended; raises where it cannot be cancelled."""
        if workload.state.terminal:
            return None
        if not workload.ours:
            return workload.native_id
        record = self._c.store.get(workload.id)
        if record is not None and record.phase == "intent":
            record = await self._submission.settle(record)
            if record.phase == "intent":
                raise CommandError("it is not known yet whether it has a job; try again in a minute")
        if record is None or record.phase in ("ended", "refused"):
            return None
        queue = await self._c.cluster.queue()
        rows = [j for j in queue.jobs.values() if view.belongs(self._c.store, record, j)]
        young = queue.as_of <= float(facts(record).get("submitted_at", record.created))
        if rows or young:
            return record.native_id
        if queue.stale:
            raise CommandError(f"Slurm does not answer: {queue.stale}")
        return None

    async def clean_plan(self, *, everything: bool = False) -> list[CleanItem]:
        """Finished work of ours (with `everything` also running jobs): directories and records."""
        await self.snapshot()
        return await self._cleaning.plan(everything=everything)

    async def clean(self, items: Sequence[CleanItem]) -> Report:
        """Remove exactly these; a running job is cancelled, waited for, then its directory removed."""
        report = await self._cleaning.clean(items, self._stop)
        self._snapshots.dirty()
        return report

    async def _stop(self, ids: list[str]) -> None:
        report = await self.cancel(ids)
        failed = {ref for ref, _ in report.failed}
        stopped = [i for i in ids if i not in failed]
        if stopped:
            await self.wait(stopped, timeout=STOP_TIMEOUT)
