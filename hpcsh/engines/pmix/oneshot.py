"""A prterun in a Slurm job of its own: submitted at most once, its output streamed, its end ours."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from collections.abc import AsyncIterator, Mapping

from hpcsh.engines.context import Context
from hpcsh.engines.jobs import Jobs, JobSpec, Mark, Staged
from hpcsh.engines.jobs.logs import LogReader, Source
from hpcsh.engines.jobs.types import parse_marks
from hpcsh.engines.jobs.watching import Watch
from hpcsh.engines.pmix import layout
from hpcsh.engines.pmix.commands import launch_command, mca_variables
from hpcsh.engines.pmix.launches import Ended, finished
from hpcsh.engines.pmix.lifecycle import END_TIMEOUT, settled
from hpcsh.engines.pmix.messages import Program, explain, first_failure
from hpcsh.errors import CommandError, HpcshError, NotFoundError, TimedOutError
from hpcsh.model import Kind, LaunchFrame, LaunchSpec, Plan, Workload

LAG = 10.0
"""Seconds that a network file system may take to show what was written before the job's last mark."""


def log_files(directory: str) -> dict[str, str]:
    """The two files that the program's output goes to, by the name under which `logs` shows them."""
    place = f"{directory}/{layout.ONE_SHOT}"
    return {layout.OUT: f"{place}/{layout.OUT}", layout.ERR: f"{place}/{layout.ERR}"}


