"""From a `JobSpec` to the exact script, files and sbatch line. Changes nothing on the target."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from hpcsh.engines.context import Context
from hpcsh.engines.jobs.files import Files
from hpcsh.engines.jobs.types import JobSpec, Staged
from hpcsh.errors import UsageError
from hpcsh.model import Kind, Plan, PlannedFile, Resources
from hpcsh.slurm.header import header_options, read_header
from hpcsh.slurm.options import merge, to_argv
from hpcsh.slurm.script import SETUP, USER_ARGV, USER_SCRIPT, output_pattern, render, user_script_body

_RESERVED = frozenset({"job.slurm", "run", "marks", SETUP})


@dataclass(frozen=True)
class Prepared:
    """All that a submission needs, checked; nothing has been changed yet."""

    job: JobSpec
    name: str
    directory: str
    cwd: str
    argv: tuple[str, ...]
    script: str
    files: tuple[Staged, ...]


def batch_spec(
    data: bytes, args: Sequence[str], name: str, resources: Resources, *,
    workload_id: str, cwd: str | None, inherit_env: bool,
) -> JobSpec:  # fmt: skip
    """The job of a user's own batch script. Pure; `UsageError` where sbatch would refuse the script."""
    header = read_header(data, name)
    if any("\0" in a for a in args):
        raise UsageError("An argument of the script contains a NUL byte.")
    warnings = []
    if "comment" in header.options:
        warnings.append("--comment in the script has no effect: hpcsh marks its jobs with the comment")
    return JobSpec(
        id=workload_id,
        name=header.options.get("job-name") or posixpath.basename(name) or "job",
        kind=Kind.JOB,
        resources=resources,
        body=user_script_body(),
        files=(Staged(USER_SCRIPT, data, 0o700), Staged(USER_ARGV, _argv(args))),
        header=header.lines,
        output=None,
        cwd=cwd,
        inherit_env=inherit_env,
        warnings=tuple(warnings),
    )


def _argv(args: Sequence[str]) -> bytes:
    """Arguments travel in a file: sbatch's command line can be read in accounting (design 6.4)."""
    return b"".join(a.encode("utf-8", "surrogateescape") + b"\0" for a in args)


class Preparation:
    """Prepares and plans."""

    def __init__(self, context: Context, files: Files) -> None:
        self._c = context
        self._files = files

    async def prepare(self, job: JobSpec) -> Prepared:
        """Check everything and render the script; changes nothing."""
        directory = await self._files.directory(job.id)
        profile = self._c.profile
        for staged in job.files:
            _check_staged(staged)
        header = header_options(job.header)
        options = merge(job.resources, profile.resources, frozenset(header), owned=job.output is not None)
        if "job-name" not in options and "job-name" not in header:
            options.update(merge(Resources(job_name=job.name), Resources()))
        unset = not job.inherit_env and "export" not in options and "export" not in header
        if unset:
            options["export"] = "NONE"
        if job.output is not None:
            options["output"] = output_pattern(f"{directory}/{job.output}")
        options["comment"] = self._c.store.mark(job.id)
        script = render(
            workload_id=job.id,
            directory=directory,
            body=job.body,
            header=job.header,
            setup=bool(profile.setup.strip()),
            unset_export=unset,
        )
        files = job.files
        if profile.setup.strip():
            files = (Staged(SETUP, profile.setup.encode() + b"\n"), *files)
        cwd = await self._files.expand(job.cwd or "~")
        argv = ("sbatch", "--parsable", *to_argv(options), f"{directory}/job.slurm")
        name = options.get("job-name") or header.get("job-name") or job.name
        return Prepared(job, name, directory, cwd, argv, script, files)

    async def plan(self, job: JobSpec) -> Plan:
        """The exact script, files and sbatch line; changes nothing."""
        ready = await self.prepare(job)
        script = ready.script.encode("utf-8", "surrogateescape")
        planned = [PlannedFile(f"{ready.directory}/job.slurm", 0o700, len(script), script)]
        planned += [
            PlannedFile(f"{ready.directory}/{s.path}", s.mode, len(s.data), None if s.secret else s.data)
            for s in ready.files
        ]
        return Plan(
            title=f"{job.kind.value} {ready.name}",
            commands=(ready.argv,),
            script=ready.script,
            files=tuple(planned),
            warnings=job.warnings,
        )


def _check_staged(staged: Staged) -> None:
    path = posixpath.normpath(staged.path)
    first = path.split("/", 1)[0]
    if path != staged.path or path.startswith(("/", "..")) or first in _RESERVED or "\0" in path:
        raise UsageError(f"{staged.path!r} cannot be a file of a workload.")
