"""Sessions of the pmix engine on the lab; each is new, as after a crash of the one before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hpcsh.boundary.ssh import SSHBoundary
from hpcsh.engines.context import Context
from hpcsh.engines.pmix import Pmix
from hpcsh.errors import HpcshError
from hpcsh.model import LaunchSpec, Progress, Resources, UpSpec, Workload

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "mpi"
IMAGE = "docker://login:5000/mpi:latest"
NODES = ("n1", "n2", "n3")


@dataclass
class Ran:
    """What a launch gave."""

    out: bytes = b""
    err: bytes = b""
    code: int | None = None
    workload: Workload | None = None
    error: HpcshError | None = None
    chunks: list[bytes] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        return sorted(self.out.decode().split("\n")[:-1])


class Session:
    """An engine on the lab, with what tests do with it."""

    def __init__(self, lab: str, boundary: SSHBoundary, context: Context) -> None:
        self.lab = lab
        self.boundary = boundary
        self.context = context
        self.engine = Pmix(context)

    async def up(self, name: str = "default", **resources: object) -> list[Progress]:
        spec = UpSpec(name=name, resources=Resources(**resources))  # type: ignore[arg-type]
        return [p async for p in self.engine.up(spec)]

    async def down(self, name: str = "default") -> list[Progress]:
        return [p async for p in self.engine.down(name)]

    async def launch(
        self, tool: str, program: Sequence[str], options: Sequence[str] = (), **more: object
    ) -> Ran:
        spec = LaunchSpec(tool=tool, options=tuple(options), program=tuple(program), **more)  # type: ignore[arg-type]
        ran = Ran()
        try:
            async with aclosing(self.engine.launch(spec)) as frames:  # type: ignore[type-var]
                async for frame in frames:
                    ran.out += frame.data if frame.stream == 1 else b""
                    ran.err += frame.data if frame.stream == 2 else b""
                    ran.workload = frame.workload or ran.workload
                    ran.code = frame.exit_code if frame.exit_code is not None else ran.code
        except HpcshError as error:
            ran.error = error
        return ran

    async def cancelled(
        self, tool: str, program: Sequence[str], options: Sequence[str], when: Callable[[bytes], bool],
        **more: object,
    ) -> None:  # fmt: skip
        """Launch, and close the iterator when its output so far is as wanted."""
        spec = LaunchSpec(tool=tool, options=tuple(options), program=tuple(program), **more)  # type: ignore[arg-type]
        out = b""
        async with aclosing(self.engine.launch(spec)) as frames:  # type: ignore[type-var]
            async for frame in frames:
                out += frame.data if frame.stream == 1 else b""
                if when(out):
                    return
        pytest.fail(f"the launch ended by itself: {out!r}")


def on(lab: str, node: str, script: str, user: str = "root") -> str:
    """A shell's output on a node, from outside: by the lab, not by what is tested."""
    argv = [sys.executable, "-m", "hpcsh.lab", "exec", "--lab", lab, "--user", user, node]
    done = subprocess.run(
        [*argv, "--", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout


def processes(lab: str, pattern: str) -> list[str]:
    """The lab users' processes on all compute nodes whose command line matches, each with its node."""
    found = []
    for node in NODES:
        listed = on(lab, node, "ps -eo user:20,pid,args")
        rows = [line for line in listed.splitlines() if line.startswith("alice")]
        found += [f"{node}: {row}" for row in rows if pattern in row]
    return found


Open = Callable[[], AbstractAsyncContextManager[Session]]
