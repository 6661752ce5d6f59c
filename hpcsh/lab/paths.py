"""Where labs live. Standard library only: front ends ask this module on their way up."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from hpcsh.errors import UsageError

DEFAULT = "default"
SYSTEM_CACHE = Path("/var/cache/hpcsh/lab")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def state_root() -> Path:
    """The directory that holds a directory per lab: `$HPCSH_LAB_STATE` or `$XDG_STATE_HOME/hpcsh/lab`."""
    if chosen := os.environ.get("HPCSH_LAB_STATE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_STATE_HOME", "")
    home = Path(base) if base.startswith("/") else Path.home() / ".local/state"
    return home / "hpcsh/lab"


def cache_root() -> Path:
    """Where this user builds images: `$HPCSH_LAB_CACHE`, or the system's cache (root), or his own."""
    if chosen := os.environ.get("HPCSH_LAB_CACHE"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return SYSTEM_CACHE
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "hpcsh/lab"


def cache_roots() -> list[Path]:
    """Where images that this user can read may be, his own place first; `$HPCSH_LAB_CACHE` stands alone."""
    own = cache_root()
    return [own] if os.environ.get("HPCSH_LAB_CACHE") or own == SYSTEM_CACHE else [own, SYSTEM_CACHE]


def lab_dir(name: str = DEFAULT) -> Path:
    """The state directory of lab `name`; it need not exist. A name that is not one raises `UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a lab.", fix="use up to 32 lower-case letters, digits and inner dashes"
        )
    # Processes are found by this path: it must be the same whichever way one came.
    return state_root().resolve() / name


def ssh_config(name: str = DEFAULT) -> Path:
    """The OpenSSH client configuration of lab `name`: hosts `login` and `hpcsh-lab-NAME`, user alice.

    Written by `lab up`; valid as long as the lab is not removed.
    """
    return lab_dir(name) / "ssh_config"


def read_record(name: str = DEFAULT) -> dict[str, Any]:
    """What the keeper of lab `name` wrote about itself; empty when there is nothing readable."""
    try:
        found = json.loads((lab_dir(name) / "keeper.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_up(name: str = DEFAULT) -> bool:
    """Whether lab `name` came up completely and its keeper lives. Cheap: three small files are read."""
    record = read_record(name)
    if not record.get("ready"):
        return False
    return record.get("boot") == boot_id() and record.get("start") == start_time(int(record.get("pid", 0)))


def names() -> list[str]:
    """The labs that have a state directory, sorted."""
    try:
        return sorted(p.name for p in state_root().iterdir() if p.is_dir() and _NAME.fullmatch(p.name))
    except OSError:
        return []


def boot_id() -> str:
    """This boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
