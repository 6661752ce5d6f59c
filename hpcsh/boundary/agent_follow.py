"""The agent's follows: files that grow, are cut, replaced, or do not exist yet."""

# This runs on the target, on Python 3.6 or later.
# ruff: noqa: D102, UP031

import errno
import os
import selectors
import stat
import struct
import time

from hpcsh.boundary.agent_base import CHUNK, Request, close_fd, raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hpcsh.boundary.agent import Agent

SETTLE = 0.005  # a follow that got little waits this long, so that a chatty writer costs few frames
LITTLE = 32 * 1024
LOCAL_KINDS = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "f2fs", "ramfs", "devtmpfs")
)


class Inotify:
    """The kernel's notices, through ctypes; where that fails, polling does it alone."""

    FILE = 0x2 | 0x4 | 0x400 | 0x800  # IN_MODIFY, IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF
    DIRECTORY = 0x100 | 0x80  # IN_CREATE, IN_MOVED_TO
    GONE = 0x8000  # IN_IGNORED

    def __init__(self, agent: "Agent") -> None:
        self.followers = {}  # type: dict[int, set[Follow]]
        self.fd = -1
        try:
            import ctypes

            self.libc = ctypes.CDLL(None, use_errno=True)
            self.fd = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self.fd >= 0:
                agent.selector.register(self.fd, selectors.EVENT_READ, self.ready)
        except Exception:
            self.fd = -1

    def watch(self, path: "bytes", mask: "int") -> "int":
        """In a worker: watch a file or directory; -1 when that is impossible."""
        if self.fd < 0:
            return -1
        return int(self.libc.inotify_add_watch(self.fd, path, mask))

    def ready(self) -> "None":
        """Wake those whose file or directory has changed."""
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return
        at = 0
        woken = set()  # type: set[Follow]
        while at < len(data):
            watch, mask, _, length = struct.unpack_from("iIII", data, at)
            name = data[at + 16 : at + 16 + length].rstrip(b"\0")
            at += 16 + length
            followers = self.followers.get(watch, set())
            if mask & self.GONE:
                self.followers.pop(watch, None)
            woken.update(f for f in followers if not name or f.name == name)
            if watch < 0:  # IN_Q_OVERFLOW: anything may have changed
                woken.update(*self.followers.values())
        for follow in woken:
            follow.kick()

    def release(self, follow: "Follow") -> "None":
        """Drop a follower, and a watch that nobody needs any more."""
        for watch in follow.watches:
            followers = self.followers.get(watch)
            if followers is not None:
                followers.discard(follow)
                if not followers:
                    del self.followers[watch]
                    self.libc.inotify_rm_watch(self.fd, watch)
        follow.watches = set()


def is_local(device: "int") -> "bool":
    """Does inotify see every change on this device? Only when no other machine can write to it."""
    wanted = "%d:%d" % (os.major(device), os.minor(device))
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            for line in file:
                words = line.decode("utf-8", "replace").split()
                if words[2] == wanted:
                    return words[words.index("-") + 1] in LOCAL_KINDS
    except (OSError, ValueError, IndexError):
        pass
    return False


