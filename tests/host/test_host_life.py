"""The session host's life: started once, found again, killed, replaced, idle, stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from session_fixtures import Open, Place, alive, eventually

import hpcsh
from hpcsh import errors
from hpcsh.client import connect, start
from hpcsh.events import WorkloadChanged
from hpcsh.host import control
from hpcsh.model import LaunchSpec, LogOptions, SubmitSpec
from hpcsh.serving import frames, places, record
from hpcsh.store import Store, state_dir

VERB = """
import asyncio, sys
from hpcsh.client import connect
async def main():
    session = await connect("here")
    print((await session.info()).host_pid, (await session.nodes())[0].name)
    await session.close()
asyncio.run(main())
"""


STOPPED = """
import asyncio, time
from hpcsh.client import connect
from hpcsh.model import LaunchSpec
async def main():
    session = await connect("here")
    await anext(session.launch(LaunchSpec(tool="prun", program=("yes",))))
    time.sleep(4713)
asyncio.run(main())
"""


def hosts(place: Place) -> list[int]:
    return [pid for pid, command in place.processes().items() if "-m hpcsh.host" in command]


def python(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def front_end() -> subprocess.Popen[str]:
    return python("-c", VERB)


def launch(*program: str) -> LaunchSpec:
    return LaunchSpec(tool="prun", program=program)


def kill_and_see_it_dead(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while alive(pid):
        time.sleep(0.01)


def peak(pid: int) -> int:
    """Most memory that a process ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def test_ten_front_ends_at_once_start_one_host(place: Place) -> None:
    front_ends = [front_end() for _ in range(10)]
    answers = [(await asyncio.to_thread(each.communicate))[0].split() for each in front_ends]
    assert [each.returncode for each in front_ends] == [0] * 10
    assert len({pid for pid, _ in answers}) == 1
    assert hosts(place) == [int(answers[0][0])]


async def test_ten_who_all_see_no_host_start_one(place: Place) -> None:
    sessions = await asyncio.gather(*(connect("here") for _ in range(10)))
    assert len({(await session.info()).host_pid for session in sessions}) == 1
    await asyncio.gather(*(session.close() for session in sessions))
    assert control.log_path().read_text().count("serves") == 1


async def test_a_second_host_takes_nothing_from_the_first(
    attached: Open, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await attached()
    code = (
        "import sys, hpcsh.host.process as p, hpcsh.host.__main__ as m\n"
        "p.PREDECESSOR = 0.1; sys.argv = ['-m hpcsh.host', '--foreground']; sys.exit(m.main())\n"
    )
    with monkeypatch.context() as other:
        other.setenv("XDG_STATE_HOME", str(place.root / "another"))
        second = python("-c", code)
        _, words = await asyncio.to_thread(second.communicate)
    assert second.returncode == errors.REFUSED
    assert "Another session host serves here" in words
    assert await session.nodes()
    await (await attached()).nodes()


async def test_the_host_outlives_its_front_end_and_is_nobodys_child(place: Place) -> None:
    done = front_end()
    pid = int(done.communicate()[0].split()[0])
    status = await control.status()
    assert status is not None
    assert (status.pid, status.sessions) == (pid, {"here": 0})
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    parent, session = int(stat[1]), int(stat[3])
    assert parent != os.getpid()
    assert session != os.getsid(0)
    assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in (1, 2)} == {str(control.log_path())}
    assert control.log_path().stat().st_mode & 0o777 == 0o600


async def test_stop_leaves_nothing(attached: Open, place: Place) -> None:
    session = await attached()
    stream = session.launch(launch("sleep", "4711"))
    await anext(stream)
    info = await session.info()
    assert await control.stop() == info.host_pid
    assert place.processes() == {}
    assert not places.socket_path().exists()
    assert record.read() is None
    with pytest.raises(errors.HpcshError):
        await anext(stream)
    assert await control.stop() is None
    assert await control.status() is None
    assert hosts(place) == []


