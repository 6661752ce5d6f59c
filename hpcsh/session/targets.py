"""Targets: what sessions on the same machine share, which is one connection and one poller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from hpcsh.boundary.base import Boundary
from hpcsh.clock import Clock
from hpcsh.errors import HpcshError, TargetError
from hpcsh.profiles import Poll, Profile
from hpcsh.session.prepared import Environment, PreparedBoundary
from hpcsh.session.protocol import Ask
from hpcsh.slurm.cluster import Cluster


def check_lab(profile: Profile) -> None:
    """Raise `TargetError` for a lab that is down, with a fix that SSH's own words would not name."""
    name = profile.target.lab
    if name:
        from hpcsh.lab.paths import is_up

        if not is_up(name):
            raise TargetError(f"The lab {name!r} is not up.", fix=f"hpcsh lab up {name}")


def make_boundary(profile: Profile, ask: Ask) -> Boundary:
    """The boundary of a profile's target, not yet connected."""
    target = profile.target
    answers = cast("Callable[[str, bool], Awaitable[str]]", ask)
    if target.lab:
        from hpcsh.boundary.ssh import SSHBoundary
        from hpcsh.lab.paths import ssh_config

        config = str(ssh_config(target.lab))
        return SSHBoundary(f"hpcsh-lab-{target.lab}", ssh_config=config, python=target.python, ask=answers)
    if target.ssh:
        from hpcsh.boundary.ssh import SSHBoundary

        ssh = target.ssh
        return SSHBoundary(
            ssh.host, user=ssh.user, port=ssh.port, ssh_config=ssh.config, python=target.python, ask=answers
        )
    from hpcsh.boundary.local import LocalBoundary

    return LocalBoundary(name="this machine")


class Target:
    """One machine. Made without a connection; `open` connects, and again after a connection broke."""

    def __init__(self, profile: Profile, clock: Clock) -> None:
        self.key = profile.target.key()
        self.users = 0
        self._profile = profile
        self._clock = clock
        self._lock = asyncio.Lock()
        self._ask: Ask | None = None
        self._boundary: Boundary | None = None
        self._prepared: PreparedBoundary | None = None
        self._cluster: Cluster | None = None

    async def _question(self, prompt: str, echo: bool) -> str | None:
        """Ask whoever made the login necessary; None when nobody answers.

        That is no error here: SSH goes on with what needs none and names the question in the end.
        """
        try:
            return await self._ask(prompt, echo) if self._ask else None
        except (HpcshError, EOFError):
            return None

    async def open(self, ask: Ask | None) -> Boundary:
        """The connected boundary. `ask` answers what the login asks."""
        async with self._lock:
            if self._boundary is None:
                check_lab(self._profile)
                self._boundary = make_boundary(self._profile, self._question)
            self._ask = ask
            try:
                await self._boundary.open()
            except TargetError:
                check_lab(self._profile)
                raise
            return self._boundary

    def cluster(self, environment: Environment, poll: Poll) -> Cluster:
        """The one Slurm client of this target; the strictest floor of all its sessions counts.

        It asks in the environment of the first session that has one: where `squeue` only exists after a
        `module load`, any session whose `setup` does that provides it for all.
        """
        assert self._boundary is not None, "opened before"
        if self._prepared is None or self._cluster is None:
            self._prepared = PreparedBoundary(self._boundary, environment)
            self._cluster = Cluster(self._prepared, self._clock, floor=poll.floor, idle=poll.idle)
        elif not self._prepared.environment:
            self._prepared.environment = dict(environment)
        self._cluster.slow_down(poll.floor)
        return self._cluster

    async def close(self) -> None:
        """Disconnect."""
        async with self._lock:
            boundary, self._boundary, self._prepared, self._cluster = self._boundary, None, None, None
            if boundary:
                await boundary.close()


class Targets:
    """Every target in use, by key. Closed with its last user."""

    def __init__(self, clock: Clock, make: Callable[[Profile, Clock], Target] = Target) -> None:
        self._clock = clock
        self._make = make
        self._open: dict[str, Target] = {}

    def acquire(self, profile: Profile) -> Target:
        """The target of a profile, with one user more."""
        key = profile.target.key()
        target = self._open.get(key)
        if target is None:
            target = self._open[key] = self._make(profile, self._clock)
        target.users += 1
        return target

    async def release(self, target: Target) -> None:
        """One user less."""
        target.users -= 1
        if target.users == 0:
            if self._open.get(target.key) is target:
                del self._open[target.key]
            await target.close()
