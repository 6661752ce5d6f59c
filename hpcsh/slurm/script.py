"""Rendering of the job script. Pure: no user data gets into its text (design 6.4).

The text holds our own code, ids and paths of ours (quoted), and the `#SBATCH` lines of a user's script. All
else lies in files beside it: `setup.sh`, `slurm_script`, `script.argv`, and what an engine stages.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from hpcsh import __version__
from hpcsh.errors import UsageError

GUARD_EXIT = 3
"""Exit code of a job that the guard stopped. Not 0, so that `afterok` dependencies do not go on."""

USER_SCRIPT = "slurm_script"
"""The staged script of a user; the name is the one that slurmd gives it too."""

USER_ARGV = "script.argv"
"""The arguments of that script, each one ended by a NUL."""

SETUP = "setup.sh"

if TYPE_CHECKING:
    from jinja2 import Template

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


@cache
def _source(name: str) -> str:
    return (files("hpcsh.slurm") / "templates" / name).read_text()


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    env = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return env.from_string(_source("job.slurm.j2"))


def check_id(workload_id: str) -> str:
    """A workload's id; `UsageError` when it could not be a file name."""
    if not _ID.match(workload_id):
        raise UsageError(f"{workload_id!r} is no workload id.")
    return workload_id


def check_path(path: str) -> str:
    """An absolute path on the target; `UsageError` when it is not, or holds control characters."""
    if not path.startswith("/") or re.search(r"[\x00-\x1f\x7f]", path):
        raise UsageError(f"{path!r} is no usable absolute path.", fix="set `workdir` in the profile")
    return path


def render(
    *, workload_id: str, directory: str, body: str, header: Sequence[str] = (), setup: bool = False,
    unset_export: bool = False,
) -> str:  # fmt: skip
    """The text of job.slurm: header, guard, marks, setup, then `body`.

    A body may call `hpcsh_mark WHAT [WHO] [VALUE]` and read `$hpcsh_dir`. It may replace the traps of HUP,
    INT and TERM (calling `hpcsh_mark signal NAME` in them), never that of EXIT, which writes `end CODE`.
    `unset_export`: undo for srun the `--export=NONE` that hpcsh itself added.
    """
    if any("\n" in line or not line.startswith("#S") for line in header):
        raise UsageError("A header line is not an #SBATCH line.")
    return _template().render(
        version=__version__,
        id=check_id(workload_id),
        directory=shlex.quote(check_path(directory)),
        header=header,
        body=body,
        setup=setup,
        unset_export=unset_export,
        guard_exit=GUARD_EXIT,
    )


def user_script_body() -> str:
    """The body that runs the staged `slurm_script` with the words of `script.argv`, and keeps its code."""
    return _source("run_script.sh")


def output_pattern(path: str) -> str:
    """A path as sbatch's --output takes it literally: `%` begins a pattern there."""
    if "\\" in path:
        raise UsageError(f"{path!r} cannot be a log file of Slurm: it contains a backslash.")
    return path.replace("%", "%%")


def expand_output(
    pattern: str, *, job: str, raw: str, name: str, user: str, nodes: str, directory: str
) -> str:
    """The path of a job's output from its pattern, as seen from node 0 of its batch step.

    Rules: sbatch(1) "filename pattern": %A %a %b %J %j %N %n %s %t %u %x %%, a width as in `%4j`, no
    patterns at all after a backslash. `job` is the id as users write it, `raw` its own number.
    """
    array, _, task = job.partition("_")
    task = task if task.isdigit() else ""
    values = {
        "A": array.partition("+")[0], "a": task or "4294967294", "b": str(int(task or 0) % 10),
        "J": raw, "j": raw,
        "N": first_host(nodes), "n": "0", "s": "batch", "t": "0", "u": user, "x": name, "%": "%",
    }  # fmt: skip

    def one(found: re.Match[str]) -> str:
        value = values.get(found[2])
        if value is None:
            return found[0]
        return value.zfill(int(found[1])) if found[1] and value.isdigit() else value

    path = pattern.replace("\\", "") if "\\" in pattern else re.sub(r"%(\d*)([A-Za-z%])", one, pattern)
    return path if path.startswith("/") else f"{directory.rstrip('/')}/{path}"


def first_host(nodes: str) -> str:
    """The first name of a Slurm host list: `n[1-3,7],m2` → `n1`."""
    found = re.match(r"([^,\[]*)(?:\[([^\],-]*)[^\]]*\])?([^,]*)", nodes)
    return "".join(g or "" for g in found.groups()) if found else ""
