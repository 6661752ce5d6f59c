"""The one registry of verbs."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpcsh.errors import UsageError

if TYPE_CHECKING:
    from hpcsh.verbs.context import VerbContext

VerbFunction = Callable[..., Awaitable[int]]
Split = Callable[[VerbFunction, Sequence[str]], list[str]]


def plain(function: VerbFunction, tokens: Sequence[str]) -> list[str]:
    """All words are the verb's own."""
    return list(tokens)


class Risk(StrEnum):
    """What a verb can do: front ends ask before `destroy` and show the cost of `cost` (node-hours)."""

    READ = "read"
    MUTATE = "mutate"
    COST = "cost"
    DESTROY = "destroy"


@dataclass(frozen=True)
class Verb:
    """A verb: its function, whose signature is the command line, and what front ends need to know."""

    name: str
    function: VerbFunction
    risk: Risk
    aliases: tuple[str, ...]
    needs: str
    """The engine capability without which the verb is not offered; "" for verbs of hpcsh itself."""
    split: Split
    """Puts `--` where the verb's own options end and somebody else's words begin."""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


_VERBS: dict[str, Verb] = {}
_MODULES = ("sessions", "work", "images", "environments")


def verb(
    *,
    risk: Risk,
    needs: str = "",
    aliases: Sequence[str] = (),
    split: Split = plain,
    name: str | None = None,
) -> Callable[[VerbFunction], VerbFunction]:
    """Register a function as a verb under its own name (or `name`)."""

    def register(function: VerbFunction) -> VerbFunction:
        known = name or function.__name__
        _VERBS[known] = Verb(known, function, risk, tuple(aliases), needs, split)
        return function

    return register


def verbs() -> dict[str, Verb]:
    """Every verb by name, in the order in which help shows them."""
    for module in _MODULES:
        import_module(f"hpcsh.verbs.{module}")
    return _VERBS


def find(name: str) -> Verb:
    """The verb of that name or alias. Raises `UsageError` that names what is near."""
    import difflib

    known = verbs()
    names = {alias: v for v in known.values() for alias in (v.name, *v.aliases)}
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    raise UsageError(
        f"There is no verb {name!r}.",
        why=f"Near: {', '.join(near)}" if near else "",
        fix="`hpcsh help` lists the verbs",
    )


def parser(verb: Verb) -> Any:
    """The cyclopts application of one verb."""
    from cyclopts import App

    app = App(name=verb.name, help_flags=["--help", "-h"], version_flags=[])
    app.default(verb.function)
    return app


async def execute(verb: Verb, tokens: Sequence[str], context: VerbContext) -> int:
    """Parse the tokens that follow a verb and run it; its exit code.

    Raises `UsageError` for a wrong command line, before anything is done.
    """
    from cyclopts import CycloptsError

    app = parser(verb)
    if bad := next((t for t in tokens if any("\ud800" <= c <= "\udfff" for c in t)), None):
        raise UsageError(
            f"{verb.name}: a word is not UTF-8.", why=ascii(bad), fix="give such bytes in a file"
        )
    words = verb.split(verb.function, tokens)
    own = words[: words.index("--")] if "--" in words else words
    if "--help" in own or "-h" in own:
        app.help_print([])
        return 0
    try:
        _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    except CycloptsError as e:
        raise UsageError(f"{verb.name}: {e}", fix=f"`hpcsh {verb.name} --help` shows what it takes") from None
    return await verb.function(*bound.args, **bound.kwargs, context=context)
