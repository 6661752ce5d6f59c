"""Following files that grow, are cut, replaced, or do not exist yet."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcsh.boundary import agent_follow, bootstrap
from hpcsh.boundary.base import Follow
from hpcsh.boundary.client import AgentBoundary
from hpcsh.boundary.local import LocalBoundary
from hpcsh.errors import CommandError, NotFoundError


class Tail:
    """A follow with what it has said so far."""

    def __init__(self, boundary: AgentBoundary, path: Path, **options: float) -> None:
        self.events: list[str] = []
        self.data = b""
        self.next = 0
        self.follow: AsyncIterator[Follow] = boundary.follow(str(path), **options)  # type: ignore[arg-type]

    async def step(self) -> None:
        async with asyncio.timeout(20):
            news = await anext(self.follow)
        self.events.append(news.event)
        if news.event == "data":
            assert news.offset == self.next, "a gap, or bytes twice"
            self.next += len(news.data)
            self.data += news.data
        elif news.event in ("truncated", "rotated"):
            self.next = 0

    async def until(self, data: bytes) -> None:
        while self.data != data:
            assert data.startswith(self.data)
            await self.step()

    async def until_event(self, event: str) -> None:
        while event not in self.events:
            await self.step()


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


async def test_growth(boundary: AgentBoundary, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    tail = Tail(boundary, path)
    await tail.until(b"one\n")
    for n in range(100):
        append(path, b"%d\n" % n)
        await asyncio.sleep(0)
    expected = b"one\n" + b"".join(b"%d\n" % n for n in range(100))
    await tail.until(expected)
    append(path, bytes(range(256)) * 20_000)
    await tail.until(expected + bytes(range(256)) * 20_000)
    assert set(tail.events) == {"data"}


async def test_offsets(boundary: AgentBoundary, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"0123456789")
    for offset, data in ((0, b"0123456789"), (4, b"456789"), (-3, b"789"), (-30, b"0123456789"), (10, b"")):
        news = [n async for n in boundary.follow(str(path), offset=offset, to_end=True)]
        assert [n.event for n in news] == (["data"] if data else []) + ["end"]
        assert b"".join(n.data for n in news) == data
        assert news[-1].offset == 10


async def test_to_end_is_the_end_of_now(boundary: AgentBoundary, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 3_000_000)
    size = 0
    async for news in boundary.follow(str(path), to_end=True):
        size += len(news.data)
        append(path, b"more" * 1000)
    assert size == 3_000_000
    (tmp_path / "empty").write_bytes(b"")
    assert [n.event async for n in boundary.follow(str(tmp_path / "empty"), to_end=True)] == ["end"]
    with pytest.raises(NotFoundError):
        await anext(boundary.follow(str(tmp_path / "none"), to_end=True))


async def test_late_creation(boundary: AgentBoundary, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "log"
    tail = Tail(boundary, path, interval=0.05)
    await tail.step()
    assert tail.events == ["waiting"]
    path.parent.mkdir()
    await asyncio.sleep(0.1)
    path.write_bytes(b"here")
    await tail.until(b"here")
    assert tail.events.count("waiting") == 1


async def test_truncation(boundary: AgentBoundary, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a long first text")
    tail = Tail(boundary, path)
    await tail.until(b"a long first text")
    path.write_bytes(b"short")
    await tail.until(b"a long first textshort")
    assert [event for event in tail.events if event != "data"] == ["truncated"]


async def test_rotation_loses_nothing(boundary: AgentBoundary, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"start\n")
    tail = Tail(boundary, path)
    expected = b"start\n"
    await tail.until(expected)
    for n in range(5):
        with path.open("ab") as file:
            file.write(b"first of %d\n" % n)
            os.rename(path, tmp_path / f"log.{n}")
            file.write(b"last of %d\n" % n)  # a writer that has not noticed
        expected += b"first of %d\nlast of %d\n" % (n, n)
        path.write_bytes(b"")
        await tail.until(expected)
        while tail.events.count("rotated") <= n:
            await tail.step()


async def test_removed_and_made_again(boundary: AgentBoundary, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old")
    tail = Tail(boundary, path)
    await tail.until(b"old")
    path.unlink()
    await asyncio.sleep(0.1)
    path.write_bytes(b"new and longer")
    await tail.until(b"oldnew and longer")
    assert "rotated" in tail.events


async def test_a_hundred_at_once(boundary: AgentBoundary, tmp_path: Path) -> None:
    paths = [tmp_path / f"log{n}" for n in range(100)]
    for path in paths[::2]:
        path.write_bytes(b"")
    tails = [Tail(boundary, path) for path in paths]
    waiting = [asyncio.create_task(tail.until(b"%d" % n * 1000)) for n, tail in enumerate(tails)]
    await asyncio.sleep(0.2)
    for n, path in enumerate(paths):
        append(path, b"%d" % n * 1000)
    await asyncio.gather(*waiting)
    done = await boundary.run(["echo", "and all else works"], timeout=20)
    assert done.code == 0
    for tail in tails:
        await tail.follow.aclose()  # type: ignore[attr-defined]
    pid = int((await boundary.run(["sh", "-c", "echo $PPID"], timeout=20)).text)
    for _ in range(200):  # a step under way ends first
        left = held_by(pid)
        if not left:
            break
        await asyncio.sleep(0.02)
    assert left == []


def held_by(pid: int) -> list[str]:
    """Logs that a process has open, and its inotify watches."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            facts = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
            found += [line for line in facts if line.startswith("inotify wd")]
            found += [link for link in [os.readlink(f"/proc/{pid}/fd/{fd}")] if "/log" in link]
    return found


