"""The command line: which front end, which profile. Imports nothing heavy; each branch imports its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hpcsh import __version__

if TYPE_CHECKING:
    from hpcsh.console import Options

HELP = """\
hpcsh: the shell for the place where Slurm meets Kubernetes

  hpcsh                              the interactive shell
  hpcsh [-P PROFILE] VERB [ARG...]   one command
  hpcsh [-P PROFILE] -c 'VERB …; …'  commands from the line; -f FILE from a file; else from standard input
  hpcsh lab up|down|status|…         the lab: a real cluster on this machine to try everything on
  hpcsh host status|stop|logs        the session host behind all of this
  hpcsh help | --version

  -P, --profile NAME   the profile (else HPCSH_PROFILE, else what `hpcsh use` chose last)
  -y, --yes            do not ask
      --in-process     no session host: everything lives and ends with this command
"""


def parse(argv: Sequence[str]) -> Options:
    """Read our own options up to the verb. Raises `UsageError`."""
    from hpcsh.console import Options
    from hpcsh.errors import UsageError

    options = Options(profile=os.environ.get("HPCSH_PROFILE", ""))
    words = list(argv)
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name in ("-P", "--profile", "-c", "-f"):
            if not equals:
                if not words:
                    raise UsageError(f"{word} needs a value.", fix="see `hpcsh --help`")
                value = words.pop(0)
            if name in ("-P", "--profile"):
                options.profile = value
            else:
                options.scripts.append((name, value))
        elif word in ("-y", "--yes"):
            options.yes = True
        elif word == "--in-process":
            options.in_process = True
        elif word in ("-h", "--help"):
            words = ["help", *words]
        else:
            raise UsageError(f"There is no option {word}.", fix="see `hpcsh --help`")
    if options.scripts and words:
        raise UsageError(
            f"What is {words[0]!r} beside -c or -f?", fix="say either a verb, or scripts with -c and -f"
        )
    options.rest = words
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run hpcsh; the exit code (`hpcsh.errors.EXIT_CODES`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--version"]:
        print(f"hpcsh {__version__}")
        return 0
    if words[:1] in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    from hpcsh.errors import FAILED, INTERRUPTED, HpcshError

    try:
        return _dispatch(parse(words))
    except HpcshError as e:
        from hpcsh.console import tell

        print(tell(e), file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as e:
        if os.environ.get("HPCSH_DEBUG"):
            raise
        print(f"hpcsh itself failed: {type(e).__name__}: {e}", file=sys.stderr)
        print("  This is a fault of hpcsh. HPCSH_DEBUG=1 shows where.", file=sys.stderr)
        return FAILED


def _dispatch(options: Options) -> int:
    if options.rest[:1] == ["lab"]:
        from hpcsh.lab.cli import main as lab

        return lab(options.rest[1:])
    if options.rest[:1] == ["host"]:
        from hpcsh.host.control import main as host

        return host(options.rest[1:])
    if options.rest[:1] == ["help"]:
        from hpcsh.console import show_help

        if options.rest[1:2] in (["lab"], ["host"]):
            return _dispatch(replace(options, rest=[options.rest[1], "--help"]))
        if not options.rest[1:]:
            print(HELP)
        show_help(options.rest[1:])
        return 0
    if not options.scripts and not options.rest and sys.stdin.isatty() and sys.stdout.isatty():
        from hpcsh.repl.app import main as repl

        return repl(options)
    import asyncio

    return asyncio.run(_run(options))


async def _run(options: Options) -> int:
    from hpcsh.console import ConsoleFront, remembered, run_script, run_words, script_text

    front = ConsoleFront(
        options.profile or remembered(), in_process=options.in_process, yes=options.yes
    )  # fmt: skip
    try:
        if options.rest:
            front.remember = True
            return await run_words(front, options.rest)
        for kind, value in options.scripts or [("-f", "-")]:
            name = "" if kind == "-c" else value
            if code := await run_script(front, script_text(front, kind, value), name):
                return code
        return 0
    finally:
        await front.close()