async def test_a_killed_host_is_replaced_by_the_next_call(attached: Open, place: Place) -> None:
    session = await attached()
    script = 'until [ -e "$1" ]; do sleep 0.05; done; echo done'
    go = place.root / "go"
    workload = await session.submit(SubmitSpec(name="survivor", command=("sh", "-c", script, "-", str(go))))
    (old,) = hosts(place)
    reading = asyncio.create_task(anext(session.logs(workload.id, LogOptions(follow=True)), None))
    waiting = asyncio.create_task(session.wait([workload.id], timeout=30))
    launching = asyncio.create_task(_drain(session.launch(launch("sleep", "4712"))))
    await eventually(lambda: [c for c in place.processes().values() if "sleep 4712" in c])
    os.kill(old, signal.SIGKILL)
    with pytest.raises(errors.TargetError):
        await reading
    with pytest.raises(errors.UnknownOutcomeError):
        await launching
    go.touch()
    (ended,) = await waiting  # it only reads: made again, by the same front end, with another host
    assert (ended.id, ended.exit_code) == (workload.id, 0)
    assert [w.id for w in (await session.workloads()).workloads] == [workload.id]
    (new,) = hosts(place)
    assert new != old
    await eventually(lambda: not [c for c in place.processes().values() if "sleep 4712" in c])
    with sqlite3.connect(state_dir() / "store" / "store.db") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)


async def _drain(stream: object) -> None:
    async for _ in stream:  # type: ignore[attr-defined]
        pass


async def test_events_after_a_restart_are_not_missed(attached: Open, place: Place) -> None:
    session = await attached()
    for name in "abc":
        await session.submit(SubmitSpec(name=name, command=("true",)))
    (old,) = hosts(place)
    kill_and_see_it_dead(old)  # the event loop does not: no effect may be sent into the dead socket
    await session.submit(SubmitSpec(name="d", command=("true",)))
    event = await anext(session.events(3))
    assert isinstance(event.body, WorkloadChanged)
    assert (event.number, event.body.workload.name) == (1, "d")


