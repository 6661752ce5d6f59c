"""What a session promises, in this process and attached to the session host: the same tests for both."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import aclosing
from pathlib import Path

import pytest
from session_fixtures import Open, Place, alive, eventually

from hpcsh import errors
from hpcsh.client.attached import AttachedSession
from hpcsh.events import WorkloadChanged
from hpcsh.model import (
    LaunchFrame,
    LaunchSpec,
    LogOptions,
    Resources,
    Severity,
    State,
    SubmitSpec,
    UpSpec,
)
from hpcsh.session import Session
from hpcsh.session.local import LocalSession


def program(*argv: str) -> LaunchSpec:
    return LaunchSpec(tool="prterun", program=argv)


async def run(session: Session, *argv: str) -> tuple[bytes, bytes, int | None]:
    out: dict[int, bytes] = {0: b"", 1: b"", 2: b""}
    code = None
    async with aclosing(session.launch(program(*argv))) as frames:
        async for frame in frames:
            out[frame.stream] += frame.data
            code = frame.exit_code
    return out[1], out[2], code


async def first(session: Session, *argv: str) -> tuple[object, int]:
    """A launch that goes on, and its pid."""
    frames = session.launch(program(*argv))
    frame: LaunchFrame = await anext(frames)
    return frames, int(frame.data)


@pytest.mark.parametrize("implementation", [LocalSession, AttachedSession])
def test_both_implement_the_protocol(implementation: type) -> None:
    for name, method in inspect.getmembers(Session, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(getattr(implementation, name))
            assert ours == inspect.signature(method), name


async def test_what_a_session_is(opened: Open) -> None:
    session = await opened()
    before = await session.info()
    assert (before.profile, before.engine, before.description) == ("here", "local_processes", "the first")
    assert "submit" in before.capabilities
    assert before.user == ""
    await session.nodes()
    after = await session.info()
    assert after.user
    assert after.target == "this machine"
    assert (after.host_pid is None) == isinstance(session, LocalSession)


async def test_a_workload_from_submit_to_clean(opened: Open) -> None:
    session = await opened()
    workload = await session.submit(SubmitSpec(name="hello", command=("sh", "-c", "echo hello; exit 3")))
    (ended,) = await session.wait([workload.id], timeout=20)
    assert (ended.state, ended.exit_code) == (State.FAILED, 3)
    log = b"".join([chunk.data async for chunk in session.logs(workload.id, LogOptions())])
    assert log == b"hello\n"
    assert (await session.show(workload.id)).workload == ended
    assert [w.id for w in (await session.workloads(mine_only=True)).workloads] == [workload.id]
    items = await session.clean_plan(everything=True)
    assert (await session.clean(items)).done == (workload.id,)
    assert (await session.workloads()).workloads == ()


async def test_every_other_call_crosses(opened: Open) -> None:
    session = await opened()
    assert [p.step async for p in session.pull(["a", "b"])] == ["a", "b"]
    assert await session.images() == []
    assert [p.status async for p in session.up(UpSpec())] == ["start"]
    assert [p.step async for p in session.down("x")] == ["x"]
    assert await session.environments() == []
    planned = await session.plan_up(UpSpec(name="two", resources=Resources(flags=("--hold",))))
    assert (planned.title, planned.commands) == ("up two", (("sbatch", "--hold"),))
    assert (await session.plan_launch(program("true"))).commands == (("true",),)
    assert (await session.plan(SubmitSpec(command=("a", "ü\n\0")))).commands == (("a", "ü\n\0"),)
    assert (await session.cancel([])).done == ()


async def test_output_is_exact_and_the_exit_code_the_programs_own(opened: Open) -> None:
    session = await opened()
    assert await run(session, "sh", "-c", r"printf 'a\000\377'; printf e >&2; exit 5") == (
        b"a\0\xff",
        b"e",
        5,
    )
    assert (await run(session, "sh", "-c", "kill -9 $$"))[2] == 137
    with pytest.raises(errors.CommandError):
        await run(session, "/does/not/exist")


async def test_a_hundred_megabytes_arrive(opened: Open) -> None:
    session = await opened()
    size = 0
    async for frame in session.launch(program("head", "-c", "100000000", "/dev/zero")):
        size += len(frame.data) if frame.stream == 1 else 0
    assert size == 100_000_000


async def test_closing_a_stream_ends_its_process(opened: Open) -> None:
    session = await opened()
    frames, pid = await first(session, "sleep", "4711")
    assert alive(pid)
    await frames.aclose()  # type: ignore[attr-defined]
    assert not alive(pid)


async def test_cancelling_a_reader_ends_its_process(opened: Open) -> None:
    session = await opened()
    pids: list[int] = []

    async def read() -> None:
        async with aclosing(session.launch(program("sh", "-c", "trap '' TERM; sleep 4711"))) as frames:
            async for frame in frames:
                pids.append(int(frame.data))

    task = asyncio.create_task(read())
    await eventually(lambda: pids)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pids[0])


async def test_cancelling_a_call_ends_what_it_does(opened: Open, place: Place) -> None:
    session = await opened()
    stream = session.up(UpSpec(name="hang"))
    await anext(stream)
    task = asyncio.ensure_future(anext(stream))
    await eventually(lambda: [c for c in place.processes().values() if "sleep 4711" in c])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: not [c for c in place.processes().values() if "sleep 4711" in c])


async def test_a_slow_reader_slows_its_source_and_nothing_else(opened: Open) -> None:
    session = await opened()
    frames, pid = await first(session, "cat", "/dev/zero")

    def written() -> int:
        return int(Path(f"/proc/{pid}/io").read_text().split("wchar: ")[1].split()[0])

    async def still() -> bool:
        before = written()
        await asyncio.sleep(0.2)
        return before > 0 and before == written()

    async with asyncio.timeout(20):
        while not await still():
            pass
    assert written() < 32 << 20
    assert (await run(session, "echo", "others go on"))[0] == b"others go on\n"
    assert await anext(frames)  # type: ignore[call-overload]
    await frames.aclose()  # type: ignore[attr-defined]
    assert not alive(pid)


async def test_an_error_keeps_all_it_says(opened: Open) -> None:
    session = await opened()
    for kind, made in errors._KINDS.items():
        with pytest.raises(errors.HpcshError) as caught:
            await session.plan(SubmitSpec(name=f"raise:{kind}"))
        e = caught.value
        assert type(e) is made
        assert (e.what, e.why, e.fix, e.exit_code) == (f"what of {kind}", "why", "fix", 7)


async def test_an_error_in_a_stream(opened: Open) -> None:
    session = await opened()
    with pytest.raises(errors.NotFoundError) as caught:
        await anext(session.logs("nothing", LogOptions(follow=True)))
    assert caught.value.fix == "hpcsh ps"


async def test_a_profile_that_is_no_profile(opened: Open) -> None:
    for profile in ("none", "../x"):
        with pytest.raises(errors.NotFoundError):
            await opened(profile)
    with pytest.raises(errors.UsageError, match="color"):
        await opened("wrong")


async def test_events_resume_by_number(opened: Open) -> None:
    session = await opened()
    names = ["a", "b", "c"]
    for name in names:
        await session.submit(SubmitSpec(name=name, command=("true",)))

    async def take(after: int, count: int) -> list[tuple[int, str]]:
        seen = []
        async with aclosing(session.events(after)) as events:
            async for event in events:
                assert isinstance(event.body, WorkloadChanged)
                seen.append((event.number, event.body.workload.name))
                if len(seen) == count:
                    break
        return seen

    assert await take(0, 3) == [(1, "a"), (2, "b"), (3, "c")]
    assert await take(1, 2) == [(2, "b"), (3, "c")]
    assert await take(99, 3) == [(1, "a"), (2, "b"), (3, "c")]


async def test_events_from_now(opened: Open) -> None:
    session = await opened()
    await session.submit(SubmitSpec(name="before", command=("true",)))
    async with aclosing(session.events()) as events:
        task = asyncio.ensure_future(anext(events))
        await session.info()  # answered after the listener is there
        await asyncio.sleep(0)
        await session.submit(SubmitSpec(name="after", command=("true",)))
        assert (await task).body.workload.name == "after"  # type: ignore[union-attr]


async def test_two_front_ends_share_one_session(opened: Open) -> None:
    one, two = await opened(), await opened()
    workload = await one.submit(SubmitSpec(name="shared", command=("true",)))
    assert [w.id for w in (await two.workloads()).workloads] == [workload.id]
    async with aclosing(two.events(0)) as events:
        assert (await anext(events)).body.workload.id == workload.id  # type: ignore[union-attr]
    await one.close()
    with pytest.raises(errors.TargetError):
        await one.nodes()
    assert await two.nodes()


async def test_profiles_on_one_target_share_its_connection(opened: Open, place: Place) -> None:
    one, two = await opened("here"), await opened("also")
    agent = (await run(one, "sh", "-c", "echo $PPID"))[0]
    assert (await run(two, "sh", "-c", "echo $PPID"))[0] == agent


async def test_the_setup_lies_under_every_command_of_its_session_only(opened: Open) -> None:
    prepared, plain = await opened("prepared"), await opened("here")
    show = ("sh", "-c", 'printf "%s." "$HPCSH_SETUP_SAYS" "$HOSTILE"')
    assert (await run(prepared, *show))[0] == b"two\n  lines.."
    assert (await run(plain, *show))[0] == b".yes."
    found = {finding.id: finding for finding in await prepared.doctor()}
    assert found["session.setup"].severity is Severity.OK
    assert found["local.shell"].what == "two lines"


async def test_a_setup_that_fails_is_told_and_found(opened: Open, place: Place) -> None:
    session = await opened("broken")
    with pytest.raises(errors.CommandError) as caught:
        await session.nodes()
    assert "module-that-is-not load nothing" in caught.value.why
    assert "before" in caught.value.why
    assert "after" not in caught.value.why
    (finding,) = await session.doctor()
    assert finding.severity is Severity.ERROR
    assert "module-that-is-not" in finding.what


async def test_a_lab_that_is_down_names_the_fix(opened: Open) -> None:
    session = await opened("no-lab")
    with pytest.raises(errors.TargetError) as caught:
        await session.nodes()
    assert caught.value.fix == "hpcsh lab up is-not-up"
    assert (await session.doctor())[0].fix == "hpcsh lab up is-not-up"


async def test_a_login_asks_the_front_end_that_caused_it_once(opened: Open) -> None:
    asked: list[tuple[str, bool]] = []

    async def answer(prompt: str, echo: bool) -> str | None:
        asked.append((prompt, echo))
        return "sesame"

    async def unasked(prompt: str, echo: bool) -> str | None:
        raise AssertionError("the login is made already")

    one = await opened("asks", ask=answer)
    assert asked == []
    await asyncio.gather(one.nodes(), one.nodes())
    two = await opened("asks", ask=unasked)
    await two.nodes()
    assert asked == [("Password: ", False)]


@pytest.mark.parametrize("answer", [None, "wrong"])
async def test_a_login_that_fails_can_be_tried_again(opened: Open, answer: str | None) -> None:
    answers = [answer, "sesame"]

    async def ask(prompt: str, echo: bool) -> str | None:
        return answers.pop(0)

    session = await opened("asks", ask=ask)
    with pytest.raises(errors.TargetError):
        await session.nodes()
    assert await session.nodes()


async def test_a_front_end_that_cannot_ask_is_nobody(opened: Open) -> None:
    async def ask(prompt: str, echo: bool) -> str | None:
        raise errors.RefusedError("no terminal")

    session = await opened("asks", ask=ask)
    with pytest.raises(errors.TargetError, match="nobody answers"):
        await session.nodes()


async def test_giving_up_while_a_question_is_open(opened: Open) -> None:
    asked, withdrawn = asyncio.Event(), asyncio.Event()

    async def ask(prompt: str, echo: bool) -> str | None:
        asked.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            withdrawn.set()

    async def answer(prompt: str, echo: bool) -> str | None:
        return "sesame"

    session = await opened("asks", ask=ask)
    task = asyncio.create_task(session.nodes())
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert withdrawn.is_set()
    assert await (await opened("asks", ask=answer)).nodes()


async def test_nobody_to_ask(opened: Open) -> None:
    session = await opened("asks")
    with pytest.raises(errors.TargetError, match="Password"):
        await session.nodes()


async def test_a_profile_is_read_again_when_nobody_uses_it(opened: Open, place: Place) -> None:
    one = await opened("also")
    place.profile("also", "{engine: local_processes, description: changed, target: {local: true}}")
    two = await opened("also")
    assert (await two.info()).description == ""
    await one.close()
    await two.close()
    await asyncio.sleep(0)

    async def description() -> str:
        session = await opened("also")
        try:
            return (await session.info()).description
        finally:
            await session.close()

    async with asyncio.timeout(15):
        while await description() != "changed":
            await asyncio.sleep(0.02)


async def test_a_fault_of_ours_is_an_error_with_a_name(attached: Open) -> None:
    session = await attached()
    with pytest.raises(errors.HpcshError, match="KeyError"):
        await session.plan(SubmitSpec(name="bug"))


async def test_closing_twice_and_using_after(opened: Open) -> None:
    session = await opened()
    await session.close()
    await session.close()
    for call in (session.nodes, session.images):
        with pytest.raises(errors.TargetError):
            await call()  # type: ignore[operator]
