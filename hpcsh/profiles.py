"""Profiles: which engine, on which target, with which defaults.

Looked for, first wins: the user's `$XDG_CONFIG_HOME/hpcsh/profiles/`, the site's `/etc/hpcsh/profiles/`,
the shipped ones. A profile is one YAML file whose stem is its name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from hpcsh.errors import USAGE, NotFoundError, UsageError
from hpcsh.model import Resources
from hpcsh.resources import shipped

ENGINES = ("virtual_node", "pmix")
_MEMORY = re.compile(r"(\d+)([KMGT]?)(?:i?B)?\Z", re.IGNORECASE)
_UNITS = {"K": 1 << 10, "": 1 << 20, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


class SSH(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A login node as OpenSSH names it; everything but `host` may come from the ssh_config."""

    host: str
    user: str | None = None
    port: int | None = None
    config: str | None = None


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the cluster is: exactly one of a lab by name, this machine, or a login node over SSH."""

    lab: str | None = None
    local: bool = False
    ssh: SSH | None = None
    python: str | None = None
    """Python (>= 3.6) on the target, where it is not found by itself."""

    def key(self) -> str:
        """One string per target: what has the same key shares one connection, one poller and its records.

        An alias means what its ssh_config says, so that another file makes another target.
        """
        more = {}
        if self.ssh and self.ssh.config:
            more["config"] = os.path.abspath(os.path.expanduser(self.ssh.config))
        if self.python:
            more["python"] = self.python
        return self._place() + (f"?{urlencode(more, safe='/')}" if more else "")

    def _place(self) -> str:
        if self.lab:
            return f"lab:{self.lab}"
        if self.ssh:
            user = f"{self.ssh.user}@" if self.ssh.user else ""
            port = f":{self.ssh.port}" if self.ssh.port else ""
            return f"ssh:{user}{self.ssh.host}{port}"
        return "local"


class Images(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How images are pulled and run. `runtime` is "auto", "apptainer" or "podman"."""

    runtime: str = "auto"
    pool: str = "~/.hpcsh/images"
    plain_http: tuple[str, ...] = ()
    """Registries (host:port) that speak plain HTTP."""
    prefix: str = ""
    """Put before references that have no scheme and are no path (interLink's ImagePrefix)."""


class Poll(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often slurmctld may be asked, in seconds: never more often than `floor`."""

    floor: float = 2.0
    idle: float = 30.0


class Pmix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults of the pmix engine."""

    map_by: str | None = None
    mca: dict[str, str] = {}
    start_timeout: float = 60.0


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One profile. `name` and `origin` are filled in by `load`."""

    engine: str
    target: Target
    description: str = ""
    resources: Resources = Resources()
    setup: str = ""
    """Shell lines (`module load …`) run for the session's commands and at the start of every job."""
    inherit_env: bool = False
    workdir: str = "~/.hpcsh"
    images: Images = Images()
    poll: Poll = Poll()
    pmix: Pmix = Pmix()
    name: str = ""
    origin: str = ""


def directories() -> list[Path]:
    """Where profiles are looked for, most specific first."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [config / "hpcsh" / "profiles", Path("/etc/hpcsh/profiles"), shipped("profiles")]


def available() -> dict[str, Path]:
    """Every profile's name and file; of several with one name the most specific."""
    found: dict[str, Path] = {}
    for directory in directories():
        for path in sorted(directory.glob("*.yaml")) if directory.is_dir() else []:
            if path.is_file():
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def load(name: str) -> Profile:
    """Read and check a profile.

    Raises `NotFoundError` when there is none, `UsageError` naming file and line when it is wrong.
    """
    known = available()
    if not _NAME.match(name) or name not in known:
        raise NotFoundError(
            f"There is no profile {name!r}.",
            why=f"Known: {', '.join(known) or 'none'}",
            fix=f"choose one of these, or write {directories()[0]}/NAME.yaml",
            exit_code=USAGE,
        )
    try:
        data = known[name].read_bytes()
    except OSError as e:
        raise UsageError(f"{known[name]} cannot be read: {e.strerror}.") from None
    return parse(data, name, str(known[name]))


def parse(data: bytes, name: str, origin: str) -> Profile:
    """Check the bytes of a profile; the same errors as `load`."""
    import yaml

    try:
        raw: Any = yaml.safe_load(data)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        at = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{origin}{at} is not YAML.", why=str(getattr(e, "problem", e))) from None
    if isinstance(raw, dict) and isinstance(raw.get("resources"), dict):
        written = yaml.load(data, Loader=yaml.BaseLoader)["resources"]  # makes only strings
        raw["resources"] = {k: _as_written(k, v, written[str(k)]) for k, v in raw["resources"].items()}
    try:
        profile = msgspec.convert(raw, Profile)
    except msgspec.ValidationError as e:
        raise UsageError(f"{origin} is not a valid profile.", why=str(e), fix="correct the file") from None
    profile = msgspec.structs.replace(profile, name=name, origin=origin)
    _check(profile)
    return profile


def _as_written(name: str, value: Any, written: Any) -> Any:
    """A resource as the user wrote it: YAML makes numbers of `time: 1:30:00` (base 60) and `nodes: 2`."""
    if value is None or name in ("ntasks", "cpus_per_task", "flags"):
        return value
    return memory(written) if name == "memory" else written


def memory(text: Any) -> int:
    """Bytes of an amount of memory as sbatch's `--mem` reads it: MiB, or with K, M, G, T. `UsageError`."""
    found = _MEMORY.match(str(text).strip())
    if not found:
        raise UsageError(f"{text!r} is no amount of memory (--mem).", fix="write for example 500M or 4G")
    return int(found[1]) * _UNITS[found[2].upper()]


def _check(profile: Profile) -> None:
    if profile.engine not in ENGINES:
        raise UsageError(
            f"{profile.origin}: unknown engine {profile.engine!r}.", why=f"Engines: {', '.join(ENGINES)}"
        )
    target = profile.target
    if sum((target.lab is not None, target.local, target.ssh is not None)) != 1:
        raise UsageError(
            f"{profile.origin}: target needs exactly one of lab, local and ssh.",
            fix="for example `target: {ssh: {host: login.example.org}}`",
        )
    if profile.images.runtime not in ("auto", "apptainer", "podman"):
        raise UsageError(f"{profile.origin}: images.runtime is auto, apptainer or podman.")
    if profile.poll.floor < 1:
        raise UsageError(f"{profile.origin}: poll.floor is at least 1 second.")
