"""What sessions on one target share, and when it is given up."""

from __future__ import annotations

from session_fixtures import Open, Place

from hpcsh.client import connect
from hpcsh.clock import SystemClock
from hpcsh.profiles import Poll, load
from hpcsh.session.prepared import PreparedBoundary
from hpcsh.session.targets import Target, Targets


async def test_one_slurm_client_in_the_first_environment_that_was_prepared(place: Place) -> None:
    target = Target(load("here"), SystemClock())
    await target.open(None)
    try:
        cluster = target.cluster({}, Poll(floor=30))
        assert target.cluster({"PATH": "/opt/slurm/bin"}, Poll(floor=120)) is cluster
        assert target.cluster({"PATH": "/another"}, Poll(floor=2)) is cluster
        assert cluster.floor == 120  # the strictest session's counts
        assert isinstance(cluster.boundary, PreparedBoundary)
        assert cluster.boundary.environment == {"PATH": "/opt/slurm/bin"}
    finally:
        await target.close()


async def test_a_target_is_left_with_its_last_session(place: Place) -> None:
    one, two = await connect("here", in_process=True), await connect("also", in_process=True)
    await one.nodes()
    await two.nodes()
    assert len(place.processes()) == 1  # one agent for both
    await one.close()
    assert len(place.processes()) == 1
    assert await two.nodes()
    await two.close()
    assert place.processes() == {}


async def test_the_host_keeps_what_nobody_uses(attached: Open, place: Place) -> None:
    session = await attached()
    await session.nodes()
    before = place.processes()
    await session.close()
    assert await (await attached()).nodes()
    assert place.processes() == before


async def test_targets_are_told_apart_by_their_key(place: Place) -> None:
    targets = Targets(SystemClock())
    here, also, asks = (targets.acquire(load(name)) for name in ("here", "also", "asks"))
    assert here is also
    assert here is not asks
    await targets.release(here)
    assert targets.acquire(load("here")) is here
    for target in (here, also):
        await targets.release(target)
    assert targets.acquire(load("here")) is not here
