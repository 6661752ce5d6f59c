"""What a DVM and its allocation say about themselves: URI file, facts file, Slurm's counts. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_URI = re.compile(r"(?P<space>[^;\s]+)\.(?P<rank>\d+);(?P<how>tcp[46]?)://(?P<host>[^;\s]+):(?P<port>\d+)\Z")
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?\Z")


@dataclass(frozen=True)
class Uri:
    """A DVM's address. `text` is the whole first line, as `PMIX_SERVER_URI` wants it."""

    text: str
    namespace: str
    host: str
    port: int
    version: str = ""


def parse_uri(data: bytes) -> Uri | None:
    """The URI file that `prte --report-uri` writes; None when it is empty, unfinished or something else.

    Two lines were seen (PRRTE 3.0.8, PMIx 5.0.7): `prte-n1-113@0.0;tcp4://127.0.0.1:47193` and `v5.0.7a1`.
    """
    lines = data.decode("utf-8", "replace").splitlines()
    found = _URI.match(lines[0].strip()) if lines else None
    if not found:
        return None
    version = lines[1].strip() if len(lines) > 1 else ""
    return Uri(lines[0].strip(), found["space"], found["host"], int(found["port"]), version)


@dataclass(frozen=True)
class Facts:
    """What the allocation's job wrote about itself. `slots` is what PRRTE counts: Slurm's tasks."""

    job: str
    head: str
    nodes: tuple[str, ...]
    slots: int


def parse_facts(data: bytes) -> Facts | None:
    """The facts file; None when something that a launch needs is missing."""
    said = dict(line.partition(" ")[::2] for line in data.decode("utf-8", "replace").splitlines())
    nodes = tuple(said.get("nodes", "").split())
    if not (said.get("job", "").isdigit() and said.get("head") and nodes):
        return None
    return Facts(said["job"], said["head"], nodes, count_tasks(said.get("tasks", "")) or len(nodes))


def count_tasks(text: str) -> int:
    """Sum of `SLURM_TASKS_PER_NODE`: `2(x3),1` → 7; 0 when it is something else."""
    total = 0
    for part in text.split(",") if text else ():
        found = _COUNT.match(part.strip())
        if not found:
            return 0
        total += int(found[1]) * int(found[2] or 1)
    return total


def named(output: bytes, nodes: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """Of the host names that ranks printed: the nodes that are named, and those that are missing.

    A site's host names may be long where Slurm's are short, so the first label counts. Where they have
    nothing in common, as many different names as there are nodes are proof enough.
    """
    said = {line.strip().partition(".")[0] for line in output.decode("utf-8", "replace").splitlines()} - {""}
    short = {node.partition(".")[0]: node for node in nodes}
    found = {node for name, node in short.items() if name in said}
    if not found and len(said) == len(nodes):
        return set(nodes), set()
    return found, set(nodes) - found


def step_environment(step: Mapping[str, str], job: Mapping[str, str]) -> dict[str, str | None]:
    """What turns a step's environment into the job's, so that PRRTE sees the whole allocation.

    srun in a step describes the step (`SLURM_NNODES=1`). The last lines keep PRRTE's own srun from waiting
    for, or asking for more memory than, what the DVM's daemons leave: `SLURM_OVERLAP` and no memory of its
    own (PRRTE removes `*_MCA_plm_slurm_args` from its environment). Seen on Slurm 24.11.
    """
    changed: dict[str, str | None] = {n: None for n in step if n.startswith("SLURM_") and n not in job}
    changed.update({n: v for n, v in job.items() if n.startswith("SLURM_")})
    changed.update({"SLURM_MEM_PER_CPU": None, "SLURM_MEM_PER_GPU": None})
    changed.update({"SLURM_OVERLAP": "1", "SLURM_MEM_PER_NODE": "0"})
    return changed
