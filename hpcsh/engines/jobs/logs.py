"""Streaming logs: every byte once, until the workload has ended and its files are read to their ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass

from hpcsh.boundary.base import Boundary
from hpcsh.errors import HpcshError, NotFoundError, UsageError
from hpcsh.model import LogChunk, LogOptions

BLOCK = 256 * 1024
QUEUED = 64
"""Chunks that wait for a slow reader before the target is slowed down."""


@dataclass(frozen=True)
class Source:
    """A log file: the container (or "") that it belongs to, and stream 1 or 2."""

    name: str
    path: str
    stream: int = 1


def choose(files: Mapping[str, str], options: LogOptions) -> list[Source]:
    """The files that the options ask for. Raises `UsageError` when there are several and none is named."""
    if options.all_containers:
        return [Source(name, path) for name, path in files.items()]
    name = options.container
    if name:
        if name not in files:
            raise UsageError(f"There is no container {name!r}.", why=f"Containers: {', '.join(files)}")
        return [Source(name, files[name])]
    if len(files) > 1:
        raise UsageError(
            "This workload has several logs.",
            why=f"Containers: {', '.join(files)}",
            fix="choose one with -c, or take all with --all-containers",
        )
    return [Source(n, p) for n, p in files.items()]


async def tail_offset(boundary: Boundary, path: str, lines: int) -> int:
    """Where the last `lines` lines of a file begin; 0 when it is shorter or does not exist."""
    info = await boundary.stat(path)
    size = info.size if info else 0
    if info is not None and info.kind == "link":
        size = len(await boundary.read(path))
    if lines <= 0:
        return size
    end, wanted = size, lines
    while end > 0:
        begin = max(0, end - BLOCK)
        block = await boundary.read(path, offset=begin, limit=end - begin)
        if end == size and block.endswith(b"\n"):
            wanted += 1
        at = len(block)
        while wanted and (at := block.rfind(b"\n", 0, at)) >= 0:
            wanted -= 1
        if not wanted:
            return begin + at + 1
        end = begin
    return 0


class LogReader:
    """Reads the files of one workload into one stream of chunks."""

    def __init__(self, boundary: Boundary, sources: list[Source], tail: int | None) -> None:
        self._boundary = boundary
        self._sources = sources
        self._tail = tail
        self._read: dict[Source, int] = {}
        self._found: set[Source] = set()

    @property
    def found(self) -> bool:
        """True when one of the files has been there."""
        return bool(self._found)

    async def begin(self) -> None:
        """Find out where to begin reading."""
        for source in self._sources:
            at = 0 if self._tail is None else await tail_offset(self._boundary, source.path, self._tail)
            self._read[source] = at

    async def rest(self) -> AsyncGenerator[LogChunk, None]:
        """What the files hold now beyond what has been read."""
        for source in self._sources:
            if await self._boundary.stat(source.path) is None:
                continue
            self._found.add(source)
            async for end, chunk in self._pieces(source, to_end=True):
                self._read[source] = end
                yield chunk

    async def _pieces(self, source: Source, *, to_end: bool) -> AsyncGenerator[tuple[int, LogChunk], None]:
        """Pieces with the offset of their end, which the caller notes when it has handed one on."""
        pieces = self._boundary.follow(source.path, offset=self._read[source], to_end=to_end)
        try:
            async for piece in pieces:
                if piece.event in ("truncated", "rotated"):
                    self._read[source] = 0
                if piece.event != "waiting":
                    self._found.add(source)
                if piece.data:
                    yield piece.offset + len(piece.data), LogChunk(source.name, piece.data, source.stream)
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    async def follow(self, ended: Callable[[], Awaitable[None]]) -> AsyncGenerator[LogChunk, None]:
        """Chunks as they come until `ended()` returns; what is left then is for `rest`."""
        chunks: asyncio.Queue[LogChunk | HpcshError | None] = asyncio.Queue(QUEUED)
        pumps = [asyncio.create_task(self._pump(s, chunks)) for s in self._sources]
        over = asyncio.create_task(self._stop(ended, pumps, chunks))
        try:
            while (item := await chunks.get()) is not None:
                if isinstance(item, HpcshError):
                    raise item
                yield item
        finally:
            for task in (*pumps, over):
                task.cancel()
            await asyncio.gather(*pumps, over, return_exceptions=True)

    async def _pump(self, source: Source, chunks: asyncio.Queue[LogChunk | HpcshError | None]) -> None:
        try:
            async with contextlib.aclosing(self._pieces(source, to_end=False)) as pieces:
                async for end, chunk in pieces:
                    await chunks.put(chunk)
                    self._read[source] = end
        except HpcshError as error:
            await chunks.put(error)

    async def _stop(
        self,
        ended: Callable[[], Awaitable[None]],
        pumps: list[asyncio.Task[None]],
        chunks: asyncio.Queue[LogChunk | HpcshError | None],
    ) -> None:
        try:
            await ended()
        except HpcshError as error:
            await chunks.put(error)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await chunks.put(None)


def no_log(path: str, ended: bool) -> NotFoundError:
    """The error for a log file that is not there."""
    if ended:
        return NotFoundError("There is no log.", why=f"The workload ended without writing {path}.")
    return NotFoundError(
        "There is no log yet.",
        why=f"{path} does not exist: the workload has not begun.",
        fix="follow it with -f",
    )
