"""Thousands of jobs, ten front ends that ask all the time: slurmctld is asked as if there were one of each.

A `squeue` before the real one in the path of the login node counts who asks, whoever it is.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.front.conftest import Hpcsh
from tests.soak.soak_tools import FLOOR, MB, host_pid, memory, on

pytestmark = [pytest.mark.soak, pytest.mark.lab]

TASKS, SINGLES, FRONT_ENDS, SECONDS = 2000, 200, 10, 30
LOG = "/var/tmp/squeue-calls"
COUNTING = f"""\
#!/bin/sh
echo "$@" >> {LOG}
exec /usr/bin/squeue "$@"
"""
MOST = 150 * MB


@pytest.fixture
def counted(lab: str) -> Iterator[None]:
    """Count the squeues of the login node in LOG, a line each."""
    path = "/usr/local/bin/squeue"
    on(lab, "login", f"cat > {path} <<'E'\n{COUNTING}E\nchmod 755 {path}; : > {LOG}; chmod 666 {LOG}")
    yield
    on(lab, "login", f"rm -f {path} {LOG}")


@pytest.fixture
def jobs(lab: str) -> Iterator[tuple[str, set[str]]]:
    """The array's number and the single jobs' ids: the array runs a few tasks at a time, the others wait."""
    array = f"sbatch --parsable --array=0-{TASKS - 1} --mem=50M -o /dev/null --wrap 'sleep 5'"
    number = on(lab, "login", array, "alice").strip()
    single = "sbatch --parsable -H --mem=50M -o /dev/null --wrap true"
    ids = on(lab, "login", f"seq {SINGLES} | xargs -P 2 -I @ {single}", "alice").split()
    yield number, set(ids)
    on(lab, "login", 'scancel -u alice; while [ -n "$(/usr/bin/squeue -h -u alice)" ]; do sleep 1; done')


class FrontEnd:
    """A script of nothing but `ps`; what it prints is read and counted."""

    def __init__(self, script: Path, env: dict[str, str]) -> None:
        argv = [sys.executable, "-m", "hpcsh", "-f", str(script)]
        self.answers = 0
        self._process = subprocess.Popen(
            argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.answers += '"as_of"' in line

    def stop(self) -> int:
        """Interrupt it as Ctrl-C does; its exit code."""
        self._process.send_signal(signal.SIGINT)
        self._reader.join()
        return self._process.wait()


def _questions(lab: str) -> int:
    return int(on(lab, "login", f"wc -l < {LOG}"))


def _live(lab: str) -> set[str]:
    """Every job and array task that has not ended, one by one, as squeue itself tells."""
    return set(on(lab, "login", "/usr/bin/squeue -h -r -u alice -t PD,R -o %i", "alice").split())


def _spread(ids: set[str]) -> set[str]:
    """`12_[0-2,7%4]` as `12_0`, `12_1`, `12_2`, `12_7`."""
    found = set()
    for one in ids:
        ranges = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", one)
        if ranges is None:
            found.add(one)
            continue
        for part in ranges[2].split(","):
            first, _, last = part.partition("-")
            found |= {f"{ranges[1]}_{n}" for n in range(int(first), int(last or first) + 1)}
    return found


def test_many_jobs(
    lab: str, places: dict[str, str], hpcsh: Hpcsh, counted: None, jobs: tuple[str, set[str]],
    tmp_path: Path, counts: dict[str, object],
) -> None:  # fmt: skip
    array, singles = jobs
    hpcsh("ps")
    assert _questions(lab) >= 1, "the counting squeue is the one that is found"
    host = host_pid()
    script = tmp_path / "script"
    script.write_text("ps --json\n" * 100_000)
    before, began = _questions(lab), time.monotonic()
    front_ends = [FrontEnd(script, places) for _ in range(FRONT_ENDS)]
    time.sleep(SECONDS)
    asked, lasted = _questions(lab) - before, time.monotonic() - began
    codes = [front_end.stop() for front_end in front_ends]
    most = 1 + lasted / FLOOR + 2
    counts |= {
        "jobs": TASKS + SINGLES, "front ends": FRONT_ENDS, "seconds": lasted,
        "answers to ps": sum(f.answers for f in front_ends), "squeue calls": asked, "allowed": most,
    }  # fmt: skip

    earlier = _live(lab)
    time.sleep(FLOOR)
    shown = json.loads(hpcsh("ps", "--json").stdout)
    later = _live(lab)
    told = _spread({w["native_id"] for w in shown["workloads"]})
    counts["array tasks still there at the end"] = sum(i.startswith(f"{array}_") for i in later)
    counts["host's peak memory, MB"] = memory(host, "VmHWM") / MB
    assert host_pid() == host
    assert codes == [130] * FRONT_ENDS, "every front end asked to the end"
    assert min(f.answers for f in front_ends) > 0
    assert asked <= most
    assert not shown.get("stale")
    assert (earlier & later) - told == set()
    assert singles <= told
    assert memory(host, "VmHWM") < MOST
