"""Getting an authenticated SSH connection, also through other hosts. Blocking; imports paramiko."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from typing import IO

import paramiko

from hpcsh.boundary import host_keys
from hpcsh.boundary.ssh_auth import Login, Question
from hpcsh.boundary.ssh_config import Destination, resolve, split_jump
from hpcsh.errors import TargetError, UsageError

# Its errors reach the user through our exceptions; without a handler Python prints them on the terminal.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

MAX_JUMPS = 8
TCP_KEEPALIVE = 30
WINDOW = 8 * 1024 * 1024
PACKET = 256 * 1024
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""Preferred, where both sides have them: one pass in C instead of a cipher and a MAC."""


class Dialer:
    """One attempt to connect, and what it has opened. `abandon` may be called from another thread."""

    def __init__(self, config: str | None, ask: Question) -> None:
        self._config, self._ask = config, ask
        self._opened: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._abandoned = False
        self._words: IO[bytes] | None = None

    def dial(self, to: Destination, depth: int = 0) -> paramiko.Transport:
        """An authenticated connection; raises `TargetError`."""
        sock = self._socket(to, depth)
        transport = paramiko.Transport(sock, default_window_size=WINDOW, default_max_packet_size=PACKET)
        self._own(transport.close)
        transport.daemon = True
        transport.banner_timeout = transport.auth_timeout = to.timeout
        options = transport.get_security_options()
        ciphers = tuple(options.ciphers)
        options.ciphers = [c for c in CIPHERS if c in ciphers] + [c for c in ciphers if c not in CIPHERS]
        known = [line.kind for line in host_keys.known_keys(to.known_hosts, to.known_as) if not line.marker]
        options.key_types = _known_first(tuple(options.key_types), known)
        try:
            transport.start_client(timeout=to.timeout)
            key = transport.get_remote_server_key()
        except (paramiko.SSHException, OSError, EOFError) as error:
            why = "; ".join(words for words in (str(error), self._proxy_words()) if words)
            what = f"{to.label} does not answer as an SSH server"
            raise TargetError(what, why=why, fix=_try(to, self._config)) from error
        host_keys.check(to.known_hosts, to.known_as, to.label, key.get_name(), key.asbytes())
        transport.auth_timeout = 600  # a person may have to find a token
        try:
            Login(transport, to, self._ask).run()
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise TargetError(
                f"{to.label} ended the login", why=str(error), fix=_try(to, self._config)
            ) from error
        transport.set_keepalive(TCP_KEEPALIVE)
        return transport

    def abandon(self) -> None:
        """Close everything, the last first; a `dial` under way fails."""
        with self._lock:
            self._abandoned = True
            opened, self._opened = self._opened, []
        for close in reversed(opened):
            with contextlib.suppress(Exception):
                close()

    def _own(self, close: Callable[[], object]) -> None:
        with self._lock:
            self._opened.append(close)
            abandoned = self._abandoned
        if abandoned:
            self.abandon()
            raise TargetError("the connection attempt was given up")

    def _socket(self, to: Destination, depth: int) -> socket.socket | paramiko.Channel:
        if to.jumps:
            return self._jump(to, depth)
        if to.proxy_command:
            return self._proxy(to)
        try:
            sock = socket.create_connection((to.host, to.port), to.timeout)
        except OSError as error:
            words = error.strerror or str(error)
            raise TargetError(
                f"cannot reach {to.host} port {to.port}", why=words, fix=_try(to, self._config)
            ) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._own(sock.close)
        return sock

    def _jump(self, to: Destination, depth: int) -> paramiko.Channel:
        """Through ProxyJump: each hop is looked up, checked and logged in to like a target."""
        if depth >= MAX_JUMPS:
            raise UsageError(f"ssh_config: more than {MAX_JUMPS} jumps to {to.alias}; is it a circle?")
        *before, last = to.jumps
        user, host, port = split_jump(last)
        hop = resolve(host, user=user, port=port, config=self._config)
        if before:
            hop = _through(hop, tuple(before))
        transport = self.dial(hop, depth + 1)
        try:
            place = (to.host, to.port)
            return transport.open_channel("direct-tcpip", place, ("127.0.0.1", 0), timeout=to.timeout)
        except (paramiko.SSHException, OSError) as error:
            raise TargetError(f"{hop.label} cannot reach {to.host} port {to.port}", why=str(error)) from error

    def _proxy(self, to: Destination) -> socket.socket:
        """Through ProxyCommand, run by a shell as OpenSSH does; the names in it have been checked."""
        ours, theirs = socket.socketpair()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (not our terminal: a screen may be drawn there)
        argv = ["/bin/sh", "-c", f"exec {to.proxy_command}"]
        try:
            end = theirs.fileno()
            process = subprocess.Popen(
                argv, stdin=end, stdout=end, stderr=self._words, start_new_session=True
            )
        except OSError as error:
            ours.close()
            raise TargetError(f"cannot run the ProxyCommand of {to.alias}", why=str(error)) from error
        finally:
            theirs.close()
        self._own(ours.close)
        self._own(lambda: _end(process))
        return ours

    def _proxy_words(self) -> str:
        """What the proxy command said on standard error."""
        if self._words is None:
            return ""
        self._words.seek(0)
        return self._words.read()[-1000:].decode("utf-8", "replace").strip()


def send_signal(channel: paramiko.Channel, name: str) -> None:
    """Ask the server to signal the command's process group (RFC 4254, 6.9; paramiko has no call for it)."""
    message = paramiko.Message()
    message.add_byte(bytes([98]))  # SSH_MSG_CHANNEL_REQUEST
    message.add_int(channel.remote_chanid)
    message.add_string("signal")
    message.add_boolean(False)
    message.add_string(name)
    transport = channel.get_transport()
    if transport is not None and transport.is_active():
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            transport._send_user_message(message)  # type: ignore[attr-defined]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a proxy command and what it started."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _through(hop: Destination, before: tuple[str, ...]) -> Destination:
    from msgspec.structs import replace

    return replace(hop, jumps=before, proxy_command="")


def _known_first(offered: tuple[str, ...], known: list[str]) -> list[str]:
    """Ask for a kind of host key that known_hosts can check, as OpenSSH does."""
    names = set(known)
    if "ssh-rsa" in names:
        names |= {"rsa-sha2-256", "rsa-sha2-512"}
    return [kind for kind in offered if kind in names] + [kind for kind in offered if kind not in names]


def _try(to: Destination, config: str | None) -> str:
    where = f" -F {shlex.quote(config)}" if config else ""
    port = f" -p {to.port}" if to.port != 22 else ""
    return f"check that `ssh{where}{port} {to.user}@{to.alias} true` works from this machine"
