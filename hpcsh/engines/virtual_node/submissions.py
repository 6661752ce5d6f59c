"""From what the user submits to a job: a manifest, a program in an image, a program, or a batch script."""

from __future__ import annotations

import posixpath
import uuid
from dataclasses import dataclass
from importlib import resources as package_resources

import msgspec

from hpcsh.engines.context import Context
from hpcsh.engines.jobs import Jobs, JobSpec, Staged
from hpcsh.engines.virtual_node.launches import launches
from hpcsh.errors import UsageError
from hpcsh.images.pool import Entry, Pool
from hpcsh.model import File, Kind, Resources, SubmitSpec
from hpcsh.pods import body, manifest
from hpcsh.pods import plan as planning
from hpcsh.pods.env import NAME, check_text
from hpcsh.pods.status import parts
from hpcsh.slurm.options import merge, to_argv

_MEMORY = frozenset({"mem", "mem-per-cpu", "mem-per-gpu"})
_CPUS = frozenset({"cpus-per-task", "cpus-per-gpu", "mincpus"})


@dataclass(frozen=True)
class Submission:
    """A job, and the images that have to be in the pool before it is submitted."""

    job: JobSpec
    images: tuple[Entry, ...] = ()


class Submissions:
    """Prepares submissions for one context; changes nothing."""

    def __init__(self, context: Context, jobs: Jobs, pool: Pool) -> None:
        self._c = context
        self._jobs = jobs
        self._pool = pool

    async def prepare(self, spec: SubmitSpec) -> Submission:
        """What `submit` will do. Raises `UsageError` for bad input, and what looking at images raises."""
        if spec.file is not None:
            if spec.image or spec.command or spec.env:
                raise UsageError("A file is submitted as it is: --image, --env and a command go with `run`.")
            if manifest.is_manifest(spec.file.data):
                return await self._pod(spec, self._planned(spec.file, spec))
            return Submission(await self._script(spec, spec.file))
        _check_command(spec)
        if spec.image:
            return await self._pod(spec, await self._single(spec))
        return Submission(self._command(spec))

    def _inherit(self, spec: SubmitSpec) -> bool:
        return self._c.profile.inherit_env if spec.inherit_env is None else spec.inherit_env

    async def _script(self, spec: SubmitSpec, file: File) -> JobSpec:
        name = posixpath.basename(file.name)
        said = spec.resources
        if spec.name and said.job_name is None:
            said = msgspec.structs.replace(said, job_name=spec.name)
        return await self._jobs.batch_script(
            file.data, spec.args, name, said, cwd=spec.cwd, inherit_env=self._inherit(spec)
        )

    def _command(self, spec: SubmitSpec) -> JobSpec:
        """A program without an image; its words and variables travel in files (design 6.4)."""
        template = package_resources.files("hpcsh.engines.virtual_node") / "templates" / "command.sh"
        files = [Staged("command.argv", body.entries(spec.command))]
        if spec.env:
            pairs = [f"{name}={value}" for name, value in spec.env.items()]
            files.append(Staged("command.env", body.entries(pairs), secret=True))
        return JobSpec(
            id=self._c.new_id(),
            name=spec.name or posixpath.basename(spec.command[0]) or "run",
            kind=Kind.JOB,
            resources=spec.resources,
            body=template.read_text(),
            files=tuple(files),
            cwd=spec.cwd,
            inherit_env=self._inherit(spec),
        )

    def _uid(self, workload_id: str) -> str:
        """The pod's uid, in the form that Kubernetes gives them."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, self._c.store.mark(workload_id)))

    def _planned(self, file: File, spec: SubmitSpec) -> tuple[str, planning.PodPlan]:
        if spec.args:
            raise UsageError(f"{file.name} is a manifest, which takes no arguments.", why=" ".join(spec.args))
        base = merge(spec.resources, self._c.profile.resources).keys()
        workload_id = self._c.new_id()
        return workload_id, planning.plan(
            manifest.parse(file.data, posixpath.basename(file.name)),
            posixpath.basename(file.name),
            id=workload_id,
            uid=self._uid(workload_id),
            base_cpus=bool(base & _CPUS),
            base_memory=bool(base & _MEMORY),
        )

    async def _single(self, spec: SubmitSpec) -> tuple[str, planning.PodPlan]:
        workload_id = self._c.new_id()
        name = spec.name or (await self._pool.reference(spec.image or "")).short
        return workload_id, planning.single(
            spec.image or "",
            spec.command,
            name=name,
            uid=self._uid(workload_id),
            env=spec.env,
            cwd=await self._expanded(spec.cwd),
        )

    async def _expanded(self, path: str | None) -> str | None:
        if path == "~" or (path or "").startswith("~/"):
            return (await self._c.boundary.home()).rstrip("/") + str(path)[1:]
        return path

    async def _pod(self, spec: SubmitSpec, planned: tuple[str, planning.PodPlan]) -> Submission:
        workload_id, plan = planned
        entries = await self._entries(plan)
        directory = await self._jobs.directory(workload_id)
        started = launches(plan, entries, directory)
        staged = body.files(plan, started)
        options = to_argv(merge(spec.resources, plan.resources))
        warnings = [*plan.warnings, *(w for launch in started.values() for w in launch.warnings)]
        if spec.file is not None and spec.cwd is not None:
            warnings.append("the working directory has no effect on a pod: set workingDir in its containers")
        asked = merge(spec.resources, self._c.profile.resources)
        if {asked.get("ntasks", "1"), asked.get("nodes", "1")} != {"1"}:
            warnings.append("containers run once, on the job's first node: the pmix engine launches ranks")
        job = JobSpec(
            id=workload_id,
            name=spec.name or plan.name,
            kind=Kind.POD,
            resources=Resources(flags=tuple(options)),
            body=body.script(plan, layers=any(e.image.runtime == "podman" for e in entries.values())),
            files=tuple(Staged(f.path, f.data, f.mode, f.secret) for f in staged),
            inherit_env=self._inherit(spec),
            extra={"pod": _kept(plan)},
            warnings=tuple(warnings),
        )
        missing = {e.image.path: e for e in entries.values() if not e.present}
        return Submission(job, tuple(missing.values()))

    async def _entries(self, plan: planning.PodPlan) -> dict[str, Entry]:
        """Each container's image; each is looked for once."""
        found: dict[tuple[str, str], Entry] = {}
        out: dict[str, Entry] = {}
        for container in plan.containers:
            key = (container.image, container.pull_policy)
            if key not in found:
                reference = await self._pool.reference(container.image, image_root=plan.image_root)
                found[key] = await self._pool.locate(reference, policy=container.pull_policy)
            out[container.name] = found[key]
        return out


def _check_command(spec: SubmitSpec) -> None:
    if not spec.command and not spec.image:
        raise UsageError("There is nothing to submit.", fix="give a file, or a command after --")
    for word in spec.command:
        check_text(word, "The command")
    if spec.command and not spec.command[0]:
        raise UsageError("The command begins with an empty word.")
    for name, value in spec.env.items():
        if not NAME.match(name):
            raise UsageError(f"{name!r} is no name of a variable.")
        check_text(value, f"The variable {name}")
    if spec.args:
        raise UsageError("Arguments go behind the command.", why=" ".join(spec.args))


def _kept(plan: planning.PodPlan) -> dict[str, object]:
    """What the record keeps of a pod, to tell its state later. Nothing secret."""
    return {
        "namespace": plan.namespace,
        "uid": plan.uid,
        "parts": [msgspec.to_builtins(p) for p in parts(plan.containers)],
    }
