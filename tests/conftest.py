"""What every test may use: one lab for the whole run, and private places for hpcsh's own files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HPCSH = [sys.executable, "-m", "hpcsh"]


def required(part: str) -> bool:
    """True when a skip of this part is a failure (`HPCSH_REQUIRE=lab,rootless,mpi`)."""
    return part in os.environ.get("HPCSH_REQUIRE", "").split(",")


def missing(part: str, reason: str) -> None:
    """Skip, or fail where the part is required: a green skip would be a lie."""
    if required(part):
        pytest.fail(f"{part} is required here: {reason}", pytrace=False)
    pytest.skip(f"{part}: {reason}")


@pytest.fixture(scope="session")
def lab() -> Iterator[str]:
    """Name of a lab that is up for the whole run: HPCSH_TEST_LAB, else "test", taken down at the end."""
    name = os.environ.setdefault("HPCSH_TEST_LAB", "test")
    done = subprocess.run([*HPCSH, "lab", "up", name], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        missing("lab", done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    yield name
    if name == "test":
        subprocess.run([*HPCSH, "lab", "down", name], check=True, capture_output=True)
