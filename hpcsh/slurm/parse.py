"""Pure parsing of what squeue, sacct and sbatch print.

squeue is asked by `-O FIELD:0<suffix>`: width 0 prints a value whole (an `-O` field without a
width is cut at 20 columns), the suffix is our separator. Fields are separated by US (0x1f) and records ended
by RS (0x1e), which no tool prints by itself; values of fixed form come first and free text last, so that
a name or comment with delimiters, newlines or control characters can damage neither ids nor states.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

from hpcsh.model import State
from hpcsh.slurm.job import Job
from hpcsh.slurm.states import exit_code, state_of

US = "\x1f"
RS = "\x1e"

QUEUE_FIXED = (
    "JobID", "ArrayJobID", "ArrayTaskID", "HetJobID", "HetJobOffset", "State", "exit_code", "RestartCnt",
    "UserID", "UserName", "NumNodes", "NumCPUs", "SubmitTime", "StartTime", "EndTime", "TimeLimit",
    "PriorityLong", "QOS", "Account", "Partition", "NodeList",
)  # fmt: skip
QUEUE_FREE = ("Reason", "WorkDir", "StdOut", "Command", "Name", "Comment")

SACCT_FIXED = (
    "JobID", "JobIDRaw", "State", "ExitCode", "Submit", "Start", "End", "TimelimitRaw", "NNodes", "AllocCPUS",
    "UID", "User", "QOS", "Account", "Partition", "NodeList",
)  # fmt: skip
SACCT_FREE = ("Reason", "WorkDir", "SubmitLine", "JobName", "Comment")


def long_format(fields: Sequence[str]) -> str:
    """The argument of `-O` that prints these fields whole, US between them and RS after the last."""
    return ",".join(f"{f}:0{RS if i == len(fields) - 1 else US}" for i, f in enumerate(fields))


def queue_format() -> str:
    """The argument of `squeue -O`."""
    return long_format((*QUEUE_FIXED, *QUEUE_FREE))


_NOTHING = frozenset({"", "(null)", "N/A", "None assigned", "Unknown", "NONE", "n/a"})


def value_of(text: str) -> str:
    """A value, or "" for Slurm's ways to say that there is none."""
    return "" if text in _NOTHING else text


def number_in(text: str) -> int:
    """The whole number at the beginning of a text, else 0."""
    found = re.match(r"\d+", text.strip())
    return int(found[0]) if found else 0


def epoch(text: str) -> float | None:
    """A time stamp under `SLURM_TIME_FORMAT=%s`; None for `N/A`, `Unknown`, `None` and 0."""
    return float(text) if re.fullmatch(r"[1-9]\d{0,11}", text.strip()) else None


