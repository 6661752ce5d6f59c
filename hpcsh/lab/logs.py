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

    alive = lab.nodes()
    for node, inside in _places(lab, service):
        print(f"==> {node}: {inside}", flush=True)
        if node in alive and inside.startswith("/var"):
            print(lab.capture(node, ["tail", "-n", str(lines), inside], timeout=10).out, end="", flush=True)
        else:
            _tail(_stored(lab, node, inside), lines)


def _places(lab: Lab, service: str) -> list[tuple[str, str]]:
    """Node and path of each log; of what is not written on a node, the path below the state directory."""
    nodes = config.all_nodes(lab.settings().nodes)
    if service == "keeper":
        return [("machine", "keeper.log")]
    if service == "boot":
        return [(n, f"nodes/{n}/boot.log") for n in nodes]
    where = nodes[1:] if service in _COMPUTE else nodes if service == "munge" else nodes[:1]
    return [(n, f"/{_FILES[service]}") for n in where]


def _stored(lab: Lab, node: str, inside: str) -> Path:
    return lab.state / "nodes" / node / "upper" / inside[1:] if inside.startswith("/") else lab.state / inside


def _tail(path: Path, lines: int) -> None:
    """Print the end of a file that may belong to a service's user, who is ours in a user namespace."""

    def work() -> None:
        try:
            with path.open(errors="replace") as file:
                print("".join(deque(file, maxlen=max(lines, 0))), end="", flush=True)
        except FileNotFoundError:
            print("(nothing yet)", flush=True)

    if not userns.call_as_root(work):
        raise NotFoundError(f"{path} could not be read.")
