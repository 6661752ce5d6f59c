"""Slurm's rows, records and marks → workloads. Pure; the rules are those of design 6.3."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from hpcsh.engines.jobs.types import Mark
from hpcsh.model import Kind, State, Workload
from hpcsh.slurm.job import Job
from hpcsh.slurm.parse import base_id
from hpcsh.slurm.states import parts, reason_words, state_words
from hpcsh.store import Record, Store

replace = msgspec.structs.replace

_LIVELY = (State.RUNNING, State.SUSPENDED, State.PENDING, State.UNKNOWN)
"""Of several parts the first of these that one of them has is the state of the whole."""


def foreign(job: Job) -> Workload:
    """A job that hpcsh did not start."""
    return replace(
        _filled(Workload(id=job.id, name=job.name, kind=Kind.JOB, state=job.state), job), ours=False
    )


def _filled(workload: Workload, job: Job) -> Workload:
    why = job.state in (State.PENDING, State.SUSPENDED)
    bad = job.state.terminal and job.state is not State.SUCCEEDED
    message = reason_words(job.reason) if why else state_words(job.native)
    return replace(
        workload,
        state=job.state,
        native_id=job.id,
        native_state=job.native,
        reason=job.reason if why else (_ended_badly(job) if bad else ""),
        message=message,
        exit_code=job.exit_code,
        user=job.user,
        partition=job.partition,
        nodes=job.nodes,
        node_count=job.node_count,
        cpus=job.cpus,
        submitted=job.submitted,
        started=job.started,
        ended=job.ended,
        time_limit=job.time_limit,
        directory=workload.directory or job.directory,
    )


def _ended_badly(job: Job) -> str:
    """Slurm's state as the reason; of a plain FAILED its reason says more."""
    native = parts(job.native)[0]
    return (job.reason or native) if native == "FAILED" else native


def belongs(store: Store, record: Record, job: Job) -> bool:
    """True when a job is this record's: by its comment, or by the script in our directory.

    The job id alone proves nothing: Slurm begins again at 1 after a wipe. The script's path
    counts because a site's job_submit plugin may overwrite comments.
    """
    if store.owned(job.comment) == record.id:
        return True
    line = job.extra.get("submit_line", "")
    return job.command.startswith(f"{record.directory}/") or f"--comment={store.mark(record.id)}" in line


def index(
    store: Store, records: Iterable[Record], jobs: Iterable[Job]
) -> tuple[dict[str, list[Job]], list[Job]]:
    """The rows of each record of ours, and the rows that are nobody's here.

    What was cleaned does not come back as somebody's: Slurm lists an ended job until its MinJobAge is over.
    """
    by_id = {r.id: r for r in records}
    by_native = {r.native_id: r for r in by_id.values() if r.native_id}
    ours: dict[str, list[Job]] = {}
    others: list[Job] = []
    for job in jobs:
        owner = store.owned(job.comment)
        record = by_id.get(owner) if owner else by_native.get(base_id(job.id))
        if record is None and "/jobs/" in job.command:
            record = by_id.get(job.command.partition("/jobs/")[2].partition("/")[0])
        same = record is not None and belongs(store, record, job)
        if record is not None and same and record.native_id in ("", base_id(job.id)):
            ours.setdefault(record.id, []).append(job)
        elif not (owner and job.state.terminal and store.get(owner) is None):
            others.append(job)
    return ours, others


def merge_rows(known: Workload, rows: Sequence[Job]) -> Workload:
    """What the rows say about a workload of ours; of an array or a het job each row is a child."""
    if len(rows) == 1 and rows[0].id.isdigit():
        return _filled(known, rows[0])
    parts = {c.id: c for c in known.children if c.kind is Kind.JOB and not c.id.endswith("]")}
    parts.update({job.id: replace(foreign(job), ours=True) for job in rows})
    return together(replace(known, children=tuple(parts.values())))


def together(whole: Workload) -> Workload:
    """The state of a workload from its parts: alive while one is, else as bad as the worst."""
    parts = whole.children
    states = [p.state for p in parts]
    state = next((s for s in _LIVELY if s in states), None)
    if state is None:
        state = next((s for s in (State.FAILED, State.CANCELLED) if s in states), State.SUCCEEDED)
    first = next(p for p in parts if p.state is state)
    starts = [p.started for p in parts if p.started]
    ends = [p.ended for p in parts if p.ended]
    return replace(
        whole,
        state=state,
        native_id=base_id(first.native_id or first.id),
        native_state=first.native_state,
        reason=first.reason,
        message=first.message,
        exit_code=(first.exit_code if state.terminal else None),
        user=first.user,
        partition=first.partition,
        nodes=",".join(dict.fromkeys(p.nodes for p in parts if p.nodes and not p.state.terminal)),
        node_count=sum(p.node_count for p in parts if p.state is State.RUNNING),
        cpus=sum(p.cpus for p in parts if p.state is State.RUNNING),
        submitted=first.submitted,
        started=min(starts) if starts else None,
        ended=max(ends) if ends and state.terminal else None,
        time_limit=first.time_limit,
    )


def is_many(rows: Sequence[Job], known: Workload) -> bool:
    """True for an array or a het job, whose parts come and go by themselves."""
    return any(not j.id.isdigit() for j in rows) or any(c.kind is Kind.JOB for c in known.children)


def end_mark(marks: Sequence[Mark]) -> Mark | None:
    """The `end` of the present run."""
    return next((m for m in reversed(marks) if m.what == "end"), None)


def from_end(known: Workload, end: Mark) -> Workload:
    """A workload that is final by its own script's last mark."""
    code = int(end.value) if end.value.isdigit() else 1
    state = State.FAILED if code else State.SUCCEEDED
    native = "FAILED" if code else "COMPLETED"
    reason = "NonZeroExitCode" if code else ""
    return replace(
        known,
        state=state,
        native_state=native,
        exit_code=code,
        ended=end.at,
        reason=reason,
        message="",
    )


def by_marks(known: Workload, marks: Sequence[Mark]) -> Workload:
    """What marks add to what Slurm says: they may be newer than squeue, and never make a workload final.

    A script that ends with 0 may have been cancelled: scancel ends its steps, and the shell goes on. Only
    Slurm can tell.
    """
    if known.state.terminal:
        return known
    start = next((m for m in marks if m.what == "start"), None)
    if start is not None and known.state in (State.PENDING, State.SUBMITTING, State.UNKNOWN):
        known = replace(known, state=State.RUNNING, started=start.at, reason="", message="")
    end = end_mark(marks)
    if end is not None:
        known = replace(known, message=f"its script has ended with code {end.value}")
    return known
