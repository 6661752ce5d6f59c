"""`make demo`: the main job of hpcsh, for real, on the lab.

Every step is a command that a person could type; it is printed before it runs, with its time after it.
Exit code 0: all done. 77: no lab can come up on this machine, the reason and the fix were printed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HPCSH = [sys.executable, "-m", "hpcsh"]
COMPILE = "cat > init_finalize.c && mpicc -O2 -o init_finalize init_finalize.c"
PROCESSES = "pgrep -u alice -a 'prte|prted|prun|apptainer|srun|slurm'; [ $? -le 1 ]"
NODES = ("login", "n1", "n2", "n3")

_started = time.monotonic()


def title(text: str) -> None:
    print(f"\n\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def run(*words: str, stdin: Path | None = None, capture: bool = False, shown: str | None = None) -> str:
    """Run one hpcsh command, print it and its time; a failure ends the demo with its exit code."""
    print(f"$ {shown or 'hpcsh ' + shlex.join(words)}", flush=True)
    began = time.monotonic()
    with stdin.open("rb") if stdin else open(os.devnull, "rb") as source:
        done = subprocess.run(
            [*HPCSH, *words], stdin=source, stdout=subprocess.PIPE if capture else None, cwd=ROOT, check=False
        )
    output = (done.stdout or b"").decode()
    if capture:
        print(output, end="")
    print(f"  [{time.monotonic() - began:.2f} s]", flush=True)
    if done.returncode:
        print(f"The demo stops here: exit code {done.returncode}.", file=sys.stderr)
        raise SystemExit(done.returncode)
    return output


def virtual_node() -> None:
    """Pull, submit, follow the log live, show, clean."""
    os.environ["HPCSH_PROFILE"] = "lab-virtual-node"
    run("doctor")
    run("pull", "docker://login:5000/python:latest")
    pod = run("submit", "examples/pods/count.yaml", capture=True).split()[0]
    run("logs", "-f", pod)
    run("wait", pod)
    run("show", pod)
    run("ps")
    run("clean", "-y")


def pmix() -> None:
    """A DVM on three nodes, launches in it, bare and in an image."""
    os.environ["HPCSH_PROFILE"] = "lab-pmix"
    run("pull", "docker://login:5000/mpi:latest")
    source = ROOT / "examples" / "mpi" / "init_finalize.c"
    run(
        "lab", "exec", "--user", "alice", "login", "--", "sh", "-c", f"cd && {COMPILE}", stdin=source,
        shown="hpcsh lab exec --user alice login -- sh -c 'cd && mpicc …' < examples/mpi/init_finalize.c",
    )  # fmt: skip
    run("up", "-N", "3", "-n", "6")
    run("status")
    run("prterun", "--map-by", "ppr:1:node", "hostname")
    for _ in range(3):
        run("prun", "--map-by", "ppr:1:node", "hostname")
    run("prun", "--map-by", "ppr:2:node", "./init_finalize")
    run("prun", "--image", "docker://login:5000/mpi:latest", "--map-by", "ppr:2:node", "./init_finalize")
    run("down")
    run("clean", "-y")


def look_around(*, shown: bool) -> set[str]:
    """What alice has on the nodes: processes, jobs, directories. The nodes are asked, not hpcsh."""
    commands = [(node, ["sh", "-c", PROCESSES]) for node in NODES]
    commands.append(("login", ["squeue", "-h", "-u", "alice", "-t", "PD,R,CG", "-o", "job %i %j"]))
    commands.append(("login", ["sh", "-c", "ls -d /home/alice/.hpcsh/jobs/* 2>/dev/null || true"]))
    found: set[str] = set()
    for node, argv in commands:
        words = ["lab", "exec", "--user", "alice", node, "--", *argv]
        if shown:
            output = run(*words, capture=True)
        else:
            output = subprocess.run([*HPCSH, *words], capture_output=True, text=True, check=True).stdout
        found |= {f"{node}: {line}" for line in output.splitlines() if line.strip()}
    return found


def main() -> None:
    title("A real cluster: Slurm, PRRTE and a registry on this machine")
    run("lab", "up")
    before = look_around(shown=False)
    title("Profile lab-virtual-node: a pod becomes a Slurm job")
    virtual_node()
    title("Profile lab-pmix: a virtual cluster for MPI")
    pmix()
    title("What was left behind? The nodes say:")
    left = look_around(shown=True) - before
    print("Left behind: " + ("\n".join(sorted(left)) if left else "nothing."))
    if left:
        raise SystemExit(1)
    title(f"Done in {time.monotonic() - _started:.0f} s. How to go on:")
    print(
        "  .venv/bin/hpcsh                       the shell; try `profiles`, `use lab-virtual-node`, `help`\n"
        "  .venv/bin/hpcsh lab shell             a shell on the login node\n"
        "  .venv/bin/hpcsh lab down              stop the cluster; `lab rm` forgets it"
    )


def with_places_of_its_own() -> None:
    """Run with a store and a session host that are not the user's, so that nothing of the user is cleaned."""
    sys.path.insert(0, str(ROOT))
    from hpcsh.lab.paths import state_root

    os.environ["HPCSH_LAB_STATE"] = str(state_root())
    with tempfile.TemporaryDirectory(prefix="hpcsh-demo-") as place:
        os.environ["XDG_STATE_HOME"] = place
        os.environ["HPCSH_RUNTIME_DIR"] = f"{place}/run"
        try:
            main()
        finally:
            subprocess.run([*HPCSH, "host", "stop"], stdout=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    with_places_of_its_own()
