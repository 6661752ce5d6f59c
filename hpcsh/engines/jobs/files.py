"""Where a workload's things are on the target, and reading the marks of many in one go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from hpcsh.engines.context import Context
from hpcsh.engines.jobs.types import Mark, parse_marks, present_run
from hpcsh.errors import CommandError, NotFoundError
from hpcsh.slurm.script import check_id, check_path

_CHUNK = 1000
_FEW = 4


class Files:
    """Paths and small files of the workloads of one context."""

    def __init__(self, context: Context) -> None:
        self._boundary = context.boundary
        self._workdir = context.profile.workdir
        self._jobs = ""

    async def expand(self, path: str) -> str:
        """A path with `~` replaced by the home directory on the target; relative ones begin there too."""
        home = await self._boundary.home()
        if path == "~" or path.startswith("~/"):
            return home.rstrip("/") + path[1:]
        return path if path.startswith("/") else f"{home.rstrip('/')}/{path}"

    async def jobs(self) -> str:
        """`<workdir>/jobs`, absolute."""
        if not self._jobs:
            self._jobs = check_path(f"{(await self.expand(self._workdir)).rstrip('/')}/jobs")
        return self._jobs

    async def directory(self, workload_id: str) -> str:
        """The directory of a workload."""
        return f"{await self.jobs()}/{check_id(workload_id)}"

    async def guard(self, directory: str, workload_id: str) -> str:
        """The job id in the guard file (`withdrawn` when hpcsh took it), "" when no job has begun."""
        try:
            return (await self._boundary.read(f"{directory}/run/{workload_id}", limit=100)).decode().strip()
        except NotFoundError:
            return ""

    async def marks(self, directories: Iterable[str]) -> dict[str, list[Mark]]:
        """The marks of the present run by directory: few by reading, many by one process on the target."""
        wanted = list(directories)
        if len(wanted) <= _FEW:
            data = await asyncio.gather(*(self._one(d) for d in wanted))
            return {d: present_run(parse_marks(text)) for d, text in zip(wanted, data, strict=True)}
        found: dict[str, list[bytes]] = {}
        for at in range(0, len(wanted), _CHUNK):
            paths = [f"{d}/marks" for d in wanted[at : at + _CHUNK]]
            argv = ["grep", "-a", "-s", "-H", "--null", "", "--", *paths]
            answer = await self._boundary.run(argv, env={"LC_ALL": "C"}, timeout=60)
            for line in answer.stdout.split(b"\n"):
                path, null, text = line.partition(b"\0")
                if null:
                    key = path.decode("utf-8", "surrogateescape").removesuffix("/marks")
                    found.setdefault(key, []).append(text + b"\n")
        return {d: present_run(parse_marks(b"".join(found.get(d, [])))) for d in wanted}

    async def _one(self, directory: str) -> bytes:
        try:
            return await self._boundary.read(f"{directory}/marks")
        except (NotFoundError, CommandError):
            return b""
