"""Output of prun byte by byte. Pure.

prun (PMIx 5.0 to at least 5.0.7) hands on whole lines only, and what follows the last newline is lost when
the program ends: `prun printf abc` prints nothing. (`--output :raw` does not help; prterun is exact.) So a
small shell runs beside each rank and writes a mark and a newline to standard output when the program has
ended, which are taken out again here. The program stays a process of its own: its exit status, signals and
standard input are untouched.

One mark is enough, and what remains has the same cause: `pmix_iof_write_output` keeps one unfinished line,
and puts it before whatever comes next from the same rank, on either stream, or from another rank on the same
stream. So no byte is lost and the output of one stream is exact; but an unfinished line of standard error
comes out with the next piece of standard output, and of several ranks lines may be glued together.
"""

from __future__ import annotations

from collections.abc import Sequence

RANK = (
    'exec 3>&2 2>/dev/null; (exec 2>&3 3>&-; exec env -- "$@"); c=$?; exec 3>&-; printf "%s\\n" "$0"; exit $c'
)
"""`env`, so that no builtin of the shell runs in place of a program; the shell itself says nothing."""

_LINE_MODES = ("--output", "--tag-output", "--timestamp-output", "--xml", "--stream-buffering", "--xterm")


def possible(tool: str, options: Sequence[str], program: Sequence[str]) -> bool:
    """False where lines are what the user asked for, and with several application contexts."""
    if tool != "prun" or ":" in program:
        return False
    return not any(o.startswith(m) for o in options for m in _LINE_MODES)


def mark(launch_id: str) -> bytes:
    """What a rank's shell writes at the end, without its newline; no program writes it by chance."""
    return b"\x1ehpcsh:" + launch_id.encode() + b"\x1e"


def wrapped(program: Sequence[str], launch_id: str) -> tuple[str, ...]:
    """The command line of a rank's shell."""
    return ("sh", "-c", RANK, mark(launch_id).decode(), *program)


class Unmark:
    """Takes the marks out of one stream, however its bytes are cut into pieces."""

    def __init__(self, launch_id: str) -> None:
        self._mark = mark(launch_id) + b"\n"
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be told of the program's output by now."""
        data = (self._held + data).replace(self._mark, b"")
        keep = 0
        for size in range(min(len(self._mark) - 1, len(data)), 0, -1):
            if data.endswith(self._mark[:size]):
                keep = size
                break
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def rest(self) -> bytes:
        """What looked like the beginning of a mark and was none."""
        held, self._held = self._held, b""
        return held
