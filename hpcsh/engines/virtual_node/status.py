"""The records of pods, refined: what `pods.status` needs, taken from a record and its marks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hpcsh.engines.jobs import Mark
from hpcsh.model import LogOptions, Workload
from hpcsh.pods import status
from hpcsh.store import Record


def pod_facts(record: Record) -> dict[str, Any]:
    """What a record keeps of its pod; {} for a job that is none."""
    found = record.extra.get("pod")
    return found if isinstance(found, dict) else {}


def pod_parts(record: Record) -> list[status.Part]:
    """The containers of a record's pod."""
    return msgspec.convert(pod_facts(record).get("parts", []), list[status.Part])


def refine(record: Record, workload: Workload, marks: Sequence[Mark]) -> Workload:
    """A pod with its containers; any other job unchanged."""
    if not pod_facts(record):
        return workload
    happenings = [status.Happening(m.at, m.what, m.who, m.value) for m in marks]
    return status.refine(workload, pod_parts(record), happenings)


def log_files(record: Record, workload: Workload, options: LogOptions) -> dict[str, str]:
    """The log of each container, or the job's own.

    As kubectl: without `-c` an init container's log is not meant; all containers in the order they start.
    """
    if not pod_facts(record):
        return {"": f"{record.directory}/job.out"}
    every = bool(options.container) or options.all_containers
    return {
        p.name: f"{record.directory}/{'init' if p.init else 'run'}-{p.name}.out"
        for p in pod_parts(record)
        if every or not p.init
    }
