"""The agent's processes and connections: live bytes in both directions, with flow control."""

# This runs on the target, on Python 3.6 or later.
# ruff: noqa: D102, UP031

import collections
import errno
import fcntl
import os
import selectors
import signal
import socket
import struct
import subprocess
import time

from hpcsh.boundary.agent_base import CHUNK, Request, close_fd, raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from hpcsh.boundary.agent import Agent

STUCK = 5.0  # seconds after SIGKILL until a process counts as unkillable (state D)
F_SETPIPE_SZ = 1031


class Source:
    """A readable descriptor that becomes data frames, as fast as credit and the queue allow."""

    def __init__(self, owner: "Stream", fd: "int", stream: "int") -> None:
        self.owner, self.fd, self.stream = owner, fd, stream
        self.on = False
        os.set_blocking(fd, False)
        self.update()

    def update(self) -> "None":
        """Listen, or do not."""
        want = self.fd >= 0 and (self.owner.discarding or self.owner.clear())
        if want != self.on:
            self.on = want
            if want:
                self.owner.agent.selector.register(self.fd, selectors.EVENT_READ, self.ready)
            else:
                self.owner.agent.selector.unregister(self.fd)

    def ready(self) -> "None":
        """There is something to read."""
        if not self.owner.discarding and not self.owner.clear():
            self.update()
            return
        size = CHUNK if self.owner.discarding else min(CHUNK, self.owner.credit)
        try:
            data = os.read(self.fd, size)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last process has closed the terminal
            data = b""
        if not data:
            self.close()
            self.owner.source_closed()
        elif not self.owner.discarding:
            self.owner.send("data", data, s=self.stream)

    def close(self) -> "None":
        """Close the descriptor."""
        if self.fd >= 0:
            if self.on:
                self.owner.agent.selector.unregister(self.fd)
                self.on = False
            close_fd(self.fd)
            self.fd = -1


class Sink:
    """A writable descriptor fed by the client; credit goes back when bytes are really written."""

    def __init__(self, owner: "Stream", fd: "int", finish: "Callable[[int], bytes]") -> None:
        self.owner, self.fd = owner, fd
        self.parts = collections.deque()  # type: collections.deque[memoryview]
        self.finish = finish  # at end of input: returns last bytes to write (a terminal's ^D)
        self.ending = False
        self.on = False
        os.set_blocking(fd, False)

    def feed(self, data: "bytes") -> "None":
        """Queue bytes and write what goes."""
        if self.fd >= 0 and data:
            self.parts.append(memoryview(data))
            if not self.on:
                self.ready()

    def eof(self) -> "None":
        """Close when everything is written."""
        if self.fd >= 0 and not self.ending:
            self.ending = True
            if not self.parts:
                self.last()

    def last(self) -> "None":
        """Everything is written: say so in the way of this kind of descriptor."""
        words = self.finish(self.fd)
        if words:
            self.ending = False
            self.feed(words)
        else:
            self.close()

    def ready(self) -> "None":
        """Write as much as goes; listen for more room otherwise."""
        written = 0
        try:
            while self.parts:
                count = os.write(self.fd, self.parts[0][:CHUNK])
                written += count
                rest = self.parts[0][count:]
                if len(rest):
                    self.parts[0] = rest
                else:
                    self.parts.popleft()
        except BlockingIOError:
            pass
        except OSError:  # EPIPE, EIO: nobody reads
            self.close()
            self.owner.send("deaf")
            return
        if written and not self.owner.over:
            self.owner.send("credit", n=written)
        self.listen(bool(self.parts))
        if self.ending and not self.parts:
            self.last()

    def listen(self, want: "bool") -> "None":
        """Wait for room, or do not."""
        if want != self.on:
            self.on = want
            if want:
                self.owner.agent.selector.register(self.fd, selectors.EVENT_WRITE, self.ready)
            else:
                self.owner.agent.selector.unregister(self.fd)

    def close(self) -> "None":
        """Close the descriptor and drop what was not written."""
        if self.fd >= 0:
            self.listen(False)
            close_fd(self.fd)
            self.fd = -1
            self.parts.clear()


