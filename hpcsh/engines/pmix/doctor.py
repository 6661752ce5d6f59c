"""What the pmix engine needs on its target."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hpcsh.boundary.base import Boundary
from hpcsh.engines.pmix.commands import PTERM
from hpcsh.model import Finding, Severity

_LOOK = """\
for t in "$@"; do
    p=$(command -v "$t" 2>/dev/null) || continue
    v=
    case $t in mpicc) ;; *) v=$("$t" --version </dev/null 2>&1 | head -n 1) ;; esac
    printf '%s\\t%s\\t%s\\n' "$t" "$p" "$v"
done
"""
NEEDED = ("prte", "prun", "prterun")
OLDEST = (3, 0)
TIMEOUT = 30.0

_INSTALL = "install PRRTE (Debian: openmpi-bin), or `module load …` in the profile's `setup:`"


async def look(boundary: Boundary) -> list[Finding]:
    """Which of PRRTE's tools are there, in which version, and whether a program can be compiled."""
    argv = ["sh", "-c", _LOOK, "look", *NEEDED, *PTERM, "mpicc"]
    said = await boundary.run(argv, timeout=TIMEOUT)
    tools: dict[str, tuple[str, str]] = {}
    for line in said.text.splitlines():
        name, _, rest = line.partition("\t")
        path, _, version = rest.partition("\t")
        tools[name] = (path, version)
    return judge(tools)


def version_of(text: str) -> tuple[int, ...]:
    """`prte (PRRTE) 3.0.8` → (3, 0, 8); () when there is none. Wheels of Open MPI print no version."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def judge(tools: Mapping[str, tuple[str, str]]) -> list[Finding]:
    """Findings from the tools' paths and versions. Pure."""
    found = [_tool(name, tools.get(name)) for name in NEEDED]
    pterm = next((name for name in PTERM if name in tools), "")
    if pterm:
        found.append(_finding("pmix.pterm", Severity.OK, f"{tools[pterm][0]}"))
    else:
        found.append(
            _finding("pmix.pterm", Severity.WARNING, "There is no pterm; `down` cancels the job instead.")
        )
    versions = {name: version_of(tools[name][1]) for name in NEEDED if name in tools}
    if len({v[:2] for v in versions.values() if v}) > 1:
        said = ", ".join(f"{n} {'.'.join(map(str, v))}" for n, v in versions.items())
        what = f"PRRTE's tools are of different versions: {said}."
        found.append(_finding("pmix.versions", Severity.ERROR, what, _INSTALL))
    found += _generation(versions.get("prte", ()))
    if "mpicc" in tools:
        found.append(_finding("pmix.mpicc", Severity.OK, tools["mpicc"][0]))
    else:
        what = "There is no mpicc: programs cannot be compiled here, but can run."
        found.append(_finding("pmix.mpicc", Severity.WARNING, what, "Debian: libopenmpi-dev"))
    return found


def _tool(name: str, known: tuple[str, str] | None) -> Finding:
    if known is None:
        fix = _INSTALL
        if name == "prun":
            fix += "; the Open MPI wheel of PyPI and some packages leave prun out"
        return _finding(f"pmix.{name}", Severity.ERROR, f"There is no {name}.", fix)
    return _finding(f"pmix.{name}", Severity.OK, " ".join(part for part in known if part))


def _generation(version: tuple[int, ...]) -> list[Finding]:
    if version and version < OLDEST:
        what = f"PRRTE {'.'.join(map(str, version))} is older than what was tested (3.0)."
        return [_finding("pmix.prrte", Severity.WARNING, what, "install PRRTE 3.0 or newer")]
    if version and version[0] > 3:
        what = f"PRRTE {version[0]} renamed some tools and parameters; hpcsh was tested with PRRTE 3."
        return [_finding("pmix.prrte", Severity.WARNING, what)]
    return []


def _finding(key: str, severity: Severity, what: str, fix: str = "") -> Finding:
    return Finding(id=key, severity=severity, what=what, fix=fix)
