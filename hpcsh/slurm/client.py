"""Running Slurm's commands: a clean environment, a time-out on every call, and a count of the questions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from hpcsh.boundary.base import Boundary, Completed
from hpcsh.errors import CommandError

KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_SACK_SOCKET"})
"""What a site sets to make its Slurm reachable at all; every other variable of Slurm's is removed."""

_OURS = re.compile(r"(?:SLURM|SQUEUE|SACCT|SBATCH|SINFO|SCANCEL|SALLOC|SRUN|SCONTROL|SPRIO|SSHARE)_")

TIMEOUTS: dict[str, float] = {"sbatch": 90.0, "squeue": 60.0, "sacct": 90.0}
"""Seconds; anything else gets 30. Slurm's own MessageTimeout is 10 by default and may be 100."""


class Client:
    """The commands of one user on one target.

    An outer job's `SLURM_*`, a user's `SQUEUE_FORMAT` or `SBATCH_PARTITION` would change what we ask and
    submit, so every call removes the names that the target's environment has (looked up once).
    """

    def __init__(self, boundary: Boundary) -> None:
        self.boundary = boundary
        self.calls: Counter[str] = Counter()
        """How often each command was run: squeue, sacct, sbatch, …"""
        self._removed: dict[str, str | None] | None = None

    async def environment(self) -> dict[str, str | None]:
        """Names to remove (None) from the environment of every call."""
        if self._removed is None:
            answer = await self.boundary.run(["env", "-0"], timeout=30)
            names = [
                entry.partition(b"=")[0].decode("utf-8", "replace") for entry in answer.stdout.split(b"\0")
            ]
            self._removed = {n: None for n in names if _OURS.match(n) and n not in KEPT}
        return self._removed

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> Completed:
        """Run a command of Slurm's. Errors are the boundary's, the exit status is the caller's to judge."""
        clean = {**await self.environment(), **(env or {})}
        self.calls[argv[0]] += 1
        return await self.boundary.run(argv, env=clean, cwd=cwd, timeout=TIMEOUTS.get(argv[0], 30.0))

    async def ask(self, argv: Sequence[str], what: str) -> str:
        """Run a question with times as Unix seconds; its output, or `CommandError` with Slurm's words."""
        answer = await self.run(argv, env={"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"})
        if answer.code:
            raise CommandError(what, why=words(answer), fix=hint(words(answer)))
        return answer.text


def words(answer: Completed) -> str:
    """What a command of Slurm's said, without its `sbatch: error:` prefixes."""
    said = answer.error_text or answer.text.strip() or f"{answer.argv[0]} ended with status {answer.code}"
    return re.sub(r"(?m)^\w+: (?:error|fatal): ", "", said)[-2000:]


_HINTS = (
    (r"Invalid account|account/partition combination",
     "choose an account of yours with -A (`sacctmgr show assoc user=$USER`)"),
    (r"invalid partition|Invalid partition", "choose a partition with -p (`sinfo -s` lists them)"),
    (r"Invalid qos",
     "choose a QOS that your account has with -q (`sacctmgr show assoc user=$USER format=account,qos`)"),
    (r"time limit", "ask for less time with -t, or choose another partition"),
    (r"[Nn]ode configuration is not available|More processors requested|Memory specification",
     "no node of the partition has that much: ask for less, or choose another partition with -p"),
    (r"MaxSubmit|QOSMaxSubmitJobPerUserLimit|AssocMaxSubmitJobLimit",
     "you have as many jobs as you may: wait, or cancel some"),
    (r"Invalid generic resource|gres", "see which gres the nodes have with `sinfo -o '%N %G'`"),
    (r"dependency", "the job that it depends on must exist: see `ps`"),
    (r"Invalid feature", "see which features the nodes have with `sinfo -o '%N %f'`"),
    (r"Unable to contact slurm controller|Connection refused",
     "slurmctld does not answer: try again later, and tell the site"),
    (r"Invalid authentication|munge|credential", "munge on the login node does not work: tell the site"),
    (r"[Rr]eservation", "see the reservations with `scontrol show reservation`"),
)  # fmt: skip


def hint(said: str) -> str:
    """What to do about a refusal of Slurm's, "" where we know nothing better than its own words."""
    return next((fix for pattern, fix in _HINTS if re.search(pattern, said)), "")


_UNCERTAIN = re.compile(
    r"timed out|Zero Bytes were transmitted|Message receive failure|Unexpected message|Connection reset"
    r"|send/recv|Communication (?:connection|shutdown) failure|Transport endpoint|Broken pipe|in standby",
    re.IGNORECASE,
)


def surely_refused(answer: Completed) -> bool:
    """True when a failed sbatch cannot have made a job.

    sbatch that was ended by a signal, or lost its connection after it had sent the request, leaves it open.
    """
    # sbatch itself ends with 255 for many a refusal; 129 to 192 is a signal.
    return not 128 < answer.code <= 192 and not _UNCERTAIN.search(answer.error_text)
