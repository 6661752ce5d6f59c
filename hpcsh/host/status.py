"""What a session host says about itself."""

from __future__ import annotations

import msgspec


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A running session host. `started` is Unix seconds, `rss` bytes, `idle` seconds until it would exit."""

    pid: int
    version: str
    protocol: int
    socket: str
    log: str
    started: float
    rss: int
    idle: float
    clients: int
    calls: int
    sessions: dict[str, int]
    """Open sessions by profile, with the number of front ends that use each."""
