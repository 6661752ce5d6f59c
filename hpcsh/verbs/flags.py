"""The flags of `run`, `submit` and `up` mean what they mean to sbatch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, get_args

from cyclopts import Parameter

from hpcsh.errors import UsageError
from hpcsh.model import Resources
from hpcsh.profiles import memory
from hpcsh.slurm.sbatch_table import SBATCH, SHORT, SYNONYMS, VALUE


@Parameter(name="*")
@dataclass(kw_only=True)
class SbatchFlags:
    """What to ask of Slurm; the names are sbatch's."""

    partition: Annotated[str | None, Parameter(name=["--partition", "-p"], help="Partition.")] = None
    account: Annotated[str | None, Parameter(name=["--account", "-A"], help="Account to charge.")] = None
    qos: Annotated[str | None, Parameter(name=["--qos", "-q"], help="Quality of service.")] = None
    time: Annotated[
        str | None, Parameter(name=["--time", "-t"], help="Time limit: minutes, HH:MM:SS or D-HH.")
    ] = None
    nodes: Annotated[str | None, Parameter(name=["--nodes", "-N"], help="Nodes, N or MIN-MAX.")] = None
    ntasks: Annotated[int | None, Parameter(name=["--ntasks", "-n"], help="Tasks.")] = None
    cpus_per_task: Annotated[
        int | None, Parameter(name=["--cpus-per-task", "-c"], help="Processors for each task.")
    ] = None
    mem: Annotated[
        str | None, Parameter(name=["--mem"], help="Memory for each node, in MiB or with K, M, G, T.")
    ] = None
    gpus: Annotated[str | None, Parameter(name=["--gpus", "-G"], help="GPUs, N or TYPE:N.")] = None
    job_name: Annotated[str | None, Parameter(name=["--job-name", "-J"], help="Name of the job.")] = None
    nodelist: Annotated[str | None, Parameter(name=["--nodelist", "-w"], help="Nodes by name.")] = None
    constraint: Annotated[
        str | None, Parameter(name=["--constraint", "-C"], help="Features that nodes must have.")
    ] = None
    reservation: Annotated[str | None, Parameter(name=["--reservation"], help="Reservation to run in.")] = (
        None
    )
    dependency: Annotated[
        str | None,
        Parameter(name=["--dependency", "-d"], help="Start only after other jobs, as in afterok:123."),
    ] = None
    chdir: Annotated[
        str | None,
        Parameter(name=["--chdir", "-D"], help="Directory on the cluster in which the job starts."),
    ] = None
    sbatch: Annotated[
        list[str] | None,
        Parameter(
            name=["--sbatch"],
            negative="",
            allow_leading_hyphen=True,
            help="Any other option of sbatch, as in --sbatch=--gres=gpu:1 (or plainly --gres=gpu:1).",
        ),
    ] = None

    def resources(self) -> Resources:
        """The same as the model has it."""
        same = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("mem", "sbatch")}
        return Resources(
            **same, memory=None if self.mem is None else memory(self.mem), flags=tuple(self.sbatch or ())
        )


def _parameters(function: Callable[..., object]) -> Iterator[tuple[str, object]]:
    """Name and annotation of each option of a verb, those of `SbatchFlags` included."""
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            if get_args(parameter.annotation)[:1] == (SbatchFlags,):
                yield from inspect.get_annotations(SbatchFlags, eval_str=True).items()
            else:
                yield parameter.name, parameter.annotation


def options(function: Callable[..., object]) -> dict[str, bool]:
    """Every option of a verb as it is typed, and whether it takes a value."""
    known: dict[str, bool] = {}
    for name, annotation in _parameters(function):
        base, *extras = get_args(annotation) or (annotation,)
        if any(getattr(e, "parse", None) is False for e in extras):
            continue
        names = next((e.name for e in extras if getattr(e, "name", None)), None)
        known.update(dict.fromkeys(names or [f"--{name.replace('_', '-')}"], base not in (bool, bool | None)))
    return known


def _own_words(known: dict[str, bool], tokens: Sequence[str]) -> tuple[list[str], int]:
    """The options at the beginning (foreign ones handed to sbatch), and where the first other word is."""
    out: list[str] = []
    i = 0
    while i < len(tokens) and tokens[i].startswith("-") and tokens[i] not in ("-", "--"):
        token = tokens[i]
        foreign = _foreign(token, known)
        takes = known.get(token, False) if foreign is None else foreign[1]
        value = tokens[i + 1] if takes and i + 1 < len(tokens) else None
        if foreign is None:
            out += [token] if value is None else [token, value]
        else:
            out.append(f"--sbatch={foreign[0]}" + ("" if value is None else f"={value}"))
        i += 1 if value is None else 2
    return out, i


def _foreign(token: str, known: dict[str, bool]) -> tuple[str, bool] | None:
    """An option that is sbatch's and not ours in its long form, and whether its value is the next word."""
    if token.startswith("--"):
        name, equals, _ = token[2:].partition("=")
        if f"--{name}" in known or name == "help":
            return None
        return token, not equals and SBATCH.get(SYNONYMS.get(name, name)) == VALUE
    long, rest = SHORT.get(token[:2], ""), token[2:]
    if token[:2] in known or not long or token == "-h":
        return None
    takes = SBATCH[long] == VALUE
    return (f"--{long}={rest}", False) if rest and takes else (f"--{long}", takes)


def script_and_args(function: Callable[..., object], tokens: Sequence[str]) -> list[str]:
    """Split `[options] SCRIPT [ARG...]`: all that follows the script belongs to it, as with sbatch."""
    out, i = _own_words(options(function), tokens)
    rest = list(tokens[i + 1 :] if tokens[i : i + 1] == ["--"] else tokens[i:])
    return [*out, "--", *rest] if rest else out


def image_and_command(function: Callable[..., object], tokens: Sequence[str]) -> list[str]:
    """Split `[options] [IMAGE] [options] [-- COMMAND...]`; without an image an empty one stands there."""
    known = options(function)
    out, i = _own_words(known, tokens)
    image = ""
    if i < len(tokens) and tokens[i] != "--":
        image = tokens[i]
        more, j = _own_words(known, tokens[i + 1 :])
        out += more
        i += 1 + j
    if i < len(tokens) and tokens[i] != "--":
        raise UsageError(
            f"run: what is {tokens[i]!r}?", fix="put the command after --, as in `run IMAGE -- COMMAND`"
        )
    return [*out, "--", image, *tokens[i + 1 :]]
