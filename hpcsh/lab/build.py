"""Run mmdebstrap and follow it: what it says becomes true progress, what it said last becomes the error."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import deque
from pathlib import Path

from hpcsh.errors import CommandError
from hpcsh.lab import kernel, procs
from hpcsh.lab.progress import Progress

_TIMEOUT = 3600.0


class Follower:
    """Reads the output of apt and dpkg line by line and knows how far they are."""

    def __init__(self) -> None:
        self.stage = "starting"
        self.notices: list[str] = []
        self._expected = 0
        self._size = ""
        self._what = ""
        self._done = 0

    def feed(self, line: str) -> str | None:
        """Take in a line; the state to show, or None when the line says nothing about it."""
        if match := re.match(r"(?:I|hpcsh): (.+)", line):
            if line.startswith("hpcsh:") and "not" in match[1]:
                self.notices.append(match[1])
            return self._enter(match[1].rstrip("."))
        if match := re.search(r"(\d+) newly installed", line):
            self._expected, self._done = int(match[1]), 0
        elif match := re.match(r"Need to get (?:[\d.]+ \wB/)?([\d.,]+ \w?B)", line):
            self._size = match[1]
        elif re.match(r"Get:\d+ .* \[[\d.,]+ \w?B\]", line) and self._expected:
            return self._count("fetched", self._size)
        elif line.startswith("Fetched ") or "Preconfiguring packages" in line:
            self._done = 0
        elif line.startswith("Unpacking "):
            return self._count("unpacked")
        elif line.startswith("Setting up "):
            return self._count("installed")
        return None

    def _enter(self, stage: str) -> str:
        self.stage = stage
        self._done = 0
        return stage

    def _count(self, what: str, size: str = "") -> str:
        if self._what != what:
            self._what, self._done = what, 0
        self._done += 1
        total = max(self._expected, self._done)
        return f"{self._done} of {total} packages {what}{f' ({size})' if size else ''}"


def run(command: list[str], log: Path, progress: Progress) -> list[str]:
    """Run a mmdebstrap `command`, its output kept in `log`; the notices the recipe's script gave.

    `CommandError` with the last lines when it fails or takes more than an hour.
    """
    follower = Follower()
    last: deque[str] = deque(maxlen=12)
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    if os.geteuid() == 0:
        # Beside the result, where what a killed build leaves is found. An ordinary user's mmdebstrap works as
        # his subordinate ids, which may not reach into his home.
        environment["TMPDIR"] = str(log.parent)
    with log.open("w") as kept, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", env=environment, start_new_session=True,
        preexec_fn=lambda: kernel.die_with_parent(signal.SIGTERM),
    ) as process:  # fmt: skip
        watchdog = threading.Timer(_TIMEOUT, procs.kill_session, (process.pid,))
        watchdog.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                kept.write(line)
                if line.strip():
                    last.append(line.rstrip())
                if state := follower.feed(line):
                    progress.update(state)
        except BaseException:
            _stop(process)
            raise
        finally:
            watchdog.cancel()
    if process.returncode:
        raise CommandError(
            f"{command[0]} failed with exit code {process.returncode} while {follower.stage}.",
            why="\n".join(last),
            fix=f"see {log}",
        )
    return follower.notices


def _stop(process: subprocess.Popen[str]) -> None:
    """mmdebstrap tidies up on SIGTERM; what does not end soon is killed."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    procs.kill_session(process.pid)
