"""The REPL's loop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.history import FileHistory
from prompt_toolkit.patch_stdout import patch_stdout

from hpcsh.console import ConsoleFront, Options, commands, remembered, run_words, split_line, tell
from hpcsh.errors import HpcshError
from hpcsh.repl.completion import Known, VerbCompleter
from hpcsh.session import Session
from hpcsh.store import state_dir


def history_file() -> Path:
    """The history, readable by its owner only."""
    path = state_dir() / "history"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    path.chmod(0o600)
    return path


async def _learn(session: Session, known: Known) -> None:
    """Follow the session's events, so that completion knows workloads and images without asking."""
    known.capabilities = (await session.info()).capabilities
    known.workloads = (await session.workloads()).workloads
    if "images" in known.capabilities:
        known.images = tuple(i.reference for i in await session.images())
    async for event in session.events(0):
        workload = getattr(event.body, "workload", None)
        if workload is not None:
            others = tuple(w for w in known.workloads if w.id != workload.id)
            known.workloads = (*others, workload)


class Repl:
    """One interactive session on the terminal."""

    def __init__(self, options: Options) -> None:
        profile = options.profile or remembered()
        self._front = ConsoleFront(profile, in_process=options.in_process, yes=options.yes)
        self._front.remember = True
        self._known = Known()
        self._learning: asyncio.Task[None] | None = None
        self._learned = ""
        self._prompt: PromptSession[str] = PromptSession(
            history=FileHistory(str(history_file())),
            auto_suggest=AutoSuggestFromHistory(),
            completer=VerbCompleter(self._known),
            complete_while_typing=False,
            bottom_toolbar=self._toolbar,
            enable_history_search=True,
        )

    def _toolbar(self) -> str:
        profile = self._front.profile or "no profile: `profiles`, then `use NAME`"
        active = sum(not w.state.terminal for w in self._known.workloads if w.ours)
        return f" {profile}   {active} active   tab completes, `help` explains, ctrl-d leaves"

    async def run(self) -> int:
        """Read and run commands until the end; the exit code is 0."""
        try:
            while True:
                try:
                    with patch_stdout(raw=True):
                        line = await self._prompt.prompt_async(f"hpcsh {self._front.profile or '-'}> ")
                except KeyboardInterrupt:
                    continue
                except EOFError:
                    return 0
                if line.strip() in ("exit", "quit"):
                    return 0
                await self._one(line)
        finally:
            if self._learning:
                self._learning.cancel()
            await self._front.close()

    async def _one(self, line: str) -> None:
        try:
            for _, command in commands(line):
                if words := split_line(command):
                    await self._interruptible(words)
        except HpcshError as e:
            self._front.out.note(tell(e))

    async def _interruptible(self, words: list[str]) -> None:
        """Run a command; Ctrl-C ends the command, not the shell."""
        import signal

        task = asyncio.create_task(run_words(self._front, words))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            code = await task
            if code:
                self._front.out.note(f"[{code}]")
        except asyncio.CancelledError:
            self._front.out.note("interrupted")
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        if self._front.profile != self._learned or (self._learning and self._learning.done()):
            await self._start_learning()

    async def _start_learning(self) -> None:
        if self._learning:
            self._learning.cancel()
        if self._front.profile:
            self._learned = self._front.profile
            try:
                session = await self._front.session()
            except HpcshError:
                return
            self._learning = asyncio.create_task(_learn(session, self._known))


def main(options: Options) -> int:
    """Run the REPL on this terminal."""
    return asyncio.run(Repl(options).run())
