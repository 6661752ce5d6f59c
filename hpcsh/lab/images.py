"""The container images in the lab's registry: made from Debian packages, once, on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcsh.errors import CommandError
from hpcsh.lab import build, kernel, layer, oci, paths, recipe, userns
from hpcsh.lab.progress import Progress

_PATH = "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_BASE = ("base-files", "base-passwd", "busybox-static")
_WITHOUT = (
    "dev/", "etc/hostname", "etc/resolv.conf", "etc/fstab", "etc/apt/", "var/lib/dpkg/", "var/lib/apt/",
    "var/cache/", "usr/share/common-licenses/",
)  # fmt: skip
_DIRECTORIES = {"dev": 0o755, "etc": 0o755, "proc": 0o755, "sys": 0o755, "root": 0o700, "tmp": 0o1777}
# A graphics stack of 240 MB that hwloc's plugins depend on; MPI runs without it.
_GRAPHICS = ("libLLVM*", "libamd*", "libhsa-*", "libz3.*", "ucx/*rocm*", "hwloc/*")
_MCA = "etc/openmpi/openmpi-mca-params.conf"  # an image knows the site's network as the nodes do
_VERSION = 1  # of this module's way to make them
_ENTRY = b"""#!/bin/sh
echo "entrypoint: $* (GREETING=$GREETING, in $(pwd))"
exec "$@"
"""


@dataclass(frozen=True)
class Recipe:
    """An image: Debian packages (none: busybox alone), files to add, and its OCI configuration."""

    packages: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    "busybox": Recipe(config={"Env": [_PATH], "Cmd": ["sh"]}),
    "entrypoint": Recipe(
        files={"bin/entry": _ENTRY},
        config={
            "Env": [_PATH, "GREETING=hello"], "Entrypoint": ["/bin/entry"], "Cmd": ["echo", "default"],
            "WorkingDir": "/work", "Labels": {"org.hpcsh.lab": "entrypoint"},
        },
    ),
    "python": Recipe(
        packages=("python3-minimal",),
        links={"usr/bin/python": "python3"},
        config={"Env": [_PATH, "LANG=C.UTF-8"], "Cmd": ["python3"]},
    ),
    "mpi": Recipe(
        packages=("openmpi-bin", "libc-bin"),
        files={_MCA: (layer.TREE / _MCA).read_bytes()},
        links={f"usr/bin/{n}": f"{n}.openmpi" for n in ("mpirun", "mpiexec")},
        config={"Env": [_PATH, "LANG=C.UTF-8"], "Cmd": ["sh"]},
    ),
}  # fmt: skip


def key() -> str:
    """Changes whenever an image would."""
    return hashlib.sha256(f"{_VERSION} {recipe.SUITE} {RECIPES!r}".encode()).hexdigest()[:12]


def directory() -> Path | None:
    """Where the finished images are: `NAME.tar` (OCI archives) and `registry/`; None when not made yet."""
    for root in paths.cache_roots():
        candidate = root / f"images-{key()}"
        if os.access(candidate / "registry", os.R_OK | os.X_OK):
            return candidate
    return None


def own_registry() -> Path | None:
    """The registry's storage as files of this user's, ready to be a layer of the login node."""
    candidate = paths.cache_root() / f"images-{key()}" / "registry"
    return candidate if candidate.is_dir() else None


def make(rootfs: Path, progress: Progress) -> None:
    """Make `own_registry()`; the caller holds the cache's lock."""
    home = paths.cache_root() / f"images-{key()}"
    part = home.with_name(f"{home.name}.part")
    part.mkdir(parents=True)
    part.chmod(0o755)
    if (made := directory()) is not None:
        # The system's images will do, but files of another user cannot be changed inside the lab.
        shutil.copytree(made / "registry", part / "registry", symlinks=True)
    else:
        for name, one in RECIPES.items():
            with progress.step(f"image {name}"):
                _make_one(name, one, rootfs, part, progress)
        with progress.step("image registry"):
            _fill_registry(rootfs, part)
    part.rename(home)


def _make_one(name: str, one: Recipe, rootfs: Path, part: Path, progress: Progress) -> None:
    made = oci.Layer(part / f"{name}.layer.gz")
    bin_directory = "bin"
    if one.packages:
        tree = part / f"{name}.tree.tar"
        command = recipe.mmdebstrap(tree, variant="extract", include=(*_BASE, *one.packages))
        excluded = [f"--dpkgopt=path-exclude=/usr/lib/*/{pattern}" for pattern in _GRAPHICS]
        build.run([*command[:1], *excluded, *command[1:]], part / f"{name}.log", progress)
        made.tree(tree, (*_WITHOUT, *(f for f in one.files)))
        tree.unlink()
        bin_directory = "usr/bin"
    else:
        made.directory("bin")
        made.file("bin/busybox", (rootfs / "usr/bin/busybox").read_bytes(), 0o755)
    for d, mode in _DIRECTORIES.items():
        made.directory(d, mode)
    for path, data in one.files.items():
        made.file(path, data, 0o755 if data.startswith(b"#!") else 0o644)
    for path, target in one.links.items():
        made.link(path, target)
    if work := one.config.get("WorkingDir"):
        made.directory(work.strip("/"))
    _complete(made, rootfs, bin_directory)
    oci.write_archive(part / f"{name}.tar", made.path, made.close(), one.config)
    made.path.unlink()


def _complete(made: oci.Layer, rootfs: Path, bin_directory: str) -> None:
    """What every program expects: a shell with the usual tools, and names for the users."""
    busybox = rootfs / "usr/bin/busybox"
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True, timeout=10)
    for applet in listed.stdout.split():
        if not made.has(f"usr/sbin/{applet}"):
            made.link(f"{bin_directory}/{applet}", "busybox")
    made.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    made.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")


def _fill_registry(rootfs: Path, part: Path) -> None:
    """Push the images into a registry that runs for this, so that the lab begins with its storage."""
    storage, merged = part / "registry/var/lib/docker-registry", part / "merged"
    for d in (storage, merged, part / "upper", part / "work"):
        d.mkdir(parents=True)
    script = recipe.build_file("fill-registry").read_text()
    log = part / "registry.log"

    def fill() -> None:
        options = layer.overlay_options(layer.escaped(rootfs), part / "upper", part / "work")
        kernel.mount("overlay", merged, "overlay", 0, options)
        kernel.bind(storage, merged / "var/lib/docker-registry")
        kernel.bind(part, merged / "mnt")
        kernel.mount("tmpfs", merged / "dev", "tmpfs", 0, "mode=755")
        for device in ("null", "urandom"):
            (merged / "dev" / device).touch()
            kernel.bind(f"/dev/{device}", merged / "dev" / device)
        with log.open("w") as out:
            layer.in_root(merged, ["/bin/bash", "-s", *RECIPES], timeout=300, stdin=script, out=out)

    # The script is PID 1 of a namespace: when it ends, so does the registry that it started.
    spaces = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWPID
    if not userns.call_as_root(fill, extra=spaces):
        raise CommandError("The image registry was not filled.", why=log.read_text()[-2000:])
    for scratch in ("upper", "work"):
        shutil.rmtree(part / scratch, ignore_errors=True)
    merged.rmdir()
