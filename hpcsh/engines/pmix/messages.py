"""What PRRTE's words mean. Pure.

PRRTE tells many things by one exit status and a text between two lines of dashes; some it tells only on the
DVM's own standard error, some only once. Texts: PRRTE 3.0.8, help-*.txt of 3.0 to 5.0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcsh.engines.pmix.commands import value_of
from hpcsh.errors import CommandError, HpcshError, NotFoundError, TargetError

LOST = 195
LAUNCHER_CODES = frozenset({1, 66, 75, 77, 183, 191, LOST, 213, 250})
"""Statuses with which PRRTE 3's tools end by themselves: negative error numbers, modulo 256.

`LOST`: the connection to the DVM broke; prun says it by this status alone.
"""

NOT_FOUND, NOT_EXECUTABLE = 127, 126

_NOISE = re.compile(r"contact information is unknown in file|^DVM ready$")


@dataclass(frozen=True)
class Program:
    """What the first node knows of a program to be launched: `state` is "", "missing" or "denied"."""

    name: str
    state: str = ""
    image: str = ""


def _flat(text: str) -> str:
    return " ".join(text.split())


def _after(label: str, text: str) -> str:
    found = re.search(rf"{label}:\s*(\S[^\n]*)", text)
    return found[1].strip() if found else ""


def missing_program(program: Program, node: str = "") -> CommandError:
    """A program that is not there, or not in the image."""
    where = f"in the image {program.image}" if program.image else f"on {node}" if node else "on the nodes"
    fix = (
        "name a program that the image has"
        if program.image
        else "check the path on the nodes; if it lives in an image, say --image IMAGE"
    )
    return CommandError(
        f"The program {program.name!r} was not found {where}.", why="No rank was started.", fix=fix,
        exit_code=NOT_FOUND,
    )  # fmt: skip


def denied_program(program: Program, node: str = "") -> CommandError:
    """A file that may not be executed. PRRTE says the same of an absolute path that does not exist."""
    where = f" on {node}" if node else ""
    return CommandError(
        f"The program {program.name!r} may not be executed{where}, or does not exist there.",
        why="No rank was started.",
        fix="check the path and `chmod +x` it; if it lives in an image, say --image IMAGE",
        exit_code=NOT_EXECUTABLE,
    )


@dataclass(frozen=True)
class Place:
    """Where a launch was to go, and PRRTE's options that it was given."""

    slots: int = 0
    nodes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def _unmapped(place: Place) -> CommandError:
    """A launch that was not mapped without a word: PRRTE says the same thing only once in a DVM's life."""
    hosts = value_of(place.options, "--host", "-H").split(",")
    unknown = next((h for h in (h.partition(":")[0] for h in hosts) if h and h not in place.nodes), "")
    if unknown and place.nodes:
        return _no_host(unknown)
    count = value_of(place.options, "-n", "--n", "-np", "--np", "-c")
    if count.isdigit() and int(count) > place.slots:
        return _slots(f"satisfy the {count} slots", place.slots)
    return CommandError(
        "PRRTE could not place this launch on the environment's nodes.",
        why=f"Its {place.slots} slots may be too few, or held by other launches, or the mapping and the "
        "hosts do not fit them. PRRTE tells the reason only the first time.",
        fix="fewer ranks, more slots (`hpcsh up -N 3 -n 6`), or `--map-by ppr:2:node:oversubscribe`",
    )


def _no_host(host: str) -> CommandError:
    what = f"The host {host or 'asked for'} is not in the environment's allocation."
    return CommandError(what, fix="`hpcsh status` shows its nodes")


def _slots(text: str, slots: int) -> CommandError:
    asked = re.search(r"satisfy the (\d+)\s+slots", _flat(text))
    have = f"the environment has {slots}" if slots else "the environment has fewer"
    return CommandError(
        "There are not enough slots for this launch.",
        why=f"{f'It needs {asked[1]}, ' if asked else ''}{have}. A slot is one of the allocation's tasks, "
        "and launches that are running hold theirs.",
        fix="start it with more (`hpcsh up -N 3 -n 6`), ask for fewer ranks, or share slots with "
        "`--map-by ppr:2:node:oversubscribe`",
    )


def _mapping(text: str, place: Place) -> HpcshError | None:
    flat = _flat(text)
    if "not enough slots" in flat or "are already filled" in flat or "requested more processes than" in flat:
        return _slots(text, place.slots)
    if "requested hosts is not included" in flat or "hosts that are not in the allocation" in flat:
        return _no_host(_after("Missing requested host", text))
    if found := re.search(r"(map-by|rank-by|bind-to) (?:directive|policy)[^.]*not recognized", flat):
        return CommandError(
            f"PRRTE does not know this --{found[1]}: {_after('Directive', text) or _after('Policy', text)}",
            why=_after("Valid directives", text) and f"Known: {_after('Valid directives', text)}",
            fix="for example `--map-by ppr:2:node`",
        )
    if "unrecognized option" in flat:
        return CommandError(
            f"PRRTE does not know the option {_after('Option', text)}.",
            fix="`prun --help` on the cluster lists them; put `--` before the program",
        )
    if "unable to open the hostfile" in flat:
        return CommandError("PRRTE cannot open the host file.", why=flat[:300])
    if "JOB_FAILED_TO_MAP" in flat:
        return _unmapped(place)
    return None