async def test_a_slow_reader_bounds_memory(boundary: AgentBoundary, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    pid = int((await boundary.run(["sh", "-c", "echo $PPID"], timeout=20)).text)
    rss = f"ps -o rss= -p {pid}"
    before = int((await boundary.run(["sh", "-c", rss], timeout=20)).text)
    follows = [boundary.follow(str(path)) for _ in range(10)]
    for follow in follows:
        await anext(follow)
    await asyncio.sleep(0.3)
    after = int((await boundary.run(["sh", "-c", rss], timeout=20)).text)
    assert after - before < 20_000  # KiB
    for follow in follows:
        await follow.aclose()


async def test_only_regular_files(boundary: AgentBoundary, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(CommandError, match="regular file"):
            await anext(boundary.follow(str(path)))


async def test_polling_alone_sees_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system, where other machines write and inotify says nothing."""
    sound = bootstrap._parts()
    blind = tuple((name, text.replace("self.libc.inotify_init1", "self.libc.abs(0) or (lambda _: -1)"))
                  for name, text in sound)  # fmt: skip
    assert blind != sound
    monkeypatch.setattr(bootstrap, "_parts", lambda: blind)
    path = tmp_path / "log"
    async with LocalBoundary() as boundary:
        tail = Tail(boundary, path, interval=0.05)
        await tail.step()
        path.write_bytes(b"one")
        await tail.until(b"one")
        append(path, b"two")
        await tail.until(b"onetwo")
        path.write_bytes(b"3")
        await tail.until(b"onetwo3")
        os.rename(path, tmp_path / "old")
        path.write_bytes(b"four")
        await tail.until(b"onetwo3four")
    assert [event for event in tail.events if event != "data"] == ["waiting", "truncated", "rotated"]


def test_what_is_written_just_before_a_rotation_is_not_lost(tmp_path: Path) -> None:
    """The steps by hand: a writer adds to the old file after our last read and before we see the new one."""
    path = tmp_path / "log"
    path.write_bytes(b"first")
    watching = SimpleNamespace(watch=lambda *_: -1, FILE=0, DIRECTORY=0)
    agent = SimpleNamespace(inotify=lambda: watching, pool=SimpleNamespace(submit=lambda *_: None), queued=0)
    head = {"i": 1, "path": str(path), "window": 1000}
    follow = agent_follow.Follow(agent, head)  # type: ignore[arg-type]
    assert follow.step(1000) == ([("data", b"first", 0)], True)
    os.rename(path, tmp_path / "old")
    path.write_bytes(b"new")
    sound = follow.same

    def late(fd: int) -> bool:
        append(tmp_path / "old", b"last")
        follow.same = sound  # type: ignore[method-assign]
        return sound(fd)

    follow.same = late  # type: ignore[method-assign]
    told = [follow.step(1000)[0] for _ in range(3)]
    assert told == [[("data", b"last", 5)], [("rotated", b"", 0)], [("data", b"new", 0)]]
    os.close(follow.fd)
