"""Submission at most once (design 6.1): intent, files, sbatch, job id; the unknown is found by looking."""

from __future__ import annotations

import asyncio
import posixpath

import msgspec

from hpcsh.engines.context import Context
from hpcsh.engines.jobs.files import Files
from hpcsh.engines.jobs.preparing import Preparation, Prepared
from hpcsh.engines.jobs.records import blank, facts, with_facts
from hpcsh.engines.jobs.types import JobSpec
from hpcsh.engines.jobs.view import belongs
from hpcsh.errors import (
    CommandError,
    HpcshError,
    NotFoundError,
    TargetError,
    TimedOutError,
    UnknownOutcomeError,
    UsageError,
)
from hpcsh.model import State, Workload
from hpcsh.slurm.parse import base_id
from hpcsh.store import Record

GRACE = 45.0
"""Seconds after the end of an sbatch in which its request may still be on its way to slurmctld."""

WITHDRAWN = "withdrawn"
"""What the guard file holds when hpcsh took it itself, so that a late job cannot run."""


class Submission:
    """Submits and settles."""

    def __init__(self, context: Context, files: Files) -> None:
        self._c = context
        self._files = files
        self.preparation = Preparation(context, files)
        self.busy: set[str] = set()
        """Ids whose submission is under way in this process: nobody settles those."""

    async def submit(self, job: JobSpec) -> Record:
        """Commit the intent, stage the files, sbatch, commit the job id; the record then."""
        ready = await self.preparation.prepare(job)
        await self._check_places(ready)
        now = self._c.clock.now()
        waiting = Workload(
            id=job.id, name=ready.name, kind=job.kind, state=State.SUBMITTING, engine=self._c.profile.engine,
            submitted=now, directory=ready.directory,
        )  # fmt: skip
        record = Record(
            id=job.id, profile=self._c.profile.name, target=self._c.target, engine=self._c.profile.engine,
            kind=job.kind, name=ready.name, phase="intent", created=now, directory=ready.directory,
            workload=waiting, extra=dict(job.extra),
        )  # fmt: skip
        if job.output is not None:
            record = with_facts(record, stdout=f"{ready.directory}/{job.output}")
        self._c.store.commit_intent(record)
        self.busy.add(job.id)
        try:
            return await self._carry_out(ready, record)
        finally:
            self.busy.discard(job.id)

    async def _carry_out(self, ready: Prepared, record: Record) -> Record:
        try:
            await self._stage(ready)
        except BaseException:
            await self._forget(record)  # sbatch has not been called, so there is no job
            raise
        _, _, *options, script = ready.argv
        try:
            native = await self._c.cluster.sbatch(options, script, cwd=ready.cwd)
        except UnknownOutcomeError:
            record = self._open(record)
            found = await self._look(record)
            if found is None:
                raise
            return found
        except (HpcshError, UnicodeError):
            await self._forget(record)
            raise
        except BaseException:
            self._open(record)
            raise
        return self.adopt(record, native)

    def _open(self, record: Record) -> Record:
        """Store that the outcome is not known, and since when."""
        unsure = msgspec.structs.replace(
            record.workload or blank(record),
            state=State.UNKNOWN,
            message="it is not known whether Slurm took the job; hpcsh is looking",
        )
        record = msgspec.structs.replace(record, workload=unsure)
        record = with_facts(record, unknown_at=self._c.clock.now())
        self._c.store.save(record)
        return record

    async def _check_places(self, ready: Prepared) -> None:
        boundary = self._c.boundary
        taken, cwd = await asyncio.gather(boundary.stat(ready.directory), boundary.stat(ready.cwd))
        if taken is not None:
            raise UsageError(f"There is a workload {ready.job.id} already.", why=ready.directory)
        if cwd is None:
            raise UsageError(f"The directory {ready.cwd} does not exist on {boundary.name}.")

    async def _stage(self, ready: Prepared) -> None:
        boundary, directory = self._c.boundary, ready.directory
        await boundary.mkdir(f"{directory}/run", mode=0o700)
        for parent in sorted({posixpath.dirname(s.path) for s in ready.files} - {""}):
            await boundary.mkdir(f"{directory}/{parent}", mode=0o700)
        script = ready.script.encode("utf-8", "surrogateescape")
        await asyncio.gather(
            *(boundary.write(f"{directory}/{s.path}", s.data, mode=s.mode) for s in ready.files),
            boundary.write(f"{directory}/job.slurm", script, mode=0o700),
        )

    async def _forget(self, record: Record) -> None:
        """Remove what a refused submission left; where that fails the record stays for `clean`."""
        try:
            await self._c.boundary.remove(record.directory, recursive=True)
        except HpcshError:
            failed = msgspec.structs.replace(
                record.workload or blank(record), state=State.FAILED, exit_code=1
            )
            self._c.store.save(msgspec.structs.replace(record, phase="refused", workload=failed))
            return
        self._c.store.forget(record.id)

    def adopt(self, record: Record, native: str) -> Record:
        """Commit that the record's job is `native`."""
        known = record.workload or blank(record)
        if known.state in (State.SUBMITTING, State.UNKNOWN):
            known = msgspec.structs.replace(known, state=State.PENDING, message="")
        record = msgspec.structs.replace(
            record,
            phase="submitted",
            native_id=base_id(native),
            workload=msgspec.structs.replace(known, native_id=base_id(native)),
        )
        record = with_facts(record, unknown_at=None, submitted_at=self._c.clock.now())
        self._c.store.save(record)
        return record

    async def _look(self, record: Record) -> Record | None:
        """Look for the job of an unsettled record: queue, guard, accounting. Changes nothing outside."""
        try:
            queue = await self._c.cluster.queue(fresh=True)
            rows = list(queue.jobs.values())
        except (CommandError, TimedOutError, TargetError):
            rows = []  # the guard may tell all the same
        for job in rows:
            if belongs(self._c.store, record, job):
                return self.adopt(record, job.id)
        try:
            holder = await self._files.guard(record.directory, record.id)
            if holder.isdigit():
                return self.adopt(record, holder)
            for job in await self._c.cluster.by_comment(self._c.store.mark(record.id), record.created):
                if belongs(self._c.store, record, job):
                    return self.adopt(record, job.id)
        except (CommandError, TimedOutError, TargetError):
            return None
        return None

    async def settle(self, record: Record) -> Record:
        """Settle one record whose outcome is not known, as far as the evidence goes.

        When nothing is found, and slurmctld and accounting have answered at least `GRACE` seconds after
        sbatch ended, hpcsh takes the guard itself: from then on it is certain that no job of it ever runs.
        """
        if record.id in self.busy or record.phase != "intent":
            return record
        since = float(facts(record).get("unknown_at", record.created))
        found = await self._look(record)
        if found is not None:
            return found
        queue = await self._c.cluster.queue()
        if queue.stale or queue.as_of < since + GRACE:
            return (
                record if record.workload and record.workload.state is State.UNKNOWN else self._open(record)
            )
        for job in await self._c.cluster.by_comment(self._c.store.mark(record.id), record.created):
            if belongs(self._c.store, record, job):
                return self.adopt(record, job.id)
        return await self.withdraw(record, "the submission did not reach Slurm; it was withdrawn")

    async def withdraw(self, record: Record, message: str) -> Record:
        """Take the guard so that no job of this id can run; adopt the job that has it already."""
        boundary = self._c.boundary
        path = f"{record.directory}/run/{record.id}"
        try:
            await boundary.mkdir(f"{record.directory}/run", mode=0o700)
            taken = await boundary.create(path, WITHDRAWN.encode() + b"\n")
        except (NotFoundError, CommandError):
            return record
        if not taken:
            holder = await self._files.guard(record.directory, record.id)
            if holder != WITHDRAWN:
                return self.adopt(record, holder) if holder.isdigit() and not record.native_id else record
        final = msgspec.structs.replace(
            record.workload or blank(record),
            state=State.CANCELLED if record.native_id else State.FAILED,
            message=message,
            reason="Withdrawn",
            exit_code=143 if record.native_id else 1,
            ended=self._c.clock.now(),
        )
        record = with_facts(msgspec.structs.replace(record, phase="ended", workload=final), unknown_at=None)
        self._c.store.save(record)
        return record
