"""The job script is run here by bash itself, with the variables that Slurm would set."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hpcsh.engines.jobs.preparing import batch_spec
from hpcsh.engines.jobs.types import Mark, parse_marks, present_run
from hpcsh.errors import UsageError
from hpcsh.model import Resources
from hpcsh.slurm.script import (
    GUARD_EXIT,
    expand_output,
    first_host,
    output_pattern,
    render,
    user_script_body,
)

NASTY_DIR = "we ird'\"$(touch x)`id` dir"


class Job:
    """A workload's directory, and runs of its script."""

    def __init__(
        self,
        tmp_path: Path,
        body: str,
        *,
        script: bytes = b"",
        args: tuple[str, ...] = (),
        setup: str = "",
        unset: bool = False,
    ) -> None:
        self.directory = tmp_path / NASTY_DIR / "w1"
        (self.directory / "run").mkdir(parents=True)
        text = render(
            workload_id="w1", directory=str(self.directory), body=body, setup=bool(setup), unset_export=unset
        )
        (self.directory / "job.slurm").write_text(text)
        if script:
            spec = batch_spec(script, args, "s", Resources(), workload_id="w1", cwd=None, inherit_env=False)
            for staged in spec.files:
                (self.directory / staged.path).write_bytes(staged.data)
        if setup:
            (self.directory / "setup.sh").write_text(setup)

    def start(self, *args: str, job: str = "7", **env: str) -> "subprocess.Popen[bytes]":
        given = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": job, **env}
        return subprocess.Popen(
            ["bash", str(self.directory / "job.slurm"), *args],
            env=given, cwd=self.directory.parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *args: str, job: str = "7", **env: str) -> "subprocess.CompletedProcess[bytes]":
        process = self.start(*args, job=job, **env)
        out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def marks(self) -> list[Mark]:
        path = self.directory / "marks"
        return parse_marks(path.read_bytes()) if path.exists() else []

    def wait_for(self, what: str) -> None:
        for _ in range(500):
            if any(m.what == what for m in self.marks()):
                return
            time.sleep(0.02)
        raise AssertionError(f"no mark {what}")


def test_marks_and_exit_code(tmp_path: Path) -> None:
    job = Job(tmp_path, "hpcsh_mark container-start c\nhpcsh_mark container-exit c 3\nexit 3\n")
    assert job.run().returncode == 3
    marks = [(m.what, m.who, m.value) for m in job.marks()]
    assert marks[1:] == [("container-start", "c", ""), ("container-exit", "c", "3"), ("end", "", "3")]
    assert marks[0][:2] == ("start", "7")
    assert not (tmp_path / NASTY_DIR / "x").exists()


def test_a_second_job_of_the_same_id_does_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path, "echo ran >> ran\n")
    assert job.run(job="7").returncode == 0
    second = job.run(job="8")
    assert second.returncode == GUARD_EXIT
    assert b"has been run by job 7; job 8 ends" in second.stderr
    again = job.run(job="7")
    assert again.returncode == GUARD_EXIT
    assert (tmp_path / NASTY_DIR / "ran").read_text() == "ran\n"
    assert [m.what for m in job.marks()] == ["start", "end"]


def test_of_many_jobs_at_once_one_runs(tmp_path: Path) -> None:
    job = Job(tmp_path, "echo $SLURM_JOB_ID >> ran\n")
    runs = [job.start(job=str(n)) for n in range(1, 21)]
    codes = [r.wait(timeout=60) for r in runs]
    for r in runs:
        r.communicate()
    assert sorted(codes) == [0] + [GUARD_EXIT] * 19
    (ran,) = (tmp_path / NASTY_DIR / "ran").read_text().split()
    assert codes[int(ran) - 1] == 0


def test_a_requeued_job_runs_again_and_another_one_does_not(tmp_path: Path) -> None:
    job = Job(tmp_path, "echo ran >> ran\n")
    job.run(job="7")
    assert job.run(job="7", SLURM_RESTART_COUNT="1").returncode == 0
    assert job.run(job="9", SLURM_RESTART_COUNT="1").returncode == GUARD_EXIT
    assert (tmp_path / NASTY_DIR / "ran").read_text() == "ran\nran\n"
    assert [m.what for m in present_run(job.marks())] == ["start", "restart", "end"]


