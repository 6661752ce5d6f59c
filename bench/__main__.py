"""`python -m bench`: measure on a lab of its own, write docs/benchmarks.md; exit 1 over 1.5 × a budget."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import startup
from bench.figures import HEADER, Figure

LAB = "bench"
ROOT = Path(__file__).resolve().parent.parent
PROFILE = """\
engine: {engine}
target: {{lab: bench}}
resources: {{account: science, partition: debug, time: "30"}}
images: {{plain_http: ["login:5000"]}}
poll: {{floor: 1}}
"""


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


async def measure(rounds: int) -> list[Figure]:
    """All figures, in the order of the report."""
    from bench import cluster

    figures = startup.lab_up(LAB, say)
    figures += await cluster.measure(rounds, say)
    figures += startup.command_lines(rounds, say)
    return figures


def report(figures: list[Figure]) -> str:
    """The report: what ran where, and the table."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=ROOT, check=False
        ).stdout.strip()

    dirty = " with uncommitted changes" if git("status", "--porcelain") else ""
    cpus = os.cpu_count()
    rows = "\n".join(f.row() for f in figures)
    return f"""# Benchmarks

`make bench` writes this page: hpcsh beside the raw tool over the same transport (SSH into the lab's login
node), in turn in one run, medians, and the median of the ratios pair by pair. Over its budget by half fails.

Commit {git("rev-parse", "--short", "HEAD")}{dirty}, Python {sys.version.split()[0]},
{cpus} processors, Linux {os.uname().release}.

{HEADER}
{rows}
"""


def main() -> int:
    """Run all; the exit code."""
    rounds = int(os.environ.get("HPCSH_BENCH_ROUNDS", "10"))
    with tempfile.TemporaryDirectory(prefix="hpcsh-bench-") as scratch:
        profiles = Path(scratch, "config", "hpcsh", "profiles")
        profiles.mkdir(parents=True)
        (profiles / "bench-jobs.yaml").write_text(PROFILE.format(engine="virtual_node"))
        (profiles / "bench-mpi.yaml").write_text(PROFILE.format(engine="pmix"))
        os.environ.update(
            HPCSH_LAB_STATE=os.environ.get("HPCSH_LAB_STATE", str(Path(scratch, "labs"))),
            XDG_CONFIG_HOME=str(Path(scratch, "config")),
            XDG_STATE_HOME=str(Path(scratch, "state")),
            HPCSH_RUNTIME_DIR=str(Path(scratch, "run")),
        )
        try:
            figures = asyncio.run(measure(rounds))
        finally:
            subprocess.run([sys.executable, "-m", "hpcsh", "host", "stop"], check=False)
            subprocess.run([sys.executable, "-m", "hpcsh", "lab", "rm", LAB], check=False)
    text = report(figures)
    (ROOT / "docs" / "benchmarks.md").write_text(text)
    print(text)
    failed = [f.name for f in figures if f.failed]
    if failed:
        say(f"Over 1.5 × the budget: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
