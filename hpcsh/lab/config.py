"""What a lab's nodes are told: addresses, the configuration of Slurm and SSH. Pure functions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from hpcsh.errors import UsageError

USERS = {"alice": 2001, "bob": 2002}
MAX_NODES = 200
GPUS = 2
BRIDGE = "10.77.0.254"


@dataclass(frozen=True)
class Settings:
    """What a lab is made with; kept over restarts."""

    name: str
    nodes: int = 3
    port: int = 0

    def as_json(self) -> dict[str, Any]:
        """For the state file."""
        return asdict(self)


@dataclass(frozen=True)
class Abilities:
    """What this machine let the lab have."""

    cgroups: bool
    gpus: bool
    fuse: bool  # whether ordinary users may mount with it
    ids: int  # how many user ids exist in the lab


def node_names(count: int) -> list[str]:
    """The compute nodes."""
    if not 1 <= count <= MAX_NODES:
        raise UsageError(f"A lab has 1 to {MAX_NODES} compute nodes, not {count}.")
    return [f"n{i}" for i in range(1, count + 1)]


def all_nodes(count: int) -> list[str]:
    """The login node and the compute nodes."""
    return ["login", *node_names(count)]


def address(node: str) -> str:
    """The node's address on the lab's own network."""
    return f"10.77.0.{10 + (0 if node == 'login' else int(node[1:]))}"


def files(settings: Settings, can: Abilities) -> dict[str, str]:
    """Path in the root file system → contents, for all that depends on the settings or on the machine."""
    count = settings.nodes
    gres = "GresTypes=gpu\nAccountingStorageTRES=gres/gpu" if can.gpus else ""
    values = {
        "count": str(count),
        "proctrack": "proctrack/cgroup" if can.cgroups else "proctrack/linuxproc",
        "task": "task/cgroup" if can.cgroups else "task/none",
        "gres": gres,
        "node_gres": f"Gres=gpu:{GPUS}" if can.gpus else "",
    }
    made = {
        "etc/hosts": _hosts(count),
        "etc/slurm/slurm.conf": Template(_template("etc/slurm/slurm.conf")).substitute(values),
        "etc/slurm/gres.conf": f"Name=gpu File=/dev/nvidia[0-{GPUS - 1}]\n" if can.gpus else "",
        "etc/subuid": _subordinate(can.ids),
        "etc/subgid": _subordinate(can.ids),
    }
    if not can.cgroups:
        made["etc/slurm/cgroup.conf"] = "CgroupPlugin=disabled\n"
    if not can.fuse:
        # What a site without it does for its users: images are unpacked instead of mounted.
        made["usr/local/bin/apptainer"] = '#!/bin/sh\nAPPTAINER_UNSQUASH=1 exec /usr/bin/apptainer "$@"\n'
    return made


def ssh_known_hosts(public_key: str, count: int) -> str:
    """Every node under its name and address; one host key serves them all."""
    key = " ".join(public_key.split()[:2])
    return "".join(f"{node},{address(node)} {key}\n" for node in all_nodes(count))


def outside_known_hosts(public_key: str, name: str, port: int) -> str:
    """The login node as it is seen from the machine."""
    key = " ".join(public_key.split()[:2])
    return f"[127.0.0.1]:{port},login,hpcsh-lab-{name} {key}\n"


def ssh_client_config(name: str, port: int, directory: Path) -> str:
    """The client configuration for a user of the machine."""
    return (
        f"# Written by: hpcsh lab up {name}\n"
        f"Host login hpcsh-lab-{name}\n"
        "    HostName 127.0.0.1\n"
        f"    Port {port}\n"
        "    User alice\n"
        f'    IdentityFile "{directory}/id_ed25519"\n'
        "    IdentitiesOnly yes\n"
        f'    UserKnownHostsFile "{directory}/known_hosts"\n'
        "    StrictHostKeyChecking yes\n"
    )


def _template(path: str) -> str:
    return (Path(str(resources.files("hpcsh.lab"))) / "files/node" / path).read_text()


def _hosts(count: int) -> str:
    lines = ["127.0.0.1 localhost", *(f"{address(node)} {node}" for node in all_nodes(count))]
    return "".join(f"{line}\n" for line in lines)


def _subordinate(ids: int) -> str:
    """Ranges for the users' own rootless containers, as wide as the ids of the lab allow."""
    free = ids - 10_000
    share = min(65_536, free // len(USERS))
    first = 10_000 if free < 2 * 65_536 + 90_000 else 100_000
    return "".join(f"{user}:{first + i * share}:{share}\n" for i, user in enumerate(USERS))
