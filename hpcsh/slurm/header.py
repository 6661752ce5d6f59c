"""Reading the `#SBATCH` lines of a user's script the way sbatch does. Pure.

Source: sbatch(1) ("options after the first non-comment, non-whitespace line are not processed") and the
behaviour of sbatch 24.11: quotes group words, a backslash escapes, an unquoted `#` begins a comment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hpcsh.errors import UsageError
from hpcsh.slurm.options import Options, parse_flags, refuse
from hpcsh.slurm.sbatch_table import HEADER_REFUSED

MAX_SIZE = 4 * 1024 * 1024
"""Slurm's default limit of a script (max_script_size, slurm.conf(5)) is 4 MiB."""

_MAGIC = ("#SBATCH", "#SLURM")


@dataclass(frozen=True)
class Header:
    """`lines` verbatim and in order, `options` as they are understood, `interpreter` from the shebang."""

    interpreter: str
    lines: tuple[str, ...]
    options: Options

    @property
    def names(self) -> frozenset[str]:
        """Long names of the options that the header sets."""
        return frozenset(self.options)


def header_options(lines: Iterable[str]) -> Options:
    """What `#SBATCH` lines set, as far as it is understood; sbatch itself judges the rest."""
    words: list[str] = []
    for line in lines:
        magic = next((m for m in _MAGIC if line.startswith(m)), "")
        words += _arguments(line[len(magic) :], line)
    return parse_flags(words, strict=False)


def read_header(data: bytes, name: str) -> Header:
    """The header of a batch script. Raises `UsageError` for what sbatch refuses as well, with the line."""
    _check(data, name)
    text = data.decode("utf-8", "surrogateescape")
    lines: list[str] = []
    words: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        magic = next((m for m in _MAGIC if line.startswith(m)), None)
        if magic:
            lines.append(line)
            words += _arguments(line[len(magic) :], f"{name}:{number}")
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    try:
        options = parse_flags(words, strict=False)
        refuse(
            {n: v for n, v in options.items() if n in HEADER_REFUSED}, owned=False, where=f"{name} (#SBATCH)"
        )
    except UsageError as e:
        raise UsageError(f"{name}: {e.what}", why=e.why, fix=e.fix) from None
    interpreter = text.split("\n", 1)[0][2:].strip()
    return Header(interpreter, tuple(lines), options)


def _check(data: bytes, name: str) -> None:
    if not data.strip():
        raise UsageError(f"{name} is empty.", fix="a batch script begins with #!/bin/bash")
    first = data.split(b"\n", 1)[0]
    if not first.startswith(b"#!") or not first[2:].strip():
        raise UsageError(
            f"{name} is not a batch script: its first line must begin with #! and an interpreter.",
            fix="put #!/bin/bash in the first line",
        )
    if b"\0" in data:
        raise UsageError(f"{name} contains a NUL byte.", why="Slurm does not accept scripts with one")
    if b"\r\n" in data:
        number = data[: data.index(b"\r\n")].count(b"\n") + 1
        raise UsageError(
            f"{name} has DOS line ends (CRLF), first in line {number}.",
            why="the interpreter and sbatch would take the carriage return as part of the line",
            fix=f"dos2unix {name}",
        )
    if len(data) > MAX_SIZE:
        raise UsageError(f"{name} has {len(data)} bytes.", why=f"Slurm's limit for a script is {MAX_SIZE}")


def _arguments(text: str, where: str) -> list[str]:
    """Words of one header line. `hetjob` separates the parts of a heterogeneous job and is no option."""
    words: list[str] = []
    while (text := text.lstrip(" \t\v\f\r")) and text[0] != "#":
        word, text = _one_argument(text, where)
        if word.lower() not in ("hetjob", "packjob"):
            words.append(word)
    return words


def _one_argument(text: str, where: str) -> tuple[str, str]:
    out: list[str] = []
    quote, at = "", 0
    while at < len(text) and (quote or text[at] not in " \t\v\f\r"):
        c = text[at]
        if c == "\\" and at + 1 < len(text):
            at += 1
            out.append(text[at])
        elif quote and c == quote:
            quote = ""
        elif not quote and c in "\"'":
            quote = c
        elif not quote and c == "#":
            break
        else:
            out.append(c)
        at += 1
    if quote:
        raise UsageError(f"{where}: a quote ({quote}) is not closed.", fix="close it")
    return "".join(out), text[at:]
