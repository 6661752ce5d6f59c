"""Text for people: tables, times, sizes. Pure."""

from __future__ import annotations

import re
import time
import unicodedata

Cell = str | int | None

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """Text that a terminal prints as it is: control, direction and broken characters become visible."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m.group()):02x}", text)


def width(text: str) -> int:
    """Columns that a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def table(headers: list[str], rows: list[list[Cell]]) -> list[str]:
    """Lines of an aligned table; numbers to the right, `-` for nothing (but in a column without a name)."""
    blank = ["-" if header else "" for header in headers]
    texts = [
        [harmless("" if c is None else str(c)) or b for c, b in zip(row, blank, strict=True)] for row in rows
    ]
    widths = [max(width(line[i]) for line in [headers, *texts]) for i in range(len(headers))]
    numeric = [bool(rows) and all(isinstance(r[i], int) for r in rows) for i in range(len(headers))]

    def line(cells: list[str]) -> str:
        padded = (
            " " * (w - width(c)) + c if right else c + " " * (w - width(c))
            for c, w, right in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    return [line(headers), *map(line, texts)]


def cut(text: str, columns: int) -> str:
    """A text that fits into so many columns; where something is missing it ends with `…`."""
    if width(text) <= columns:
        return text
    kept, used = "", 1
    for c in text:
        used += width(c)
        if used > columns:
            break
        kept += c
    return kept + "…"


def duration(seconds: float | None) -> str:
    """A duration as Slurm writes it: `[D-]HH:MM:SS` without leading zeros, `-` when not known."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days}-{hours:02}:{minutes:02}:{secs:02}"
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def moment(at: float | None) -> str:
    """A time of day, with the date when it is not today's."""
    if at is None:
        return "-"
    then = time.localtime(at)
    same = time.strftime("%F", then) == time.strftime("%F")
    return time.strftime("%H:%M:%S" if same else "%F %H:%M:%S", then)


def size(count: int | None) -> str:
    """Bytes in binary units."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError
