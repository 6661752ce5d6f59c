"""Unix sockets that only their own user can talk through."""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path

from hpcsh.errors import RefusedError
from hpcsh.serving.places import check_private

_UCRED = struct.Struct("3i")


def peer(sock: socket.socket) -> tuple[int, int]:
    """Pid and uid of the process at the other end, as the kernel noted them when it connected."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def is_ours(sock: socket.socket) -> bool:
    """True when the other end runs under our uid. Root is not us either."""
    return peer(sock)[1] == os.geteuid()


def listen(path: Path, *, backlog: int = 128) -> socket.socket:
    """Bind a 0600 socket in a directory that passed `check_private`.

    The caller holds the lock that makes it the only server here: what lies at `path` is a dead server's.
    """
    check_private(path.parent)
    try:
        facts = os.lstat(path)
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISSOCK(facts.st_mode):
            raise RefusedError(f"{path} is in the way and is not a socket.", fix=f"rm {path}")
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        os.chmod(path, 0o600)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
