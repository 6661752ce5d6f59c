"""A session in the session host, as its front ends see it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

import msgspec

from hpcsh.client.start import reach
from hpcsh.errors import TargetError, UnknownOutcomeError
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
from hpcsh.serving.caller import Caller, ConnectionLostError
from hpcsh.session import Ask

T = TypeVar("T")

EFFECTS = frozenset({"submit", "cancel", "clean", "up", "down", "launch"})
"""Calls that are not made again by themselves when the host is lost while it answers them."""


def _unknown(method: str, error: ConnectionLostError) -> UnknownOutcomeError:
    return UnknownOutcomeError(
        f"The session host was lost during {method!r}; it is not known how far it came.",
        why=error.why,
        fix="look at it with `hpcsh ps` or `hpcsh status` before doing it again",
    )


class AttachedSession:
    """`Session` over the session host's socket.

    A host that was killed is started again by the next call. A call that was under way then is made again
    if it only reads; otherwise it raises `UnknownOutcomeError`, and streams raise `TargetError`.
    """

    def __init__(self, profile: str, ask: Ask | None = None) -> None:
        self.profile = profile
        self._ask = ask
        self._caller: Caller | None = None
        self._pid = 0
        self._closed = False
        self._lock = asyncio.Lock()

    async def attach(self) -> Caller:
        """Connect to the host and open the profile there, unless that is done."""
        async with self._lock:
            if self._closed:
                raise TargetError("The session is closed.")
            for left in (2, 1, 0):
                if self._caller and not self._caller.closed:
                    break
                try:
                    self._caller = await self._open()
                except ConnectionLostError:  # the host was just ending: idle, or told to stop
                    if not left:
                        raise
            assert self._caller is not None
            return self._caller

    async def _open(self) -> Caller:
        caller, welcome = await reach(self._ask)
        try:
            await caller.call("attach", {"profile": self.profile})
        except BaseException:
            await caller.close()
            raise
        self._pid = welcome.pid
        return caller

    async def _call(self, result: type[T], method: str, **args: Any) -> T:
        tries = 2
        while True:
            caller = await self.attach()
            tries -= 1
            try:
                return msgspec.msgpack.decode(await caller.call(method, args), type=result)
            except ConnectionLostError as e:
                if e.sent and method in EFFECTS:
                    raise _unknown(method, e) from None
                if not tries:
                    raise

    async def _stream(self, item: type[T], method: str, **args: Any) -> AsyncGenerator[T, None]:
        decoder = msgspec.msgpack.Decoder(item)
        caller = await self.attach()
        try:
            async with contextlib.aclosing(caller.stream(method, args)) as items:
                async for raw in items:
                    yield decoder.decode(raw)
        except ConnectionLostError as e:
            if e.sent and method in EFFECTS:
                raise _unknown(method, e) from None
            raise

    async def info(self) -> SessionInfo:
        """See `Session`."""
        info = await self._call(SessionInfo, "info")
        return msgspec.structs.replace(info, host_pid=self._pid)

    def events(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """See `Session`."""
        return self._stream(Event, "events", after=after)

    async def doctor(self) -> list[Finding]:
        """See `Session`."""
        return await self._call(list[Finding], "doctor")

    async def nodes(self) -> list[Node]:
        """See `Session`."""
        return await self._call(list[Node], "nodes")

    async def plan(self, spec: SubmitSpec) -> Plan:
        """See `Session`."""
        return await self._call(Plan, "plan", spec=spec)

    async def submit(self, spec: SubmitSpec) -> Workload:
        """See `Session`."""
        return await self._call(Workload, "submit", spec=spec)

    async def workloads(self, *, mine_only: bool = False, fresh: bool = False) -> Snapshot:
        """See `Session`."""
        return await self._call(Snapshot, "workloads", mine_only=mine_only, fresh=fresh)

    async def show(self, ref: str) -> Detail:
        """See `Session`."""
        return await self._call(Detail, "show", ref=ref)

    def logs(self, ref: str, options: LogOptions) -> AsyncGenerator[LogChunk, None]:
        """See `Session`."""
        return self._stream(LogChunk, "logs", ref=ref, options=options)

    async def wait(self, refs: Sequence[str], *, timeout: float | None = None) -> list[Workload]:
        """See `Session`."""
        return await self._call(list[Workload], "wait", refs=tuple(refs), timeout=timeout)

    async def cancel(self, refs: Sequence[str]) -> Report:
        """See `Session`."""
        return await self._call(Report, "cancel", refs=tuple(refs))

    async def clean_plan(self, *, everything: bool = False) -> list[CleanItem]:
        """See `Session`."""
        return await self._call(list[CleanItem], "clean_plan", everything=everything)

    async def clean(self, items: Sequence[CleanItem]) -> Report:
        """See `Session`."""
        return await self._call(Report, "clean", items=tuple(items))

    def pull(self, references: Sequence[str]) -> AsyncGenerator[Progress, None]:
        """See `Session`."""
        return self._stream(Progress, "pull", references=tuple(references))

    async def images(self) -> list[Image]:
        """See `Session`."""
        return await self._call(list[Image], "images")

    async def plan_up(self, spec: UpSpec) -> Plan:
        """See `Session`."""
        return await self._call(Plan, "plan_up", spec=spec)

    def up(self, spec: UpSpec) -> AsyncGenerator[Progress, None]:
        """See `Session`."""
        return self._stream(Progress, "up", spec=spec)

    def down(self, name: str) -> AsyncGenerator[Progress, None]:
        """See `Session`."""
        return self._stream(Progress, "down", name=name)

    async def environments(self) -> list[Environment]:
        """See `Session`."""
        return await self._call(list[Environment], "environments")

    async def plan_launch(self, spec: LaunchSpec) -> Plan:
        """See `Session`."""
        return await self._call(Plan, "plan_launch", spec=spec)

    def launch(self, spec: LaunchSpec) -> AsyncGenerator[LaunchFrame, None]:
        """See `Session`."""
        return self._stream(LaunchFrame, "launch", spec=spec)

    async def close(self) -> None:
        """See `Session`."""
        self._closed = True
        caller, self._caller = self._caller, None
        if caller:
            await caller.close()
