"""Events: what happened, numbered, kept for those who come back, never dropped for those who listen."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import msgspec

from hpcsh.model import Environment, Image, Workload


class WorkloadChanged(msgspec.Struct, frozen=True, tag=True):
    """A workload is new or differs from what was known before."""

    workload: Workload


class EnvironmentChanged(msgspec.Struct, frozen=True, tag=True):
    """An environment is new or differs from what was known before."""

    environment: Environment


class ImagePulled(msgspec.Struct, frozen=True, tag=True):
    """An image arrived in the pool."""

    image: Image


AnyEvent = WorkloadChanged | EnvironmentChanged | ImagePulled


class Event(msgspec.Struct, frozen=True):
    """A numbered event. Numbers begin at 1 and have no gaps."""

    number: int
    at: float
    body: AnyEvent


class EventBus:
    """Numbers events and hands them to any number of listeners.

    The last `keep` events can be read again by a listener that resumes. A listener that is behind by
    more than that is told by the first number it gets.
    """

    def __init__(self, keep: int = 10_000) -> None:
        self._kept: deque[Event] = deque(maxlen=keep)
        self._number = 0
        self._changed = asyncio.Event()

    @property
    def last(self) -> int:
        """Number of the newest event, 0 before the first."""
        return self._number

    def publish(self, body: AnyEvent, at: float) -> Event:
        """Number an event and wake every listener."""
        self._number += 1
        event = Event(self._number, at, body)
        self._kept.append(event)
        self._changed.set()
        self._changed = asyncio.Event()
        return event

    async def listen(self, after: int = 0) -> AsyncIterator[Event]:
        """Yield every kept event with a number above `after`, then new ones as they happen."""
        while True:
            changed = self._changed
            for event in [e for e in self._kept if e.number > after]:
                after = event.number
                yield event
            if after >= self._number:
                await changed.wait()
