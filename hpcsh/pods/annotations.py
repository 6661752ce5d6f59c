"""The annotations of the interLink Slurm plugin (contract virtual_node 3.11), and what they mean here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import msgspec

from hpcsh.errors import UsageError
from hpcsh.model import Resources

_OURS = "slurm-job.vk.io/"
_OLD_FLAGS = "slurm-job.knoc.io/flags"
_NO_EFFECT = {
    "enroot-mounts": "there is no enroot here",
    "enroot-options": "there is no enroot here",
    "flavor": "profiles take the place of flavors",
    "singularity-commands": "the original never read it; use slurm-job.vk.io/pre-exec",
}
_SHORT = {
    "A": "account", "a": "array", "B": "extra-node-info", "b": "begin", "C": "constraint",
    "c": "cpus-per-task", "D": "chdir", "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus",
    "H": "hold", "i": "input",
    "J": "job-name", "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution",
    "N": "nodes", "n": "ntasks", "o": "output", "O": "overcommit", "p": "partition", "Q": "quiet",
    "q": "qos", "S": "core-spec", "s": "oversubscribe", "t": "time", "V": "version", "W": "wait",
    "w": "nodelist", "x": "exclude",
}  # fmt: skip
_FIELDS = {
    "account": "account", "partition": "partition", "qos": "qos", "time": "time", "constraint": "constraint",
    "reservation": "reservation", "nodes": "nodes", "nodelist": "nodelist", "job-name": "job_name",
    "dependency": "dependency", "gpus": "gpus",
}  # fmt: skip
_REFUSED = {
    "array": "a pod is one job; submit a batch script for an array",
    "chdir": "set workingDir in the container",
    "clusters": "choose the cluster with the profile",
    "comment": "hpcsh ties the job to its records with it",
    "error": "logs are kept for each container",
    "output": "logs are kept for each container",
    "input": "containers of a pod read nothing from standard input",
    "wrap": "the containers are the program",
}
_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
_GPU = ("gpus", "gres", "gpus-per-node", "gpus-per-task", "gpus-per-socket")


class Annotations(msgspec.Struct, frozen=True):
    """What a pod's annotations ask for."""

    resources: Resources = Resources()
    has_cpus: bool = False
    has_memory: bool = False
    has_gpus: bool = False
    pre_exec: str = ""
    options: tuple[str, ...] = ()
    """Further arguments of the container runtime, before the image."""
    mounts: tuple[str, ...] = ()
    """Further mounts in apptainer's own spelling SRC[:DEST[:OPTS]]."""
    image_root: str = ""
    warnings: tuple[str, ...] = ()


def read(
    annotations: Mapping[str, str | None], where: str, *, has_cpus: bool, has_memory: bool
) -> Annotations:
    """Understand the annotations. `has_cpus`/`has_memory`: the containers say it, which counts more."""
    given = {k: v or "" for k, v in annotations.items()}
    warnings = _warnings(given, where)
    flags = given.get(_OURS + "flags", given.get(_OLD_FLAGS, ""))
    options, notes = _flags(flags, where, has_cpus=has_cpus, has_memory=has_memory)
    mpi = given.get(_OURS + "mpi-flags", "")
    if mpi:
        raise UsageError(
            f"{where}: the annotation slurm-job.vk.io/mpi-flags is not supported yet.",
            why="It asks for mpiexec around the container; without it the program runs on one rank only.",
            fix="start MPI programs in an image with a profile of the pmix engine: prterun --image IMAGE",
        )
    singularity, mounts = _runtime_options(given, where)
    return Annotations(
        resources=_resources(options),
        has_cpus="cpus-per-task" in options,
        has_memory=any(m in options for m in _MEMORY),
        has_gpus=any(g in options for g in _GPU),
        pre_exec=given.get(_OURS + "pre-exec", ""),
        options=singularity,
        mounts=mounts,
        image_root=given.get(_OURS + "image-root", "").strip(),
        warnings=(*warnings, *notes),
    )


def _warnings(given: Mapping[str, str], where: str) -> list[str]:
    known = {"flags", "pre-exec", "singularity-options", "singularity-mounts", "image-root", "mpi-flags"}
    out = []
    for name in sorted(given):
        if name == _OLD_FLAGS:
            ignored = _OURS + "flags" in given
            out.append(
                f"{where}: {name} is the old name of {_OURS}flags"
                + (", which is there too and counts" if ignored else "; it is taken as such")
            )
        elif name.startswith(_OURS) and name.removeprefix(_OURS) not in known:
            why = _NO_EFFECT.get(name.removeprefix(_OURS), "it is unknown")
            out.append(f"{where}: the annotation {name} has no effect: {why}")
        elif name.startswith(("interlink.eu/", "interlink.virtual-kubelet.io/", "slurm-job.knoc.io/")):
            out.append(f"{where}: the annotation {name} has no effect here")
    return out


def _words(text: str, where: str) -> list[str]:
    if any(ord(c) < 32 and c != "\t" for c in text.strip()):
        raise UsageError(f"{where} contains a newline or a control character.")
    try:
        return shlex.split(text)
    except ValueError as e:
        raise UsageError(f"{where} cannot be split into words: {e}.") from None


def parse_flags(text: str, where: str) -> dict[str, str | None]:
    """sbatch flags as a mapping from the long name to the value (None for a switch); the last one counts.

    A word that begins with "-" takes the words after it that do not (contract 3.3).
    """
    out: dict[str, str | None] = {}
    words = _words(text, where)
    while words:
        word = words.pop(0)
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
        elif word.startswith("-") and len(word) > 1 and word[1] in _SHORT:
            name, equals, value = _SHORT[word[1]], word[2:], word[2:].removeprefix("=")
        else:
            raise UsageError(f"{where}: {word!r} is no option of sbatch.")
        if not equals:
            taken = []
            while words and not words[0].startswith("-"):
                taken.append(words.pop(0))
            if len(taken) > 1:
                raise UsageError(f"{where}: --{name} has several values: {' '.join(taken)}.")
            value = taken[0] if taken else ""
            equals = "=" if taken else ""
        out.pop(name, None)
        out[name] = value if equals else None
    return out


def _flags(
    text: str, where: str, *, has_cpus: bool, has_memory: bool
) -> tuple[dict[str, str | None], list[str]]:
    at = f"{where}: the annotation slurm-job.vk.io/flags"
    options = parse_flags(text, at)
    warnings = []
    for name in list(options):
        if name in _REFUSED:
            raise UsageError(f"{at}: --{name} cannot be used for a pod: {_REFUSED[name]}.")
        overruled = (name == "cpus-per-task" and has_cpus) or (name in _MEMORY and has_memory)
        if overruled:
            del options[name]
            warnings.append(f"{at}: --{name} does not count, the containers' resources do")
    return options, warnings


def _resources(options: Mapping[str, str | None]) -> Resources:
    fields = {_FIELDS[k]: v for k, v in options.items() if k in _FIELDS and v}
    rest = tuple(
        f"--{k}" if v is None else f"--{k}={v}" for k, v in options.items() if k not in _FIELDS or not v
    )
    return msgspec.structs.replace(msgspec.convert(fields, Resources), flags=rest)


def _runtime_options(given: Mapping[str, str], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    options = _words(given.get(_OURS + "singularity-options", ""), f"{where}: singularity-options")
    words = _words(given.get(_OURS + "singularity-mounts", ""), f"{where}: singularity-mounts")
    return tuple(options), _mounts(words, where)


def _mounts(words: Sequence[str], where: str) -> tuple[str, ...]:
    """`--bind A:B -B C:D E:F` and plain `A:B` all name mounts."""
    out: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("--bind", "-B") and rest:
            word = rest.pop(0)
        elif word.startswith(("--bind=", "-B")):
            word = word.removeprefix("--bind=").removeprefix("-B").removeprefix("=")
        if word.startswith("-") or not word:
            raise UsageError(f"{where}: singularity-mounts: {word!r} is no mount.", fix="write SRC:DEST")
        out += [part for part in word.split(",") if part]
    return tuple(out)
