"""What a session gives to its engine."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from hpcsh.boundary.base import Boundary
from hpcsh.events import EventBus
from hpcsh.profiles import Profile
from hpcsh.slurm.cluster import Cluster
from hpcsh.store import Store

_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"


class Clock(Protocol):
    """The session's time; engines use no other, so that a recorded session can run again."""

    def now(self) -> float:
        """Unix seconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


def new_id() -> str:
    """A short id that is easy to read and type: eight characters without look-alikes."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


@dataclass
class Context:
    """One session's surroundings. `boundary` and `cluster` are shared by all sessions on the same target."""

    profile: Profile
    boundary: Boundary
    cluster: Cluster
    store: Store
    bus: EventBus
    clock: Clock = field(default_factory=SystemClock)
    new_id: Callable[[], str] = new_id

    @property
    def target(self) -> str:
        """The key of the target, under which the store keeps this session's records."""
        return self.profile.target.key()
