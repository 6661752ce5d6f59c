"""Slurm jobs as workloads: what every engine on a Slurm cluster shares.

On the target a workload of ours lives in `<workdir>/jobs/<id>/`:

- `job.slurm`   the submitted script; its first act is the guard (design 6.1)
- `run/<id>`    made exclusively by the guard, holds the job id
- `marks`       one line per happening, `<epoch> <what> [<who>] [<value>]`, appended by the script:
                `start <jobid> <stdout path>`, `container-start NAME`, `container-exit NAME CODE`, `end CODE`
- further files of the engine, and logs
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcsh.engines.context import Context
from hpcsh.model import (
    CleanItem,
    Detail,
    Kind,
    LogChunk,
    LogOptions,
    Plan,
    Report,
    Resources,
    Snapshot,
    Workload,
)
from hpcsh.store import Record


@dataclass(frozen=True)
class Staged:
    """A file written into the workload's directory before submission. `path` is relative to it."""

    path: str
    data: bytes
    mode: int = 0o600
    secret: bool = False


@dataclass(frozen=True)
class Mark:
    """A line of `marks`."""

    at: float
    what: str
    who: str = ""
    value: str = ""


@dataclass(frozen=True)
class JobSpec:
    """A job to submit. `body` is the bash code after header, guard and setup; the template adds those.

    `header` are `#SBATCH` lines taken over verbatim from a user's script (they count less than `options`).
    `output` is the job's own log relative to the directory, or None to leave sbatch's default.
    """

    id: str
    name: str
    kind: Kind
    resources: Resources
    body: str
    files: tuple[Staged, ...] = ()
    header: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    output: str | None = "job.out"
    cwd: str | None = None
    inherit_env: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


Refine = Callable[[Record, Workload, Sequence[Mark]], Workload]
"""How an engine fills in a workload of its own from the marks (children, exit codes, reasons). Pure."""


class Jobs:
    """Submission at most once, snapshots, logs, waiting, cancelling and cleaning for Slurm jobs."""

    def __init__(self, context: Context, refine: Refine | None = None) -> None:
        """`refine` is applied to every workload of ours."""
        raise NotImplementedError

    async def directory(self, workload_id: str) -> str:
        """Absolute path of a workload's directory on the target."""
        raise NotImplementedError

    async def plan(self, job: JobSpec) -> Plan:
        """The exact script, files and sbatch line of a job; changes nothing."""
        raise NotImplementedError

    async def submit(self, job: JobSpec) -> Workload:
        """Commit the intent, stage the files, sbatch, commit the job id. At most once, see design 6.1."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Settle every intent whose outcome is not known, by looking. Called when a session opens."""
        raise NotImplementedError

    async def batch_script(
        self, data: bytes, args: Sequence[str], name: str, resources: Resources, *,
        cwd: str | None, inherit_env: bool,
    ) -> JobSpec:  # fmt: skip
        """The job of a user's own batch script: its `#SBATCH` lines unchanged, its interpreter kept."""
        raise NotImplementedError

    async def snapshot(self, *, mine_only: bool = False, fresh: bool = False) -> Snapshot:
        """Ours and the user's other jobs; vanished ones completed from accounting in one call."""
        raise NotImplementedError

    async def resolve(self, ref: str) -> Workload:
        """The one workload that a reference names (rules: `engines.base.Engine`)."""
        raise NotImplementedError

    async def show(self, ref: str) -> Detail:
        """All facts, and the script."""
        raise NotImplementedError

    def logs(
        self, ref: str, options: LogOptions, files: Callable[[Record, Workload], dict[str, str]] | None = None
    ) -> AsyncIterator[LogChunk]:
        """Stream logs. `files` names an engine's log files by container; default: the job's own output."""
        raise NotImplementedError

    async def wait(self, refs: Sequence[str], *, timeout: float | None = None) -> list[Workload]:
        """Wait for terminal states, sharing the one poller and noticing marks at once."""
        raise NotImplementedError

    async def cancel(self, refs: Sequence[str]) -> Report:
        """scancel in one call."""
        raise NotImplementedError

    async def clean_plan(self, *, everything: bool = False) -> list[CleanItem]:
        """Finished work of ours (with `everything` also running jobs): directories and records."""
        raise NotImplementedError

    async def clean(self, items: Sequence[CleanItem]) -> Report:
        """Remove exactly these; a running job is cancelled, waited for, then its directory removed."""
        raise NotImplementedError
