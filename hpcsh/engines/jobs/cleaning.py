"""Removing what is ours: exactly that, shown before, and looked at again before each removal (design 6.8)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from hpcsh.engines.context import Context
from hpcsh.engines.jobs.files import Files
from hpcsh.engines.jobs.submission import Submission
from hpcsh.errors import HpcshError
from hpcsh.model import CleanItem, Report
from hpcsh.store import Record

OVER = ("ended", "refused")


class Cleaning:
    """Plans and carries out `clean` for the records of one context's engine."""

    def __init__(self, context: Context, files: Files, submission: Submission) -> None:
        self._c = context
        self._files = files
        self._submission = submission

    def _mine(self) -> list[Record]:
        engine = self._c.profile.engine
        return [r for r in self._c.store.records(self._c.target) if r.engine == engine]

    async def plan(self, *, everything: bool) -> list[CleanItem]:
        """Directories of what is over; with `everything` also the jobs that are not."""
        items = []
        records = [r for r in self._mine() if everything or r.phase in OVER]
        sizes = await self._sizes([r.directory for r in records])
        for record in records:
            over = record.phase in OVER
            job = "" if over else f"job {record.native_id or 'not known'}, "
            items.append(
                CleanItem(
                    kind="directory" if over else "job",
                    target=record.id,
                    detail=f"{record.name}: {job}{record.directory}",
                    size=sizes.get(record.directory, 0),
                )
            )
        return items

    async def _sizes(self, directories: Sequence[str]) -> dict[str, int]:
        """Bytes on disk by directory; what cannot be told is left out."""
        found: dict[str, int] = {}
        for at in range(0, len(directories), 500):
            argv = ["du", "-s", "-k", "--", *directories[at : at + 500]]
            try:
                answer = await self._c.boundary.run(argv, timeout=60)
            except HpcshError:
                return found
            for line in answer.text.splitlines():
                size, _, path = line.partition("\t")
                found[path] = int(size) * 1024 if size.isdigit() else 0
        return found

    async def clean(self, items: Sequence[CleanItem], stop: Callable[[list[str]], Awaitable[None]]) -> Report:
        """Remove these items; `stop` cancels workloads and returns when they have ended."""
        done: list[str] = []
        failed: list[tuple[str, str]] = []
        running = [i.target for i in items if i.kind == "job" and not self._over(i.target)]
        if running:
            try:
                await stop(running)
            except HpcshError as error:
                failed.append((", ".join(running), str(error)))
        for item in items:
            try:
                why = await self._remove(item)
            except HpcshError as error:
                why = str(error)
            if why:
                failed.append((item.target, why))
            else:
                done.append(item.target)
        return Report(done=tuple(done), failed=tuple(failed))

    def _over(self, workload_id: str) -> bool:
        record = self._c.store.get(workload_id)
        return record is None or record.phase in OVER

    async def _remove(self, item: CleanItem) -> str:
        """Remove one; the reason why not, or "". What has gone already is no failure."""
        if item.kind not in ("directory", "job"):
            return f"a {item.kind} is not a workload's"
        record = self._c.store.get(item.target)
        if record is None:
            return ""
        if record.target != self._c.target or record.engine != self._c.profile.engine:
            return "it belongs to another profile"
        if record.phase not in OVER:
            return "it has not ended"
        directory = await self._files.directory(record.id)
        if record.directory != directory:
            return f"its directory {record.directory} is not in this profile's workdir"
        info = await self._c.boundary.stat(directory)
        _, uid, _ = await self._c.boundary.identity()
        if info is not None:
            if info.kind != "dir" or info.uid != uid:
                return f"{directory} is not a directory of ours"
            await self._c.boundary.remove(directory, recursive=True)
        self._c.store.forget(record.id)
        return ""
