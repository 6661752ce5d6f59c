"""Resources and flags → validated sbatch options. Pure.

Rules: design 6.4 (options go on argv after validation), sbatch(1) OPTIONS. Precedence: a profile's defaults,
then the `#SBATCH` header of a user's script, then what the user says now.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from hpcsh.errors import UsageError
from hpcsh.model import Resources
from hpcsh.slurm.sbatch_table import FLAG, OPTIONAL, OWNED, REFUSED, SBATCH, SHORT, SYNONYMS

__all__ = [
    "SHORT",
    "Options",
    "check_value",
    "from_resources",
    "long_name",
    "merge",
    "parse_flags",
    "to_argv",
]

Options = dict[str, str | None]
"""Long option names without dashes, in the order in which they were said; None: said without a value."""

MIB = 1024 * 1024

# Said on one layer, each of a group also replaces the others' defaults of a lower layer.
_GROUPS = (
    frozenset({"mem", "mem-per-cpu", "mem-per-gpu"}),
    frozenset({"exclusive", "oversubscribe"}),
    frozenset({"gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres"}),
    frozenset({"nodelist", "nodefile"}),
    frozenset({"cpus-per-task", "cpus-per-gpu"}),
    frozenset({"core-spec", "thread-spec"}),
    frozenset({"ntasks-per-node", "ntasks-per-gpu"}),
    frozenset({"requeue", "no-requeue"}),
    frozenset({"export", "export-file"}),
)

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f]")
_TIME = re.compile(
    r"(?:\d+(?::\d{1,2}){0,2}|\d+-\d{1,2}(?::\d{1,2}){0,2}|infinite|unlimited)\Z", re.IGNORECASE | re.ASCII
)
_COUNT = re.compile(r"\d+[kKmM]?(?:-\d+[kKmM]?)?(?:[,:][\d,:kKmM-]+)?\Z", re.ASCII)
_TIMES = frozenset({"time", "time-min"})
_NUMBERS = frozenset({"ntasks", "cpus-per-task", "ntasks-per-node", "ntasks-per-core", "ntasks-per-socket"})

_FIELDS: dict[str, str] = {
    "account": "account",
    "partition": "partition",
    "qos": "qos",
    "time": "time",
    "constraint": "constraint",
    "reservation": "reservation",
    "nodes": "nodes",
    "ntasks": "ntasks",
    "cpus_per_task": "cpus-per-task",
    "memory": "mem",
    "gpus": "gpus",
    "nodelist": "nodelist",
    "job_name": "job-name",
    "dependency": "dependency",
    "chdir": "chdir",
}
"""Fields of `Resources` and the options that they stand for."""


def check_value(name: str, value: str) -> str:
    """The value of an option, or `UsageError` that says what is wrong with it.

    Newlines and other control characters are refused everywhere: they could begin a line of their own in what
    Slurm or a site's plugin makes of the option.
    """
    if not value:
        raise UsageError(f"--{name} needs a value.", fix=f"write --{name}=VALUE, or leave it out")
    bad = _CONTROL.search(value)
    if bad:
        raise UsageError(
            f"--{name} contains a control character ({bad[0]!r} at position {bad.start() + 1}).",
            why="newlines and control characters are not allowed in Slurm options",
            fix="remove it",
        )
    if name in _TIMES and not _TIME.match(value):
        raise UsageError(
            f"--{name}={value} is no time for Slurm.",
            fix="write MINUTES[:SECONDS], HOURS:MINUTES:SECONDS, DAYS-HOURS[:MINUTES[:SECONDS]], UNLIMITED",
        )
    if name in _NUMBERS and not re.fullmatch(r"[1-9]\d{0,8}", value, re.ASCII):
        raise UsageError(f"--{name}={value}: a whole number from 1 up is needed.")
    if name == "nodes" and not (_COUNT.match(value) and value.strip("0")):
        raise UsageError(f"--nodes={value} is no number of nodes.", fix="write N, or MIN-MAX")
    return value


def long_name(word: str) -> str | None:
    """The full name of a long option as getopt_long finds it: exact, or an unambiguous beginning."""
    if word in SBATCH or word in SYNONYMS:
        return SYNONYMS.get(word, word)
    names = {SYNONYMS.get(n, n) for n in (*SBATCH, *SYNONYMS) if n.startswith(word)} if word else set()
    return names.pop() if len(names) == 1 else None


def _unknown(word: str) -> UsageError:
    close = difflib.get_close_matches(word.removeprefix("--"), [*SBATCH], n=1)
    return UsageError(
        f"{word} is not an option of sbatch that hpcsh knows.",
        fix=f"did you mean --{close[0]}?" if close else "see `man sbatch`",
    )


def parse_flags(flags: Sequence[str], *, strict: bool = True) -> Options:
    """Options in sbatch's own spelling, later ones win: `--gres=gpu:1`, `--gres gpu:1`, `-n4`, `-n 4`, `-H`.

    A value may stand in the same string or in the next one, as on a command line. Raises `UsageError` for
    unknown options and left-over words; with `strict` False they are skipped, for sbatch itself to judge.
    What is refused on principle is not looked at here, see `merge`.
    """
    words: list[str] = []
    for flag in flags:
        head, blank, rest = flag.partition(" ")
        words += [head, rest.strip()] if blank and "=" not in head and head.startswith("-") else [flag]
    found: Options = {}
    rest_of = iter(words)
    for word in rest_of:
        try:
            _take(word, rest_of, found)
        except UsageError:
            if strict:
                raise
    return found


def _take(word: str, rest: Iterator[str], found: Options) -> None:
    if word.startswith("--") and len(word) > 2:
        _take_long(word, rest, found)
    elif word.startswith("-") and len(word) > 1 and word != "--":
        _take_short(word, rest, found)
    else:
        raise UsageError(f"{word!r} is not an option.", fix="options begin with - or --")


def _put(found: Options, name: str, value: str | None) -> None:
    found.pop(name, None)
    found[name] = value


def _take_long(word: str, rest: Iterator[str], found: Options) -> None:
    head, equals, value = word[2:].partition("=")
    name = long_name(head)
    if name is None:
        raise _unknown(f"--{head}")
    kind = SBATCH[name]
    if equals and kind == FLAG:
        raise UsageError(f"--{name} takes no value.")
    if not equals and kind not in (FLAG, OPTIONAL):
        value = next(rest, "")
        equals = "="
    _put(found, name, value if equals else None)


def _take_short(word: str, rest: Iterator[str], found: Options) -> None:
    for at in range(1, len(word)):
        name = SHORT.get(f"-{word[at]}")
        if name is None:
            raise _unknown(f"-{word[at]}")
        kind, value = SBATCH[name], word[at + 1 :]
        if kind == FLAG:
            _put(found, name, None)
            continue
        if kind == OPTIONAL:
            _put(found, name, value or None)
        else:
            _put(found, name, value.removeprefix("=") if value else next(rest, ""))
        return


def from_resources(resources: Resources) -> Options:
    """The options that a `Resources` says; `flags` come last and win. Memory is rounded up to whole MiB."""
    found: Options = {}
    for field, name in _FIELDS.items():
        value = getattr(resources, field)
        if value is None:
            continue
        if field == "memory":
            if value <= 0:
                raise UsageError(f"{value} bytes of memory: more than 0 are needed.")
            value = f"{-(-value // MIB)}M"
        found[name] = str(value)
    for name, said in parse_flags(resources.flags).items():
        for other in _rivals(name):
            found.pop(other, None)
        _put(found, name, said)
    return found


def _rivals(name: str) -> frozenset[str]:
    return frozenset().union(*(g for g in _GROUPS if name in g)) - {name}


def refuse(options: Mapping[str, str | None], *, owned: bool, where: str) -> None:
    """Raise `UsageError` for an option that hpcsh does not pass on, with the reason.

    `owned`: the script is ours, so that what would change its output or run it several times is refused too.
    """
    for name, value in options.items():
        why = REFUSED.get(name) or (OWNED.get(name, "") if owned else "")
        if name == "get-user-env" and value is not None:
            why = "a time-out or mode for it is not passed on"
        if why:
            raise UsageError(f"--{name} in {where} is not possible here.", why=why, fix="leave it out")


def merge(
    said: Resources, defaults: Resources, header: frozenset[str] = frozenset(), *, owned: bool = True
) -> Options:
    """The options for sbatch's argv: what is said now, and the defaults that neither it nor the header sets.

    `header` are the long names that a script's own `#SBATCH` lines set; those lines stay in the script.
    """
    now, base = from_resources(said), from_resources(defaults)
    refuse(now, owned=owned, where="what you asked for")
    refuse(base, owned=owned, where="the profile")
    taken = header | now.keys()
    taken = taken.union(*(_rivals(n) for n in taken))
    merged: Options = {n: v for n, v in base.items() if n not in taken}
    merged.update(now)
    for name, value in merged.items():
        if value is not None:
            check_value(name, value)
    return merged


def to_argv(options: Mapping[str, str | None]) -> list[str]:
    """One word for each option, so that no value can be taken for another option."""
    return [f"--{n}" if v is None else f"--{n}={v}" for n, v in options.items()]
