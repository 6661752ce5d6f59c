"""The contract of `Boundary`, held by each kind: this machine, SSH, and nested."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import sys
from pathlib import Path

import pytest

from hpcsh.boundary.client import AgentBoundary
from hpcsh.errors import CommandError, NotFoundError, TargetError, TimedOutError, UsageError
from tests.boundary.sshd_server import processes_with

EVERY_BYTE = bytes(range(256))
ODD_WORDS = [
    "", " ", "a b", "it's", 'say "hi"', "$HOME `id` $(id) !! \\ \\n", "two\nlines", "tab\t", "é ☃ 𝄞",
    "*?[x]{a,b}~",
    os.fsdecode(b"\xff\xfe not utf-8"), "-n", "--", "#", "%s%d", ";|&<>()",
]  # fmt: skip


@pytest.fixture
def mark() -> str:
    """A name that the processes of a test carry in their environment, to find them from outside."""
    return f"HPCSH_TEST_{secrets.token_hex(8)}"


async def until(condition: object, what: str, seconds: float = 15.0) -> None:
    """Wait until a callable is true; fail with `what` when it never is."""
    assert callable(condition)
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"never: {what}")


async def agent_pid(boundary: AgentBoundary) -> int:
    return int((await boundary.run(["sh", "-c", "echo $PPID"], timeout=20)).text)


def memory(pid: int, field: str = "VmRSS") -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def wakes(pid: int) -> int:
    """How often a process has gone to sleep; one that stays asleep uses no processor time."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.rpartition("\nvoluntary_ctxt_switches:")[2].split()[0])


async def settled(pid: int) -> int:
    """The count of `wakes` after the work under way is done."""
    last = -1
    while last != (now := wakes(pid)):
        last = now
        await asyncio.sleep(0.2)
    return last


