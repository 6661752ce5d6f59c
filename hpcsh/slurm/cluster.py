"""One Slurm cluster as one user sees it, behind one budget of questions (design 6.2)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hpcsh.boundary.base import Boundary
from hpcsh.clock import Clock
from hpcsh.model import Node, State


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as squeue or sacct tells it, already translated. `native` is Slurm's own (compact or long) state."""

    id: str
    name: str
    user: str
    state: State
    native: str
    reason: str = ""
    comment: str = ""
    partition: str = ""
    nodes: str = ""
    node_count: int = 0
    cpus: int = 0
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    time_limit: float | None = None
    exit_code: int | None = None
    """`code` or 128 + signal; None while it runs or where Slurm does not say."""
    directory: str = ""
    command: str = ""
    restarts: int = 0
    extra: dict[str, str] = {}


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of squeue. `stale` says why nothing newer could be had; "" when this is the newest."""

    jobs: dict[str, Job]
    as_of: float
    stale: str = ""


class Cluster:
    """The client. Shared by every session on one target; owned by the session host.

    Every call has a time-out. Only `queue` and `accounting` are used for states, so that the number of
    questions does not depend on the number of jobs or front ends.
    """

    def __init__(self, boundary: Boundary, clock: Clock, *, floor: float = 2.0, idle: float = 30.0) -> None:
        """Ask slurmctld never more often than every `floor` seconds, every `idle` when nothing is active."""
        raise NotImplementedError

    async def version(self) -> tuple[int, int, int]:
        """Slurm's version, asked once."""
        raise NotImplementedError

    async def sbatch(self, options: Sequence[str], script: str, args: Sequence[str] = (), *, cwd: str) -> str:
        """Submit the script file at path `script` on the target; the job id.

        `options` are validated sbatch options. Raises `CommandError` with Slurm's words when it was
        refused for certain, `UnknownOutcomeError` when it is not known whether there is a job.
        """
        raise NotImplementedError

    async def queue(self, *, fresh: bool = False) -> Queue:
        """All jobs of the user. Within the floor the last answer with its age; never a second question."""
        raise NotImplementedError

    async def next_queue(self, after: float) -> Queue:
        """Wait for an answer newer than `after` (an `as_of`): all who wait share one question."""
        raise NotImplementedError

    async def accounting(self, ids: Sequence[str]) -> dict[str, Job]:
        """What sacct knows of these jobs, in one call; missing ones are absent."""
        raise NotImplementedError

    async def by_comment(self, prefix: str, since: float) -> list[Job]:
        """Jobs whose comment begins with `prefix`, from the queue and from accounting since a time."""
        raise NotImplementedError

    async def cancel(self, ids: Sequence[str]) -> None:
        """scancel; a job that has ended already is no error."""
        raise NotImplementedError

    async def nodes(self) -> list[Node]:
        """The cluster's nodes, from one sinfo call."""
        raise NotImplementedError

    async def facts(self, job_id: str) -> list[tuple[str, str]]:
        """What `scontrol show job` says, in its order; falls back to sacct; empty when nobody knows it."""
        raise NotImplementedError

    async def script(self, job_id: str) -> str:
        """The batch script Slurm keeps of a job, "" where it does not."""
        raise NotImplementedError
