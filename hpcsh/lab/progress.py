"""Say what is going on: one line per step with its time, rewritten in place on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Steps on `stream` (standard error when None); only a terminal is shown what passes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._shown = 0.0
        self._label = ""

    def line(self, text: str) -> None:
        """A line that stays."""
        clear = "\r\x1b[K" if self._live else ""
        self._stream.write(f"{clear}{text}\n")
        self._stream.flush()

    def update(self, text: str) -> None:
        """A passing state of the current step; at most ten a second are shown, and only on a terminal."""
        now = time.monotonic()
        if self._live and now - self._shown > 0.1:
            self._shown = now
            self._stream.write(f"\r\x1b[K  {self._label}: {text}"[:160])
            self._stream.flush()

    def done(self, label: str, seconds: float, detail: str = "") -> None:
        """A finished step with its time."""
        self.line(f"  {label:<28} {seconds:6.1f} s{'  ' + detail if detail else ''}")

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Time what happens inside; the line is written when it ends, failed or not."""
        started = time.monotonic()
        self._label = label
        if self._live:
            self._stream.write(f"\r\x1b[K  {label} …")
            self._stream.flush()
        try:
            yield
        except BaseException:
            self.done(label, time.monotonic() - started, "failed")
            raise
        self.done(label, time.monotonic() - started)
