"""The one process of a lab that lives on the machine: PID 1 of a pid namespace that holds everything else.

When it ends, by whatever signal, the kernel ends every process beneath it, and with them go their mounts,
network and namespaces. So `lab down` has nothing to forget. It is started as `python -m hpcsh.lab.keeper`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from hpcsh.lab import cgroups, config, forward, kernel, layer, nodes, paths, userns


def main(argv: list[str]) -> int:
    """Make the outer namespaces, leave their PID 1 behind, and end."""
    parser = argparse.ArgumentParser(prog="hpcsh.lab.keeper")
    for name in ("state", "rootfs", "registry"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("nodes", "port", "report"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args(argv)
    report = _Report(options.report)
    os.umask(0o022)
    os.chdir("/")
    try:
        listener = forward.listen(options.port)
        settings = config.Settings(options.state.name, options.nodes, listener.getsockname()[1])
        if os.geteuid() != 0:
            userns.enter()
        kernel.unshare(
            kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWPID
            | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
        )  # fmt: skip
        wait_r, wait_w = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(wait_w)
            os.read(wait_r, 1)
            _keep(options, settings, listener, report)
        _write_record(options.state, settings, child)
    except OSError as e:
        report.failed(e)
        return 1
    return 0


class _Report:
    """JSON lines to the `lab up` that waits for this keeper."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._since = time.monotonic()
        os.set_inheritable(fd, False)

    def step(self, what: str, **facts: Any) -> None:
        now = time.monotonic()
        self._send({"step": what, "seconds": now - self._since, **facts})
        self._since = now

    def failed(self, error: BaseException) -> None:
        self._send({"error": f"{type(error).__name__}: {error}"})

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _send(self, message: dict[str, Any]) -> None:
        # Whoever waited may be gone; the lab comes up all the same.
        with contextlib.suppress(OSError):
            os.write(self._fd, json.dumps(message).encode() + b"\n")


def _write_record(state: Path, settings: config.Settings, child: int) -> None:
    record = {
        "pid": child, "start": paths.start_time(child), "boot": paths.boot_id(),
        "since": int(time.time()), **settings.as_json(),
    }  # fmt: skip
    part = state / ".keeper.json.part"
    part.write_text(json.dumps(record))
    part.rename(state / "keeper.json")


def _keep(
    options: argparse.Namespace, settings: config.Settings, listener: socket.socket, report: _Report
) -> NoReturn:
    """The life of the keeper."""
    try:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        can = _arrange(options.state, options.rootfs, report)
        layer.write(options.state, options.rootfs, settings, can)
        report.step("configuration", can=vars(can))
        _start_nodes(options, settings, can)
        report.step("nodes")
        forward.serve(listener, (config.address("login"), 22))
        report.close()
    except BaseException as e:
        report.failed(e)
        print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
        os._exit(1)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(1)


def _arrange(state: Path, rootfs: Path, report: _Report) -> config.Abilities:
    """Cut this mount namespace off and find out what can be done in it."""
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("proc", "/proc", "proc", kernel.MS_PLAIN)
    for directory in ("layer", "home", "nodes", "nodes/test"):
        (state / directory).mkdir(exist_ok=True)
        (state / directory).chmod(0o755)
    test = state / "nodes/test"
    for name in ("upper", "work", "root"):
        (test / name).mkdir(exist_ok=True)
    options = layer.overlay_options(layer.escaped(rootfs), test / "upper", test / "work")
    try:
        kernel.mount("overlay", test / "root", "overlay", 0, options)
        kernel.unmount(test / "root")
    except OSError as e:
        # An overlay cannot stand on every file system, least of all on another overlay.
        kernel.mount("nodes", state / "nodes", "tmpfs", 0, "mode=755")
        report.step("memory for nodes", notice=f"the nodes' changes are kept in memory: {e}")
    return config.Abilities(
        cgroups=cgroups.usable() and userns.is_initial(),
        gpus=True,
        fuse=nodes.fuse_works(state),
        ids=userns.id_count(),
    )


def _start_nodes(options: argparse.Namespace, settings: config.Settings, can: config.Abilities) -> None:
    names = config.all_nodes(settings.nodes)
    for name in names:
        for part in ("upper", "work", "root"):
            directory = options.state / "nodes" / name / part
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o755)
    base = (options.state / "layer", options.rootfs)
    with_registry = (base[0], options.registry, base[1]) if options.registry.is_dir() else base
    started = []
    for name in names:
        plan = nodes.Plan(options.state, with_registry if name == "login" else base, can)
        started.append(nodes.launch(plan, name))
    batch = ["link set lo up", "link add br0 type bridge"]
    batch += [f"addr add {config.BRIDGE}/24 dev br0", "link set br0 up"]
    for i, node in enumerate(started):
        batch.append(f"link add v{i} type veth peer name eth0 netns {node.pid}")
        batch.append(f"link set v{i} master br0 up")
    # `ip` looks a network namespace up in /proc. It is the image's, for the machine need not have one.
    kernel.mount("proc", options.rootfs / "proc", "proc", kernel.MS_PLAIN)
    layer.in_root(options.rootfs, ["ip", "-batch", "-"], timeout=30, stdin="\n".join(batch) + "\n")
    for node in started:
        node.release()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
