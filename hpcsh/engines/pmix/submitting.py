"""Plain Slurm jobs by way of this engine: a batch script, or a command."""

from __future__ import annotations

import posixpath
import re

from hpcsh.engines.context import Context
from hpcsh.engines.jobs import Jobs, JobSpec, Staged
from hpcsh.engines.pmix import layout
from hpcsh.engines.pmix.containers import Containers
from hpcsh.errors import UsageError
from hpcsh.images.runtime import rank_argv
from hpcsh.model import Kind, SubmitSpec

_MANIFEST = re.compile(rb"^(?:apiVersion|kind):\s*\S|^\s*\{\s*\"(?:apiVersion|kind)\"", re.MULTILINE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def is_manifest(data: bytes) -> bool:
    """True for a Kubernetes manifest. A batch script begins with `#!`, or sbatch does not take it."""
    return not data.startswith(b"#!") and bool(_MANIFEST.search(data))


async def job_spec(context: Context, jobs: Jobs, containers: Containers, spec: SubmitSpec) -> JobSpec:
    """The job of a submission. Raises `UsageError` for what this engine does not run; changes nothing."""
    inherit = context.profile.inherit_env if spec.inherit_env is None else spec.inherit_env
    if spec.file is not None:
        if is_manifest(spec.file.data):
            raise UsageError(
                f"{spec.file.name} is a Kubernetes manifest; this engine runs batch scripts and launches.",
                fix="submit it with a profile whose engine is virtual_node (`hpcsh profiles` lists them)",
            )
        return await jobs.batch_script(
            spec.file.data, spec.args, spec.name or spec.file.name, spec.resources, cwd=spec.cwd,
            inherit_env=inherit,
        )  # fmt: skip
    if not spec.command:
        raise UsageError("There is nothing to run.", fix="give a batch script, or a command after `--`")
    _check(spec)
    argv = spec.command
    if spec.image:
        argv = tuple(rank_argv((await containers.entry(spec.image)).image, spec.command))
    staged = {layout.ARGV: layout.words(argv), layout.ENV: layout.assignments(spec.env)}
    return JobSpec(
        id=context.new_id(),
        name=spec.name or posixpath.basename(spec.command[0]) or "job",
        kind=Kind.JOB,
        resources=spec.resources,
        body=layout.command_body(),
        files=tuple(Staged(f"{layout.ONE_SHOT}/{name}", data) for name, data in staged.items()),
        cwd=spec.cwd,
        inherit_env=inherit,
    )


def _check(spec: SubmitSpec) -> None:
    if bad := next((n for n in spec.env if not _VARIABLE.match(n)), None):
        raise UsageError(f"{bad!r} is no name of an environment variable.")
    if any("\0" in word for word in (*spec.command, *spec.env.values())):
        raise UsageError("A word of the command or its environment contains a NUL byte.")
