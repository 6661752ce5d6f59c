"""Sessions on the lab beside Slurm's and PRRTE's own commands over the same kind of connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

from bench.figures import Figure, paired
from hpcsh.boundary.base import Boundary
from hpcsh.boundary.nested import NestedBoundary
from hpcsh.boundary.ssh import SSHBoundary
from hpcsh.client import connect
from hpcsh.engines.pmix import layout
from hpcsh.engines.pmix.commands import head_argv
from hpcsh.engines.pmix.facts import step_environment
from hpcsh.lab.paths import ssh_config
from hpcsh.model import File, LaunchSpec, LogOptions, Resources, SubmitSpec, UpSpec
from hpcsh.session import Session

Say = Callable[[str], None]
SCRIPT = b"#!/bin/sh\ntrue\n"
MEGABYTES = 200


async def measure(rounds: int, say: Say) -> list[Figure]:
    """Submit, queue, logs, launches."""
    raw = SSHBoundary("hpcsh-lab-bench", ssh_config=str(ssh_config("bench")))
    await raw.open()
    jobs = await connect("bench-jobs")
    try:
        found = [await submit(jobs, raw, rounds, say), await queue(jobs, raw, rounds, say)]
        found += await logs(jobs, raw, rounds, say)
        await jobs.clean(await jobs.clean_plan(everything=True))
    finally:
        await jobs.close()
    mpi = await connect("bench-mpi")
    try:
        found += await launches(mpi, raw, rounds, say)
    finally:
        await mpi.close()
        await raw.close()
    return found


async def submit(session: Session, raw: Boundary, rounds: int, say: Say) -> Figure:
    """A batch script, from bytes to job id."""
    say("submit beside sbatch")
    await raw.write("bench.sh", SCRIPT, mode=0o700)
    spec = SubmitSpec(file=File("bench.sh", SCRIPT))

    async def plain() -> None:
        done = await raw.run(["sbatch", "--parsable", "-A", "science", "bench.sh"], timeout=30)
        done.check("sbatch failed")

    figure = Figure(
        "submit, session open", ratio_budget=1.3, slack=10, note="`sbatch` of a script that lies there"
    )
    return await paired(figure, lambda: session.submit(spec), plain, rounds=max(rounds, 20))


async def queue(session: Session, raw: Boundary, rounds: int, say: Say) -> Figure:
    """One refresh with a thousand array tasks in the queue; one question to slurmctld."""
    say("ps beside squeue, 1,000 jobs queued")
    held = ["sbatch", "--parsable", "--hold", "--array=0-999", "-A", "science", "bench.sh"]
    job = (await raw.run(held, timeout=30)).check("sbatch failed").text.strip()
    form = "%i\x1f%T\x1f%j\x1f%u\x1f%a\x1f%P\x1f%N\x1f%M\x1f%l\x1f%V\x1f%S\x1f%e\x1f%r\x1f%k"

    async def plain() -> None:
        argv = ["squeue", "-h", "-r", "-a", "--states=all", "--me", "-o", form]
        (await raw.run(argv, timeout=30)).check("squeue failed")

    async def ours() -> None:
        await session.workloads(fresh=True)

    figure = Figure(
        "full status refresh (`ps`)", ratio_budget=1.2, note="one `squeue -r` of the same columns"
    )
    await paired(figure, ours, plain, rounds=rounds, between=lambda: asyncio.sleep(1.1))
    await raw.run(["scancel", job], timeout=30)
    return figure


async def logs(session: Session, raw: Boundary, rounds: int, say: Say) -> list[Figure]:
    """Catch up with a big log, and the lag of a live one."""
    say(f"logs: {MEGABYTES} MB beside tail -f")
    script = (
        f"#!/bin/sh\nhead -c {MEGABYTES}000000 /dev/zero | tr '\\0' x | fold -w 99\necho the end\n".encode()
    )
    work = await session.submit(SubmitSpec(file=File("big.sh", script), resources=Resources(job_name="big")))
    await session.wait([work.id])
    path = f"slurm-{work.native_id}.out"

    async def ours() -> float:
        count, began = 0, time.perf_counter()
        async with aclosing(session.logs(work.id, LogOptions(follow=True))) as stream:
            async for chunk in stream:
                count += len(chunk.data)
        return count / 1e6 / (time.perf_counter() - began)

    async def plain() -> float:
        count, began = 0, time.perf_counter()
        async with raw.stream(["tail", "-c", "+1", "-f", path]) as process:
            async for _, data in process.output():
                count += len(data)
                if data.endswith(b"the end\n"):
                    break
        return count / 1e6 / (time.perf_counter() - began)

    speed = Figure(
        "log follow, catch up", unit="MB/s", ratio_budget=0.8, higher_is_better=True, note="`tail -f`"
    )
    for _ in range(max(3, rounds // 3)):
        speed.ours.append(await ours())
        speed.raw.append(await plain())
    return [speed, await lag(raw, rounds, say)]


async def lag(raw: Boundary, rounds: int, say: Say) -> Figure:
    """Milliseconds from a line's writing to its arrival, ours by inotify, raw through `tail -f`."""
    say("log lag")
    figure = Figure("log follow, lag of a line", budget=50, note="`tail -f` over the same connection")
    await raw.write("lag.log", b"")
    arrived: dict[str, asyncio.Queue[float]] = {"ours": asyncio.Queue(), "raw": asyncio.Queue()}

    async def follow() -> None:
        async with aclosing(raw.follow("lag.log")) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if piece.data:
                    arrived["ours"].put_nowait(time.perf_counter())

    async def tail() -> None:
        async with raw.stream(["tail", "-n", "0", "-f", "lag.log"]) as process:
            async for _, _data in process.output():
                arrived["raw"].put_nowait(time.perf_counter())

    tasks = [asyncio.create_task(follow()), asyncio.create_task(tail())]
    await asyncio.sleep(1)
    try:
        for _ in range(max(rounds, 20)):
            began = time.perf_counter()
            await raw.run(["sh", "-c", "echo line >> lag.log"], timeout=10)
            figure.ours.append((await asyncio.wait_for(arrived["ours"].get(), 5) - began) * 1000)
            figure.raw.append((await asyncio.wait_for(arrived["raw"].get(), 5) - began) * 1000)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return figure


