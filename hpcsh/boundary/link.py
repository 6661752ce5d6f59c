"""One connection to an agent: many requests multiplexed over one transport, with flow control."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable

from hpcsh.boundary import bootstrap
from hpcsh.boundary.transport import Transport
from hpcsh.boundary.wire import CHUNK, WINDOW, Decoder, FrameError, Header, MarkerScanner, encode
from hpcsh.errors import CommandError, HpcshError, NotFoundError, TargetError

START_TIMEOUT = 60.0
"""Seconds for a login shell and the agent to come up."""


def error_of(header: Header, what: str, *, missing: bool = True) -> HpcshError:
    """The error of an `error` frame; `missing`: a missing file is `NotFoundError`."""
    why = str(header.get("why") or "it failed")
    if missing and header.get("kind") == "not-found":
        return NotFoundError(what, why=why)
    return CommandError(what, why=why)


class Channel:
    """One request: the frames that came for it, and its credit in both directions."""

    def __init__(self, link: Link, number: int, what: str, *, missing: bool) -> None:
        self._link, self.number, self.what = link, number, what
        self._missing = missing
        self._data: deque[tuple[Header, bytes]] = deque()
        self._changed = asyncio.Event()
        self._credit = WINDOW
        self._owed = 0
        self.seen: dict[str, Header] = {}
        """The last frame of each kind but data and credit."""
        self.error: HpcshError | None = None
        self.over = False
        self.deaf = False
        """The other side reads no more input."""

    def deliver(self, header: Header, payload: bytes) -> None:
        """A frame came (called by the link)."""
        op = header["op"]
        if op in ("data", "event"):
            self._data.append((header, payload))
        elif op == "credit":
            self._credit += header["n"]
        else:
            self.seen[op] = header
            self.deaf = self.deaf or op == "deaf"
            if op == "error":
                self.error = error_of(header, self.what, missing=self._missing)
            self.over = op in ("end", "error")
        self._changed.set()

    def lose(self, error: TargetError) -> None:
        """The connection broke (called by the link)."""
        if not self.over:
            self.error, self.over = error, True
            self._changed.set()

    def pop(self) -> tuple[Header, bytes] | None:
        """The next data or event frame, if one is here; what it held before is given back as credit."""
        if self._owed >= WINDOW // 2 and not self.over:
            self._link.post({"i": self.number, "op": "credit", "n": self._owed})
            self._owed = 0
        if not self._data:
            return None
        frame = self._data.popleft()
        self._owed += len(frame[1])
        return frame

    async def change(self) -> None:
        """Wait until something comes."""
        self._changed.clear()
        await self._changed.wait()

    async def until(self, op: str) -> Header:
        """Wait for a kind of frame; raise the request's error when it fails before."""
        while op not in self.seen:
            if self.error:
                raise self.error
            if self.over:
                return {}
            await self.change()
        return self.seen[op]

    async def data(self) -> AsyncGenerator[tuple[Header, bytes]]:
        """Yield data and event frames; what was consumed is given back as credit."""
        while True:
            frame = self.pop()
            if frame:
                yield frame
            elif self.error:
                raise self.error
            elif self.over:
                return
            else:
                await self.change()

    async def send(self, data: bytes | memoryview) -> None:
        """Send data as fast as the other side takes it; stops quietly when it reads no more."""
        view = memoryview(data)
        while len(view):
            while self._credit <= 0 and not self.over and not self.deaf:
                await self.change()
            if self.error:
                raise self.error
            if self.over or self.deaf:
                return
            part = view[: min(CHUNK, self._credit)]
            view = view[len(part) :]
            self._credit -= len(part)
            self._link.post({"i": self.number, "op": "data"}, part)
            await self._link.drain()

    def post(self, op: str, **fields: object) -> None:
        """Send a control frame of this request, unless it is over."""
        if not self.over:
            self._link.post({"i": self.number, "op": op, **fields})

    def spend(self, count: int) -> None:
        """Count bytes that travelled in the opening frame."""
        self._credit -= count

    async def finish(self, *, grace: float = 0.0, limit: float = 10.0) -> None:
        """Cancel, and wait until the target has ended it; a second cancellation stops only the waiting.

        After `grace` plus `limit` seconds without an answer the connection is given up, which ends
        everything on the target as well.
        """
        if self.over:
            return
        self.post("cancel", grace=grace)
        await asyncio.shield(asyncio.ensure_future(self._await_end(grace + limit)))

    async def _await_end(self, limit: float) -> None:
        try:
            async with asyncio.timeout(limit):
                while not self.over:
                    self._data.clear()
                    await self.change()
        except TimeoutError:
            self._link.lose(f"no answer within {limit:g} s to the end of a request")


