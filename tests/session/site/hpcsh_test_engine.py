"""A real engine without Slurm: workloads are processes on this machine, started through the boundary.

A test uses what a front end can: `launch` runs a program, `submit` starts one that goes on by itself,
`plan` of the name `raise:KIND` fails with that kind of error, `up` of `hang` never gets ready.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from hpcsh import errors, profiles
from hpcsh.boundary.base import Boundary
from hpcsh.boundary.local import LocalBoundary
from hpcsh.engines.context import Context
from hpcsh.events import WorkloadChanged
from hpcsh.model import (
    CleanItem,
    Detail,
    Environment,
    Finding,
    Image,
    Kind,
    LaunchFrame,
    LaunchSpec,
    LogChunk,
    LogOptions,
    Node,
    Plan,
    Progress,
    Report,
    Severity,
    Snapshot,
    State,
    SubmitSpec,
    UpSpec,
    Workload,
)
from hpcsh.profiles import Profile
from hpcsh.session import engines, targets
from hpcsh.store import Record

TERMINAL = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class LocalProcesses:
    name = "local_processes"
    capabilities = frozenset({"submit", "ps", "show", "logs", "wait", "cancel", "clean", "prterun", "doctor"})

    def __init__(self, context: Context) -> None:
        self.context = context
        self.boundary = context.boundary

    async def open(self) -> None:
        self.opened = True

    async def close(self) -> None:
        self.opened = False

    async def doctor(self) -> list[Finding]:
        done = await self.boundary.run(["bash", "-c", "echo ${HPCSH_SETUP_SAYS-nothing}"], timeout=10)
        return [Finding(id="local.shell", severity=Severity.OK, what=done.text.strip())]

    async def nodes(self) -> list[Node]:
        done = await self.boundary.run(["uname", "-n"], timeout=10)
        return [Node(name=done.text.strip(), state="up")]

    async def plan(self, spec: SubmitSpec) -> Plan:
        what, _, kind = (spec.name or "").partition(":")
        if what == "raise":
            raise errors.rebuild(kind, f"what of {kind}", "why", "fix", 7)
        if what == "bug":
            raise KeyError("a bug")
        return Plan(title="plan", commands=(spec.command,))

    async def submit(self, spec: SubmitSpec) -> Workload:
        workload_id = self.context.new_id()
        directory = f"{await self.boundary.home()}/jobs/{workload_id}"
        record = Record(
            id=workload_id, profile=self.context.profile.name, target=self.context.target, engine=self.name,
            kind=Kind.JOB, name=spec.name or spec.command[0], phase="intent",
            created=self.context.clock.now(), directory=directory,
        )  # fmt: skip
        self.context.store.commit_intent(record)
        await self.boundary.mkdir(directory)
        script = 'cd "$1"; shift; "$@" >log 2>&1 & echo $!; wait $!; echo $? >exit'
        words = shlex.join([script, "run", directory, *spec.command])
        line = f"setsid bash -c {words} >{directory}/pid &"
        (await self.boundary.run(["bash", "-c", line], timeout=10)).check("not started")
        while not (pid := (await self.boundary.read(f"{directory}/pid")).strip()):
            await asyncio.sleep(0.01)
        record.native_id, record.phase = pid.decode(), "submitted"
        self.context.store.save(record)
        workload = await self._look(record)
        self.context.bus.publish(WorkloadChanged(workload), self.context.clock.now())
        return workload

    async def _look(self, record: Record) -> Workload:
        state, code = State.RUNNING, None
        if await self.boundary.stat(f"{record.directory}/exit"):
            code = int(await self.boundary.read(f"{record.directory}/exit") or b"0")
            state = State.FAILED if code else State.SUCCEEDED
        return Workload(
            id=record.id, name=record.name, kind=Kind.JOB, state=state, exit_code=code, engine=self.name,
            native_id=record.native_id, directory=record.directory, submitted=record.created,
        )  # fmt: skip

    def _record(self, ref: str) -> Record:
        record = self.context.store.get(ref)
        if record is None:
            raise errors.NotFoundError(
                f"There is no workload {ref!r}.", why="looked everywhere", fix="hpcsh ps"
            )
        return record

    async def workloads(self, *, mine_only: bool = False, fresh: bool = False) -> Snapshot:
        records = self.context.store.records(self.context.target)
        found = tuple([await self._look(record) for record in records if record.phase == "submitted"])
        return Snapshot(workloads=found, as_of=self.context.clock.now())

    async def show(self, ref: str) -> Detail:
        return Detail(workload=await self._look(self._record(ref)), as_of=self.context.clock.now())

    async def logs(self, ref: str, options: LogOptions) -> AsyncIterator[LogChunk]:
        record = self._record(ref)
        async for piece in self.boundary.follow(f"{record.directory}/log", to_end=not options.follow):
            if piece.data:
                yield LogChunk("", piece.data)

    async def wait(self, refs: Sequence[str], *, timeout: float | None = None) -> list[Workload]:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    found = [await self._look(self._record(ref)) for ref in refs]
                    if all(w.state in TERMINAL for w in found):
                        return found
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise errors.TimedOutError("not all have ended") from None

    async def cancel(self, refs: Sequence[str]) -> Report:
        for ref in refs:
            await self.boundary.run(["kill", self._record(ref).native_id], timeout=10)
        return Report(done=tuple(refs))

    async def clean_plan(self, *, everything: bool = False) -> list[CleanItem]:
        records = self.context.store.records(self.context.target)
        return [CleanItem(kind="directory", target=record.id, detail=record.directory) for record in records]

    async def clean(self, items: Sequence[CleanItem]) -> Report:
        for item in items:
            await self.boundary.remove(item.detail, recursive=True)
            self.context.store.forget(item.target)
        return Report(done=tuple(item.target for item in items))

    async def pull(self, references: Sequence[str]) -> AsyncIterator[Progress]:
        for number, reference in enumerate(references, 1):
            yield Progress(step=reference, status="done", done=number, total=len(references))

    async def images(self) -> list[Image]:
        return []

    async def plan_up(self, spec: UpSpec) -> Plan:
        return Plan(title=f"up {spec.name}", commands=(("sbatch", *spec.resources.flags),))

    async def up(self, spec: UpSpec) -> AsyncIterator[Progress]:
        yield Progress(step="start", status="start")
        if spec.name == "hang":
            await self.boundary.run(["sleep", "4711"], timeout=4711)

    async def down(self, name: str) -> AsyncIterator[Progress]:
        yield Progress(step=name, status="done")

    async def environments(self) -> list[Environment]:
        return self.context.store.environments(self.context.target)

    async def plan_launch(self, spec: LaunchSpec) -> Plan:
        return Plan(title=spec.tool, commands=((*spec.options, *spec.program),))

    async def launch(self, spec: LaunchSpec) -> AsyncIterator[LaunchFrame]:
        async with self.boundary.stream(spec.program, cwd=spec.cwd) as process:
            yield LaunchFrame(data=str(process.pid).encode())
            async for stream, data in process.output():
                yield LaunchFrame(stream=stream, data=data)
            yield LaunchFrame(exit_code=await process.wait())


class AskingBoundary(LocalBoundary):
    """This machine behind a login that asks for a password, as SSH does when it connects."""

    def __init__(self, ask: Callable[[str, bool], Awaitable[str | None]]) -> None:
        super().__init__(name="asking")
        self._ask = ask
        self._let_in = False

    async def open(self) -> None:
        if not self._let_in:
            answer = await self._ask("Password: ", False)
            if answer is None:
                raise errors.TargetError("The login asks 'Password:', and nobody answers.")
            if answer != "sesame":
                raise errors.TargetError("Permission denied.", why="wrong password", fix="try again")
            self._let_in = True
        await super().open()


def register() -> None:
    engines.ENGINES["local_processes"] = "hpcsh_test_engine:LocalProcesses"
    if "local_processes" not in profiles.ENGINES:
        profiles.ENGINES = (*profiles.ENGINES, "local_processes")  # type: ignore[assignment]
        real = targets.make_boundary

        def make(profile: Profile, ask: Callable[[str, bool], Awaitable[str | None]]) -> Boundary:
            asks = profile.target.ssh and profile.target.ssh.host == "asks"
            return AskingBoundary(ask) if asks else real(profile, ask)

        targets.make_boundary = make
