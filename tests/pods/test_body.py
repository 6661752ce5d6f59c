"""The script of a pod, run by bash on this machine with a stand-in for the container runtime."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcsh.pods import body, manifest
from hpcsh.pods.plan import PodPlan, plan

RUNTIME = """#!/bin/bash
# stands in for apptainer: runs the words after -- as they are
while [ "$1" != -- ]; do shift; done; shift
exec "$@"
"""


def make(text: str) -> PodPlan:
    parsed = manifest.parse(text.encode(), "pod.yaml")
    return plan(parsed, "pod.yaml", id="abcdefgh", uid="u-1", base_cpus=True, base_memory=True)


def pod(containers: str, extra: str = "", policy: str = "Never") -> PodPlan:
    return make(
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  restartPolicy: {policy}\n{extra}"
        f"  containers:\n{containers}"
    )


class Bench:
    """A directory laid out as the engine lays it out, and the script as one process."""

    def __init__(self, root: Path) -> None:
        self.root = root / 'a job\'s "dir"'
        self.root.mkdir()
        self.runtime = root / "runtime"
        self.runtime.write_text(RUNTIME)
        self.runtime.chmod(0o755)
        self.tmp = root / "tmp"
        self.tmp.mkdir()
        self.shared = root / "shared"
        self.shared.mkdir()
        self.started: list[subprocess.Popen[bytes]] = []

    def stage(self, p: PodPlan, **options: int) -> None:
        launches = {
            c.name: body.Launch((str(self.runtime), "--", *c.entry.command, *c.entry.args), c.env)
            for c in p.containers
        }
        for f in body.files(p, launches):
            path = self.root / f.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f.data)
            path.chmod(f.mode)
        (self.root / "pod.sh").write_text(body.script(p, **options))

    def start(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, "HPCSH_DIR": str(self.root), "TMPDIR": str(self.tmp), "T": str(self.shared)}
        process = subprocess.Popen(["bash", self.root / "pod.sh"], env=env, start_new_session=True)
        self.started.append(process)
        return process

    def run(self) -> int:
        return self.start().wait(60)

    def marks(self) -> list[str]:
        return [" ".join(line.split()[1:]) for line in (self.root / "marks").read_text().splitlines()]

    def log(self, name: str) -> bytes:
        return (self.root / f"{name}.out").read_bytes()

    def status(self, name: str) -> str:
        return (self.root / f"{name}.status").read_text()

    def wait_for(self, mark: str) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if (self.root / "marks").exists() and mark in self.marks():
                return
            time.sleep(0.02)
        raise AssertionError(f"no {mark!r} in {self.marks()}")

    def wait_for_file(self, name: str) -> None:
        until = time.monotonic() + 30
        while not (self.shared / name).exists():
            assert time.monotonic() < until, f"{name} never came"
            time.sleep(0.02)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def sh(name: str, script: str) -> str:
    return f"  - {{name: {name}, image: x, command: [bash, -c, {script!r}]}}\n"


def test_argv_and_environment_arrive_byte_for_byte(bench: Bench) -> None:
    words = ["it's", '"quoted"', "$HOME `id` $(id) \\", "two\nlines\n", "", "äöü ☃ 🦄", "*", "-n", " \t "]
    args = ", ".join(repr_yaml(w) for w in words)
    values = {"A": "a'b\"c`d\\e"}
    values |= {"B": "x\ny\n\n", "C": "", "D": " lead and trail ", "E": "$X $(NOPE) ${Y}", "F": "Ω=ω"}
    env = ", ".join(f"{{name: {k}, value: {repr_yaml(v)}}}" for k, v in values.items())
    code = "import os,sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])) + b'\\0--\\0'"
    code += " + b'\\0'.join(os.environb[k.encode()] for k in 'ABCDEF'))"
    command = f"[python3, -c, {repr_yaml(code)}]"
    bench.stage(pod(f"  - {{name: c, image: x, command: {command}, args: [{args}], env: [{env}]}}\n"))
    assert bench.run() == 0
    expected = [w.encode() for w in words] + [b"--"] + [v.encode() for v in values.values()]
    assert bench.log("run-c") == b"\0".join(expected)


def repr_yaml(text: str) -> str:
    import json

    return json.dumps(text)


def test_init_containers_run_in_order_and_before_the_others(bench: Bench) -> None:
    bench.stage(
        pod(
            sh("main", "cat $T/order; echo main"),
            "  initContainers:\n" + sh("one", "echo 1 >> $T/order") + sh("two", "echo 2 >> $T/order"),
        )
    )
    assert bench.run() == 0
    assert bench.log("run-main") == b"1\n2\nmain\n"
    assert bench.marks() == [
        "container-start one", "container-exit one 0", "container-start two", "container-exit two 0",
        "container-start main", "container-exit main 0",
    ]  # fmt: skip
    assert bench.status("init-one") == "0\n"
    assert bench.status("run-main") == "0\n"


def test_a_failing_init_container_stops_the_pod(bench: Bench) -> None:
    bench.stage(
        pod(
            sh("main", "echo never"),
            "  initContainers:\n" + sh("bad", "echo no >&2; exit 7") + sh("next", "echo never"),
        )
    )
    assert bench.run() == 7
    assert bench.marks() == ["container-start bad", "container-exit bad 7"]
    assert bench.log("init-bad") == b"no\n"
    assert not (bench.root / "run-main.out").exists()


def test_containers_run_side_by_side_with_their_own_exit_codes(bench: Bench) -> None:
    """Each waits for the other's file: one after the other they would never end."""
    bench.stage(
        pod(
            sh("a", "touch $T/a; until [ -e $T/b ]; do sleep .02; done; exit 3")
            + sh("b", "touch $T/b; until [ -e $T/a ]; do sleep .02; done; exit 42")
            + sh("c", "exit 0")
        )
    )
    assert bench.run() == 42
    assert [bench.status(f"run-{n}") for n in "abc"] == ["3\n", "42\n", "0\n"]


