"""What engines hand to `Jobs`, and the marks that a job's own script leaves."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcsh.model import Kind, Resources, Workload
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
    """A line of `marks`.

    `start` has the job id as `who` and the path of its standard output as `value`. `end CODE`, `signal NAME`
    and `restart COUNT` (after the `start` of a requeued job) have only a `value`. Anything else has its first
    word as `who` and the rest as `value`.
    """

    at: float
    what: str
    who: str = ""
    value: str = ""


@dataclass(frozen=True)
class JobSpec:
    """A job to submit. `body` is the bash code after header, guard and setup; the template adds those.

    `resources` is what the user said; the profile's defaults are laid under it here. `header` are `#SBATCH`
    lines taken over verbatim from a user's script (they count more than the profile's defaults, less than
    `resources`). `output` is the job's own log relative to the directory, or None to leave sbatch's default.
    The body finds its directory in `$hpcsh_dir` and writes marks with `hpcsh_mark WHAT [WHO] [VALUE]`.
    """

    id: str
    name: str
    kind: Kind
    resources: Resources
    body: str
    files: tuple[Staged, ...] = ()
    header: tuple[str, ...] = ()
    output: str | None = "job.out"
    cwd: str | None = None
    inherit_env: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


Refine = Callable[[Record, Workload, Sequence[Mark]], Workload]
"""How an engine fills in a workload of its own from the marks of its present run: children, reasons.

Pure; called while the workload is not final, and once more when it becomes so.
"""

_LINE = re.compile(r"(\d+(?:\.\d*)?) ([a-z][a-z-]*)(?: (.*))?\Z", re.ASCII)


def parse_marks(data: bytes) -> list[Mark]:
    """The marks in the file's bytes; an unfinished last line and what is no mark are left out."""
    marks: list[Mark] = []
    text = data.decode("utf-8", "surrogateescape")
    for line in text[: text.rfind("\n") + 1].split("\n"):
        found = _LINE.match(line)
        if not found:
            continue
        rest = found[3] or ""
        who, value = ("", rest) if found[2] in ("end", "signal", "restart") else rest.partition(" ")[::2]
        marks.append(Mark(float(found[1]), found[2], who, value))
    return marks


def present_run(marks: Sequence[Mark]) -> list[Mark]:
    """The marks since the last `start`: a requeued job begins anew."""
    starts = [i for i, m in enumerate(marks) if m.what == "start"]
    return list(marks[starts[-1] :] if starts else marks)