def _daemons(text: str) -> HpcshError | None:
    flat = _flat(text)
    if "process starter requires a minimum Slurm version" in flat and re.search(r"Major: 0\b", flat):
        # PRRTE parses `slurm-wlm 24.11.5` (Debian) as version 0 and says this whenever its srun ended.
        return CommandError(
            "PRRTE's daemons ended, or could not be started by srun on the other nodes.",
            why="PRRTE tells a wrong reason (Slurm's version) where Slurm comes from Debian.",
            fix="`hpcsh doctor`; is a node down, or the allocation without free memory?",
        )
    if re.search(r"lost communication with a remote daemon|daemon has unexpectedly", flat, re.I):
        node = _after("HNP daemon", text) and _after("Remote daemon", text)
        return TargetError(
            "A node of the environment has gone.", why=node or flat[:300], fix="`hpcsh down`, then `hpcsh up`"
        )
    if re.search(r"unable to (?:reach|connect to)|ssh: connect to host|Could not resolve hostname", flat):
        return TargetError("A host cannot be reached.", why=flat[:300], fix="`hpcsh nodes` shows the states")
    return None


def dvm_unreachable(why: str = "") -> TargetError:
    """The URI leads nowhere any more."""
    return TargetError(
        "The environment's DVM does not answer.",
        why=why or "Its URI is stale: the DVM has ended, or its node is gone.",
        fix="`hpcsh status` shows its state; `hpcsh down`, then `hpcsh up -N 3` starts another",
    )


def explain(
    code: int, text: str, program: Program, place: Place = Place(), *, output: bool = False
) -> HpcshError | None:
    """Why a tool of PRRTE's launched nothing; None when the program itself ran (or nothing is known).

    `text` is the end of what the tool said on standard error; `output`: there was some output. A program's
    own words are not mistaken for PRRTE's as long as its exit status is none of PRRTE's.
    """
    flat = _flat(text)
    if not program.image and code in (NOT_FOUND, NOT_EXECUTABLE):
        # The rank's shell (`exact`) runs the program by env, whose quotes depend on the locale.
        words = rf"env: .?{re.escape(program.name)}.?: (?:No such file or directory|Permission denied)"
        absent = code == NOT_FOUND
        return (missing_program if absent else denied_program)(program) if re.search(words, flat) else None
    if program.image and code in (255, NOT_FOUND) and (found := _not_in_image(flat, program)):
        return found
    if code in LAUNCHER_CODES:
        node = _after("Node", text)
        if "unable to find the specified executable" in flat:
            return missing_program(program, node)
        if re.search(r"lack(?:ed|ing)\s+permissions? to execute", flat):
            absent = program.state == "missing"
            return missing_program(program, node) if absent else denied_program(program, node)
        if "no DVM being available" in flat or "server rendezvous file" in flat:
            return dvm_unreachable()
        if found := _mapping(text, place) or _daemons(text):
            return found
        if code == LOST or re.search(r"PMIX_ERR_(?:LOST_CONNECTION|UNREACH|COMM_FAILURE)", flat):
            return dvm_unreachable("It ended while the program ran.")
    # prterun 3.0.8 kills itself without a word over a file that may not be executed.
    if program.state and ("JOB_FAILED_TO_LAUNCH" in flat or (code == 137 and not output)):
        return missing_program(program) if program.state == "missing" else denied_program(program)
    if "JOB_FAILED_TO_LAUNCH" in flat and code in LAUNCHER_CODES:
        return CommandError(
            f"PRRTE could not start {program.name!r} on one of the nodes.",
            why="It may be missing there, not executable, or its working directory does not exist.",
            fix="check the path on every node; if it lives in an image, say --image IMAGE",
            exit_code=NOT_FOUND,
        )
    return None


def _not_in_image(flat: str, program: Program) -> HpcshError | None:
    """apptainer: `FATAL: stat /x: no such file`, `"x": executable file not found`; podman, crun alike."""
    if re.search(r"executable file .*not found|stat \S+: no such file|No such file or directory", flat):
        return missing_program(program)
    if re.search(r"permission denied", flat, re.I):
        return denied_program(program)
    return None


def first_failure(text: str) -> str:
    """Which rank failed first and how, from PRRTE's own notice; "" when it says nothing."""
    found = re.search(
        r"first process to do so was:\s*Process name: \[[^\]]*?,(\d+)\]\s*Exit code:\s*(\d+)", text
    )
    if found:
        return f"rank {found[1]} was the first to end with status {found[2]}"
    found = re.search(r"rank (\d+)[^\n]*?on node (\S+) exited on signal (\d+)", _flat(text))
    return f"rank {found[1]} on {found[2]} was ended by signal {found[3]}" if found else ""


def dvm_log(data: bytes, lines: int = 12) -> str:
    """The end of the DVM's log without what PRRTE always writes."""
    said = data.decode("utf-8", "replace").splitlines()
    kept = [line for line in said if line.strip() and not _NOISE.search(line)]
    return "\n".join(kept[-lines:])


def start_failure(log: str) -> HpcshError:
    """Why a DVM did not come up."""
    known = _daemons(log)
    if known is None and re.search(r"prte: (?:command )?not found|prte: No such file", log):
        known = NotFoundError(
            "There is no prte on the allocation's first node.",
            fix="install PRRTE, or add `module load …` to `setup:` in the profile (`hpcsh doctor`)",
        )
    if known is not None:
        return known
    return CommandError("The DVM did not start.", why=log[-1500:] or "prte ended without a word.")