def test_a_signal_is_128_plus_its_number(bench: Bench) -> None:
    bench.stage(pod(sh("k", "kill -KILL $$$$") + sh("s", "kill -SEGV $$$$")))
    assert bench.run() == 139
    assert bench.status("run-k") == "137\n"
    assert bench.status("run-s") == "139\n"


def test_a_missing_program_is_127(bench: Bench) -> None:
    bench.stage(pod("  - {name: c, image: x, command: [/no/such/program]}\n"))
    assert bench.run() == 127
    assert b"/no/such/program" in bench.log("run-c")


def test_sigterm_is_forwarded_and_the_containers_may_tidy_up(bench: Bench) -> None:
    script = "trap 'sleep .3; echo bye; exit 9' TERM; touch $T/up; while :; do sleep .05; done"
    bench.stage(pod(sh("c", script) + sh("d", "trap 'exit 0' TERM; touch $T/d; while :; do sleep .05; done")))
    process = bench.start()
    bench.wait_for_file("up")
    bench.wait_for_file("d")
    process.terminate()
    assert process.wait(30) == 9
    assert bench.log("run-c") == b"bye\n"
    assert bench.status("run-d") == "0\n"
    assert not list(bench.tmp.iterdir())


def test_after_the_grace_period_it_is_killed(bench: Bench) -> None:
    script = "trap '' TERM; touch $T/up; while :; do sleep .05; done"
    bench.stage(pod(sh("c", script), "  terminationGracePeriodSeconds: 1\n"))
    process = bench.start()
    bench.wait_for_file("up")
    process.terminate()
    assert process.wait(30) == 137
    assert bench.status("run-c") == "137\n"


def test_sigterm_to_the_whole_group_as_slurm_sends_it(bench: Bench) -> None:
    bench.stage(pod(sh("c", "sleep 60")))
    process = bench.start()
    bench.wait_for("container-start c")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(30) == 143
    assert bench.status("run-c") == "143\n"


def test_sigterm_during_an_init_container_starts_nothing_more(bench: Bench) -> None:
    init = "  initContainers:\n" + sh("i", "trap 'exit 0' TERM; touch $T/up; while :; do sleep .05; done")
    bench.stage(pod(sh("main", "echo never"), init))
    process = bench.start()
    bench.wait_for_file("up")
    process.terminate()
    assert process.wait(30) == 143
    assert not (bench.root / "run-main.out").exists()


def test_sigterm_before_the_containers_leaves_nothing_on_the_node(bench: Bench) -> None:
    text = """
apiVersion: v1
kind: Pod
metadata: {name: p, annotations: {slurm-job.vk.io/pre-exec: "touch $T/up; while :; do sleep .05; done"}}
spec: {restartPolicy: Never, containers: [{name: c, image: x, command: [echo, never]}]}
"""
    bench.stage(make(text))
    process = bench.start()
    bench.wait_for_file("up")
    process.terminate()
    assert process.wait(30) == 143
    assert not list(bench.tmp.iterdir())
    assert not (bench.root / "run-c.out").exists()


def test_what_was_started_beside_it_dies_with_a_killed_container(bench: Bench) -> None:
    script = "trap '' TERM; (trap '' TERM; exec sleep 987654) & touch $T/up; while :; do sleep .05; done"
    bench.stage(pod(sh("c", script), "  terminationGracePeriodSeconds: 0\n"))
    process = bench.start()
    bench.wait_for_file("up")
    process.terminate()
    assert process.wait(30) == 137
    assert subprocess.run(["pgrep", "-f", "sleep 987654"], check=False).returncode == 1


