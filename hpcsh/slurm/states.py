"""Every state Slurm has, what it means here, exit codes, and reasons in words.

Sources: squeue(1) JOB STATE CODES, sacct(1) JOB STATE CODES, https://slurm.schedmd.com/job_state_codes.html.
A state is one base and any number of flags. squeue prints only the strongest flag in place of the base,
scontrol and sacct print `BASE`, `BASE+FLAG`, `BASE,FLAG` or `CANCELLED by UID`.
"""

from __future__ import annotations

import re

from hpcsh.model import State

COMPACT: dict[str, str] = {
    # bases
    "PD": "PENDING", "R": "RUNNING", "S": "SUSPENDED", "CD": "COMPLETED", "CA": "CANCELLED", "F": "FAILED",
    "TO": "TIMEOUT", "NF": "NODE_FAIL", "PR": "PREEMPTED", "BF": "BOOT_FAIL", "DL": "DEADLINE",
    "OOM": "OUT_OF_MEMORY",
    # flags
    "CG": "COMPLETING", "SO": "STAGE_OUT", "CF": "CONFIGURING", "RS": "RESIZING", "RQ": "REQUEUED",
    "RF": "REQUEUE_FED", "RH": "REQUEUE_HOLD", "SE": "SPECIAL_EXIT", "ST": "STOPPED", "RV": "REVOKED",
    "RD": "RESV_DEL_HOLD", "SI": "SIGNALING", "LF": "LAUNCH_FAILED", "EX": "EXPEDITING",
}  # fmt: skip
"""Slurm's compact codes and their long names."""

_BASES: dict[str, State] = {
    "PENDING": State.PENDING,
    "RUNNING": State.RUNNING,
    "SUSPENDED": State.SUSPENDED,
    "COMPLETED": State.SUCCEEDED,
    "CANCELLED": State.CANCELLED,
    "FAILED": State.FAILED,
    "TIMEOUT": State.FAILED,
    "NODE_FAIL": State.FAILED,
    "PREEMPTED": State.FAILED,
    "BOOT_FAIL": State.FAILED,
    "DEADLINE": State.FAILED,
    "OUT_OF_MEMORY": State.FAILED,
}

# Flags that decide by themselves, strongest first: a job that is queued again is pending whatever its base
# says, one whose processes are not all gone is running still, one whose nodes still boot has run nothing.
_FLAGS: dict[str, State] = {
    "REQUEUED": State.PENDING,
    "REQUEUE_FED": State.PENDING,
    "REQUEUE_HOLD": State.PENDING,
    "SPECIAL_EXIT": State.PENDING,
    "RESV_DEL_HOLD": State.PENDING,
    "REVOKED": State.UNKNOWN,
    "COMPLETING": State.RUNNING,
    "STAGE_OUT": State.RUNNING,
    "CONFIGURING": State.PENDING,
    "POWER_UP_NODE": State.PENDING,
    "RESIZING": State.RUNNING,
    "SIGNALING": State.RUNNING,
    "STOPPED": State.SUSPENDED,
}

# Flags that say nothing about the life of a job; alone they leave it unknown.
_SILENT = frozenset({"LAUNCH_FAILED", "EXPEDITING", "RECONFIG_FAIL", "UPDATE_DB"})

_END_CODES: dict[str, int] = {
    "TIMEOUT": 124,  # as timeout(1) says it
    "DEADLINE": 124,
    "OUT_OF_MEMORY": 137,  # the kernel ends it with SIGKILL
    "CANCELLED": 143,  # SIGTERM
    "PREEMPTED": 143,
    "NODE_FAIL": 1,
    "BOOT_FAIL": 1,
    "FAILED": 1,
}
"""What a job that did not succeed counts as, where Slurm's exit code says 0:0."""

_WORDS: dict[str, str] = {
    "TIMEOUT": "it ran into its time limit",
    "DEADLINE": "its deadline passed",
    "OUT_OF_MEMORY": "it used more memory than it had asked for",
    "CANCELLED": "it was cancelled",
    "PREEMPTED": "it was preempted by a job with a higher priority",
    "NODE_FAIL": "a node of the job failed",
    "BOOT_FAIL": "a node of the job did not boot",
    "COMPLETING": "the program has ended, the nodes are being tidied up",
    "CONFIGURING": "the nodes are being made ready",
    "REQUEUED": "it was put back into the queue",
    "REQUEUE_HOLD": "it was put back into the queue and is held",
    "SPECIAL_EXIT": "it was put back into the queue and is held: special exit",
    "RESV_DEL_HOLD": "it is held: its reservation was deleted",
    "REVOKED": "another cluster of the federation has taken it",
    "STAGE_OUT": "files are being staged out",
    "STOPPED": "it is stopped (SIGSTOP) and keeps its cpus",
    "SUSPENDED": "it is suspended",
}


def parts(native: str) -> tuple[str, ...]:
    """The long names in a state as any Slurm command prints it: base first, then flags.

    >>> parts("CA"), parts("CANCELLED by 1234"), parts("FAILED,LAUNCH_FAILED")
    (('CANCELLED',), ('CANCELLED',), ('FAILED', 'LAUNCH_FAILED'))
    """
    words = native.strip().upper().partition(" BY ")[0]
    names = [w.strip() for w in re.split(r"[+,|&\s]+", words) if w.strip()]
    return tuple(COMPACT.get(n, n) for n in names)


