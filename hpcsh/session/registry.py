"""The sessions of a process: opened by profile name, shared by all who name the same profile."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from hpcsh.clock import Clock, SystemClock
from hpcsh.profiles import Profile, available, load
from hpcsh.session.engines import engine_class
from hpcsh.session.local import LocalSession, Shared
from hpcsh.session.protocol import Ask, Session
from hpcsh.session.targets import Targets
from hpcsh.store import Store

Signature = tuple[str, int, int, int]


def _signature(path: Path) -> Signature:
    facts = os.stat(path)
    return (str(path), facts.st_mtime_ns, facts.st_size, facts.st_ino)


class Sessions:
    """Every open session over one store.

    With `keep`, a session that nobody uses stays open, so that the next front end finds the login made and
    the snapshot taken. Otherwise a session is closed with its last user, and a target with its last session.
    """

    def __init__(self, store: Store, *, clock: Clock | None = None, keep: bool = False) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._keep = keep
        self._targets = Targets(self._clock)
        self._open: dict[str, Shared] = {}
        self._read: dict[str, Signature] = {}
        self._lock = asyncio.Lock()

    def users(self) -> dict[str, int]:
        """Profile name of every open session → number of its users."""
        return {name: shared.users for name, shared in self._open.items()}

    async def attach(self, name: str, ask: Ask | None = None) -> LocalSession:
        """Become a user of a profile's session.

        The profile is read again when its file changed and nobody uses the session. Raises what
        `profiles.load` and `engine_class` raise; the target is not touched.
        """
        async with self._lock:
            shared = self._open.get(name)
            if shared is None or (shared.users == 0 and self._changed(name)):
                profile = load(name)
                if shared is not None:
                    await self._close(name)
                shared = self._add(name, profile)
            shared.users += 1
            return LocalSession(shared, ask, lambda: self._leave(name, shared))

    def _add(self, name: str, profile: Profile) -> Shared:
        make = engine_class(profile.engine)
        self._read[name] = _signature(Path(profile.origin))
        shared = Shared(profile, make, self._targets.acquire(profile), self._store, self._clock)
        self._open[name] = shared
        return shared

    def _changed(self, name: str) -> bool:
        path = available().get(name)
        return path is None or _signature(path) != self._read[name]

    async def _leave(self, name: str, shared: Shared) -> None:
        async with self._lock:
            shared.users -= 1
            if shared.users == 0 and not self._keep and self._open.get(name) is shared:
                await self._close(name)

    async def _close(self, name: str) -> None:
        shared = self._open.pop(name)
        try:
            await shared.close()
        finally:
            await self._targets.release(shared.target)

    async def close(self) -> None:
        """Close every session, used or not."""
        async with self._lock:
            for name in list(self._open):
                await self._close(name)


_own: tuple[Sessions, Store] | None = None
_own_users = 0


async def in_process(name: str, ask: Ask | None = None) -> Session:
    """A session in this process, over a store opened for it; several share both.

    Raises `RefusedError` when another process (a session host) has the store.
    """
    global _own, _own_users
    if _own is None:
        store = Store()
        _own = (Sessions(store), store)
    sessions, store = _own
    _own_users += 1
    try:
        session = await sessions.attach(name, ask)
    except BaseException:
        await _leave_own()
        raise
    return _Own(session.shared, ask, session.close)


class _Own(LocalSession):
    """A session of this process; the last one to close closes the store."""

    async def close(self) -> None:
        open_until_now = self._closed is not None
        await super().close()
        if open_until_now:
            await _leave_own()


async def _leave_own() -> None:
    global _own, _own_users
    _own_users -= 1
    if _own_users == 0 and _own is not None:
        (sessions, store), _own = _own, None
        await sessions.close()
        store.close()
