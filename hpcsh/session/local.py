"""Sessions that live in this process: the session host's, and a front end's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from hpcsh.boundary.base import Boundary
from hpcsh.clock import Clock
from hpcsh.engines.base import Engine
from hpcsh.engines.context import Context
from hpcsh.errors import HpcshError, TargetError
from hpcsh.events import Event, EventBus
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
    Severity,
    Snapshot,
    SubmitSpec,
    UpSpec,
    Workload,
)
from hpcsh.profiles import Profile

if TYPE_CHECKING:
    from hpcsh.session.engines import EngineClass

from hpcsh.session.prepared import PreparedBoundary, setup_environment
from hpcsh.session.protocol import Ask
from hpcsh.session.targets import Target
from hpcsh.store import Store

T = TypeVar("T")


class Shared:
    """What all who use one profile share: the engine, its event bus, its place on the target."""

    def __init__(
        self, profile: Profile, make: EngineClass, target: Target, store: Store, clock: Clock
    ) -> None:
        self.profile = profile
        self.target = target
        self.users = 0
        self.bus = EventBus()
        self._store = store
        self._clock = clock
        self._make = make
        self._engine: Engine | None = None
        self._identity = ("", 0, "")
        self._name = ""
        self._lock = asyncio.Lock()

    async def engine(self, ask: Ask | None) -> Engine:
        """The engine, its target connected. What fails is tried again by the next call."""
        boundary = await self.target.open(ask)
        async with self._lock:
            if self._engine is None:
                self._engine = await self._start(boundary)
            return self._engine

    async def _start(self, boundary: Boundary) -> Engine:
        self._identity = await boundary.identity()
        self._name = boundary.name
        setup = self.profile.setup
        environment = await setup_environment(boundary, setup) if setup.strip() else {}
        context = Context(
            profile=self.profile,
            boundary=PreparedBoundary(boundary, environment) if environment else boundary,
            cluster=self.target.cluster(environment, self.profile.poll),
            store=self._store,
            bus=self.bus,
            clock=self._clock,
        )
        engine = self._make(context)
        await engine.open()
        return engine

    async def close(self) -> None:
        """Close the engine, if it was ever opened."""
        async with self._lock:
            engine, self._engine = self._engine, None
            if engine is not None:
                await engine.close()

    def info(self) -> SessionInfo:
        """The session as it is now."""
        profile, capabilities = self.profile, getattr(self._engine or self._make, "capabilities", ())
        return SessionInfo(
            profile=profile.name,
            engine=profile.engine,
            target=self._name or profile.target.key(),
            user=self._identity[0],
            capabilities=tuple(sorted(capabilities)),
            description=profile.description,
        )

    async def doctor(self, ask: Ask | None) -> list[Finding]:
        """The target and the setup, then what the engine looks at."""
        try:
            engine = await self.engine(ask)
        except HpcshError as e:
            what = " ".join(part for part in (e.what, e.why) if part)
            return [Finding(id=f"session.{e.kind}", severity=Severity.ERROR, what=what, fix=e.fix)]
        user, _, host = self._identity
        found = [Finding(id="session.target", severity=Severity.OK, what=f"{self._name}: {user} on {host}")]
        if self.profile.setup.strip():
            found.append(Finding(id="session.setup", severity=Severity.OK, what="the profile's setup runs"))
        return [*found, *await engine.doctor()]


class LocalSession:
    """One user of a shared session; the methods are those of `Session`."""

    def __init__(self, shared: Shared, ask: Ask | None, closed: Callable[[], Awaitable[None]]) -> None:
        """`closed` is awaited once, when this user leaves."""
        self.shared = shared
        self._ask = ask
        self._closed: Callable[[], Awaitable[None]] | None = closed

    async def _engine(self) -> Engine:
        if self._closed is None:
            raise TargetError("The session is closed.")
        return await self.shared.engine(self._ask)

    async def _stream(self, start: Callable[[Engine], AsyncIterator[T]]) -> AsyncGenerator[T, None]:
        stream = start(await self._engine())
        try:
            async for item in stream:
                yield item
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()

    async def info(self) -> SessionInfo:
        """See `Session`."""
        return self.shared.info()

    async def events(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """See `Session`."""
        bus = self.shared.bus
        start = bus.last if after is None else after if after <= bus.last else 0
        async for event in bus.listen(start):
            yield event

    async def doctor(self) -> list[Finding]:
        """See `Session`."""
        return await self.shared.doctor(self._ask)

    async def nodes(self) -> list[Node]:
        """See `Session`."""
        return await (await self._engine()).nodes()

    async def plan(self, spec: SubmitSpec) -> Plan:
        """See `Session`."""
        return await (await self._engine()).plan(spec)

    async def submit(self, spec: SubmitSpec) -> Workload:
        """See `Session`."""
        return await (await self._engine()).submit(spec)

    async def workloads(self, *, mine_only: bool = False, fresh: bool = False) -> Snapshot:
        """See `Session`."""
        return await (await self._engine()).workloads(mine_only=mine_only, fresh=fresh)

    async def show(self, ref: str) -> Detail:
        """See `Session`."""
        return await (await self._engine()).show(ref)

    def logs(self, ref: str, options: LogOptions) -> AsyncGenerator[LogChunk, None]:
        """See `Session`."""
        return self._stream(lambda engine: engine.logs(ref, options))

    async def wait(self, refs: Sequence[str], *, timeout: float | None = None) -> list[Workload]:
        """See `Session`."""
        return await (await self._engine()).wait(refs, timeout=timeout)

    async def cancel(self, refs: Sequence[str]) -> Report:
        """See `Session`."""
        return await (await self._engine()).cancel(refs)

    async def clean_plan(self, *, everything: bool = False) -> list[CleanItem]:
        """See `Session`."""
        return await (await self._engine()).clean_plan(everything=everything)

    async def clean(self, items: Sequence[CleanItem]) -> Report:
        """See `Session`."""
        return await (await self._engine()).clean(items)

    def pull(self, references: Sequence[str]) -> AsyncGenerator[Progress, None]:
        """See `Session`."""
        return self._stream(lambda engine: engine.pull(references))

    async def images(self) -> list[Image]:
        """See `Session`."""
        return await (await self._engine()).images()

    async def plan_up(self, spec: UpSpec) -> Plan:
        """See `Session`."""
        return await (await self._engine()).plan_up(spec)

    def up(self, spec: UpSpec) -> AsyncGenerator[Progress, None]:
        """See `Session`."""
        return self._stream(lambda engine: engine.up(spec))

    def down(self, name: str) -> AsyncGenerator[Progress, None]:
        """See `Session`."""
        return self._stream(lambda engine: engine.down(name))

    async def environments(self) -> list[Environment]:
        """See `Session`."""
        return await (await self._engine()).environments()

    async def plan_launch(self, spec: LaunchSpec) -> Plan:
        """See `Session`."""
        return await (await self._engine()).plan_launch(spec)

    def launch(self, spec: LaunchSpec) -> AsyncGenerator[LaunchFrame, None]:
        """See `Session`."""
        return self._stream(lambda engine: engine.launch(spec))

    async def close(self) -> None:
        """See `Session`."""
        closed, self._closed = self._closed, None
        if closed:
            await closed()
