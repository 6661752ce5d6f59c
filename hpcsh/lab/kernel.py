"""The Linux calls that Python 3.11 does not have: namespaces, mounts, death signals.

Every function raises `OSError` with the name of what it was asked to do.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_PLAIN = MS_NOSUID | MS_NODEV | MS_NOEXEC
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` (an or of `CLONE_NEW*`) for new ones."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare {flags:#x}")


def setns(fd: int) -> None:
    """Join the namespace that the open file `fd` (of `/proc/PID/ns/`) stands for."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(0)), "setns")


def mount(source: str, target: str | Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    kind_or_none, options_or_none = kind.encode() or None, options.encode() or None
    result = _libc.mount(
        source.encode(), os.fsencode(target), kind_or_none, ctypes.c_ulong(flags), options_or_none
    )
    _check(result, f"mount {kind or 'bind'} {source} on {target}")


def bind(source: str | Path, target: str | Path, *, recursive: bool = False) -> None:
    """Show `source` (a file or a directory) at `target` too."""
    mount(str(source), target, flags=MS_BIND | (MS_REC if recursive else 0))


def unmount(target: str | Path) -> None:
    """Detach the mount at `target` now; what is still open in it stays usable until closed."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root of this mount namespace and put the former root at `old`.

    A mere chroot would do for us but not for rootless containers: the kernel refuses user namespaces there.
    """
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(f"pivot_root: the system call number on {platform.machine()} is not known")
    _check(_libc.syscall(ctypes.c_long(number), os.fsencode(new), os.fsencode(old)), f"pivot_root {new}")


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace."""
    raw = name.encode()
    _check(_libc.sethostname(raw, ctypes.c_size_t(len(raw))), f"sethostname {name}")


def die_with_parent(signal: int) -> None:
    """Have the kernel send `signal` to this process when its parent ends; lost when credentials change."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal), 0, 0, 0), "prctl")
