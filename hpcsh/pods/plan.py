"""From a manifest to what is to be run: containers in order, files, directories, resources. Pure.

Nothing here knows Slurm's commands or a container runtime: the engine joins this plan with the images it
has and with the runtime's command lines (`pods.body`).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

import msgspec

from hpcsh.errors import UsageError
from hpcsh.model import Resources
from hpcsh.pods import annotations as notes
from hpcsh.pods import check, resources, volumes
from hpcsh.pods.env import Scope, Text, check_text, environment, expand_all
from hpcsh.pods.manifest import Manifest
from hpcsh.pods.spec import Container
from hpcsh.pods.volumes import HostPathCheck, Mount, PodFile


class Entry(msgspec.Struct, frozen=True):
    """What a container starts. Without `command` the image's ENTRYPOINT stays, with `args` for its CMD."""

    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    secret: bool = False


class ContainerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One container, everything resolved. `env` is in order; `secret_env` names those that hold a secret."""

    name: str
    image: str
    init: bool = False
    pull_policy: str = ""
    entry: Entry = Entry()
    env: tuple[tuple[str, str], ...] = ()
    secret_env: frozenset[str] = frozenset()
    mounts: tuple[Mount, ...] = ()
    workdir: str = ""
    gpus: str = ""
    """ "nvidia", "amd" or "": which driver the container needs to see."""
    read_only_root: bool = False
    restart: str = "Never"


class PodPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A pod. Paths of `files`, `directories` and `placeholders` count from the job's directory."""

    name: str
    namespace: str
    uid: str
    containers: tuple[ContainerPlan, ...]
    files: tuple[PodFile, ...] = ()
    directories: tuple[str, ...] = ()
    placeholders: tuple[str, ...] = ()
    host_paths: tuple[HostPathCheck, ...] = ()
    resources: Resources = Resources()
    grace: int = 30
    pre_exec: str = ""
    options: tuple[str, ...] = ()
    extra_mounts: tuple[str, ...] = ()
    image_root: str = ""
    warnings: tuple[str, ...] = ()


def plan(
    manifest: Manifest, origin: str, *, id: str, uid: str, base_cpus: bool = False, base_memory: bool = False
) -> PodPlan:
    """Plan a pod. `id` completes a generateName, `uid` is the pod's.

    `base_cpus`/`base_memory`: the command line or the profile says how much, so no default is needed.
    Raises `UsageError` that names what is wrong or cannot be done.
    """
    pod = manifest.pod
    name = pod.metadata.name or pod.metadata.generate_name + id[:5]
    where = f"{origin}: Pod {name}"
    warnings = check.check(pod, where)
    namespace = pod.metadata.namespace or "default"
    scope = Scope(pod, name, namespace, uid, manifest.config_maps, manifest.secrets, where)
    asked = resources.demand(pod.spec, where)
    said = notes.read(
        pod.metadata.annotations, where, has_cpus=asked.cpus is not None, has_memory=asked.memory is not None
    )
    store = volumes.materialise(pod.spec.volumes, scope)
    built = [_container(c, manifest, scope, store, init=True) for c in pod.spec.init_containers]
    built += [_container(c, manifest, scope, store, init=False) for c in pod.spec.containers]
    wanted, about = _resources(asked, said, base_cpus=base_cpus, base_memory=base_memory, where=where)
    about += _unsaid(pod.spec.restart_policy, where)
    return PodPlan(
        name=name,
        namespace=namespace,
        uid=uid,
        containers=tuple(b.container for b in built),
        files=store.files,
        directories=tuple(dict.fromkeys([*store.directories, *(d for b in built for d in b.directories)])),
        placeholders=tuple(dict.fromkeys(p for b in built for p in b.placeholders)),
        host_paths=store.host_paths,
        resources=_deadline(wanted, pod.spec.active_deadline_seconds),
        grace=pod.spec.termination_grace_period_seconds,
        pre_exec=said.pre_exec,
        options=said.options,
        extra_mounts=said.mounts,
        image_root=said.image_root,
        warnings=_once(warnings, asked.warnings, said.warnings, store.warnings,
                       *(b.warnings for b in built), about),
    )  # fmt: skip


def _once(*groups: Iterable[str]) -> tuple[str, ...]:
    """All of them in order, each once."""
    return tuple(dict.fromkeys(text for group in groups for text in group))


def _unsaid(policy: str, where: str) -> list[str]:
    if policy:
        return []
    return [f"{where}: restartPolicy is not set: here it runs once (in Kubernetes: for ever)"]


class _Built(msgspec.Struct, frozen=True):
    container: ContainerPlan
    directories: tuple[str, ...]
    placeholders: tuple[str, ...]
    warnings: tuple[str, ...]


