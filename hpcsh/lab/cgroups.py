"""A cgroup v1 subtree per node, so that Slurm can limit memory and nothing of two labs collides."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

_NEEDED = {"memory", "cpuset", "freezer", "cpuacct", "cpu", "devices"}


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup v1 hierarchy; `options` are its controllers, or `name=…`."""

    root: Path
    options: str

    @property
    def name(self) -> str:
        """The directory under /sys/fs/cgroup that programs look for."""
        return self.root.name


def hierarchies() -> list[Hierarchy]:
    """The cgroup v1 hierarchies that this process sees mounted."""
    found: dict[str, Hierarchy] = {}
    known = _NEEDED | {"pids", "blkio", "net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc"}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split()[:3]
        if kind != "cgroup":
            continue
        wanted = [o for o in options.split(",") if o in known or o.startswith("name=")]
        found.setdefault(",".join(wanted), Hierarchy(Path(left.split()[4]), ",".join(wanted)))
    return list(found.values())


def usable() -> bool:
    """Whether this process may limit memory by cgroup v1, as Slurm's plugin does."""
    if os.geteuid() != 0:
        return False
    have = {o for h in hierarchies() for o in h.options.split(",")}
    return have >= _NEEDED and all(os.access(h.root, os.W_OK) for h in hierarchies())


def subtree(state: Path) -> str:
    """A lab's directory in each hierarchy; two in different places may have one name."""
    return f"hpcsh-lab-{state.name}-{sha256(str(state).encode()).hexdigest()[:8]}"


def make(state: Path, node: str) -> None:
    """Make a node's directory in every hierarchy and move this process into it."""
    for hierarchy in hierarchies():
        lab = hierarchy.root / subtree(state)
        for directory in (lab, lab / node):
            directory.mkdir(exist_ok=True)
            # A new cpuset holds nothing, and no process may enter it.
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (directory / name).exists() and not (directory / name).read_text().strip():
                    (directory / name).write_text((directory.parent / name).read_text())
        (lab / node / "cgroup.procs").write_text("0")


def remove(state: Path, timeout: float = 10.0) -> list[Path]:
    """Remove the lab's directories; what is left after `timeout` seconds is returned."""
    deadline = time.monotonic() + timeout
    while True:
        left = [t for h in hierarchies() if not _remove_tree(t := h.root / subtree(state))]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def present(state: Path) -> list[Path]:
    """The directories of the lab that exist."""
    return [t for h in hierarchies() if (t := h.root / subtree(state)).exists()]


def _remove_tree(tree: Path) -> bool:
    for directory, _, _ in os.walk(tree, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return not tree.exists()
