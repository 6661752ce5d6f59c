"""The files of a target: the part of `Boundary` that reads, writes and follows them."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing

from hpcsh.boundary.base import FileInfo, Follow
from hpcsh.boundary.link import Channel, Link
from hpcsh.boundary.wire import CHUNK
from hpcsh.errors import UsageError


def plain(what: str, *texts: str) -> None:
    """Refuse what no system call can take."""
    for text in texts:
        if "\0" in text:
            raise UsageError(f"{what} with a NUL character: {text!r}")


async def feed(channel: Channel, data: bytes, start: int) -> None:
    """Send the rest of some input, then its end; a program that ends before is no error here."""
    await channel.send(memoryview(data)[start:])
    channel.post("eof")


class FileCalls:
    """File operations over a link to an agent."""

    name: str

    async def _ready(self) -> Link:
        """The open link."""
        raise NotImplementedError

    async def _call(self, op: str, what: str, **fields: object) -> object:
        link = await self._ready()
        plain("a path", *(str(fields.get(name, "")) for name in ("path", "old", "new")))
        channel = link.request(op, f"cannot {what} on {self.name}", fields)
        try:
            return (await channel.until("end")).get("result")
        except asyncio.CancelledError:
            channel.post("cancel")
            raise

    async def _fetch(self, op: str, what: str, **fields: object) -> bytes:
        link = await self._ready()
        plain("a path", str(fields["path"]))
        channel = link.request(op, f"cannot {what} on {self.name}", fields)
        parts: list[bytes] = []
        try:
            async with aclosing(channel.data()) as frames:
                async for _, payload in frames:
                    parts.append(payload)
        finally:
            channel.post("cancel")
        return b"".join(parts)

    async def read(self, path: str, *, offset: int = 0, limit: int = -1) -> bytes:
        """Bytes of a file from `offset`, at most `limit` (-1: all). A negative offset counts from the end."""
        return await self._fetch("read", f"read {path}", path=path, offset=offset, limit=limit)

    async def list(self, path: str) -> list[FileInfo]:
        """Entries of a directory, sorted by name."""
        entries = json.loads(await self._fetch("list", f"list {path}", path=path))
        return [FileInfo(*entry) for entry in entries]

    async def _put(self, what: str, path: str, data: bytes, mode: int, *, exclusive: bool) -> bool:
        link = await self._ready()
        plain("a path", path)
        first = data[:CHUNK]
        channel = link.request(
            "write",
            f"cannot {what} {path} on {self.name}",
            {"path": path, "mode": mode, "exclusive": exclusive, "eof": len(first) == len(data),
             "token": secrets.token_hex(8)},
            payload=first,
        )  # fmt: skip
        try:
            if len(first) < len(data):
                await feed(channel, data, len(first))
            return bool((await channel.until("end")).get("result"))
        finally:
            await channel.finish()

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Replace a file as one step: a temporary file beside it, fsync, chmod, rename."""
        await self._put("write", path, data, mode, exclusive=False)

    async def create(self, path: str, data: bytes, *, mode: int = 0o600) -> bool:
        """Create a file exclusively, with all its bytes at once; False when it already exists."""
        return await self._put("create", path, data, mode, exclusive=True)

    async def stat(self, path: str) -> FileInfo | None:
        """Facts of a path (links are not followed), or None when it does not exist."""
        facts = await self._call("stat", f"look at {path}", path=path)
        return FileInfo(*facts) if isinstance(facts, list) else None

    async def mkdir(self, path: str, *, mode: int = 0o700) -> None:
        """Make a directory and its parents; harmless when it is there. `mode` counts for those it makes."""
        await self._call("mkdir", f"make directory {path}", path=path, mode=mode)

    async def remove(self, path: str, *, recursive: bool = False) -> bool:
        """Remove a file, or a tree without following links; False when there was nothing."""
        return bool(await self._call("remove", f"remove {path}", path=path, recursive=recursive))

    async def rename(self, old: str, new: str) -> None:
        """Rename within a file system, replacing a file at `new`."""
        await self._call("rename", f"rename {old} to {new}", old=old, new=new)

    async def follow(
        self, path: str, *, offset: int = 0, to_end: bool = False, interval: float = 1.0
    ) -> AsyncIterator[Follow]:
        """Yield a file's bytes and go on as it grows (see `Boundary.follow`).

        A negative `offset` counts from the end. `interval` is the time between polls where other machines
        may write to the file, in seconds; a missing file with `to_end` is `NotFoundError`.
        """
        link = await self._ready()
        plain("a path", path)
        channel = link.request(
            "follow",
            f"cannot follow {path} on {self.name}",
            {"path": path, "offset": offset, "to_end": to_end, "interval": interval},
        )
        at = max(offset, 0)
        try:
            async for header, payload in channel.data():
                at = header["at"] + len(payload)
                yield Follow(header["event"], payload, header["at"])
            if to_end:
                yield Follow("end", b"", at)
        finally:
            channel.post("cancel")