def written_by(pid: int) -> int:
    """Bytes that a process has written so far."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise AssertionError("wchar")


# Processes


async def test_bytes_are_exact_in_both_directions(boundary: AgentBoundary) -> None:
    data = EVERY_BYTE * 1000 + b"\0\0\r\n\x04\x1a"
    done = await boundary.run(["sh", "-c", "tee /dev/stderr"], stdin=data, timeout=20)
    assert done.code == 0
    assert done.stdout == data
    assert done.stderr == data


async def test_arguments_are_exact(boundary: AgentBoundary) -> None:
    done = await boundary.run(["printf", "%s\\0", *ODD_WORDS], timeout=20)
    assert done.stdout == b"".join(os.fsencode(word) + b"\0" for word in ODD_WORDS)


async def test_environment_is_exact_and_layered(boundary: AgentBoundary) -> None:
    odd = dict(zip((f"V{n}" for n in range(len(ODD_WORDS))), ODD_WORDS, strict=True))
    done = await boundary.run(["env", "-0"], env=odd, timeout=20)
    seen = dict(entry.split(b"=", 1) for entry in done.stdout.split(b"\0") if entry)
    assert {name: os.fsdecode(seen[name.encode()]) for name in odd} == odd
    boundary.set_base_env({"BASE": "1", "KEPT": "base", "HOME": None})
    done = await boundary.run(["env"], env={"BASE": "2", "PATH": "/bin:/usr/bin"}, timeout=20)
    lines = done.text.splitlines()
    assert {"BASE=2", "KEPT=base", "PATH=/bin:/usr/bin"} <= set(lines)
    assert not [line for line in lines if line.startswith("HOME=")]


async def test_exit_status_and_signals(boundary: AgentBoundary) -> None:
    codes = [(await boundary.run(["sh", "-c", text], timeout=20)).code
             for text in ("exit 0", "exit 1", "exit 255", "kill -9 $$", "kill -TERM $$")]  # fmt: skip
    assert codes == [0, 1, 255, 137, 143]


async def test_working_directory(boundary: AgentBoundary, tmp_path: Path) -> None:
    done = await boundary.run(["pwd"], cwd=str(tmp_path), timeout=20)
    assert done.text.strip() == str(tmp_path)
    with pytest.raises(CommandError, match="No such file"):
        await boundary.run(["pwd"], cwd=str(tmp_path / "none"), timeout=20)


async def test_what_cannot_run_says_so(boundary: AgentBoundary, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"cannot run 'no-such-program'.*\n.*No such file"):
        await boundary.run(["no-such-program"], timeout=20)
    (tmp_path / "plain").write_text("x")
    with pytest.raises(CommandError, match="Permission denied"):
        await boundary.run([str(tmp_path / "plain")], timeout=20)
    with pytest.raises(UsageError):
        await boundary.run(["echo", "a\0b"], timeout=20)
    with pytest.raises(UsageError):
        await boundary.run(["env"], env={"A=B": "c"}, timeout=20)
    with pytest.raises(CommandError, match="too long"):
        await boundary.run(["echo", "x" * 3_000_000], timeout=20)
    assert (await boundary.run(["echo", "still here"], timeout=20)).text == "still here\n"


async def test_identity(boundary: AgentBoundary) -> None:
    user, uid, host = await boundary.identity()
    assert (uid, host) == (os.getuid(), os.uname().nodename)
    assert user == (await boundary.run(["id", "-un"], timeout=20)).text.strip()
    assert await boundary.home() == os.path.expanduser("~")


STUBBORN = {
    "grandchild": "sleep 1000 & sleep 1000",
    "deaf to SIGTERM": "trap '' TERM; sleep 1000 & while :; do sleep 1; done",
    "stopped": "sleep 1000 & kill -STOP $$",
    "job control": "set -m; sleep 1000 & sleep 1000 & wait",
}


@pytest.mark.parametrize("script", STUBBORN.values(), ids=STUBBORN.keys())
async def test_timeout_kills_every_process(boundary: AgentBoundary, mark: str, script: str) -> None:
    with pytest.raises(TimedOutError, match="words"):
        await boundary.run(["bash", "-c", f"echo words >&2; {script}"], env={mark: "1"}, timeout=0.4)
    assert processes_with(mark) == {}


async def test_cancel_leaves_nothing(boundary: AgentBoundary, mark: str) -> None:
    argv = ["bash", "-c", "sleep 1000 & sleep 1000"]
    tasks = [asyncio.create_task(boundary.run(argv, env={mark: "1"}, timeout=100)) for _ in range(5)]
    await until(lambda: len(processes_with(mark)) == 15, "15 processes")
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert processes_with(mark) == {}
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def test_cancel_before_the_start_leaves_nothing(boundary: AgentBoundary, mark: str) -> None:
    for wait in range(20):
        task = asyncio.create_task(boundary.run(["sleep", "1000"], env={mark: "1"}, timeout=100))
        for _ in range(wait):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert processes_with(mark) == {}


async def test_background_processes_end_with_their_command(boundary: AgentBoundary, mark: str) -> None:
    quiet = ["bash", "-c", "sleep 1000 >/dev/null 2>&1 & echo done"]
    holds_output = ["bash", "-c", "sleep 1000 & echo done"]
    for argv in (quiet, holds_output):
        done = await boundary.run(argv, env={mark: "1"}, timeout=20)
        assert (done.code, done.stdout) == (0, b"done\n")
        assert processes_with(mark) == {}


async def test_a_daemon_that_leaves_its_session_survives(boundary: AgentBoundary, mark: str) -> None:
    await boundary.run(["setsid", "-f", "sleep", "1000"], env={mark: "1"}, timeout=20)
    alive = processes_with(mark)
    await boundary.close()
    try:
        assert len(alive) == 1
        assert processes_with(mark) == alive
    finally:
        for pid in alive:
            os.kill(pid, signal.SIGKILL)


async def test_close_ends_every_process_and_the_agent(boundary: AgentBoundary, mark: str) -> None:
    pid = await agent_pid(boundary)
    argv = ["bash", "-c", "trap '' TERM; sleep 1000 & sleep 1000"]
    async with boundary.stream(argv, env={mark: "1"}):
        running = asyncio.create_task(boundary.run(argv, env={mark: "1"}, timeout=100))
        await until(lambda: len(processes_with(mark)) == 6, "6 processes")
        await boundary.close()
        assert processes_with(mark) == {}
        assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(TargetError):
            await running
    with pytest.raises(TargetError, match="closed"):
        await boundary.run(["true"], timeout=20)
    await boundary.open()
    assert (await boundary.run(["true"], timeout=20)).code == 0


async def test_a_killed_agent_is_an_error_and_the_next_call_connects(boundary: AgentBoundary) -> None:
    pid = await agent_pid(boundary)
    pending = [asyncio.create_task(boundary.run(["sleep", "1"], timeout=100)) for _ in range(3)]
    reading = asyncio.create_task(anext(boundary.follow("/nowhere/at/all", offset=0)))
    assert (await reading).event == "waiting"
    os.kill(pid, signal.SIGKILL)
    results = await asyncio.gather(*pending, return_exceptions=True)
    assert [type(result) for result in results] == [TargetError] * 3
    assert "lost the connection" in str(results[0])
    assert await agent_pid(boundary) != pid


async def test_a_terminated_agent_ends_its_processes(boundary: AgentBoundary, mark: str) -> None:
    pid = await agent_pid(boundary)
    argv = ["bash", "-c", "sleep 9 & sleep 9"]
    running = asyncio.create_task(boundary.run(argv, env={mark: "1"}, timeout=50))
    await until(lambda: len(processes_with(mark)) == 3, "3 processes")
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(TargetError):
        await running
    assert processes_with(mark) == {}


async def test_fifty_at_once_and_no_descriptor_is_lost(boundary: AgentBoundary) -> None:
    pid = await agent_pid(boundary)
    before = len(os.listdir(f"/proc/{pid}/fd"))
    texts = [str(n) * 1000 for n in range(50)]
    done = await asyncio.gather(*(boundary.run(["cat"], stdin=t.encode(), timeout=60) for t in texts))
    assert [d.text for d in done] == texts
    await until(lambda: len(os.listdir(f"/proc/{pid}/fd")) == before, "the descriptors of before")


async def test_an_idle_agent_uses_no_processor_time(boundary: AgentBoundary) -> None:
    pid = await agent_pid(boundary)
    async with boundary.stream(["sleep", "100"]):
        before = await settled(pid)
        await asyncio.sleep(1)
        assert wakes(pid) == before


# Streams


async def test_a_hundred_megabytes_without_growth(boundary: AgentBoundary) -> None:
    size = 100_000_000
    line = b"0123456789abcdef\n"
    expected = hashlib.sha256((line * (size // len(line) + 1))[:size]).hexdigest()
    pid = await agent_pid(boundary)
    argv = ["sh", "-c", f"yes 0123456789abcdef | head -c {size}"]
    base = memory(pid), memory(os.getpid())
    peaks = [0, 0]
    digest, count = hashlib.sha256(), 0
    async with boundary.stream(argv) as process:
        async for stream, data in process.output():
            assert stream == 1
            digest.update(data)
            if count // 5_000_000 != (count + len(data)) // 5_000_000:
                peaks = [max(peaks[0], memory(pid)), max(peaks[1], memory(os.getpid()))]
            count += len(data)
        assert await process.wait() == 0
    assert (count, digest.hexdigest()) == (size, expected)
    assert peaks[0] - base[0] < 12_000_000
    assert peaks[1] - base[1] < 24_000_000


async def test_a_slow_reader_slows_the_process(boundary: AgentBoundary) -> None:
    async with boundary.stream(["sh", "-c", "exec cat /dev/zero"]) as process:
        reader = process.output()
        await anext(reader)
        seen = -1
        while seen != (now := written_by(process.pid)):
            seen = now
            await asyncio.sleep(0.3)
        assert seen < 8_000_000
        taken = 0
        async for _, data in reader:
            taken += len(data)
            if taken > seen:
                break
        await until(lambda: written_by(process.pid) > seen, "it goes on")


async def test_fifty_megabytes_of_input(boundary: AgentBoundary) -> None:
    data = secrets.token_bytes(1_000_000) * 50
    done = await boundary.run(["sha256sum"], stdin=data, timeout=60)
    assert done.text.split()[0] == hashlib.sha256(data).hexdigest()


async def test_input_that_nobody_reads_is_not_piled_up(boundary: AgentBoundary) -> None:
    pid = await agent_pid(boundary)
    before = memory(pid)
    async with boundary.stream(["sleep", "1000"]) as process:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await process.write(b"x" * 50_000_000)
        assert memory(pid) - before < 8_000_000
    done = await boundary.run(["true"], stdin=b"x" * 5_000_000, timeout=20)
    assert done.code == 0


async def test_interactive_streams(boundary: AgentBoundary) -> None:
    async with boundary.stream(["cat"]) as process:
        reader = process.output()
        for word in (b"one\n", EVERY_BYTE):
            await process.write(word)
            got = b""
            while len(got) < len(word):
                got += (await anext(reader))[1]
            assert got == word
        await process.close_stdin()
        assert [part async for part in reader] == []
        assert await process.wait() == 0
        with pytest.raises(CommandError, match="no more input"):
            await process.write(b"late")


async def test_a_signal_reaches_the_whole_group(boundary: AgentBoundary, mark: str) -> None:
    child = "trap 'echo child; exit' USR1; echo up; while :; do sleep 0.05; done"
    script = f'trap "echo got; exit 5" USR1; sh -c "{child}" & wait; wait'
    async with boundary.stream(["bash", "-c", script], env={mark: "1"}) as process:
        reader = process.output()
        assert (await anext(reader))[1] == b"up\n"
        await process.signal(signal.SIGUSR1)
        rest = b"".join([data async for _, data in reader])
        assert {b"child", b"got"} <= set(rest.split())  # a shell may also report its killed sleep
        assert await process.wait() == 5


async def test_leaving_the_context_ends_the_group(boundary: AgentBoundary, mark: str) -> None:
    script = "trap 'sleep 0.2; echo cleaned > $OUT; exit' TERM; sleep 1000 & wait"
    out = f"/tmp/{mark}"
    async with boundary.stream(["bash", "-c", script], env={mark: "1", "OUT": out}):
        await until(lambda: len(processes_with(mark)) == 2, "2 processes")
    assert processes_with(mark) == {}
    assert Path(out).read_text() == "cleaned\n"  # SIGTERM first, and time to use it
    os.unlink(out)


# Terminals


async def test_a_terminal_with_its_size(boundary: AgentBoundary) -> None:
    traps = "trap 'stty size' WINCH; trap 'exit 130' INT"  # bash may ignore ^C while a child ends
    script = f"tty <&2; stty size; {traps}; echo ready; while :; do read -t 0.05 x; done"
    async with boundary.stream(["bash", "-c", script], tty=(100, 30)) as process:
        text = b""
        reader = process.output()
        while b"ready" not in text:
            text += (await anext(reader))[1]
        await process.resize(77, 22)
        while b"22 77" not in text:
            stream, data = await anext(reader)
            assert stream == 1
            text += data
        assert b"/dev/pts/" in text
        assert b"30 100\r\n" in text
        await process.write(b"\x03")
        rest = [data async for _, data in reader]
        assert rest is not None
        assert await process.wait() == 130


async def test_the_end_of_input_on_a_terminal(boundary: AgentBoundary) -> None:
    async with boundary.stream(["cat"], tty=(80, 24)) as process:
        await process.write(b"word\n")
        await process.close_stdin()
        text = b"".join([data async for _, data in process.output()])
        assert text.count(b"word") == 2  # the echo, and cat's
        assert await process.wait() == 0


async def test_jobs_of_an_interactive_shell_end_with_it(boundary: AgentBoundary, mark: str) -> None:
    argv = ["bash", "--norc", "-i"]
    async with boundary.stream(argv, tty=(80, 24), env={mark: "1"}, grace=0.3) as process:
        await process.write(b"nohup sleep 1000 & sleep 1000 & disown; sleep 1000\n")
        await until(lambda: len(processes_with(mark)) == 4, "4 processes")
    assert processes_with(mark) == {}


# Connections


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_connect(boundary: AgentBoundary, tmp_path: Path, kind: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()  # to the half-close
        writer.write(data[::-1])
        await writer.drain()
        writer.close()

    if kind == "tcp":
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address: str | tuple[str, int] = server.sockets[0].getsockname()[:2]
    else:
        server = await asyncio.start_unix_server(serve, tmp_path / "s")
        address = str(tmp_path / "s")
    async with server, boundary.connect(address) as connection:
        data = secrets.token_bytes(3_000_000)
        await connection.write(data)
        await connection.close_stdin()
        got = b"".join([part async for _, part in connection.output()])
        assert got == data[::-1]


async def test_connect_refused(boundary: AgentBoundary, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="refused"):
        async with boundary.connect(("127.0.0.1", 1)):
            pass
    with pytest.raises(NotFoundError):
        async with boundary.connect(str(tmp_path / "none")):
            pass


async def test_the_client_dies_and_nothing_stays(tmp_path: Path, mark: str) -> None:
    """`kill -9` of hpcsh itself: the agent sees the end of its input."""
    program = (
        "import asyncio\n"
        "from hpcsh.boundary.local import LocalBoundary\n"
        "async def main():\n"
        "    async with LocalBoundary() as b:\n"
        "        await b.run(['bash', '-c', 'sleep 1000 & sleep 1000'], timeout=1000)\n"
        "asyncio.run(main())\n"
    )
    env = {**os.environ, mark: "1"}
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=env)
    await until(lambda: len(processes_with(mark)) == 5, "client, agent and 3 processes")
    client.kill()
    await client.wait()
    await until(lambda: not processes_with(mark), "all gone")
