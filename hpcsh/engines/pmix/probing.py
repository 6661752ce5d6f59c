"""Questions that are put to an allocation's first node: does the DVM span it, what is this program, end."""

from __future__ import annotations

from collections.abc import Sequence

from hpcsh.boundary.base import Boundary
from hpcsh.engines.pmix.commands import PTERM, SERVER_VARIABLES
from hpcsh.engines.pmix.facts import named
from hpcsh.engines.pmix.heads import Head
from hpcsh.engines.pmix.messages import Program, explain
from hpcsh.errors import CommandError
from hpcsh.model import Environment

_PTERM = """\
uri=$1; shift
for tool in "$@"; do command -v "$tool" >/dev/null && exec "$tool" --dvm-uri "$uri"; done
exit 127
"""
_PROGRAM = """\
case $1 in
*/*) [ -e "$1" ] || { echo missing; exit; }; [ -f "$1" ] && [ -x "$1" ] || echo denied ;;
*) command -v -- "$1" >/dev/null || echo missing ;;
esac
"""
PROBE_TIMEOUT = 10.0


async def prove(head: Head, outer: Boundary, environment: Environment, timeout: float) -> None:
    """Run a real `prun` that starts a rank on every node. Raises `CommandError` when a node is missing."""
    await head.read_uri(outer)
    argv = ["prun", "--dvm-uri", f"file:{head.uri_path}", "--map-by", "ppr:1:node", "hostname"]
    done = await head.boundary.run(argv, env=dict.fromkeys(SERVER_VARIABLES), timeout=timeout)
    if done.code:
        known = explain(done.code, done.error_text, Program("hostname"))
        raise known or CommandError("The DVM does not launch.", why=done.error_text[-1500:])
    _, missing = named(done.stdout, environment.nodes)
    if missing:
        raise CommandError(
            f"The DVM does not reach {', '.join(sorted(missing))}.",
            why=f"Ranks were started on: {' '.join(done.text.split()) or 'no node'}",
        )


async def end_dvm(head: Head) -> str:
    """Ask the DVM to end, by pterm. Why it did not, or "". pterm takes about a second (3.0.8)."""
    argv = ["sh", "-c", _PTERM, "pterm", f"file:{head.uri_path}", *PTERM]
    done = await head.boundary.run(argv, env=dict.fromkeys(SERVER_VARIABLES), timeout=PROBE_TIMEOUT)
    if done.code == 127:
        return "there is no pterm; the job is cancelled instead"
    # Its own step may end with the allocation before it has said good-bye.
    return "" if done.code in (0, 137, 143) else done.error_text.splitlines()[-1:][0]


async def look_at(head: Head, program: Sequence[str], cwd: str | None, image: str = "") -> Program:
    """What the first node can tell of a program that did not start; nothing of one in an image."""
    name = program[0]
    if image:
        return Program(name, image=image)
    try:
        said = await head.boundary.run(["sh", "-c", _PROGRAM, "look", name], cwd=cwd, timeout=PROBE_TIMEOUT)
    except CommandError:  # the working directory does not exist
        return Program(name)
    return Program(name, said.text.strip() if said.code == 0 else "")