def test_on_failure_is_started_again_until_it_succeeds(bench: Bench) -> None:
    script = "echo x >> $T/n; [ $(wc -l < $T/n) = 3 ]"
    bench.stage(pod(sh("c", script), policy="OnFailure"), backoff=0, backoff_limit=0)
    assert bench.run() == 0
    assert bench.marks() == [
        "container-start c", "container-exit c 1", "container-start c", "container-exit c 1",
        "container-start c", "container-exit c 0",
    ]  # fmt: skip


def test_always_goes_on_until_it_is_stopped_also_during_back_off(bench: Bench) -> None:
    bench.stage(pod(sh("c", "exit 0"), policy="Always"), backoff=600)
    process = bench.start()
    bench.wait_for("container-exit c 0")
    process.terminate()
    assert process.wait(30) == 0
    assert bench.marks().count("container-start c") == 1


def test_standard_input_is_empty_and_int_is_not_ignored(bench: Bench) -> None:
    code = "import signal as s, sys; print(repr(sys.stdin.read()), s.getsignal(s.SIGINT) is s.SIG_IGN)"
    bench.stage(pod(f"  - {{name: c, image: x, command: [python3, -c, {repr_yaml(code)}]}}\n"))
    assert bench.run() == 0
    assert bench.log("run-c") == b"'' False\n"


@pytest.mark.parametrize(
    ("kind", "ok"),
    [("Directory", True), ("File", False), ("DirectoryOrCreate", True), ("Socket", False), ('""', True)],
)
def test_host_paths_are_checked_on_the_node(bench: Bench, kind: str, ok: bool) -> None:
    volumes = f"  volumes: [{{name: h, hostPath: {{path: '{bench.tmp}', type: {kind}}}}}]\n"
    bench.stage(pod(sh("c", "echo hi"), volumes))
    assert bench.run() == (0 if ok else 1)
    assert ("pod-failed volume h" in bench.marks()) is not ok


def test_directories_files_and_modes(bench: Bench) -> None:
    text = """
apiVersion: v1
kind: ConfigMap
metadata: {name: cm}
data: {run.sh: "echo config", plain: x}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  restartPolicy: Never
  volumes:
  - {name: e, emptyDir: {}}
  - {name: m, emptyDir: {medium: Memory}}
  - {name: cfg, configMap: {name: cm, defaultMode: 0555, items: [{key: run.sh, path: bin/run.sh}]}}
  containers:
  - name: c
    image: x
    command: [bash, -c, "cd \\"$HPCSH_DIR\\"; configMaps/cfg/bin/run.sh; \
      stat -c %a configMaps/cfg/bin/run.sh; \
      ls -d emptyDirs/e/sub configMaps/cfg/bin local/memory/m; stat -f -c %T local/memory/m/"]
    volumeMounts:
    - {name: e, mountPath: /e, subPath: sub}
    - {name: m, mountPath: /m}
    - {name: cfg, mountPath: /cfg}
"""
    bench.stage(make(text))
    assert bench.run() == 0
    assert bench.log("run-c").decode().split() == [
        "config", "555", "configMaps/cfg/bin", "emptyDirs/e/sub", "local/memory/m", "tmpfs",
    ]  # fmt: skip
    assert not [p for p in Path("/dev/shm").glob("hpcsh-pod.*") if p.stat().st_uid == os.getuid()]


def test_pre_exec_is_the_users_own_shell(bench: Bench) -> None:
    text = """
apiVersion: v1
kind: Pod
metadata:
  name: p
  annotations:
    slurm-job.vk.io/pre-exec: |
      set -eu
      export FROM_PRE="it's here"
      false || true
spec:
  restartPolicy: Never
  containers:
  - {name: c, image: x, command: [bash, -c, 'echo "$FROM_PRE"; exit 3']}
"""
    bench.stage(make(text))
    assert bench.run() == 3
    assert bench.log("run-c") == b"it's here\n"


def test_the_script_holds_no_data_of_the_user() -> None:
    text = """
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {KEY: canary-secret}
---
apiVersion: v1
kind: Pod
metadata: {name: p, annotations: {slurm-job.vk.io/pre-exec: "echo canary-pre"}}
spec:
  restartPolicy: Never
  containers:
  - {name: c, image: canary-image, command: [canary-word], envFrom: [{secretRef: {name: s}}]}
"""
    p = make(text)
    assert "canary" not in body.script(p)
    staged = body.files(p, {"c": body.Launch(("r", *p.containers[0].entry.command), p.containers[0].env)})
    assert [f.path for f in staged if b"canary-secret" in f.data] == ["ct/c.env"]
    assert all(f.secret for f in staged if b"canary-secret" in f.data)
    assert all(f.mode == 0o600 for f in staged)
