"""PRRTE's command lines. Pure: everything is argv, nothing passes a shell.

Options: prun(1) and prterun(1) of PRRTE 3; differences to PRRTE 5 are said where they are known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from hpcsh.errors import UsageError
from hpcsh.model import Resources

MARK = "HPCSH_LAUNCH"
"""Variable that every rank of a launch carries, so that `sweep` finds them on any node."""

TOOLS = ("prun", "prterun")
PTERM = ("pterm", "pterm.openmpi", "pterm.prrte", "prte-term")
"""Names of pterm: PRRTE 3, Debian's Open MPI 5, Debian's PRRTE, PRRTE 5."""

SERVER_VARIABLES = (
    "PMIX_SERVER_URI", "PMIX_SERVER_URI2", "PMIX_SERVER_URI21", "PMIX_SERVER_URI3", "PMIX_SERVER_URI4",
    "PMIX_SERVER_URI41", "PMIX_SERVER_URI5", "PMIX_SERVER_TMPDIR", "PMIX_SERVER_PIDINFO", "PMIX_NAMESPACE",
    "PMIX_RANK", "PRTE_MCA_schizo_proxy",
)  # fmt: skip
"""What could lead a tool to another server than the named one (prrte#406); removed for every launch."""

_WHICH_DVM = frozenset(
    {"--dvm-uri", "--dvm", "--pid", "--namespace", "--system-server-first", "--system-server-only",
     "--do-not-connect"}
)  # fmt: skip
_OURS = frozenset({"--daemonize", "--report-uri", "--report-pid", "--set-sid", "--singleton", "--keepalive"})
_MAPPING = frozenset(
    {"--map-by", "-map-by", "--ppr", "--npernode", "-npernode", "--pernode", "-pernode", "-N", "--rankfile"}
)
_NUL = re.compile(r"\0")


@dataclass(frozen=True)
class Command:
    """A command line and what is laid over its environment (None removes a name)."""

    argv: tuple[str, ...]
    env: Mapping[str, str | None] = field(default_factory=dict)


def mca_variables(mca: Mapping[str, str]) -> dict[str, str]:
    """A profile's MCA parameters as variables.

    `PRTE_MCA_x`, `OMPI_MCA_x` and `PMIX_MCA_x` are taken as they are; a bare `x` is told to all three, for
    each of them ignores what it does not know. Raises `UsageError` for a name that is none.
    """
    variables: dict[str, str] = {}
    for name, value in mca.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or "\0" in value:
            raise UsageError(f"{name!r} is no MCA parameter.", fix="correct `pmix.mca` in the profile")
        prefixed = re.match(r"(PRTE|OMPI|PMIX)_MCA_.", name)
        names = [name] if prefixed else [f"{p}_MCA_{name}" for p in ("PRTE", "OMPI", "PMIX")]
        variables.update(dict.fromkeys(names, value))
    return variables


SPAWN_IN_LINE = ("--prtemca", "odls_base_max_threads", "0")
"""Daemons start ranks in their event loop, not in 16 threads beside it.

With the threads (the default of a DVM, and of prterun's daemons) PRRTE 3.0.8 forks in one thread and reaps in
another: a rank that ends before its process id is noted is forgotten, the launch never ends, and its slots
are lost. Seen with `hostname` on three nodes in 1 to 3 of 100 launches; never in 700 with this.
"""


def dvm_argv(uri_path: str) -> list[str]:
    """The command line of the DVM, which stays in the foreground."""
    return ["prte", *SPAWN_IN_LINE, "--report-uri", uri_path]


def check_options(tool: str, options: Sequence[str], program: Sequence[str]) -> None:
    """Refuse what cannot be launched, and options that would lead to another DVM. Raises `UsageError`."""
    if tool not in TOOLS:
        raise UsageError(f"{tool!r} launches nothing.", why=f"Tools: {', '.join(TOOLS)}")
    if not program or not program[0]:
        raise UsageError(f"{tool}: no program to launch.", fix=f"`hpcsh {tool} [options] PROGRAM [ARG...]`")
    for word in (*options, *program):
        if _NUL.search(word):
            raise UsageError(f"{tool}: a word contains a NUL byte.")
    for word in options:
        name = word.partition("=")[0]
        if name in _WHICH_DVM:
            raise UsageError(
                f"{tool}: {name} is said by hpcsh.",
                why="a launch always goes into the environment's own DVM",
                fix="choose the environment with --in NAME",
            )
        if name in _OURS:
            raise UsageError(f"{tool}: {name} is not possible here: hpcsh follows the launch to its end.")


def marked(options: Sequence[str], program: Sequence[str], launch_id: str) -> list[str]:
    """Options and program with the launch's mark in every application context.

    `:` begins a further context (`prun -n 1 a : -n 2 b`), which has options of its own: `-x` holds for one.
    """
    mark = ["-x", f"{MARK}={launch_id}"]
    words = [*mark, *options]
    for word in program:
        words.append(word)
        if word == ":":
            words += mark
    return words


def kept_by_prun(word: str) -> str:
    """A word of which prun makes `word`: it strips one double quote from each end of every argument.

    So do all of PRRTE 3.0 to 5.0 (`pmix_argv_copy_strip` in prun.c); prterun does not.
    """
    return ('"' if word.startswith('"') else "") + word + ('"' if word.endswith('"') else "")


def value_of(options: Sequence[str], *names: str) -> str:
    """The value of an option that has several names, "" when it is not said; the last one counts."""
    found = ""
    for i, word in enumerate(options):
        name, equals, value = word.partition("=")
        if name in names:
            found = value if equals else "".join(options[i + 1 : i + 2])
    return found


def personality(options: Sequence[str]) -> str:
    """The value of `--personality`, "" when it is not said."""
    return value_of(options, "--personality")


def launch_command(
    tool: str, options: Sequence[str], program: Sequence[str], *, launch_id: str, map_by: str | None = None,
    uri_path: str = "", uri: str = "",
) -> Command:  # fmt: skip
    """The command line of a launch; `map_by` is the profile's default where the options say none.

    The DVM is named by `--dvm-uri`. Another personality than PRRTE's own does not know that option (3.0.8:
    "unrecognized option"; 5.0.0rc1 too), so with one the server's variables say it instead.
    """
    check_options(tool, options, program)
    env: dict[str, str | None] = dict.fromkeys(SERVER_VARIABLES)
    words = [tool]
    if tool == "prun":
        if personality(options) in ("", "prte"):
            words += ["--dvm-uri", f"file:{uri_path}"]
        else:
            env.update({"PMIX_SERVER_URI": uri, "PMIX_SERVER_URI41": uri})
    elif SPAWN_IN_LINE[1] not in options:
        words += SPAWN_IN_LINE
    if map_by and not any(o.partition("=")[0] in _MAPPING for o in options):
        words += ["--map-by", map_by]
    rest = marked(options, program, launch_id)
    return Command((*words, *(map(kept_by_prun, rest) if tool == "prun" else rest)), env)


def head_argv(job: str, head: str) -> list[str]:
    """The step that carries our agent on an allocation's first node.

    It takes nothing from anyone: `--overlap` shares the cpus, `--mem=0` the memory, `--gres=none` asks for no
    device, and `--mpi=none` keeps Slurm's own PMIx variables away from the agent. `--unbuffered`: without it
    slurmstepd hands on whole lines only, and the agent's frames are none.
    """
    return [
        "srun", f"--jobid={job}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={head}", "--mem=0",
        "--gres=none", "--mpi=none", "--cpu-bind=none", "--unbuffered", "--job-name=hpcsh", "--quiet",
    ]  # fmt: skip


def even(resources: Resources, defaults: Resources) -> Resources:
    """What an allocation asks for, its tasks spread evenly: `-N 3 -n 6` means two slots on each node.

    Slurm alone fills one node after the other (seen: 4, 1, 1). And a DVM does not begin anew: no requeue.
    """
    both = resources.over(defaults)
    flags = resources.flags
    nodes = both.nodes or ""
    said = any(f.startswith("--ntasks-per-node") for f in both.flags)
    if both.ntasks and nodes.isdigit() and int(nodes) and not said:
        flags = (*flags, f"--ntasks-per-node={-(-both.ntasks // int(nodes))}")
    return msgspec.structs.replace(resources, flags=(*flags, "--no-requeue"))
