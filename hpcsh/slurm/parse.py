"""Pure parsing of what squeue, sacct, sinfo and scontrol print.

squeue and sinfo are asked by `-O FIELD:0<suffix>`: width 0 prints a value whole (an `-O` field without a
width is cut at 20 columns), the suffix is our separator. Fields are separated by US (0x1f) and records ended
by RS (0x1e), which no tool prints by itself; values of fixed form come first and free text last, so that
a name or comment with delimiters, newlines or control characters can damage neither ids nor states.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from hpcsh.model import Node, State
from hpcsh.slurm.job import Job
from hpcsh.slurm.states import exit_code, state_of

US = "\x1f"
RS = "\x1e"
MIB = 1024 * 1024

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

SINFO_FIELDS = ("NodeHost", "StateLong", "CPUsState", "Memory", "AllocMem", "Gres", "Partition", "Reason")


def long_format(fields: Sequence[str]) -> str:
    """The argument of `-O` that prints these fields whole, US between them and RS after the last."""
    return ",".join(f"{f}:0{RS if i == len(fields) - 1 else US}" for i, f in enumerate(fields))


def queue_format() -> str:
    """The argument of `squeue -O`."""
    return long_format((*QUEUE_FIXED, *QUEUE_FREE))


def _value(text: str) -> str:
    """A value, or "" for Slurm's ways to say that there is none."""
    return "" if text in ("(null)", "N/A", "None assigned", "Unknown", "NONE", "n/a") else text


def _number(text: str) -> int:
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
    if _value(task):
        return f"{array}_{task}" if task.isdigit() else f"{array}_[{task}]"
    if _value(het) and het != "0":
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
    for values in _records(text, _QUEUE_START, len(QUEUE_FIXED), len(QUEUE_FREE), _queue_pieces):
        row = dict(zip((*QUEUE_FIXED, *QUEUE_FREE), values, strict=True))
        job = _queue_job(row)
        known = jobs.get(job.id)
        # A job that waits in several partitions has one row for each.
        if known is None or known.state.terminal:
            jobs[job.id] = job
    return jobs


def _queue_job(row: dict[str, str]) -> Job:
    native, state = row["State"], state_of(row["State"])
    extra = {
        "raw": row["JobID"],
        "stdout": _value(row["StdOut"]),
        "qos": _value(row["QOS"]),
        "account": _value(row["Account"]),
        "priority": _value(row["PriorityLong"]),
        "uid": row["UserID"],
    }
    return Job(
        id=job_id(row["JobID"], row["ArrayJobID"], row["ArrayTaskID"], row["HetJobID"], row["HetJobOffset"]),
        name=_value(row["Name"]),
        user=row["UserName"],
        state=state,
        native=native,
        reason=_value(row["Reason"]) if row["Reason"] != "None" else "",
        comment=_value(row["Comment"]),
        partition=_value(row["Partition"]),
        nodes=_value(row["NodeList"]),
        node_count=_number(row["NumNodes"]),
        cpus=_number(row["NumCPUs"]),
        submitted=epoch(row["SubmitTime"]),
        # A waiting job's start and end are Slurm's estimate.
        started=None if state is State.PENDING else epoch(row["StartTime"]),
        ended=epoch(row["EndTime"]) if state.terminal else None,
        time_limit=duration(row["TimeLimit"]),
        exit_code=exit_code(native, row["exit_code"]),
        directory=_value(row["WorkDir"]),
        command=_value(row["Command"]),
        restarts=_number(row["RestartCnt"]),
        extra={k: v for k, v in extra.items() if v},
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
        nodes=_value(row["NodeList"]),
        node_count=_number(row["NNodes"]),
        cpus=_number(row["AllocCPUS"]),
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


def parse_nodes(text: str) -> list[Node]:
    """The nodes in `sinfo -h -N -a -O <SINFO_FIELDS>`: one row for each node and partition."""
    nodes: dict[str, Node] = {}
    for piece in text.split(f"{RS}\n"):
        values = [_value(v.strip()) for v in piece.split(US, len(SINFO_FIELDS) - 1)]
        if len(values) != len(SINFO_FIELDS):
            continue
        row = dict(zip(SINFO_FIELDS, values, strict=True))
        name, partition = row["NodeHost"], row["Partition"].removesuffix("*")
        before = nodes[name].partitions if name in nodes else ()
        cpus = [_number(n) for n in row["CPUsState"].split("/")]
        total, used = _number(row["Memory"]) * MIB, row["AllocMem"]
        nodes[name] = Node(
            name=name,
            state=row["StateLong"].lower(),
            partitions=before if partition in before else (*before, partition),
            cpus=cpus[3] if len(cpus) == 4 else 0,
            cpus_used=cpus[0],
            memory=total,
            memory_free=max(0, total - _number(used) * MIB) if used.isdigit() else None,
            gres="" if row["Gres"] == "(null)" else row["Gres"],
            reason="" if row["Reason"].lower() == "none" else row["Reason"],
        )
    return list(nodes.values())


_WHOLE_LINE = frozenset({
    "Command", "WorkDir", "StdErr", "StdIn", "StdOut", "Comment", "AdminComment", "SystemComment",
    "SubmitLine",
})  # fmt: skip
_FACT = re.compile(r"(?:(?<=\s)|^)([A-Z][A-Za-z_/:]*)=")


def parse_facts(text: str, job_id: str) -> list[tuple[str, str]]:
    """What `scontrol show job` says of one job; of an array that is asked as a whole, its first task."""
    records = [
        _record_facts(r) for r in re.split(r"\n\s*\n(?=JobId=)", text.strip()) if r.startswith("JobId=")
    ]
    for facts in records:
        said = dict(facts)
        if job_id in (said["JobId"], f"{said.get('ArrayJobId')}_{said.get('ArrayTaskId')}"):
            return facts
    return records[0] if records else []


def _record_facts(text: str) -> list[tuple[str, str]]:
    """One record as ordered pairs.

    A line holds several `Key=Value` pairs, values may hold blanks; free text runs to the end of its line, and
    a line that is not indented and begins no record goes on with a value that had a newline in it.
    """
    facts: list[tuple[str, str]] = []
    for line in text.rstrip().split("\n"):
        begins = line.startswith(("   ", "JobId="))
        found = list(_FACT.finditer(line.strip())) if begins else []
        if not found:
            if facts and line:
                facts[-1] = (facts[-1][0], f"{facts[-1][1]}\n{line.rstrip()}")
            continue
        facts.extend(_line_facts(line.strip(), found))
    return facts


def _line_facts(line: str, found: list[re.Match[str]]) -> list[tuple[str, str]]:
    if found[0][1] in _WHOLE_LINE:
        return [(found[0][1], line[found[0].end() :])]
    names = [m[1] for m in found]
    if "JobName" in names:
        found = found[: names.index("JobName") + 1]
    ends = [*(m.start() for m in found[1:]), len(line)]
    return [(m[1], line[m.end() : end].rstrip()) for m, end in zip(found, ends, strict=True)]


def submitted_id(stdout: str) -> str | None:
    """The job id in the output of `sbatch --parsable`, `ID` or `ID;CLUSTER` on a line of its own.

    Banners of wrappers and of site plugins around it are skipped; when several lines look like an id, the
    last counts, since sbatch prints it last.
    """
    found = re.findall(r"^(\d+)(?:;[\w.-]+)?\s*$", stdout, re.MULTILINE)
    found = found or re.findall(r"Submitted batch job (\d+)", stdout)
    return found[-1] if found else None
