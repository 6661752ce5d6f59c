"""One question to slurmctld for all who want to know (design 6.2)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

from hpcsh.clock import Clock
from hpcsh.errors import CommandError, HpcshError, TargetError, TimedOutError
from hpcsh.slurm.job import Job, Queue

SLOW_SHARE = 0.1
"""The controller is asked so seldom that its answers take no more than this share of the time."""

MAX_BACK_OFF = 300.0


class Poller:
    """Asks at most once every `floor` seconds, shares the answer, and asks less often when less happens.

    The interval grows with the time since the last change, from `floor` to `idle`; it doubles with jitter
    while the controller fails, and follows the time that an answer takes when the controller is slow.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[dict[str, Job]]], clock: Clock, *, floor: float, idle: float
    ) -> None:
        self._ask = ask
        self._clock = clock
        self.floor = floor
        self.idle = max(idle, floor)
        self._last: Queue | None = None
        self._error: HpcshError | None = None
        self._asked = float("-inf")
        self._took = 0.0
        self._changed = float("-inf")
        self._failures = 0
        self._wanted = False
        self._flight: asyncio.Task[Queue] | None = None
        self._riders = 0
        self._news = asyncio.Event()
        self._jitter = random.Random(0)

    @property
    def last(self) -> Queue | None:
        """The newest answer, None before the first."""
        return self._last

    def slow_down(self, floor: float) -> None:
        """Never ask more often than every `floor` seconds from now on; it can only grow."""
        self.floor = max(self.floor, floor)
        self.idle = max(self.idle, self.floor)

    def hasten(self) -> None:
        """Something is known to have changed: ask again as soon as the floor allows."""
        self._wanted = True
        self._changed = self._clock.now()
        self._wake()

    def interval(self) -> float:
        """Seconds from one question to the next as things are now."""
        floor = max(self.floor, self._took / SLOW_SHARE)
        if self._failures:
            grown = min(max(floor, 1.0) * 2.0**self._failures, max(MAX_BACK_OFF, floor))
            return grown * (1 + 0.2 * self._jitter.random())
        if self._wanted:
            return floor
        active = self._last is None or any(not j.state.terminal for j in self._last.jobs.values())
        quiet = self._clock.now() - self._changed
        return max(floor, min(self.idle, quiet / 10)) if active else max(floor, self.idle)

    async def get(self, *, fresh: bool = False) -> Queue:
        """The last answer while it is good enough, else a new one; `fresh` accepts only the floor's age.

        Where there has never been one, the failure is raised: nothing known is not the same as no jobs.
        """
        now = self._clock.now()
        if (self._last or self._error) and self._flight is None:
            allowed = (
                max(self.floor, self._took / SLOW_SHARE) if fresh and not self._failures else self.interval()
            )
            # A clock that was set back must not stop the questions.
            if 0 <= now - self._asked < allowed:
                return self._known()
        return await self._ride()

    def _known(self) -> Queue:
        if self._last is None:
            assert self._error is not None
            raise self._error.with_traceback(None)
        return self._last

    async def next(self, after: float) -> Queue:
        """Wait for an answer that was asked after `after`, or for the failure of the next question."""
        while True:
            if self._last is not None and self._last.as_of > after and not self._last.stale:
                return self._last
            news = self._news
            due = self._asked + self.interval() - self._clock.now()
            if due <= 0 or due > 2 * MAX_BACK_OFF + self.idle:
                return await self._ride()
            await self._sleep(due, news)

    async def _sleep(self, seconds: float, news: asyncio.Event) -> None:
        """Sleep, but wake when another one has got an answer or has asked for haste."""
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(news.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _ride(self) -> Queue:
        """Join the question that is under way or begin one; it is given up when all who wait have left."""
        if self._flight is None:
            self._flight = asyncio.create_task(self._question())
        flight = self._flight
        self._riders += 1
        try:
            return await asyncio.shield(flight)
        finally:
            self._riders -= 1
            if not self._riders and not flight.done():
                flight.cancel()
                self._flight = None  # who comes now asks anew, and does not join what is being given up

    async def _question(self) -> Queue:
        began = self._asked = self._clock.now()
        self._wanted = False
        try:
            jobs = await self._ask()
        except (CommandError, TimedOutError, TargetError) as error:
            return self._failed(error)
        finally:
            if self._flight is asyncio.current_task():
                self._flight = None
            self._took = max(0.0, self._clock.now() - began)
            self._wake()
        self._failures = 0
        if self._last is None or _states(self._last.jobs) != _states(jobs):
            self._changed = began
        self._last = Queue(jobs=jobs, as_of=began)
        return self._last

    def _failed(self, error: HpcshError) -> Queue:
        self._failures = min(self._failures + 1, 16)
        known = self._last
        if known is None:
            # A target that was lost is tried again by who asks next; a controller is left in peace.
            self._error = None if isinstance(error, TargetError) else error
            raise error
        words = error.what if not error.why else f"{error.what.rstrip('.')}: {error.why}"
        self._last = Queue(
            jobs=known.jobs,
            as_of=known.as_of,
            stale=" ".join(words.split()),
        )
        return self._last


def _states(jobs: Mapping[str, Job]) -> dict[str, tuple[str, str]]:
    return {i: (j.native, j.reason) for i, j in jobs.items()}
