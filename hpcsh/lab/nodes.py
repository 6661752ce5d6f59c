"""Bring one node up: its namespaces, its file systems, and the first process in it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpcsh.lab import cgroups, config, kernel
from hpcsh.lab.layer import escaped, overlay_options
from hpcsh.lab.procs import NODE_MARK

_NAMESPACES = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWPID | kernel.CLONE_NEWCGROUP
)  # fmt: skip
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_NVIDIA, _MISC, _FUSE, _TUN = 195, 10, 229, 200


@dataclass(frozen=True)
class Plan:
    """What all nodes of a lab share."""

    state: Path
    lowers: tuple[Path, ...]
    can: config.Abilities


@dataclass(frozen=True)
class Node:
    """A node whose first process waits until it is released."""

    name: str
    pid: int  # as the keeper sees it
    gate: int

    def release(self) -> None:
        """Let the node start its services; its network card must be there by now."""
        os.write(self.gate, b"1")
        os.close(self.gate)


def launch(plan: Plan, name: str) -> Node:
    """Make the namespaces of node `name`; called by the keeper while it has one thread only."""
    pid_r, pid_w = os.pipe()
    gate_r, gate_w = os.pipe()
    between = os.fork()
    if between == 0:
        with _ending_in(plan, name):
            os.close(gate_w)
            if plan.can.cgroups:
                cgroups.make(plan.state, name)
            kernel.unshare(_NAMESPACES)
            child = os.fork()
            if child:
                os.write(pid_w, str(child).encode())
                os._exit(0)
            _boot(plan, name, gate_r)
    os.close(pid_w)
    os.close(gate_r)
    answer = os.read(pid_r, 20)
    os.close(pid_r)
    os.waitpid(between, 0)
    if not answer:
        raise OSError(f"node {name} did not start: {boot_log(plan.state, name).read_text().strip()}")
    return Node(name, int(answer), gate_w)


def boot_log(state: Path, name: str) -> Path:
    """Where a node's first process and what it starts write."""
    return state / "nodes" / name / "boot.log"


@contextmanager
def _ending_in(plan: Plan, name: str) -> Iterator[None]:
    """A forked child never returns into the keeper's frames; what went wrong is in the node's log."""
    try:
        log = os.open(boot_log(plan.state, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        yield
    except BaseException as e:
        os.write(2, f"{type(e).__name__}: {e}\n".encode())
    finally:
        os._exit(1)


def _boot(plan: Plan, name: str, gate: int) -> None:
    os.setsid()
    kernel.sethostname(name)
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    home = plan.state / "nodes" / name
    root = home / "root"
    lower = ":".join(escaped(p) for p in plan.lowers)
    kernel.mount("overlay", root, "overlay", 0, overlay_options(lower, home / "upper", home / "work"))
    kernel.bind(plan.state / "home", root / "home")
    kernel.mount("proc", root / "proc", "proc", kernel.MS_PLAIN)
    kernel.mount("sysfs", root / "sys", "sysfs", kernel.MS_PLAIN)
    _mount_cgroups(root / "sys/fs/cgroup", plan)
    _mount_devices(root / "dev")
    kernel.mount("run", root / "run", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
    (root / "etc/hostname").write_text(f"{name}\n")
    os.chdir(root)
    kernel.pivot_root(".", "mnt")
    os.chdir("/")
    kernel.unmount("/mnt")
    # As on a booted machine; podman asks for it.
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_SHARED)
    os.read(gate, 1)
    command = ["/usr/lib/hpcsh-lab/node", name, config.address(name)]
    os.execve("/usr/bin/tini", [NODE_MARK, "--", *command], _ENVIRONMENT)


def _mount_cgroups(at: Path, plan: Plan) -> None:
    kernel.mount("cgroup", at, "tmpfs", kernel.MS_PLAIN, "mode=755")
    if not plan.can.cgroups:
        return
    for hierarchy in cgroups.hierarchies():
        (at / hierarchy.name).mkdir()
        options = f"none,{hierarchy.options}" if hierarchy.options.startswith("name=") else hierarchy.options
        # Seen from the node's cgroup namespace the mount begins at the node's own directory.
        kernel.mount("cgroup", at / hierarchy.name, "cgroup", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        # Controllers that share a hierarchy are looked for under each one's name.
        for controller in hierarchy.options.split(","):
            if "=" not in controller and controller != hierarchy.name:
                (at / controller).symlink_to(hierarchy.name)


def _mount_devices(dev: Path) -> None:
    kernel.mount("dev", dev, "tmpfs", kernel.MS_NOSUID, "mode=755")
    for name in ("pts", "shm", "net", "mqueue"):
        (dev / name).mkdir()
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        _bind_device(Path("/dev", name), dev / name)
    _device(dev / "fuse", _MISC, _FUSE, Path("/dev/fuse"))
    _device(dev / "net/tun", _MISC, _TUN, Path("/dev/net/tun"))
    for i in range(config.GPUS):
        # No card stands behind them; in a user namespace they are another name of /dev/null.
        _device(dev / f"nvidia{i}", _NVIDIA, i, Path("/dev/null"))
    kernel.mount("devpts", dev / "pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=620,gid=5")
    kernel.mount("shm", dev / "shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=1777")
    kernel.mount("mqueue", dev / "mqueue", "mqueue")
    for name, target in {
        "ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0",
        "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
    }.items():  # fmt: skip
        (dev / name).symlink_to(target)


def fuse_works(scratch: Path) -> bool:
    """Whether the nodes' ordinary users can open /dev/fuse; `scratch` is a directory to try in."""
    device = Path("/dev/fuse")
    try:
        os.mknod(scratch / ".fuse", 0o600 | stat.S_IFCHR, os.makedev(_MISC, _FUSE))
    except OSError:
        return device.exists() and device.stat().st_mode & 0o006 == 0o006
    (scratch / ".fuse").unlink()
    return device.exists() or "\tfuse\n" in Path("/proc/filesystems").read_text()


def _bind_device(source: Path, target: Path) -> None:
    target.touch()
    kernel.bind(source, target)


def _device(target: Path, major: int, minor: int, instead: Path) -> None:
    """A device node for everybody; where none can be made, the machine's `instead` under that name."""
    try:
        os.mknod(target, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
        target.chmod(0o666)
    except OSError:
        with contextlib.suppress(OSError):
            _bind_device(instead, target)
