"""Runs on the target: the files of the pool. Layout: `hpcsh.images.pool`."""
# ruff: noqa: UP006, UP031, UP035

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from typing import Any, List

from hpcsh.images.remote_base import Json, say


def metadata(pool: str) -> List[Json]:
    """What the JSON files of the pool say, those whose image is there."""
    found = []  # type: List[Json]
    try:
        names = sorted(os.listdir(pool))
    except OSError:
        return found
    for name in names:
        if name.endswith(".json"):
            try:
                with open(os.path.join(pool, name)) as f:
                    entry = json.load(f)
                entry["path"] = os.path.join(pool, os.path.basename(entry["file"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if os.path.exists(entry["path"]):
                found.append(entry)
    return found


def remove_tree(path: str) -> None:
    """Remove what an image may hold: also directories without any permission."""

    def open_up(function: Any, name: str, _: Any) -> None:
        try:
            os.chmod(os.path.dirname(name), 0o700)
            os.chmod(name, 0o700)
        except OSError:
            pass

    for _ in range(3):
        shutil.rmtree(path, onerror=open_up)
        if not os.path.lexists(path):
            return
    # Files of subordinate users, which rootless podman leaves when it is stopped, only it can remove.
    runtime = path + ".runtime"
    try:
        os.mkdir(runtime, 0o700)
        env = dict(os.environ, XDG_RUNTIME_DIR=runtime)
        subprocess.call(["podman", "unshare", "rm", "-rf", path], stderr=subprocess.DEVNULL, env=env)
    except OSError:
        pass
    end_pause(os.path.join(runtime, "libpod/tmp/pause.pid"))
    shutil.rmtree(runtime, ignore_errors=True)


def end_pause(*places: str) -> None:
    """End the process with which rootless podman holds its user namespace."""
    for place in places:
        try:
            with open(place) as f:
                os.kill(int(f.read()), signal.SIGKILL)
        except (OSError, ValueError):
            pass


def size_of(path: str) -> int:
    """Bytes below a path."""
    if not os.path.isdir(path):
        try:
            return os.lstat(path).st_size
        except OSError:
            return 0
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_size
            except OSError:
                pass
    return total


class Lock:
    """One pull of an image at a time, among all processes that see the pool."""

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def __enter__(self) -> "Lock":
        told = False
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self
            except OSError as e:
                if e.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                    return self  # a file system without locks: the renames still keep images whole
                if e.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if not told:
                say(step="wait", message="another pull of this image is under way")
                told = True
            time.sleep(0.1)

    def __exit__(self, *_: Any) -> None:
        os.close(self.fd)


def write_json(pool: str, name: str, entry: Json) -> None:
    """Replace an image's JSON file as one step."""
    temporary = os.path.join(pool, ".%s.%d" % (name, os.getpid()))
    kept = {k: v for k, v in entry.items() if k not in ("path", "present")}
    with open(temporary, "w") as f:
        json.dump(kept, f)
        f.flush()
        os.fsync(f.fileno())
    os.rename(temporary, os.path.join(pool, name + ".json"))
