"""An `up` under way in this process, which a `down` of the same name ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from hpcsh.errors import CommandError
from hpcsh.model import Environment, Progress

Told = Callable[[Progress], None]


class Starting:
    """The work of one `up`, apart from who reads its progress: so it can be ended although nobody reads."""

    def __init__(self, name: str, work: Callable[[Starting], Awaitable[None]]) -> None:
        self.name = name
        self.environment: Environment | None = None
        self.taken = False
        """True once a `down` has taken over: what was started is its to remove."""
        self._told: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._known = asyncio.Event()
        self._task = asyncio.ensure_future(self._run(work))

    async def _run(self, work: Callable[[Starting], Awaitable[None]]) -> None:
        try:
            await work(self)
        finally:
            self._known.set()
            self.tell(None)

    def tell(self, progress: Progress | None) -> None:
        """Hand on progress; None ends it."""
        self._told.put_nowait(progress)

    def submitted(self, environment: Environment) -> None:
        """From now on there is something to end."""
        self.environment = environment
        self._known.set()

    async def progress(self) -> AsyncIterator[Progress]:
        """What the work tells, to its end; raises what it raises."""
        while (progress := await self._told.get()) is not None:
            yield progress
        try:
            await self._task
        except asyncio.CancelledError:
            if not self.taken:
                raise
            raise CommandError(
                f"The environment {self.name!r} was ended by a `down` before it was ready.",
                fix="`hpcsh up` starts it anew",
            ) from None

    async def end(self) -> None:
        """Stop the work and wait until it has stopped; what it began is still there."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # told by `progress`, if anybody reads on

    async def take(self) -> None:
        """As `end`, for a `down`. A submission is waited for: what is half submitted could not be ended."""
        self.taken = True
        await self._known.wait()
        await self.end()
