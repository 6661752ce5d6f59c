"""Starting and ending environments: allocate, start the DVM, prove it; end it and leave nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

import msgspec

from hpcsh.engines.context import Context
from hpcsh.engines.jobs import Jobs, JobSpec, Staged
from hpcsh.engines.jobs.watching import Watch
from hpcsh.engines.pmix import layout
from hpcsh.engines.pmix.commands import dvm_argv, even, mca_variables
from hpcsh.engines.pmix.environments import Environments, S, replace
from hpcsh.engines.pmix.heads import Heads
from hpcsh.engines.pmix.messages import dvm_log, start_failure
from hpcsh.engines.pmix.probing import end_dvm, prove
from hpcsh.engines.pmix.starting import Starting
from hpcsh.errors import (
    CommandError,
    HpcshError,
    NotFoundError,
    RefusedError,
    TimedOutError,
    UnknownOutcomeError,
    UsageError,
)
from hpcsh.model import CleanItem, Environment, Kind, Plan, Progress, Resources, UpSpec

T = TypeVar("T")

END_TIMEOUT = 150.0
"""Seconds that a cancelled job is given to be gone; Slurm's own KillWait is 30 by default."""

PTERM_TIMEOUT = 10.0
LOG = "job.out"
ASKED = "asked"
"""Where a record keeps the resources that `up` asked for."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


async def settled(work: Awaitable[T]) -> T:
    """Carry clean-up to its end even when we are cancelled meanwhile; the cancellation comes after it."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = not task.cancelled()
        except HpcshError:
            break
    if cancelled:
        raise asyncio.CancelledError
    return task.result()


