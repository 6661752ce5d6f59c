"""A process or connection on the target, as its user sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from hpcsh.boundary.link import Channel
from hpcsh.errors import CommandError


class RemoteProcess:
    """A running process on the target (see `base.Process`). One reader of `output` at a time."""

    def __init__(self, channel: Channel, pid: int) -> None:
        self._channel = channel
        self.pid = pid

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield `(1, bytes)` and `(2, bytes)` until the process and its streams have ended."""
        async for header, payload in self._channel.data():
            yield header["s"], payload

    async def write(self, data: bytes) -> None:
        """Write to standard input; `CommandError` when the process reads no more."""
        await self._channel.send(data)
        if self._channel.deaf or self._channel.over:
            raise CommandError(f"{self._channel.what}: it reads no more input")

    async def close_stdin(self) -> None:
        """Close standard input; a terminal gets its end-of-file character."""
        self._channel.post("eof")

    async def signal(self, number: int) -> None:
        """Send a signal to the whole remote process group."""
        self._channel.post("signal", n=int(number))

    async def resize(self, columns: int, rows: int) -> None:
        """Tell a process that has a terminal the terminal's new size."""
        self._channel.post("resize", tty=[columns, rows])

    async def wait(self) -> int:
        """Exit status, or 128 + n when signal n ended it. Output must be read for it to get there."""
        header = await self._channel.until("exit")
        return int(header["code"]) if header else 0
