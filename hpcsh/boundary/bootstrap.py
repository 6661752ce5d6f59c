"""Starting the agent on a target through whatever login shell there is.

The command has only characters that sh, bash, csh, tcsh and fish read alike: single quotes around a script
for /bin/sh without quotes, backslashes, exclamation marks or newlines in it. The script looks for a Python,
which reads the agent's source from stdin: its length in eight digits, then the source. The agent first
prints a random marker that was never on a command line; what came before it is a login's noise.
"""

from __future__ import annotations

import re
import secrets
from functools import cache
from importlib import resources

from hpcsh.errors import TargetError, UsageError

PARTS = ("agent_base", "agent_streams", "agent_files", "agent_follow", "agent")
"""The agent's modules, each after those it imports."""

NO_PYTHON = 97
"""Exit status of the script when it found no Python."""

PYTHONS = ("python3", "python", "/usr/bin/python3", "/usr/libexec/platform-python")
"""Where a Python is looked for, in this order, after the configured one."""

LOADER = "import io;f=io.BufferedReader(io.FileIO(0,closefd=False),1);exec(f.read(int(f.read(8))))"
"""Reads exactly the source from stdin: a buffer of one byte takes nothing of the frames that follow."""

_IMPORTER = """\
import sys, types
for name in {names!r}:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, text in {parts!r}:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name.replace(".", "/") + ".py", "exec"), module.__dict__)
sys.modules["hpcsh.boundary.agent"].main({marker!r})
"""


def new_marker() -> str:
    """A marker that no noise contains."""
    return f"hpcsh-agent-{secrets.token_hex(16)}\n"


@cache
def _parts() -> tuple[tuple[str, str], ...]:
    folder = resources.files("hpcsh.boundary")
    return tuple((f"hpcsh.boundary.{part}", (folder / f"{part}.py").read_text("utf-8")) for part in PARTS)


def source(marker: str) -> bytes:
    """What is sent to `LOADER`: the length in eight digits and one text with all parts of the agent."""
    text = _IMPORTER.format(names=("hpcsh", "hpcsh.boundary"), parts=_parts(), marker=marker)
    body = text.encode("utf-8")
    return b"%08d" % len(body) + body


def script(python: str | None = None) -> str:
    """The text for `/bin/sh -c`: find a Python that is new enough and become it."""
    check = "import sys;sys.exit(sys.version_info<(3,6))"
    names = " ".join(dict.fromkeys(((check_python(python),) if python else ()) + PYTHONS))
    return (
        f'for p in {names}; do "$p" -I -S -c "{check}" </dev/null >/dev/null 2>&1'
        f' && exec "$p" -I -S -c "{LOADER}"; done; exit {NO_PYTHON}'
    )


def command(python: str | None = None) -> str:
    """The same as one command line for any login shell."""
    return f"exec /bin/sh -c '{script(python)}'"


def check_python(python: str) -> str:
    """Refuse a configured interpreter that a shell would read as something else."""
    if not re.fullmatch(r"[A-Za-z0-9_/.+][A-Za-z0-9_/.+-]*", python):
        raise UsageError(
            f"python: {python!r} is not a plain command name or path",
            why="letters, digits and the characters / . _ + - are possible",
            fix="set `python` in the profile to a path such as /opt/python3/bin/python3",
        )
    return python


def did_not_start(
    name: str, status: int | None, output: bytes, errors: bytes, python: str | None
) -> TargetError:
    """The error for a channel that ended before the marker."""
    if status == NO_PYTHON:
        tried = ", ".join(dict.fromkeys(((python,) if python else ()) + PYTHONS))
        return TargetError(
            f"no Python 3.6 or later on {name}",
            why=f"hpcsh works there through a small program in Python; tried {tried}",
            fix="install python3 there, or set `python` in the profile to the path of one",
        )
    words = [text.decode("utf-8", "replace").strip()[-1000:] for text in (errors, output)]
    said = "\n".join(word for word in words if word)
    ended = "" if status is None else f" (exit status {status})"
    return TargetError(
        f"could not start on {name}: the login shell ended{ended}",
        why=f"it said: {said}" if said else "it said nothing",
        fix=f"check that a command can be run there, for example `ssh {name} true`" if "@" in name else "",
    )
