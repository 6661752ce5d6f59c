"""The lab's root file system in the cache: built once, then only looked up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from hpcsh.errors import CommandError, NotFoundError
from hpcsh.lab import build, images, paths, procs, recipe, userns
from hpcsh.lab.locks import locked
from hpcsh.lab.progress import Progress

_BUILD_LOCK_TIMEOUT = 3600.0


@dataclass(frozen=True)
class Image:
    """A root file system that nodes can use as their lower layer."""

    key: str
    rootfs: Path
    registry: Path
    notices: tuple[str, ...]


def _archive() -> Path | None:
    """A finished archive of today's recipe that this user may read."""
    for root in paths.cache_roots():
        candidate = root / recipe.key() / "rootfs.tar"
        if os.access(candidate, os.R_OK):
            return candidate
    return None


def is_built() -> bool:
    """Whether nothing has to be downloaded before a lab can start."""
    return _archive() is not None and images.directory() is not None


def ensure(progress: Progress) -> Image:
    """The image of today's recipe, built or unpacked first where that was not done yet."""
    home = paths.cache_root() / recipe.key()
    if not (home / "rootfs").is_dir() or images.own_registry() is None:
        with locked(paths.cache_root() / "lock", progress, "building the lab's image", _BUILD_LOCK_TIMEOUT):
            _sweep(paths.cache_root())
            if _archive() is None:
                _build(home, progress)
            if not (home / "rootfs").is_dir():
                _unpack(home, progress)
            if images.own_registry() is None:
                images.make(home / "rootfs", progress)
    return current()


def current() -> Image:
    """The image of today's recipe; `NotFoundError` when it was not built or not unpacked."""
    rootfs, registry = paths.cache_root() / recipe.key() / "rootfs", images.own_registry()
    if not rootfs.is_dir() or registry is None:
        raise NotFoundError("The lab's image has not been built yet.", fix="hpcsh lab image build")
    return Image(recipe.key(), rootfs, registry, _notices())


def _sweep(root: Path) -> None:
    """Remove what a builder that was killed left; the caller holds the lock, so nobody is building."""
    for leftover in root.glob("*.part"):
        procs.kill_users_of(leftover)  # a mmdebstrap that outlived its builder
        remove_tree(leftover)


def _build(home: Path, progress: Progress) -> None:
    part = home.with_name(f"{home.name}.build.part")
    part.mkdir(parents=True)
    part.chmod(0o755)
    home.parent.chmod(0o755)
    progress.line("  building the lab's root file system, once; this takes a few minutes")
    with progress.step("root file system"):
        notices = build.run(recipe.rootfs_command(part / "rootfs.tar"), part / "build.log", progress)
    (part / "rootfs.tar").chmod(0o644)
    facts = {"suite": recipe.SUITE, "built": int(time.time()), "notices": notices}
    (part / "image.json").write_text(json.dumps(facts))
    if home.is_dir():
        remove_tree(home)
    part.rename(home)


def _unpack(home: Path, progress: Progress) -> None:
    archive = _archive()
    assert archive is not None
    part = home.with_name(f"{home.name}.rootfs.part")
    part.mkdir(parents=True)
    home.mkdir(parents=True, exist_ok=True)
    with progress.step("unpack"):
        command = ["tar", "-C", str(part), "--numeric-owner", "--xattrs", "--xattrs-include=*",
                   "--exclude=./dev/*", "-xpf", str(archive)]  # fmt: skip

        def extract() -> None:
            subprocess.run(command, check=True, timeout=1800, stdin=subprocess.DEVNULL)
            # It holds setuid programs that nobody keeps up to date: no user of the machine may reach them.
            part.chmod(0o700)

        if not userns.call_as_root(extract):
            raise CommandError(f"The lab's root file system did not unpack from {archive}.")
    part.rename(home / "rootfs")


def _notices() -> tuple[str, ...]:
    archive = _archive()
    try:
        facts = json.loads((archive.parent / "image.json").read_text()) if archive else {}
    except (OSError, ValueError):
        return ()
    return tuple(str(n) for n in facts.get("notices", ()))


def prune(progress: Progress) -> list[Path]:
    """Remove what recipes of the past left in this user's cache; what a running lab stands on is kept."""
    root = paths.cache_root()
    wanted = {recipe.key(), f"images-{images.key()}", "lock"}
    removed = []
    with locked(root / "lock", progress, "building the lab's image", _BUILD_LOCK_TIMEOUT):
        _sweep(root)
        for old in sorted(p for p in root.iterdir() if p.name not in wanted):
            if not procs.has_mounted(old):
                remove_tree(old)
                removed.append(old)
    return removed


def remove_tree(tree: Path) -> None:
    """Remove a directory whose files may belong to the user's subordinate ids; it may be absent."""
    if tree.exists() and not userns.call_as_root(lambda: shutil.rmtree(tree)):
        raise CommandError(f"{tree} could not be removed.")
