"""Waiting for news: the one poller that all share, and the marks of the jobs that somebody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType

from hpcsh.engines.context import Context
from hpcsh.errors import HpcshError
from hpcsh.slurm.cluster import Queue

MOST = 64
"""Marks files that are followed at once; beyond that the poller alone tells."""


class Watch:
    """An async context manager that follows marks files and wakes for them and for the poller.

    `directories` are those of workloads of ours that have not ended.
    """

    def __init__(self, context: Context, directories: Iterable[str]) -> None:
        self._c = context
        self._paths = [f"{d}/marks" for d in directories][:MOST]
        self._tasks: list[asyncio.Task[None]] = []
        self._poll: asyncio.Task[Queue] | None = None
        self._rung = asyncio.Event()

    async def __aenter__(self) -> Watch:
        self._tasks = [asyncio.create_task(self._follow(path)) for path in self._paths]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._tasks, *([self._poll] if self._poll else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, path: str) -> None:
        try:
            async for piece in self._c.boundary.follow(path):
                if piece.data:
                    self._rung.set()
        except HpcshError:
            return  # the poller goes on

    async def news(self, after: float, seconds: float | None = None) -> bool:
        """Wait for a mark, or for an answer of Slurm's newer than `after`; False when time is up first."""
        if self._poll is None:
            self._poll = asyncio.create_task(self._c.cluster.next_queue(after))
        rung = asyncio.create_task(self._rung.wait())
        waits: set[asyncio.Task[object]] = {self._poll, rung}
        if seconds is not None:
            waits.add(asyncio.ensure_future(self._c.clock.sleep(max(0.0, seconds))))
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits - {self._poll}:
                task.cancel()
        self._rung.clear()
        if self._poll in done:
            poll, self._poll = self._poll, None
            poll.result()
            return True
        return rung in done
