"""The front ends' only door: what an opened profile can do, wherever it lives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Protocol

from hpcsh.events import Event
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
    SessionInfo,
    Snapshot,
    SubmitSpec,
    UpSpec,
    Workload,
)

Ask = Callable[[str, bool], Awaitable[str | None]]
"""How a front end answers a question that a login asks: `await ask(prompt, echo)`.

`echo` is False for secrets. None means that nobody answers, which ends the login with a `TargetError`.
"""


class Session(Protocol):
    """An opened profile, in this process or in the session host; both behave the same.

    Opening is lazy: the target is reached with the first call that needs it, and every call may raise
    `TargetError`. `doctor` does not raise it but reports it as a finding. What each method promises is said
    by `engines.base.Engine`. Cancelling a call ends what it does on the target.

    Streams are async generators: read them to the end, or under `contextlib.aclosing`, since closing one
    is what ends its remote process. A stream that is read slowly slows what it reads from; nothing piles up.
    """

    async def info(self) -> SessionInfo:
        """Profile, engine, target, capabilities. Reaches for nothing; `user` is "" until the target is."""
        ...

    def events(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Events numbered above `after` (0: all that are kept; None: only new ones), then as they happen.

        To resume, give the last number seen. A session host that was started anew counts from 1 again;
        a number it has not reached yet means all of its events.
        """
        ...

    async def doctor(self) -> list[Finding]:
        """Look at everything the session needs, the target and the profile's `setup` first."""
        ...

    async def nodes(self) -> list[Node]:
        """The cluster's nodes."""
        ...

    async def plan(self, spec: SubmitSpec) -> Plan:
        """What `submit` would do, exactly; changes nothing."""
        ...

    async def submit(self, spec: SubmitSpec) -> Workload:
        """Submit at most once; returns with the native id."""
        ...

    async def workloads(self, *, mine_only: bool = False, fresh: bool = False) -> Snapshot:
        """The user's workloads, ours and others."""
        ...

    async def show(self, ref: str) -> Detail:
        """All facts about one workload."""
        ...

    def logs(self, ref: str, options: LogOptions) -> AsyncGenerator[LogChunk, None]:
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

    def pull(self, references: Sequence[str]) -> AsyncGenerator[Progress, None]:
        """Bring images into the pool on the target."""
        ...

    async def images(self) -> list[Image]:
        """The images in the pool."""
        ...

    async def plan_up(self, spec: UpSpec) -> Plan:
        """What `up` would submit, exactly; changes nothing. Raises `UsageError` for bad input."""
        ...

    def up(self, spec: UpSpec) -> AsyncGenerator[Progress, None]:
        """Start an environment; ends when it is ready, or raises after removing what it had started."""
        ...

    def down(self, name: str) -> AsyncGenerator[Progress, None]:
        """Stop an environment and release everything it holds; harmless when it is down."""
        ...

    async def environments(self) -> list[Environment]:
        """The environments as they are now."""
        ...

    async def plan_launch(self, spec: LaunchSpec) -> Plan:
        """What `launch` would run, exactly; changes nothing."""
        ...

    def launch(self, spec: LaunchSpec) -> AsyncGenerator[LaunchFrame, None]:
        """Run a parallel program and stream its output; closing the stream ends the launch."""
        ...

    async def close(self) -> None:
        """Leave the session; harmless when it is closed. Close streams first: open ones may fail now."""
        ...
