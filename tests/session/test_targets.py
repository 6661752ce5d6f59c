"""What sessions on one target share, and when it is given up."""

from __future__ import annotations

import os

import pytest
from session_fixtures import Open, Place

from hpcsh.client import connect
from hpcsh.clock import SystemClock
from hpcsh.profiles import Poll, load, parse
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


def test_an_alias_of_another_ssh_config_or_another_python_is_another_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key(ssh: str, more: str = "") -> str:
        text = f"engine: pmix\ntarget: {{ssh: {{host: login{ssh}}}{more}}}\n"
        return parse(text.encode(), "p", "p").target.key()

    monkeypatch.setenv("HOME", "/home/u")
    assert key("") == "ssh:login"
    assert key(", user: u, port: 22") == "ssh:u@login:22"
    assert key(", config: ~/a") == key(", config: /home/u/x/../a") == "ssh:login?config=/home/u/a"
    assert key(", config: a") == f"ssh:login?config={os.getcwd()}/a"
    assert key("", ", python: /opt/py") == "ssh:login?python=/opt/py"
    both = key(", config: /a", ", python: /b")
    # What stands in one of them cannot be taken for the other.
    assert len({both, key(", config: '/a&python=/b'"), key(", config: /a"), key(", config: /b")}) == 4


async def test_sessions_with_different_ssh_configs_share_nothing(place: Place) -> None:
    place.profile("one", "{engine: local_processes, target: {ssh: {host: x, config: /one}}}")
    place.profile("two", "{engine: local_processes, target: {ssh: {host: x, config: /two}}}")
    targets = Targets(SystemClock())
    one, two = targets.acquire(load("one")), targets.acquire(load("two"))
    assert one is not two
    for target in (one, two):
        await targets.release(target)