async def launches(session: Session, raw: Boundary, rounds: int, say: Say) -> list[Figure]:
    """`prun` and `prterun` of `hostname` on three nodes, beside the raw tool on the head node."""
    say("up -N 3")
    async with aclosing(session.up(UpSpec(resources=Resources(nodes="3")))) as progress:
        async for _ in progress:
            pass
    (environment,) = await session.environments()
    head = NestedBoundary(raw, head_argv(environment.native_id, environment.nodes[0]), "head")
    await head.open()
    step = (await head.run(["env", "-0"], timeout=10)).stdout
    job = await head.read(f"{environment.directory}/{layout.PLACE}/{layout.JOB_ENV}")
    whole = step_environment(layout.parse_assignments(step), layout.parse_assignments(job))
    mapping = ("--map-by", "ppr:1:node")
    found = []
    try:
        for tool, extra, budget in (
            ("prun", ["--dvm-uri", f"file:{environment.uri}"], 1.1),
            ("prterun", [], None),
        ):
            say(f"{tool} beside raw")
            spec = LaunchSpec(tool=tool, options=mapping, program=("hostname",), environment="default")
            argv = [tool, *extra, *mapping, "hostname"]

            async def ours(spec: LaunchSpec = spec) -> None:
                async with aclosing(session.launch(spec)) as frames:
                    codes = [f.exit_code async for f in frames if f.exit_code is not None]
                assert codes == [0], codes

            async def plain(argv: list[str] = argv) -> None:
                (await head.run(argv, env=whole, timeout=60)).check("the raw launch failed")

            figure = Figure(
                f"{tool} hostname, 3 nodes", ratio_budget=budget, note=f"`{tool}` on the head node"
            )
            found.append(await paired(figure, ours, plain, rounds=max(rounds, 15)))
    finally:
        await head.close()
        async with aclosing(session.down("default")) as progress:
            async for _ in progress:
                pass
    return found
