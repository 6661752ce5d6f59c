"""The lab comes up and goes down in every way, again and again, and each time nothing of it is left."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab_checks import ROOT, Footprint, command, on, run_lab, up
from tests.soak.soak_tools import chance, kill_process

pytestmark = [pytest.mark.soak, pytest.mark.lab]

NAME = "cycles"
ENDS = ("down", "keeper killed", "services killed", "down during up", "up killed in the middle")


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The state directory of a lab of this test alone."""
    place = Path(tempfile.mkdtemp(prefix="hpcsh-soak-"))
    place.chmod(0o755)
    monkeypatch.setenv("HPCSH_LAB_STATE", str(place))
    yield place / NAME
    run_lab("rm", NAME)
    shutil.rmtree(place, ignore_errors=True)


def _ends(rng: random.Random) -> list[str]:
    """An end for each cycle: every way twice, in an order of chance."""
    ends = [*ENDS, *ENDS]
    rng.shuffle(ends)
    return ends


def _works() -> None:
    up(NAME, "--nodes", "2")
    assert on(NAME, "login", "srun -N2 hostname | sort").split() == ["n1", "n2"]


def _starting(state: Path) -> subprocess.Popen[bytes]:
    """An `up` under way: it has the lab's lock, so that a `down` comes after it, not before."""
    argv = [*command("up"), NAME, "--nodes", "2"]
    starting = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lock = state.with_name(f"{NAME}.lock")
    while starting.poll() is None and not (lock.exists() and lock.read_text() == str(starting.pid)):
        time.sleep(0.005)
    return starting


def _services(occupied: Footprint) -> list[int]:
    """Everything but what holds the lab together: its keeper and the nodes' first processes."""
    frame = ("hpcsh.lab.keeper", "hpcsh-lab-node")
    return sorted(pid for pid, line in occupied.processes.items() if not any(f in line for f in frame))


def _keepers(occupied: Footprint) -> list[int]:
    return [pid for pid, line in occupied.processes.items() if "hpcsh.lab.keeper" in line]


def _down(verb: str, occupied: Footprint) -> list[str]:
    """End the lab; what is left of it."""
    done = run_lab(verb, NAME)
    assert done.returncode == 0, (done.stdout, done.stderr)
    found = occupied.remains()
    return found + [d for d, _, _ in os.walk("/sys/fs/cgroup") if f"hpcsh-lab-{NAME}-" in d]


def test_lab_cycles(state: Path, counts: dict[str, object]) -> None:
    rng = chance("cycles")
    ends = _ends(rng)
    counts |= {"cycles": len(ends), **Counter(ends)}
    seen = 0
    for end in ends:
        if end in ("down during up", "up killed in the middle"):
            starting = _starting(state)
            time.sleep(rng.uniform(0, 3))
            if end == "up killed in the middle":
                starting.kill()
            occupied = Footprint.of(state)
            left = _down("down", occupied)
            starting.wait(timeout=300)
        else:
            _works()
            occupied = Footprint.of(state)
            assert len(occupied.processes) > 10
            if end == "keeper killed":
                for pid in _keepers(occupied):
                    kill_process(pid)
            elif end == "services killed":
                services = _services(occupied)
                for pid in rng.sample(services, k=min(len(services), rng.randint(1, 5))):
                    kill_process(pid)
            left = _down("down", occupied)
        assert left == [], end
        seen += len(occupied.processes) + len(occupied.mounts) + len(occupied.namespaces)
    _works()
    assert _down("rm", Footprint.of(state)) == []
    assert not state.exists()
    counts["processes, mounts and namespaces looked for afterwards"] = seen
    counts["left"] = 0
