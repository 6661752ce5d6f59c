"""The layer between the image and the nodes' own changes: this lab's configuration, keys and homes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from importlib import resources
from pathlib import Path
from typing import IO

from hpcsh.lab import config, kernel, userns

TREE = Path(str(resources.files("hpcsh.lab"))) / "files/node"
"""The files that every node of every lab has; some are templates."""
_EXECUTABLE = "usr/lib/hpcsh-lab"


def accounts(rootfs: Path) -> dict[str, tuple[int, int]]:
    """Login name → (uid, gid) of the image's users."""
    lines = (line.split(":") for line in (rootfs / "etc/passwd").read_text().splitlines())
    return {f[0]: (int(f[2]), int(f[3])) for f in lines if len(f) > 3}


def write(state: Path, rootfs: Path, settings: config.Settings, can: config.Abilities) -> None:
    """Write the configuration of the lab in `state` and make its keys and homes where they are missing.

    Runs as the root of the lab's namespaces, in a mount namespace of its own, before any node is mounted.
    """
    layer = state / "layer"
    for source in sorted(p for p in TREE.rglob("*") if p.is_file()):
        path = str(source.relative_to(TREE))
        _put(layer, path, source.read_bytes(), 0o755 if path.startswith(_EXECUTABLE) else 0o644)
    made = config.files(settings, can)
    for path, text in made.items():
        _put(layer, path, text.encode(), 0o755 if text.startswith("#!") else 0o644)
    if "usr/local/bin/apptainer" not in made:
        (layer / "usr/local/bin/apptainer").unlink(missing_ok=True)
    # slurmdbd refuses a configuration that others can read.
    secret = layer / "etc/slurm/slurmdbd.conf"
    secret.chmod(0o600)
    os.chown(secret, *accounts(rootfs)["slurm"])
    if not (layer / "etc/munge/munge.key").exists() or not (layer / "etc/hpcsh-lab/id_ed25519").exists():
        _prepare(state, rootfs)
    host_key = (layer / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    _put(layer, "etc/ssh/ssh_known_hosts", config.ssh_known_hosts(host_key, settings.nodes).encode(), 0o644)
    _hand_out(state, host_key, settings)


def _put(layer: Path, path: str, data: bytes, mode: int) -> None:
    target = layer / path
    _make_parents(layer, target.parent)
    target.unlink(missing_ok=True)
    target.write_bytes(data)
    target.chmod(mode)


def _make_parents(layer: Path, directory: Path) -> None:
    """Directories of the layer give their mode to the merged tree, whatever this process's umask is."""
    missing = [d for d in (directory, *directory.parents) if d.is_relative_to(layer) and not d.exists()]
    for d in reversed(missing):
        d.mkdir()
        d.chmod(0o755)


def overlay_options(lower: str, upper: Path, work: Path) -> str:
    """Mount options of an overlay; in a user namespace the marks are kept in `user.` attributes."""
    options = f"lowerdir={lower},upperdir={escaped(upper)},workdir={escaped(work)}"
    return options if userns.is_initial() else f"{options},userxattr"


def escaped(path: Path) -> str:
    """A path as overlay's mount options want it."""
    return str(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _prepare(state: Path, rootfs: Path) -> None:
    """Run the image's own tools over the image, in memory, and keep what they wrote."""
    scratch, layer = state / "scratch", state / "layer"
    scratch.mkdir(exist_ok=True)
    kernel.mount("scratch", scratch, "tmpfs", 0, "mode=755")
    merged, upper, work = (scratch / d for d in ("merged", "upper", "work"))
    for d in (merged, upper, work):
        d.mkdir()
    lower = f"{escaped(layer)}:{escaped(rootfs)}"
    kernel.mount("overlay", merged, "overlay", 0, overlay_options(lower, upper, work))
    try:
        kernel.bind(state / "home", merged / "home")
        kernel.mount("tmpfs", merged / "dev", "tmpfs", 0, "mode=755")
        for device in ("null", "urandom", "random", "zero"):
            (merged / "dev" / device).touch()
            kernel.bind(f"/dev/{device}", merged / "dev" / device)
        in_root(merged, ["/usr/lib/hpcsh-lab/prepare"], timeout=60)
        _copy_owned(upper, layer)
    finally:
        kernel.unmount(scratch)
    scratch.rmdir()


def _copy_owned(source: Path, target: Path) -> None:
    """Copy what is a file or a directory, with owner and mode."""
    for entry in sorted(source.rglob("*")):
        info, copy = entry.lstat(), target / entry.relative_to(source)
        if stat.S_ISDIR(info.st_mode):
            copy.mkdir(exist_ok=True)
        elif stat.S_ISREG(info.st_mode):
            shutil.copyfile(entry, copy)
        else:
            continue
        os.chown(copy, info.st_uid, info.st_gid)
        copy.chmod(stat.S_IMODE(info.st_mode))


def in_root(
    root: Path, argv: list[str], *, timeout: float, stdin: str = "", out: IO[str] | None = None
) -> None:
    """Run a program of the tree `root` chrooted into it; `CalledProcessError` when it fails."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

    def enter() -> None:
        os.chroot(root)
        os.chdir("/")

    subprocess.run(
        argv, check=True, timeout=timeout, input=stdin, text=True, env=environment, preexec_fn=enter,
        stdout=out, stderr=out,
    )  # fmt: skip


def _hand_out(state: Path, host_key: str, settings: config.Settings) -> None:
    """Give the user of the machine his key, the host's key and a client configuration."""
    made = {
        "id_ed25519": ((state / "layer/etc/hpcsh-lab/id_ed25519").read_text(), 0o600),
        "known_hosts": (config.outside_known_hosts(host_key, settings.name, settings.port), 0o644),
        "ssh_config": (config.ssh_client_config(settings.name, settings.port, state), 0o644),
    }
    for name, (text, mode) in made.items():
        part = state / f".{name}.part"
        part.unlink(missing_ok=True)
        part.touch(mode=0o600)
        part.write_text(text)
        part.chmod(mode)
        part.rename(state / name)
