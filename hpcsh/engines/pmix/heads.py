"""Our agents on the first nodes of allocations: one step each, kept open, so that a launch costs a spawn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from hpcsh.boundary.base import Boundary, Completed
from hpcsh.boundary.nested import NestedBoundary
from hpcsh.engines.context import Context
from hpcsh.engines.pmix import layout
from hpcsh.engines.pmix.commands import head_argv
from hpcsh.engines.pmix.facts import Facts, parse_facts, parse_uri, step_environment
from hpcsh.engines.pmix.messages import dvm_unreachable
from hpcsh.errors import HpcshError, NotFoundError, TimedOutError
from hpcsh.model import Environment

OPEN_TIMEOUT = 30.0


@dataclass
class Head:
    """The first node of one allocation. `place` is the directory of the DVM's files."""

    boundary: Boundary
    facts: Facts
    place: str
    uri: str = ""
    _job_env: dict[str, str | None] = field(default_factory=dict)

    @property
    def uri_path(self) -> str:
        """The DVM's URI file."""
        return f"{self.place}/{layout.URI}"

    async def read_uri(self, outer: Boundary) -> str:
        """The DVM's URI. Raises `TargetError` when the DVM has none (any more)."""
        try:
            uri = parse_uri(await outer.read(self.uri_path, limit=4096))
        except NotFoundError:
            uri = None
        if uri is None:
            raise dvm_unreachable()
        self.uri = uri.text
        return self.uri

    async def job_environment(self) -> Mapping[str, str | None]:
        """What to lay over a command so that it sees the whole allocation and not our step."""
        if not self._job_env:
            step = await self.boundary.run(["env", "-0"], timeout=OPEN_TIMEOUT)
            job = await self.boundary.read(f"{self.place}/{layout.JOB_ENV}")
            self._job_env = step_environment(
                layout.parse_assignments(step.stdout), layout.parse_assignments(job)
            )
        return self._job_env

    async def run(self, argv: list[str], *, timeout: float, **more: str | None) -> Completed:
        """A short command on the first node."""
        return await self.boundary.run(argv, env=more, timeout=timeout)


class Heads:
    """The open agents by environment."""

    def __init__(self, context: Context) -> None:
        self._c = context
        self._open: dict[str, asyncio.Task[Head]] = {}

    def known(self, environment_id: str) -> bool:
        """True when an agent was opened for it; it reconnects by itself while the allocation lives."""
        task = self._open.get(environment_id)
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    async def get(self, environment: Environment) -> Head:
        """The agent of an environment, opened when there is none. All who ask meanwhile share one opening."""
        task = self._open.get(environment.id)
        if task is None or (task.done() and not self.known(environment.id)):
            task = self._open[environment.id] = asyncio.create_task(self._start(environment))
        return await asyncio.shield(task)

    async def _start(self, environment: Environment) -> Head:
        place = f"{environment.directory}/{layout.PLACE}"
        facts = parse_facts(await self._c.boundary.read(f"{place}/{layout.FACTS}"))
        if facts is None:
            raise NotFoundError(f"The environment {environment.name!r} has not told its nodes yet.")
        name = f"{facts.head} (job {facts.job})"
        boundary = NestedBoundary(
            self._c.boundary, head_argv(facts.job, facts.head), name, python=self._c.profile.target.python
        )
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await boundary.open()
        except BaseException as error:
            await boundary.close()
            if isinstance(error, TimeoutError):
                raise TimedOutError(
                    f"No step could be started on {facts.head} within {OPEN_TIMEOUT:g} s.",
                    fix=f"does `srun --jobid={facts.job} --overlap -N1 hostname` work on the login node?",
                ) from None
            raise
        return Head(boundary, facts, place)

    async def close(self) -> None:
        """Close all agents."""
        for environment_id in list(self._open):
            await self.drop(environment_id)

    async def drop(self, environment_id: str) -> None:
        """Close an environment's agent, and with it the launches that run through it."""
        task = self._open.pop(environment_id, None)
        if task is None:
            return
        if not task.done():
            task.cancel()
        with contextlib.suppress(HpcshError, asyncio.CancelledError):
            head = await asyncio.shield(task)
            await head.boundary.close()
