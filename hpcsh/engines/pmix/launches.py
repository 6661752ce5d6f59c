"""Launches through an environment: prun into its DVM, prterun beside it in its allocation."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from signal import SIGTERM

import msgspec

from hpcsh.boundary.base import Process
from hpcsh.engines.context import Context
from hpcsh.engines.pmix import exact, layout
from hpcsh.engines.pmix.commands import Command, launch_command, personality
from hpcsh.engines.pmix.environments import Environments, S
from hpcsh.engines.pmix.exact import Unmark
from hpcsh.engines.pmix.heads import Head, Heads
from hpcsh.engines.pmix.messages import (
    LAUNCHER_CODES,
    LOST,
    NOT_EXECUTABLE,
    NOT_FOUND,
    Place,
    Program,
    dvm_unreachable,
    explain,
    first_failure,
)
from hpcsh.engines.pmix.probing import look_at
from hpcsh.errors import HpcshError, TargetError, TimedOutError
from hpcsh.model import Environment, Kind, LaunchFrame, LaunchSpec, Plan, State, Workload

GRACE = 45.0
"""Seconds for which the launcher on the node may end ranks everywhere before it is killed itself."""

KEPT = 16384
"""Bytes of the output that are kept to tell why a launch failed."""


@dataclass
class Ended:
    """How a launch went so far."""

    code: int = 0
    last: bytearray = field(default_factory=bytearray)
    output: bool = False
    timed_out: bool = False

    def take(self, stream: int, data: bytes) -> None:
        """Keep what may explain a failure: PRRTE tells most on stream 2, wrong options on stream 1."""
        self.output = True
        if stream == 2 or not self.last:
            self.last += data[-KEPT:]
            del self.last[:-KEPT]

    @property
    def text(self) -> str:
        """The end of the output, mainly of standard error."""
        return self.last.decode("utf-8", "replace")


def finished(workload: Workload, code: int, now: float, message: str = "") -> Workload:
    """The workload of a launch that has ended with `code`."""
    state = State.SUCCEEDED if code == 0 else State.FAILED
    return msgspec.structs.replace(workload, state=state, exit_code=code, ended=now, message=message)


def started(spec: LaunchSpec, launch_id: str, environment: Environment, engine: str, now: float) -> Workload:
    """The workload of a launch that begins."""
    return Workload(
        id=launch_id,
        name=posixpath.basename(spec.program[0]),
        kind=Kind.LAUNCH,
        state=State.RUNNING,
        engine=engine,
        native_id=environment.native_id,
        environment=environment.name,
        nodes=",".join(environment.nodes),
        node_count=len(environment.nodes),
        image=spec.image or "",
        submitted=now,
        started=now,
    )


class Launches:
    """Launches of one context that go through our agent on an environment's first node."""

    def __init__(self, context: Context, environments: Environments, heads: Heads) -> None:
        self._c = context
        self._environments = environments
        self._heads = heads

    async def reach(self, name: str) -> tuple[Environment, Head]:
        """The environment and its agent. While the agent is open nobody is asked; else Slurm is."""
        known = self._environments.named(name)
        if known is None or known.state is not S.READY or not self._heads.known(known.id):
            known = await self._environments.require(name)
        return known, await self._heads.get(known)

    async def command(self, spec: LaunchSpec, head: Head, launch_id: str) -> Command:
        """The command line and environment of a launch on the first node."""
        uri = ""
        if spec.tool == "prun" and personality(spec.options) not in ("", "prte"):
            uri = head.uri or await head.read_uri(self._c.boundary)
        program = spec.program
        if exact.possible(spec.tool, spec.options, program):
            program = exact.wrapped(program, launch_id)
        command = launch_command(
            spec.tool, spec.options, program, launch_id=launch_id, uri_path=head.uri_path, uri=uri,
            map_by=self._c.profile.pmix.map_by,
        )  # fmt: skip
        env = dict(command.env)
        if spec.tool == "prterun":
            env.update(await head.job_environment())
        argv = ("bash", f"{head.place}/{layout.LAUNCH}", head.place, launch_id, *command.argv)
        return Command(argv, env)

    async def plan(self, spec: LaunchSpec) -> Plan:
        """The command line that would run on the first node, and where."""
        environment, head = await self.reach(spec.environment)
        command = await self.command(spec, head, self._c.new_id())
        nodes = ", ".join(environment.nodes)
        title = f"{spec.tool} in {environment.name}: on {head.facts.head} of {nodes} (job {head.facts.job})"
        return Plan(title=title, commands=(command.argv,))

    async def launch(self, spec: LaunchSpec, shown: LaunchSpec) -> AsyncIterator[LaunchFrame]:
        """Run and stream. `shown` is what the user asked for, `spec` the same with its image resolved."""
        environment, head = await self.reach(spec.environment)
        launch_id = self._c.new_id()
        workload = started(shown, launch_id, environment, self._c.profile.engine, self._c.clock.now())
        ended = Ended()
        async with contextlib.AsyncExitStack() as stack:
            process, head = await self._begin(stack, spec, environment, head, launch_id)
            yield LaunchFrame(workload=workload)
            try:
                async for stream, data in self._output(process, launch_id, spec.timeout, ended):
                    ended.take(stream, data)
                    yield LaunchFrame(stream=stream, data=data)
                ended.code = await process.wait()
            except TargetError as broken:
                raise await self._judged(broken, environment) from None
        error = await self._explain(shown, head, environment, ended)
        code = error.exit_code if error else ended.code
        words = error.what if error else first_failure(ended.text) if code else ""
        yield LaunchFrame(exit_code=code, workload=finished(workload, code, self._c.clock.now(), words))
        if error is not None:
            raise error

    async def _begin(
        self, stack: contextlib.AsyncExitStack, spec: LaunchSpec, environment: Environment, head: Head,
        launch_id: str,
    ) -> tuple[Process, Head]:  # fmt: skip
        """Start the launcher; once more through a new agent when the old one turns out to be gone.

        With an agent everything that it had started ends, so nothing runs twice.
        """
        for last in (False, True):
            command = await self.command(spec, head, launch_id)
            streams = head.boundary.stream(command.argv, env=command.env, cwd=spec.cwd, grace=GRACE)
            try:
                process = await stack.enter_async_context(streams)
                break
            except TargetError:
                await self._heads.drop(environment.id)
                await self._environments.require(environment.name)
                if last:
                    raise
                head = await self._heads.get(environment)
        with contextlib.suppress(HpcshError):
            await process.close_stdin()
        return process, head

    async def _output(
        self, process: Process, launch_id: str, timeout: float | None, ended: Ended
    ) -> AsyncIterator[tuple[int, bytes]]:
        """The output; when the time is up the launcher is told to end the ranks, and the rest is read."""
        unmark = Unmark(launch_id)
        alarm = asyncio.ensure_future(self._alarm(process, timeout, ended))
        try:
            async for stream, data in process.output():
                if data := unmark.feed(data) if stream == 1 else data:
                    yield stream, data
        finally:
            alarm.cancel()
        if data := unmark.rest():
            yield 1, data

    async def _alarm(self, process: Process, timeout: float | None, ended: Ended) -> None:
        if timeout is None:
            return
        await self._c.clock.sleep(timeout)
        ended.timed_out = True
        with contextlib.suppress(HpcshError):
            await process.signal(SIGTERM)

    async def _explain(
        self, spec: LaunchSpec, head: Head, environment: Environment, ended: Ended
    ) -> HpcshError | None:
        if ended.timed_out:
            return TimedOutError(f"The launch did not end within {spec.timeout:g} s and was ended.")
        if ended.code == 0:
            return None
        program = Program(spec.program[0], image=spec.image or "")
        if ended.code in LAUNCHER_CODES or ended.code in (NOT_EXECUTABLE, NOT_FOUND, 137):
            with contextlib.suppress(HpcshError):
                program = await look_at(head, spec.program, spec.cwd, spec.image or "")
        place = Place(environment.slots, environment.nodes, spec.options)
        error = explain(ended.code, ended.text, program, place, output=ended.output)
        if isinstance(error, TargetError):
            error = await self._judged(error, environment)
            ready = self._environments.named(environment.name)
            if ended.code == LOST and ready and ready.state is S.READY:
                return None  # the DVM is there: it was the program's own status
        return error

    async def _judged(self, error: TargetError, environment: Environment) -> TargetError:
        """The error of a connection that broke, with what has become of the environment."""
        await self._heads.drop(environment.id)
        now = await self._environments.look(environment, fresh=True)
        if now.state is S.READY:
            return error
        return dvm_unreachable(f"The environment {now.name!r} is {now.state}. {now.message}".strip())
