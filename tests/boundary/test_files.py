"""Files through each kind of boundary."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcsh.boundary.base import FileInfo
from hpcsh.boundary.client import AgentBoundary
from hpcsh.errors import CommandError, NotFoundError, UsageError
from tests.boundary.sshd_server import require

ODD_NAMES = ["a b", "é☃", "new\nline", "-rf", "'\"$x", os.fsdecode(b"\xff\xfe")]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB."""
    place = tmp_path / "full"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True)
    require(mounted.returncode == 0, "mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


async def test_write_replaces_in_one_step(boundary: AgentBoundary, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    reader = path.open()  # who reads the old file goes on reading the old file
    data = secrets.token_bytes(3_000_000)
    await boundary.write(str(path), data, mode=0o640)
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o7777 == 0o640
    assert reader.read() == "old"
    await boundary.write(str(path), b"")
    assert path.read_bytes() == b""
    assert path.stat().st_mode & 0o7777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


async def test_names_are_exact(boundary: AgentBoundary, tmp_path: Path) -> None:
    for name in ODD_NAMES:
        await boundary.write(str(tmp_path / name), name.encode("utf-8", "surrogateescape"))
    assert sorted(os.listdir(tmp_path)) == sorted(ODD_NAMES)
    listed = await boundary.list(str(tmp_path))
    assert [entry.path for entry in listed] == [
        str(tmp_path / os.fsdecode(name)) for name in sorted(map(os.fsencode, ODD_NAMES))
    ]
    for name in ODD_NAMES:
        assert await boundary.read(str(tmp_path / name)) == os.fsencode(name)
        assert await boundary.remove(str(tmp_path / name))
    assert os.listdir(tmp_path) == []
    with pytest.raises(UsageError):
        await boundary.read("a\0b")


async def test_a_failed_write_leaves_the_old_file_and_no_other(boundary: AgentBoundary, full: Path) -> None:
    (full / "file").write_text("old")
    (full / "dir").mkdir()
    for size in (100_000, 5_000_000):
        with pytest.raises(CommandError, match="No space left on device"):
            await boundary.write(str(full / "file"), b"x" * size)
        with pytest.raises(CommandError, match="No space left on device"):
            await boundary.create(str(full / "new"), b"x" * size)
    with pytest.raises(CommandError, match="Is a directory"):
        await boundary.write(str(full / "dir"), b"x")
    with pytest.raises(NotFoundError):
        await boundary.write(str(full / "none" / "file"), b"x")
    with pytest.raises(CommandError, match=r"Permission denied|not permitted|Read-only"):
        await boundary.write("/sys/kernel/hpcsh", b"x")
    assert sorted(os.listdir(full)) == ["dir", "file"]
    assert (full / "file").read_text() == "old"


async def test_a_cancelled_write_leaves_nothing(boundary: AgentBoundary, tmp_path: Path) -> None:
    kept = 0
    for steps in range(0, 60, 3):
        task = asyncio.create_task(boundary.write(str(tmp_path / "file"), b"x" * 20_000_000))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left = os.listdir(tmp_path)
        assert left in ([], ["file"])  # nothing, or the whole file when the cancel came too late
        if left:
            kept += 1
            assert (tmp_path / "file").stat().st_size == 20_000_000
            (tmp_path / "file").unlink()
    assert kept < 20


async def test_create_is_exclusive_and_whole(boundary: AgentBoundary, tmp_path: Path) -> None:
    path = str(tmp_path / "one")
    texts = [f"{n}-".encode() * 100_000 for n in range(20)]
    made = await asyncio.gather(*(boundary.create(path, text, mode=0o644) for text in texts))
    assert sum(made) == 1
    assert Path(path).read_bytes() == texts[made.index(True)]
    assert Path(path).stat().st_mode & 0o7777 == 0o644
    assert os.listdir(tmp_path) == ["one"]
    os.symlink("nowhere", tmp_path / "link")
    assert not await boundary.create(str(tmp_path / "link"), b"x")
    assert not (tmp_path / "nowhere").exists()


async def test_read_parts(boundary: AgentBoundary, tmp_path: Path) -> None:
    data = secrets.token_bytes(5_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    name = str(path)
    assert await boundary.read(name) == data
    assert await boundary.read(name, offset=4_000_000) == data[4_000_000:]
    assert await boundary.read(name, offset=10, limit=2_000_000) == data[10:2_000_010]
    assert await boundary.read(name, offset=-7) == data[-7:]
    assert await boundary.read(name, offset=-9_000_000, limit=5) == data[:5]
    assert await boundary.read(name, offset=6_000_000) == b""
    assert await boundary.read(name, limit=0) == b""
    assert b"cpu" in await boundary.read("/proc/stat")  # a file without a size
    assert await boundary.read("/dev/zero", limit=300_000) == bytes(300_000)
    with pytest.raises(NotFoundError, match="No such file"):
        await boundary.read(str(tmp_path / "none"))
    with pytest.raises(CommandError, match="Is a directory"):
        await boundary.read(str(tmp_path))


async def test_stat_and_list(boundary: AgentBoundary, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "file").chmod(0o751)
    os.utime(tmp_path / "file", (1, 1234567890.5))
    (tmp_path / "dir").mkdir(mode=0o700)
    os.symlink("file", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    info = FileInfo(str(tmp_path / "file"), "file", 5, 0o751, 1234567890.5, os.getuid())
    assert await boundary.stat(str(tmp_path / "file")) == info
    assert await boundary.stat(str(tmp_path / "none")) is None
    assert await boundary.stat(str(tmp_path / "file" / "below")) is None
    listed = await boundary.list(str(tmp_path))
    assert [(os.path.basename(e.path), e.kind) for e in listed] == [
        ("dir", "dir"), ("file", "file"), ("link", "link"), ("pipe", "other"),
    ]  # fmt: skip
    assert listed[1] == info
    with pytest.raises(NotFoundError):
        await boundary.list(str(tmp_path / "none"))
    with pytest.raises(NotFoundError, match="Not a directory"):
        await boundary.list(str(tmp_path / "file"))


async def test_a_long_directory(boundary: AgentBoundary, tmp_path: Path) -> None:
    names = [f"{'n' * 100}{n:05}" for n in range(12_000)]
    for name in names:
        os.close(os.open(tmp_path / name, os.O_CREAT | os.O_WRONLY))
    assert [os.path.basename(entry.path) for entry in await boundary.list(str(tmp_path))] == names


async def test_mkdir(boundary: AgentBoundary, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        (tmp_path / "a").mkdir(mode=0o700)
        await boundary.mkdir(str(tmp_path / "a" / "b" / "c"), mode=0o755)
    finally:
        os.umask(old)
    modes = [(tmp_path / part).stat().st_mode & 0o7777 for part in ("a", "a/b", "a/b/c")]
    assert modes == [0o700, 0o755, 0o755]
    await boundary.mkdir(str(tmp_path / "a"))
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o700
    await asyncio.gather(*(boundary.mkdir(str(tmp_path / "x" / "y" / str(n % 3))) for n in range(30)))
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match="File exists"):
        await boundary.mkdir(str(tmp_path / "file"))


async def test_remove_does_not_follow_links(boundary: AgentBoundary, tmp_path: Path) -> None:
    keep, tree = tmp_path / "keep", tmp_path / "tree"
    keep.mkdir()
    (keep / "precious").write_text("x")
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("x")
    os.symlink(keep, tree / "sub" / "link")
    os.symlink(keep, tmp_path / "link")
    with pytest.raises(CommandError, match="not empty"):
        await boundary.remove(str(tree))
    assert await boundary.remove(str(tree), recursive=True)
    assert await boundary.remove(str(tmp_path / "link"), recursive=True)
    assert not await boundary.remove(str(tree), recursive=True)
    assert not await boundary.remove(str(tmp_path / "link"))
    assert os.listdir(tmp_path) == ["keep"]
    assert (keep / "precious").exists()


async def test_rename(boundary: AgentBoundary, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    await boundary.rename(str(tmp_path / "a"), str(tmp_path / "b"))
    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "a"
    with pytest.raises(NotFoundError):
        await boundary.rename(str(tmp_path / "a"), str(tmp_path / "b"))