def test_tasks_of_one_array_all_run(tmp_path: Path) -> None:
    job = Job(tmp_path, "echo $SLURM_ARRAY_TASK_ID >> ran\n")
    for task in ("0", "1"):
        run = job.run(job=f"3{task}", SLURM_ARRAY_JOB_ID="30", SLURM_ARRAY_TASK_ID=task)
        assert run.returncode == 0
    assert (tmp_path / NASTY_DIR / "ran").read_text() == "0\n1\n"
    assert not (job.directory / "marks").exists()
    assert (job.directory / "marks.1").exists()


def test_a_withdrawn_or_removed_workload_does_not_run(tmp_path: Path) -> None:
    job = Job(tmp_path, "echo ran >> ran\n")
    (job.directory / "run" / "w1").write_text("withdrawn\n")
    assert job.run().returncode == GUARD_EXIT
    script = tmp_path / "job.slurm"
    shutil.copy(job.directory / "job.slurm", script)
    shutil.rmtree(job.directory)
    late = subprocess.run(["bash", str(script)], capture_output=True, check=False, cwd=tmp_path, timeout=30)
    assert late.returncode == GUARD_EXIT
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_marked_and_the_end_too(tmp_path: Path, number: signal.Signals) -> None:
    job = Job(tmp_path, "for i in {1..600}; do sleep 0.1; done\n")
    process = job.start()
    job.wait_for("start")
    time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert [(m.what, m.value) for m in job.marks()][1:] == [
        ("signal", number.name.removeprefix("SIG")),
        ("end", str(128 + number)),
    ]


def test_setup_and_export(tmp_path: Path) -> None:
    job = Job(
        tmp_path, 'echo "$FROM_SETUP/${SLURM_EXPORT_ENV-unset}"\n', setup="FROM_SETUP='a b'", unset=True
    )
    assert job.run(SLURM_EXPORT_ENV="NONE").stdout == b"a b/unset\n"
    plain = Job(tmp_path / "2", 'echo "${SLURM_EXPORT_ENV-unset}"\n')
    assert plain.run(SLURM_EXPORT_ENV="NONE").stdout == b"NONE\n"


@pytest.mark.parametrize(
    ("script", "out"),
    [
        (b'#!/bin/sh\necho "$1|$2|$0"\nexit 5\n', b"a b||"),
        (b'#! /bin/bash -e \necho "$-" | grep -q e && echo "$1|$2|"\nexit 5', b"a b||"),
        (b"#!/usr/bin/env python3\nimport sys\nprint('|'.join(sys.argv[1:]) + '|')\nsys.exit(5)\n", b"a b||"),
        (b"#!\t/bin/sh\t-u\t\nprintf '%s|' \"$@\"\nexit 5\n", b"a b||"),
    ],
)
def test_a_users_script_runs_by_its_own_interpreter(tmp_path: Path, script: bytes, out: bytes) -> None:
    run = Job(tmp_path, user_script_body(), script=script, args=("a b", "")).run()
    assert run.returncode == 5
    assert run.stdout.startswith(out)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_arguments_keep_every_byte(tmp_path: Path, locale: str) -> None:
    every = bytes(range(1, 256)).decode("utf-8", "surrogateescape")
    args = ("", "two\nlines\n", "ünï→😀", "$(id) `id` \\ '\"", " -n ", "", "")
    args += ("half \udcc3", "\udce2\udc82", every, "")
    script = b"#!/usr/bin/env python3\nimport os, sys\n"
    script += b"for a in sys.argv[1:]: os.write(1, os.fsencode(a) + b'\\0')\n"
    job = Job(tmp_path, user_script_body(), script=script, args=args, setup="set -eu")
    run = job.run(LC_ALL=locale)
    assert run.stdout.split(b"\0")[:-1] == [os.fsencode(a) for a in args], run.stderr
    (job.directory / "script.argv").unlink()
    (job.directory / "run" / "w1").unlink()
    assert job.run().returncode == 126  # never without its arguments


