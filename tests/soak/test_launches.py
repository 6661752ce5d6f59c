"""Hundreds of launches into one DVM: its daemons and the session host do not grow, nothing stays behind."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.front.conftest import Hpcsh
from tests.soak.soak_tools import NODES, host_pid, memory, on

pytestmark = [pytest.mark.soak, pytest.mark.lab, pytest.mark.mpi]

LAUNCHES, WARM_UP, BATCH = 200, 50, 50
MOST = {"prte": 160 << 10, "prted": 16 << 10, "host": 8 << 10}
"""Bytes that each may grow a launch, after the warm-up.

PRRTE 3.0.8 itself keeps 128 KiB of each launch in `prte`: as much with its own `prun` alone, without hpcsh.
"""
LEFT = "find /tmp /var/tmp /dev/shm -user alice 2>/dev/null | sort; true"


def _processes(lab: str) -> list[tuple[str, str, int, str, str]]:
    """Every process of the compute nodes: node, user, bytes, state, command."""
    found = []
    for node in NODES:
        for line in on(lab, node, "ps -eo user:20=,rss=,stat=,comm=").splitlines():
            user, size, state, command = line.split(None, 3)
            found.append((node, user, int(size) * 1024, state, command))
    return found


def _users(lab: str) -> Counter[tuple[str, str]]:
    return Counter((node, command) for node, user, _, _, command in _processes(lab) if user == "alice")


def _sizes(lab: str, host: int) -> dict[str, int]:
    sizes = {"host": memory(host)}
    for node, user, size, _, command in _processes(lab):
        if user == "alice" and command in ("prte", "prted"):
            sizes[f"{command} on {node}"] = size
    return sizes


def _still(lab: str, wanted: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Processes that are not as wanted, once what was ending has had time to end."""
    for _ in range(20):
        now = _users(lab)
        if now == wanted:
            return Counter()
        time.sleep(0.5)
    return (now - wanted) + (wanted - now)


def test_launches(
    lab: str, places: dict[str, str], hpcsh: Hpcsh, tmp_path: Path, counts: dict[str, object]
) -> None:
    before = {node: on(lab, node, LEFT) for node in ("login", *NODES)}
    hpcsh("-P", "mpi", "up", "-N", "3")
    host = host_pid()
    batch = tmp_path / "batch"
    batch.write_text("prun --map-by ppr:1:node true\n" * BATCH)
    sizes: list[dict[str, int]] = []
    for done in range(0, LAUNCHES, BATCH):
        hpcsh("-P", "mpi", "-f", str(batch), timeout=300)
        if done + BATCH == WARM_UP:
            standing = _users(lab)
        sizes.append(_sizes(lab, host))
    first, last = sizes[0], sizes[-1]
    assert len(last) == 4, last
    assert first.keys() == last.keys()
    growth = {name: (last[name] - first[name]) / (LAUNCHES - WARM_UP) for name in last}
    counts |= {"launches": LAUNCHES, "ranks each": len(NODES)}
    counts |= {f"{name} grows a launch, KiB": size / 1024 for name, size in sorted(growth.items())}
    counts |= {f"{name} at the end, MiB": size / 2**20 for name, size in sorted(last.items())}
    assert _still(lab, standing) == Counter()
    assert [p for p in _processes(lab) if p[3].startswith("Z")] == []
    assert host_pid() == host

    hpcsh("-P", "mpi", "down")
    assert _still(lab, Counter()) == Counter()
    assert on(lab, "login", "/usr/bin/squeue -h -u alice -t PD,R,CG,CF", "alice") == ""
    assert json.loads(hpcsh("-P", "mpi", "status", "--json").stdout)["environments"] == []
    assert {node: on(lab, node, LEFT) for node in ("login", *NODES)} == before
    assert {n: g for n, g in growth.items() if g > MOST[n.split()[0]]} == {}
