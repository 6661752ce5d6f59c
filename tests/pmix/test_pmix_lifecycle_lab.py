"""What comes up, goes down and is left behind; and what needs no environment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from pmix_sessions import IMAGE, NODES, Open, Session, on, processes

from hpcsh.errors import HpcshError, NotFoundError, RefusedError, TargetError, TimedOutError, UsageError
from hpcsh.model import EnvironmentState, File, LaunchSpec, LogOptions, Resources, State, SubmitSpec, UpSpec

pytestmark = [pytest.mark.lab, pytest.mark.mpi]

THREE = Resources(nodes="3")
HELD = Resources(nodes="3", flags=("--hold",))
EACH = ("--map-by", "ppr:1:node")
SLEEPER = "hpcsh-sleeper-4712"


@pytest.fixture(autouse=True)
async def nothing_left(opened: Open) -> AsyncIterator[None]:
    yield
    async with opened() as session:
        for environment in await session.engine.environments():
            await session.down(environment.name)
        await session.engine.clean(await session.engine.clean_plan(everything=True))
        home = await session.boundary.home()
        await session.boundary.remove(
            f"{home}/{session.context.profile.workdir.removeprefix('~/')}", recursive=True
        )


async def test_without_an_environment_prun_says_what_to_do(session: Session) -> None:
    ran = await session.launch("prun", ["hostname"])
    assert isinstance(ran.error, RefusedError)
    assert "hpcsh up" in ran.error.fix
    assert [p.status for p in await session.down()] == ["done"]
    with pytest.raises(NotFoundError):
        await session.engine.show("no-such-workload")


async def test_down_leaves_nothing(session: Session) -> None:
    await session.up(name="two", nodes="2")
    (environment,) = await session.engine.environments()
    assert environment.nodes == NODES[:2]
    assert processes(session.lab, "prted")
    told = await session.down("two")
    assert told[-1].status == "done"
    assert await session.engine.environments() == []
    left = [p for p in processes(session.lab, "") if "sshd" not in p]
    assert left == []
    queue = on(session.lab, "login", f"squeue -h -j {environment.native_id} -t RUNNING,PENDING", "alice")
    assert queue == ""
    assert await session.boundary.stat(environment.directory) is None
    assert (await session.launch("prun", ["hostname"], environment="two")).error
    await session.down("two")


async def test_an_up_that_is_given_up_leaves_nothing(session: Session) -> None:
    steps = session.engine.up(UpSpec(resources=THREE))
    async for progress in steps:
        if progress.step == "daemons":
            break
    await steps.aclose()  # type: ignore[attr-defined]
    assert await session.engine.environments() == []
    assert processes(session.lab, "prte") == []
    assert await session.engine.clean_plan(everything=True) == []


async def test_an_up_that_cannot_be_is_refused_by_slurm(session: Session) -> None:
    with pytest.raises(HpcshError, match="refused"):
        await session.up(nodes="99")
    assert await session.engine.environments() == []


async def test_an_up_that_was_killed_is_taken_up_again(opened: Open) -> None:
    async with opened() as session:
        steps = session.engine.up(UpSpec(resources=HELD))
        await anext(steps)
        task = asyncio.ensure_future(anext(steps))
        await asyncio.sleep(0)
        # As kill -9 does: nothing of ours gets to clean up.
        session.engine._lifecycle._remove = _nothing  # type: ignore[method-assign]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with opened() as session:
        coming = session.engine.up(UpSpec(resources=HELD))
        on(session.lab, "login", f"scontrol release {(await anext(coming)).message.split()[1]}", "alice")
        assert [p async for p in coming][-1].step == "ready"
        (environment,) = await session.engine.environments()
        assert environment.state is EnvironmentState.READY
        jobs = on(session.lab, "login", "squeue -h -u alice -n dvm -o %i", "alice").split()
        assert jobs == [environment.native_id]


async def _nothing(environment: object) -> None:
    return


async def test_a_cancelled_allocation_is_noticed(session: Session) -> None:
    await session.up(nodes="3")
    assert (await session.launch("prun", ["hostname"], EACH)).code == 0
    (environment,) = await session.engine.environments()
    on(session.lab, "login", f"scancel {environment.native_id}", "alice")
    for _ in range(40):
        if not processes(session.lab, "prte"):
            break
        await asyncio.sleep(0.25)
    ran = await session.launch("prun", ["hostname"], EACH)
    assert ran.error
    assert ran.code in (None, 1)
    (environment,) = await session.engine.environments()
    assert environment.state in (EnvironmentState.DOWN, EnvironmentState.STOPPING)
    await session.up(nodes="3")  # a dead one does not stand in the way
    assert (await session.launch("prun", ["hostname"], EACH)).code == 0


@pytest.mark.parametrize(("daemon", "node"), [("prte", "n1"), ("prted", "n2")])
async def test_a_dvm_that_dies_is_told(session: Session, daemon: str, node: str) -> None:
    await session.up(nodes="3")
    launched = asyncio.ensure_future(session.launch("prun", ["sh", "-c", f"sleep 300 # {SLEEPER}"], EACH))
    while not processes(session.lab, SLEEPER):
        await asyncio.sleep(0.1)
    on(session.lab, node, f"pkill -9 -u alice -x {daemon}")
    ran = await asyncio.wait_for(launched, 60)
    assert isinstance(ran.error, TargetError)
    again = await session.launch("prun", ["hostname"], EACH)
    assert isinstance(again.error, TargetError | RefusedError)
    assert "hpcsh down" in again.error.fix or "hpcsh status" in again.error.fix
    await session.down()
    assert processes(session.lab, SLEEPER) == []
    assert processes(session.lab, "prte") == []


async def test_prterun_in_a_job_of_its_own(session: Session, program: str) -> None:
    ran = await session.launch("prterun", ["hostname"], EACH, resources=THREE)
    assert (ran.lines, ran.code) == (list(NODES), 0)
    assert ran.workload
    script = ["sh", "-c", "echo o; echo e >&2; exit 7"]
    ran = await session.launch("prterun", script, ["-n", "1"], resources=THREE)
    assert (ran.out, ran.code) == (b"o\n", 7)
    assert ran.err.startswith(b"e")
    ran = await session.launch("prterun", ["no-such-program"], ["-n", "1"])
    assert ran.code == 127
    two = Resources(nodes="3", flags=("--ntasks-per-node=2",))
    options = ("--map-by", "ppr:2:node")
    ran = await session.launch("prterun", [program, "50"], options, resources=two, image=IMAGE)
    assert ran.code == 0, ran.err
    assert "6 procs [   3 Nodes at   2 PPN]" in ran.out.decode()
    ours = [w for w in (await session.engine.workloads(mine_only=True)).workloads if w.name == "hostname"]
    assert [w.kind.value for w in ours] == ["launch"]
    logs = [c async for c in session.engine.logs(ours[0].id, LogOptions())]
    assert sorted(b"".join(c.data for c in logs).split()) == [n.encode() for n in NODES]


async def test_prteruns_job_ends_with_its_caller(session: Session) -> None:
    program = ["bash", "-c", f"echo here; while :; do sleep 1; done # {SLEEPER}"]
    await session.cancelled("prterun", program, EACH, lambda out: out.count(b"here") == 3, resources=THREE)
    assert processes(session.lab, SLEEPER) == []
    assert on(session.lab, "login", "squeue -h -u alice -n bash -t R,PD", "alice") == ""
    ran = await session.launch("prterun", program, EACH, resources=THREE, timeout=1.0)
    assert isinstance(ran.error, TimedOutError)
    assert processes(session.lab, SLEEPER) == []


async def test_mpi_as_a_plain_job(session: Session, program: str) -> None:
    data = await session.boundary.read(f"{program}.job.sh")
    spec = SubmitSpec(file=File("init_finalize.job.sh", data), args=("50",), cwd=program.rpartition("/")[0])
    submitted = await session.engine.submit(spec)
    (done,) = await session.engine.wait([submitted.id], timeout=120)
    text = b"".join([c.data async for c in session.engine.logs(done.id, LogOptions())]).decode()
    assert (done.state, done.exit_code) == (State.SUCCEEDED, 0), text
    assert "3 procs [   3 Nodes at   1 PPN]" in text


async def test_a_command_as_a_job(session: Session) -> None:
    spec = SubmitSpec(command=("sh", "-c", "echo $A; exit 4"), env={"A": "b c"})
    submitted = await session.engine.submit(spec)
    (done,) = await session.engine.wait([submitted.id], timeout=60)
    assert (done.state, done.exit_code) == (State.FAILED, 4)
    assert [c.data async for c in session.engine.logs(done.id, LogOptions())] == [b"b c\n"]


async def test_a_pod_is_refused_and_the_right_engine_named(session: Session) -> None:
    pod = File("pod.yaml", b"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n")
    with pytest.raises(UsageError) as error:
        await session.engine.submit(SubmitSpec(file=pod))
    assert "virtual_node" in str(error.value)


async def test_a_plan_without_an_environment_is_a_job(session: Session) -> None:
    plan = await session.engine.plan_launch(LaunchSpec(tool="prterun", program=("a", "b c"), resources=THREE))
    assert plan.commands[0][0] == "sbatch"
    assert plan.commands[-1][0] == "prterun"
    assert plan.commands[-1][-2:] == ("a", "b c")
    assert "b c" not in plan.script


async def test_a_plan_of_up_is_what_up_submits(session: Session) -> None:
    spec = UpSpec(name="two", resources=Resources(nodes="2", flags=("--hold",)))
    plan = await session.engine.plan_up(spec)
    assert plan.title == "up two"
    assert await session.engine.environments() == []
    ((sbatch, *options),) = plan.commands
    assert sbatch == "sbatch"
    assert "--hold" in options
    steps = session.engine.up(spec)
    await anext(steps)
    (environment,) = await session.engine.environments()
    (planned,) = [f for f in plan.files if f.path.endswith("/dvm/argv")]
    assert planned.data is not None
    told = planned.path.removesuffix("/dvm/argv")
    written = await session.boundary.read(f"{environment.directory}/dvm/argv")
    assert written == planned.data.replace(told.encode(), environment.directory.encode())
    script = await session.boundary.read(f"{environment.directory}/job.slurm")
    assert script.decode() == plan.script.replace(told.rpartition("/")[2], environment.id)
    await steps.aclose()  # type: ignore[attr-defined]
    with pytest.raises(UsageError):
        await session.engine.plan_up(UpSpec(name="no name"))


async def test_down_ends_an_up_that_waits(session: Session) -> None:
    waiting = asyncio.ensure_future(session.up(nodes="1", flags=("--hold",)))
    while not [e for e in await session.engine.environments() if e.native_id]:
        await asyncio.sleep(0.1)
    (environment,) = await session.engine.environments()
    with pytest.raises(RefusedError, match="just being started") as refused:
        await session.up(nodes="1")
    assert "hpcsh down default" in refused.value.fix
    told = await session.down()
    assert told[-1].message == "released"
    with pytest.raises(HpcshError, match="ended by a `down`"):
        await asyncio.wait_for(waiting, 30)
    assert await session.engine.environments() == []
    queue = on(session.lab, "login", f"squeue -h -j {environment.native_id} -t RUNNING,PENDING", "alice")
    assert queue == ""
    await session.down()


async def test_another_up_does_not_join_what_has_other_resources(opened: Open) -> None:
    async with opened() as session:
        steps = session.engine.up(UpSpec(resources=Resources(nodes="1", flags=("--hold",))))
        await anext(steps)
        session.engine._lifecycle._remove = _nothing  # type: ignore[method-assign]
        await steps.aclose()  # type: ignore[attr-defined]
    async with opened() as session:
        with pytest.raises(RefusedError, match="other resources") as refused:
            await session.up(nodes="2")
        assert "nodes=1 --hold" in refused.value.why
        assert "nodes=2" in refused.value.why
        again = session.engine.up(UpSpec(resources=Resources(nodes="1", flags=("--hold",))))
        assert (await anext(again)).step == "allocation"
        await again.aclose()  # type: ignore[attr-defined]


async def test_one_environment_that_cannot_be_cleaned_does_not_keep_the_others(session: Session) -> None:
    ups = [session.engine.up(UpSpec(name=n, resources=Resources(flags=("--hold",)))) for n in ("a", "b")]
    for steps in ups:
        await anext(steps)
    items = await session.engine.clean_plan(everything=True)
    lifecycle = session.engine._lifecycle
    lifecycle._busy.add("a")
    held = lifecycle._starting.pop("a")  # as while another `down` of it runs
    report = await session.engine.clean(items)
    a, b = (next(i.target for i in items if f"{n}: " in i.detail) for n in ("a", "b"))
    assert report.done == (b,), report
    ((failed, why),) = report.failed
    assert failed == a
    assert "just being ended" in why
    lifecycle._starting["a"] = held
    for steps in ups:
        await steps.aclose()  # type: ignore[attr-defined]


async def test_a_job_that_does_not_end_is_named(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = session.engine.up(UpSpec(resources=Resources(flags=("--hold",))))
    await anext(steps)
    (environment,) = await session.engine.environments()
    with monkeypatch.context() as patched:
        patched.setattr("hpcsh.engines.pmix.lifecycle.END_TIMEOUT", 0.0)
        with pytest.raises(TimedOutError, match=f"job {environment.native_id} did not end"):
            await session.down()
    await steps.aclose()  # type: ignore[attr-defined]


async def test_all_is_checked_before_an_image_is_pulled(session: Session) -> None:
    engine = session.engine
    absent = "docker://login:5000/busybox"
    for image in await engine.images():
        if "busybox" in image.reference:
            await session.boundary.remove(image.path, recursive=True)
            await session.boundary.remove(f"{image.path.rpartition('.')[0]}.json")
    bad = Resources(flags=("--no-such-option",))
    for plan in (
        await engine.plan(SubmitSpec(command=("true",), image=absent)),
        await engine.plan_launch(LaunchSpec(tool="prterun", program=("true",), image=absent)),
    ):
        assert plan.commands[0][:2] == ("hpcsh", "pull")
        assert "busybox" in plan.commands[0][2]
        assert plan.commands[1][0] == "sbatch"
    with pytest.raises(UsageError):
        await engine.submit(SubmitSpec(command=("true",), image=absent, resources=bad))
    assert not [i for i in await engine.images() if "busybox" in i.reference]
    ran = await session.launch("prterun", ["true"], image=absent, resources=bad)
    assert isinstance(ran.error, UsageError)
    assert not [i for i in await engine.images() if "busybox" in i.reference]
    done = await engine.submit(SubmitSpec(command=("true",), image=absent))
    ((ended,), images) = await engine.wait([done.id], timeout=60), await engine.images()
    assert ended.state is State.SUCCEEDED
    assert [i for i in images if "busybox" in i.reference]
