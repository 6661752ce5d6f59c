"""The agent's file operations. What may block runs in worker threads."""

# This runs on the target, on Python 3.6 or later.
# ruff: noqa: D102

import errno
import json
import os
import stat

from hpcsh.boundary.agent_base import CHUNK, Request, close_fd, cooked, raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from hpcsh.boundary.agent import Agent


class Call(Request):
    """A file operation that answers once."""

    def __init__(self, agent: "Agent", head: "dict[str, Any]", work: "Callable[..., Any]") -> None:
        super().__init__(agent, head)
        agent.pool.submit(lambda: work(head), self.answered)

    def answered(self, result: "Any", error: "BaseException | None") -> "None":
        """In the loop: pass the answer on."""
        if error is not None:
            self.fail(error)
        else:
            self.end(result=result)


class Reader(Request):
    """Bytes of a file, or of a long answer, in pieces."""

    def __init__(self, agent: "Agent", head: "dict[str, Any]", opener: "Callable[..., Any]") -> None:
        super().__init__(agent, head)
        self.head = head
        self.busy = True
        self.file = None  # type: FileBytes | HeldBytes | None
        agent.pool.submit(lambda: opener(head), self.opened)

    def opened(self, file: "FileBytes | HeldBytes | None", error: "BaseException | None") -> "None":
        """In the loop: the first piece may be fetched."""
        self.busy = False
        if error is not None:
            self.fail(error)
        elif self.over and file is not None:
            file.close()
        else:
            self.file = file
            self.resume()

    def resume(self) -> "None":
        if self.file is not None and not self.busy and not self.over and self.clear():
            self.busy = True
            file, size = self.file, min(CHUNK, self.credit)
            self.agent.pool.submit(lambda: file.fetch(size), self.fetched)

    def fetched(self, data: "bytes | None", error: "BaseException | None") -> "None":
        """In the loop: send a piece and go on."""
        self.busy = False
        if error is not None:
            self.fail(error)
        elif not data:
            self.end()
        elif not self.over:
            self.send("data", data, s=1)
            self.resume()
        if self.over and self.file:
            self.file.close()

    def close(self) -> "None":
        super().close()
        if self.file and not self.busy:
            self.file.close()


class HeldBytes:
    """Bytes in memory, in pieces."""

    def __init__(self, data: "bytes") -> None:
        self.data, self.at = data, 0

    def fetch(self, size: "int") -> "bytes":
        """The next piece."""
        piece = self.data[self.at : self.at + size]
        self.at += len(piece)
        return piece

    def close(self) -> "None":
        """Let the bytes go."""
        self.data = b""


