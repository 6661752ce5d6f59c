"""Labs of the lab's own tests: a shared one that is only looked at, and private ones to be broken."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lab_checks
import pytest


@pytest.fixture
def private_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for labs of this test alone; every lab in it is removed afterwards."""
    place = Path(tempfile.mkdtemp(prefix="hpcsh-labs-"))
    place.chmod(0o755)
    monkeypatch.setenv("HPCSH_LAB_STATE", str(place))
    yield place
    for one in [p.name for p in place.iterdir() if p.is_dir()]:
        lab_checks.run_lab("rm", one)
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def small_lab(private_state: Path) -> Path:
    """The state directory of a lab `t` with two nodes that the test may break."""
    lab_checks.up("t", "--nodes", "2")
    return private_state / "t"


@pytest.fixture
def as_root() -> None:
    """For tests that make users."""
    if os.geteuid() != 0:
        lab_checks.require("rootless", "only root can make users for this test")
