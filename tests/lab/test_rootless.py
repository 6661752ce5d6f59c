"""An ordinary user has the lab too, and one who cannot is told why."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_checks import ROOT, Footprint, require, run_lab

USER = "hpcshtest"
RUNUSER = "/usr/sbin/runuser"


def _readable_python(user: str) -> str:
    """A Python 3.11 or later that `user` can start."""
    for candidate in (sys.executable, os.path.realpath(sys.executable), "/usr/bin/python3"):
        check = "import sys; sys.exit(sys.version_info < (3, 11))"
        try:
            done = subprocess.run(
                [RUNUSER, "-u", user, "--", candidate, "-c", check], capture_output=True, timeout=60
            )
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    return require("rootless", f"{user} can start no Python 3.11")  # type: ignore[return-value]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter, with a copy of the package."""
    made = Path(tempfile.mkdtemp(prefix="hpcsh-rootless-"))
    made.chmod(0o755)
    shutil.copytree(ROOT / "hpcsh", made / "hpcsh", ignore=shutil.ignore_patterns("__pycache__"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def ordinary(as_root: None, place: Path) -> Iterator[Path]:
    """The home of a user with subordinate ids."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "-M", "-d", "/nonexistent", "-s", "/bin/sh", USER], check=True, timeout=60)
    home = place / "home"
    home.mkdir()
    shutil.chown(home, USER)
    yield home
    subprocess.run(["userdel", USER], check=False, timeout=60, capture_output=True)


def _lab(user: str, place: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `hpcsh lab` as that user, with everything of his under `place`/home."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(place / "home"), "PYTHONPATH": str(place),
        "XDG_STATE_HOME": str(place / "home/state"), "XDG_CACHE_HOME": str(place / "home/cache"),
    }  # fmt: skip
    command = [RUNUSER, "-u", user, "--", _readable_python(user), "-m", "hpcsh.lab", *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1800, cwd=place, env=environment, check=False
    )


@pytest.mark.lab
@pytest.mark.rootless
def test_an_ordinary_user_has_a_lab(ordinary: Path) -> None:
    built = run_lab("image", "build", timeout=1800)
    if built.returncode == 77:
        require("rootless", built.stderr)
    place = ordinary.parent
    came = _lab(USER, place, "up", "r")
    if came.returncode == 77:
        require("rootless", came.stderr)
    assert came.returncode == 0, came.stdout + came.stderr
    try:
        asked = _lab(
            USER, place, "exec", "--lab", "r", "--user", "alice", "login", "--", "srun", "-N3", "hostname"
        )
        assert sorted(asked.stdout.split()) == ["n1", "n2", "n3"], asked.stderr
        ssh = [
            "ssh",
            "-F",
            str(ordinary / "state/hpcsh/lab/r/ssh_config"),
            "login",
            "id -un; sacct -X -n -o State",
        ]
        said = subprocess.run([RUNUSER, "-u", USER, "--", *ssh], capture_output=True, text=True, timeout=60)
        assert said.stdout.split() == ["alice", "COMPLETED"], said.stderr
        assert "not enforced" in _lab(USER, place, "status", "r").stdout
        occupied = Footprint.of(ordinary / "state/hpcsh/lab/r")
        assert occupied.processes
        assert occupied.mounts
    finally:
        gone = _lab(USER, place, "down", "r")
    assert gone.returncode == 0, gone.stderr
    assert occupied.remains() == []
    assert _lab(USER, place, "rm", "r").returncode == 0
    assert not (ordinary / "state/hpcsh/lab/r").exists()


@pytest.mark.lab
def test_a_user_without_subordinate_ids_is_told_what_to_do(as_root: None, place: Path) -> None:
    refused = _lab("nobody", place, "up", "r")
    assert refused.returncode == 77
    assert "/etc/subuid gives nobody 0 subordinate ids" in refused.stderr
    assert "usermod --add-subuids 100000-165535 nobody" in refused.stderr
    assert "Traceback" not in refused.stderr
