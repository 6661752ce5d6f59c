"""The running session host's record on disk, and the lock that makes it the only one in its place."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import msgspec

from hpcsh.serving import places


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """By which a host is found and, when it hangs, named. `boot` is the kernel's boot id."""

    pid: int
    host: str
    boot: str
    socket: str
    version: str


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write(record: HostRecord) -> None:
    """Replace the record."""
    path = places.record_path()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(record))
    os.replace(temporary, path)


def read() -> HostRecord | None:
    """The record of a host on this machine since it booted, else None. The host need not live any more."""
    try:
        record = msgspec.json.decode(places.record_path().read_bytes(), type=HostRecord)
    except (OSError, msgspec.DecodeError):
        return None
    return record if (record.host, record.boot) == (socket.gethostname(), boot_id()) else None


def try_lock(path: Path) -> int | None:
    """Lock a file; its descriptor, which holds the lock until it is closed, or None while another has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd
