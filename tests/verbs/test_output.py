from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsh.verbs.output import cut, duration, harmless, size, table, width


@given(st.text())
def test_nothing_printed_moves_the_terminal(text: str) -> None:
    shown = harmless(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    shown.encode()


def test_an_escape_sequence_in_a_name_becomes_visible() -> None:
    assert harmless("\x1b]52;c;aGk=\x07") == "\\x1b]52;c;aGk=\\x07"


def test_columns_line_up_with_wide_characters() -> None:
    lines = table(["NAME", "N"], [["日本", 3], ["a", 12], ["", None]])
    assert lines == ["NAME  N", "日本  3", "a     12", "-     -"]
    assert width("日本") == 4


def test_numbers_stand_to_the_right() -> None:
    assert table(["N"], [[3], [12]]) == [" N", " 3", "12"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0:00"), (59.9, "0:59"), (3600, "1:00:00"), (90061, "1-01:01:01"), (-5, "0:00")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0 B"), (1536, "1.5 KiB"), (1 << 40, "1.0 TiB")]
)
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text


@given(st.text(), st.integers(2, 80))
def test_a_line_never_exceeds_the_terminal(text: str, columns: int) -> None:
    assert width(cut(harmless(text), columns)) <= columns


def test_a_column_without_a_name_stays_empty() -> None:
    assert table(["", "A"], [["", "x"], ["·", None]]) == ["   A", "   x", "·  -"]