class OneShot:
    """One-shot launches of one context."""

    def __init__(self, context: Context, jobs: Jobs) -> None:
        self._c = context
        self._jobs = jobs

    def job(self, spec: LaunchSpec, shown: LaunchSpec, workload_id: str) -> JobSpec:
        """The job of a launch. Raises `UsageError` for bad input; changes nothing."""
        command = launch_command(
            "prterun", spec.options, spec.program, launch_id=workload_id, map_by=self._c.profile.pmix.map_by
        )
        mca: Mapping[str, str] = mca_variables(self._c.profile.pmix.mca)
        staged = {layout.ARGV: layout.words(command.argv), layout.ENV: layout.assignments(mca)}
        return JobSpec(
            id=workload_id,
            name=posixpath.basename(shown.program[0]) or "prterun",
            kind=Kind.LAUNCH,
            resources=spec.resources,
            body=layout.one_shot_body(),
            files=tuple(Staged(f"{layout.ONE_SHOT}/{name}", data) for name, data in staged.items()),
            cwd=spec.cwd,
            inherit_env=self._c.profile.inherit_env,
            extra={"image": shown.image or ""},
        )

    async def plan(self, spec: LaunchSpec, shown: LaunchSpec) -> Plan:
        """The job that would be submitted; its last command is the one that the job runs."""
        job = self.job(spec, shown, self._c.new_id())
        plan = await self._jobs.plan(job)
        inner = tuple(job.files[0].data.decode("utf-8", "surrogateescape").split("\0")[:-1])
        return Plan(
            title=f"prterun in a job of its own: {job.name}", commands=(*plan.commands, inner),
            script=plan.script, files=plan.files, warnings=plan.warnings,
        )  # fmt: skip

    async def launch(self, spec: LaunchSpec, shown: LaunchSpec) -> AsyncIterator[LaunchFrame]:
        """Submit, stream the output, pass on the exit code; the job ends with its caller."""
        workload = await self._jobs.submit(self.job(spec, shown, self._c.new_id()))
        over = False
        try:
            yield LaunchFrame(data=f"job {workload.native_id}\n".encode(), workload=workload)
            ended = Ended()
            async for frame in self._stream(workload, ended, spec.timeout):
                yield frame
            over = not ended.timed_out
        finally:
            if not over:
                await settled(self._cancel(workload.id))
        error = self._explain(shown, ended)
        code = error.exit_code if error else ended.code
        words = error.what if error else first_failure(ended.text) if code else ""
        yield LaunchFrame(exit_code=code, workload=finished(workload, code, self._c.clock.now(), words))
        if error is not None:
            raise error

    async def _stream(
        self, workload: Workload, ended: Ended, timeout: float | None
    ) -> AsyncIterator[LaunchFrame]:
        paths = log_files(workload.directory)
        sources = [Source("", paths[layout.OUT], 1), Source("", paths[layout.ERR], 2)]
        reader = LogReader(self._c.boundary, sources, None)
        await reader.begin()
        sizes: list[int] = []

        async def end() -> None:
            sizes[:] = await self._ended(workload, ended, timeout)

        async for chunk in reader.follow(end):
            ended.take(chunk.stream, chunk.data)
            yield LaunchFrame(stream=chunk.stream, data=chunk.data)
        await self._arrived(paths, sizes)
        async for chunk in reader.rest():
            ended.take(chunk.stream, chunk.data)
            yield LaunchFrame(stream=chunk.stream, data=chunk.data)

    async def _ended(self, workload: Workload, ended: Ended, timeout: float | None) -> list[int]:
        """Wait for the end; the sizes of the output files as the job saw them, or nothing.

        The job's own mark tells sooner than Slurm; a job that left none ended by other means. The time limit
        counts from the job's start, not while it is pending.
        """
        async with Watch(self._c, [workload.directory]) as watch:
            left = None
            while True:
                asked = self._c.clock.now()
                marks = await self._marks(workload.directory)
                if timeout is not None and marks:
                    left = marks[0].at + timeout - asked
                    if left <= 0:
                        ended.timed_out = True
                        return []
                mark = next((m for m in reversed(marks) if m.what == "launch-end"), None)
                if mark is not None:
                    ended.code = int(mark.who) if mark.who.isdigit() else 1
                    return [int(size) for size in mark.value.split() if size.isdigit()]
                snapshot = await self._jobs.snapshot(mine_only=True)
                now = next((w for w in snapshot.workloads if w.id == workload.id), None)
                if now is None or now.state.terminal:
                    raise_for(now)
                    ended.code = 1 if now is None or not now.exit_code else now.exit_code
                    return []
                await watch.news(asked, left)

    async def _marks(self, directory: str) -> list[Mark]:
        try:
            return parse_marks(await self._c.boundary.read(f"{directory}/marks"))
        except NotFoundError:
            return []

    async def _arrived(self, paths: Mapping[str, str], sizes: list[int]) -> None:
        """Wait until the files are as long as the job saw them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAG):
                for path, size in zip(paths.values(), sizes, strict=False):
                    while (info := await self._c.boundary.stat(path)) is None or info.size < size:
                        await self._c.clock.sleep(0.2)

    async def _cancel(self, workload_id: str) -> None:
        """scancel, and wait until the job is gone: no rank is left then."""
        report = await self._jobs.cancel([workload_id])
        if report.failed:
            raise CommandError("The launch's job could not be cancelled.", why=report.failed[0][1])
        await self._jobs.wait([workload_id], timeout=END_TIMEOUT)

    def _explain(self, spec: LaunchSpec, ended: Ended) -> HpcshError | None:
        if ended.timed_out:
            return TimedOutError(f"The launch did not end within {spec.timeout:g} s; its job was cancelled.")
        if ended.code == 0:
            return None
        program = Program(spec.program[0], image=spec.image or "")
        return explain(ended.code, ended.text, program, output=ended.output)


def raise_for(workload: Workload | None) -> None:
    """Tell why a job ended before its launch did: cancelled, out of time, its node gone."""
    if workload is None:
        raise CommandError("The launch's job was removed while it ran.")
    why = workload.message or workload.reason or workload.native_state
    raise CommandError(
        f"The launch's job {workload.native_id} ended before the program did.",
        why=why,
        exit_code=workload.exit_code or 1,
        fix=f"`hpcsh show {workload.id}` and `hpcsh logs {workload.id}`",
    )
