"""What the lab's tests share: running `hpcsh lab`, and looking for what a lab left without asking the lab."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hpcsh.lab.paths import start_time

ROOT = Path(__file__).resolve().parents[2]
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


def require(part: str, reason: str) -> None:
    """Skip the test; fail it where HPCSH_REQUIRE (a comma list) names `part`."""
    if part in os.environ.get("HPCSH_REQUIRE", "").split(","):
        pytest.fail(f"{part} is required here: {reason}", pytrace=False)
    pytest.skip(f"{part}: {reason}")


def command(*args: str) -> list[str]:
    """The command line of `hpcsh lab`."""
    return [sys.executable, "-m", "hpcsh.lab", *args]


def run_lab(*args: str, timeout: float = 240, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `hpcsh lab` as a person would."""
    return subprocess.run(
        command(*args), capture_output=True, text=True, timeout=timeout, input=stdin, cwd=ROOT, check=False
    )


def up(*args: str) -> str:
    """Have a lab up and return what was said; skip or fail where none can come up."""
    done = run_lab("up", *args, timeout=1800)
    if done.returncode == 77:
        require("lab", done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def on(lab: str, node: str, script: str, user: str = "alice", timeout: float = 60) -> str:
    """Run a shell script on a node; its standard output. It must succeed."""
    done = run_lab("exec", "--lab", lab, "--user", user, node, "--", "bash", "-c", script, timeout=timeout)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass
class Footprint:
    """What a lab occupies on this machine, found through the paths that processes and mounts mention."""

    state: Path
    processes: dict[int, str] = field(default_factory=dict)
    namespaces: set[str] = field(default_factory=set)
    mounts: set[str] = field(default_factory=set)
    cgroups: set[str] = field(default_factory=set)
    taken: float = 0.0
    """When this was looked at, in clock ticks since boot."""

    @classmethod
    def of(cls, state: Path) -> Footprint:
        """Look now."""
        found = cls(state)
        found.taken = float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK")
        ours = _namespaces(os.getpid())
        for pid in _pids():
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                mounts = [
                    m for m in Path(f"/proc/{pid}/mountinfo").read_text().splitlines() if str(state) in m
                ]
            except OSError:
                continue
            if mounts or f"--state={state}" in line:
                found.processes[pid] = line
                found.namespaces |= _namespaces(pid) - ours
                found.mounts |= set(mounts)
        wanted = f"hpcsh-lab-{state.name}-"
        for directory, names, _ in os.walk("/sys/fs/cgroup"):
            found.cgroups |= {f"{directory}/{n}" for n in names if n.startswith(wanted)}
        return found

    def remains(self) -> list[str]:
        """What is still there of this footprint, and what is new with the same paths; empty is right.

        The kernel gives the number of a namespace that has ended to the next one that anybody makes, so a
        process counts by its namespaces only when it is as old as the footprint; by its paths it always does.
        """
        now = Footprint.of(self.state)
        left = [f"process {pid}: {line}" for pid, line in now.processes.items()]
        left += [f"mount {m}" for m in now.mounts]
        left += [f"cgroup {c}" for c in now.cgroups]
        for pid in _pids():
            began = start_time(pid)
            if began is not None and began <= self.taken:
                left += [f"namespace {n} in process {pid}" for n in _namespaces(pid) & self.namespaces]
        left += [f"link {n}" for n in _links() if n.startswith(("br0", "veth"))]
        return left


def _pids() -> Iterator[int]:
    """Every process; not the dead that the machine's init has still to collect, which hold nothing."""
    for entry in os.listdir("/proc"):
        try:
            if (
                entry.isdigit()
                and Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            ):
                yield int(entry)
        except OSError:
            continue


def _namespaces(pid: int) -> set[str]:
    found = set()
    for name in NAMESPACES:
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/{name}"))
        except OSError:
            continue
    return found


def _links() -> list[str]:
    return os.listdir("/sys/class/net")
