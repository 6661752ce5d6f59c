"""A hundred logs followed at once while their jobs write: every byte comes, and comes once."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hpcsh.client import connect
from hpcsh.model import File, LogOptions, State, SubmitSpec
from hpcsh.session import Session
from tests.soak.soak_tools import MB, host_pid, memory, on

pytestmark = [pytest.mark.soak, pytest.mark.lab]

LOGS, SECONDS, FRONT_ENDS, READ_TWICE = 100, 60, 10, 4
MOST = 150 * MB
LINES = 2 * SECONDS
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=writer-{k:03}
#SBATCH --output=writer-{k:03}.out
#SBATCH --mem=50M
printf -v fill '%*s' 4096 ''
exec {{pause}}<> <(:)
for ((i = 0; i < {lines}; i++)); do
  printf '{k:03} %05d %s\\n' $i "${{fill:0:$(((i * 37 + {k} * 11) % 4096))}}"
  read -rt 0.5 -u $pause
done
exit 0
"""


def _expected(k: int) -> bytes:
    """What job `k` writes."""
    return b"".join(b"%03d %05d %s\n" % (k, i, b" " * ((i * 37 + k * 11) % 4096)) for i in range(LINES))


@pytest.fixture
def crowded(lab: str) -> Iterator[None]:
    """Let many jobs share a core, so that they all write at once; their files are removed afterwards."""
    on(lab, "login", "scontrol update PartitionName=debug OverSubscribe=FORCE:12")
    yield
    on(lab, "login", "scontrol update PartitionName=debug OverSubscribe=NO; rm -f ~alice/writer-*.out")


async def _follow(session: Session, job: str) -> bytes:
    pieces = []
    async with contextlib.aclosing(session.logs(job, LogOptions(follow=True))) as stream:
        async for chunk in stream:
            pieces.append(chunk.data)
    return b"".join(pieces)


def _command_line(env: dict[str, str], job: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hpcsh", "logs", "-f", job], env=env, stdout=subprocess.PIPE
    )


def _running(lab: str) -> int:
    return int(on(lab, "login", "/usr/bin/squeue -h -u alice -t R -o %i | wc -l", "alice"))


async def test_follows(lab: str, places: dict[str, str], crowded: None, counts: dict[str, object]) -> None:
    sessions = [await connect("jobs") for _ in range(FRONT_ENDS)]
    await sessions[0].nodes()
    host = host_pid()
    idle = memory(host)
    jobs: list[str] = []
    follows: list[asyncio.Task[bytes]] = []
    for k in range(LOGS):
        session = sessions[k % FRONT_ENDS]
        script = SCRIPT.format(k=k, lines=LINES).encode()
        jobs.append((await session.submit(SubmitSpec(file=File("writer.sh", script)))).id)
        follows.append(asyncio.create_task(_follow(session, jobs[-1])))
    others = [_command_line(places, job) for job in jobs[:READ_TWICE]]
    told = [asyncio.create_task(asyncio.to_thread(o.communicate)) for o in others]
    most_running = 0
    while not all(task.done() for task in follows):
        await asyncio.wait(follows, timeout=5)
        most_running = max(most_running, await asyncio.to_thread(_running, lab))
    got = await asyncio.gather(*follows, return_exceptions=True)
    again = [(await task)[0] for task in told]
    ended = await sessions[0].wait(jobs, timeout=120)
    peak = memory(host, "VmHWM")
    wrong = [k for k in range(LOGS) if got[k] != _expected(k)]
    counts |= {
        "logs": LOGS, "front ends": FRONT_ENDS + READ_TWICE, "jobs writing at once": most_running,
        "MB read": sum(len(g) for g in got if isinstance(g, bytes)) / 1e6, "logs not exact": len(wrong),
        "host's memory idle, MB": idle / MB, "host's peak memory, MB": peak / MB,
    }  # fmt: skip
    for session in sessions:
        await session.close()
    assert {w.state for w in ended} == {State.SUCCEEDED}
    assert [(k, len(got[k]) if isinstance(got[k], bytes) else got[k], len(_expected(k))) for k in wrong] == []
    assert [k for k in range(READ_TWICE) if again[k] != _expected(k)] == []
    assert most_running > LOGS // 2, "they did not write at once"
    assert host_pid() == host
    assert peak < MOST
