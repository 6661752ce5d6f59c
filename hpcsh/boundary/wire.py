"""Framing between hpcsh and its agent: pure functions, no input or output.

A frame is a big-endian u32 length of what follows, a u32 header length, a JSON header and raw payload
bytes. Headers are ASCII JSON made by the standard library on both ends, so that strings with surrogates
(names that are not UTF-8) survive. `agent.py` has the same code, because it travels as one file.
"""

from __future__ import annotations

import json
import struct
from typing import Any

Header = dict[str, Any]

CHUNK = 256 * 1024
"""Payload bytes in one frame, at most."""

WINDOW = 1024 * 1024
"""Bytes a sender may have on the way, per request, before the receiver has taken any."""

MAX_FRAME = 64 * 1024 * 1024
"""A frame longer than this is a broken stream, not a frame."""

_LENGTHS = struct.Struct(">II")


class FrameError(ValueError):
    """The bytes are not frames."""


def encode(header: Header, payload: bytes | memoryview = b"") -> bytes:
    """Make one frame; `payload` is left out of JSON and travels as it is."""
    head = json.dumps(header, separators=(",", ":")).encode("ascii")
    return b"".join((_LENGTHS.pack(4 + len(head) + len(payload), len(head)), head, payload))


class Decoder:
    """Cuts a byte stream into frames, however it was cut on the way."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[Header, bytes]]:
        """Take some bytes; return the frames that are complete now."""
        buffer = self._buffer
        buffer += data
        frames: list[tuple[Header, bytes]] = []
        start, size = 0, len(buffer)
        with memoryview(buffer) as view:
            while size - start >= 8:
                total, head = _LENGTHS.unpack_from(view, start)
                if total > MAX_FRAME or head + 4 > total:
                    raise FrameError(f"a frame of {total} bytes with a header of {head}")
                end = start + 4 + total
                if end > size:
                    break
                frames.append((_header(bytes(view[start + 8 : start + 8 + head])),
                               bytes(view[start + 8 + head : end])))  # fmt: skip
                start = end
        del buffer[:start]
        return frames


def _header(raw: bytes) -> Header:
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise FrameError(f"a frame header is not JSON: {raw[:60]!r}") from error
    if not isinstance(header, dict):
        raise FrameError(f"a frame header is not an object: {raw[:60]!r}")
    return header


class MarkerScanner:
    """Throws away what a login prints before the marker, in bounded memory.

    `tail` keeps the last few kilobytes of it, for the message when the marker never comes.
    """

    KEEP = 4096

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self.tail = b""
        self.found = False

    def feed(self, data: bytes) -> bytes:
        """Return what follows the marker; nothing while it has not come."""
        if self.found:
            return data
        seen = self.tail + data
        at = seen.find(self._marker)
        if at < 0:
            self.tail = seen[-self.KEEP :]
            return b""
        self.found = True
        self.tail = seen[max(0, at - self.KEEP) : at]
        return seen[at + len(self._marker) :]
