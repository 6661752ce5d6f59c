"""The command line, as a user types it, on a real cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.front.conftest import Hpcsh

pytestmark = pytest.mark.lab

POD = b"""\
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  restartPolicy: Never
  containers:
  - name: good
    image: docker://login:5000/busybox:latest
    command: [sh, -c, "echo from good"]
    resources: {limits: {cpu: 1, memory: 100Mi}}
  - name: bad
    image: docker://login:5000/busybox:latest
    command: [sh, -c, "echo from bad; exit 42"]
    resources: {limits: {cpu: 1, memory: 100Mi}}
"""


def as_json(done: subprocess.CompletedProcess[bytes]) -> Any:
    return json.loads(done.stdout)


def on_lab(places: dict[str, str], *words: str) -> str:
    """Ask a node itself, as alice; not through a session."""
    lab = places["HPCSH_TEST_LAB"]
    argv = [
        sys.executable,
        "-m",
        "hpcsh",
        "lab",
        "exec",
        "--lab",
        lab,
        "--user",
        "alice",
        "login",
        "--",
        *words,
    ]
    return subprocess.run(argv, env=places, capture_output=True, text=True, check=True).stdout


def test_a_script_keeps_its_sbatch_lines_and_arguments(hpcsh: Hpcsh, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(
        "#!/bin/bash\n#SBATCH --job-name=from-script\n#SBATCH -n 2\n#SBATCH --output=mine-%j.txt\n"
        'echo "tasks $SLURM_NTASKS"\nprintf "<%s>" "$@"\n'
    )
    work = as_json(hpcsh("submit", "--json", "job.sh", "a b", "-p", "c'd\"$e"))
    assert work["name"] == "from-script"
    hpcsh("wait", work["id"], "--timeout", "60")
    assert hpcsh("logs", work["id"]).stdout == b"tasks 2\n<a b><-p><c'd\"$e>"
    shown = as_json(hpcsh("show", "--json", work["native_id"]))
    assert shown["workload"]["id"] == work["id"]
    assert "#SBATCH --output=mine-%j.txt" in shown["script"]
    assert hpcsh("show", "--script", work["id"]).stdout.decode() == shown["script"]


def test_a_pod_is_one_job_with_a_log_and_an_exit_code_for_each_container(hpcsh: Hpcsh) -> None:
    work = as_json(hpcsh("submit", "--json", "-", stdin=POD, timeout=300))
    ended = hpcsh("wait", "--json", work["id"], code=42)
    (pod,) = as_json(ended)
    assert (pod["state"], pod["kind"]) == ("failed", "pod")
    assert {c["name"]: (c["state"], c["exit_code"]) for c in pod["children"]} == {
        "good": ("succeeded", 0),
        "bad": ("failed", 42),
    }
    assert hpcsh("logs", work["id"], "-c", "good").stdout == b"from good\n"
    assert hpcsh("logs", work["id"], "bad").stdout == b"from bad\n"
    both = hpcsh("logs", work["id"], "--all-containers").stdout
    assert sorted(both.splitlines()) == [b"[bad] from bad", b"[good] from good"]


def test_run_gives_back_output_and_exit_code(hpcsh: Hpcsh) -> None:
    done = hpcsh("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert b"out\n" in done.stdout
    assert b"err\n" in done.stdout + done.stderr


def test_run_starts_every_task(hpcsh: Hpcsh) -> None:
    done = hpcsh("run", "-N", "3", "-e", "A=x y", "--", "sh", "-c", 'echo "$A on $(hostname)"')
    assert sorted(done.stdout.decode().splitlines()) == ["x y on n1", "x y on n2", "x y on n3"]


def test_run_goes_on_when_the_session_host_is_killed(
    hpcsh: Hpcsh, places: dict[str, str], tmp_path: Path
) -> None:
    script = "echo begun; while ! [ -e ~/go-on ]; do sleep 0.1; done; echo ended; exit 5"
    on_lab(places, "rm", "-f", "/home/alice/go-on")
    child = subprocess.Popen(
        [sys.executable, "-m", "hpcsh", "run", "--", "sh", "-c", script],
        env=places, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout
    assert child.stdout.readline() == b"begun\n"
    os.kill(as_json(hpcsh("host", "status", "--json"))["pid"], signal.SIGKILL)
    on_lab(places, "touch", "/home/alice/go-on")
    out, err = child.communicate(timeout=60)
    assert (out, child.returncode) == (b"ended\n", 5), err
    on_lab(places, "rm", "-f", "/home/alice/go-on")


def test_run_as_json_keeps_the_programs_output_apart(hpcsh: Hpcsh) -> None:
    done = hpcsh("run", "--json", "--", "sh", "-c", "echo words; exit 3", code=3)
    assert as_json(done)["exit_code"] == 3
    assert b"words\n" in done.stderr


def test_run_in_an_image(hpcsh: Hpcsh) -> None:
    done = hpcsh(
        "run", "-e", "A=b c", "docker://login:5000/busybox:latest", "--", "sh", "-c", "echo $A", timeout=300
    )
    assert done.stdout == b"b c\n"


def test_a_job_that_hpcsh_did_not_start(hpcsh: Hpcsh, places: dict[str, str]) -> None:
    script = 'echo "not ours"; sleep 600'
    job = on_lab(
        places, "sbatch", "--parsable", "-J", "foreign", "--wrap", script, "-D", "/home/alice"
    ).strip()
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            rows = {w["native_id"]: w for w in as_json(hpcsh("ps", "--json"))["workloads"]}
            if rows.get(job, {}).get("state") == "running":
                break
        assert rows[job]["ours"] is False
        assert as_json(hpcsh("show", "--json", job))["workload"]["name"] == "foreign"
        while not (log := hpcsh("logs", job).stdout) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert log == b"not ours\n"
        assert job not in hpcsh("clean", "--all", "--dry-run").stdout.decode()
        hpcsh("cancel", job)
        (ended,) = as_json(hpcsh("wait", "--json", job, code=None))
        assert ended["state"] == "cancelled"
    finally:
        on_lab(places, "scancel", job)


def test_dry_run_shows_what_submit_sends_and_changes_nothing(hpcsh: Hpcsh, places: dict[str, str]) -> None:
    before = on_lab(places, "sh", "-c", "ls ~/.hpcsh/jobs 2>/dev/null | sort")
    plan = as_json(hpcsh("submit", "--dry-run", "--json", "-", stdin=POD))
    assert plan["commands"][-1][0].endswith("sbatch")
    assert "from bad" not in plan["script"]
    assert on_lab(places, "sh", "-c", "ls ~/.hpcsh/jobs 2>/dev/null | sort") == before
    text = hpcsh("submit", "--dry-run", "-", stdin=POD).stdout
    assert b"sbatch" in text
    assert b"#!/bin/bash" in text


def test_jobs_do_not_inherit_the_login_environment(hpcsh: Hpcsh) -> None:
    probe = ("--", "sh", "-c", "echo ${SSH_CONNECTION:-none}")
    assert hpcsh("run", *probe).stdout == b"none\n"
    assert hpcsh("run", "--inherit-env", *probe).stdout != b"none\n"


@pytest.mark.parametrize(
    ("words", "stdin", "code", "told"),
    [
        (("submit", "-p", "no-such-partition", "-"), b"#!/bin/sh\ntrue\n", 1, b"partition"),
        (("submit", "-t", "soon", "-"), b"#!/bin/sh\ntrue\n", 2, b"time"),
        (("submit", "-J", "a\nb", "-"), b"#!/bin/sh\ntrue\n", 2, b"job-name"),
        (("submit", "--uid=0", "-"), b"#!/bin/sh\ntrue\n", 2, b"uid"),
        (("submit", "-"), b"", 2, b"empty"),
        (("submit", "-"), b"true\n", 2, b"#!"),
        (("submit", "-"), b"apiVersion: v1\nkind: Pod\nmetadata: {name: x\n", 2, b"YAML"),
        (("submit", "nope.sh"), b"", 2, b"nope.sh"),
        (("show", "nothing-like-it"), b"", 1, b"nothing-like-it"),
        (("pull", "docker://login:5000/nope:1"), b"", 1, b"nope"),
        (("pull", "docker://;rm -rf"), b"", 2, b"rm -rf"),
        (("up", "-N", "3"), b"", 3, b"pmix"),
        (("ps", "--nope"), b"", 2, b"--nope"),
        (("logs",), b"", 2, b"REF"),
        (("pull",), b"", 2, b"pull"),
        (("wait",), b"", 2, b"wait"),
        (("show", b"\xff".decode("utf-8", "surrogateescape")), b"", 2, b"utf-8"),
        (("-c", "nodes", "ps"), b"", 2, b"beside"),
        (("-f", "-"), b"\xff", 2, b"utf-8"),
        (("up", "--dry-run"), b"", 3, b"pmix"),
    ],
)  # fmt: skip
def test_bad_input_is_told_before_anything_changes(
    hpcsh: Hpcsh, places: dict[str, str], words: tuple[str, ...], stdin: bytes, code: int, told: bytes
) -> None:
    before = on_lab(places, "squeue", "-h", "-a", "-t", "all", "-o", "%i")
    done = hpcsh(*words, stdin=stdin, code=code)
    assert told.lower() in done.stderr.lower(), done.stderr
    assert b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 24
    assert set(on_lab(places, "squeue", "-h", "-a", "-t", "all", "-o", "%i").split()) <= set(before.split())


def test_the_same_in_a_script_from_everywhere(hpcsh: Hpcsh, tmp_path: Path) -> None:
    (tmp_path / "s.hpcsh").write_text("# a comment\nuse pods\nimages --json \\\n\nnodes --json\n")
    from_file = hpcsh("-f", "s.hpcsh").stdout
    from_stdin = hpcsh(stdin=(tmp_path / "s.hpcsh").read_bytes()).stdout
    from_line = hpcsh("-c", "use pods", "-c", "images --json", "-c", "nodes --json").stdout
    assert from_file == from_stdin == from_line
    assert b'"n1"' in from_line


def test_a_script_stops_where_it_fails(hpcsh: Hpcsh) -> None:
    done = hpcsh("-c", "show nothing-like-it\nnodes", code=1)
    assert b"n1" not in done.stdout


def test_the_front_end_may_live_without_a_host(hpcsh: Hpcsh, places: dict[str, str]) -> None:
    hpcsh("host", "stop")
    assert b"in this process" in hpcsh("--in-process", "status").stdout
    assert b"host process" in hpcsh("status").stdout


def test_ctrl_c_ends_what_run_started(hpcsh: Hpcsh, places: dict[str, str], tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "hpcsh", "run", "-J", "victim", "--", "sh", "-c", "echo begun; sleep 600"],
        env=places, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout
    assert child.stdout.readline() == b"begun\n"
    os.kill(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert b"cancelled" in err
    deadline = time.monotonic() + 30
    while "victim" in on_lab(places, "squeue", "-h", "-t", "PD,R,CG", "-o", "%j"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_clean_removes_ours_only_and_is_idempotent(hpcsh: Hpcsh, places: dict[str, str]) -> None:
    hpcsh("run", "--", "true")
    refused = hpcsh("clean", code=3)
    assert b"-y" in refused.stderr
    on_lab(places, "sh", "-c", "mkdir -p ~/.hpcsh/jobs/precious && echo keep > ~/.hpcsh/jobs/precious/file")
    hpcsh("clean", "--all", "-y")
    assert on_lab(places, "sh", "-c", "ls ~/.hpcsh/jobs").split() == ["precious"]
    assert b"Nothing to clean" in hpcsh("clean", "-y").stdout
    on_lab(places, "rm", "-r", "/home/alice/.hpcsh/jobs/precious")


def test_doctor_is_content_with_the_lab(hpcsh: Hpcsh) -> None:
    findings = as_json(hpcsh("doctor", "--json"))
    assert not [f for f in findings if f["severity"] == "error"]
    assert len(findings) > 5
