"""Carry connections from a loopback port of the machine to the lab's login node."""

from __future__ import annotations

import contextlib
import socket
import threading


def listen(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1: on `port`, or on a free one when that is 0 or taken."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.bind(("127.0.0.1", 0))
    sock.listen(200)
    return sock


def serve(listener: socket.socket, target: tuple[str, int]) -> None:
    """Accept for ever, in a thread of its own.

    The socket was made in the machine's network namespace and stays there; this process lives in the lab's,
    so that no process has to stand between.
    """
    threading.Thread(target=_accept, args=(listener, target), daemon=True).start()


def _accept(listener: socket.socket, target: tuple[str, int]) -> None:
    while True:
        with contextlib.suppress(OSError):
            near, _ = listener.accept()
            threading.Thread(target=_join, args=(near, target), daemon=True).start()


def _join(near: socket.socket, target: tuple[str, int]) -> None:
    try:
        far = socket.create_connection(target, timeout=10)
    except OSError:
        near.close()
        return
    far.settimeout(None)
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    back = threading.Thread(target=_pump, args=(far, near), daemon=True)
    back.start()
    _pump(near, far)
    back.join()
    near.close()
    far.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
