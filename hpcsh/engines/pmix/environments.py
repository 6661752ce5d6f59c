"""Which environments there are, and in which state.

The store says which; the state is looked up, from Slurm and from the files that the allocation's own job
writes (design 6.1, 6.3). So nothing is lost with our process.
"""

from __future__ import annotations

import contextlib

import msgspec

from hpcsh.engines.context import Context
from hpcsh.engines.jobs import Jobs
from hpcsh.engines.pmix import layout
from hpcsh.engines.pmix.facts import parse_facts, parse_uri
from hpcsh.errors import HpcshError, NotFoundError, RefusedError
from hpcsh.events import EnvironmentChanged
from hpcsh.model import Environment, EnvironmentState, State, Workload

S = EnvironmentState
replace = msgspec.structs.replace


class Environments:
    """The environments of one context."""

    def __init__(self, context: Context, jobs: Jobs) -> None:
        self._c = context
        self._jobs = jobs

    def stored(self) -> list[Environment]:
        """This engine's environments on this target, as last seen."""
        mine = self._c.profile.engine
        return [e for e in self._c.store.environments(self._c.target) if e.engine == mine]

    def named(self, name: str) -> Environment | None:
        """One by its name; "" means "default"."""
        return next((e for e in self.stored() if e.name == (name or "default")), None)

    def save(self, environment: Environment, *, before: Environment | None = None) -> Environment:
        """Store a new state and tell who listens."""
        if environment != before:
            self._c.store.put_environment(self._c.target, environment)
            self._c.bus.publish(EnvironmentChanged(environment), self._c.clock.now())
        return environment

    async def status(self) -> list[Environment]:
        """Every environment as it is now."""
        known = self.stored()
        if not known:
            return []
        return [await self.look(e) for e in known]

    async def look(self, environment: Environment, *, fresh: bool = False) -> Environment:
        """An environment as it is now, stored when it changed.

        Slurm's word counts when it says that the job has ended; that it runs, its own files tell sooner.
        """
        snapshot = await self._jobs.snapshot(mine_only=True, fresh=fresh)
        job = next((w for w in snapshot.workloads if w.id == environment.id), None)
        found = await self._judge(environment, job)
        return self.save(found, before=environment)

    async def _judge(self, known: Environment, job: Workload | None) -> Environment:
        if job is None:
            return replace(known, state=S.DOWN, message="its job is gone")
        known = replace(
            known,
            native_id=job.native_id,
            ends=job.started + job.time_limit if job.started and job.time_limit else known.ends,
        )
        if job.state.terminal:
            failed = job.state is State.FAILED
            words = job.message or job.reason or "its job has ended"
            return replace(known, state=S.FAILED if failed else S.DOWN, message=words)
        if job.state is State.UNKNOWN:
            return replace(known, state=S.UNKNOWN, message=job.message)
        return await self._by_files(known, job)

    async def _by_files(self, known: Environment, job: Workload) -> Environment:
        place = f"{known.directory}/{layout.PLACE}"
        facts = uri = None
        with contextlib.suppress(NotFoundError):
            facts = parse_facts(await self._c.boundary.read(f"{place}/{layout.FACTS}"))
            uri = parse_uri(await self._c.boundary.read(f"{place}/{layout.URI}", limit=4096))
        if facts is None:
            waits = job.state in (State.PENDING, State.SUBMITTING)
            return replace(known, state=S.PENDING if waits else S.STARTING, message=job.message or job.reason)
        known = replace(known, nodes=facts.nodes, slots=facts.slots, message="", uri=f"{place}/{layout.URI}")
        if known.state is S.STOPPING:
            return known
        if uri is None and known.state is S.READY:
            return replace(known, state=S.STOPPING, message="the DVM has ended; its job is ending")
        return replace(known, state=S.STARTING if uri is None else S.READY)

    async def require(self, name: str) -> Environment:
        """The READY environment of this name, looked up. Raises what to do when there is none."""
        known = self.named(name)
        if known is None:
            raise self.absent(name)
        now = await self.look(known, fresh=True)
        if now.state is S.READY:
            return now
        raise RefusedError(
            f"The environment {now.name!r} is {now.state}.",
            why=now.message,
            fix="`hpcsh status` shows it" if now.state in (S.PENDING, S.STARTING)
            else f"`hpcsh down {now.name}`, then `hpcsh up -N 3`",
        )  # fmt: skip

    def absent(self, name: str) -> HpcshError:
        """The error for an environment that there is not."""
        others = ", ".join(e.name for e in self.stored())
        if others:
            what = f"There is no environment {name or 'default'!r}."
            return NotFoundError(what, why=f"There is: {others}.")
        return RefusedError("There is no DVM to launch into.", fix="`hpcsh up -N 3` starts one")

    def forget(self, environment: Environment) -> None:
        """An environment that holds nothing any more."""
        self._c.store.forget_environment(environment.id)
        gone = replace(environment, state=S.DOWN, message="")
        self._c.bus.publish(EnvironmentChanged(gone), self._c.clock.now())
