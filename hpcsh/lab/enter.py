"""Run a program on a node from the machine, by joining the node's namespaces."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from hpcsh.errors import HpcshError, NotFoundError, UsageError
from hpcsh.lab import config, kernel

_NAMESPACES = ("user", "cgroup", "ipc", "uts", "net", "pid", "mnt")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Output:
    """A program's exit code (128 + signal when killed, 124 when it took too long) and its output."""

    code: int
    out: str


def capture(pid: int, argv: list[str], *, user: str = "root", timeout: float) -> Output:
    """Run `argv` in the namespaces of process `pid`, standard output and error in one string; blocks."""
    read, write = os.pipe()

    def prepare() -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        for source, target in ((null, 0), (write, 1), (write, 2)):
            os.dup2(source, target)

    child = _spawn(pid, argv, user, prepare)
    os.close(write)
    deadline = time.monotonic() + timeout
    chunks: list[bytes] = []
    late = False
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, deadline - time.monotonic()))
        late = not ready
        data = os.read(read, 65536) if ready else b""
        if not data:
            break
        chunks.append(data)
    os.close(read)
    if late:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Output(124 if late else code, b"".join(chunks).decode(errors="replace"))


def run(pid: int, argv: list[str], *, user: str = "root") -> int:
    """Run `argv` on this process's own terminal or pipes; its exit code, 128 + signal when it was killed."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _run_on_terminal(pid, argv, user)
    child = _spawn(pid, argv, user, lambda: None)
    return _wait_passing_signals(child)


def _spawn(pid: int, argv: list[str], user: str, prepare: Callable[[], None]) -> int:
    """Fork a process that joins the namespaces and forks the program there; it ends as the program ends."""
    child = os.fork()
    if child:
        return child
    code = 126
    try:
        kernel.die_with_parent(signal.SIGKILL)
        prepare()
        _join(pid)
        code = _run_inside(argv, user)
    except FileNotFoundError as e:
        os.write(2, f"hpcsh lab: {e}\n".encode())
        code = 127
    except HpcshError as e:
        os.write(2, f"hpcsh lab: {e}\n".encode())
        code = e.exit_code
    except BaseException as e:
        os.write(2, f"hpcsh lab: {type(e).__name__}: {e}\n".encode())
    finally:
        os._exit(code)


def _join(pid: int) -> None:
    fds = []
    for name in _NAMESPACES:
        path = f"/proc/{pid}/ns/{name}"
        if os.path.exists(path) and os.stat(path).st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
            fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    for fd in fds:
        kernel.setns(fd)
        os.close(fd)


def _user(name: str) -> pwd.struct_passwd:
    """A user of the node that was joined; `UsageError` names the lab's."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        users = ", ".join(("root", *config.USERS))
        raise UsageError(f"There is no user {name} in this lab.", why=f"It has: {users}.") from None


def _run_inside(argv: list[str], user: str) -> int:
    who = _user(user)
    child = os.fork()
    if child:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _exit_code(os.waitpid(child, 0)[1])
    try:
        _become(who, argv)
    finally:
        os._exit(127)


def _become(who: pwd.struct_passwd, argv: list[str]) -> NoReturn:
    os.initgroups(who.pw_name, who.pw_gid)
    os.setresgid(who.pw_gid, who.pw_gid, who.pw_gid)
    os.setresuid(who.pw_uid, who.pw_uid, who.pw_uid)
    kernel.die_with_parent(signal.SIGKILL)
    os.umask(0o022)
    try:
        os.chdir(who.pw_dir)
    except OSError:
        os.chdir("/")
    environment = {
        "PATH": _PATH, "HOME": who.pw_dir, "USER": who.pw_name, "LOGNAME": who.pw_name,
        "SHELL": who.pw_shell, "LANG": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb"),
    }  # fmt: skip
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as e:
        os.write(2, f"hpcsh lab: {argv[0]}: {e.strerror}\n".encode())
        os._exit(127 if isinstance(e, FileNotFoundError) else 126)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _wait_passing_signals(child: int) -> int:
    def pass_on(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    before = [(s, signal.signal(s, pass_on)) for s in (signal.SIGTERM, signal.SIGHUP)]
    # The terminal sends it to the program as well.
    before.append((signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN)))
    try:
        return _exit_code(os.waitpid(child, 0)[1])
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _run_on_terminal(pid: int, argv: list[str], user: str) -> int:
    """The program gets a terminal of the node's own: one from outside has no name in there."""
    child = os.fork()
    if child == 0:
        code = 126
        try:
            kernel.die_with_parent(signal.SIGKILL)
            _join(pid)
            code = _proxy(argv, user)
        except HpcshError as e:
            os.write(2, f"hpcsh lab: {e}\n".encode())
            code = e.exit_code
        except BaseException as e:
            os.write(2, f"hpcsh lab: {type(e).__name__}: {e}\r\n".encode())
        finally:
            os._exit(code)
    saved = termios.tcgetattr(0)
    try:
        return _wait_passing_signals(child)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


def _proxy(argv: list[str], user: str) -> int:
    who = _user(user)
    master, slave = os.openpty()
    os.fchown(slave, who.pw_uid, 5)
    _copy_size(master)
    child = os.fork()
    if child == 0:
        try:
            os.close(master)
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            for fd in (0, 1, 2):
                os.dup2(slave, fd)
            _become(who, argv)
        finally:
            os._exit(126)
    os.close(slave)
    signal.signal(signal.SIGWINCH, lambda *_: _copy_size(master))
    tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is kept
    _shovel(master)
    return _exit_code(os.waitpid(child, 0)[1])


def _copy_size(master: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))


def _shovel(master: int) -> None:
    sources = [0, master]
    while True:
        ready, _, _ = select.select(sources, [], [])
        with contextlib.suppress(InterruptedError):
            if master in ready:
                try:
                    data = os.read(master, 65536)
                except OSError:  # the last one on the other side has closed it
                    return
                if not data:
                    return
                _write_all(1, data)
            if 0 in ready:
                data = os.read(0, 65536)
                if data:
                    _write_all(master, data)
                else:
                    sources = [master]
                    _write_all(master, b"\x04")


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def node_pid(nodes: dict[str, int], name: str) -> int:
    """The pid to join for node `name`; `NotFoundError` names those that there are."""
    if name not in nodes:
        raise NotFoundError(f"There is no node {name} in this lab.", why=f"It has: {', '.join(nodes)}.")
    return nodes[name]
