"""What the evidence adds up to, with the evidence given."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hpcsh.engines.context import Context
from hpcsh.engines.jobs import Jobs, view
from hpcsh.engines.jobs.lookup import find
from hpcsh.engines.jobs.snapshots import PATIENCE
from hpcsh.errors import CommandError, HpcshError, NotFoundError, UsageError
from hpcsh.events import EventBus
from hpcsh.model import Kind, State, Workload
from hpcsh.profiles import parse
from hpcsh.slurm.job import Job, Queue
from hpcsh.store import Record, Store


def job(job_id: str, state: State, native: str = "", **more: Any) -> Job:
    return Job(id=job_id, name="j", user="u", state=state, native=native or state.value.upper(), **more)


class Slurm:
    """A cluster and a target whose answers are set by the test."""

    name = "target"

    def __init__(self) -> None:
        self.now_ = 1000.0
        self.rows: dict[str, Job] = {}
        self.kept: dict[str, Job] = {}
        self.files: dict[str, bytes] = {}
        self.asked: list[list[str]] = []
        self.hastened = 0
        self.cancelled: list[str] = []
        self.error: HpcshError | None = None

    def now(self) -> float:
        return self.now_

    async def home(self) -> str:
        return "/home/u"

    async def read(self, path: str, **_: Any) -> bytes:
        if path not in self.files:
            raise NotFoundError(path)
        return self.files[path]

    async def queue(self, *, fresh: bool = False) -> Queue:
        if self.error:
            raise self.error
        return Queue(jobs=dict(self.rows), as_of=self.now_)

    async def accounting(self, ids: list[str]) -> dict[str, Job]:
        self.asked.append(sorted(ids))
        return self.kept

    async def cancel(self, ids: list[str]) -> None:
        self.cancelled += ids

    async def by_comment(self, prefix: str, since: float) -> list[Job]:
        return [j for j in (await self.queue()).jobs.values() if j.comment.startswith(prefix)]

    def hasten(self) -> None:
        self.hastened += 1


class World:
    def __init__(self, root: Path) -> None:
        self.slurm = Slurm()
        self.store = Store(root)
        profile = parse(b"engine: virtual_node\ntarget: {local: true}\n", "p", "p")
        self.bus = EventBus()
        parts: Any = self.slurm
        self.jobs = Jobs(Context(profile, parts, parts, self.store, self.bus, clock=parts))
        self.record = Record(
            id="abc", profile="p", target="local", engine="virtual_node", kind=Kind.JOB, name="j",
            phase="submitted", created=900.0, directory="/home/u/.hpcsh/jobs/abc", native_id="5",
            workload=Workload(id="abc", name="j", kind=Kind.JOB, state=State.PENDING, native_id="5"),
        )  # fmt: skip
        self.store.commit_intent(self.record)

    def row(self, state: State, native: str = "", job_id: str = "5", **more: Any) -> None:
        self.slurm.rows = {job_id: job(job_id, state, native, comment=self.store.mark("abc"), **more)}

    async def look(self, seconds: float = 10) -> Workload:
        self.slurm.now_ += seconds
        (workload,) = (await self.jobs.snapshot(mine_only=True)).workloads
        return workload


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "store")
    yield made
    made.store.close()


async def test_absence_is_no_end(world: World) -> None:
    world.row(State.RUNNING)
    assert (await world.look()).state is State.RUNNING
    world.slurm.rows = {}
    for _ in range(6):
        assert (await world.look()).state is State.RUNNING
    for _ in range(int(PATIENCE / 10)):
        last = await world.look()
    assert last.state is State.UNKNOWN
    assert len(world.slurm.asked) < 5
    world.row(State.RUNNING)
    assert (await world.look()).state is State.RUNNING


async def test_a_controller_that_has_never_answered(world: World) -> None:
    open_ = msgspec.structs.replace(world.record, phase="intent", native_id="")
    world.store.save(open_)
    world.slurm.error = CommandError("Unable to contact slurm controller")
    await world.jobs.settle()  # a session opens all the same
    assert world.store.get("abc") == open_
    with pytest.raises(CommandError):
        await world.jobs.snapshot()
    world.slurm.files["/home/u/.hpcsh/jobs/abc/run/abc"] = b"5\n"
    await world.jobs.settle()  # what the job itself has left is believed
    known = world.store.get("abc")
    assert known is not None
    assert (known.phase, known.native_id) == ("submitted", "5")


async def test_what_was_cleaned_does_not_come_back_as_a_foreign_job(world: World) -> None:
    async def seen(state: State, comment: str) -> list[tuple[str, bool]]:
        world.slurm.rows = {"5": job("5", state, comment=comment)}
        world.slurm.now_ += 10
        return [(w.id, w.ours) for w in (await world.jobs.snapshot()).workloads]

    mine, other = world.store.mark("abc"), "hpcsh:00000000:abc"
    assert await seen(State.RUNNING, mine) == [("abc", True)]
    elsewhere = msgspec.structs.replace(world.record, id="far", target="ssh:x", native_id="")
    world.store.commit_intent(elsewhere)
    world.store.forget("abc")
    assert await seen(State.RUNNING, mine) == [("5", False)]  # what still runs is never hidden
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        assert await seen(state, mine) == []
        assert await seen(state, other) == [("5", False)]
        assert await seen(state, world.store.mark("far")) == [("5", False)]


async def test_what_has_ended_is_not_cancelled(world: World) -> None:
    world.row(State.SUCCEEDED, "COMPLETED", exit_code=0)
    report = await world.jobs.cancel(["abc", "nope"])
    assert report.done == ()
    assert [ref for ref, _ in report.failed] == ["nope"]
    assert report.message == "ended already: abc"
    assert world.slurm.cancelled == []
    world.row(State.RUNNING, restarts=1)
    world.slurm.now_ += 10
    report = await world.jobs.cancel(["abc"])
    assert (report.done, report.message, world.slurm.cancelled) == (("abc",), "", ["5"])


async def test_accounting_completes_what_vanished(world: World) -> None:
    world.row(State.RUNNING)
    await world.look()
    world.slurm.rows = {}
    world.slurm.kept = {"5": job("5", State.FAILED, "FAILED", exit_code=3, comment=world.store.mark("abc"))}
    done = await world.look()
    assert (done.state, done.exit_code) == (State.FAILED, 3)
    assert world.slurm.asked == [["5"]]
    await world.look()
    assert world.slurm.asked == [["5"]]


async def test_accounting_of_another_job_with_the_same_id_counts_nothing(world: World) -> None:
    world.slurm.kept = {"5": job("5", State.FAILED, "FAILED", exit_code=3, comment="hpcsh:other:abc")}
    assert (await world.look()).state is State.PENDING


async def test_a_terminal_state_never_goes_back_but_by_a_counted_requeue(world: World) -> None:
    world.row(State.SUCCEEDED, "COMPLETED", exit_code=0)
    assert (await world.look()).state is State.SUCCEEDED
    for state in (State.RUNNING, State.PENDING, State.FAILED, State.UNKNOWN):
        world.row(state)
        assert (await world.look()).state is State.SUCCEEDED
    world.row(State.PENDING, restarts=1)
    again = await world.look()
    assert (again.state, again.exit_code, again.ended) == (State.PENDING, None, None)


async def test_marks_of_the_run_before_a_requeue_count_nothing(world: World) -> None:
    world.slurm.files["/home/u/.hpcsh/jobs/abc/marks"] = b"950 start 5 /o\n960 end 0\n"
    world.row(State.PENDING, restarts=1)
    assert (await world.look()).state is State.PENDING
    world.slurm.files["/home/u/.hpcsh/jobs/abc/marks"] += b"990 start 5 /o\n990 restart 1\n"
    assert (await world.look()).state is State.RUNNING


async def test_an_end_mark_hastens_the_poller_and_decides_only_when_slurm_knows_nothing(world: World) -> None:
    world.row(State.RUNNING)
    world.slurm.files["/home/u/.hpcsh/jobs/abc/marks"] = b"950 start 5 /o\n960 end 0\n"
    seen = await world.look()
    assert (seen.state, seen.message) == (State.RUNNING, "its script has ended with code 0")
    assert world.slurm.hastened
    world.row(State.CANCELLED, "CANCELLED", exit_code=143)
    assert (await world.look()).state is State.CANCELLED


async def test_without_slurm_an_end_mark_decides(world: World) -> None:
    world.slurm.files["/home/u/.hpcsh/jobs/abc/marks"] = b"950 start 5 /o\n960 end 9\n"
    await world.look()
    done = await world.look()
    assert (done.state, done.exit_code, done.ended) == (State.FAILED, 9, 960.0)


async def test_an_answer_that_was_asked_before_the_submission_shows_no_absence(world: World) -> None:
    world.store.save(msgspec.structs.replace(world.record, extra={"slurm": {"submitted_at": 2000.0}}))
    for _ in range(20):
        assert (await world.look()).state is State.PENDING
    assert world.slurm.asked == []


async def test_only_changes_are_published(world: World) -> None:
    world.row(State.RUNNING)
    await world.look()
    number = world.bus.last
    for _ in range(5):
        await world.look()
    assert world.bus.last == number
    world.row(State.SUCCEEDED, "COMPLETED", exit_code=0)
    await world.look()
    assert world.bus.last == number + 1


async def test_an_array_is_over_when_all_its_tasks_are_known_to_be(world: World) -> None:
    mark = world.store.mark("abc")
    world.slurm.rows = {
        "5_[2-3]": job("5_[2-3]", State.PENDING, comment=mark),
        "5_1": job("5_1", State.FAILED, "FAILED", exit_code=2, comment=mark),
    }
    seen = await world.look()
    assert (seen.state, seen.native_id, seen.exit_code) == (State.PENDING, "5", None)
    world.slurm.rows = {"5_2": job("5_2", State.SUCCEEDED, "COMPLETED", exit_code=0, comment=mark)}
    world.slurm.kept = {
        f"5_{t}": job(f"5_{t}", s, n, exit_code=c, comment=mark)
        for t, s, n, c in ((1, State.FAILED, "FAILED", 2), (2, State.SUCCEEDED, "COMPLETED", 0),
                           (3, State.CANCELLED, "CANCELLED", 143))
    }  # fmt: skip
    done = await world.look()
    assert (done.state, done.exit_code) == (State.FAILED, 2)
    assert [c.id for c in done.children] == ["5_1", "5_2", "5_3"]


def test_a_het_job_lives_while_a_part_does() -> None:
    whole = Workload(id="abc", name="j", kind=Kind.JOB, state=State.PENDING)
    seen = view.merge_rows(whole, [job("7+0", State.SUCCEEDED, exit_code=0), job("7+1", State.RUNNING)])
    assert (seen.state, seen.native_id) == (State.RUNNING, "7")


def test_references() -> None:
    def one(i: str, name: str, state: State = State.RUNNING, native: str = "", ours: bool = True) -> Workload:
        return Workload(id=i, name=name, kind=Kind.JOB, state=state, native_id=native, ours=ours)

    all_ = [
        one("abcd", "x", native="12"),
        one("abef", "y", State.FAILED, "13"),
        one("ghij", "y", native="14"),
        one("12", "abcd", native="12", ours=False),
        one("k", "z"), one("l", "z"),
    ]  # fmt: skip

    def found(ref: str) -> str | None:
        workload = find(ref, all_)
        return workload.id if workload else None

    assert [found(r) for r in ("abcd", "13", "y", "gh", "nope")] == ["abcd", "abef", "ghij", "ghij", None]
    assert found("ab") == "abcd"
    assert found("12") == "12"
    with pytest.raises(UsageError, match="names 2"):
        find("z", all_)
    with pytest.raises(UsageError):
        find("", all_)
