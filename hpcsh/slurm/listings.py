"""Pure parsing of what sinfo and scontrol print."""

from __future__ import annotations

import re

from hpcsh.model import Node
from hpcsh.slurm.parse import RS, US, number_in, value_of

MIB = 1024 * 1024

SINFO_FIELDS = ("NodeHost", "StateLong", "CPUsState", "Memory", "AllocMem", "Gres", "Partition", "Reason")


def parse_nodes(text: str) -> list[Node]:
    """The nodes in `sinfo -h -N -a -O <SINFO_FIELDS>`: one row for each node and partition."""
    nodes: dict[str, Node] = {}
    for piece in text.split(f"{RS}\n"):
        values = [value_of(v.strip()) for v in piece.split(US, len(SINFO_FIELDS) - 1)]
        if len(values) != len(SINFO_FIELDS):
            continue
        row = dict(zip(SINFO_FIELDS, values, strict=True))
        name, partition = row["NodeHost"], row["Partition"].removesuffix("*")
        before = nodes[name].partitions if name in nodes else ()
        cpus = [number_in(n) for n in row["CPUsState"].split("/")]
        total, used = number_in(row["Memory"]) * MIB, row["AllocMem"]
        nodes[name] = Node(
            name=name,
            state=row["StateLong"].lower(),
            partitions=tuple(sorted({*before, partition})),
            cpus=cpus[3] if len(cpus) == 4 else 0,
            cpus_used=cpus[0],
            memory=total,
            memory_free=max(0, total - number_in(used) * MIB) if used.isdigit() else None,
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
