"""The logs of a lab's services, while it is up and afterwards."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from hpcsh.errors import NotFoundError
from hpcsh.lab import config, userns
from hpcsh.lab.cluster import Lab

_COMPUTE = ("slurmd",)
_FILES = {
    "slurmctld": "var/log/slurm/slurmctld.log",
    "slurmdbd": "var/log/slurm/slurmdbd.log",
    "accounts": "var/log/slurm/accounts.log",
    "slurmd": "var/log/slurm/slurmd.log",
    "mariadb": "var/log/mariadbd.log",
    "munge": "var/log/munge/munged.log",
    "registry": "var/log/registry.log",
}
SERVICES = (*_FILES, "boot", "keeper")


def show(name: str, service: str | None, lines: int) -> None:
    """Print the last `lines` lines of each log of `service`; the services' names when it is None."""
    if service is None:
        print("\n".join(SERVICES))
        return
    if service not in SERVICES:
        raise NotFoundError(f"There is no service {service}.", why=f"There are: {', '.join(SERVICES)}.")
    lab = Lab(name)
    if not lab.state.is_dir():
        raise NotFoundError(f"There is no lab {name}.", fix=f"hpcsh lab up {name}")

    # Some belong to the services' users; in the lab's user namespace their owner is ours.
    def work() -> None:
        for path in _paths(lab, service):
            print(f"==> {path}\n{_tail(path, lines)}", end="", flush=True)

    if not userns.call_as_root(work):
        raise NotFoundError(f"The log of {service} could not be read.")


def _paths(lab: Lab, service: str) -> list[Path]:
    nodes = config.all_nodes(lab.settings().nodes)
    if service == "keeper":
        return [lab.state / "keeper.log"]
    if service == "boot":
        return [lab.state / "nodes" / n / "boot.log" for n in nodes]
    where = nodes[1:] if service in _COMPUTE else nodes if service == "munge" else nodes[:1]
    return [lab.state / "nodes" / n / "upper" / _FILES[service] for n in where]


def _tail(path: Path, lines: int) -> str:
    try:
        with path.open(errors="replace") as file:
            return "".join(deque(file, maxlen=max(lines, 0)))
    except FileNotFoundError:
        return "(nothing yet)\n"
