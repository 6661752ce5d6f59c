"""What goes over the session host's socket: msgpack frames behind a four-byte big-endian length.

`Hello` and `Welcome` never lose or retype a field, so that any two versions understand each other that
far. A request is answered by one `Result`, or by `Item`s and an `End`, or by a `Failure`; many requests
share a connection. A stream spends credit, in bytes of its items, which the reader gives back as it
consumes them: what is under way is bounded by the window of each stream.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
PROTOCOL = 1
HEADER = 4
WINDOW = 1 << 20
"""Bytes of items that a stream may have under way."""
REQUEST_LIMIT = 16 << 20
"""Largest frame a host accepts."""
REPLY_LIMIT = 512 << 20
"""Largest frame a client accepts; a snapshot of 100k jobs is about 40 MB."""


class Hello(msgspec.Struct, tag="hello"):
    """The client's first frame. `directories` are its state and configuration homes."""

    protocol: int
    version: str
    directories: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    """Names that belong to a login rather than to a user, such as SSH_AUTH_SOCK."""


class Request(msgspec.Struct, tag="request"):
    """Call `method`; `args` is a map of its arguments."""

    id: int
    method: str
    args: msgspec.Raw
    window: int = WINDOW


class Cancel(msgspec.Struct, tag="cancel"):
    """End a call; it is answered when it has ended."""

    id: int


class Credit(msgspec.Struct, tag="credit"):
    """`count` bytes of a stream's items were consumed."""

    id: int
    count: int


class Answer(msgspec.Struct, tag="answer"):
    """The answer to a `Question`; None when nobody answers."""

    id: int
    number: int
    text: str | None


class Welcome(msgspec.Struct, tag="welcome"):
    """The host's answer to `Hello`. `outdated` says that its own code changed on disk since it started."""

    protocol: int
    version: str
    pid: int
    directories: tuple[str, ...] = ()
    outdated: bool = False


class Result(msgspec.Struct, tag="result"):
    """A call returned."""

    id: int
    value: msgspec.Raw


class Item(msgspec.Struct, tag="item"):
    """A stream yielded."""

    id: int
    value: msgspec.Raw


class End(msgspec.Struct, tag="end"):
    """A stream is over."""

    id: int


class Failure(msgspec.Struct, tag="failure"):
    """A call failed with an `HpcshError`, taken apart. Id 0: the connection itself, which then closes."""

    id: int
    kind: str
    what: str
    why: str = ""
    fix: str = ""
    exit_code: int = 1


class Question(msgspec.Struct, tag="question"):
    """A call asks the person at the front end; `echo` is False for secrets."""

    id: int
    number: int
    prompt: str
    echo: bool


ClientFrame = Hello | Request | Cancel | Credit | Answer
ServerFrame = Welcome | Result | Item | End | Failure | Question


class FrameError(Exception):
    """The other side does not speak this protocol; the connection must close."""


_encoder = msgspec.msgpack.Encoder()


def encode(frame: ClientFrame | ServerFrame) -> bytes:
    """A frame with its length in front."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(HEADER, "big") + body


def pack(value: Any) -> bytes:
    """A value as it stands inside a frame, to be wrapped in `msgspec.Raw`."""
    return _encoder.encode(value)


async def read_body(reader: asyncio.StreamReader, limit: int, within: float | None = None) -> bytes:
    """The next frame's bytes.

    Waits for its first byte for ever, for the rest `within` seconds. Raises `EOFError` between frames,
    `FrameError` inside one.
    """
    first = await reader.read(1)
    if not first:
        raise EOFError
    try:
        async with asyncio.timeout(within):
            size = int.from_bytes(first + await reader.readexactly(HEADER - 1), "big")
            if size > limit:
                raise FrameError(f"a frame of {size} bytes; the limit is {limit}")
            return await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        raise FrameError("the connection ended inside a frame") from None
    except TimeoutError:
        raise FrameError(f"a frame was not complete within {within} seconds") from None


def decode(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    """Decode a frame; `FrameError` for anything malformed, too deep included."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as e:
        raise FrameError(f"not a frame: {e}") from None
