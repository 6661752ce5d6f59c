"""Where the session host's socket and files are. Standard library only: every front end comes here."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from hpcsh.errors import RefusedError, UnavailableError

SUN_PATH = 108
"""Size of the kernel's socket address, final NUL included."""


def state_home() -> Path:
    """`$XDG_STATE_HOME/hpcsh`, the same as `store.state_dir`, which costs the import of SQLite."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "hpcsh"


def config_home() -> Path:
    """`$XDG_CONFIG_HOME/hpcsh`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "hpcsh"


def directories() -> tuple[str, ...]:
    """What two processes must agree on to be of one installation: the state and configuration homes."""
    return (os.path.realpath(state_home()), os.path.realpath(config_home()))


def runtime_directory() -> Path:
    """Where the socket is: `$HPCSH_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/hpcsh` when that is ours, else a
    directory of this machine's name under the state home (which several login nodes may share).
    """  # fmt: skip
    if override := os.environ.get("HPCSH_RUNTIME_DIR"):
        return Path(override)
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        try:
            facts = os.stat(base)
        except OSError:
            pass
        else:
            if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022:
                return Path(base) / "hpcsh"
    return state_home() / "run" / socket.gethostname().split(".")[0]


def socket_path() -> Path:
    """The session host's socket. Raises `UnavailableError` when the path is too long for the kernel."""
    path = runtime_directory() / "host.sock"
    if len(os.fsencode(path)) >= SUN_PATH:
        raise UnavailableError(
            f"The session host's socket path is longer than {SUN_PATH - 1} bytes.",
            why=str(path),
            fix="set HPCSH_RUNTIME_DIR to a short path of your own, for example ~/.hpcsh-run",
        )
    return path


def record_path() -> Path:
    """The running host's record: how it is found from a login with another runtime directory."""
    return state_home() / "host.json"


def log_path() -> Path:
    """The session host's log."""
    return state_home() / "host.log"


def check_private(directory: Path) -> None:
    """Raise `RefusedError` unless it is a real directory of ours that nobody else can enter."""
    facts = os.lstat(directory)
    fix = f"look at it, remove it (`rm -r {directory}`) if it is not in use, and try again"
    if not stat.S_ISDIR(facts.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(facts.st_mode) else "not a directory"
        raise RefusedError(f"{directory} is {kind}; the session host's socket must not be there.", fix=fix)
    if facts.st_uid != os.geteuid():
        raise RefusedError(f"{directory} belongs to uid {facts.st_uid}, not to you.", fix=fix)
    if facts.st_mode & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        raise RefusedError(
            f"{directory} has mode {mode:04o}: others can enter it.", fix=f"chmod 700 {directory}"
        )


def make_private(directory: Path) -> None:
    """Make a 0700 directory, and its parents; one that is there must pass `check_private`."""
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    check_private(directory)