def _container(
    container: Container, manifest: Manifest, scope: Scope, store: volumes.Volumes, *, init: bool
) -> _Built:
    where = f"{scope.where}: container {container.name}"
    scope = msgspec.structs.replace(scope, where=where)
    env, warnings = environment(container, scope)
    found, directories, about = volumes.mounts(container, store, env, where)
    points, placeholders = volumes.mount_points(found, store)
    entry = _entry(container, env, where)
    if entry.secret:
        warnings.append(
            f"{where}: command or args contain a secret: every user of the node can see it "
            "in the process list; read it from the environment or a file instead"
        )
    if container.working_dir:
        volumes.check_path(container.working_dir, f"{where}: workingDir")
    security = container.security_context or {}
    built = ContainerPlan(
        name=container.name,
        image=container.image.strip(),
        init=init,
        pull_policy=container.image_pull_policy,
        entry=entry,
        env=tuple((name, text.value) for name, text in env.items()),
        secret_env=frozenset(name for name, text in env.items() if text.secret),
        mounts=found,
        workdir=posixpath.normpath(container.working_dir) if container.working_dir else "",
        gpus=resources.gpu_kind(container, scope.where),
        read_only_root=bool(security.get("readOnlyRootFilesystem")),
        restart=restart_policy(manifest.pod.spec.restart_policy, init=init),
    )
    return _Built(built, (*directories, *points), tuple(placeholders), (*warnings, *about))


def restart_policy(policy: str, *, init: bool) -> str:
    """What happens when a container ends. A pod that says nothing runs once: a batch job has an end.

    Init containers of an Always pod are started again only when they fail, as in Kubernetes.
    """
    policy = policy or "Never"
    return "OnFailure" if init and policy == "Always" else policy


def _entry(container: Container, env: dict[str, Text], where: str) -> Entry:
    command = expand_all(container.command, env)
    args = expand_all(container.args, env)
    for text in (*command, *args):
        check_text(text.value, f"{where}: command or args")
    if command and not command[0].value:
        raise UsageError(f"{where}: command begins with an empty word.")
    secret = any(t.secret for t in (*command, *args))
    return Entry(tuple(t.value for t in command), tuple(t.value for t in args), secret)


def _resources(
    asked: resources.Demand, said: notes.Annotations, *, base_cpus: bool, base_memory: bool, where: str
) -> tuple[Resources, list[str]]:
    """Slurm's side of the demand. The annotation's flags count where the containers say nothing."""
    warnings = []
    memory = asked.memory
    silent = asked.memory_silent
    if silent and (memory is not None or not (said.has_memory or base_memory)):
        memory = (memory or 0) + resources.DEFAULT_MEMORY * len(silent)
        warnings.append(f"{where}: no memory limit for {', '.join(silent)}: 1 GiB is reserved for each")
    if asked.cpus is None and not (said.has_cpus or base_cpus):
        warnings.append(f"{where}: no cpu limit: 1 cpu is reserved")
    cpus = asked.cpus if asked.cpus is not None or said.has_cpus or base_cpus else 1
    wanted = msgspec.structs.replace(said.resources, cpus_per_task=cpus, memory=memory)
    if asked.gpus and not said.has_gpus:
        wanted = msgspec.structs.replace(wanted, flags=(*wanted.flags, f"--gres=gpu:{asked.gpus}"))
    elif asked.gpus:
        warnings.append(f"{where}: the GPUs come from slurm-job.vk.io/flags, not from the containers")
    return wanted, warnings


def _deadline(wanted: Resources, seconds: int | None) -> Resources:
    """activeDeadlineSeconds as a time limit (Slurm counts whole minutes, rounded up)."""
    if seconds is None or wanted.time is not None:
        return wanted
    minutes, rest = divmod(seconds, 60)
    return msgspec.structs.replace(wanted, time=f"{minutes}:{rest:02d}")


def single(
    image: str, command: tuple[str, ...], *, name: str, uid: str, env: dict[str, str], cwd: str | None
) -> PodPlan:
    """The pod of `run --image IMAGE -- COMMAND`: one container, words literal, `cwd` visible when given."""
    where = f"run {name}"
    for key, value in env.items():
        check_text(value, f"{where}: env {key}")
    for word in command:
        check_text(word, f"{where}: command")
    mounts: tuple[Mount, ...] = ()
    if cwd is not None:
        volumes.check_path(cwd, f"{where}: working directory")
        mounts = (Mount(posixpath.normpath(cwd), posixpath.normpath(cwd)),)
    container = ContainerPlan(
        name="main",
        image=image,
        entry=Entry(command),
        env=tuple(env.items()),
        secret_env=frozenset(env),
        mounts=mounts,
        workdir=mounts[0].target if mounts else "",
    )
    return PodPlan(name=name, namespace="default", uid=uid, containers=(container,))