class Stream(Request):
    """A request with live bytes in both directions: a process or a connection."""

    def __init__(self, agent: "Agent", head: "dict[str, Any]") -> None:
        super().__init__(agent, head)
        self.sources = []  # type: list[Source]
        self.sink = None  # type: Sink | None
        self.discarding = False
        self.early = collections.deque()  # type: collections.deque[bytes]  # input before there is a sink
        self.early_eof = False

    def attach(self, sources: "list[tuple[int, int]]", sink: "int", finish: "Callable[..., bytes]") -> "None":
        """Begin to move bytes."""
        self.sources = [Source(self, fd, number) for fd, number in sources]
        if sink >= 0:
            self.sink = Sink(self, sink, finish)
            for data in self.early:
                self.sink.feed(data)
            if self.early_eof:
                self.sink.eof()
        self.early.clear()

    def on_data(self, payload: "bytes") -> "None":
        if self.sink:
            self.sink.feed(payload)
        else:
            self.early.append(payload)

    def on_eof(self) -> "None":
        self.early_eof = True
        if self.sink:
            self.sink.eof()

    def resume(self) -> "None":
        for source in self.sources:
            source.update()

    def source_closed(self) -> "None":
        """One source has come to its end."""

    def close(self) -> "None":
        super().close()
        for source in self.sources:
            source.close()
        if self.sink:
            self.sink.close()


class Process(Stream):
    """A program in its own session. The request ends when the whole group is gone."""

    def __init__(self, agent: "Agent", head: "dict[str, Any]", payload: "bytes") -> None:
        super().__init__(agent, head)
        self.pid = 0
        self.code = None  # type: int | None
        self.master = -1
        self.tty = head.get("tty")
        self.deadline = 0.0  # of the SIGTERM; 0 while nobody has asked for the end
        self.stuck_at = 0.0
        self.wanted = None  # type: dict[str, Any] | None  # a cancel that came before the start
        if payload:
            self.early.append(payload)
        self.early_eof = bool(head.get("eof"))
        self.null_input = self.early_eof and not payload and not self.tty
        argv = [raw(word) for word in head["argv"]]
        env = dict(os.environb)
        for name, value in (head.get("env") or {}).items():
            if value is None:
                env.pop(raw(name), None)
            else:
                env[raw(name)] = raw(value)
        cwd = raw(head["cwd"]) if head.get("cwd") else None
        agent.spawning += 1
        agent.pool.submit(lambda: self.spawn(argv, env, cwd), self.started)

    def spawn(
        self, argv: "list[bytes]", env: "dict[bytes, bytes]", cwd: "bytes | None"
    ) -> "tuple[int, list[int]]":
        """In a worker: start it; (pid, our ends: stdin, stdout, stderr)."""
        ours, theirs = [], []  # type: list[int], list[int]
        try:
            if self.tty:
                master, slave = os.openpty()
                ours, theirs = [os.dup(master), master, -1], [slave, slave, slave]
                set_size(master, self.tty)
                env.setdefault(b"TERM", b"xterm")
            else:
                for index in range(3):
                    near, far = self.ends(index)
                    ours.append(near)
                    theirs.append(far)
            popen = subprocess.Popen(
                argv, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2], env=env, cwd=cwd,
                start_new_session=True, preexec_fn=take_terminal if self.tty else None,
            )  # fmt: skip
        except BaseException:
            for fd in ours:
                close_fd(fd)
            raise
        finally:
            for fd in set(theirs):
                close_fd(fd)
        popen.returncode = 0  # the loop reaps it; keep subprocess from trying
        return popen.pid, ours

    def ends(self, index: "int") -> "tuple[int, int]":
        """Our end and the program's end of one standard stream."""
        if index == 0:
            if self.null_input:
                return -1, os.open(os.devnull, os.O_RDONLY)
            far, near = os.pipe()
            return near, far
        near, far = os.pipe()
        try:
            fcntl.fcntl(near, F_SETPIPE_SZ, CHUNK)
        except OSError:  # the user's share of pipe memory is used up; a small pipe works too
            pass
        return near, far

    def started(self, result: "tuple[int, list[int]] | None", error: "BaseException | None") -> "None":
        """In the loop: it runs, or could not be started."""
        agent = self.agent
        agent.spawning -= 1
        if result is None:
            self.fail(error or OSError("no process"))
            return
        self.pid, (stdin, stdout, stderr) = result
        agent.processes[self.pid] = self
        self.master = stdout if self.tty else -1
        self.send("started", pid=self.pid)
        sources = [(stdout, 1)] + ([(stderr, 2)] if stderr >= 0 else [])
        self.attach(sources, stdin, self.last_words)
        status = agent.early.pop(self.pid, None)
        if not agent.spawning:
            agent.early.clear()
        if status is not None:
            self.exited(status)
        if self.wanted:
            self.on_cancel(self.wanted)

    def last_words(self, fd: "int") -> "bytes":
        """A terminal is told the end of input by its own character."""
        if not self.tty:
            return b""
        import termios

        words = termios.tcgetattr(fd)[6][termios.VEOF]
        return words if isinstance(words, bytes) else bytes([words])

    def exited(self, status: "int") -> "None":
        """The leader is reaped; others of its group may live."""
        if os.WIFSIGNALED(status):
            self.code = 128 + os.WTERMSIG(status)
        else:
            self.code = os.WEXITSTATUS(status)
        self.send("exit", code=self.code)
        self.check()

    def source_closed(self) -> "None":
        self.check()

    def check(self) -> "None":
        """Finish when the leader and its streams are over; end what is left of the group."""
        if self.code is None or self.over or self.deadline:
            return
        if all(source.fd < 0 for source in self.sources):
            if self.master < 0 and not self.group_lives():
                self.end(code=self.code)
            else:
                self.on_cancel({"grace": 0.5})

    def group_lives(self) -> "bool":
        """Is a process left in the group? (The kernel keeps the number while there is one.)"""
        if self.code is not None and os.path.exists("/proc/%d" % self.pid):
            return False  # the number belongs to a new process: ours are long gone
        try:
            os.killpg(self.pid, 0)
        except OSError as error:
            return error.errno == errno.EPERM
        return True

    def members(self) -> "set[int]":
        """Process groups that still live in the session we made."""
        found = self.agent.sessions().get(self.pid, {})
        if self.code is not None and self.pid in found:
            return set()
        return set(found.values())

    def on_signal(self, head: "dict[str, Any]") -> "None":
        if self.pid and (self.code is None or self.group_lives()):
            self.kill(self.pid, head["n"])

    def kill(self, group: "int", number: "int") -> "None":
        """Signal a group; one that is gone is no error."""
        try:
            os.killpg(group, number)
        except OSError:
            pass

    def on_resize(self, head: "dict[str, Any]") -> "None":
        if self.tty and self.sources and self.sources[0].fd >= 0:
            set_size(self.sources[0].fd, head["tty"])

    def on_cancel(self, head: "dict[str, Any]") -> "None":
        """End every process of the session: SIGTERM, a grace, SIGKILL; `end` is sent when they are gone."""
        if not self.pid:
            self.wanted = head
            return
        grace = float(head.get("grace", 2.0))
        now = time.monotonic()
        if not self.deadline:
            self.deadline = now + grace
            self.discarding = True
            if self.sink:
                self.sink.close()
            self.resume()
            for group in self.members():
                self.kill(group, signal.SIGTERM)
                self.kill(group, signal.SIGCONT)
            self.hunt()
        else:
            self.deadline = min(self.deadline, now + grace)

    def hunt(self) -> "None":
        """Look whether they are gone; after the grace, kill."""
        if self.over:
            return
        now = time.monotonic()
        groups = self.members()
        if self.code is not None and not groups:
            self.end(code=self.code)
            return
        if now >= self.deadline:
            self.stuck_at = self.stuck_at or now + STUCK
            if now >= self.stuck_at:
                self.end(code=self.code, stuck=True)
                return
            for group in groups:
                self.kill(group, signal.SIGKILL)
        self.agent.later(0.02, self.hunt)

    def close(self) -> "None":
        super().close()
        self.agent.processes.pop(self.pid, None)


