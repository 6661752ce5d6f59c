"""What `hpcsh lab status` says."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from hpcsh.errors import NotFoundError
from hpcsh.lab import config, image, paths, recipe
from hpcsh.lab.cluster import Lab

SERVICES = {
    "login": ("munged", "sshd", "mariadbd", "slurmdbd", "slurmctld", "docker-registry"),
    "compute": ("munged", "sshd", "slurmd"),
}


def collect(name: str) -> dict[str, Any]:
    """The facts about lab `name`; `state` is one of up, broken, down and absent."""
    lab = Lab(name)
    alive = lab.nodes()
    settings, facts = lab.settings(), lab.facts()
    found: dict[str, Any] = {
        "name": name, "state": "down" if lab.state.is_dir() else "absent", "directory": str(lab.state),
        "mode": "root" if os.geteuid() == 0 else "rootless", "nodes": [],
        "image": {"built": image.is_built(), "key": recipe.key(), "cache": str(paths.cache_root())},
    }  # fmt: skip
    if not alive:
        return found
    slurm = lab.slurm_states()
    found["nodes"] = [_node(lab, n, n in alive, slurm) for n in config.all_nodes(settings.nodes)]
    whole = all(n["alive"] and not n["missing"] for n in found["nodes"])
    can = facts.get("can", {})
    found |= {
        "state": "up" if whole and paths.is_up(name) else "broken",
        "since": facts.get("since"),
        "ssh": {
            "config": str(paths.ssh_config(name)), "host": "127.0.0.1", "port": settings.port,
            "users": [*config.USERS],
        },
        "registry": "login:5000",
        "can": {
            "memory_limits": bool(can.get("cgroups")), "gpus": config.GPUS if can.get("gpus") else 0,
            "fuse": bool(can.get("fuse")), "apptainer": _apptainer(lab),
        },
        "notices": _notices(can) + list(facts.get("notices", ())),
    }  # fmt: skip
    return found


def _node(lab: Lab, name: str, alive: bool, slurm: dict[str, str]) -> dict[str, Any]:
    wanted = SERVICES["login" if name == "login" else "compute"]
    running: set[str] = set()
    if alive:
        with contextlib.suppress(NotFoundError, OSError):
            running = set(lab.capture(name, ["ps", "-eo", "comm="], timeout=5).out.split())
    return {
        "name": name, "address": config.address(name), "alive": alive,
        "slurm": slurm.get(name, "" if name == "login" else "unknown"),
        "missing": [s for s in wanted if s[:15] not in running],
    }  # fmt: skip


def _apptainer(lab: Lab) -> str | None:
    with contextlib.suppress(NotFoundError, OSError):
        answer = lab.capture("login", ["cat", "/etc/hpcsh-apptainer"], timeout=5)
        return answer.out.split()[-1] if answer.code == 0 and answer.out.strip() else None
    return None


def _notices(can: dict[str, Any]) -> list[str]:
    told = []
    if not can.get("cgroups"):
        why = "not root" if os.geteuid() else "no writable cgroup v1 hierarchies"
        told.append(f"memory limits of jobs are not enforced ({why}); processes are tracked without cgroups")
    if not can.get("fuse"):
        told.append("/dev/fuse is not usable: apptainer unpacks an image each time instead of mounting it")
    return told


def as_text(found: dict[str, Any]) -> str:
    """The facts for a person."""
    lines = [f"Lab {found['name']}: {found['state']} ({found['mode']}), {found['directory']}"]
    if found["state"] in ("down", "absent"):
        built = "built" if found["image"]["built"] else "not built yet"
        return f"{lines[0]}\n  image     {built}\n  start it  hpcsh lab up {found['name']}"
    for node in found["nodes"]:
        state = node["slurm"] or "-"
        missing = f"not running: {' '.join(node['missing'])}" if node["missing"] else ""
        trouble = missing if node["alive"] else "dead"
        lines.append(f"  {node['name']:<6} {node['address']:<12} {state:<12} {trouble}".rstrip())
    can = found["can"]
    minutes = (time.time() - found["since"]) / 60 if found["since"] else 0
    lines += [
        f"  up for    {minutes:.0f} min",
        f"  ssh       ssh -F {found['ssh']['config']} login   (port {found['ssh']['port']})",
        f"  registry  {found['registry']} (plain http: apptainer needs --no-https)",
        f"  apptainer {can['apptainer'] or 'not installed'}",
        f"  memory    limits {'enforced' if can['memory_limits'] else 'not enforced'}",
        f"  gpus      {can['gpus']} a node, with no card behind them",
        *(f"  note      {notice}" for notice in found["notices"]),
    ]
    return "\n".join(lines)
