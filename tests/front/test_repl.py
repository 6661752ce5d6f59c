"""The REPL in a real terminal: what a person types and sees."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pexpect
import pyte
import pytest

pytestmark = pytest.mark.lab


class Terminal:
    """A REPL on a pseudo-terminal, and the screen a person would see."""

    def __init__(self, env: dict[str, str], cwd: Path, rows: int = 24, columns: int = 80) -> None:
        self._child = pexpect.spawn(
            sys.executable, ["-m", "hpcsh"], env={**env, "TERM": "xterm-256color"}, cwd=str(cwd),
            dimensions=(rows, columns), timeout=60, encoding="utf-8",
        )  # fmt: skip
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display)

    def until(self, wanted: str, times: int = 1) -> str:
        """Feed the screen until it shows a text so many times."""
        while self.text().count(wanted) < times:
            data = self._child.read_nonblocking(65536, timeout=60)
            if "\x1b[6n" in data:  # prompt_toolkit asks where the cursor is
                cursor = self._screen.cursor
                self._child.send(f"\x1b[{cursor.y + 1};{cursor.x + 1}R")
            self._stream.feed(data)
        return self.text()

    def type(self, keys: str) -> None:
        self._child.send(keys)

    def end(self) -> int:
        self._child.send("\x15\x04")  # empty the line, then the end
        self._child.expect(pexpect.EOF)
        self._child.close()
        return int(self._child.exitstatus or 0)


@pytest.fixture
def terminal(places: dict[str, str], tmp_path: Path) -> Terminal:
    return Terminal(places, tmp_path)


def test_a_session_by_hand(terminal: Terminal, places: dict[str, str]) -> None:
    terminal.until("hpcsh pods>")
    terminal.type("use pods\r")
    terminal.until("as alice")
    terminal.type("nod\t")
    terminal.until("hpcsh pods> nodes")
    terminal.type("\r")
    assert "n3" in terminal.until("n3")
    terminal.type("show nothing-like-it\r")
    terminal.until("nothing-like-it")
    terminal.until("[1]")
    terminal.type("run -- sleep 600\r")
    terminal.until("is job")
    terminal.type("\x03")
    terminal.until("interrupted")
    terminal.type("run --detach -- true\r")
    terminal.until("is job", times=2)
    terminal.type("clean --all\r")
    terminal.until("[y/N]")
    terminal.type("\x04")
    terminal.until("Nothing was removed")
    terminal.type("clean --all\r")
    terminal.until("[y/N]", times=2)
    terminal.type("\x03")
    terminal.until("Interrupted")
    terminal.type("help wait\r")
    terminal.until("--timeout")
    assert terminal.end() == 0
    history = Path(places["XDG_STATE_HOME"], "hpcsh", "history")
    assert "run -- sleep 600" in history.read_text()
    assert not os.stat(history).st_mode & 0o077


def test_completion_knows_what_the_engine_can(terminal: Terminal) -> None:
    terminal.until("hpcsh pods>")
    terminal.type("use mpi\r")
    terminal.until("as alice")
    terminal.type("pr\t\t")
    shown = terminal.until("prterun")
    assert "prun" in shown
    terminal.type("\x15use pods\r")
    terminal.until("hpcsh pods>")
    terminal.type("\x15logs -\t")
    terminal.until("--follow")
    assert terminal.end() == 0
