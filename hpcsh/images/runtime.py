"""How a container is started: the argv of apptainer or podman and the environment they need. Pure.

Seen to work with apptainer 1.4 and podman 5.4 of Debian 13. A container of a pod is
isolated as a Kubernetes container is, except that the network is the node's and the user is the job's; a
rank of an MPI program shares all that PMIx and shared memory need.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpcsh.errors import UsageError
from hpcsh.model import Image

RC_TARGET = "/.singularity.d/env/zz-hpcsh.sh"
_BY_FILE = frozenset({"HOME", "LD_LIBRARY_PATH", "PREPEND_PATH", "APPEND_PATH"})
"""Variables that apptainer would refuse or change when they come as APPTAINERENV_NAME."""
_OF_PODMAN = (
    "PATH", "HOME", "TMPDIR", "LD_", "XDG_", "CONTAINER", "STORAGE_", "REGISTRY_", "DBUS_", "NOTIFY_SOCKET",
    "BASH", "UID", "EUID", "PPID", "SHELLOPTS", "GOTRACEBACK", "IFS",
)  # fmt: skip
"""Variables that podman itself, or the shell that starts it, would obey."""
FUSE_CHECK = "(exec 3<>/dev/fuse) 2>/dev/null || export APPTAINER_UNSQUASH=1"


class Bind(msgspec.Struct, frozen=True):
    """A bind mount, absolute on both sides."""

    source: str
    target: str
    read_only: bool = False


class ContainerRun(msgspec.Struct, frozen=True, kw_only=True):
    """A container to start. `scratch` is a directory of the node, `rc` the path of the file of `rc_file`."""

    name: str
    image: Image
    config: Mapping[str, Any] = {}
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    secret_env: frozenset[str] = frozenset()
    binds: tuple[Bind, ...] = ()
    extra_mounts: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    workdir: str = ""
    gpus: str = ""
    read_only_root: bool = False
    scratch: str
    rc: str = ""


def mount_option(bind: Bind) -> str:
    """The value of `--mount`: one record of comma-separated values, so that any path is possible."""
    fields = ["type=bind", f"source={bind.source}", f"destination={bind.target}"]
    fields += ["ro"] if bind.read_only else []
    return ",".join(f'"{f.replace(chr(34), chr(34) * 2)}"' if set(f) & set(',"') else f for f in fields)


def unsettable(run: ContainerRun) -> list[str]:
    """Variables that cannot be set: apptainer's own shell has them read-only."""
    return [n for n, _ in run.env if n in ("UID", "EUID", "GID") and run.image.runtime == "apptainer"]


def _by_file(name: str, value: str) -> bool:
    """True for what does not survive the way through APPTAINERENV_NAME: apptainer's parser drops returns."""
    return name in _BY_FILE or "\r" in value


def needs_rc(run: ContainerRun) -> bool:
    """True when variables have to come from a file that apptainer reads inside the container."""
    return run.image.runtime == "apptainer" and any(_by_file(n, v) for n, v in run.env)


def rc_file(run: ContainerRun) -> bytes:
    """Shell that sets these variables exactly.

    Quoted as `$'…'`: apptainer's shell (mvdan.cc/sh) keeps the backslash of `'it'\\''s'`.
    """
    lines = [f"export {n}=$'{_escaped(v)}'\n" for n, v in run.env if _by_file(n, v)]
    return "".join(lines).encode("utf-8", "surrogateescape")


def _escaped(value: str) -> str:
    value = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return re.sub(r"[\x01-\x1f\x7f]", lambda m: f"\\x{ord(m[0]):02x}", value)


def container_argv(run: ContainerRun) -> list[str]:
    """The command line of a pod's container. Nothing secret is in it unless it is in command or args."""
    return _podman(run) if run.image.runtime == "podman" else _apptainer(run)


def container_env(run: ContainerRun) -> tuple[tuple[str, str], ...]:
    """The environment in which `container_argv` is run, so that the container has exactly `run.env`."""
    if run.image.runtime == "podman":
        return tuple((n, v) for n, v in run.env if not n.startswith(_OF_PODMAN))
    return tuple((f"APPTAINERENV_{n}", v) for n, v in run.env if not _by_file(n, v))


def _apptainer(run: ContainerRun) -> list[str]:
    argv = ["apptainer", "--silent", "exec" if run.command else "run"]
    argv += ["--containall", "--no-eval", "--cleanenv"]
    argv += [] if run.read_only_root else ["--writable-tmpfs"]
    argv += ["--workdir", f"{run.scratch}/work/{run.name}", "--pwd", _workdir(run)]
    argv += {"nvidia": ["--nv"], "amd": ["--rocm"]}.get(run.gpus, [])
    binds = [*run.binds, Bind(run.rc, RC_TARGET, True)] if needs_rc(run) else run.binds
    for bind in binds:
        argv += ["--mount", mount_option(bind)]
    for mount in run.extra_mounts:
        argv += ["--bind", mount]
    argv += [*run.options, run.image.path]
    if (
        not run.command
        and run.config
        and not (run.config.get("Entrypoint") or run.config.get("Cmd") or run.args)
    ):
        raise _nothing_to_run(run)
    return [*argv, *run.command, *run.args]


