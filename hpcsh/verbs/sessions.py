"""Verbs about profiles, sessions and the cluster."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Parameter

from hpcsh import profiles as profile_files
from hpcsh.errors import FAILED, OK, UsageError
from hpcsh.model import Severity
from hpcsh.verbs.context import VerbContext
from hpcsh.verbs.output import duration, moment, size
from hpcsh.verbs.registry import Risk, verb

Json = Annotated[bool, Parameter(name=["--json"], negative="", help="Print one JSON document.")]


@verb(risk=Risk.READ)
async def profiles(*, json: Json = False, context: VerbContext) -> int:
    """List the profiles that can be used.

    Yours in ~/.config/hpcsh/profiles come before the site's in /etc/hpcsh/profiles and the shipped ones.
    """
    found = []
    for name, path in profile_files.available().items():
        try:
            found.append(profile_files.load(name))
        except UsageError as e:
            context.out.note(f"{path}: {e.why or e.what}")
    if json:
        context.out.data(found)
        return OK
    rows: list[list[str | int | None]] = [
        ["*" if p.name == context.profile else "", p.name, p.engine, p.target.key(), p.description]
        for p in found
    ]
    context.out.table(["", "PROFILE", "ENGINE", "TARGET", "WHAT"], rows, empty="There are no profiles.")
    return OK


@verb(risk=Risk.READ)
async def use(profile: str, /, *, context: VerbContext) -> int:
    """Choose the profile, and open its session.

    On a command line the choice is remembered for the next one; -P and HPCSH_PROFILE come before it.
    """
    session = await context.use(profile)
    snapshot = await session.workloads(mine_only=True)  # logs in, and asks the controller
    info = await session.info()
    context.out.line(f"{info.profile}: {info.engine} on {info.target} as {info.user}")
    if snapshot.stale:
        context.out.note(snapshot.stale)
    return OK


@verb(risk=Risk.READ)
async def status(*, json: Json = False, context: VerbContext) -> int:
    """Show the session, its environments, and how old what it knows is."""
    session = await context.session()
    snapshot = await session.workloads(mine_only=True)
    info = await session.info()
    environments = await session.environments() if "up" in info.capabilities else []
    if json:
        context.out.data({"session": info, "environments": environments, "as_of": snapshot.as_of,
                          "stale": snapshot.stale})  # fmt: skip
        return OK
    out = context.out
    out.line(f"profile     {info.profile} ({info.engine})")
    out.line(f"target      {info.target} as {info.user}")
    out.line(f"session     {f'host process {info.host_pid}' if info.host_pid else 'in this process'}")
    states = [w.state for w in snapshot.workloads]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    out.line(f"workloads   {counts or 'none of ours'}")
    age = duration(time.time() - snapshot.as_of)
    out.line(
        f"as of       {moment(snapshot.as_of)} ({age} ago){f', {snapshot.stale}' if snapshot.stale else ''}"
    )
    for e in environments:
        left = f", {duration(e.ends - time.time())} left" if e.ends else ""
        where = f" on {','.join(e.nodes)}" if e.nodes else ""
        out.line(
            f"environment {e.name}: {e.state}{where}, job {e.native_id or '-'}{left} {e.message}".rstrip()
        )
    return OK


@verb(risk=Risk.READ, needs="nodes", aliases=("sinfo",))
async def nodes(*, json: Json = False, context: VerbContext) -> int:
    """List the cluster's nodes: state, what is used, and why one is drained."""
    found = await (await context.session()).nodes()
    if json:
        context.out.data(found)
        return OK
    context.out.table(
        ["NODE", "STATE", "PARTITIONS", "CPUS", "USED", "MEMORY", "FREE", "GRES", "REASON"],
        [
            [n.name, n.state, ",".join(n.partitions), n.cpus, n.cpus_used, size(n.memory),
             size(n.memory_free), n.gres, n.reason]
            for n in found
        ],
        empty="Slurm names no nodes.",
    )  # fmt: skip
    return OK


@verb(risk=Risk.READ, needs="doctor")
async def doctor(*, json: Json = False, context: VerbContext) -> int:
    """Look at everything the session needs, and say what is wrong and how to fix it."""
    findings = await (await context.session()).doctor()
    bad = any(f.severity is Severity.ERROR for f in findings)
    if json:
        context.out.data(findings)
        return FAILED if bad else OK
    signs = {Severity.OK: "ok  ", Severity.WARNING: "warn", Severity.ERROR: "FAIL"}
    for f in findings:
        context.out.line(f"{signs[f.severity]}  {f.id}: {f.what}")
        if f.fix and f.severity is not Severity.OK:
            context.out.line(f"      fix: {f.fix}")
    return FAILED if bad else OK
