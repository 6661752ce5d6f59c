"""What comes in at the socket from those who are not our front ends."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import subprocess
import sys
from typing import get_type_hints

import msgspec
import pytest
from session_fixtures import Open, Place, alive

from hpcsh import __version__, errors
from hpcsh.client import connect, start
from hpcsh.host import control, methods
from hpcsh.model import File, LaunchFrame, LaunchSpec, SubmitSpec
from hpcsh.serving import frames, places
from hpcsh.serving.frames import Cancel, Credit, Failure, Hello, Request, Welcome
from hpcsh.session import Session

AS_NOBODY = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.settimeout(20)
try:
    s.sendall(bytes.fromhex(sys.argv[2]))
    print(s.recv(100))
except ConnectionError:
    print(b"")
"""


def hello(**changes: object) -> bytes:
    fields = {"protocol": frames.PROTOCOL, "version": __version__, "directories": places.directories()}
    return frames.encode(Hello(**{**fields, **changes}))  # type: ignore[arg-type]


DEEP_ARGS = b"\x81\xa4spec" + b"\x91" * 1_000_000 + b"\x80"
DEEP = frames.encode(Request(1, "submit", msgspec.Raw(DEEP_ARGS)))


class Raw:
    """A client that may say anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = msgspec.msgpack.Decoder(frames.ServerFrame)

    async def receive(self) -> frames.ServerFrame | None:
        """The next frame, or None at the end."""
        async with asyncio.timeout(20):
            try:
                return self.decoder.decode(await frames.read_body(self.reader, frames.REPLY_LIMIT))
            except (EOFError, ConnectionError):
                return None

    async def call(self, number: int, method: str, args: bytes) -> frames.ServerFrame | None:
        self.writer.write(frames.encode(Request(number, method, msgspec.Raw(args))))
        return await self.receive()


async def raw(*, greet: bool = True) -> Raw:
    client = Raw(*await asyncio.open_unix_connection(str(places.socket_path())))
    if greet:
        client.writer.write(hello())
        assert isinstance(await client.receive(), Welcome)
    return client


NO_HELLO = {
    "http": b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100,
    "oversized": (1 << 30).to_bytes(4, "big") + b"x",
    "empty": (0).to_bytes(4, "big"),
    "garbage": (3).to_bytes(4, "big") + b"\xc1\xc1\xc1",
    "deep": (200_000).to_bytes(4, "big") + b"\x91" * 200_000,
    "another frame": frames.encode(Cancel(1)),
}
NO_FRAME = {
    "oversized": (frames.REQUEST_LIMIT + 1).to_bytes(4, "big"),
    "garbage": (4096).to_bytes(4, "big") + os.urandom(4096),
    "id zero": frames.encode(Request(0, "info", msgspec.Raw(b"\x80"))),
    "deep": DEEP,
    "half a frame": DEEP[:-1],
}


async def test_what_breaks_the_protocol_is_told_and_cut_off(attached: Open) -> None:
    session = await attached()
    breaking = [(False, NO_HELLO), (True, {**NO_FRAME, "second hello": hello()})]
    for greet, cases in breaking:
        for name, data in cases.items():
            client = await raw(greet=greet)
            client.writer.write(data)
            if greet:
                client.writer.write_eof()
            answer = await client.receive()
            assert isinstance(answer, Failure), name
            assert answer.id == 0, name
            assert await client.receive() is None, name
    assert await session.nodes()
    status = await control.status()
    assert status is not None
    assert status.clients == 2  # the session, and this question


async def test_calls_that_do_not_fit_are_errors_and_no_more(attached: Open) -> None:
    await attached()
    client = await raw()
    assert isinstance(await client.call(1, "nodes", b"\x80"), Failure)  # nothing attached
    here = msgspec.msgpack.encode({"profile": "here"})
    assert isinstance(await client.call(2, "attach", here), frames.Result)
    for number, (method, args) in enumerate(
        [
            ("nodes", b"\x90"),
            ("nodes", msgspec.msgpack.encode({"more": 1})),
            ("show", msgspec.msgpack.encode({"ref": 7})),
            ("close", b"\x80"),
            ("__init__", b"\x80"),
            ("shared", b"\x80"),
            ("attach", msgspec.msgpack.encode({"profile": "also"})),
            ("submit", b"\x81\xa4spec\xa1x"),
        ],
        3,
    ):
        answer = await client.call(number, method, args)
        assert isinstance(answer, Failure), method
        assert answer.id == number
        assert answer.kind == "usage", method
    client.writer.write(frames.encode(Cancel(99)) + frames.encode(Credit(99, 1 << 60)))
    answer = await client.call(20, "nodes", b"\x80")
    assert isinstance(answer, frames.Result)
    client.writer.close()


async def test_cancelling_twice_does_not_cut_the_clearing_up_short(attached: Open) -> None:
    await attached()
    client = await raw()
    await client.call(1, "attach", msgspec.msgpack.encode({"profile": "here"}))
    stubborn = LaunchSpec(tool="prun", program=("sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"))
    first = await client.call(2, "launch", msgspec.msgpack.encode({"spec": stubborn}))
    assert isinstance(first, frames.Item)
    pid = int(msgspec.msgpack.decode(first.value, type=LaunchFrame).data)
    assert isinstance(await client.receive(), frames.Item)  # it has set its trap
    client.writer.write(frames.encode(Cancel(2)))
    await client.call(3, "info", b"\x80")
    client.writer.write(frames.encode(Cancel(2)))
    end = await client.receive()
    assert isinstance(end, Failure)
    assert end.id == 2
    assert not alive(pid)
    client.writer.close()


async def test_too_many_calls_at_once_are_refused(attached: Open) -> None:
    await attached()
    client = await raw()
    await client.call(1, "attach", msgspec.msgpack.encode({"profile": "here"}))
    after = msgspec.msgpack.encode({"after": None})
    for number in range(2, 260):
        client.writer.write(frames.encode(Request(number, "events", msgspec.Raw(after))))
    answers = [await client.receive() for _ in range(2)]
    assert {(a.id, a.kind) for a in answers if isinstance(a, Failure)} == {(258, "refused"), (259, "refused")}
    client.writer.close()


async def test_too_large_an_input_is_refused_before_it_is_sent(attached: Open) -> None:
    session = await attached()
    with pytest.raises(errors.UsageError, match="16 MiB"):
        await session.plan(SubmitSpec(file=File("big", bytes(17 << 20))))
    large = SubmitSpec(file=File("large", bytes(15 << 20)))
    assert (await session.plan(large)).title == "plan"


async def test_another_user_is_refused(attached: Open, place: Place) -> None:
    if os.geteuid() != 0:
        if os.environ.get("HPCSH_REQUIRE"):
            pytest.fail("becoming another user needs root")
        pytest.skip("becoming another user needs root")
    session = await attached()
    place.root.chmod(0o755)
    place.run.chmod(0o711)  # as if the directory's protection had failed
    places.socket_path().chmod(0o666)
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-I", "-c", AS_NOBODY, str(places.socket_path()), hello().hex()],
            capture_output=True, text=True, check=True, cwd="/",
        )  # fmt: skip
    finally:
        place.run.chmod(0o700)
    assert done.stdout.strip() == "b''"
    assert await session.nodes()
    assert "uid 65534" in places.log_path().read_text()


async def test_a_socket_of_another_user_is_not_talked_to(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.make_private(place.run)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(places.socket_path()))
        listener.listen()
        monkeypatch.setattr("hpcsh.serving.caller.is_ours", lambda sock: False)
        with pytest.raises(errors.TargetError, match="another user"):
            await connect("here")


async def test_a_server_that_is_no_host(place: Place) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
        await writer.drain()

    places.make_private(place.run)
    async with await asyncio.start_unix_server(serve, str(places.socket_path())):
        with pytest.raises(errors.TargetError, match="no session host"):
            await connect("here")
    places.socket_path().unlink(missing_ok=True)


async def test_a_host_that_hangs_is_an_error(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "HANDSHAKE", 0.2)
    places.make_private(place.run)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(places.socket_path()))
        listener.listen()
        with pytest.raises(errors.TargetError, match="does not answer"):
            await connect("here")


async def test_a_dead_socket_is_cleared_away(place: Place) -> None:
    places.make_private(place.run)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(places.socket_path()))
    session = await connect("here")
    assert await session.nodes()
    await session.close()
    assert places.socket_path().stat().st_mode & 0o777 == 0o600
    assert place.run.stat().st_mode & 0o777 == 0o700


async def test_a_file_in_the_way_is_left_alone(place: Place) -> None:
    places.make_private(place.run)
    places.socket_path().write_text("mine")
    with pytest.raises(errors.RefusedError, match="not a socket"):
        await connect("here")
    assert places.socket_path().read_text() == "mine"


@pytest.mark.parametrize("case", ["open", "group", "link", "file", "foreign"])
async def test_a_directory_that_others_prepared_is_refused(place: Place, case: str) -> None:
    if case == "link":
        (place.root / "theirs").mkdir(mode=0o700)
        place.run.symlink_to(place.root / "theirs")
    elif case == "file":
        place.run.write_text("")
    else:
        place.run.mkdir()
        place.run.chmod({"open": 0o777, "group": 0o750, "foreign": 0o700}[case])
        if case == "foreign":
            if os.geteuid() != 0:
                pytest.skip("giving a directory away needs root")
            os.chown(place.run, 65534, 65534)
    with pytest.raises(errors.RefusedError, match=str(place.run)):
        await connect("here")
    if case == "link" or case == "file":
        place.run.unlink()
    else:
        os.chown(place.run, os.geteuid(), os.getegid())
        place.run.chmod(0o700)


async def test_a_path_too_long_for_a_socket(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCSH_RUNTIME_DIR", str(place.root / ("x" * 100)))
    with pytest.raises(errors.UnavailableError) as caught:
        await connect("here")
    assert "HPCSH_RUNTIME_DIR" in caught.value.fix
    monkeypatch.setenv("HPCSH_RUNTIME_DIR", str(place.run))


def test_where_the_socket_is(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.socket_path() == place.run / "host.sock"
    monkeypatch.delenv("HPCSH_RUNTIME_DIR")
    fallback = place.root / "state" / "hpcsh" / "run" / socket.gethostname().split(".")[0]
    assert places.runtime_directory() == fallback
    base = place.root / "runtime"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    assert places.runtime_directory() == fallback
    base.mkdir(mode=0o700)
    assert places.runtime_directory() == base / "hpcsh"
    base.chmod(0o777)
    assert places.runtime_directory() == fallback
    monkeypatch.setenv("HPCSH_RUNTIME_DIR", str(place.run))


def test_the_store_and_the_socket_agree_on_the_state_home(place: Place) -> None:
    from hpcsh.store import state_dir

    assert state_dir() == places.state_home()


def test_the_wire_knows_exactly_the_sessions_methods() -> None:
    names = {n for n, _ in inspect.getmembers(Session, inspect.isfunction) if not n.startswith("_")}
    assert set(methods.METHODS) == names - {"close"}
    for name, given in methods.METHODS.items():
        hints = get_type_hints(getattr(Session, name))
        hints.pop("return")
        assert set(given) == set(hints), name
        for argument, kind in given.items():
            said = str(hints[argument])
            as_tuple = said.replace("collections.abc.Sequence[", "tuple[").replace("]", ", ...]")
            assert str(kind) in (said, as_tuple), name


def test_a_front_end_imports_little() -> None:
    code = "import hpcsh.client.attached, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("hpcsh.")}
    rooms = {name.split(".")[1] for name in ours}
    assert rooms == {"client", "errors", "events", "model", "serving", "session"}
    assert "hpcsh.session.local" not in ours
    assert not {"yaml", "sqlite3", "paramiko", "jinja2"} & set(done.stdout.split())
