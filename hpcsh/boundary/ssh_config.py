"""Where an SSH target is: the user's ssh_config, read as OpenSSH reads it, and checked names.

Parsing is paramiko's; `Include`, which it does not know, is expanded here.
"""

from __future__ import annotations

import getpass
import glob
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import msgspec

from hpcsh.errors import UsageError

SYSTEM_CONFIG = "/etc/ssh/ssh_config"
DEFAULT_IDENTITIES = ("id_ed25519", "id_ecdsa", "id_rsa")
GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
MAX_INCLUDES = 16


class Destination(msgspec.Struct, frozen=True):
    """One hop: an SSH server and how to be let in."""

    alias: str
    """The name the user gave."""
    host: str
    port: int
    user: str
    known_as: str
    """The name to look for in known_hosts."""
    known_hosts: tuple[str, ...]
    identities: tuple[str, ...]
    identities_only: bool
    jumps: tuple[str, ...]
    """`user@host:port` of the servers to go through, the nearest first."""
    proxy_command: str
    timeout: float

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.user}@{self.alias}"


def check_host(host: str) -> str:
    """Refuse a host name that a program or shell could read as something else."""
    if not host or host.startswith("-") or not re.fullmatch(r"[\w.:%-]+", host):
        raise UsageError(
            f"{host!r} is not a host name",
            why="letters, digits and . : % _ - are possible, and no - at the beginning",
        )
    return host


def check_user(user: str) -> str:
    """Refuse a user name that a program or shell could read as something else (CVE-2023-51385)."""
    bad = any(c in "'`\";&<>|(){}$!*?#" or c.isspace() or not c.isprintable() for c in user)
    if not user or user.startswith("-") or user.endswith("\\") or bad:
        raise UsageError(
            f"{user!r} is not a user name",
            why="no spaces, control characters or characters of a shell, and no - at the beginning",
        )
    return user


def resolve(
    alias: str, *, user: str | None = None, port: int | None = None, config: str | None = None
) -> Destination:
    """Look a host up in ssh_config. `config` None: ~/.ssh/config and the system's; a path: that file only."""
    check_host(alias)
    options = _lookup(alias, _overrides(user, port) + _read(config))
    host = check_host(str(options.get("hostname", alias)))
    number = _port(str(options.get("port", "22")))
    files = options.get("identityfile")
    identities = files if isinstance(files, list) else _default_identities()
    jumps = _jumps(str(options.get("proxyjump", "none")))
    command = str(options.get("proxycommand") or "none")
    known_as = str(options.get("hostkeyalias") or (host if number == 22 else f"[{host}]:{number}"))
    return Destination(
        alias=alias,
        host=host,
        port=number,
        user=check_user(str(options.get("user") or getpass.getuser())),
        known_as=known_as.lower(),
        known_hosts=_known_hosts(options),
        identities=tuple(os.path.expanduser(name) for name in identities),
        identities_only=str(options.get("identitiesonly", "no")).lower() == "yes",
        jumps=jumps,
        proxy_command="" if jumps or command.lower() == "none" else command,
        timeout=_seconds(str(options.get("connecttimeout", "20"))),
    )


def split_jump(jump: str) -> tuple[str | None, str, int | None]:
    """User, host and port of one hop of a ProxyJump: `[user@]host[:port]` or `ssh://…`."""
    rest = jump.removeprefix("ssh://").rstrip("/")
    user, at, place = rest.rpartition("@")
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+|[^:]*:[^:]*:.*?))(?::(\d+))?", place)
    if match is None:
        raise UsageError(f"{jump!r} is not a host to jump through")
    host = check_host(match[1] or match[2])
    return (check_user(user) if at else None), host, (_port(match[3]) if match[3] else None)


def _overrides(user: str | None, port: int | None) -> str:
    """What the caller said, as lines before all others: the first value counts, tokens included."""
    lines = ["Host *"]
    if user is not None:
        lines.append(f"User {check_user(user)}")
    if port is not None:
        lines.append(f"Port {_port(str(port))}")
    return "\n".join(lines) + "\n"


def _lookup(alias: str, text: str) -> Mapping[str, object]:
    from paramiko import ConfigParseError, SSHConfig  # heavy: only when SSH is used

    try:
        found: Mapping[str, object] = SSHConfig.from_text(text).lookup(alias)
    except ConfigParseError as error:
        raise UsageError("ssh_config is wrong", why=str(error)) from error
    return found


def _read(config: str | None) -> str:
    """The text of the configuration, includes expanded."""
    if config is not None:
        if not os.path.isfile(os.path.expanduser(config)):
            raise UsageError(f"the ssh_config file {config} does not exist")
        return _expand(os.path.expanduser(config), "Host *", 0)
    mine = os.path.expanduser("~/.ssh/config")
    return _expand(mine, "Host *", 0) + _expand(SYSTEM_CONFIG, "Host *", 0)


def _expand(path: str, block: str, depth: int) -> str:
    """A file's lines under `block`; an include is followed by the line of the block it stood in."""
    if depth > MAX_INCLUDES:
        raise UsageError(f"ssh_config: too many levels of Include at {path}")
    try:
        text = Path(path).read_text("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=str(error.strerror)) from error
    lines = [block]
    for line in text.splitlines():
        words = re.split(r"[\s=]+", line.strip(), maxsplit=1)
        keyword = words[0].lower()
        if keyword in ("host", "match"):
            block = line
        if keyword == "include" and len(words) == 2:
            for name in shlex.split(words[1]):
                folder = "/etc/ssh" if path.startswith("/etc/") else os.path.expanduser("~/.ssh")
                pattern = os.path.join(folder, os.path.expanduser(name))
                lines += [_expand(found, block, depth + 1) for found in sorted(glob.glob(pattern))]
            lines.append(block)
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UsageError(f"{text!r} is not a port number")
    return int(text)


def _seconds(text: str) -> float:
    return float(text) if text.isdigit() and int(text) > 0 else 20.0


def _jumps(text: str) -> tuple[str, ...]:
    return () if text.lower() == "none" else tuple(jump.strip() for jump in text.split(","))


def _default_identities() -> list[str]:
    return [os.path.join("~/.ssh", name) for name in DEFAULT_IDENTITIES]


def _known_hosts(options: Mapping[str, object]) -> tuple[str, ...]:
    mine = shlex.split(str(options.get("userknownhostsfile") or "~/.ssh/known_hosts ~/.ssh/known_hosts2"))
    every = shlex.split(str(options["globalknownhostsfile"])) if "globalknownhostsfile" in options else None
    names = [*mine, *(GLOBAL_KNOWN_HOSTS if every is None else every)]
    return tuple(os.path.expanduser(name) for name in names if name.lower() != "none")