def _workdir(run: ContainerRun) -> str:
    return run.workdir or str(run.config.get("WorkingDir") or "/")


def _nothing_to_run(run: ContainerRun) -> UsageError:
    return UsageError(
        f"Container {run.name} has no command, and its image has neither ENTRYPOINT nor CMD.",
        fix="add `command:` to the container",
    )


def _podman(run: ContainerRun) -> list[str]:
    if run.options:
        raise UsageError(
            "The annotation slurm-job.vk.io/singularity-options cannot be used with podman.",
            fix="remove it, or use a profile with apptainer",
        )
    argv = [*_podman_base(run.scratch), "run", "--rm", "--name", f"hpcsh-{run.name}"]
    argv += ["--network=host", "--cgroups=disabled", "--userns=keep-id", "--workdir", _workdir(run)]
    argv += ["--read-only"] if run.read_only_root else []
    if run.gpus:
        argv += ["--device", {"nvidia": "nvidia.com/gpu=all", "amd": "/dev/kfd"}[run.gpus]]
    argv += _podman_env(run)
    for bind in run.binds:
        argv += ["--mount", mount_option(bind)]
    for mount in run.extra_mounts:
        argv += ["--volume", mount]
    entry = [*run.command, *run.args] if run.command else _entrypoint(run)
    # `:O` lays a private writable layer over the root file system, which stays as it is.
    return [*argv, "--rootfs", f"{run.image.path}:O", *entry]


def _podman_base(scratch: str) -> list[str]:
    return [
        "podman", "--root", f"{scratch}/podman/storage", "--runroot", f"{scratch}/podman/run",
        "--cgroup-manager=cgroupfs", "--log-level=error",
    ]  # fmt: skip


def _entrypoint(run: ContainerRun) -> list[str]:
    entry = [*(run.config.get("Entrypoint") or []), *(run.args or run.config.get("Cmd") or [])]
    if not entry:
        raise _nothing_to_run(run)
    return [str(word) for word in entry]


def _podman_env(run: ContainerRun) -> list[str]:
    """Names only; podman takes the values from its own environment. What it would obey itself is literal."""
    said = {name for name, _ in run.env}
    options = []
    for pair in run.config.get("Env") or []:
        name = str(pair).partition("=")[0]
        options += [] if name in said else ["--env", str(pair)]
    for name, value in run.env:
        if not name.startswith(_OF_PODMAN):
            options += ["--env", name]
        elif name in run.secret_env:
            raise UsageError(
                f"Container {run.name}: the variable {name} cannot take its value from a Secret with podman.",
                why="The value would stand on a command line.",
            )
        else:
            options += ["--env", f"{name}={value}"]
    return options


_RANK_APPTAINER = (
    FUSE_CHECK + "; image=$1; shift; exec apptainer --silent exec "
    '${PMIX_SERVER_TMPDIR:+--bind "$PMIX_SERVER_TMPDIR"} "$image" "$@"'
)
_RANK_PODMAN = r"""
image=$1; shift
place=${TMPDIR:-/tmp}
[ "$(stat -f -c %T "$place")" != overlayfs ] || place=/dev/shm
scratch=$place/hpcsh-podman-$UID
mkdir -p "$place"
if ! mkdir -m 700 "$scratch" 2>/dev/null && ! [[ -d $scratch && ! -L $scratch && -O $scratch ]]; then
    echo "hpcsh: $scratch cannot be made, or is no directory of $(id -un): remove it, or set TMPDIR" >&2
    exit 126
fi
export XDG_RUNTIME_DIR=$scratch
options=()
while IFS= read -r name; do options+=(--env "$name"); done < <(compgen -e | grep -E '^(PMIX|PRTE|OMPI|SLURM)')
exec podman --root "$scratch/storage" --runroot "$scratch/run" --cgroup-manager=cgroupfs --log-level=error \
    run --rm --network=host --ipc=host --pid=host --userns=keep-id \
    -v /tmp:/tmp -v "$HOME:$HOME" -v "$PWD:$PWD" -w "$PWD" "${options[@]}" --rootfs "$image:O" "$@"
"""


def rank_argv(image: Image | str, program: Sequence[str]) -> list[str]:
    """The argv of one rank of a parallel program inside an image.

    Shares with the node what PMIx, shared memory and the user's files need: /tmp, /dev/shm, the process,
    network and IPC namespaces, the home and the current directory, and the whole environment. `image` is
    an entry of the pool or the path of a SIF file or root file system; `program` arrives word by word.
    """
    path = image if isinstance(image, str) else image.path
    runtime = "podman" if path.endswith(".rootfs") else "apptainer"
    if not isinstance(image, str) and image.runtime:
        runtime = image.runtime
    if runtime == "podman":
        return ["bash", "-c", _RANK_PODMAN, "hpcsh-rank", path, *program]
    return ["sh", "-c", _RANK_APPTAINER, "hpcsh-rank", path, *program]