def state_of(native: str) -> State:
    """What a Slurm state means; one that is not known here is UNKNOWN, never a guess."""
    names = parts(native)
    flags = [f for f in _FLAGS if f in names]
    base = next((_BASES[n] for n in names if n in _BASES), None)
    if any(n not in _FLAGS and n not in _BASES and n not in _SILENT for n in names):
        return State.UNKNOWN
    if flags:
        # A suspended or still waiting job keeps that even while it is being signalled or configured.
        weak = _FLAGS[flags[0]] is State.RUNNING and flags[0] != "COMPLETING"
        return base if weak and base in (State.SUSPENDED, State.PENDING) else _FLAGS[flags[0]]
    return base if base is not None else State.UNKNOWN


def canceller(native: str) -> int | None:
    """The uid in sacct's `CANCELLED by UID`."""
    found = re.search(r"\bby (\d+)", native)
    return int(found[1]) if found else None


def wait_status(text: str) -> int | None:
    """The exit status in `code:signal`, or in a raw wait status (squeue before 23.02); None without one.

    `code:signal` with a signal is 128 + signal, else code. Some versions say `0:125` for a job out of
    memory; 125 is no signal but Slurm's own mark and becomes 137.
    """
    text = text.strip()
    pair = re.fullmatch(r"(-?\d+):(\d+)", text)
    if pair:
        code, number = int(pair[1]) & 0xFF, int(pair[2])
        if not number:
            return code
        return 137 if number == 125 else 128 + (number & 0x7F)
    if not re.fullmatch(r"\d+", text):
        return None
    raw = int(text)
    if raw >= 0xFFFFFFFE:
        return None
    return 128 + (raw & 0x7F) if raw & 0x7F else (raw >> 8) & 0xFF


def exit_code(native: str, text: str) -> int | None:
    """The exit code of a job that has ended: never 0 for one that did not succeed (design 6.3).

    None while it has not ended.
    """
    state = state_of(native)
    if not state.terminal:
        return None
    code = wait_status(text)
    if state is State.SUCCEEDED:
        return code if code is not None else 0
    if code:
        return code
    return next((_END_CODES[n] for n in parts(native) if n in _END_CODES), 1)


def state_words(native: str) -> str:
    """A state that needs words, in words; "" for the plain ones."""
    return "; ".join(_WORDS[n] for n in parts(native) if n in _WORDS)


REASONS: dict[str, str] = {
    "Priority": "jobs with a higher priority are before it",
    "Resources": "the resources it asks for are in use",
    "Dependency": "a job that it depends on has not ended",
    "DependencyNeverSatisfied": "a job that it depends on ended in a way that it can never start",
    "BeginTime": "its begin time has not come",
    "JobHeldUser": "it is held by its user",
    "JobHeldAdmin": "it is held by an administrator",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "PartitionNodeLimit": "it asks for more nodes than its partition gives",
    "PartitionTimeLimit": "it asks for more time than its partition gives",
    "ReqNodeNotAvail": "a node that it asks for is not available",
    "Reservation": "its reservation has not begun",
    "ReservationDeleted": "its reservation was deleted",
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "no node fits its constraints",
    "Licenses": "it waits for a licence",
    "JobArrayTaskLimit": "its array runs as many tasks at once as it may",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "QOSNotAllowed": "its QOS is not allowed in this partition",
    "JobHoldMaxRequeue": "it was requeued too often and is held",
    "JobLaunchFailure": "it could not be launched",
    "NonZeroExitCode": "the program ended with a failure",
    "RaisedSignal": "a signal ended it",
    "TimeLimit": "it ran into its time limit",
    "OutOfMemory": "it used more memory than it had asked for",
    "Cleaning": "it was requeued and its last run is still being tidied up",
    "Prolog": "its prolog is running",
    "SystemFailure": "Slurm itself failed",
    "InactiveLimit": "it was inactive for too long",
    "MaxMemPerLimit": "it asks for more memory than a limit allows",
    "DeadLine": "its deadline has passed or cannot be met",
    "NodesLost": "nodes were lost",
    "launch_failed_requeued_held": "the launch failed; it was requeued and is held",
}  # fmt: skip

_LIMITS = (
    (re.compile(r"^(Assoc|QOS)(Grp|Max)(.*?)(Per\w+?)?(Limit)?$"), "a limit of its {who}: {what}"),
    (re.compile(r"^(QOS)(Min)(.*)$"), "below a minimum of its {who}: {what}"),
)


def reason_words(reason: str) -> str:
    """Slurm's reason in words; an unknown one as it stands, none as "".

    The list is squeue(1) JOB REASON CODES; the many `Assoc…Limit` and `QOS…Limit` are put together.
    """
    plain = reason.strip()
    if plain in ("", "None", "(null)"):
        return ""
    head = re.split(r"[\s,(]", plain, maxsplit=1)[0]
    if head in REASONS:
        return REASONS[head]
    for pattern, words in _LIMITS:
        found = pattern.match(head)
        if found:
            who = "QOS" if found[1] == "QOS" else "account association"
            return words.format(who=who, what=head)
    return plain
