"""What every part of the agent shares: names as bytes, worker threads, and the request."""

# This runs on the target, on Python 3.6 or later.
# ruff: noqa: UP031

import collections
import errno
import os
import queue
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from hpcsh.boundary.agent import Agent

CHUNK = 256 * 1024
CONGESTED = 1024 * 1024  # bytes waiting for stdout above which nothing more is read for it
MAX_WORKERS = 32


def raw(text: "str") -> "bytes":
    """A string of the wire as the bytes it stands for, whatever this Python's locale."""
    return text.encode("utf-8", "surrogateescape")


def cooked(data: "bytes") -> "str":
    """Bytes as a string of the wire."""
    return data.decode("utf-8", "surrogateescape")


def close_fd(fd: "int") -> "None":
    """Close, whatever happens."""
    try:
        os.close(fd)
    except OSError:
        pass


class Pool:
    """Worker threads, made when needed, for calls that a file system may block."""

    def __init__(self, wake: "Callable[[], None]") -> None:
        self.jobs = queue.Queue()  # type: queue.Queue[tuple[Any, Any]]
        self.done = collections.deque()  # type: collections.deque[tuple[Any, Any, Any]]
        self.wake = wake
        self.lock = threading.Lock()
        self.threads = 0
        self.free = 0

    def submit(self, work: "Callable[[], Any]", then: "Callable[[Any, Any], None]") -> "None":
        """Run `work` in a worker, then `then(result, error)` in the loop."""
        with self.lock:
            if self.free > 0:
                self.free -= 1
            elif self.threads < MAX_WORKERS:
                self.threads += 1
                threading.Thread(target=self.serve, daemon=True).start()
            else:
                self.free -= 1
        self.jobs.put((work, then))

    def serve(self) -> "None":
        """Work until the process ends."""
        while True:
            work, then = self.jobs.get()
            result, error = None, None
            try:
                result = work()
            except BaseException as caught:
                error = caught
            with self.lock:
                self.free += 1
            self.done.append((then, result, error))
            self.wake()
            del work, then, result, error


class Request:
    """Something the client asked for. It ends with exactly one `end` or `error` frame."""

    def __init__(self, agent: "Agent", head: "dict[str, Any]") -> None:
        self.agent = agent
        self.id = head["i"]
        self.credit = int(head.get("window", 0))  # payload bytes we may send
        self.over = False

    def send(self, op: "str", payload: "bytes" = b"", **more: "Any") -> "None":
        """Send a frame of this request; payload bytes are counted against the credit."""
        self.credit -= len(payload)
        self.agent.send(dict(more, i=self.id, op=op), payload)

    def end(self, **more: "Any") -> "None":
        """Finish well."""
        if not self.over:
            self.close()
            self.agent.send(dict(more, i=self.id, op="end"))

    def fail(self, error: "BaseException") -> "None":
        """Finish with an error, in the system's words."""
        if self.over:
            return
        self.close()
        kind, words = "command", getattr(error, "strerror", None) or "%s: %s" % (type(error).__name__, error)
        number = getattr(error, "errno", None)
        if number in (errno.ENOENT, errno.ENOTDIR):
            kind = "not-found"
        name = getattr(error, "filename", None)
        name = cooked(name) if isinstance(name, bytes) else name
        self.agent.send({"i": self.id, "op": "error", "kind": kind, "why": words, "file": name})

    def close(self) -> "None":
        """Forget the request and let go of what it holds."""
        self.over = True
        self.agent.requests.pop(self.id, None)
        self.agent.stalled.discard(self)

    def clear(self) -> "bool":
        """May this request send data now? If not, `resume` is called when it may."""
        if self.agent.queued > CONGESTED:
            self.agent.stalled.add(self)
            return False
        return self.credit > 0

    def on_credit(self, head: "dict[str, Any]") -> "None":
        """The client has taken some bytes."""
        self.credit += head["n"]
        self.resume()

    def resume(self) -> "None":
        """Sending may be possible again."""

    def on_data(self, payload: "bytes") -> "None":
        """Bytes from the client."""

    def on_eof(self) -> "None":
        """The client sends no more."""

    def on_signal(self, head: "dict[str, Any]") -> "None":
        """A signal for the process group."""

    def on_resize(self, head: "dict[str, Any]") -> "None":
        """The terminal has a new size."""

    def on_cancel(self, head: "dict[str, Any]") -> "None":
        """Stop, leave nothing behind, then end."""
        self.end(cancelled=True)
