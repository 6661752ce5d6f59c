"""Find the processes of a lab in /proc, whatever our own files say."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KEEPER_MODULE = "hpcsh.lab.keeper"
NODE_MARK = "hpcsh-lab-node"


@dataclass(frozen=True)
class Process:
    """A process as the machine sees it; `inner` is its pid in each of its pid namespaces, outermost first."""

    pid: int
    parent: int
    uid: int
    inner: tuple[int, ...]
    argv: tuple[str, ...]


def processes() -> Iterator[Process]:
    """Every process of ours, for root every process; those that end meanwhile are left out."""
    me = os.geteuid()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            status = Path(entry.path, "status").read_text()
            raw = Path(entry.path, "cmdline").read_bytes()
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        theirs = int(fields["Uid"].split()[1])
        if not raw or fields["State"].split()[0] in "ZX" or (me and theirs != me):
            continue
        argv = tuple(part.decode(errors="replace") for part in raw.rstrip(b"\0").split(b"\0"))
        inner = tuple(int(p) for p in fields.get("NSpid", entry.name).split())
        yield Process(int(entry.name), int(fields["PPid"]), theirs, inner, argv)


def keeper_processes(state: Path) -> list[Process]:
    """The keeper of the lab in `state` and what still shares its command line, at any stage of its start."""
    marks = {"-m", KEEPER_MODULE, f"--state={state}"}
    # Another user's process of that look must neither be killed nor, worse, be entered by root.
    return [p for p in processes() if p.uid == os.geteuid() and marks <= set(p.argv)]


def keeper_of(state: Path) -> int | None:
    """The pid of the process that is PID 1 of the lab in `state`; None when it has none."""
    found = [p for p in keeper_processes(state) if len(p.inner) > 1 and p.inner[-1] == 1]
    # A node's own PID 1 looks the same for an instant before it becomes tini: the outermost is the keeper.
    return min(found, key=lambda p: len(p.inner)).pid if found else None


def nodes_of(keeper: int) -> dict[str, int]:
    """Node name → pid of its PID 1, for the nodes that live beneath `keeper`."""
    found: dict[str, int] = {}
    for p in processes():
        if p.parent == keeper and p.inner[-1] == 1 and p.argv[0] == NODE_MARK:
            found[p.argv[3]] = p.pid
    return found


def kill_lab(state: Path, timeout: float = 20.0) -> bool:
    """Kill the lab in `state`: with its keeper the kernel ends all it had. True when there was something.

    `TimeoutError` when a process does not end within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    killed = False
    while found := keeper_processes(state):
        killed = True
        for process in found:
            _kill_and_wait(process.pid, deadline)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {[p.pid for p in found]} did not end")
    return killed


def _kill_and_wait(pid: int, deadline: float) -> None:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        # PID 1 of a namespace is reported dead only after all its processes are gone.
        select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
    except OSError:
        pass
    finally:
        os.close(fd)


def kill_session(session: int) -> None:
    """Kill every process of a session; those of the user's subordinate ids too."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _session_of(int(entry)) == session != os.getsid(0):
            with contextlib.suppress(OSError):
                os.kill(int(entry), signal.SIGKILL)


def kill_users_of(directory: Path) -> None:
    """Kill the sessions whose processes have a path below `directory` among their arguments."""
    inside = f"{directory}/"
    for session in {_session_of(p.pid) for p in processes() if any(inside in a for a in p.argv)}:
        if session:
            kill_session(session)


def has_mounted(directory: Path) -> bool:
    """Whether a process of ours lives in a file system that stands on `directory`."""
    for process in processes():
        with contextlib.suppress(OSError):
            if str(directory) in Path(f"/proc/{process.pid}/mountinfo").read_text():
                return True
    return False


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0
