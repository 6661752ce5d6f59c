"""The state of everything, from one question to Slurm, the records, and the marks of the jobs themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec

from hpcsh.engines.context import Context
from hpcsh.engines.jobs import view
from hpcsh.engines.jobs.files import Files
from hpcsh.engines.jobs.records import blank, facts, with_facts
from hpcsh.engines.jobs.submission import Submission
from hpcsh.engines.jobs.types import Mark, Refine
from hpcsh.errors import CommandError, HpcshError, TargetError, TimedOutError
from hpcsh.events import WorkloadChanged
from hpcsh.model import Snapshot, State, Workload
from hpcsh.slurm.cluster import Job, Queue
from hpcsh.slurm.parse import base_id
from hpcsh.store import Record

replace = msgspec.structs.replace

PATIENCE = 60.0
"""Seconds for which a job that nobody knows any more keeps its last state, before it counts as unknown."""

MARKS_AGE = 0.5
"""Seconds for which marks that were read are good enough."""


class Snapshots:
    """Keeps the view of one context: merges, completes, stores and publishes what changed."""

    def __init__(self, context: Context, files: Files, submission: Submission, refine: Refine | None) -> None:
        self._c = context
        self._files = files
        self._submission = submission
        self._refine = refine
        self._lock = asyncio.Lock()
        self._shown: dict[str, Workload] = {}
        self._queue: Queue | None = None
        self._marked = float("-inf")
        self._published: dict[str, Workload] | None = None
        self.watched: set[str] = set()
        """Ids of foreign jobs that somebody waits for: accounting completes them when they vanish."""
        self._gone: dict[str, Workload] = {}

    async def get(self, *, mine_only: bool = False, fresh: bool = False) -> Snapshot:
        """The newest view; the same objects again while nothing can have changed."""
        async with self._lock:
            queue = await self._c.cluster.queue(fresh=fresh)
            age = self._c.clock.now() - self._marked
            if queue is not self._queue or not 0 <= age < MARKS_AGE:
                await self._rebuild(queue)
            shown = [w for w in self._shown.values() if w.ours or not mine_only]
        shown.sort(key=lambda w: (w.submitted or 0.0, w.id))
        return Snapshot(workloads=tuple(shown), as_of=queue.as_of, stale=queue.stale)

    def dirty(self) -> None:
        """The next `get` reads the marks and records again."""
        self._marked = float("-inf")

    async def _rebuild(self, queue: Queue) -> None:
        records = self._c.store.records(self._c.target)
        rows, others = view.index(self._c.store, records, queue.jobs.values())
        live = [r for r in records if r.phase in ("intent", "submitted") or r.id in rows]
        began = self._c.clock.now()
        marks = await self._files.marks(r.directory for r in live if r.id not in self._submission.busy)
        self._marked = began
        accounted = await self._account(live, rows, queue)
        updated = {r.id: r for r in records}
        for record in live:
            mine = rows.get(record.id, [])
            found = _of_this_run(record, mine, marks.get(record.directory, []))
            new = await self._advance(record, mine, found, queue, accounted)
            if new != updated[record.id]:
                self._c.store.save(new)
            updated[record.id] = new
        self._queue = queue
        ours = [r.workload for r in updated.values() if r.workload and r.phase != "refused"]
        theirs = [view.foreign(j) for j in others]
        self._gone = {i: w for i, w in self._gone.items() if i in self.watched and i not in queue.jobs}
        self._shown = {w.id: w for w in (*self._gone.values(), *theirs, *ours)}
        self._publish()

    def _missing(self, live: Iterable[Record], rows: dict[str, list[Job]], queue: Queue) -> list[Record]:
        """Ours that an answer asked after their submission does not have, or that Slurm tells in parts."""
        found = []
        for record in live:
            mine = rows.get(record.id, [])
            known = record.workload
            absent = not mine and queue.as_of > float(facts(record).get("submitted_at", record.created))
            over = bool(mine) and known is not None and all(j.state.terminal for j in mine)
            if record.phase == "submitted" and (absent or (over and known and view.is_many(mine, known))):
                found.append(record)
        return found

    async def _account(
        self, live: list[Record], rows: dict[str, list[Job]], queue: Queue
    ) -> dict[str, list[Job]]:
        """Accounting of all that vanished, in one call; asked again ever more seldom for the same job."""
        if queue is self._queue or queue.stale:
            return {}
        missing = self._missing(live, rows, queue)
        for record in missing:
            count = int(facts(record).get("missing", 0)) + 1
            since = facts(record).get("missing_since", queue.as_of)
            live[live.index(record)] = with_facts(record, missing=count, missing_since=since)
        asked = {r.native_id for r in missing if _power_of_two(int(facts(r).get("missing", 0)) + 1)}
        watched = {i for i in self.watched if i not in queue.jobs and i not in self._gone}
        try:
            kept = await self._c.cluster.accounting([*asked, *watched]) if asked or watched else {}
        except (CommandError, TimedOutError, TargetError):
            return {}
        found: dict[str, list[Job]] = {}
        for job in kept.values():
            if job.id in watched:
                self._gone[job.id] = view.foreign(job)
            found.setdefault(base_id(job.id), []).append(job)
        return found

    async def _advance(
        self,
        record: Record,
        rows: list[Job],
        marks: Sequence[Mark],
        queue: Queue,
        accounted: dict[str, list[Job]],
    ) -> Record:
        """One step of a record of ours. Terminal states never go back, save by a counted requeue."""
        known = record.workload or blank(record)
        if record.phase in ("ended", "refused"):
            restarts = max((j.restarts for j in rows), default=0)
            if record.phase == "refused" or restarts <= int(facts(record).get("restarts", 0)):
                return record
            known = replace(known, state=State.PENDING, exit_code=None, ended=None, started=None, children=())
            record = replace(record, phase="submitted")
        if record.phase == "intent":
            if record.id in self._submission.busy:
                return record
            if not rows:
                return await self._settle(record, queue)
            record = self._submission.adopt(record, rows[0].id)
        latest, record = self._judge(record, known, rows, marks, queue, accounted)
        if self._refine and record.engine == self._c.profile.engine:
            latest = self._refine(record, latest, marks)
        if latest.state.terminal:
            record = with_facts(replace(record, phase="ended"), missing=None, missing_since=None)
        return replace(record, workload=latest)

    def _judge(
        self, record: Record, known: Workload, rows: list[Job], marks: Sequence[Mark], queue: Queue,
        accounted: dict[str, list[Job]],
    ) -> tuple[Workload, Record]:  # fmt: skip
        """The workload as all the evidence has it: the queue, accounting, marks, and time."""
        many = view.is_many(rows, known)
        kept = [j for j in accounted.get(record.native_id, []) if view.belongs(self._c.store, record, j)]
        if rows:
            record = with_facts(record, restarts=max(j.restarts for j in rows) or None)
            if rows[0].extra.get("stdout") and "stdout" not in facts(record):
                record = with_facts(record, stdout=rows[0].extra["stdout"], raw=rows[0].extra.get("raw"))
            latest = view.merge_rows(known, rows)
            if not (many and latest.state.terminal):
                record = with_facts(record, missing=None, missing_since=None)
                return self._by_marks(latest, marks, many), record
            # All parts that Slurm still lists have ended; accounting tells of those that it does not list.
            if not kept:
                seen = int(facts(record).get("missing", 0)) > 1
                return (latest if seen else _held(known, latest)), record
            return view.merge_rows(latest, kept), record
        if kept:
            latest = view.merge_rows(known, kept)
            if latest.state.terminal:
                return latest, record
        return self._without_slurm(record, known, marks, queue, many), record

    def _by_marks(self, latest: Workload, marks: Sequence[Mark], many: bool) -> Workload:
        if many or latest.state.terminal:
            return latest
        if view.end_mark(marks) is not None:
            self._c.cluster.hasten()
        return view.by_marks(latest, marks)

    def _without_slurm(
        self, record: Record, known: Workload, marks: Sequence[Mark], queue: Queue, many: bool
    ) -> Workload:
        """The job is not in the queue: what its own script left, else its last state for a while."""
        missing = int(facts(record).get("missing", 0))
        end = None if many else view.end_mark(marks)
        if end is not None and missing > 1:
            return view.from_end(known, end)
        since = facts(record).get("missing_since")
        if since is not None and queue.as_of - float(since) > PATIENCE and missing > 2:
            return replace(
                known,
                state=State.UNKNOWN,
                message="Slurm does not know the job any more, and it left no result",
            )
        return self._by_marks(known, marks, many)

    async def _settle(self, record: Record, queue: Queue) -> Record:
        if queue is self._queue or queue.stale:
            return record
        try:
            return await self._submission.settle(record)
        except HpcshError:
            return record

    def _publish(self) -> None:
        before = self._published
        if before is None:
            stored = self._c.store.records(self._c.target)
            before = {w.id: w for w in self._shown.values() if not w.ours}
            before |= {r.id: r.workload for r in stored if r.workload and r.phase == "ended"}
        for key, workload in self._shown.items():
            if before.get(key) != workload:
                self._c.bus.publish(WorkloadChanged(workload), self._c.clock.now())
        self._published = dict(self._shown)


def _held(known: Workload, latest: Workload) -> Workload:
    """The newest facts with the last state: its parts have ended, but not all of them may have been seen."""
    state = known.state if not known.state.terminal else State.RUNNING
    return replace(latest, state=state, exit_code=None, ended=None)


def _of_this_run(record: Record, rows: Sequence[Job], marks: Sequence[Mark]) -> Sequence[Mark]:
    """The marks, unless they are of a run before a requeue that Slurm tells of."""
    restarts = max((j.restarts for j in rows), default=int(facts(record).get("restarts", 0)))
    run = next((m.value for m in marks if m.what == "restart"), "0")
    return marks if run.isdigit() and int(run) >= restarts else []


def _power_of_two(n: int) -> bool:
    return n & (n - 1) == 0
