"""The way into a session for every front end: attached to the session host, or in this process."""

from __future__ import annotations

import os

from hpcsh.session import Ask, Session

__all__ = ["connect"]


async def connect(profile: str, *, in_process: bool = False, ask: Ask | None = None) -> Session:
    """Open the session of a profile; the session host is started when none is running.

    With `in_process`, or `HPCSH_IN_PROCESS=1` in the environment, everything runs in this process and ends
    with it. `ask` answers what a login asks for (password, second factor). Raises `NotFoundError` or
    `UsageError` for the profile, `TargetError` when the host cannot be started or reached, `RefusedError`
    when a host of another version is in use.
    """
    if in_process or os.environ.get("HPCSH_IN_PROCESS", "") not in ("", "0"):
        from hpcsh.session import registry

        return await registry.in_process(profile, ask)
    from hpcsh.client.attached import AttachedSession

    session = AttachedSession(profile, ask)
    await session.attach()
    return session