def duration(text: str) -> float | None:
    """Seconds of `[D-][[HH:]MM:]SS`; None for UNLIMITED, NOT_SET, INVALID, Partition_Limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text.strip())
    if not found:
        return None
    days, hours, minutes, seconds = (int(g or 0) for g in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def job_id(raw: str, array: str, task: str, het: str, offset: str) -> str:
    """The id as Slurm's users write it: `12`, `12_4`, `12_[3-9%2]`, `12+0`.

    A job whose own id differs from its array's is shown by the array's id and the task.
    """
    if value_of(task):
        return f"{array}_{task}" if task.isdigit() else f"{array}_[{task}]"
    if value_of(het) and het != "0":
        return f"{het}+{offset}"
    return raw


def base_id(any_id: str) -> str:
    """The number that Slurm takes for all of an array or het job: `12_4`, `12+0`, `12;c` → `12`."""
    found = re.match(r"\d+", any_id)
    return found[0] if found else any_id


def _records(
    text: str, start: re.Pattern[str], fixed: int, free: int, split: Callable[[str], Iterable[str]]
) -> Iterable[list[str]]:
    """Cut output into records of exactly `fixed + free` values; what is no record (banners) is skipped.

    Surplus separators can only come from free text: they are left in the last value.
    """
    for piece in split(text):
        found = start.search(piece)
        if found is None:
            continue
        values = piece[found.start() :].split(US, fixed + free - 1)
        if len(values) == fixed + free:
            yield values


# The head of a record up to its times. Free text would have to imitate all of it to be taken for one.
_PLAIN = f"[^{US}{RS}\\n]*{US}"
_HEAD = rf"\d+{US}\d+{US}(?:{_PLAIN}){{3}}[A-Z?_]+{US}{_PLAIN}\d*{US}\d+{US}(?:{_PLAIN}){{7}}"
_QUEUE_START = re.compile(rf"(?:(?<=\n)|^){_HEAD}")
_QUEUE_END = re.compile(rf"{RS}\n(?={_HEAD}|\Z|[^{US}{RS}\n]*\n{_HEAD})")


def _queue_pieces(text: str) -> list[str]:
    # A record ends with RS and a newline. What follows is the next one's head, the end, or a line of words
    # (`CLUSTER: name`) before the next one.
    return _QUEUE_END.split(text)


def parse_queue(text: str) -> dict[str, Job]:
    """The jobs in `squeue -h -O <queue_format()>`, by id.

    An answer that was cut off in the middle of a record loses that record only; the caller knows by the
    exit status that it is not complete.
    """
    jobs: dict[str, Job] = {}
    for values in _queue_records(text):
        job = _queue_job(values)
        known = jobs.get(job.id)
        # A job that waits in several partitions has one row for each.
        if known is None or known.state.terminal:
            jobs[job.id] = job
    return jobs


def _queue_records(text: str) -> Iterable[list[str]]:
    """Records by plain splitting, which is right when every one has its fields; else by their heads."""
    count = len(QUEUE_FIXED) + len(QUEUE_FREE)
    pieces = text.split(f"{RS}\n")
    rows = [piece.split(US) for piece in pieces[:-1]]
    if not pieces[-1] and all(len(r) == count and r[0].isdigit() for r in rows):
        return rows
    return _records(text, _QUEUE_START, len(QUEUE_FIXED), len(QUEUE_FREE), _queue_pieces)


# Thousands of rows share few words and times.
_state = lru_cache(maxsize=4096)(state_of)
_time = lru_cache(maxsize=65536)(epoch)
_limit = lru_cache(maxsize=4096)(duration)
_code = lru_cache(maxsize=4096)(exit_code)


def _queue_job(values: list[str]) -> Job:
    (
        raw, array, task, het, offset, native, code, restarts, uid, user, nodes, cpus, submitted, started,
        ended, limit, priority, qos, account, partition, hosts, reason, directory, stdout, command, name,
        comment,
    ) = values  # fmt: skip
    state = _state(native)
    over = state.terminal
    extra = {"raw": raw, "uid": uid}
    for key, value in (("stdout", stdout), ("qos", qos), ("account", account), ("priority", priority)):
        if value not in _NOTHING:
            extra[key] = value
    return Job(
        id=raw if task == "N/A" and het == "N/A" else job_id(raw, array, task, het, offset),
        name=value_of(name),
        user=user,
        state=state,
        native=native,
        reason="" if reason == "None" else value_of(reason),
        comment=value_of(comment),
        partition=value_of(partition),
        nodes=value_of(hosts),
        node_count=int(nodes) if nodes.isdigit() else number_in(nodes),
        cpus=int(cpus) if cpus.isdigit() else number_in(cpus),
        submitted=_time(submitted),
        # A waiting job's start and end are Slurm's estimate.
        started=None if state is State.PENDING else _time(started),
        ended=_time(ended) if over else None,
        time_limit=_limit(limit),
        exit_code=_code(native, code) if over else None,
        directory=value_of(directory),
        command=value_of(command),
        restarts=number_in(restarts),
        extra=extra,
    )


_SACCT_START = re.compile(rf"^\d+(?:[_+][^{US}\n]*)?{US}\d+(?:\+\d+)?{US}[A-Z?_]", re.MULTILINE)


def _sacct_pieces(text: str) -> list[str]:
    starts = [m.start() for m in _SACCT_START.finditer(text)]
    return [text[a:b].removesuffix("\n") for a, b in pairwise([*starts, len(text)])]


def parse_accounting(text: str) -> dict[str, Job]:
    """The jobs in `sacct -n -X -P --delimiter=US -o …`, by id; steps are not asked for."""
    jobs: dict[str, Job] = {}
    for values in _records(text, _SACCT_START, len(SACCT_FIXED), len(SACCT_FREE), _sacct_pieces):
        job = _sacct_job(dict(zip((*SACCT_FIXED, *SACCT_FREE), values, strict=True)))
        jobs[job.id] = job
    return jobs


def _sacct_job(row: dict[str, str]) -> Job:
    native, state = row["State"], state_of(row["State"])
    limit = row["TimelimitRaw"]
    return Job(
        id=row["JobID"],
        name=row["JobName"],
        user=row["User"],
        state=state,
        native=native,
        reason=row["Reason"] if row["Reason"] != "None" else "",
        comment=row["Comment"],
        partition=row["Partition"],
        nodes=value_of(row["NodeList"]),
        node_count=number_in(row["NNodes"]),
        cpus=number_in(row["AllocCPUS"]),
        submitted=epoch(row["Submit"]),
        started=epoch(row["Start"]),
        ended=epoch(row["End"]),
        time_limit=float(limit) * 60 if limit.isdigit() else None,
        exit_code=exit_code(native, row["ExitCode"]),
        directory=row["WorkDir"],
        extra={
            "raw": row["JobIDRaw"],
            "submit_line": row["SubmitLine"],
            "uid": row["UID"],
            "account": row["Account"],
        },
    )


def submitted_id(stdout: str) -> str | None:
    """The job id in the output of `sbatch --parsable`, `ID` or `ID;CLUSTER` on a line of its own.

    Banners of wrappers and of site plugins around it are skipped; when several lines look like an id, the
    last counts, since sbatch prints it last.
    """
    found = re.findall(r"^(\d+)(?:;[\w.-]+)?\s*$", stdout, re.MULTILINE)
    found = found or re.findall(r"Submitted batch job (\d+)", stdout)
    return found[-1] if found else None
