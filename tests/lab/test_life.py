"""A lab comes, survives, and leaves nothing: seen from outside, on labs of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lab_checks import ROOT, Footprint, command, on, run_lab, up

pytestmark = pytest.mark.lab


def test_down_leaves_nothing_and_up_brings_all_back(small_lab: Path) -> None:
    job = on("t", "login", "sbatch --parsable -W -o /dev/null --comment=kept --wrap true").strip()
    on("t", "n1", "echo changed > /etc/motd", "root")
    occupied = Footprint.of(small_lab)
    assert len(occupied.processes) > 10
    assert len(occupied.namespaces) > 10
    assert occupied.mounts
    assert run_lab("down", "t").returncode == 0
    assert occupied.remains() == []
    port = (small_lab / "ssh_config").read_text()
    up("t")
    assert on("t", "login", f"sacct -X -n -P -j {job} -o State,Comment") == "COMPLETED|kept\n"
    assert on("t", "n1", "cat /etc/motd") == "changed\n"
    assert on("t", "login", "srun -N2 hostname | sort").split() == ["n1", "n2"]
    assert (small_lab / "ssh_config").read_text() == port
    occupied = Footprint.of(small_lab)
    assert run_lab("rm", "t").returncode == 0
    assert occupied.remains() == []
    assert not small_lab.exists()
    assert run_lab("down", "t").stdout == "Lab t was not up.\n"


def test_up_after_every_process_was_killed(small_lab: Path) -> None:
    done = on("t", "login", "sbatch --parsable -W -o /dev/null --wrap true").strip()
    waiting = on("t", "login", "sbatch --parsable -H -o /dev/null --wrap true").strip()
    running = on("t", "login", "sbatch --parsable -o /dev/null --wrap 'sleep 600'").strip()
    # The controller writes what it knows within some seconds; what it did not write dies with it.
    saved = "touch /tmp/now; until [ /var/spool/slurmctld/job_state -nt /tmp/now ]; do sleep 0.1; done"
    on("t", "login", f"timeout 30 sh -c '{saved}'", "root")
    occupied = Footprint.of(small_lab)
    for pid in occupied.processes:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    assert "down" in run_lab("status", "t").stdout
    up("t")
    queue = on("t", "login", "squeue -h -o '%i'").split()
    assert waiting in queue
    assert running in queue, "a job that ran is queued again"
    assert on("t", "login", f"sacct -X -n -P -j {done} -o State") == "COMPLETED\n"
    assert on("t", "login", f"scancel {running} {waiting}; srun -N2 hostname | sort").split() == ["n1", "n2"]


def test_a_broken_lab_is_seen_and_mended(small_lab: Path) -> None:
    on("t", "n2", "pkill -9 -x slurmd; pkill -9 -x munged", "root")
    shown = run_lab("status", "t").stdout
    assert "broken" in shown
    assert "not running: munged slurmd" in shown
    nodes = [
        p
        for p, c in Footprint.of(small_lab).processes.items()
        if c.startswith("hpcsh-lab-node") and " n1 " in c
    ]
    os.kill(nodes[0], signal.SIGKILL)
    assert "dead" in run_lab("status", "t").stdout
    up("t")
    assert on("t", "login", "srun -N2 hostname | sort").split() == ["n1", "n2"]


@pytest.mark.parametrize("after", [0.05, 0.15, 0.25, 0.4, 0.8])
def test_half_up_leaves_nothing(private_state: Path, after: float) -> None:
    state = private_state / "t"
    starting = subprocess.Popen([*command("up"), "t", "--nodes", "2"], cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not state.exists() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(after)
    starting.kill()
    starting.wait()
    occupied = Footprint.of(state)
    assert run_lab("down", "t").returncode == 0
    assert occupied.remains() == []


def test_a_lab_without_its_records_is_found(small_lab: Path) -> None:
    (small_lab / "keeper.json").unlink()
    (small_lab / "settings.json").unlink()
    occupied = Footprint.of(small_lab)
    assert run_lab("down", "t").stdout == "Lab t is down.\n"
    assert occupied.remains() == []


def test_an_interrupted_up_undoes_itself(private_state: Path) -> None:
    starting = subprocess.Popen(
        [*command("up"), "t", "--nodes", "2"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert starting.stderr is not None
    while "nodes" not in starting.stderr.readline():
        pass
    occupied = Footprint.of(private_state / "t")
    assert occupied.processes
    starting.send_signal(signal.SIGINT)
    assert starting.wait(timeout=60) == 130
    assert occupied.remains() == []


def test_two_labs_at_once(private_state: Path) -> None:
    both = [
        subprocess.Popen([*command("up"), name, "--nodes", "1"], cwd=ROOT, stderr=subprocess.DEVNULL)
        for name in ("one", "two")
    ]
    assert [p.wait(timeout=300) for p in both] == [0, 0]
    on("one", "login", "echo one > ~/mine; sbatch -o /dev/null --wrap true")
    assert on("two", "login", "ls ~") == ""
    assert run_lab("down", "one").returncode == 0
    assert on("two", "login", "srun hostname") == "n1\n"
    assert Footprint.of(private_state / "one").remains() == []


def test_two_ups_of_one_lab_at_once(private_state: Path) -> None:
    both = [
        subprocess.Popen(
            [*command("up"), "t", "--nodes", "1"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(2)
    ]
    said = [p.communicate(timeout=300)[0] for p in both]
    assert sorted("already up" in s for s in said) == [False, True]
    keepers = [c for c in Footprint.of(private_state / "t").processes.values() if "hpcsh.lab.keeper" in c]
    assert len(keepers) == 1


def test_more_nodes_on_request(small_lab: Path) -> None:
    up("t", "--nodes", "4")
    assert on("t", "login", "srun -N4 hostname | sort").split() == ["n1", "n2", "n3", "n4"]
    assert on("t", "login", "ssh n4 hostname") == "n4\n"
