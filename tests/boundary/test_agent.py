"""The frames, the start of the agent, and the oldest Python it must run on."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsh.boundary import bootstrap
from hpcsh.boundary.local import LocalBoundary
from hpcsh.boundary.nested import NestedBoundary
from hpcsh.boundary.wire import Decoder, FrameError, MarkerScanner, encode
from hpcsh.errors import TargetError, UsageError
from tests.boundary.sshd_server import require


@given(st.lists(st.tuples(st.text(), st.binary(max_size=300)), max_size=8), st.integers(1, 64))
def test_frames_survive_any_cut(items: list[tuple[str, bytes]], size: int) -> None:
    stream = b"".join(encode({"text": text}, payload) for text, payload in items)
    decoder, got = Decoder(), []
    for at in range(0, len(stream), size):
        got += decoder.feed(stream[at : at + size])
    assert got == [({"text": text}, payload) for text, payload in items]


def test_names_that_are_not_utf_8_survive() -> None:
    name = os.fsdecode(b"\xff\xfe/\x80")
    assert Decoder().feed(encode({"path": name})) == [({"path": name}, b"")]


JUNK = [b"GET / HTTP/1.1\r\n", b"\0\0\0\x08\0\0\0\x04nope", b"\0\0\0\x06\0\0\0\x02[]"]


@pytest.mark.parametrize("junk", JUNK)
def test_what_is_not_a_frame_is_refused(junk: bytes) -> None:
    with pytest.raises(FrameError):
        Decoder().feed(junk)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_noise_before_the_marker_is_thrown_away(noise: bytes, size: int) -> None:
    marker = b"#MARK#"
    noise = noise.replace(marker, b"")
    scanner, got = MarkerScanner(marker), b""
    stream = noise + marker + b"rest" + marker
    for at in range(0, len(stream), size):
        got += scanner.feed(stream[at : at + size])
    assert got == b"rest" + marker
    assert scanner.tail == noise


def test_noise_is_kept_in_bounded_memory() -> None:
    scanner = MarkerScanner(b"#MARK#")
    for _ in range(100):
        assert scanner.feed(b"x" * 100_000) == b""
    assert len(scanner.tail) == scanner.KEEP


def test_the_command_means_the_same_to_every_shell() -> None:
    """One pair of single quotes, and in it nothing that csh or fish would look at."""
    command = bootstrap.command("/opt/python-3.11/bin/python3")
    inner = re.fullmatch(r"exec /bin/sh -c '([^']*)'", command)
    assert inner
    assert not set(inner[1]) & set("!\\\n\r'`")
    assert "/opt/python-3.11/bin/python3 python3 python" in command
    assert "hpcsh-agent" not in command  # a shell that shows its commands must not show the marker
    for bad in ("a b", "-x", "a'b", "$x", "a\nb"):
        with pytest.raises(UsageError):
            bootstrap.command(bad)


def test_the_agent_is_python_3_6() -> None:
    folder = Path(bootstrap.__file__).parent
    for part in bootstrap.PARTS:
        text = (folder / f"{part}.py").read_text()
        ast.parse(text, feature_version=(3, 6))
        assert "from __future__ import annotations" not in text  # 3.7
        imports = re.findall(r"^(?:import|from) ([\w.]+)", text, re.MULTILINE)
        ours = {name for name in imports if name.startswith("hpcsh")}
        assert ours <= {f"hpcsh.boundary.{name}" for name in bootstrap.PARTS}
        assert {name.split(".")[0] for name in imports} - {"hpcsh"} <= set(sys.stdlib_module_names)


def pythons() -> list[str]:
    """Interpreters of this machine other than ours, oldest first."""
    named = [shutil.which(f"python3.{minor}") for minor in range(6, 20)]
    found = [str(p) for p in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"))]
    return list(dict.fromkeys([*found, *(name for name in named if name and ".pyenv" not in name)]))


async def test_every_python_of_this_machine_runs_the_agent(tmp_path: Path) -> None:
    tried = 0
    for python in pythons():
        locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        version = subprocess.run(  # noqa: ASYNC221
            [python, "-c", "import sys; print(sys.version_info >= (3, 6), sys.version.split()[0])"],
            capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        if version[:1] != ["True"]:
            continue
        tried += 1
        argv = ["env", *(f"{name}={value}" for name, value in locale.items())]
        async with LocalBoundary() as outer, NestedBoundary(outer, argv, "inner", python=python) as target:
            name = str(tmp_path / os.fsdecode(b"\xff-\xc3\xa9-" + str(tried).encode()))
            await target.write(name, b"x" * 1_000_000)
            assert len(await target.read(name)) == 1_000_000
            assert name in [entry.path for entry in await target.list(str(tmp_path))]
            done = await target.run(["printf", "%s", name], timeout=20)
            assert done.stdout == os.fsencode(name)
            follow = target.follow(name)
            assert (await anext(follow)).event == "data"
            await follow.aclose()
            async with target.stream(["sh", "-c", "tty; exit 7"], tty=(80, 24)) as process:
                assert b"/dev/pts" in b"".join([data async for _, data in process.output()])
                assert await process.wait() == 7
            assert target._greeting["python"] == version[1]
            await target.remove(name)
    require(tried, "there is no other Python than ours")


async def test_a_target_without_python_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "PYTHONS", ("python3", "python"))
    async with LocalBoundary() as outer:
        target = NestedBoundary(outer, ["env", "PATH=/nowhere"], "node n1", python="/opt/none/python3")
        with pytest.raises(TargetError) as caught:
            await target.open()
        assert "no Python 3.6 or later on node n1" in str(caught.value)
        assert "tried /opt/none/python3, python3, python" in str(caught.value)
        await target.close()


async def test_a_prefix_that_fails_is_quoted() -> None:
    async with LocalBoundary() as outer:
        argv = ["sh", "-c", "echo srun: error: Invalid job id specified >&2; exit 1"]
        target = NestedBoundary(outer, argv, "node n1")
        with pytest.raises(TargetError, match=r"node n1[^$]*exit status 1[^$]*Invalid job id"):
            await target.open()
        await target.close()


async def test_an_interpreter_that_is_not_there() -> None:
    target = LocalBoundary(python="/nowhere/python3")
    with pytest.raises(TargetError, match="/nowhere/python3"):
        await target.open()


def is_pipe_to_write(pid: int, fd: str) -> bool:
    try:
        flags = re.search(r"flags:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{fd}").read_text())
        is_pipe = os.readlink(f"/proc/{pid}/fd/{fd}").startswith("pipe:")
        return is_pipe and flags is not None and int(flags[1], 8) & os.O_WRONLY != 0
    except FileNotFoundError:
        return False


async def test_junk_from_the_other_side_is_an_error_and_not_a_hang() -> None:
    """A program on the target that prints into the agent's output."""
    async with LocalBoundary() as target:
        pid = int((await target.run(["sh", "-c", "echo $PPID"], timeout=20)).text)
        follow = target.follow("/nowhere")
        await anext(follow)
        held = os.listdir(f"/proc/{pid}/fd")
        pipes = [f"/proc/{pid}/fd/{fd}" for fd in held if is_pipe_to_write(pid, fd)]
        waiting = asyncio.ensure_future(anext(follow))
        for end in pipes:
            try:
                fd = os.open(end, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue
            os.write(fd, b"slurmstepd: error: something\n" * 3)
            os.close(fd)
        with pytest.raises(TargetError, match="not from the agent"):
            await asyncio.wait_for(waiting, 10)
