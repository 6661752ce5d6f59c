"""What can be typed next: verbs, their options, profiles, workloads, files. Never asks Slurm."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from hpcsh import profiles
from hpcsh.errors import UsageError
from hpcsh.model import Workload
from hpcsh.verbs.flags import options
from hpcsh.verbs.registry import find, verbs

_REFERENCES = {"show", "logs", "wait", "cancel"}
_FILES = {"submit"}


class Known:
    """What completion knows of the session: filled from answers that were shown, so it costs no question."""

    def __init__(self) -> None:
        self.workloads: tuple[Workload, ...] = ()
        self.capabilities: tuple[str, ...] = ()
        self.images: tuple[str, ...] = ()


class VerbCompleter(Completer):
    """Completes a line of the REPL from the verb registry and from what the session showed last."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """The completions at the cursor."""
        words = document.text_before_cursor.split()
        fresh = not document.text_before_cursor or document.text_before_cursor[-1].isspace()
        current = "" if fresh or not words else words[-1]
        if not words or (len(words) == 1 and not fresh):
            yield from self._verbs(current)
            return
        try:
            verb = find(words[0])
        except UsageError:
            return
        if current.startswith("-"):
            for name in sorted(options(verb.function)):
                if name.startswith(current):
                    yield Completion(name, -len(current))
        elif verb.name in _FILES:
            yield from self._paths.get_completions(Document(current, len(current)), event)
        else:
            yield from self._values(verb.name, current)

    def _verbs(self, current: str) -> Iterable[Completion]:
        can = self._known.capabilities
        for verb in verbs().values():
            if verb.name.startswith(current) and (not can or not verb.needs or verb.needs in can):
                yield Completion(verb.name, -len(current), display_meta=verb.summary)
        for name in ("help", "exit"):
            if name.startswith(current):
                yield Completion(name, -len(current))

    def _values(self, verb: str, current: str) -> Iterable[Completion]:
        if verb == "use":
            candidates = [(name, "") for name in profiles.available()]
        elif verb in _REFERENCES:
            candidates = [(w.id, f"{w.name} {w.state}") for w in reversed(self._known.workloads)]
            candidates += [(w.name, f"{w.id} {w.state}") for w in self._known.workloads if w.name]
        elif verb in ("run", "pull"):
            candidates = [(i, "in the pool") for i in self._known.images]
        else:
            candidates = []
        seen: set[str] = set()
        for text, meta in candidates:
            if text.startswith(current) and text not in seen:
                seen.add(text)
                yield Completion(text, -len(current), display_meta=meta)
