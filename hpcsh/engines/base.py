"""The seam between sessions and engines.

An engine turns the verbs into what stands behind them. It holds no user interface and keeps no state
that is not in the store, in Slurm or in files on the target: it may be killed at any instant.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

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


class Engine(Protocol):
    """What every engine offers. A front end shows only the verbs in `capabilities`.

    References (`ref`) are an id of ours, its unique prefix, a workload's name when only one has it, or
    a native job id. Unknown ones raise `NotFoundError`, ambiguous ones `UsageError` that lists them.
    """

    name: str
    capabilities: frozenset[str]

    async def open(self) -> None:
        """Take up what an earlier process left: settle what it did not know. Called once, before all else."""
        ...

    async def close(self) -> None:
        """Give up what this process holds for the engine; what runs on the target goes on."""
        ...

    async def doctor(self) -> list[Finding]:
        """Look at everything this engine needs on its target, and say what is wrong and how to fix it."""
        ...

    async def nodes(self) -> list[Node]:
        """The cluster's nodes."""
        ...

    async def plan(self, spec: SubmitSpec) -> Plan:
        """What `submit` would do, exactly; changes nothing. Raises `UsageError` for bad input."""
        ...

    async def submit(self, spec: SubmitSpec) -> Workload:
        """Submit at most once (design 6.1); returns with the native id.

        Raises `UsageError` before anything is changed, `CommandError` with Slurm's words when it was
        refused, `UnknownOutcomeError` when it is not known whether the job exists.
        """
        ...

    async def workloads(self, *, mine_only: bool = False, fresh: bool = False) -> Snapshot:
        """The user's workloads, ours and others (`mine_only`: ours only), from one question to Slurm.

        `fresh` asks for a new answer even within the polling floor's comfort, never within the floor.
        """
        ...

    async def show(self, ref: str) -> Detail:
        """All facts about one workload."""
        ...

    def logs(self, ref: str, options: LogOptions) -> AsyncIterator[LogChunk]:
        """Stream its logs; with `follow` until it has ended and everything is read."""
        ...

    async def wait(self, refs: Sequence[str], *, timeout: float | None = None) -> list[Workload]:
        """Wait until all are in a terminal state. Raises `TimedOutError`."""
        ...

    async def cancel(self, refs: Sequence[str]) -> Report:
        """Cancel; harmless for what has already ended."""
        ...

    async def clean_plan(self, *, everything: bool = False) -> list[CleanItem]:
        """What `clean` would remove: what is finished, or (`everything`) what still runs too. Only ours."""
        ...

    async def clean(self, items: Sequence[CleanItem]) -> Report:
        """Remove exactly these items."""
        ...

    def pull(self, references: Sequence[str]) -> AsyncIterator[Progress]:
        """Bring images into the pool on the target."""
        ...

    async def images(self) -> list[Image]:
        """The images in the pool."""
        ...

    async def plan_up(self, spec: UpSpec) -> Plan:
        """What `up` would submit, exactly; changes nothing. Raises `UsageError` for bad input."""
        ...

    def up(self, spec: UpSpec) -> AsyncIterator[Progress]:
        """Start an environment; ends when it is ready, or raises after removing what it had started."""
        ...

    def down(self, name: str) -> AsyncIterator[Progress]:
        """Stop an environment and release everything it holds; harmless when it is down."""
        ...

    async def environments(self) -> list[Environment]:
        """The environments as they are now."""
        ...

    async def plan_launch(self, spec: LaunchSpec) -> Plan:
        """What `launch` would run, exactly; changes nothing."""
        ...

    def launch(self, spec: LaunchSpec) -> AsyncIterator[LaunchFrame]:
        """Run a parallel program and stream its output; closing the iterator ends the launch."""
        ...
