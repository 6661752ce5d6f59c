"""Bring a lab up, look at it, take it down."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcsh.errors import CommandError, NotFoundError, TimedOutError
from hpcsh.lab import cgroups, config, enter, image, paths, procs, requirements
from hpcsh.lab.locks import locked
from hpcsh.lab.progress import Progress

_LOCK_TIMEOUT = 3600.0
_START_TIMEOUT = 120.0
_READY_TIMEOUT = 120.0


class Lab:
    """One lab, by name; nothing is touched before a method is called."""

    def __init__(self, name: str = paths.DEFAULT) -> None:
        self.name = name
        self.state = paths.lab_dir(name)

    @contextlib.contextmanager
    def _locked(self, progress: Progress) -> Iterator[None]:
        with locked(self.state.with_name(f"{self.name}.lock"), progress, f"lab {self.name}", _LOCK_TIMEOUT):
            yield

    def up(self, progress: Progress, nodes: int | None = None) -> bool:
        """Have the lab running with `nodes` compute nodes (None: as many as before, or 3).

        Blocks until all are idle or busy with jobs. False when it already was so and nothing was done.
        """
        if nodes is not None:
            config.node_names(nodes)
        requirements.check(build=not image.is_built())
        with self._locked(progress):
            wanted = self._wanted(nodes)
            if self._keeper() is not None:
                if wanted.nodes == self.settings().nodes and self._is_healthy():
                    return False
                progress.line("  the lab is up, but not whole or not as wanted: starting it again")
                self._down(progress)
            self._settle()
            built = image.ensure(progress)
            with self._undone_on_failure(progress):
                self._start(built, wanted, progress)
                with progress.step("all nodes ready"):
                    self._wait_ready()
                self._mark_ready()
        return True

    def down(self, progress: Progress) -> bool:
        """End the lab: its services first, then all that is left. False when there was nothing to end."""
        with self._locked(progress):
            return self._down(progress)

    def remove(self, progress: Progress) -> bool:
        """End the lab and delete all it stored. False when there was no such lab."""
        with self._locked(progress):
            ended = self._down(progress)
            existed = self.state.is_dir()
            if existed:
                image.remove_tree(self.state)
            self.state.with_name(f"{self.name}.lock").unlink(missing_ok=True)
        return ended or existed

    def settings(self) -> config.Settings:
        """What the lab was last started with; defaults when it never was."""
        try:
            found = json.loads((self.state / "settings.json").read_text())
            return config.Settings(self.name, int(found["nodes"]), int(found["port"]))
        except (OSError, ValueError, KeyError, TypeError):
            return config.Settings(self.name)

    def nodes(self) -> dict[str, int]:
        """Node name → pid of its first process, login first; empty when the lab is down."""
        keeper = self._keeper()
        found = procs.nodes_of(keeper) if keeper is not None else {}
        return dict(sorted(found.items(), key=lambda item: (item[0] != "login", len(item[0]), item[0])))

    def run(self, node: str, argv: list[str], user: str) -> int:
        """Run a program on a node with this process's terminal or pipes; its exit code."""
        return enter.run(self._node(node), argv, user=user)

    def capture(
        self, node: str, argv: list[str], *, user: str = "root", timeout: float = 20.0
    ) -> enter.Output:
        """Run a program on a node and collect its output, at most `timeout` seconds."""
        return enter.capture(self._node(node), argv, user=user, timeout=timeout)

    def slurm_states(self, timeout: float = 5.0) -> dict[str, str]:
        """Compute node → Slurm's state of it; empty when the controller does not answer."""
        command = ["timeout", str(timeout), "sinfo", "-h", "-N", "-p", "debug", "-o", "%N %T"]
        answer = self.capture("login", command, timeout=timeout + 2)
        if answer.code:
            return {}
        return dict(line.split(None, 1) for line in answer.out.splitlines() if len(line.split(None, 1)) == 2)

    def facts(self) -> dict[str, Any]:
        """What the keeper and `up` recorded about the running lab."""
        return paths.read_record(self.name)

    def _node(self, name: str) -> int:
        nodes = self.nodes()
        if not nodes:
            raise NotFoundError(f"Lab {self.name} is not up.", fix=f"hpcsh lab up {self.name}")
        return enter.node_pid(nodes, name)

    def _keeper(self) -> int | None:
        return procs.keeper_of(self.state)

    def _wanted(self, nodes: int | None) -> config.Settings:
        settings = self.settings()
        return settings if nodes is None else replace(settings, nodes=nodes)

    def _is_healthy(self) -> bool:
        if set(self.nodes()) != set(config.all_nodes(self.settings().nodes)):
            return False
        return paths.is_up(self.name) and self._all_ready(self.slurm_states())

    def _all_ready(self, states: dict[str, str]) -> bool:
        """Drained nodes count: somebody wanted them so. Marks such as `*` say that a node does not answer."""
        good = {"idle", "mixed", "allocated", "completing", "drained", "draining", "reserved", "planned"}
        wanted = config.node_names(self.settings().nodes)
        return all(states.get(n, "").rstrip("+-") in good for n in wanted)

    @contextlib.contextmanager
    def _undone_on_failure(self, progress: Progress) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                self._down(progress)
            raise

    def _settle(self) -> None:
        """Make sure that nothing of a former run is left, and that the state directory is there."""
        procs.kill_lab(self.state)
        cgroups.remove(self.state)
        for directory in (self.state.parent, self.state):
            directory.mkdir(parents=True, exist_ok=True)
        # Inside are the homes, which the lab's own users must reach; the key has its own mode.
        self.state.chmod(0o755)

    def _start(self, built: image.Image, wanted: config.Settings, progress: Progress) -> None:
        read, write = os.pipe()
        command = [
            sys.executable, "-m", procs.KEEPER_MODULE, f"--state={self.state}", f"--rootfs={built.rootfs}",
            f"--registry={built.registry}", f"--nodes={wanted.nodes}", f"--port={wanted.port}",
            f"--report={write}",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        with (self.state / "keeper.log").open("w") as log:
            starter = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[write],
                start_new_session=True, env=environment,
            )  # fmt: skip
        os.close(write)
        can = self._follow(read, starter, progress)
        notices = [*built.notices, *can.pop("notices")]
        record = {**self.facts(), "can": can, "image": built.key, "notices": notices}
        self._write("keeper.json", record)
        self._write("settings.json", {"nodes": wanted.nodes, "port": record["port"]})

    def _follow(self, read: int, starter: subprocess.Popen[bytes], progress: Progress) -> dict[str, Any]:
        """Show the keeper's steps until it has started all nodes; what it found it can do."""
        can: dict[str, Any] = {"notices": []}
        deadline = time.monotonic() + _START_TIMEOUT
        with open(read, "rb", buffering=0) as reports:
            for message in _lines(reports.fileno(), deadline):
                if "error" in message:
                    raise CommandError(
                        "The lab did not start.", why=message["error"], fix=f"see {self.state}/keeper.log"
                    )
                can.update(message.get("can", {}))
                can["notices"] += [message["notice"]] if "notice" in message else []
                progress.done(message["step"], message["seconds"])
        starter.wait(timeout=10)
        if self._keeper() is None:
            why = (self.state / "keeper.log").read_text(errors="replace").strip()[-2000:]
            raise CommandError("The lab's keeper ended while it started.", why=why)
        return can

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT
        states: dict[str, str] = {}
        while time.monotonic() < deadline:
            if self._keeper() is None:
                raise CommandError("The lab ended while it started.", fix=f"see {self.state}/keeper.log")
            states = self.slurm_states()
            if self._all_ready(states):
                return
            time.sleep(0.1)
        raise TimedOutError(
            f"The nodes did not become ready within {_READY_TIMEOUT:.0f} s.",
            why=f"Slurm says: {states or 'nothing'}",
            fix=f"hpcsh lab logs slurmctld --lab {self.name}",
        )

    def _mark_ready(self) -> None:
        self._write("keeper.json", {**self.facts(), "ready": True})

    def _write(self, name: str, data: dict[str, Any]) -> None:
        part = self.state / f".{name}.part"
        part.write_text(json.dumps(data))
        part.rename(self.state / name)

    def _down(self, progress: Progress) -> bool:
        if self.state.is_dir() and (record := self.facts()).pop("ready", None):
            self._write("keeper.json", record)
        keeper = self._keeper()
        login = procs.nodes_of(keeper).get("login") if keeper is not None else None
        if login is not None:
            with progress.step("services stopped"), contextlib.suppress(OSError):
                enter.capture(login, ["/usr/lib/hpcsh-lab/stop"], timeout=8)
        try:
            ended = procs.kill_lab(self.state)
        except TimeoutError as e:
            raise TimedOutError(f"Lab {self.name} does not end.", why=str(e)) from None
        had_groups = bool(cgroups.present(self.state))
        if left := cgroups.remove(self.state):
            raise CommandError(f"These cgroups could not be removed: {', '.join(map(str, left))}")
        return ended or had_groups


def _lines(fd: int, deadline: float) -> Iterator[dict[str, Any]]:
    """JSON lines from `fd` until its end; `TimedOutError` at `deadline`."""
    buffer = b""
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimedOutError(f"The lab did not start within {_START_TIMEOUT:.0f} s.")
        data = os.read(fd, 65536)
        if not data:
            return
        *complete, buffer = (buffer + data).split(b"\n")
        yield from (json.loads(line) for line in complete)
