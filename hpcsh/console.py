"""A front end on standard streams: what the command line, scripts and the REPL have in common."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from hpcsh.client import connect
from hpcsh.errors import INTERRUPTED, HpcshError, RefusedError, UsageError
from hpcsh.model import File, Progress
from hpcsh.serving.places import state_home
from hpcsh.session import Session
from hpcsh.verbs.context import Output
from hpcsh.verbs.output import Cell, cut, harmless, size, table
from hpcsh.verbs.registry import execute, find, parser, verbs


class Console:
    """Prints a verb's answer to standard output, and everything else to standard error."""

    def __init__(self, out: BinaryIO | None = None, err: BinaryIO | None = None) -> None:
        self._out = out or sys.stdout.buffer
        self._err = err or sys.stderr.buffer
        self._bar = False

    def _write(self, stream: BinaryIO, data: bytes) -> None:
        if self._bar:
            self._bar = False
            self._err.write(b"\r\x1b[K")
        stream.write(data)
        stream.flush()

    def line(self, text: str = "") -> None:
        """A line of the answer."""
        self._write(self._out, "\n".join(map(harmless, text.split("\n"))).encode() + b"\n")

    def note(self, text: str) -> None:
        """A remark, to standard error."""
        self._write(self._err, "\n".join(map(harmless, text.split("\n"))).encode() + b"\n")

    def table(self, headers: list[str], rows: list[list[Cell]], *, empty: str = "") -> None:
        """A table, or `empty` to standard error. On a terminal lines are cut to its width."""
        if not rows and empty:
            self.note(empty)
            return
        lines = table(headers, rows)
        if self._out.isatty():
            columns = shutil.get_terminal_size().columns
            lines = [cut(line, columns) for line in lines]
        self._write(self._out, ("\n".join(lines) + "\n").encode())

    def data(self, value: object) -> None:
        """One JSON document."""
        self._write(self._out, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")

    def raw(self, data: bytes, stream: int = 1) -> None:
        """Bytes of a program, exactly."""
        self._write(self._out if stream == 1 else self._err, data)

    def progress(self, progress: Progress) -> None:
        """A step; a running one is drawn over and over on a terminal, and left out elsewhere."""
        text = f"{progress.step}: {progress.message}" if progress.message else progress.step
        if progress.done is not None:
            text += f" {_amount(progress)}"
        if progress.seconds is not None and progress.status in ("done", "failed"):
            text += f" ({progress.seconds:.1f} s)"
        if progress.status == "running":
            if os.isatty(2):
                self._err.write(b"\r\x1b[K" + harmless(f"  … {text}")[:200].encode())
                self._err.flush()
                self._bar = True
            return
        sign = {"done": "✓", "failed": "✗", "info": "·"}.get(progress.status, "…")
        if progress.status != "start" or not os.isatty(2):
            self.note(f"  {sign} {text}")


def _amount(progress: Progress) -> str:
    done, total = progress.done or 0, progress.total
    if progress.unit in ("B", "bytes"):
        return f"{size(done)} of {size(total)}" if total else size(done)
    return f"{done}/{total} {progress.unit}".rstrip() if total else f"{done} {progress.unit}".rstrip()


def ask_person(prompt: str, echo: bool) -> str:
    """Ask on the terminal what a login wants to know. Raises `RefusedError` where nobody can answer."""
    if not sys.stdin.isatty():
        raise RefusedError(
            "The login asks a question, and nobody is here to answer.", why=prompt,
            fix="run a verb from a terminal first: the session stays open for scripts",
        )  # fmt: skip
    return input(prompt) if echo else getpass.getpass(prompt)


def ask_yes(question: str) -> bool:
    """A question on the terminal; Ctrl-D is no, Ctrl-C ends the command and not what asked it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
    except KeyboardInterrupt:
        raise RefusedError("Interrupted; nothing was changed.", exit_code=INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, before)


async def _ask(prompt: str, echo: bool) -> str:
    import asyncio

    return await asyncio.to_thread(ask_person, prompt, echo)


class ConsoleFront:
    """A front end on standard streams, holding at most one session open."""

    def __init__(self, profile: str = "", *, in_process: bool = False, yes: bool = False) -> None:
        self.out: Output = Console()
        self.profile = profile
        self.remember = False
        self._in_process = in_process
        self._yes = yes
        self._session: Session | None = None

    async def session(self) -> Session:
        """The session of the profile in use."""
        if self._session is None:
            if not self.profile:
                raise UsageError(
                    "No profile is chosen.",
                    fix="`hpcsh -P PROFILE …`, HPCSH_PROFILE, or `hpcsh use PROFILE`; "
                    "`hpcsh profiles` lists them",
                )
            self._session = await connect(self.profile, in_process=self._in_process, ask=_ask)
        return self._session

    async def use(self, profile: str) -> Session:
        """Change the profile and open its session; the old one stays if the new one cannot be opened."""
        session = await connect(profile, in_process=self._in_process, ask=_ask)
        await self.close()
        self.profile, self._session = profile, session
        if self.remember:
            remember(profile)
        return session

    def read(self, name: str) -> File:
        """A file of the user, or standard input."""
        if name == "-":
            return File("-", sys.stdin.buffer.read())
        try:
            return File(name, Path(name).expanduser().read_bytes())
        except OSError as e:
            raise UsageError(f"{name} cannot be read: {e.strerror}.") from None

    def confirm(self, question: str, items: list[str]) -> bool:
        """Ask on the terminal, after naming what goes."""
        if self._yes:
            return True
        for item in items:
            self.out.note(f"  {item}")
        if not sys.stdin.isatty():
            raise RefusedError(question, why="Nobody is here to answer.", fix="say -y to mean it")
        return ask_yes(f"{question} [y/N] ")

    async def close(self) -> None:
        """Leave the session; what runs goes on."""
        if self._session is not None:
            await self._session.close()
            self._session = None


@dataclass
class Options:
    """What stands before the verb."""

    profile: str = ""
    scripts: list[tuple[str, str]] = field(default_factory=list)
    """("-c", text) or ("-f", name), in the order in which they were said."""
    in_process: bool = False
    yes: bool = False
    rest: list[str] = field(default_factory=list)


async def run_words(front: ConsoleFront, words: list[str]) -> int:
    """Run one command already split into words; errors are told, and their exit code returned."""
    try:
        if words[0] == "help":
            show_help(words[1:])
            return 0
        if words[0] in ("lab", "host"):
            raise UsageError(f"`{words[0]}` is for the command line.", fix=f"hpcsh {' '.join(words[:2])}")
        return await execute(find(words[0]), words[1:], front)
    except HpcshError as e:
        front.out.note(tell(e))
        return e.exit_code


def tell(error: HpcshError) -> str:
    """An error on one screen: what happened, what it means, what to do."""
    lines = [f"hpcsh: {error.what}"]
    lines += [f"  {line}" for line in error.why.splitlines()[-15:]]
    if error.fix:
        lines.append(f"  fix: {error.fix}")
    return "\n".join(lines)


def split_line(line: str) -> list[str]:
    """Words of a line as a shell splits them; `#` begins a comment. Raises `UsageError`."""
    try:
        return shlex.split(line, comments=True)
    except ValueError as e:
        raise UsageError(f"This line cannot be split into words: {e}.", why=line) from None


def commands(text: str) -> list[tuple[int, str]]:
    """The commands of a script and their line numbers.

    A line or an unquoted `;` ends one; `\\` before the end of a line goes on in the next.
    """
    found: list[tuple[int, str]] = []
    begin, number, at, quote, comment = 0, 1, 1, "", False
    for i, c in enumerate(text):
        escaped = i > 0 and text[i - 1] == "\\" and quote != "'" and text[i - 2 : i] != "\\\\"
        if comment:
            comment = c != "\n"
        elif quote:
            quote = "" if c == quote and not escaped else quote
        elif c in "'\"" and not escaped:
            quote = c
        elif c == "#" and (i == 0 or text[i - 1].isspace()):
            comment = True
        if c in ";\n" and not quote and not comment and not escaped:
            found.append((at, text[begin:i]))
            begin, at = i + 1, number + (c == "\n")
        number += c == "\n"
    return [(n, words.replace("\\\n", " ")) for n, words in (*found, (at, text[begin:])) if words.strip()]


async def run_script(front: ConsoleFront, text: str, name: str = "") -> int:
    """Run the commands of a script; the first that fails ends it with its code, and its place is told."""
    for number, command in commands(text):
        try:
            words = split_line(command)
        except HpcshError as e:
            front.out.note(tell(e))
            code = e.exit_code
        else:
            code = await run_words(front, words) if words else 0
        if code:
            if name:
                front.out.note(f"  in {name}, line {number}: {command.strip()}")
            return code
    return 0


def show_help(words: list[str]) -> None:
    """Print the help of a verb, or the list of verbs."""
    if words:
        parser(find(words[0])).help_print([])
        return
    print("Verbs:")
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
    for verb in verbs().values():
        also = f" (also: {', '.join(verb.aliases)})" if verb.aliases else ""
        print(cut(f"  {verb.name:9} {verb.summary}{also}", columns))
    print("`help VERB` explains one; in the shell `exit` or Ctrl-D leaves, Ctrl-C ends a command.")


def script_text(front: ConsoleFront, kind: str, value: str) -> str:
    """The text of a script: said (`-c`), or in a file or on standard input (`-f`). Raises `UsageError`."""
    if kind == "-c":
        return value
    data = front.read(value).data
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise UsageError(f"{value} is not UTF-8, at byte {e.start}.") from None


def remembered() -> str:
    """The profile that `hpcsh use` chose last, "" when none."""
    path = _choice()
    return path.read_text().strip() if path.is_file() else ""


def remember(profile: str) -> None:
    """Make a profile the default of the next command line."""
    from hpcsh.store import state_dir, write_durably

    state_dir()
    write_durably(_choice(), profile.encode())


def _choice() -> Path:
    return state_home() / "profile"
