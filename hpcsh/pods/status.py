"""A pod's state from the job's state and what the containers left behind. Pure.

Reasons are Kubernetes' words (ContainerStateWaiting, ContainerStateTerminated). A pod is never succeeded
when its job or one of its containers failed, and nothing is failed because it is merely unknown (design 6.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from hpcsh.model import Kind, State, Workload
from hpcsh.pods.plan import ContainerPlan

STARTED = "container-start"
EXITED = "container-exit"
FAILED = "pod-failed"
BEGUN = "start"

_JOB_REASONS = {
    "TIMEOUT": "DeadlineExceeded", "TO": "DeadlineExceeded", "DEADLINE": "DeadlineExceeded",
    "DL": "DeadlineExceeded",
    "OUT_OF_MEMORY": "OOMKilled", "OOM": "OOMKilled", "NODE_FAIL": "NodeLost", "NF": "NodeLost",
    "BOOT_FAIL": "NodeLost", "BF": "NodeLost", "PREEMPTED": "Preempted", "PR": "Preempted",
    "CANCELLED": "Cancelled", "CA": "Cancelled", "LAUNCH_FAILED": "StartError", "REVOKED": "Cancelled",
}  # fmt: skip
_MESSAGES = {
    "DeadlineExceeded": "the time limit of the job passed",
    "OOMKilled": "the job used more memory than it asked for",
    "NodeLost": "the node failed",
    "Preempted": "a job of higher priority took the place",
}


class Part(msgspec.Struct, frozen=True):
    """What the status needs to know of a container; kept with the submission's record."""

    name: str
    image: str
    init: bool = False


class Happening(msgspec.Struct, frozen=True):
    """A line that the job's script left: when, what, who, and a value."""

    at: float
    what: str
    who: str = ""
    value: str = ""


class _Run(msgspec.Struct):
    """What happened to one container in the current run of the job."""

    starts: int = 0
    started: float | None = None
    ended: float | None = None
    code: int | None = None


def parts(containers: Sequence[ContainerPlan]) -> tuple[Part, ...]:
    """The parts of a plan, init containers first."""
    return tuple(Part(c.name, c.image, c.init) for c in containers)


def refine(pod: Workload, containers: Sequence[Part], happenings: Sequence[Happening]) -> Workload:
    """The pod with its containers as children, with Kubernetes' reasons and the first exit code not 0."""
    current = _current(happenings)
    runs = _runs(containers, current)
    job_reason = _job_reason(pod)
    children = tuple(_child(pod, c, runs, job_reason, containers) for c in containers)
    failed_before = next((h for h in current if h.what == FAILED), None)
    state = pod.state
    if state is State.SUCCEEDED and any(c.state is State.FAILED for c in children):
        state = State.FAILED
    code = _exit_code(pod, state, children)
    reason, message = _told(pod, state, job_reason, children, failed_before)
    return msgspec.structs.replace(
        pod, kind=Kind.POD, state=state, children=children, exit_code=code, reason=reason, message=message
    )


def _current(happenings: Sequence[Happening]) -> list[Happening]:
    """What belongs to the last run: a requeued job begins again."""
    begins = [i for i, h in enumerate(happenings) if h.what == BEGUN]
    return list(happenings[begins[-1] :] if begins else happenings)


def _runs(containers: Sequence[Part], happenings: Sequence[Happening]) -> Mapping[str, _Run]:
    runs = {c.name: _Run() for c in containers}
    for h in happenings:
        run = runs.get(h.who)
        if run is None:
            continue
        if h.what == STARTED:
            run.starts += 1
            run.started, run.ended, run.code = h.at, None, None
        elif h.what == EXITED and h.value.isdigit():
            run.ended, run.code = h.at, int(h.value)
    return runs


def _job_reason(pod: Workload) -> str:
    words = pod.native_state.upper().replace("+", " ").split()
    return _JOB_REASONS.get(words[0], "") if words else ""


