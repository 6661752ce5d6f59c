"""Time and ids, given by the session so that a recorded session can run again exactly."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Protocol

_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"


class Clock(Protocol):
    """The session's time; nothing below the front ends uses another."""

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
