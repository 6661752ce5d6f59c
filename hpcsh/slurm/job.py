"""What the Slurm client answers with."""

from __future__ import annotations

import msgspec

from hpcsh.model import State


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as squeue or sacct tells it, already translated. `native` is Slurm's own (compact or long) state.

    `id` is what users write (`12`, `12_4`, `12_[3-9%2]`, `12+0`); `extra` may hold `raw` (the number of this
    very job), `stdout` (unexpanded), `qos`, `account`, `priority`, `uid`, `submit_line`.
    """

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
    """One answer of squeue. `stale` says why nothing newer could be had; "" when this is the newest.

    `as_of` is when the question was asked: whatever happened before that is in the answer.
    """

    jobs: dict[str, Job]
    as_of: float
    stale: str = ""
