"""Where the logs of a workload lie on the target."""

from __future__ import annotations

from collections.abc import Callable

from hpcsh.engines.context import Context
from hpcsh.engines.jobs.files import Files
from hpcsh.engines.jobs.records import facts
from hpcsh.model import Workload
from hpcsh.slurm.script import expand_output
from hpcsh.store import Record

LogFiles = Callable[[Record, Workload], dict[str, str]]
"""An engine's log files by container."""


class Outputs:
    """Finds them."""

    def __init__(self, context: Context, files: Files) -> None:
        self._c = context
        self._files = files

    async def sources(self, workload: Workload, files: LogFiles | None) -> dict[str, str]:
        """Log files by container; "" is the job's own output."""
        record = self._c.store.get(workload.id) if workload.ours else None
        if record is not None and files is not None and record.engine == self._c.profile.engine:
            return files(record, workload)
        return {"": await self._output(workload, record)}

    async def _output(self, workload: Workload, record: Record | None) -> str:
        """The path of a job's own output: from its start mark, else from Slurm's pattern."""
        pattern = directory = ""
        if record is not None:
            pattern = str(facts(record).get("stdout", ""))
            if pattern == f"{record.directory}/job.out":
                return pattern
            marks = (await self._files.marks([record.directory]))[record.directory]
            start = next((m for m in marks if m.what == "start"), None)
            if start and start.value.startswith("/"):
                return start.value.removesuffix(" (deleted)")
        queue = await self._c.cluster.queue()
        job = queue.jobs.get(workload.native_id)
        if job is not None:
            pattern, directory = job.extra.get("stdout", "") or pattern, job.directory
        if not pattern:
            told = dict(await self._c.cluster.facts(workload.native_id)) if workload.native_id else {}
            pattern = told.get("StdOut") or (
                "slurm-%A_%a.out" if "_" in workload.native_id else "slurm-%j.out"
            )
            directory = told.get("WorkDir", "")
        return expand_output(
            pattern,
            job=workload.native_id,
            raw=(job.extra.get("raw") if job else "") or workload.native_id,
            name=workload.name,
            user=workload.user or (await self._c.boundary.identity())[0],
            nodes=workload.nodes,
            directory=directory or await self._files.expand("~"),
        )
