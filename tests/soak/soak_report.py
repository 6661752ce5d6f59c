"""The page that a run of the long tier leaves: what ran, on which commit, from which seed, what came out."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("test_kills", "test_many_jobs", "test_launches", "test_lab_cycles", "test_follows")

HEAD = """# The long tier

Written by `make soak` itself at its end. Each test works through hpcsh's own front doors on a real lab and
looks from outside at what is left; what each one asks is said at the top of its file in
[tests/soak](../tests/soak).
`HPCSH_SOAK_SEED` repeats a run's random choices, `HPCSH_SOAK_KILLS` changes the number of kills.
"""


@dataclass
class Row:
    """A test: its outcome so far, how long it took, what it counted."""

    outcome: str = "not run"
    seconds: float = 0.0
    why: str = ""
    counts: dict[str, object] = field(default_factory=dict)


class Report:
    """Gathers rows and makes the page."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: dict[str, Row] = {}
        self.began = time.time()

    @property
    def complete(self) -> bool:
        """True when every test of the tier ran."""
        return all(self.row(name).outcome in ("passed", "failed") for name in TESTS)

    def row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row())

    def add(self, name: str, report: pytest.TestReport) -> None:
        """Take in one phase (setup, call, teardown) of a test."""
        row = self.row(name)
        row.seconds += report.duration
        if report.when == "call" or not report.passed:
            row.outcome = "failed" if row.outcome == "failed" else report.outcome
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            row.why = (crash.message if crash else str(report.longrepr)).splitlines()[0][:300]

    def page(self) -> str:
        done = [row for row in self.rows.values() if row.outcome in ("passed", "failed")]
        minutes, seconds = divmod(round(sum(row.seconds for row in done)), 60)
        failed = sum(row.outcome == "failed" for row in done)
        verdict = f"{failed} of {len(done)} failed" if failed else f"all {len(done)} passed"
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.began))
        facts = (
            f"Commit `{_commit()}`, {when}, seed `{self.seed}`, {os.cpu_count()} cores, "
            f"Python {platform.python_version()}, Linux {platform.release()}: **{verdict}** "
            f"in {minutes} min {seconds} s."
        )
        lines = [HEAD, facts, "", "| test | outcome | time | what was counted |", "|---|---|---|---|"]
        for name, row in self.rows.items():
            counted = "; ".join(f"{key}: {_figure(value)}" for key, value in row.counts.items())
            if row.why:
                counted += f"{'; ' if counted else ''}**{row.why.replace('|', chr(92) + '|')}**"
            lines.append(f"| {name} | {row.outcome} | {row.seconds:.0f} s | {counted} |")
        return "\n".join(lines) + "\n"


def _figure(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "hpcsh", "tests/soak")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (" with changes" if changed else "")


KEY = pytest.StashKey[Report]()
