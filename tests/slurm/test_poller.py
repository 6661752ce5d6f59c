import asyncio
from collections.abc import Callable

import pytest

from hpcsh.errors import CommandError, HpcshError, TargetError, TimedOutError
from hpcsh.model import State
from hpcsh.slurm.job import Job
from hpcsh.slurm.poller import MAX_BACK_OFF, Poller


class VirtualClock:
    """Jumps to the next sleeper when everything else waits."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        wake = self.time + seconds
        while self.time < wake:
            for _ in range(20):
                await asyncio.sleep(0)
            self.time = max(self.time, min(wake, self.time + 0.25))


class Controller:
    """Counts questions, and answers as told."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.asked: list[float] = []
        self.state = "RUNNING"
        self.takes = 0.0
        self.error: Exception | None = None
        self.running = 0
        self.cancelled = 0

    async def ask(self) -> dict[str, Job]:
        self.asked.append(self.clock.now())
        self.running += 1
        assert self.running == 1, "two questions at once"
        try:
            if self.takes:
                await self.clock.sleep(self.takes)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if self.error:
            raise self.error
        state = State.RUNNING if self.state == "RUNNING" else State.SUCCEEDED
        return {"1": Job(id="1", name="j", user="u", state=state, native=self.state)}


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def slurm(clock: VirtualClock) -> Controller:
    return Controller(clock)


@pytest.fixture
def make(slurm: Controller, clock: VirtualClock) -> Callable[..., Poller]:
    return lambda floor=2.0, idle=30.0: Poller(slurm.ask, clock, floor=floor, idle=idle)


async def test_within_the_floor_nobody_asks_twice(
    slurm: Controller, clock: VirtualClock, make: Callable[..., Poller]
) -> None:
    poller = make(floor=120.0)
    answers = []
    for _ in range(50):
        answers.append(await poller.get(fresh=True))
        clock.time += 2
    assert len(slurm.asked) == 1
    assert {a.as_of for a in answers} == {1000.0}
    clock.time = 1121.0
    assert (await poller.get(fresh=True)).as_of == 1121.0


async def test_all_who_wait_share_one_question(slurm: Controller, make: Callable[..., Poller]) -> None:
    slurm.takes = 1.0
    poller = make()
    answers = await asyncio.gather(*(poller.get() for _ in range(20)), *(poller.next(0) for _ in range(20)))
    assert len(slurm.asked) == 1
    assert len({id(a) for a in answers}) == 1


async def test_when_one_leaves_the_others_get_their_answer(
    slurm: Controller, make: Callable[..., Poller]
) -> None:
    slurm.takes = 1.0
    poller = make()
    first, second = asyncio.create_task(poller.get()), asyncio.create_task(poller.get())
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).jobs
    assert slurm.cancelled == 0


async def test_when_all_leave_the_question_ends(
    slurm: Controller, clock: VirtualClock, make: Callable[..., Poller]
) -> None:
    slurm.takes = 1e6
    poller = make()
    tasks = [asyncio.create_task(poller.next(0)) for _ in range(3)]
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert (slurm.cancelled, slurm.running) == (1, 0)
    slurm.takes = 0
    clock.time += 60
    assert (await poller.get()).stale == ""


async def test_who_comes_while_a_question_is_given_up_gets_an_answer(
    slurm: Controller, clock: VirtualClock, make: Callable[..., Poller]
) -> None:
    slurm.takes = 1e6
    poller = make()
    leaves = asyncio.create_task(poller.get())
    await asyncio.sleep(0.01)
    leaves.cancel()
    slurm.takes = 0
    comes = asyncio.create_task(poller.get(fresh=True))  # in the same turn of the loop
    await asyncio.gather(leaves, return_exceptions=True)
    assert (await comes).stale == ""


async def ask_for(poller: Poller, clock: VirtualClock, seconds: float) -> int:
    end, count = clock.now() + seconds, 0
    after = 0.0
    while clock.now() < end:
        after = (await poller.next(after)).as_of
        count += 1
    return count


async def test_the_less_happens_the_less_is_asked(
    slurm: Controller, clock: VirtualClock, make: Callable[..., Poller]
) -> None:
    poller = make()
    busy = await ask_for(poller, clock, 20)
    await ask_for(poller, clock, 400)
    quiet = await ask_for(poller, clock, 120)
    assert busy >= 9
    assert quiet <= 5
    poller.hasten()
    before = clock.now()
    await poller.next(before - 1)
    assert slurm.asked[-1] - before <= 2.5


async def test_a_slow_controller_is_left_in_peace(
    slurm: Controller, clock: VirtualClock, make: Callable[..., Poller]
) -> None:
    slurm.takes = 5.0
    await ask_for(make(idle=10.0), clock, 300)
    gaps = [b - a for a, b in zip(slurm.asked, slurm.asked[1:], strict=False)]
    assert min(gaps) >= 50


async def test_a_dead_controller_backs_off_and_the_last_answer_says_that_it_is_stale(
    slurm: Controller, clock: VirtualClock, make: Callable[..., Poller]
) -> None:
    poller = make()
    good = await poller.get()
    slurm.error = CommandError("slurmctld does not answer.", why="Unable to contact\nslurm controller")
    clock.time += 60
    stale = await poller.get()
    assert (stale.as_of, stale.jobs) == (good.as_of, good.jobs)
    assert stale.stale == "slurmctld does not answer: Unable to contact slurm controller"
    slurm.asked.clear()
    await ask_for(poller, clock, 3600)
    gaps = [b - a for a, b in zip(slurm.asked, slurm.asked[1:], strict=False)]
    assert len(slurm.asked) <= 22
    assert max(gaps) <= MAX_BACK_OFF * 1.3 + 1
    slurm.error = None
    assert (await poller.next(stale.as_of)).stale == ""
    assert poller.interval() <= 30


@pytest.mark.parametrize("error", [TargetError("no route"), CommandError("no squeue"), TimedOutError("slow")])
async def test_with_no_answer_ever_every_failure_is_an_error(
    slurm: Controller, clock: VirtualClock, make: Callable[..., Poller], error: HpcshError
) -> None:
    slurm.error = error
    poller = make()
    for call in (poller.get(), poller.get(fresh=True), poller.next(0.0)):
        with pytest.raises(type(error)):
            await call
    assert poller.last is None
    slurm.error = None
    clock.time += 600
    assert (await poller.get()).stale == ""
    slurm.error = error
    clock.time += 600
    assert (await poller.get()).stale == error.what


async def test_a_controller_that_never_answered_is_left_in_peace_too(
    slurm: Controller, clock: VirtualClock, make: Callable[..., Poller]
) -> None:
    slurm.error = CommandError("no controller")
    poller = make()
    for _ in range(300):
        with pytest.raises(CommandError):
            await poller.get(fresh=True)
        clock.time += 2
    assert len(slurm.asked) <= 9


async def test_a_clock_that_jumps_back_does_not_stop_the_questions(
    slurm: Controller, clock: VirtualClock, make: Callable[..., Poller]
) -> None:
    poller = make()
    await poller.get()
    clock.time -= 3600
    await poller.get()
    assert len(slurm.asked) == 2
