"""Which workload a reference names. Pure; rules: `engines.base.Engine`."""

from __future__ import annotations

from collections.abc import Sequence

from hpcsh.errors import UsageError
from hpcsh.model import Workload


def find(ref: str, workloads: Sequence[Workload]) -> Workload | None:
    """An id, a native job id, a name that only one has, or the unique beginning of an id of ours.

    Of several that fit by name or beginning, one that has not ended goes first when it is the only one.
    Raises `UsageError` that lists them when the reference is ambiguous.
    """
    if not ref:
        raise UsageError("An empty reference names nothing.")
    for exact in ("id", "native_id"):
        found = [w for w in workloads if getattr(w, exact) == ref]
        if found:
            return _one(ref, found)
    found = [w for w in workloads if w.name == ref]
    found = found or [w for w in workloads if w.ours and w.id.startswith(ref)]
    return _one(ref, found) if found else None


def _one(ref: str, found: Sequence[Workload]) -> Workload:
    alive = [w for w in found if not w.state.terminal]
    if len(found) == 1 or len(alive) == 1:
        return (alive or found)[0]
    listed = ", ".join(f"{w.id} ({w.name}, {w.state})" for w in found[:10])
    raise UsageError(f"{ref!r} names {len(found)} workloads.", why=listed, fix="use the id")