def take_terminal() -> "None":
    """In the child: make its standard input the session's terminal."""
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def set_size(fd: "int", size: "list[int]") -> "None":
    """Give a terminal its columns and rows."""
    import termios

    columns, rows = size
    try:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    except OSError:
        pass


class Connection(Stream):
    """A TCP or Unix socket as seen from here."""

    def __init__(self, agent: "Agent", head: "dict[str, Any]") -> None:
        super().__init__(agent, head)
        address = head["address"]
        agent.pool.submit(lambda: self.dial(address), self.connected)

    def dial(self, address: "Any") -> "socket.socket":
        """In a worker: connect, which may take the system's time."""
        if isinstance(address, str):
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(raw(address))
            except BaseException:
                sock.close()
                raise
        else:
            sock = socket.create_connection((address[0], int(address[1])), 30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return sock

    def connected(self, sock: "socket.socket | None", error: "BaseException | None") -> "None":
        """In the loop: move bytes."""
        if sock is None or self.over:
            if sock is not None:
                sock.close()
            self.fail(error or OSError("no connection"))
            return
        self.send("started", pid=0)
        fd = sock.detach()
        self.attach([(fd, 1)], os.dup(fd), self.half_close)

    def half_close(self, fd: "int") -> "bytes":
        """Tell the other side that no more comes, and go on reading."""
        copy = socket.socket(fileno=os.dup(fd))
        try:
            copy.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        copy.close()
        return b""

    def source_closed(self) -> "None":
        self.send("exit", code=0)
        self.end(code=0)