def _child(
    pod: Workload, part: Part, runs: Mapping[str, _Run], job_reason: str, containers: Sequence[Part]
) -> Workload:
    run = runs[part.name]
    restarts = f"restarted {run.starts - 1} times" if run.starts > 1 else ""
    child = Workload(
        id=f"{pod.id}/{part.name}",
        name=part.name,
        kind=Kind.CONTAINER,
        state=State.PENDING,
        ours=pod.ours,
        engine=pod.engine,
        image=part.image,
        nodes=pod.nodes,
        started=run.started,
        ended=run.ended,
        message=", ".join(filter(None, ("init container" if part.init else "", restarts))),
    )
    if pod.state.terminal:
        return _ended(child, run, pod, job_reason)
    if run.started is None:
        return msgspec.structs.replace(
            child, state=_waiting_state(pod), reason=_waiting_reason(pod, part, runs, containers)
        )
    if run.code is None:
        return msgspec.structs.replace(
            child, state=State.UNKNOWN if pod.state is State.UNKNOWN else State.RUNNING
        )
    return _exited(child, run.code, "")


def _waiting_state(pod: Workload) -> State:
    return pod.state if pod.state in (State.UNKNOWN, State.SUBMITTING) else State.PENDING


def _waiting_reason(pod: Workload, part: Part, runs: Mapping[str, _Run], containers: Sequence[Part]) -> str:
    if pod.state is not State.RUNNING:
        return ""
    unfinished = any(c.init and c.name != part.name and runs[c.name].code != 0 for c in containers)
    return "PodInitializing" if unfinished else "ContainerCreating"


def _exited(child: Workload, code: int, job_reason: str) -> Workload:
    """Kubernetes' words for an exit code. 137 is called OOMKilled only when Slurm saw the memory run out."""
    if code == 0:
        return msgspec.structs.replace(child, state=State.SUCCEEDED, reason="Completed", exit_code=0)
    reason = "OOMKilled" if job_reason == "OOMKilled" and code == 137 else "Error"
    return msgspec.structs.replace(child, state=State.FAILED, reason=reason, exit_code=code)


def _ended(child: Workload, run: _Run, pod: Workload, job_reason: str) -> Workload:
    """A container of a job that is over."""
    if run.code is not None:
        return _exited(child, run.code, job_reason)
    if pod.state is State.SUCCEEDED:
        # The job's exit code is the largest of its containers', so each was 0: the mark has not arrived yet.
        return _exited(child, 0, "")
    if run.started is None:
        # It never ran: an earlier container failed, or the job ended before its turn.
        return msgspec.structs.replace(child, state=State.CANCELLED, reason="NotStarted")
    code = pod.exit_code or 137
    state = State.CANCELLED if pod.state is State.CANCELLED else State.FAILED
    return msgspec.structs.replace(
        child, state=state, reason=job_reason or "Error", exit_code=code, ended=pod.ended
    )


def _exit_code(pod: Workload, state: State, children: Sequence[Workload]) -> int | None:
    """The first container's code that is not 0; the job's own otherwise; never 0 for a pod that failed."""
    if not state.terminal:
        return None
    if state is State.SUCCEEDED:
        return 0
    first = next((c.exit_code for c in children if c.exit_code), None)
    return first or pod.exit_code or (1 if state is State.FAILED else pod.exit_code)


def _told(
    pod: Workload,
    state: State,
    job_reason: str,
    children: Sequence[Workload],
    failed_before: Happening | None,
) -> tuple[str, str]:
    if not state.terminal:
        if state is State.RUNNING and not any(c.started for c in children):
            return pod.reason or "ContainerCreating", pod.message
        return pod.reason, pod.message
    if state is State.SUCCEEDED:
        return "Completed", pod.message
    if failed_before is not None:
        subject = f"{failed_before.who} {failed_before.value}".strip(" -")
        return "CreateContainerConfigError", f"the node could not provide: {subject} (see the job's own log)"
    if job_reason:
        return job_reason, pod.message or _MESSAGES.get(job_reason, "")
    failed = [f"{c.name} ended with {c.exit_code}" for c in children if c.state is State.FAILED]
    return "Error", "; ".join(failed) or pod.message
