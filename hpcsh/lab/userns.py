"""A user namespace in which an ordinary user is root and has his subordinate ids."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpcsh.lab import kernel

_LIMIT = 1 << 18  # more ids than the lab knows what to do with


@dataclass(frozen=True)
class IdMap:
    """Lines of a uid or gid map: (first id inside, first id outside, count)."""

    lines: tuple[tuple[int, int, int], ...]

    @property
    def size(self) -> int:
        """How many ids exist inside; they are 0 … size - 1."""
        return sum(count for _, _, count in self.lines)

    def arguments(self) -> list[str]:
        """The map as newuidmap and newgidmap want it."""
        return [str(number) for line in self.lines for number in line]


def subordinate(path: Path, uid: int, login: str) -> list[tuple[int, int]]:
    """The (first, count) ranges that `path` (/etc/subuid or /etc/subgid) gives to a user."""
    try:
        text = path.read_text()
    except OSError:
        return []
    ranges = []
    for line in text.splitlines():
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if owner in (login, str(uid)) and first.isdigit() and count.isdigit() and int(count):
            ranges.append((int(first), int(count)))
    return ranges


def which(tool: str) -> str | None:
    """Where a program is; also looks where a user's PATH often does not."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin")


def login_name() -> str:
    """The login name of this process's user; his number when he has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _id_map(path: Path, own: int) -> IdMap:
    lines = [(0, own, 1)]
    inside = 1
    for first, count in subordinate(path, os.geteuid(), login_name()):
        take = min(count, _LIMIT - inside)
        if take > 0:
            lines.append((inside, first, take))
            inside += take
    return IdMap(tuple(lines))


def uid_map() -> IdMap:
    """The uid map of this user's namespaces: he is 0, his subordinate uids follow from 1."""
    return _id_map(Path("/etc/subuid"), os.geteuid())


def gid_map() -> IdMap:
    """The gid map that goes with `uid_map`."""
    return _id_map(Path("/etc/subgid"), os.getegid())


def is_initial() -> bool:
    """Whether this process's ids are the machine's own."""
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def id_count() -> int:
    """How many user ids exist in this process's namespace."""
    return sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines())


def enter() -> None:
    """Put this (single-threaded) process into a new user namespace, as its root.

    A forked helper outside writes the maps with the setuid tools; `OSError` says which step failed.
    """
    uids, gids = uid_map(), gid_map()
    me = os.getpid()
    ready_r, ready_w = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(ready_w)
        os.read(ready_r, 1)
        os._exit(_write_maps(me, uids, gids))
    os.close(ready_r)
    kernel.unshare(kernel.CLONE_NEWUSER)
    os.write(ready_w, b"1")
    os.close(ready_w)
    _, status = os.waitpid(helper, 0)
    if status:
        raise OSError("newuidmap or newgidmap refused the subordinate ids in /etc/subuid and /etc/subgid")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setgroups([])


def _write_maps(pid: int, uids: IdMap, gids: IdMap) -> int:
    try:
        for tool, ids in (("newuidmap", uids), ("newgidmap", gids)):
            program = which(tool) or tool
            subprocess.run([program, str(pid), *ids.arguments()], check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return 1
    return 0


def call_as_root(work: Callable[[], None], *, extra: int = 0) -> bool:
    """Run `work` in a child that is root: in a user namespace when this user is ordinary.

    `extra` names further namespaces (`CLONE_NEW*`) for it. False when it raised; it has then printed why.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() != 0:
                enter()
            if extra:
                kernel.unshare(extra)
                if extra & kernel.CLONE_NEWNS:
                    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
            work()
            code = 0
        except BaseException as e:  # the child must never return into the caller's frames
            os.write(2, f"{type(e).__name__}: {e}\n".encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return status == 0
