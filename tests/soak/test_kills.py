"""The session host is killed in the middle of a submission, again and again: nothing is lost or doubled.

Each script appends a line of its own to a file on the cluster. Afterwards the file, Slurm's accounting and
`hpcsh ps` must tell the same: no line twice, each accepted submission's line there, none of a withdrawn one.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections import Counter

import pytest

from hpcsh.client import connect
from hpcsh.errors import HpcshError, UnknownOutcomeError
from hpcsh.model import File, SubmitSpec
from hpcsh.session import Session
from tests.front.conftest import Hpcsh
from tests.soak.soak_tools import chance, kill_process, on

pytestmark = [pytest.mark.soak, pytest.mark.lab]

KILLS = int(os.environ.get("HPCSH_SOAK_KILLS") or 100)
LATEST = 0.060
"""Seconds from the beginning of the call within which the host is killed."""
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output=/dev/null
#SBATCH --mem=50M
echo {name} >> ~/{file}
"""


async def _killed_submit(session: Session, script: bytes, after: float) -> str:
    """Submit while the host is killed: the workload's id, "" when nobody knows, else how it was refused."""
    await session.nodes()  # the host runs and has reached the cluster
    pid = (await session.info()).host_pid
    assert pid is not None
    call = asyncio.create_task(session.submit(SubmitSpec(file=File("job.sh", script))))
    await asyncio.sleep(after)
    kill_process(pid)
    try:
        return (await call).id
    except UnknownOutcomeError:
        return ""
    except HpcshError as error:
        return f"! {error.kind}: {error.what}"


async def _settle(session: Session) -> int:
    """Ask until nothing of ours is open any more; how often we asked."""
    for asked in range(1, 241):
        shown = await session.workloads(mine_only=True, fresh=True)
        if all(w.state.terminal for w in shown.workloads):
            return asked
        await asyncio.sleep(1)
    raise AssertionError([w for w in shown.workloads if not w.state.terminal])


async def test_kills(lab: str, places: dict[str, str], hpcsh: Hpcsh, counts: dict[str, object]) -> None:
    rng = chance("kills")
    run = f"kill-{secrets.token_hex(3)}"
    outcomes: dict[str, str] = {}
    hosts: set[int | None] = set()
    session = await connect("jobs")
    for i in range(KILLS):
        name = f"{run}-{i:03}"
        script = SCRIPT.format(name=name, file=run).encode()
        outcomes[name] = await _killed_submit(session, script, rng.uniform(0, LATEST))
        hosts.add((await session.info()).host_pid)
        if i % 10 == 9:  # some hosts have looked for what earlier ones left before they are killed too
            await session.workloads(fresh=True)
    counts["kills"] = KILLS
    counts["hosts"] = len(hosts)
    accepted = {n for n, o in outcomes.items() if o and not o.startswith("!")}
    refused = {n: o for n, o in outcomes.items() if o.startswith("!")}
    counts["accepted"] = len(accepted)
    counts["outcome unknown to the caller"] = sum(not o for o in outcomes.values())
    counts["refused"] = len(refused)

    counts["questions until all was settled"] = await _settle(session)
    await session.close()
    shown = json.loads(hpcsh("ps", "--mine", "--json").stdout)["workloads"]
    queue = on(lab, "login", "/usr/bin/squeue -h -a -t PD,R,CF,CG -o %j", "alice").split()
    assert not [name for name in queue if name.startswith(run)]
    lines = Counter(on(lab, "login", f"cat ~/{run}; rm ~/{run}", "alice").split())
    kept = on(lab, "login", "sacct -X -n -P -S now-1hours -u alice -o JobName,State", "alice")
    jobs = Counter(row.split("|")[0] for row in kept.splitlines() if row.startswith(run))
    by_name = {w["name"]: w for w in shown}
    counts["ran"] = len(lines)
    counts["withdrawn"] = sum(w["reason"] == "Withdrawn" for w in shown)
    counts["never written down"] = len(outcomes.keys() - by_name.keys())

    assert len(by_name) == len(shown), "one workload for a submission"
    assert [n for n, count in lines.items() if count > 1] == [], "doubled"
    assert [n for n, count in jobs.items() if count > 1] == [], "two jobs for one submission"
    assert accepted - lines.keys() == set(), "lost"
    assert refused.keys() & lines.keys() == set(), "refused, and ran all the same"
    assert {n for n, w in by_name.items() if w["state"] == "succeeded"} == set(lines)
    strange = [w for n, w in by_name.items() if n not in lines and w["reason"] != "Withdrawn"]
    assert strange == []
    assert {n: by_name[n]["id"] for n in accepted} == {n: outcomes[n] for n in accepted}
