"""The serving side of the frames: one `Connection` per client, many calls on each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from hpcsh.errors import HpcshError, RefusedError
from hpcsh.serving import frames
from hpcsh.serving.frames import (
    Answer,
    Cancel,
    Credit,
    End,
    Failure,
    FrameError,
    Hello,
    Item,
    Question,
    Request,
    Result,
    Welcome,
)

log = logging.getLogger(__name__)

Ask = Callable[[str, bool], Awaitable[str | None]]
Handler = Callable[[str, msgspec.Raw, Ask], Awaitable[Any]]
"""Answers a call: `await handler(method, args, ask)` returns a value, or an async generator to stream."""


class _ClientGone(Exception):
    """Nobody reads this connection any more."""


@dataclass(frozen=True)
class Limits:
    """What one client may do. Times in seconds, sizes in bytes."""

    request: int = frames.REQUEST_LIMIT
    handshake: float = 10.0
    frame: float = 30.0
    calls: int = 256
    window: int = 4 * frames.WINDOW


class _Call:
    """A request that is being answered."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self.id = request.id
        self._credit = min(request.window, connection.limits.window)
        self._more = asyncio.Event()
        self._questions: dict[int, asyncio.Future[str | None]] = {}
        self._asked = 0
        self._cancelled = False
        self.task = asyncio.create_task(self._run(request))

    def give(self, count: int) -> None:
        """The client consumed `count` bytes."""
        self._credit = min(self._credit + count, self._connection.limits.window)
        if self._credit > 0:
            self._more.set()

    def cancel(self) -> None:
        """End the call. Only once: a second cancellation would cut short what the first one tidies up."""
        if not self._cancelled:
            self._cancelled = True
            self.task.cancel()

    def answer(self, number: int, text: str | None) -> None:
        """The person answered a question."""
        future = self._questions.pop(number, None)
        if future and not future.done():
            future.set_result(text)

    async def _ask(self, prompt: str, echo: bool) -> str | None:
        if self.task.done():  # a login that outlived its call asks nobody
            return None
        self._asked += 1
        number = self._asked
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._questions[number] = future
        try:
            await self._connection.send(Question(self.id, number, prompt, echo))
            return await future
        finally:
            self._questions.pop(number, None)

    async def _run(self, request: Request) -> None:
        final: frames.ServerFrame
        try:
            final = await self._answer(request)
        except (asyncio.CancelledError, _ClientGone):
            final = Failure(self.id, "cancelled", "The call was cancelled.")
        except HpcshError as e:
            final = Failure(self.id, e.kind, e.what, e.why, e.fix, e.exit_code)
        except Exception as e:
            log.exception("call %s failed", request.method)
            final = Failure(
                self.id, "failed", f"hpcsh itself failed in {request.method!r}: {type(e).__name__}: {e}",
                why="This is a fault of hpcsh. The session host's log has the details.",
                fix="hpcsh host logs",
            )  # fmt: skip
        finally:
            for future in self._questions.values():
                future.cancel()
        await self._connection.finish(self, final)

    async def _answer(self, request: Request) -> Result | End:
        value = await self._connection.handler(request.method, request.args, self._ask)
        if not isinstance(value, AsyncGenerator):
            return Result(self.id, msgspec.Raw(frames.pack(value)))
        await self._pump(value)
        return End(self.id)

    async def _pump(self, stream: AsyncGenerator[Any, None]) -> None:
        """Send a stream's items while there is credit. Whatever happens, the stream is closed."""
        items: AsyncIterator[Any]
        async with contextlib.aclosing(stream) as items:
            async for item in items:
                data = frames.pack(item)
                while self._credit <= 0:
                    self._more.clear()
                    await self._more.wait()
                self._credit -= len(data)
                await self._connection.send(Item(self.id, msgspec.Raw(data)))


class Connection:
    """One client, from its hello to its end. Everything it started ends with it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        welcome: Callable[[Hello], Welcome],
        handler: Handler,
        limits: Limits,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._welcome = welcome
        self.handler = handler
        self.limits = limits
        self._calls: dict[int, _Call] = {}

    @property
    def calls(self) -> int:
        """Number of calls that are being answered."""
        return len(self._calls)

    async def serve(self) -> None:
        """Talk until the client leaves or breaks the protocol; then cancel its calls and wait for them."""
        decoder = msgspec.msgpack.Decoder(frames.ClientFrame)
        try:
            await self._greet(decoder)
            while True:
                body = await frames.read_body(self._reader, self.limits.request, self.limits.frame)
                await self._take(frames.decode(decoder, body))
        except FrameError as e:
            log.warning("a client broke the protocol: %s", e)
            self._write(Failure(0, "usage", "The session host did not understand the client.", str(e), "", 2))
        except (EOFError, ConnectionError, _ClientGone):
            pass
        finally:
            await self.end()

    async def _greet(self, decoder: msgspec.msgpack.Decoder[frames.ClientFrame]) -> None:
        try:
            async with asyncio.timeout(self.limits.handshake):
                hello = frames.decode(decoder, await frames.read_body(self._reader, 1 << 16))
        except TimeoutError:
            raise FrameError(f"no hello within {self.limits.handshake} seconds") from None
        if not isinstance(hello, Hello):
            raise FrameError("the first frame was not a hello")
        await self.send(self._welcome(hello))

    async def _take(self, frame: frames.ClientFrame) -> None:
        if isinstance(frame, Hello):
            raise FrameError("a second hello")
        call = self._calls.get(frame.id)
        if isinstance(frame, Request):
            if call or frame.id <= 0:
                raise FrameError(f"request id {frame.id} is in use")
            if len(self._calls) >= self.limits.calls:
                e = RefusedError(f"More than {self.limits.calls} calls at once on one connection.")
                await self.send(Failure(frame.id, e.kind, e.what, exit_code=e.exit_code))
            else:
                self._calls[frame.id] = _Call(self, frame)
        elif call is None:
            return  # it has ended in the meantime
        elif isinstance(frame, Cancel):
            call.cancel()
        elif isinstance(frame, Credit):
            call.give(frame.count)
        elif isinstance(frame, Answer):
            call.answer(frame.number, frame.text)

    def _write(self, frame: frames.ServerFrame) -> None:
        if not self._writer.is_closing():
            self._writer.write(frames.encode(frame))

    async def send(self, frame: frames.ServerFrame) -> None:
        """Send; waits while the client does not read."""
        self._write(frame)
        try:
            await self._writer.drain()
        except ConnectionError:
            raise _ClientGone from None

    async def finish(self, call: _Call, final: frames.ServerFrame) -> None:
        """A call's last frame."""
        del self._calls[call.id]
        with contextlib.suppress(_ClientGone):
            await self.send(final)

    async def end(self) -> None:
        """Cancel every call, wait until their streams are closed, close the connection."""
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*(call.task for call in calls), return_exceptions=True)
        self._writer.close()
