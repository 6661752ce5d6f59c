"""How each container of a pod is started on this target: the pod's plan joined with its images. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from hpcsh.images import runtime
from hpcsh.images.pool import Entry
from hpcsh.pods.body import Launch
from hpcsh.pods.plan import ContainerPlan, PodPlan
from hpcsh.pods.volumes import PodFile


def launches(plan: PodPlan, entries: Mapping[str, Entry], directory: str) -> dict[str, Launch]:
    """The launch of each container by its name; `entries` is each container's image."""
    return {c.name: _launch(c, plan, entries[c.name], directory) for c in plan.containers}


def _launch(container: ContainerPlan, plan: PodPlan, entry: Entry, directory: str) -> Launch:
    rc = f"ct/{container.name}.rc"
    run = runtime.ContainerRun(
        name=container.name,
        image=entry.image,
        config=entry.config,
        command=container.entry.command,
        args=container.entry.args,
        env=container.env,
        secret_env=container.secret_env,
        binds=tuple(
            runtime.Bind(_absolute(m.source, directory), m.target, m.read_only) for m in container.mounts
        ),
        extra_mounts=plan.extra_mounts,
        options=plan.options,
        workdir=container.workdir,
        gpus=container.gpus,
        read_only_root=container.read_only_root,
        scratch=f"{directory}/local",
        rc=f"{directory}/{rc}",
    )
    files: tuple[PodFile, ...] = ()
    if runtime.needs_rc(run):
        files = (PodFile(rc, runtime.rc_file(run), secret=bool(container.secret_env)),)
    warnings = tuple(
        f"container {run.name}: the variable {name} cannot be set with apptainer"
        for name in runtime.unsettable(run)
    )
    return Launch(tuple(runtime.container_argv(run)), runtime.container_env(run), files, warnings)


def _absolute(source: str, directory: str) -> str:
    return source if source.startswith("/") else f"{directory}/{source}"
