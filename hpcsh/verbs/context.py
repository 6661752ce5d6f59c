"""What a front end gives to a verb."""

from __future__ import annotations

from typing import Annotated, Protocol

from cyclopts import Parameter

from hpcsh.model import File, Progress
from hpcsh.session import Session
from hpcsh.verbs.output import Cell


class Output(Protocol):
    """Where a verb's answer goes. A front end decides how it looks; text is already harmless to print."""

    def line(self, text: str = "") -> None:
        """A line of the answer."""
        ...

    def note(self, text: str) -> None:
        """A remark beside the answer (standard error on a command line)."""
        ...

    def table(self, headers: list[str], rows: list[list[Cell]], *, empty: str = "") -> None:
        """A table, or the text `empty` when there are no rows."""
        ...

    def data(self, value: object) -> None:
        """A value as one JSON document."""
        ...

    def raw(self, data: bytes, stream: int = 1) -> None:
        """Bytes of a program, exactly, to standard output (1) or standard error (2)."""
        ...

    def progress(self, progress: Progress) -> None:
        """A step of something long."""
        ...


class Front(Protocol):
    """The front end that runs a verb."""

    out: Output
    profile: str
    """Name of the profile in use, "" when none is."""

    async def session(self) -> Session:
        """The session of the profile in use, opened when first asked for."""
        ...

    async def use(self, profile: str) -> Session:
        """Change the profile, and open its session."""
        ...

    def read(self, name: str) -> File:
        """A file of the user; `-` is standard input. Raises `UsageError`."""
        ...

    def confirm(self, question: str, items: list[str]) -> bool:
        """Ask before something is destroyed; `items` is what goes. Raises `RefusedError` if it cannot ask."""
        ...


VerbContext = Annotated[Front, Parameter(parse=False)]