class FileBytes:
    """A part of a file, in pieces."""

    def __init__(self, head: "dict[str, Any]") -> None:
        self.fd = os.open(raw(head["path"]), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(self.fd)
            if stat.S_ISDIR(facts.st_mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            self.left = head.get("limit", -1)
            self.at = head.get("offset", 0)
            if self.at < 0:
                self.at = max(0, facts.st_size + self.at)
            self.seekable = stat.S_ISREG(facts.st_mode) or stat.S_ISBLK(facts.st_mode)
        except BaseException:
            os.close(self.fd)
            raise

    def fetch(self, size: "int") -> "bytes":
        """The next piece; empty at the end."""
        if self.left >= 0:
            size = min(size, self.left)
        if not size:
            return b""
        data = os.pread(self.fd, size, self.at) if self.seekable else os.read(self.fd, size)
        self.at += len(data)
        if self.left >= 0:
            self.left -= len(data)
        return data

    def close(self) -> "None":
        """Close the file, once."""
        close_fd(self.fd)
        self.fd = -1


class Writer(Request):
    """A file replaced, or created exclusively, as one step: temporary file, fsync, chmod, rename or link."""

    def __init__(self, agent: "Agent", head: "dict[str, Any]", payload: "bytes") -> None:
        super().__init__(agent, head)
        self.path, self.mode, self.exclusive = raw(head["path"]), head["mode"], head.get("exclusive", False)
        name = b".hpcsh-" + raw(head["token"]) + b".tmp"
        self.temporary = os.path.join(os.path.dirname(self.path), name)
        self.fd = -1
        self.parts = [payload] if payload else []
        self.eof = bool(head.get("eof"))
        self.busy = False
        self.broken = None  # type: BaseException | None
        self.cancelled = False
        self.resume()

    def on_data(self, payload: "bytes") -> "None":
        self.parts.append(payload)
        self.resume()

    def on_eof(self) -> "None":
        self.eof = True
        self.resume()

    def on_cancel(self, head: "dict[str, Any]") -> "None":
        self.cancelled = True
        self.resume()

    def resume(self) -> "None":
        """One step at a time, in a worker."""
        if self.busy or self.over:
            return
        if self.cancelled or self.broken:
            self.busy = True
            self.agent.pool.submit(self.undo, self.undone)
        elif self.parts or self.eof:
            data, self.parts, last = b"".join(self.parts), [], self.eof
            self.busy = True
            self.agent.pool.submit(lambda: self.step(data, last), self.stepped)

    def step(self, data: "bytes", last: "bool") -> "tuple[int, bool, bool]":
        """In a worker: write; at the end, put the file in its place. (bytes, done, made)."""
        if self.fd < 0:
            if self.exclusive and os.path.lexists(self.path):
                return len(data), True, False
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self.fd = os.open(self.temporary, flags, 0o600)
        view = memoryview(data)
        while len(view):
            view = view[os.write(self.fd, view) :]
        if not last:
            return len(data), False, False
        os.fchmod(self.fd, self.mode)
        os.fsync(self.fd)
        fd, self.fd = self.fd, -1
        os.close(fd)  # a quota on a network file system may speak up only here
        made = self.place()
        sync_directory(os.path.dirname(self.path))
        return len(data), True, made

    def place(self) -> "bool":
        """Give the finished file its name; False when an exclusive one was already there."""
        if not self.exclusive:
            os.rename(self.temporary, self.path)
            return True
        try:
            os.link(self.temporary, self.path)
            made = True
        except FileExistsError:  # or NFS lost the answer: two links say that it was ours
            made = os.stat(self.temporary).st_nlink == 2
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            made = self.place_by_copy()
        os.unlink(self.temporary)
        return made

    def place_by_copy(self) -> "bool":
        """Where there are no hard links: create it exclusively and fill it."""
        try:
            target = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self.mode)
        except FileExistsError:
            return False
        with open(self.temporary, "rb") as source, open(target, "wb") as file:
            for piece in iter(lambda: source.read(CHUNK), b""):
                file.write(piece)
            file.flush()
            os.fchmod(target, self.mode)
            os.fsync(target)
        return True

    def stepped(self, result: "tuple[int, bool, bool] | None", error: "BaseException | None") -> "None":
        """In the loop: give credit back, go on, or end."""
        self.busy = False
        if result is None:
            self.broken = error or OSError("not written")
            self.resume()
            return
        count, done, made = result
        if done:
            self.end(result=made)
        else:
            self.send("credit", n=count)
            self.resume()

    def undo(self) -> "None":
        """In a worker: leave no temporary file."""
        opened, self.fd = self.fd, -1
        if opened >= 0:
            close_fd(opened)
        try:
            os.unlink(self.temporary)  # the name is ours alone: it has our random token
        except OSError:
            pass

    def undone(self, result: "None", error: "BaseException | None") -> "None":
        """In the loop: say why."""
        self.busy = False
        if self.broken:
            self.fail(self.broken)
        else:
            self.end(cancelled=True)


def sync_directory(path: "bytes") -> "None":
    """Make a new name last; where the file system does not do that, nothing is lost."""
    try:
        fd = os.open(path or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    os.close(fd)


def facts_of(path: "bytes", name: "bytes") -> "list[Any]":
    """What the client's FileInfo holds, in its order."""
    info = os.lstat(path)
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}
    kind = kinds.get(stat.S_IFMT(info.st_mode), "other")
    return [cooked(name), kind, info.st_size, stat.S_IMODE(info.st_mode), info.st_mtime, info.st_uid]


def do_stat(head: "dict[str, Any]") -> "list[Any] | None":
    """Facts of a path, or None."""
    path = raw(head["path"])
    try:
        return facts_of(path, path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def open_list(head: "dict[str, Any]") -> "HeldBytes":
    """Facts of a directory's entries as JSON; one that vanishes meanwhile is left out."""
    path = raw(head["path"])
    found = []
    for name in sorted(os.listdir(path)):
        whole = os.path.join(path, name)
        try:
            found.append(facts_of(whole, whole))
        except FileNotFoundError:
            pass
    return HeldBytes(json.dumps(found, separators=(",", ":")).encode("ascii"))


def do_mkdir(head: "dict[str, Any]") -> "None":
    """Make a directory and its parents."""
    path, mode = raw(head["path"]), head["mode"]
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        parent = os.path.dirname(path.rstrip(b"/"))
        if parent == path:
            break
        path = parent
    for part in reversed(missing):
        try:
            os.mkdir(part, mode)
            os.chmod(part, mode)  # mkdir's mode is subject to the umask
        except FileExistsError:
            if not os.path.isdir(part):
                raise


def do_remove(head: "dict[str, Any]") -> "bool":
    """Remove a file, an empty directory, or a tree; links are removed, never followed."""
    path = raw(head["path"])
    try:
        is_dir = stat.S_ISDIR(os.lstat(path).st_mode)
        if not is_dir:
            os.unlink(path)
        elif not head.get("recursive"):
            os.rmdir(path)
        else:
            import shutil

            shutil.rmtree(path)
    except (FileNotFoundError, NotADirectoryError):
        return not os.path.lexists(path) and False
    return True


def do_rename(head: "dict[str, Any]") -> "None":
    """Rename within a file system."""
    os.rename(raw(head["old"]), raw(head["new"]))
