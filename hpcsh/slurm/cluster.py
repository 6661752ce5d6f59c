"""One Slurm cluster as one user sees it, behind one budget of questions (design 6.2)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hpcsh.boundary.base import Boundary
from hpcsh.clock import Clock
from hpcsh.errors import CommandError, HpcshError, TargetError, TimedOutError, UnknownOutcomeError
from hpcsh.model import Node
from hpcsh.slurm import listings, parse
from hpcsh.slurm.client import Client, hint, surely_refused, words
from hpcsh.slurm.job import Job, Queue
from hpcsh.slurm.poller import Poller

__all__ = ["Cluster", "Job", "Queue"]

_NO_ACCOUNTING = re.compile(r"accounting storage is disabled", re.IGNORECASE)
_UNKNOWN_JOB = re.compile(r"Invalid job id|already completing or completed|Job/step already", re.IGNORECASE)
_ID = re.compile(r"\d+(?:_(?:\d+|\[[\d,:-]+\])|\+\d+)?\Z")


class Cluster:
    """The client. Shared by every session on one target; owned by the session host.

    Every call has a time-out. Only `queue` and `accounting` are used for states, so that the number of
    questions does not depend on the number of jobs or front ends.
    """

    def __init__(self, boundary: Boundary, clock: Clock, *, floor: float = 2.0, idle: float = 30.0) -> None:
        """Ask slurmctld never more often than every `floor` seconds, every `idle` when nothing is active."""
        self.client = Client(boundary)
        self.boundary = boundary
        self._clock = clock
        self._poller = Poller(self._squeue, clock, floor=floor, idle=idle)
        self._version: tuple[int, int, int] | None = None

    @property
    def calls(self) -> Counter[str]:
        """How often each of Slurm's commands was run."""
        return self.client.calls

    async def version(self) -> tuple[int, int, int]:
        """Slurm's version, asked once."""
        if self._version is None:
            text = await self.client.ask(["sbatch", "--version"], "Slurm's version cannot be asked.")
            found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
            if not found:
                raise CommandError("Slurm's version cannot be read.", why=text[:200])
            self._version = (int(found[1]), int(found[2]), int(found[3] or 0))
        return self._version

    async def sbatch(self, options: Sequence[str], script: str, *, cwd: str) -> str:
        """Submit the script file at path `script` on the target; the job id.

        `options` are validated sbatch options. Raises `CommandError` with Slurm's words when it was
        refused for certain, `UnknownOutcomeError` when it is not known whether there is a job.
        """
        argv = ["sbatch", "--parsable", *options, script]
        await self.client.environment()
        try:
            answer = await self.client.run(argv, cwd=cwd)
        except (TimedOutError, TargetError) as error:
            raise _unknown(error.what, error.why) from error
        finally:
            self._poller.hasten()
        if answer.code and surely_refused(answer):
            said = words(answer)
            raise CommandError("Slurm refused the job.", why=said, fix=hint(said))
        job_id = parse.submitted_id(answer.text)
        if answer.code or job_id is None:
            raise _unknown("sbatch gave no clear answer", words(answer))
        return job_id

    async def queue(self, *, fresh: bool = False) -> Queue:
        """All jobs of the user. Within the floor the last answer with its age; never a second question.

        A controller that does not answer makes a stale `Queue` with the last known jobs. Where there has
        never been an answer the error is raised, whatever its kind.
        """
        return await self._poller.get(fresh=fresh)

    async def next_queue(self, after: float) -> Queue:
        """Wait for an answer newer than `after` (an `as_of`): all who wait share one question.

        Returns a stale `Queue` when that question failed; calls are paced by the back-off.
        """
        return await self._poller.next(after)

    @property
    def floor(self) -> float:
        """Seconds between two questions at the least."""
        return self._poller.floor

    def slow_down(self, floor: float) -> None:
        """Ask never more often than every `floor` seconds: of several sessions the strictest one counts."""
        self._poller.slow_down(floor)

    def hasten(self) -> None:
        """Something is known to have changed: the next question comes as soon as the floor allows."""
        self._poller.hasten()

    async def _squeue(self) -> dict[str, Job]:
        _, uid, _ = await self.boundary.identity()
        argv = [
            "squeue",
            "-h",
            "-a",
            "--noconvert",
            "--states=all",
            "-u",
            str(uid),
            "-O",
            parse.queue_format(),
        ]
        return parse.parse_queue(await self.client.ask(argv, "slurmctld does not answer."))

    async def accounting(self, ids: Sequence[str]) -> dict[str, Job]:
        """What sacct knows of these jobs, in one call; missing ones are absent.

        Arrays are asked by their number and answered task by task. Raises `CommandError` when accounting
        does not answer; a site without accounting knows nothing of any job.
        """
        wanted = sorted({parse.base_id(i) for i in ids})
        return await self._sacct(["-j", ",".join(wanted)]) if wanted else {}

    async def _sacct(self, which: Sequence[str]) -> dict[str, Job]:
        fields = ",".join((*parse.SACCT_FIXED, *parse.SACCT_FREE))
        argv = ["sacct", "-n", "-X", "-P", f"--delimiter={parse.US}", "-o", fields, *which]
        try:
            return parse.parse_accounting(await self.client.ask(argv, "sacct does not answer."))
        except CommandError as error:
            if _NO_ACCOUNTING.search(error.why):
                return {}
            raise

    async def by_comment(self, prefix: str, since: float) -> list[Job]:
        """Jobs whose comment begins with `prefix`, from the queue and from accounting since a time.

        Where a site does not keep comments, accounting's copy of the submit line is looked at instead. The
        queue is asked anew (within the floor); the caller compares `queue().as_of` where that matters.
        """
        found = {
            j.id: j for j in (await self.queue(fresh=True)).jobs.values() if j.comment.startswith(prefix)
        }
        _, uid, _ = await self.boundary.identity()
        ago = max(60, int(self._clock.now() - since) + 3600)
        try:
            kept = await self._sacct(["-u", str(uid), "-S", f"now-{ago // 60 + 1}minutes"])
        except (CommandError, TimedOutError):
            if not found:
                raise
            kept = {}
        for job in kept.values():
            line = job.extra.get("submit_line", "")
            if job.comment.startswith(prefix) or f"--comment={prefix}" in line:
                found.setdefault(job.id, job)
        return list(found.values())

    async def cancel(self, ids: Sequence[str]) -> None:
        """scancel; a job that has ended already is no error."""
        wanted = [re.sub(r"%\d+", "", i) for i in ids]
        if bad := [i for i in wanted if not _ID.match(i)]:
            raise CommandError(f"{bad[0]!r} is no job id.")
        if not wanted:
            return
        answer = await self.client.run(["scancel", *wanted])
        self._poller.hasten()
        said = [line for line in words(answer).splitlines() if not _UNKNOWN_JOB.search(line)]
        if answer.code and said:
            raise CommandError("scancel failed.", why="\n".join(said), fix=hint("\n".join(said)))

    async def nodes(self) -> list[Node]:
        """The cluster's nodes, from one sinfo call."""
        argv = ["sinfo", "-h", "-N", "-a", "-O", parse.long_format(listings.SINFO_FIELDS)]
        return listings.parse_nodes(await self.client.ask(argv, "The nodes cannot be listed."))

    async def facts(self, job_id: str) -> list[tuple[str, str]]:
        """What `scontrol show job` says, in its order; falls back to sacct; empty when nobody knows it."""
        try:
            text = await self.client.ask(["scontrol", "show", "job", job_id], "The job cannot be shown.")
            if facts := listings.parse_facts(text, job_id):
                return facts
        except CommandError as error:
            if not _UNKNOWN_JOB.search(error.why):
                raise
        job = (await self.accounting([job_id])).get(job_id)
        return [] if job is None else _facts_of(job)

    async def script(self, job_id: str) -> str:
        """The batch script Slurm keeps of a job, "" where it does not."""
        for argv in (
            ["scontrol", "write", "batch_script", job_id, "-"],
            ["sacct", "-j", job_id, "--batch-script"],
        ):
            try:
                text = await self.client.ask(argv, "The script cannot be read.")
            except HpcshError:
                continue
            begin = text.find("#!")
            if begin >= 0:
                return text[begin:]
        return ""


def _unknown(what: str, why: str) -> UnknownOutcomeError:
    return UnknownOutcomeError(
        "It is not known whether Slurm took the job.",
        why=f"{what.rstrip('.')}: {why}" if why else what,
        fix="do not submit it again: hpcsh looks for it, `ps` shows what it finds",
    )


def _facts_of(job: Job) -> list[tuple[str, str]]:
    facts = [
        ("JobId", job.id), ("JobName", job.name), ("UserId", job.user), ("JobState", job.native),
        ("Reason", job.reason), ("Partition", job.partition), ("NodeList", job.nodes),
        ("NumNodes", str(job.node_count)), ("NumCPUs", str(job.cpus)), ("WorkDir", job.directory),
        ("Comment", job.comment), ("SubmitLine", job.extra.get("submit_line", "")),
    ]  # fmt: skip
    times = (("SubmitTime", job.submitted), ("StartTime", job.started), ("EndTime", job.ended))
    facts += [(name, f"{at:.0f}") for name, at in times if at is not None]
    return [(name, value) for name, value in facts if value]
