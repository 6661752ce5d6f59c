"""The job's script of a pod and the files beside it.

The script holds names and numbers that were checked, and nothing else; all data of the user is in files of
NUL-separated entries (design 6.4). It runs the same under sbatch, under srun or directly on a node with
`HPCSH_DIR` set. Files per container, contract virtual_node 3.1: `init-NAME.out`, `run-NAME.out` (both
streams), `init-NAME.status`, `run-NAME.status` (exit code in decimal).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import jinja2
import msgspec

from hpcsh.pods.plan import ContainerPlan, PodPlan
from hpcsh.pods.volumes import PodFile

BACKOFF = 10
BACKOFF_LIMIT = 300
"""Seconds before a container is started again, doubled each time up to the limit, as in Kubernetes."""


class Launch(msgspec.Struct, frozen=True):
    """How a container is started: the runtime's argv and the environment it needs, exactly."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    files: tuple[PodFile, ...] = ()
    warnings: tuple[str, ...] = ()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hpcsh.pods"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        comment_start_string="<#",  # ${#name} is bash
        comment_end_string="#>",
    )
    return environment.get_template("pod.sh.j2")


def script(
    plan: PodPlan, *, layers: bool = False, backoff: int = BACKOFF, backoff_limit: int = BACKOFF_LIMIT
) -> str:
    """The script's text. It depends on names, counts and policies only.

    `layers`: the runtime keeps writable layers in `local/podman`.
    """
    return _template().render(
        grace=int(plan.grace),
        backoff=int(backoff),
        backoff_limit=int(backoff_limit),
        layers=layers,
        memory=any(d.startswith("local/memory/") for d in plan.directories),
        directories=bool(plan.directories),
        placeholders=bool(plan.placeholders),
        host_paths=bool(plan.host_paths),
        pre_exec=bool(plan.pre_exec),
        init=[c for c in plan.containers if c.init],
        main=[c for c in plan.containers if not c.init],
    )


def files(plan: PodPlan, launches: Mapping[str, Launch]) -> tuple[PodFile, ...]:
    """Every file of the pod; `launches` says for each container how it is started."""
    out = list(plan.files)
    for container in plan.containers:
        launch = launches[container.name]
        out.append(PodFile(f"ct/{container.name}.argv", entries(launch.argv), secret=container.entry.secret))
        if launch.env:
            pairs = [f"{name}={value}" for name, value in launch.env]
            out.append(PodFile(f"ct/{container.name}.env", entries(pairs), secret=bool(container.secret_env)))
        out += launch.files
    out += [
        PodFile(f"pod/{name}", entries(values))
        for name, values in (
            ("directories", plan.directories),
            ("placeholders", plan.placeholders),
            ("host-paths", [w for c in plan.host_paths for w in (c.volume, c.type, c.path)]),
        )
        if values
    ]
    if plan.pre_exec:
        out.append(PodFile("pod/pre-exec.sh", plan.pre_exec.encode("utf-8", "surrogateescape") + b"\n"))
    return tuple(out)


def entries(words: Sequence[str]) -> bytes:
    """Each entry ends with a NUL, so that empty ones and newlines survive `mapfile -d ''`."""
    return b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)


def log_files(containers: Sequence[ContainerPlan]) -> dict[str, str]:
    """The log of each container, relative to the job's directory, in the order in which they start."""
    return {c.name: f"{'init' if c.init else 'run'}-{c.name}.out" for c in containers}
