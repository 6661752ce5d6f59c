"""What this package itself keeps in a record."""

from __future__ import annotations

from typing import Any

import msgspec

from hpcsh.model import State, Workload
from hpcsh.store import Record


def facts(record: Record) -> dict[str, Any]:
    """What this package itself keeps in a record: `unknown_at`, `restarts`, `missing`, `stdout`, …"""
    return dict(record.extra.get("slurm", {}))


def with_facts(record: Record, **changed: Any) -> Record:
    """The record with some of these facts changed; None removes one."""
    kept = {k: v for k, v in {**facts(record), **changed}.items() if v is not None}
    return msgspec.structs.replace(record, extra={**record.extra, "slurm": kept})


def blank(record: Record) -> Workload:
    """A workload of which nothing is known but its record."""
    return Workload(
        id=record.id, name=record.name, kind=record.kind, state=State.UNKNOWN, engine=record.engine,
        native_id=record.native_id, submitted=record.created, directory=record.directory,
    )  # fmt: skip
