"""What can go wrong, told to a person.

Every error that reaches a user is an `HpcshError`: what happened, what it means, what to do,
and the exit code a script sees. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

from typing import ClassVar

OK = 0
FAILED = 1
USAGE = 2
REFUSED = 3
PARTIAL = 4
UNAVAILABLE = 77
TIMED_OUT = 124
INTERRUPTED = 130

EXIT_CODES: dict[int, str] = {
    OK: "done",
    FAILED: "the command failed",
    USAGE: "the command line, a profile or an input file is wrong; nothing was changed",
    REFUSED: "refused: it needs a confirmation (-y), or a rule forbids it; nothing was changed",
    PARTIAL: "some of what was asked is done, the rest is named",
    UNAVAILABLE: "this machine cannot do it: a requirement is missing and is named",
    TIMED_OUT: "it took longer than allowed",
    INTERRUPTED: "interrupted",
}
"""Exit codes of hpcsh itself. `run`, `wait`, `prun` and `prterun` pass on the program's own code."""


class HpcshError(Exception):
    """A failure that a person can act on.

    `what` says what happened, `why` what it means, `fix` what to do next; the last two may be empty.
    """

    kind: ClassVar[str] = "failed"
    default_exit: ClassVar[int] = FAILED

    def __init__(self, what: str, *, why: str = "", fix: str = "", exit_code: int | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.exit_code = self.default_exit if exit_code is None else exit_code

    def __str__(self) -> str:
        return "\n".join(line for line in (self.what, self.why, self.fix and f"Fix: {self.fix}") if line)


class UsageError(HpcshError):
    """The input is wrong; nothing was changed."""

    kind = "usage"
    default_exit = USAGE


class RefusedError(HpcshError):
    """A rule or a missing confirmation forbids it; nothing was changed."""

    kind = "refused"
    default_exit = REFUSED


class NotFoundError(HpcshError):
    """The named thing does not exist."""

    kind = "not-found"


class TargetError(HpcshError):
    """The target cannot be reached, or the connection to it broke."""

    kind = "target"


class CommandError(HpcshError):
    """A command on the target failed; `why` carries its own words."""

    kind = "command"


class UnknownOutcomeError(HpcshError):
    """It is not known whether an effect happened; it is settled by looking, never by doing it again."""

    kind = "unknown-outcome"


class UnavailableError(HpcshError):
    """This machine lacks a requirement; it is named together with the way to get it."""

    kind = "unavailable"
    default_exit = UNAVAILABLE


class TimedOutError(HpcshError):
    """It took longer than allowed and was stopped."""

    kind = "timed-out"
    default_exit = TIMED_OUT


_KINDS: dict[str, type[HpcshError]] = {
    c.kind: c
    for c in (
        HpcshError, UsageError, RefusedError, NotFoundError, TargetError, CommandError,
        UnknownOutcomeError, UnavailableError, TimedOutError,
    )
}  # fmt: skip


def rebuild(kind: str, what: str, why: str, fix: str, exit_code: int) -> HpcshError:
    """Make the error that crossed a socket the same error again; an unknown kind becomes the base class."""
    return _KINDS.get(kind, HpcshError)(what, why=why, fix=fix, exit_code=exit_code)