class Lifecycle:
    """`up` and `down` of one context."""

    def __init__(self, context: Context, jobs: Jobs, environments: Environments, heads: Heads) -> None:
        self._c = context
        self._jobs = jobs
        self._environments = environments
        self._heads = heads
        self._busy: set[str] = set()
        self._starting: dict[str, Starting] = {}

    async def job(self, spec: UpSpec, workload_id: str) -> JobSpec:
        """The job of an environment. Raises `UsageError` for bad input; changes nothing."""
        if not _NAME.match(spec.name):
            raise UsageError(f"{spec.name!r} is no name for an environment.")
        directory = await self._jobs.directory(workload_id)
        uri = f"{directory}/{layout.PLACE}/{layout.URI}"
        mca = mca_variables(self._c.profile.pmix.mca)
        staged = {
            layout.ARGV: layout.words(dvm_argv(uri)),
            layout.ENV: layout.assignments(mca),
            layout.LAUNCH: layout.script("launch.sh"),
            layout.SWEEP: layout.script("sweep.sh"),
        }
        return JobSpec(
            id=workload_id,
            name="dvm" if spec.name == "default" else f"dvm-{spec.name}",
            kind=Kind.ALLOCATION,
            resources=even(spec.resources, self._c.profile.resources),
            body=layout.dvm_body(),
            files=tuple(Staged(f"{layout.PLACE}/{name}", data) for name, data in staged.items()),
            output=LOG,
            inherit_env=self._c.profile.inherit_env,
            extra={"environment": spec.name, ASKED: msgspec.to_builtins(spec.resources)},
        )

    async def plan(self, spec: UpSpec) -> Plan:
        """The job that `up` would submit; changes nothing."""
        plan = await self._jobs.plan(await self.job(spec, self._c.new_id()))
        return replace(plan, title=f"up {spec.name}")

    async def up(self, spec: UpSpec) -> AsyncIterator[Progress]:
        """Start an environment, or go on waiting for one that an earlier process had begun to start."""
        self._claim(spec.name)
        starting = self._starting[spec.name] = Starting(spec.name, lambda s: self._start(spec, s))
        try:
            async for progress in starting.progress():
                yield progress
        except (RefusedError, UsageError, UnknownOutcomeError):
            raise
        except BaseException:
            if not starting.taken:
                await settled(self._give_up(starting))
            raise
        finally:
            if self._starting.get(spec.name) is starting:
                del self._starting[spec.name]
                self._busy.discard(spec.name)

    def _claim(self, name: str) -> None:
        if name in self._starting:
            raise RefusedError(
                f"The environment {name!r} is just being started.",
                fix=f"wait until it is ready (`hpcsh status`), or end it with `hpcsh down {name}`",
            )
        if name in self._busy:
            raise RefusedError(
                f"The environment {name!r} is just being ended.",
                fix="try again when `hpcsh status` does not show it any more",
            )
        self._busy.add(name)

    async def _start(self, spec: UpSpec, starting: Starting) -> None:
        environment = await self._begun(spec) or await self._submit(spec)
        starting.submitted(environment)
        starting.tell(Progress(step="allocation", status="start", message=f"job {environment.native_id}"))
        async for progress in self._come_up(environment):
            starting.tell(progress)

    async def _give_up(self, starting: Starting) -> None:
        await starting.end()
        if starting.environment is not None:
            await self._remove(starting.environment)

    async def _begun(self, spec: UpSpec) -> Environment | None:
        """What there is already by this name: refused when it stands, gone on with when it comes."""
        known = self._environments.named(spec.name)
        if known is None:
            return None
        now = await self._environments.look(known, fresh=True)
        if now.state in (S.PENDING, S.STARTING):
            self._same(spec, now)
            return now
        if now.state in (S.DOWN, S.FAILED, S.STOPPING):
            await self._remove(now)
            return None
        if now.state is S.READY:
            raise RefusedError(
                f"The environment {now.name!r} is up already: {len(now.nodes)} nodes, job {now.native_id}.",
                fix=f"use it, or `hpcsh down {now.name}` first, or give another name: `hpcsh up NAME`",
            )
        what = f"The environment {now.name!r} is {now.state}."
        raise RefusedError(what, why=now.message, fix="try again soon")

    def _same(self, spec: UpSpec, now: Environment) -> None:
        """Refuse to go on waiting for something else than what is asked for."""
        record = self._c.store.get(now.id)
        if record is None or ASKED not in record.extra:
            return
        before = msgspec.convert(record.extra[ASKED], Resources)
        if before != spec.resources:
            raise RefusedError(
                f"The environment {now.name!r} is {now.state} already, with other resources.",
                why=f"Job {now.native_id} has {_words(before)}; now asked for: {_words(spec.resources)}.",
                fix=f"ask for the same to wait for it, or `hpcsh down {now.name}` first",
            )

    async def _submit(self, spec: UpSpec) -> Environment:
        workload_id = self._c.new_id()
        job = await self.job(spec, workload_id)
        environment = Environment(
            id=workload_id, name=spec.name, engine=self._c.profile.engine, state=S.PENDING,
            created=self._c.clock.now(), directory=await self._jobs.directory(workload_id),
        )  # fmt: skip
        # Before the job: if we are killed in between, the job is still known as this environment's.
        self._environments.save(environment)
        try:
            workload = await self._jobs.submit(job)
        except UnknownOutcomeError:
            raise
        except BaseException:
            if self._c.store.get(workload_id) is None:
                self._c.store.forget_environment(workload_id)
            raise
        return self._environments.save(replace(environment, native_id=workload.native_id))

    async def _come_up(self, environment: Environment) -> AsyncIterator[Progress]:
        """Progress from the queue to READY; raises when it ends before, or takes too long once it runs."""
        clock, limit = self._c.clock, self._c.profile.pmix.start_timeout
        began = clock.now()
        deadline: float | None = None
        said = ""
        async with Watch(self._c, [environment.directory]) as watch:
            while True:
                asked = clock.now()
                environment = await self._environments.look(environment)
                if environment.state in (S.DOWN, S.FAILED):
                    raise await self._why(environment)
                if environment.nodes and deadline is None:
                    deadline = clock.now() + limit
                    yield _step("allocation", began, clock.now(), "done", ", ".join(environment.nodes))
                    began = clock.now()
                    self._open_soon(environment)
                if environment.state is S.READY:
                    break
                words = environment.message if environment.state is S.PENDING else ""
                if deadline is None and words != said:
                    said = words
                    yield Progress(step="allocation", message=words)
                left = None if deadline is None else deadline - clock.now()
                if left is not None and left <= 0:
                    log = await self._log(environment)
                    raise TimedOutError(f"The DVM did not start within {limit:g} s.", why=log)
                await watch.news(asked, left)
        yield _step("daemons", began, clock.now(), "running")
        head = await self._heads.get(environment)
        await prove(head, self._c.boundary, environment, limit)
        yield _step("daemons", began, clock.now(), "done", f"{len(environment.nodes)} nodes answered")
        slots = f"{environment.slots} slot{'s' if environment.slots != 1 else ''}"
        yield Progress(step="ready", status="done", message=f"{environment.name}: {slots}")

    def _open_soon(self, environment: Environment) -> None:
        """Begin to open our agent while the daemons start; errors are told by who uses it."""
        task = asyncio.ensure_future(self._heads.get(environment))
        task.add_done_callback(lambda t: None if t.cancelled() else t.exception())

    async def _log(self, environment: Environment) -> str:
        try:
            data = await self._c.boundary.read(f"{environment.directory}/{LOG}", offset=-16384)
        except (NotFoundError, CommandError):
            return ""
        return dvm_log(data)

    async def _why(self, environment: Environment) -> HpcshError:
        log = await self._log(environment)
        error = start_failure(log)
        words = environment.message
        if words and words not in error.why:
            error.why = f"{words}\n{error.why}".strip()
        return error

    async def down(self, name: str) -> AsyncIterator[Progress]:
        """End an environment: pterm, scancel, wait until the job is gone, remove its files, forget it.

        An `up` of it that is under way in this process ends with an error that says so.
        """
        name = name or "default"
        gone = Progress(step="down", status="done", message=f"{name} is not up")
        starting = self._starting.pop(name, None)
        if starting is None:
            if self._environments.named(name) is None:
                yield gone
                return
            self._claim(name)
        try:
            if starting is not None:
                await settled(starting.take())
                yield Progress(step="up", status="done", message=f"the `up` of {name} that was under way")
            known = self._environments.named(name)
            if known is None:
                yield gone
                return
            async for progress in self._end(known):
                yield progress
        finally:
            self._busy.discard(name)

    async def _end(self, known: Environment) -> AsyncIterator[Progress]:
        clock = self._c.clock
        now = await self._environments.look(known, fresh=True)
        if now.state is S.READY:
            began = clock.now()
            now = self._environments.save(replace(now, state=S.STOPPING))
            yield Progress(step="daemons", status="start", message="ending the DVM")
            said = await self._pterm(now)
            yield _step("daemons", began, clock.now(), "done" if not said else "info", said)
        began = clock.now()
        yield Progress(step="allocation", status="start", message=f"releasing job {now.native_id or '?'}")
        await self._remove(now)
        yield _step("allocation", began, clock.now(), "done", "released")

    async def _pterm(self, environment: Environment) -> str:
        """Ask the DVM to end; why it could not be asked, or ""."""
        try:
            async with asyncio.timeout(PTERM_TIMEOUT):
                return await end_dvm(await self._heads.get(environment))
        except (HpcshError, TimeoutError) as error:
            return str(error).splitlines()[0] if str(error) else "it did not answer"

    async def _remove(self, environment: Environment) -> None:
        """Cancel the job, wait until it is gone, remove its files, forget it. Harmless when it is gone."""
        await self._heads.drop(environment.id)
        if self._c.store.get(environment.id) is not None:
            item = CleanItem(kind="job", target=environment.id)
            try:
                async with asyncio.timeout(END_TIMEOUT):
                    report = await self._jobs.clean([item])
            except TimeoutError:
                job = f"job {environment.native_id or 'not known'}"
                self._environments.save(replace(environment, state=S.UNKNOWN, message=f"{job} does not end"))
                raise TimedOutError(
                    f"The environment {environment.name!r} is not released: {job} did not end"
                    f" within {END_TIMEOUT:g} s.",
                    fix=f"look at it with `squeue`, then `hpcsh down {environment.name}` again",
                ) from None
            if report.failed:
                why = "; ".join(why for _, why in report.failed)
                self._environments.save(replace(environment, state=S.UNKNOWN, message=why))
                raise CommandError(
                    f"The environment {environment.name!r} is not released.", why=why,
                    fix=f"`hpcsh down {environment.name}` again; job {environment.native_id}",
                )  # fmt: skip
        self._environments.forget(environment)


def _step(step: str, began: float, now: float, status: str, message: str = "") -> Progress:
    return Progress(step=step, status=status, message=message, seconds=now - began)


def _words(resources: Resources) -> str:
    said = msgspec.to_builtins(resources)
    flags = said.pop("flags", ())
    return " ".join((*(f"{name}={value}" for name, value in said.items()), *flags)) or "the profile's"
