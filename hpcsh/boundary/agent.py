"""The agent: hpcsh's hands on a target, with nothing but the standard library of Python 3.6 or later.

It is sent over the channel as one text and run from memory; nothing is installed. This module has the loop,
`agent_base`, `agent_streams`, `agent_files` and `agent_follow` have the rest (`bootstrap` joins them). It
speaks the frames of `wire.py` on stdin and stdout: the client opens requests (`op` with a new id `i`), both
sides send `data` on them within the other's `credit`, and each request ends with one `end` or `error`. One
thread runs a selectors loop; whatever may block on a network file system runs in worker threads.

When stdin closes or SIGTERM, SIGHUP or SIGINT comes, every process group it started is ended, temporary
files are removed, and it exits. A program that is to outlive it must leave its session (setsid, daemon).
"""

# This runs on the target, on Python 3.6 or later.

import collections
import fcntl
import heapq
import json
import os
import pwd
import selectors
import signal
import socket
import struct
import sys
import time

from hpcsh.boundary.agent_base import CONGESTED, Pool, Request, cooked
from hpcsh.boundary.agent_files import (
    Call,
    FileBytes,
    Reader,
    Writer,
    do_mkdir,
    do_remove,
    do_rename,
    do_stat,
    open_list,
)
from hpcsh.boundary.agent_follow import Follow, Inotify
from hpcsh.boundary.agent_streams import F_SETPIPE_SZ, STUCK, Connection, Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_FRAME = 64 * 1024 * 1024
LENGTHS = struct.Struct(">II")
PR_SET_CHILD_SUBREAPER = 36


