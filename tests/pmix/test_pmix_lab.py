"""Environments and launches on a real Slurm cluster of three nodes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from pmix_sessions import IMAGE, NODES, Open, Session, on, processes

from hpcsh.errors import CommandError, RefusedError, TargetError, TimedOutError, UsageError
from hpcsh.model import (
    EnvironmentState,
    LaunchSpec,
    Progress,
    State,
)

pytestmark = [pytest.mark.lab, pytest.mark.mpi]

EACH = ("--map-by", "ppr:1:node")
TWO = ("--map-by", "ppr:2:node")
SLEEPER = "hpcsh-sleeper-4711"
STUBBORN = f"trap '' TERM; echo here; while :; do sleep 1; done # {SLEEPER}"


async def test_up_tells_each_step(standing: list[Progress], session: Session) -> None:
    steps = [(p.step, p.status) for p in standing]
    assert steps[0] == ("allocation", "start")
    assert [s for s, status in steps if status == "done"] == ["allocation", "daemons", "ready"]
    (environment,) = await session.engine.environments()
    assert environment.state is EnvironmentState.READY
    assert environment.nodes == NODES
    assert environment.slots == 6
    assert environment.ends


async def test_a_new_engine_finds_the_dvm_again(standing: list[Progress], opened: Open) -> None:
    for _ in range(2):
        async with opened() as session:
            ran = await session.launch("prun", ["hostname"], EACH)
            assert (ran.lines, ran.code) == (list(NODES), 0)


async def test_prun_three_times_through_one_agent(standing: list[Progress], session: Session) -> None:
    for _ in range(3):
        ran = await session.launch("prun", ["hostname"], EACH)
        assert (ran.lines, ran.code, ran.error) == (list(NODES), 0, None)
    assert ran.workload
    assert ran.workload.state is State.SUCCEEDED
    assert ran.workload.environment == "default"
    native = ran.workload.native_id
    steps = on(session.lab, "login", f"squeue -h -s -j {native} -o %j", "alice").split()
    assert steps.count("hpcsh") == 1


@pytest.mark.parametrize("tool", ["prun", "prterun"])
async def test_output_is_exact(standing: list[Progress], session: Session, tool: str) -> None:
    exact = bytes(range(256)) + b"\n" + b"x" * 70000
    script = "import os; os.write({}, bytes(range(256)) + b'\\n' + b'x' * 70000 + {!r})"
    ran = await session.launch(tool, ["python3", "-c", script.format(1, b"")], ["-n", "1"])
    assert (ran.out, ran.err) == (exact, b"")
    ran = await session.launch(tool, ["python3", "-c", script.format(2, b"\n")], ["-n", "1"])
    assert (ran.out, ran.err) == (b"", exact + b"\n")
    ran = await session.launch(tool, ["sh", "-c", "printf lost? >&2"], ["-n", "1"])
    assert ran.out + ran.err == b"lost?"


async def test_output_is_live(standing: list[Progress], session: Session) -> None:
    """The program ends only when we have seen its first line."""
    home = await session.boundary.home()
    go = f"{home}/go-on"
    await session.boundary.remove(go)
    program = ("sh", "-c", f"echo here; until [ -e {go} ]; do sleep .1; done")
    spec = LaunchSpec(tool="prun", options=("-n", "1"), program=program, timeout=30)
    out = b""
    async with aclosing(session.engine.launch(spec)) as frames:  # type: ignore[type-var]
        async for frame in frames:
            out += frame.data
            if out == b"here\n":
                await session.boundary.write(go, b"")
    assert out == b"here\n"
    await session.boundary.remove(go)


async def test_arguments_arrive_word_by_word(standing: list[Progress], session: Session) -> None:
    words = ["a b", '"a"', 'b"', "'c'", "", "$HOME", "*", "x;y", "new\nline", '"', "-n"]
    program = ["python3", "-c", "import sys; print(sys.argv[1:])", *words]
    for tool in ("prun", "prterun"):
        ran = await session.launch(tool, program, ["-n", "1"])
        assert ran.out.decode().strip() == repr(words), tool


@pytest.mark.parametrize("tool", ["prun", "prterun"])
@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -9 $$", 137), ("kill -SEGV $$", 139)])
async def test_a_failing_rank_gives_its_code(
    standing: list[Progress], session: Session, tool: str, script: str, code: int
) -> None:
    program = ["sh", "-c", f'[ "$PMIX_RANK" != 1 ] || {script}; sleep 0.2']
    ran = await session.launch(tool, program, ["-n", "3"])
    assert (ran.code, ran.error) == (code, None)
    assert ran.workload
    assert ran.workload.state is State.FAILED


@pytest.mark.parametrize("tool", ["prun", "prterun"])
async def test_a_program_that_is_not_there(standing: list[Progress], session: Session, tool: str) -> None:
    for name, code in (("no-such-program", 127), ("/etc/passwd", 126)):
        ran = await session.launch(tool, [name], ["-n", "1"])
        assert isinstance(ran.error, CommandError)
        assert ran.error.exit_code == ran.code == code
        assert name in ran.error.what


async def test_launches_that_prrte_does_not_map(standing: list[Progress], session: Session) -> None:
    for options, says in (
        (["-n", "7"], "not enough slots"), (["--host", "n9", "-n", "1"], "n9"),
        (["--map-by", "nonsense"], "nonsense"), (["--no-such-option"], "--no-such-option"),
    ):  # fmt: skip
        for _ in range(2):  # PRRTE tells some of it only once
            ran = await session.launch("prun", ["hostname"], options)
            assert ran.error
            assert says in ran.error.what
    spec = LaunchSpec(tool="prun", options=("--dvm-uri", "x"), program=("a",))
    with pytest.raises(UsageError):
        await anext(session.engine.launch(spec))


async def test_prrtes_own_options(standing: list[Progress], session: Session) -> None:
    ran = await session.launch("prun", ["sh", "-c", "echo $HELLO"], ["-x", "HELLO=you", "--np", "2"])
    assert ran.lines == ["you", "you"]
    ran = await session.launch("prun", ["hostname"], ["--personality", "ompi", *EACH])
    assert (ran.lines, ran.code) == (list(NODES), 0)
    ran = await session.launch("prun", ["echo", "a", ":", "-n", "2", "echo", "b"], ["-n", "1"])
    assert ran.lines == ["a", "b", "b"]


@pytest.mark.parametrize("tool", ["prun", "prterun"])
async def test_cancel_leaves_no_rank(standing: list[Progress], session: Session, tool: str) -> None:
    await session.cancelled(tool, ["sh", "-c", STUBBORN], TWO, lambda out: out.count(b"here") == 6)
    assert processes(session.lab, SLEEPER) == []
    ran = await session.launch("prun", ["hostname"], TWO)  # all slots are free again
    assert ran.code == 0


async def test_a_time_limit_ends_the_ranks(standing: list[Progress], session: Session) -> None:
    ran = await session.launch("prun", ["sh", "-c", STUBBORN], TWO, timeout=1.0)
    assert isinstance(ran.error, TimedOutError)
    assert processes(session.lab, SLEEPER) == []


async def test_ranks_do_not_outlive_a_killed_agent(standing: list[Progress], opened: Open) -> None:
    """Everything of ours outside the batch step is killed with -9; the job itself ends the ranks."""
    async with opened() as session:
        spec = LaunchSpec(tool="prun", options=TWO, program=("sh", "-c", STUBBORN))
        frames = session.engine.launch(spec)
        out = b""
        while out.count(b"here") < 6:
            out += (await anext(frames)).data
        on(session.lab, "n1", "pkill -9 -u alice -f 'python3 -I|dvm/launch /'; pkill -9 -u alice -x prun")
        with pytest.raises(TargetError):
            async for _ in frames:
                pass
    for _ in range(40):
        if not processes(session.lab, SLEEPER):
            break
        await asyncio.sleep(0.5)
    assert processes(session.lab, SLEEPER) == []
    async with opened() as session:
        assert (await session.launch("prun", ["hostname"], TWO)).code == 0


async def test_ranks_in_an_image(standing: list[Progress], session: Session, program: str) -> None:
    ran = await session.launch("prun", [program, "100"], TWO, image=IMAGE)
    assert ran.code == 0, ran.err
    assert " 0) NP  :         6 procs [   3 Nodes at   2 PPN]" in ran.out.decode()
    assert "0 wrong" in ran.out.decode()
    assert [i.reference for i in await session.engine.images()]
    ran = await session.launch("prun", ["no-such-program"], ["-n", "1"], image=IMAGE)
    assert ran.error
    assert (ran.code, "in the image" in ran.error.what) == (127, True)
    stubborn = ["sh", "-c", STUBBORN]
    await session.cancelled("prun", stubborn, TWO, lambda out: out.count(b"here") == 6, image=IMAGE)
    assert processes(session.lab, SLEEPER) == []


@pytest.mark.parametrize("tool", ["prun", "prterun"])
async def test_mpi_on_three_nodes(
    standing: list[Progress], session: Session, program: str, tool: str
) -> None:
    ran = await session.launch(tool, [program, "1000"], TWO)
    assert ran.code == 0, ran.err
    lines = ran.out.decode().splitlines()
    assert lines[0] == " 0) Size: 6 (Running)"
    assert all(line.startswith(" 0) ") for line in lines)
    assert [line[4:8] for line in lines[3:]] == ["Init", "Barr", "Fin ", "I+F ", "Time"]


async def test_a_second_up_is_refused(standing: list[Progress], session: Session) -> None:
    with pytest.raises(RefusedError, match="up already"):
        await session.up(nodes="1")
    with pytest.raises(UsageError):
        await session.up(name="../x")


async def test_plans_are_exact_and_change_nothing(standing: list[Progress], session: Session) -> None:
    plan = await session.engine.plan_launch(LaunchSpec(tool="prun", options=EACH, program=("a", "b c")))
    (argv,) = plan.commands
    assert argv[4:6] == ("prun", "--dvm-uri")
    assert argv[-2:] == ("a", "b c")
    assert "default" in plan.title


async def test_clean_lists_the_environment(standing: list[Progress], session: Session) -> None:
    everything = await session.engine.clean_plan(everything=True)
    assert [i.kind for i in everything if "default" in i.detail] == ["environment"]
    assert not [i for i in await session.engine.clean_plan() if i.kind == "environment"]


async def test_doctor_finds_prrte(session: Session) -> None:
    found = {f.id: f for f in await session.engine.doctor()}
    assert {"pmix.prte", "pmix.prun", "pmix.prterun", "pmix.pterm", "slurm.version"} <= found.keys()
    assert "3.0" in found["pmix.prun"].what
