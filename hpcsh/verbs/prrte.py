"""The words of `prun` and `prterun`: ours, PRRTE's, and the program. Pure.

Option names and arities: the man pages prun(1) and prterun(1) of PRRTE 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hpcsh.errors import UsageError
from hpcsh.verbs.flags import options

_VALUES = {
    **dict.fromkeys(("-n", "--n", "-np", "--np", "-c", "-N", "--npernode", "--map-by", "--rank-by"), 1),
    **dict.fromkeys(
        ("--bind-to", "--host", "-H", "--hostfile", "-hostfile", "--add-host", "--add-hostfile"), 1
    ),
    **dict.fromkeys(
        ("-x", "--wdir", "-wdir", "--wd", "--personality", "--display", "--output", "--stdin"), 1
    ),
    **dict.fromkeys(("--timeout", "--pset", "--prefix", "--runtime-options", "--preload-files", "--path"), 1),
    **dict.fromkeys(
        ("--cpu-set", "--cpu-list", "--ppr", "--dvm-uri", "--namespace", "--pid", "--max-restarts"), 1
    ),
    **dict.fromkeys(("--mca", "-mca", "--prtemca", "--pmixmca", "--gmca", "--omca"), 2),
}
_FLAGS = {
    "--do-not-launch", "--do-not-resolve", "--enable-recovery", "--continuous", "--oversubscribe",
    "--report-bindings", "--verbose", "-v", "--tag-output", "--timestamp-output", "--stop-on-exec",
    "--get-stack-traces", "--report-state-on-timeout", "--forward-signals", "--set-cwd-to-session-dir",
    "--preload-binary", "-s", "--allow-run-as-root", "--display-map", "--display-allocation",
    "--nolocal",
}  # fmt: skip


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """PRRTE's options, and the program with its arguments.

    Raises `UsageError` for an option that is not known and could take a value or not: guessing would run
    something else than what was meant.
    """
    i = 0
    while i < len(words) and words[i].startswith("-") and words[i] != "--":
        word = words[i]
        if word not in _VALUES and word not in _FLAGS and "=" not in word:
            if "--" not in words:
                raise UsageError(
                    f"hpcsh does not know whether {word} takes a value.",
                    fix="put `--` between PRRTE's options and the program",
                )
            i = words.index("--")
            break
        i += 1 + _VALUES.get(word, 0)
    skip = 1 if words[i : i + 1] == ["--"] else 0
    return list(words[:i]), list(words[i + skip :])


def own_and_rest(function: Callable[..., object], tokens: Sequence[str]) -> list[str]:
    """Take our own options out of the words before the program; all else stays in order behind `--`."""
    ours = options(function)
    own: list[str] = []
    rest: list[str] = []
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token.partition("=")[0] in ours or token in ("--help", "-h"):
            count = 2 if ours.get(token) else 1
            own += tokens[i : i + count]
        elif token in _VALUES:
            count = 1 + _VALUES[token]
            rest += tokens[i : i + count]
        elif token == "--" or not token.startswith("-"):
            return [*own, "--", *rest, *tokens[i:]]
        else:
            count = 1
            rest.append(token)
        i += count
    return [*own, "--", *rest]