def test_arguments_stand_in_their_file_alone(tmp_path: Path) -> None:
    spec = batch_spec(
        b"#!/bin/sh\n", ["canary-1", ""], "s", Resources(), workload_id="w1", cwd=None, inherit_env=False
    )
    assert [(f.path, f.mode) for f in spec.files] == [("slurm_script", 0o700), ("script.argv", 0o600)]
    assert spec.files[1].data == b"canary-1\0\0"
    assert "canary-1" not in repr(replace(spec, files=()))


def test_a_users_script_gets_signals_once_and_keeps_its_code(tmp_path: Path) -> None:
    script = b"""#!/usr/bin/env python3
import os, signal, sys, time
def usr(n, f): os.write(1, b"got %d\\n" % n)
signal.signal(signal.SIGUSR1, usr)
signal.signal(signal.SIGTERM, lambda n, f: sys.exit(9))
print("ready", flush=True)
for _ in range(600): time.sleep(0.1)
"""
    process = Job(tmp_path, user_script_body(), script=script).start()
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == b"got 10\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert out == b""
    assert process.returncode == 9


def test_an_interrupt_reaches_a_users_script(tmp_path: Path) -> None:
    script = b"#!/bin/bash\ntrap 'echo caught; exit 4' INT\necho ready\nwhile :; do sleep 0.1; done\n"
    process = Job(tmp_path, user_script_body(), script=script).start()
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == (b"caught\n", 4)


def test_a_script_whose_interpreter_is_missing(tmp_path: Path) -> None:
    assert Job(tmp_path, user_script_body(), script=b"#!/no/such\n").run().returncode == 127


@pytest.mark.parametrize("directory", ["relative", "/a\nb", "", "~/x"])
def test_unusable_directories(directory: str) -> None:
    with pytest.raises(UsageError):
        render(workload_id="w1", directory=directory, body="")


@pytest.mark.parametrize("bad", ["", "../x", "a b", "x" * 65, "-x", "a\n"])
def test_unusable_ids(bad: str) -> None:
    with pytest.raises(UsageError):
        render(workload_id=bad, directory="/d", body="")


def test_only_sbatch_lines_get_into_the_header() -> None:
    with pytest.raises(UsageError):
        render(workload_id="w1", directory="/d", body="", header=("rm -rf x",))
    text = render(workload_id="w1", directory="/d", body="", header=("#SBATCH -N1", "#SBATCH {{x}}"))
    assert text.splitlines()[:3] == ["#!/bin/bash", "#SBATCH -N1", "#SBATCH {{x}}"]


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("slurm-%j.out", "/w/slurm-14.out"),
        ("/abs/%x-%A_%a.%b", "/abs/na me-12_4.4"),
        ("%5j-%3a", "/w/00014-004"),
        ("%N-%n-%t-%u-%%-%q", "/w/n01-0-0-al-%-%q"),
        ("a\\%j", "/w/a%j"),
    ],
)
def test_output_patterns(pattern: str, path: str) -> None:
    found = expand_output(
        pattern, job="12_4", raw="14", name="na me", user="al", nodes="n[01-03],m1", directory="/w"
    )
    assert found == path


def test_host_lists() -> None:
    assert [first_host(n) for n in ("n1", "n[1-3]", "n[01,07]x,b", "a,b", "")] == [
        "n1",
        "n1",
        "n01x",
        "a",
        "",
    ]


def test_our_own_output_is_taken_literally() -> None:
    path = "/home/50%j/x"
    escaped = output_pattern(path)
    assert expand_output(escaped, job="1", raw="1", name="", user="", nodes="", directory="/") == path
    with pytest.raises(UsageError):
        output_pattern("/a\\b")


def test_marks_leave_out_what_is_none() -> None:
    data = b"1.5 start 7 /a b\nrubbish\n2 end\n\xff\n3 end 0\n4 end 1"
    assert parse_marks(data) == [Mark(1.5, "start", "7", "/a b"), Mark(2.0, "end"), Mark(3.0, "end", "", "0")]