class Link:
    """A connection to an agent, good until it breaks; a broken one is replaced, not repaired."""

    def __init__(self, name: str, transport: Transport, python: str | None) -> None:
        self.name = name
        self._transport, self._python = transport, python
        self._decoder = Decoder()
        self._marker = bootstrap.new_marker()
        self._scanner = MarkerScanner(self._marker.encode("ascii"))
        self._channels: dict[int, Channel] = {}
        self._number = 0
        self._heard = 0.0
        self._watch: asyncio.Task[None] | None = None
        self._greeted: asyncio.Future[Header] = asyncio.get_running_loop().create_future()
        self.error: TargetError | None = None
        self.on_lost: Callable[[], None] = lambda: None

    async def open(self, timeout: float = START_TIMEOUT) -> Header:
        """Start the agent and return its greeting."""
        try:
            await self._transport.start(self._receive, self.lose)  # a person may be asked: no time-out
            async with asyncio.timeout(timeout):
                self._transport.write(bootstrap.source(self._marker))
                greeting = await self._greeted
        except TimeoutError:
            said = (self._transport.errors + b"\n" + self._scanner.tail).decode("utf-8", "replace").strip()
            await self.close()
            raise TargetError(
                f"{self.name} did not answer within {timeout:g} s",
                why=f"the login shell said: {said[-1000:]}" if said else "the login shell said nothing",
                fix="look for a command that waits in the shell's start files (.bashrc, .cshrc)",
            ) from None
        except BaseException:
            await self.close()
            raise
        if self._transport.keepalive:
            self._watch = asyncio.ensure_future(self._keep_alive(self._transport.keepalive))
        return greeting

    def _receive(self, data: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        if self.error:
            return
        try:
            if not self._scanner.found:
                data = self._scanner.feed(data)
            for header, payload in self._decoder.feed(data):
                self._dispatch(header, payload)
        except FrameError as error:
            self.lose(f"what came is not from the agent: {error}")

    def _dispatch(self, header: Header, payload: bytes) -> None:
        channel = self._channels.get(header["i"])
        if channel:
            channel.deliver(header, payload)
            if channel.over:
                del self._channels[header["i"]]
        elif header["op"] == "hello" and not self._greeted.done():
            self._greeted.set_result(header)

    def lose(self, why: str) -> None:
        """The connection is over: every pending request fails now."""
        if self.error:
            return
        if self._scanner.found:
            said = self._transport.errors.decode("utf-8", "replace").strip()[-1000:]
            self.error = TargetError(
                f"lost the connection to {self.name}",
                why=f"{why}: {said}" if said else why,
                fix="the next command connects again",
            )
        else:
            self.error = bootstrap.did_not_start(
                self.name, self._transport.status, self._scanner.tail, self._transport.errors, self._python
            )
        if not self._greeted.done():
            self._greeted.set_exception(self.error)
            self._greeted.exception()  # it may be that nobody waits any more
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.lose(self.error)
        self.on_lost()

    def request(
        self, op: str, what: str, fields: Header, *, payload: bytes = b"", missing: bool = True
    ) -> Channel:
        """Open a request. `what` begins the message of its error."""
        if self.error:
            raise self.error
        self._number += 1
        channel = Channel(self, self._number, what, missing=missing)
        self._channels[self._number] = channel
        channel.spend(len(payload))
        self.post({"i": self._number, "op": op, "window": WINDOW, **fields}, payload)
        return channel

    def post(self, header: Header, payload: bytes | memoryview = b"") -> None:
        """Send a frame without waiting; a broken link swallows it."""
        if not self.error:
            self._transport.write(encode(header, payload))

    async def drain(self) -> None:
        """Wait until there is room to send more."""
        await self._transport.drain()

    async def _keep_alive(self, seconds: float) -> None:
        """Notice a connection that is dead without saying so."""
        loop = asyncio.get_running_loop()
        while not self.error:
            await asyncio.sleep(seconds)
            silent = loop.time() - self._heard
            if silent >= 3 * seconds:
                self.lose(f"no sign of life for {silent:.0f} s")
                await self._transport.close(patient=False)
            elif silent >= seconds:
                self.post({"i": 0, "op": "ping"})

    async def close(self) -> None:
        """End the agent and all it started."""
        if self._watch and self._watch is not asyncio.current_task():
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        patient = self._scanner.found and self.error is None
        self.lose("it was closed")
        await self._transport.close(patient=patient)