class Follow(Request):
    """A file that grows. Steps run in a worker, one at a time; everything else runs in the loop."""

    def __init__(self, agent: "Agent", head: "dict[str, Any]") -> None:
        super().__init__(agent, head)
        self.path = raw(head["path"])
        self.name = os.path.basename(self.path)
        self.at = head.get("offset", 0)
        self.to_end = bool(head.get("to_end"))
        self.interval = float(head.get("interval", 1.0))
        self.fd = -1
        self.stop_at = -1
        self.local = False
        self.busy = False
        self.dirty = False
        self.waiting = False  # said that there is no file yet
        self.watches = set()  # type: set[int]
        self.fresh = set()  # type: set[int]  # watches made by the step that runs
        self.alarm = None  # type: list[Any] | None
        self.alarm_at = 0.0
        self.quiet_until = 0.0
        self.kick()

    def resume(self) -> "None":
        if self.dirty:
            self.kick()

    def kick(self) -> "None":
        """Something may be there to read: look, unless a look is under way or too soon."""
        self.dirty = True
        if self.busy or self.over or not self.clear():
            return
        if time.monotonic() < self.quiet_until:
            self.wake_at(self.quiet_until)
            return
        self.busy, self.dirty = True, False
        size = min(CHUNK, self.credit)
        self.agent.pool.submit(lambda: self.step(size), self.stepped)

    def wake_at(self, when: "float") -> "None":
        """One alarm at a time: the earliest."""
        if self.alarm and self.alarm_at <= when:
            return
        if self.alarm:
            self.alarm[2] = None
        self.alarm_at = when
        self.alarm = self.agent.at(when, self.rang)

    def rang(self) -> "None":
        """The alarm: look again."""
        self.alarm = None
        self.kick()

    def step(self, size: "int") -> "tuple[list[tuple[str, bytes, int]], bool]":
        """In a worker: what is new, and whether to look again at once."""
        if self.fd < 0:
            events = self.open()
            if self.fd < 0:
                return events, False
        if self.stop_at >= 0:
            size = min(size, max(0, self.stop_at - self.at))
        data = b""
        try:
            data = os.pread(self.fd, size, self.at) if size else b""
        except OSError as error:
            if error.errno != errno.ESTALE:  # removed on the server: look at the name below
                raise
        if data:
            self.at += len(data)
            return [("data", data, self.at - len(data))], True
        return self.at_end()

    def open(self) -> "list[tuple[str, bytes, int]]":
        """In a worker: open the file and watch it; the "waiting" event when there is none."""
        inotify = self.agent.inotify()
        self.fresh.add(inotify.watch(os.path.dirname(self.path) or b".", inotify.DIRECTORY))
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            if self.to_end:
                raise
            told, self.waiting = self.waiting, True
            return [] if told else [("waiting", b"", 0)]
        self.adopt(fd)
        if self.at < 0:
            self.at = max(0, os.fstat(fd).st_size + self.at)
        if self.to_end:
            self.stop_at = os.fstat(fd).st_size
        return []

    def adopt(self, fd: "int") -> "None":
        """In a worker: this is the file now."""
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            os.close(fd)
            number = errno.EISDIR if stat.S_ISDIR(facts.st_mode) else errno.EINVAL
            raise OSError(number, os.strerror(number) + " (only a regular file can be followed)")
        old, self.fd = self.fd, fd
        if old >= 0:
            os.close(old)
        inotify = self.agent.inotify()
        watch = inotify.watch(b"/proc/self/fd/%d" % fd, inotify.FILE)
        self.fresh.add(watch)
        self.local = watch >= 0 and is_local(facts.st_dev)

    def at_end(self) -> "tuple[list[tuple[str, bytes, int]], bool]":
        """In a worker: nothing more to read; has the file been cut or replaced?"""
        if self.to_end:
            return [("end", b"", self.at)], False
        try:
            if os.fstat(self.fd).st_size < self.at:
                self.at = 0
                return [("truncated", b"", 0)], True
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        try:  # opening, unlike stat, makes a network file system ask its server
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return [], False
        if self.same(fd):
            os.close(fd)
            return [], False
        tail = self.last_of_old()
        if tail:
            os.close(fd)
            return tail, True
        self.adopt(fd)
        self.at = 0
        return [("rotated", b"", 0)], True

    def same(self, fd: "int") -> "bool":
        """Is this descriptor the file that we read?"""
        try:
            return os.path.samestat(os.fstat(fd), os.fstat(self.fd))
        except OSError:
            return False

    def last_of_old(self) -> "list[tuple[str, bytes, int]]":
        """What the writer added to the old file between our last read and the rotation."""
        try:
            data = os.pread(self.fd, min(CHUNK, max(1, self.credit)), self.at)
        except OSError:
            return []
        self.at += len(data)
        return [("data", data, self.at - len(data))] if data else []

    def stepped(self, result: "Any", error: "BaseException | None") -> "None":
        """In the loop: tell what the step found, and plan the next."""
        self.busy = False
        again = self.register()
        if self.over:
            self.let_go()
            return
        if error is not None:
            self.fail(error)
            return
        events, more = result
        for event, data, at in events:
            if event == "end":
                self.end()
                return
            self.send("data" if data else "event", data, event=event, at=at)
            if len(data) < LITTLE and not self.to_end:
                self.quiet_until = time.monotonic() + SETTLE
        self.wake_at(time.monotonic() + self.interval * (10 if self.local else 1))
        if more or again or self.dirty:
            self.kick()

    def register(self) -> "bool":
        """Take over the watches that a step made; True: look again, a notice may have come too early."""
        fresh = {watch for watch in self.fresh if watch >= 0} - self.watches
        self.fresh = set()
        for watch in fresh:
            self.agent.inotify().followers.setdefault(watch, set()).add(self)
            self.watches.add(watch)
        return bool(fresh)

    def let_go(self) -> "None":
        """Close the file and drop the watches."""
        if self.fd >= 0:
            close_fd(self.fd)
            self.fd = -1
        self.agent.inotify().release(self)
        if self.alarm:
            self.alarm[2] = None

    def close(self) -> "None":
        super().close()
        if not self.busy:
            self.let_go()
