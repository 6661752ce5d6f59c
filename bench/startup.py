"""Whole processes: start-up times, and the lab's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pexpect

from bench.figures import Figure

Say = Callable[[str], None]
HPCSH = [sys.executable, "-m", "hpcsh"]


def process(*argv: str) -> float:
    """Milliseconds of a whole process. Raises `CalledProcessError` when it fails."""
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


def lab_up(name: str, say: Say) -> list[Figure]:
    """Bring a lab up from its cached image, twice stopped and started again."""
    say(f"lab up {name}: first start")
    first = Figure(
        "lab up, first start (image cached)", [process(*HPCSH, "lab", "up", name) / 1000], unit="s"
    )
    warm = Figure("lab up, warm start", unit="s", budget=10)
    for i in range(3):
        subprocess.run([*HPCSH, "lab", "down", name], check=True, stdout=subprocess.DEVNULL)
        say(f"lab up {name}: warm start {i + 1}")
        warm.ours.append(process(*HPCSH, "lab", "up", name) / 1000)
    return [first, warm]


def prompt() -> float:
    """Milliseconds until the REPL's prompt stands on a terminal."""
    began = time.perf_counter()
    child = pexpect.spawn(
        sys.executable, ["-m", "hpcsh", "-P", "bench-jobs"], dimensions=(24, 80), timeout=20
    )
    child.expect_exact("hpcsh bench-jobs>")
    found = (time.perf_counter() - began) * 1000
    child.sendeof()
    child.expect(pexpect.EOF)
    return found


def command_lines(rounds: int, say: Say) -> list[Figure]:
    """`--version`, a verb through the running session host, the REPL's prompt; beside Python alone."""
    say("start-up")
    os.environ["HPCSH_PROFILE"] = "bench-jobs"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed hpcsh is compiled
    version = Figure("`hpcsh --version`", budget=120, note="`python -c pass`")
    verb = Figure("a verb through the session host (`hpcsh ps`)", budget=200, note="`python -c pass`")
    repl = Figure("REPL prompt", budget=250, note="`python -c pass`")
    process(*HPCSH, "ps")
    for _ in range(rounds):
        for figure, step in (
            (version, lambda: process(*HPCSH, "--version")),
            (verb, lambda: process(*HPCSH, "ps")),
            (repl, prompt),
        ):
            figure.raw.append(process(sys.executable, "-c", "pass"))
            figure.ours.append(step())
    return [version, verb, repl]