class Agent:
    """The loop, its output queue and its requests."""

    def __init__(self, marker: "bytes") -> None:
        self.selector = selectors.DefaultSelector()
        self.input, self.output = private_ends()
        self.queue = collections.deque([memoryview(marker)])
        self.queued = len(marker)
        self.buffer = bytearray()
        self.requests = {}  # type: dict[int, Request]
        self.processes = {}  # type: dict[int, Process]
        self.stalled = set()  # type: set[Request]
        self.spawning = 0
        self.early = {}  # type: dict[int, int]  # statuses of children that ended before `started`
        self.timers = []  # type: list[list[Any]]
        self.order = 0
        self.writing = False
        self.closing = 0.0
        self.snapshot = (0.0, {})  # type: tuple[float, dict[int, dict[int, int]]]
        self.notices = None  # type: Inotify | None
        self.bell, ring = os.pipe()
        for fd in (self.bell, ring):
            os.set_blocking(fd, False)
        self.ring = ring
        self.pool = Pool(self.wake)
        self.stopped = False

    def wake(self) -> "None":
        """Wake the loop, from any thread."""
        try:
            os.write(self.ring, b"\0")
        except BlockingIOError:
            pass

    def inotify(self) -> "Inotify":
        """The notices, opened when something is followed first."""
        if self.notices is None:
            self.notices = Inotify(self)
        return self.notices

    def later(self, seconds: "float", call: "Callable[[], None]") -> "list[Any]":
        """Call once after some seconds."""
        return self.at(time.monotonic() + seconds, call)

    def at(self, when: "float", call: "Callable[[], None]") -> "list[Any]":
        """Call once at a time of the monotonic clock; put None at [2] of the result to forget it."""
        self.order += 1
        timer = [when, self.order, call]
        heapq.heappush(self.timers, timer)
        return timer

    def send(self, head: "dict[str, Any]", payload: "bytes" = b"") -> "None":
        """Queue a frame; the loop writes it."""
        if self.closing:
            return
        words = json.dumps(head, separators=(",", ":")).encode("ascii")
        self.queue.append(memoryview(LENGTHS.pack(4 + len(words) + len(payload), len(words)) + words))
        if payload:
            self.queue.append(memoryview(payload))
        self.queued += 8 + len(words) + len(payload)

    def flush(self) -> "None":
        """Write what goes; then let those go on who waited for room."""
        try:
            while self.queue:
                parts = [self.queue[i] for i in range(min(len(self.queue), 32))]
                count = os.writev(self.output, parts)
                self.queued -= count
                while count:
                    part = self.queue.popleft()
                    if count < len(part):
                        self.queue.appendleft(part[count:])
                        break
                    count -= len(part)
        except BlockingIOError:
            pass
        except OSError:
            self.shut()
        if bool(self.queue) != self.writing:
            self.writing = bool(self.queue)
            if self.writing:
                self.selector.register(self.output, selectors.EVENT_WRITE, self.flush)
            else:
                self.selector.unregister(self.output)
        if self.stalled and self.queued <= CONGESTED // 2:
            stalled, self.stalled = self.stalled, set()
            for request in stalled:
                request.resume()

    def receive(self) -> "None":
        """Frames from the client."""
        try:
            data = os.read(self.input, 1024 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(self.input)
            self.shut()
            return
        self.buffer += data
        at, size = 0, len(self.buffer)
        while size - at >= 8:
            total, words = LENGTHS.unpack_from(self.buffer, at)
            if total > MAX_FRAME or words + 4 > total:
                self.shut()
                return
            if at + 4 + total > size:
                break
            head = json.loads(self.buffer[at + 8 : at + 8 + words].decode("ascii"))
            self.handle(head, bytes(self.buffer[at + 8 + words : at + 4 + total]))
            at += 4 + total
        del self.buffer[:at]

    def handle(self, head: "dict[str, Any]", payload: "bytes") -> "None":
        """One frame: news for a request, or a new request."""
        op, request = head["op"], self.requests.get(head["i"])
        if op == "ping":
            self.send({"i": head["i"], "op": "pong"})
        elif op == "data":
            if request:
                request.on_data(payload)
        elif op == "eof":
            if request:
                request.on_eof()
        elif op in ("credit", "signal", "resize", "cancel"):
            if request:
                getattr(request, "on_" + op)(head)
        elif not self.closing:
            try:
                self.requests[head["i"]] = Request(self, head)
                self.requests[head["i"]] = self.begin(op, head, payload)
            except Exception as error:
                self.requests[head["i"]].fail(error)

    def begin(self, op: "str", head: "dict[str, Any]", payload: "bytes") -> "Request":
        """Start what was asked for."""
        calls = {"stat": do_stat, "mkdir": do_mkdir, "remove": do_remove, "rename": do_rename}
        if op == "spawn":
            return Process(self, head, payload)
        if op == "connect":
            return Connection(self, head)
        if op == "read":
            return Reader(self, head, FileBytes)
        if op == "list":
            return Reader(self, head, open_list)
        if op == "write":
            return Writer(self, head, payload)
        if op == "follow":
            return Follow(self, head)
        return Call(self, head, calls[op])

    def sessions(self) -> "dict[int, dict[int, int]]":
        """Living processes of this machine: session → {pid: group}; at most 10 ms old."""
        now = time.monotonic()
        if now - self.snapshot[0] > 0.01:
            found = {}  # type: dict[int, dict[int, int]]
            for name in os.listdir("/proc"):
                if name.isdigit():
                    try:
                        with open("/proc/%s/stat" % name, "rb") as file:
                            words = file.read().rpartition(b")")[2].split()
                    except OSError:
                        continue
                    if words[0] not in (b"Z", b"X"):
                        found.setdefault(int(words[3]), {})[int(name)] = int(words[2])
            self.snapshot = (now, found)
        return self.snapshot[1]

    def reap(self) -> "None":
        """Take the status of every child that has ended, adopted ones too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.snapshot = (0.0, {})
            process = self.processes.get(pid)
            if process:
                process.exited(status)
            elif self.spawning:
                self.early[pid] = status

    def shut(self) -> "None":
        """Nobody is there any more: end everything, then exit."""
        if not self.closing:
            self.closing = time.monotonic() + 2 + 2 * STUCK
            self.queue.clear()
            self.queued = 0
            for request in list(self.requests.values()):
                request.on_cancel({"grace": 1.0})

    def rung(self) -> "None":
        """The bell: signals, children, results of workers."""
        try:
            while len(os.read(self.bell, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        if self.stopped:
            self.shut()
        done = self.pool.done
        while done:
            then, result, error = done.popleft()
            then(result, error)
        self.reap()

    def stop(self, number: "int", frame: "Any") -> "None":
        """A signal that means the end."""
        self.stopped = True

    def run(self) -> "None":
        """Serve until the client is gone and nothing is left."""
        become_subreaper()
        count_as_shell()
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self.stop)
        signal.set_wakeup_fd(self.ring)
        self.selector.register(self.bell, selectors.EVENT_READ, self.rung)
        self.selector.register(self.input, selectors.EVENT_READ, self.receive)
        self.send(greeting())
        while not (self.closing and self.finished()):
            self.flush()
            for key, _ in self.selector.select(self.pause()):
                if key.fd in self.selector.get_map():  # an earlier handler may have dropped it
                    key.data()
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                call = heapq.heappop(self.timers)[2]
                if call:
                    call()

    def crash(self) -> "None":
        """A bug of ours: leave no process behind all the same."""
        for process in list(self.processes.values()):
            for group in process.members():
                process.kill(group, signal.SIGKILL)

    def finished(self) -> "bool":
        """While closing: is everything ended, or the time over?"""
        busy = self.requests or self.processes or self.spawning
        return not busy or time.monotonic() > self.closing

    def pause(self) -> "float | None":
        """Seconds until the next timer; without one, for ever: an idle agent uses no processor time."""
        while self.timers and self.timers[0][2] is None:
            heapq.heappop(self.timers)
        if self.timers:
            return max(0.0, float(self.timers[0][0]) - time.monotonic())
        return 0.1 if self.closing else None


def private_ends() -> "tuple[int, int]":
    """Our stdin and stdout under other numbers; 0 and 1 become /dev/null, so that nothing strays in."""
    ends = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3), fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if null > 1:
        os.close(null)
    for fd in ends:
        os.set_blocking(fd, False)
        try:
            fcntl.fcntl(fd, F_SETPIPE_SZ, CONGESTED)
        except OSError:  # a socket, or the limit is reached
            pass
    return ends


def become_subreaper() -> "None":
    """Orphans of our processes come to us and not to init: no zombie keeps a dead group alive."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except Exception:  # killing by session works without it
        pass


def count_as_shell() -> "None":
    """Count as a shell: the first bash under sshd reads ~/.bashrc, even as `bash -c`."""
    level = os.environb.get(b"SHLVL", b"")
    if not level.isdigit() or int(level) < 1:
        os.environb[b"SHLVL"] = b"1"


def greeting() -> "dict[str, Any]":
    """Who and where we are."""
    uid = os.getuid()
    try:
        entry = pwd.getpwuid(uid)
        user, home = entry.pw_name, entry.pw_dir
    except KeyError:
        user, home = str(uid), "/"
    return {
        "i": 0, "op": "hello", "version": 1, "pid": os.getpid(), "python": sys.version.split()[0],
        "home": cooked(os.environb.get(b"HOME") or os.fsencode(home)), "user": user, "uid": uid,
        "host": socket.gethostname(),
    }  # fmt: skip


def main(marker: "str") -> "None":
    """Run the agent; threads that a dead file system holds do not keep it from exiting."""
    agent = Agent(marker.encode("ascii"))
    try:
        agent.run()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        agent.crash()
        os._exit(1)
    os._exit(0)
