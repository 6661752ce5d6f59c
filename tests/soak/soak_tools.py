"""What the long tests share: the seed, the cluster seen from outside, the session host's memory."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
from pathlib import Path

SEED = int(os.environ.get("HPCSH_SOAK_SEED") or secrets.randbelow(1 << 32))
FLOOR = 2.0
"""The profiles' `poll.floor`."""
NODES = ("n1", "n2", "n3")
MB = 1 << 20


def chance(test: str) -> random.Random:
    """A test's own random numbers, the same whichever tests run before it."""
    return random.Random(f"{SEED} {test}")


def on(lab: str, node: str, script: str, user: str = "root", *, timeout: float = 120) -> str:
    """Run a shell script on a node, not through a session; its output. It must succeed."""
    argv = [sys.executable, "-m", "hpcsh.lab", "exec", "--lab", lab, "--user", user, node]
    done = subprocess.run(
        [*argv, "--", "sh", "-c", script], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, (script, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def kill_process(pid: int) -> None:
    """SIGKILL, also when it has just ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def host_pid() -> int:
    """The running session host's process."""
    words = [sys.executable, "-m", "hpcsh", "host", "status", "--json"]
    return int(json.loads(subprocess.run(words, capture_output=True, check=True).stdout)["pid"])


def memory(pid: int, what: str = "VmRSS") -> int:
    """A process's memory in bytes; `VmHWM` is the most that it ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) * 1024
