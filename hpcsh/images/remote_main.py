"""Runs on the target: carries out one request, given as JSON in argv; `hpcsh.images.remote` sends it."""
# ruff: noqa: UP031, UP045

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Optional

from hpcsh.images.remote_base import Failed, Json, say
from hpcsh.images.remote_pool import Lock, end_pause, metadata, remove_tree, size_of, write_json
from hpcsh.images.remote_registry import resolve
from hpcsh.images.remote_tools import apptainer, podman


def pull(request: Json) -> Json:
    """Bring one image into the pool; the entry then."""
    pool, name = request["pool"], request["name"]
    os.makedirs(pool, 0o700, exist_ok=True)
    with Lock(os.path.join(pool, ".locks", name)):
        for entry in metadata(pool):
            if entry["file"].rsplit(".", 1)[0] == name and entry["runtime"] == request["runtime"]:
                entry["pulled"] = time.time()
                write_json(pool, name, entry)
                return dict(entry, present=True)
        work = os.path.join(pool, ".tmp")
        os.makedirs(work, 0o700, exist_ok=True)
        for stale in os.listdir(work):
            if stale.startswith(name + "."):
                remove_tree(os.path.join(work, stale))  # of a pull that was killed: the lock is ours
        work = os.path.join(work, "%s.%s.%d" % (name, socket.gethostname(), os.getpid()))
        try:
            return build(request, pool, name, work)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            end_pause(*(os.path.join(work, p) for p in ("tmp/pause.pid", "home/libpod/tmp/pause.pid")))
            remove_tree(work)


def build(request: Json, pool: str, name: str, work: str) -> Json:
    """Build in `work`, then move into the pool."""
    for directory in ("", "cache", "tmp", "home"):
        os.mkdir(os.path.join(work, directory), 0o700)
    builder = apptainer if request["runtime"] == "apptainer" else podman
    made, config = builder(request, work)
    entry = {
        "file": name + os.path.splitext(made)[1],
        "reference": request["canonical"], "digest": request["digest"],
        "runtime": request["runtime"], "size": size_of(made), "pulled": time.time(), "config": config,
        "stamp": request.get("stamp"),
    }  # fmt: skip
    target = os.path.join(pool, entry["file"])
    if os.path.isdir(target):
        remove_tree(target)
    os.rename(made, target)
    write_json(pool, name, entry)
    return dict(entry, path=target, present=False)


def probe(_: Json) -> Json:
    """Which runtimes there are, with their versions."""
    found = {}
    for name in ("apptainer", "podman"):
        try:
            words = subprocess.check_output([name, "--version"], stderr=subprocess.STDOUT).decode()
            found[name] = words.strip().split()[-1]
        except (OSError, subprocess.CalledProcessError):
            continue
    return found


def main() -> None:
    """Carry out one request."""

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    request = json.loads(sys.argv[1])
    verbs = {"resolve": resolve, "pull": pull, "list": lambda r: metadata(r["pool"]), "probe": probe}
    try:
        say(result=verbs[request["verb"]](request))
    except Failed as e:
        say(error=dict(e.facts, free=free(request)))
    except OSError as e:
        say(error={"words": str(e), "errno": e.errno, "file": e.filename, "free": free(request)})


def free(request: Json) -> Optional[int]:
    """Free bytes of the pool's file system."""
    place = request.get("pool") or "/"
    while place and not os.path.exists(place):
        place = os.path.dirname(place)
    try:
        information = os.statvfs(place or "/")
        return information.f_bavail * information.f_frsize
    except OSError:
        return None


if __name__ == "__main__":
    main()
