"""The calling side of the frames: many calls and streams over one connection."""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from hpcsh.errors import HpcshError, TargetError, UsageError, rebuild
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
from hpcsh.serving.unix import is_ours

ENDING = 15.0
"""Seconds that a cancelled call is given to say that it has ended."""

Ask = Callable[[str, bool], Awaitable[str | None]]
Reply = Result | Item | End | Failure


class ConnectionLostError(TargetError):
    """The session host went away. `sent` says whether it can have seen the call."""

    def __init__(self, why: str = "", *, sent: bool = True) -> None:
        super().__init__(
            "The session host ended or was stopped during the call.",
            why=why,
            fix="try again: the next call starts a new one; `hpcsh host logs` says more",
        )
        self.sent = sent


class _Pending:
    """A call that waits for replies."""

    def __init__(self) -> None:
        self.replies: deque[Reply | HpcshError] = deque()
        self.changed = asyncio.Event()
        self.over = False

    def put(self, reply: Reply | HpcshError) -> None:
        self.replies.append(reply)
        self.over = self.over or not isinstance(reply, Item)
        self.changed.set()

    async def get(self) -> Result | Item | End:
        """The next reply; raises what the call failed with."""
        while not self.replies:
            self.changed.clear()
            await self.changed.wait()
        reply = self.replies.popleft()
        if isinstance(reply, Failure):
            raise rebuild(reply.kind, reply.what, reply.why, reply.fix, reply.exit_code)
        if isinstance(reply, HpcshError):
            raise reply
        return reply


class Caller:
    """A connection to a session host."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ask: Ask | None) -> None:
        self._reader = reader
        self._writer = writer
        self._ask = ask
        self._decoder = msgspec.msgpack.Decoder(frames.ServerFrame)
        self._pending: dict[int, _Pending] = {}
        self._number = 0
        self._questions: dict[asyncio.Task[None], int] = {}
        self._loop: asyncio.Task[None] | None = None
        self.closed = False

    @classmethod
    async def open(
        cls, path: Path, hello: Hello, *, ask: Ask | None, timeout: float
    ) -> tuple[Caller, Welcome]:
        """Connect and say hello.

        Raises `OSError` or `EOFError` when nobody serves there (any more), `TargetError` when something
        does that is not ours, or does not answer within `timeout` seconds.
        """
        reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 20)
        caller = cls(reader, writer, ask)
        try:
            if not is_ours(writer.get_extra_info("socket")):
                raise TargetError(f"The socket {path} is served by another user.", fix=f"rm {path}")
            writer.write(frames.encode(hello))
            async with asyncio.timeout(timeout):
                welcome = frames.decode(caller._decoder, await frames.read_body(reader, 1 << 16))
            if not isinstance(welcome, Welcome):
                raise FrameError(f"answered {type(welcome).__name__}")
        except TimeoutError:
            writer.close()
            raise TargetError(
                f"The session host does not answer ({path}).", fix="hpcsh host stop; it is always safe"
            ) from None
        except FrameError as e:
            writer.close()
            raise TargetError(f"What serves {path} is no session host.", why=str(e)) from None
        except BaseException:
            writer.close()
            raise
        caller._loop = asyncio.create_task(caller._read())
        return caller, welcome

    async def _read(self) -> None:
        why = ""
        try:
            while True:
                body = await frames.read_body(self._reader, frames.REPLY_LIMIT)
                self._take(frames.decode(self._decoder, body))
        except (EOFError, OSError):
            pass
        except FrameError as e:
            why = str(e)
        finally:
            self._lost(why)

    def _take(self, frame: frames.ServerFrame) -> None:
        if isinstance(frame, Question):
            task = asyncio.create_task(self._answer(frame))
            self._questions[task] = frame.id
            task.add_done_callback(self._questions.pop)
        elif isinstance(frame, Welcome):
            raise FrameError("a second welcome")
        elif isinstance(frame, Failure) and frame.id == 0:
            raise FrameError(f"{frame.what} {frame.why}")
        elif pending := self._pending.get(frame.id):
            pending.put(frame)

    def _lost(self, why: str) -> None:
        error = TargetError("The session was closed.") if self.closed else ConnectionLostError(why)
        self.closed = True
        self._writer.close()
        for pending in self._pending.values():
            if not pending.over:
                pending.put(error)

    async def _answer(self, question: Question) -> None:
        """Whatever the front end does, the host gets an answer; None lets the login try something else."""
        text = None
        try:
            text = await self._ask(question.prompt, question.echo) if self._ask else None
        except (HpcshError, EOFError):
            pass
        finally:
            self._send(Answer(question.id, question.number, text))

    def _hung_up(self) -> bool:
        """True when the host is gone already, though the event loop has not come to see it.

        What is not sent to a dead host has no unknown outcome.
        """
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket").fileno(), select.POLLRDHUP)
        self.closed = bool(poll.poll(0))
        return self.closed

    def _send(self, frame: frames.ClientFrame) -> None:
        if not self.closed:
            self._writer.write(frames.encode(frame))

    async def _start(self, method: str, args: dict[str, Any]) -> tuple[int, _Pending]:
        if self.closed or self._hung_up():
            raise ConnectionLostError(sent=False)
        self._number += 1
        data = frames.encode(Request(self._number, method, msgspec.Raw(frames.pack(args))))
        if len(data) > frames.REQUEST_LIMIT:
            raise UsageError(
                f"The input is too large: {len(data) >> 20} MiB; a call carries at most "
                f"{frames.REQUEST_LIMIT >> 20} MiB.",
                fix="copy large files to the cluster and name them there",
            )
        pending = self._pending[self._number] = _Pending()
        number = self._number
        self._writer.write(data)
        return number, pending

    async def _finish(self, number: int, pending: _Pending) -> None:
        """Cancel a call that has not ended, and wait until it has, so that nothing of it is left."""
        try:
            for task in [task for task, call in self._questions.items() if call == number]:
                task.cancel()
            if not pending.over:
                self._send(Cancel(number))
                with contextlib.suppress(TimeoutError, HpcshError):
                    async with asyncio.timeout(ENDING):
                        while not pending.over:
                            pending.replies.clear()
                            pending.changed.clear()
                            await pending.changed.wait()
        finally:
            del self._pending[number]

    async def call(self, method: str, args: dict[str, Any]) -> msgspec.Raw:
        """Call and return the encoded result. Raises the `HpcshError` that the call failed with."""
        number, pending = await self._start(method, args)
        try:
            reply = await pending.get()
        finally:
            await self._finish(number, pending)
        if not isinstance(reply, Result):
            raise TargetError(f"The session host answered {method!r} with a stream.")
        return reply.value

    async def stream(self, method: str, args: dict[str, Any]) -> AsyncGenerator[msgspec.Raw, None]:
        """Call and yield the encoded items; closing the generator ends the call."""
        number, pending = await self._start(method, args)
        consumed = 0
        try:
            while True:
                reply = await pending.get()
                if not isinstance(reply, Item):
                    return
                yield reply.value
                consumed += memoryview(reply.value).nbytes
                if consumed >= frames.WINDOW // 2:
                    self._send(Credit(number, consumed))
                    consumed = 0
        finally:
            await self._finish(number, pending)

    async def close(self) -> None:
        """Disconnect; the host ends what is still running for this client."""
        self.closed = True
        self._writer.close()
        if self._loop:
            self._loop.cancel()
            await asyncio.gather(self._loop, *self._questions, return_exceptions=True)
