from __future__ import annotations

from pathlib import Path

import pytest

from hpcsh import cli
from hpcsh.console import commands
from hpcsh.errors import UsageError


def test_scripts_keep_their_order() -> None:
    options = cli.parse(["-P", "p", "-c", "a", "-f", "x", "-c", "b", "-y"])
    assert options.scripts == [("-c", "a"), ("-f", "x"), ("-c", "b")]
    assert (options.profile, options.yes) == ("p", True)


@pytest.mark.parametrize("words", [["-P"], ["--nope"], ["-c", "ps", "nodes"]])
def test_what_cannot_be_meant_is_told(words: list[str]) -> None:
    with pytest.raises(UsageError):
        cli.parse(words)


@pytest.mark.parametrize("words", [["--help"], ["-P", "x", "-h"], ["help"], ["-c", "help"]])
def test_help_is_everywhere(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    assert "hpcsh" in capsys.readouterr().out or words == ["-c", "help"]


def test_a_fault_of_ours_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(options: object) -> int:
        raise RuntimeError("inside")

    monkeypatch.setattr(cli, "_dispatch", fails)
    assert cli.main(["ps"]) == 1
    assert "RuntimeError: inside" in capsys.readouterr().err


def test_a_script_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s").write_bytes(b"ps \xff")
    assert cli.main(["-f", str(tmp_path / "s")]) == 2
    assert "at byte 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ps; nodes", [(1, "ps"), (1, " nodes")]),
        ("ps\n\nrun -- sh -c 'a; b'\nnodes", [(1, "ps"), (3, "run -- sh -c 'a; b'"), (4, "nodes")]),
        ('run -- echo "a;b\\";c" x\\;y', [(1, 'run -- echo "a;b\\";c" x\\;y')]),
        ("images \\\n--json\nps", [(1, "images  --json"), (3, "ps")]),
        ("# don't; stop\nps # it's; all", [(1, "# don't; stop"), (2, "ps # it's; all")]),
        ("", []),
    ],
)
def test_commands_end_with_a_line_or_a_semicolon(text: str, found: list[tuple[int, str]]) -> None:
    assert commands(text) == found


def test_a_failing_line_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s").write_text("profiles\nnope a b\n")
    assert cli.main(["-f", str(tmp_path / "s")]) == 2
    assert "line 2: nope a b" in capfd.readouterr().err