async def test_an_idle_host_ends_and_a_used_one_does_not(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCSH_IDLE", "0.4")
    await (await connect("here")).close()
    session = await connect("here")
    pid = (await session.info()).host_pid
    await asyncio.sleep(1)
    assert (await session.info()).host_pid == pid
    await session.close()
    await eventually(lambda: not place.processes())
    assert not places.socket_path().exists()


async def test_sigterm_is_graceful(attached: Open, place: Place) -> None:
    session = await attached()
    await session.nodes()
    (pid,) = hosts(place)
    os.kill(pid, signal.SIGTERM)
    await eventually(lambda: not place.processes())
    log = control.log_path().read_text()
    assert "SIGTERM" in log
    assert "Traceback" not in log
    assert await session.nodes()


async def test_the_command_line_looks_and_stops(
    attached: Open, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(control.main, ["status"]) == errors.FAILED
    await (await attached()).nodes()
    assert await asyncio.to_thread(control.main, ["status", "--json"]) == errors.OK
    assert await asyncio.to_thread(control.main, ["status"]) == errors.OK
    assert await asyncio.to_thread(control.main, ["stop"]) == errors.OK
    told = capsys.readouterr().out
    assert '"sessions":{"here":1}' in told
    assert "1 besides this one" in told
    assert "Stopped the session host" in told
    with pytest.raises(errors.UsageError):
        control.main(["restart"])


async def test_foreground(place: Place) -> None:
    process = python("-m", "hpcsh.host", "--foreground")
    await eventually(lambda: places.socket_path().exists())
    session = await connect("here")
    assert (await session.info()).host_pid == process.pid
    await session.close()
    process.send_signal(signal.SIGINT)
    _, words = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0
    assert "SIGINT" in words


async def test_a_login_without_the_runtime_directory_finds_the_host(
    attached: Open, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = (await (await attached()).info()).host_pid
    for value in (str(place.root / "other"), ""):
        monkeypatch.setenv("HPCSH_RUNTIME_DIR", value)
        session = await connect("here")
        assert (await session.info()).host_pid == pid
        await session.close()
    monkeypatch.setenv("HPCSH_RUNTIME_DIR", str(place.run))


async def test_a_later_login_brings_its_ssh_agent(
    attached: Open, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await attached()
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent.7")
    monkeypatch.setenv("NOT_HANDED_ON", "1")
    await attached()
    program = ("sh", "-c", 'echo "$SSH_AUTH_SOCK$NOT_HANDED_ON"')
    told = b"".join([f.data async for f in session.launch(launch(*program)) if f.stream == 1])
    assert told == b"/tmp/agent.7\n"


async def test_a_session_in_process_keeps_the_host_out(place: Place) -> None:
    own = await connect("here", in_process=True)
    with pytest.raises(errors.RefusedError, match="Another hpcsh process writes this store"):
        await connect("here")
    await own.close()
    session = await connect("here")
    with pytest.raises(errors.RefusedError):
        await connect("here", in_process=True)
    await session.close()


async def test_in_process_by_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCSH_IN_PROCESS", "1")
    session = await connect("here")
    assert (await session.info()).host_pid is None
    await session.close()
    assert hosts(place) == []
    Store().close()


async def test_a_host_that_cannot_start_says_why(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCSH_IDLE", "soon")
    with pytest.raises(errors.UsageError, match="HPCSH_IDLE"):
        await connect("here")
    monkeypatch.setenv("HPCSH_IDLE", "60")
    broken = place.root / "broken" / "hpcsh"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('a broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    with pytest.raises(errors.TargetError) as caught:
        await connect("here")
    assert "a broken installation" in caught.value.why


async def test_another_installation_in_the_same_runtime_directory(
    attached: Open, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await attached()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place.root / "elsewhere"))
    with pytest.raises(errors.UsageError, match="other directories"):
        await connect("here")


async def _other_host(place: Place, version: str, protocol: int = frames.PROTOCOL) -> subprocess.Popen[str]:
    """A real host that believes to be of another version."""
    code = (
        f"import sys, hpcsh; hpcsh.__version__ = {version!r}\n"
        f"from hpcsh.serving import frames; frames.PROTOCOL = {protocol}\n"
        "import hpcsh.host.__main__ as m; sys.argv = ['-m hpcsh.host', '--foreground']; m.main()\n"
    )
    process = python("-c", code)
    await eventually(lambda: places.socket_path().exists())
    return process


@pytest.mark.parametrize(("version", "protocol"), [("0.0.9", frames.PROTOCOL), (hpcsh.__version__, 0)])
async def test_an_idle_older_host_makes_room(place: Place, version: str, protocol: int) -> None:
    old = await _other_host(place, version, protocol)
    session = await connect("here")
    assert (await session.info()).host_pid != old.pid
    await session.close()
    assert await asyncio.to_thread(old.wait) == 0


async def test_a_newer_host_is_left_alone(place: Place) -> None:
    new = await _other_host(place, "99.0")
    with pytest.raises(errors.RefusedError, match=r"99\.0") as caught:
        await connect("here")
    assert "hpcsh host stop" in caught.value.fix
    assert await control.stop() == new.pid
    assert await asyncio.to_thread(new.wait) == 0


async def test_an_older_host_in_use_is_left_alone(
    attached: Open, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await attached()
    monkeypatch.setattr(start, "__version__", "0.2")
    with pytest.raises(errors.RefusedError, match=r"this is version 0\.2"):
        await connect("here")
    assert await session.nodes()


async def test_a_host_whose_code_was_replaced_makes_room_once_it_is_idle(
    attached: Open, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = place.root / "code" / "hpcsh"
    shutil.copytree(Path(hpcsh.__file__).parent, copied)
    monkeypatch.setenv("PYTHONPATH", f"{copied.parent}:{os.environ['PYTHONPATH']}")
    session = await attached()
    old = (await session.info()).host_pid
    os.utime(copied / "errors.py", (time.time() + 5, time.time() + 5))
    again = await connect("here")
    assert (await again.info()).host_pid == old
    await again.close()
    await session.close()

    async def replaced() -> bool:
        other = await connect("here")
        try:
            return (await other.info()).host_pid != old
        finally:
            await other.close()

    async with asyncio.timeout(15):
        while not await replaced():
            await asyncio.sleep(0.02)


async def test_a_hundred_megabytes_do_not_grow_the_host(attached: Open, place: Place) -> None:
    session = await attached()
    await session.nodes()
    (pid,) = hosts(place)
    before = peak(pid)
    size = 0
    async for frame in session.launch(launch("head", "-c", "100000000", "/dev/zero")):
        size += len(frame.data) if frame.stream == 1 else 0
    assert size == 100_000_000
    assert peak(pid) - before < 24 << 20
    assert peak(pid) < 80 << 20


async def test_a_stopped_reader_does_not_grow_the_host(attached: Open, place: Place) -> None:
    """The front end does not read its socket at all: Ctrl-Z in the middle of a log."""
    session = await attached()
    await session.nodes()
    (pid,) = hosts(place)
    before = peak(pid)
    reader = python("-c", STOPPED)
    await eventually(lambda: "yes " in place.processes().values())
    (source,) = (p for p, command in place.processes().items() if command == "yes ")

    async def still() -> bool:
        seen = [Path(f"/proc/{source}/io").read_text()]
        await asyncio.sleep(0.3)
        return Path(f"/proc/{source}/io").read_text() == seen[0]

    async with asyncio.timeout(20):
        while not await still():
            pass
    assert peak(pid) - before < 24 << 20
    reader.kill()
    await asyncio.to_thread(reader.communicate)
    await eventually(lambda: "yes " not in place.processes().values())
