"""Processes are found and ended by what /proc says."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from hpcsh.lab import paths, procs


def test_a_builder_that_lost_its_parent_is_ended_with_its_children(tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    odd = f"6{os.getpid()}.25"  # nobody else sleeps so long
    script = f"sleep {odd} & sleep 601; : {part}/rootfs.tar"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True) as orphan:
        while not Path(f"/proc/{orphan.pid}/task/{orphan.pid}/children").read_text().strip():
            pass
        procs.kill_users_of(tmp_path / "x.par")
        assert orphan.poll() is None
        procs.kill_users_of(part)
        assert orphan.wait(timeout=30) == -9
    assert [p for p in procs.processes() if p.argv == ("sleep", odd)] == []


def test_our_own_session_is_spared(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "5"]) as ours:
        procs.kill_session(os.getsid(0))
        assert ours.poll() is None
        ours.kill()


def test_a_keeper_is_known_by_its_state_directory(tmp_path: Path) -> None:
    assert procs.keeper_of(tmp_path) is None
    assert not procs.kill_lab(tmp_path)


def test_another_users_process_is_no_keeper_of_ours(tmp_path: Path, as_root: None) -> None:
    words = ["-m", procs.KEEPER_MODULE, f"--state={tmp_path}"]
    asleep = ["sh", "-c", "read line", "sh", *words]
    theirs = ["/usr/sbin/runuser", "-u", "nobody", "--", *asleep]
    for command, ours in ((asleep, True), (theirs, False)):
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            end = time.monotonic() + 30
            while time.monotonic() < end and not any(p.argv == tuple(asleep) for p in procs.processes()):
                time.sleep(0.01)
            found = [p for p in procs.keeper_processes(tmp_path) if p.argv == tuple(asleep)]
            assert bool(found) == ours
            process.communicate(b"\n", timeout=30)


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    assert paths.start_time(os.getpid()) == paths.start_time(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as later:
        assert paths.start_time(later.pid) != paths.start_time(1)
        later.kill()
    assert paths.start_time(2**22 + 1) is None


def test_a_lab_that_never_was_is_not_up() -> None:
    assert not paths.is_up("never-was")
    assert paths.read_record("never-was") == {}
