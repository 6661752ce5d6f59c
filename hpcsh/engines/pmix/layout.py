"""Names of the files of an environment, and the two texts that are made from them. Pure.

An environment is a workload of kind ALLOCATION; its files lie in `<its directory>/dvm/`:

- `argv`, `env`    prte's command line and variables, NUL-separated, staged with the job
- `launch`, `sweep` what runs and ends launches on the nodes, staged with the job
- `facts`          job, first node, nodes and tasks, written by the job
- `slurm.env`      the job's own `SLURM_*` variables, NUL-separated, written by the job
- `uri`            where the DVM answers; there only while it runs
- `launches/ID`    one for each launch under way: process ids and start times of launcher and tool
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files

PLACE = "dvm"
ARGV, ENV, LAUNCH, SWEEP = "argv", "env", "launch", "sweep"
FACTS, JOB_ENV, URI, LAUNCHES = "facts", "slurm.env", "uri", "launches"
ONE_SHOT = "launch"
"""Directory of `argv`, `env`, `out` and `err` of a one-shot launch, or a command, in its job's directory."""
OUT, ERR = "out", "err"

ORPHAN_INTERVAL = 5
"""Seconds after which the ranks of a launch are ended whose launcher was killed."""


@cache
def script(name: str) -> bytes:
    """One of our scripts that run on the nodes."""
    return (files("hpcsh.engines.pmix") / "templates" / name).read_bytes()


@cache
def _render(name: str) -> str:
    from jinja2 import Environment, StrictUndefined

    env = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return env.from_string(script(name).decode()).render(
        place=PLACE, argv=ARGV, env=ENV, launch=LAUNCH, facts=FACTS, job_env=JOB_ENV, uri=URI,
        launches=LAUNCHES, interval=ORPHAN_INTERVAL, one_shot=ONE_SHOT, out=OUT, err=ERR,
    )  # fmt: skip


def dvm_body() -> str:
    """The body of an allocation's job: it runs prte until it is told to end. Holds nothing of a user's."""
    return _render("dvm.sh.j2")


def one_shot_body() -> str:
    """The body of a job that runs one prterun. Holds nothing of a user's."""
    return _render("prterun.sh.j2")


def command_body() -> str:
    """The body of a job that runs one command. Holds nothing of a user's."""
    return _render("command.sh.j2")


def words(items: Iterable[str]) -> bytes:
    """Strings as a file that the bodies read: each ends with NUL."""
    return b"".join(item.encode("utf-8", "surrogateescape") + b"\0" for item in items)


def assignments(env: Mapping[str, str]) -> bytes:
    """Variables as a file that the bodies read: `NAME=VALUE`, each ending with NUL."""
    return words(f"{name}={value}" for name, value in env.items())


def parse_assignments(data: bytes) -> dict[str, str]:
    """The variables in such a file, or in the output of `env -0`."""
    pairs = (item.decode("utf-8", "surrogateescape").partition("=") for item in data.split(b"\0"))
    return {name: value for name, equals, value in pairs if equals}
