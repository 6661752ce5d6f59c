"""Pods on a real Slurm with a real container runtime and registry."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from hpcsh.errors import HpcshError, NotFoundError, RefusedError, UsageError
from hpcsh.model import File, Kind, LogOptions, Severity, State, SubmitSpec

from .conftest import Node, child

pytestmark = pytest.mark.lab

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "pods"
BUSYBOX, PYTHON, ENTRY = (f"login:5000/{n}:latest" for n in ("busybox", "python", "entrypoint"))


def pod(*containers: dict[str, object], **spec: object) -> str:
    """A manifest as JSON, which is YAML too: nothing of it can be lost in quoting."""
    made = [{"resources": {"limits": {"cpu": 1, "memory": "200Mi"}}, **c} for c in containers]
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p"},
            "spec": {"restartPolicy": "Never", "containers": made, **spec},
        }
    )


def sh(name: str, script: str, **more: object) -> dict[str, object]:
    return {"name": name, "image": BUSYBOX, "command": ["sh", "-c", script], **more}


def example(name: str) -> str:
    return (EXAMPLES / f"{name}.yaml").read_text()


async def test_hello(node: Node) -> None:
    done = await node.run(example("hello"))
    assert (done.kind, done.state, done.exit_code, done.reason) == (Kind.POD, State.SUCCEEDED, 0, "Completed")
    assert child(done, "main").state is State.SUCCEEDED
    assert await node.log(done) == b"hello world\n"
    assert done.native_state == "COMPLETED"


async def test_the_example_with_environment_config_map_and_secret(node: Node) -> None:
    done = await node.run(example("environment"))
    assert (await node.log(done)).decode().splitlines() == [
        "hello world from environment",
        "message: hello, world!",
        "token has 16 characters",
        "mode of the token: 400",
    ]
    assert done.state is State.SUCCEEDED


async def test_the_example_with_init_containers(node: Node) -> None:
    done = await node.run(example("init"))
    assert await node.log(done) == b"right-angled: True\n"
    assert await node.log(done, "fetch") == b"fetched\n"
    assert await node.log(done, "check") == b"checked\n"
    everything = [c async for c in node.engine.logs(done.id, LogOptions(all_containers=True))]
    assert [c.source for c in everything] == ["fetch", "check", "main"]


async def test_the_example_with_a_sidecar_sharing_an_empty_dir_read_only(node: Node) -> None:
    done = await node.run(example("sidecar"))
    assert done.state is State.SUCCEEDED
    text = await node.log(done, "reader")
    assert b"line 1\nline 2\nline 3\n" in text
    assert b"read-only\n" in text
    with pytest.raises(UsageError, match="several logs"):
        await node.log(done)


async def test_the_failing_example(node: Node) -> None:
    done = await node.run(example("failing"))
    assert (done.state, done.exit_code, done.reason) == (State.FAILED, 42, "Error")
    assert (child(done, "good").state, child(done, "good").exit_code) == (State.SUCCEEDED, 0)
    bad = child(done, "bad")
    assert (bad.state, bad.exit_code, bad.reason) == (State.FAILED, 42, "Error")
    assert await node.log(done, "bad") == b"this will not end well\n"


WORDS = [
    "it's",
    '"quoted"',
    "$HOME `id` $(id) \\",
    "two\nlines\n",
    "",
    "äöü ☃ 🦄",
    "*",
    "-n",
    " \t ",
    "a=b;c&d|e>f",
    "cr\r\n\x01\x7f",
]
VALUES = {
    "SQ": "it's 'single'", "DQ": 'say "double"', "BS": "back\\slash \\n",
    "BT": "`date` $(date) ${HOME} $HOME",
    "NL": "a\nb\n\n", "EMPTY": "", "SPACES": "  lead and trail  ", "TAB": "a\tb", "UNI": "äöü ☃ 🦄 e\u0301",
    "JSON": '{"a": ["b", \'c\'], "d": "\\""}', "GLOB": "* ? [a-z] ~ !", "EQ": "a=b==c", "PCT": "%s %d 100%",
    "CR": "a\r\nb", "CTRL": "\x01\x1b[31m\x7f", "PATH": "/usr/bin:/bin:/it's/mine", "HOME": "/my \"home'",
    "LD_LIBRARY_PATH": "/my/li\\b's $HOME `id`\n\x01é", "LONG": "x" * 100_000,
    "TMPDIR": "/tmp/x y", "LC_ALL": "C", "IFS": ":",
    "BASH_ENV": "/nope", "PS1": "> ", "PREPEND_PATH": "/p", "_X": "_",
}  # fmt: skip
REPORT = """
import json, os, sys
env = {k: os.environb[k.encode()].decode("utf-8", "surrogateescape") for k in sys.argv[1].split(",")}
json.dump([sys.argv[2:], env], sys.stdout)
"""


@pytest.mark.parametrize("runtime", ["apptainer", "podman"])
async def test_words_and_variables_arrive_byte_for_byte(node: Node, runtime: str) -> None:
    node.open(images=f", runtime: {runtime}")
    done = await node.run(
        pod(
            {
                "name": "c",
                "image": PYTHON,
                "command": ["python3", "-c", REPORT],
                "args": [",".join(VALUES), *[w.replace("$", "$$") for w in WORDS]],
                "env": [{"name": k, "value": v.replace("$", "$$")} for k, v in VALUES.items()],
            }
        )
    )
    text = await node.log(done)
    assert done.state is State.SUCCEEDED, text
    words, env = json.loads(text)
    assert words == WORDS
    assert {k: v for k, v in env.items() if v != VALUES[k]} == {}


async def test_secrets_stand_in_no_script_argv_or_submit_line(node: Node) -> None:
    canary = "canary-5f1d2c"
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s"},
        "stringData": {"KEY": canary, "HOME": f"/{canary}"},
    }
    look = 'sleep 3; [ -n "$KEY" ] && cat /s/KEY | wc -c; echo "$HOME" | wc -c'
    container = sh(
        "c", look, envFrom=[{"secretRef": {"name": "s"}}], volumeMounts=[{"name": "s", "mountPath": "/s"}]
    )
    manifest = (
        json.dumps(secret)
        + "\n---\n"
        + pod(container, volumes=[{"name": "s", "secret": {"secretName": "s"}}])
    )
    spec = SubmitSpec(file=File("p.yaml", manifest.encode()))
    plan = await node.engine.plan(spec)
    assert canary not in repr(plan)
    workload = await node.engine.submit(spec)
    while not (now := (await node.engine.show(workload.id)).workload).started:
        await asyncio.sleep(0.2)
    await asyncio.sleep(1)
    seen = await node.shell(
        f"ssh -o StrictHostKeyChecking=no {now.nodes} 'cat /proc/[0-9]*/cmdline' | tr '\\0' ' '; "
        f"scontrol show job {now.native_id}; sacct -j {now.native_id} -P -o ALL 2>/dev/null; "
        f"cat {now.directory}/job.slurm {now.directory}/marks; ls -lR {now.directory}"
    )
    done = await node.ended(workload)
    assert canary not in seen
    assert canary not in repr(await node.engine.show(workload.id))
    assert await node.log(done) == b"13\n15\n"
    modes = await node.shell(f"cd {done.directory}; grep -rl {canary} . | xargs stat -c %a")
    assert set(modes.split()) == {"600"}


async def test_volumes_of_every_kind_in_any_order(node: Node) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "cm"},
        "data": {"a.txt": "it's a\n", "b.sh": "#!/bin/sh\necho script"},
        "binaryData": {"raw": "AP8BAgo="},
    }
    script = """
        cat /cfg/a.txt /one/renamed; /cfg/bin/b.sh; od -An -tx1 /cfg/raw | tr -d ' \\n'; echo
        cat /cfg/inner/file; df /dev/shm | grep -c tmpfs; touch /dev/shm/x && echo shm
        for d in /cfg /one/renamed /ro; do touch $d/x 2>/dev/null || echo no; done
        cat "/host/with, comma and \\"quote\\"/f"; pwd; touch /x /tmp/y && echo root is writable; umask
    """
    container = sh(
        "c",
        script,
        workingDir="/cfg/inner",
        volumeMounts=[
            {"name": "scratch", "mountPath": "/cfg/inner", "subPath": "deep/er"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "cfg", "mountPath": "/cfg"},
            {"name": "one", "mountPath": "/one/renamed", "subPath": "x/renamed"},
            {"name": "scratch", "mountPath": "/ro", "readOnly": True},
            {"name": "host", "mountPath": '/host/with, comma and "quote"'},
        ],
    )
    first = sh(
        "first", "echo from init > /w/deep/er/file", volumeMounts=[{"name": "scratch", "mountPath": "/w"}]
    )
    first["command"] = ["sh", "-c", "mkdir -p /w/deep/er; echo from init > /w/deep/er/file"]
    volumes = [
        {"name": "scratch", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {
            "name": "cfg",
            "configMap": {
                "name": "cm",
                "items": [
                    {"key": "a.txt", "path": "a.txt"},
                    {"key": "raw", "path": "raw"},
                    {"key": "b.sh", "path": "bin/b.sh", "mode": 0o755},
                ],
            },
        },
        {"name": "one", "configMap": {"name": "cm", "items": [{"key": "a.txt", "path": "x/renamed"}]}},
        {"name": "host", "hostPath": {"path": f'{node.workdir}/host, "dir"', "type": "Directory"}},
    ]
    await node.boundary.mkdir(f'{node.workdir}/host, "dir"')
    await node.boundary.write(f'{node.workdir}/host, "dir"/f', b"from the host\n")
    done = await node.run(
        json.dumps(config) + "\n---\n" + pod(container, initContainers=[first], volumes=volumes)
    )
    assert (await node.log(done)).decode().splitlines() == [
        "it's a", "it's a", "script", "00ff01020a", "from init", "1", "shm", "no", "no", "no",
        "from the host",
        "/cfg/inner", "root is writable", "0022",
    ]  # fmt: skip
    assert done.state is State.SUCCEEDED


async def test_a_host_path_that_is_not_there(node: Node) -> None:
    volumes = [{"name": "h", "hostPath": {"path": "/no/such/place", "type": "Directory"}}]
    done = await node.run(pod(sh("c", "echo never"), volumes=volumes))
    assert (done.state, done.reason) == (State.FAILED, "CreateContainerConfigError")
    assert "volume h" in done.message
    assert child(done, "c").reason == "NotStarted"


async def test_a_failing_init_container_stops_the_pod(node: Node) -> None:
    done = await node.run(pod(sh("main", "echo never"), initContainers=[sh("i", "echo sorry; exit 7")]))
    assert (done.state, done.exit_code) == (State.FAILED, 7)
    assert (child(done, "i").exit_code, child(done, "main").reason) == (7, "NotStarted")
    assert await node.log(done, "i") == b"sorry\n"
    with pytest.raises(NotFoundError):
        await node.log(done, "main")


async def test_more_memory_than_the_limit_is_oom_killed(node: Node) -> None:
    hungry = {
        "name": "c",
        "image": PYTHON,
        "command": [
            "python3",
            "-c",
            "x = bytearray(250 << 20); x[::4096] = b'1' * len(x[::4096]); print('survived')",
        ],
        "resources": {"limits": {"cpu": 1, "memory": "100Mi"}},
    }
    done = await node.run(pod(hungry))
    assert (done.state, done.reason) == (State.FAILED, "OOMKilled")
    assert (child(done, "c").reason, child(done, "c").exit_code) == ("OOMKilled", 137)
    assert b"survived" not in await node.log(done)
    assert done.exit_code == 137


async def test_logs_are_followed_while_it_runs_and_there_afterwards(node: Node) -> None:
    gate = f"{node.workdir}/gate"
    await node.boundary.mkdir(gate)
    script = "echo first; until [ -e /gate/open ]; do sleep 0.1; done; echo second"
    container = sh("c", script, volumeMounts=[{"name": "g", "mountPath": "/gate"}])
    workload = await node.submit(pod(container, volumes=[{"name": "g", "hostPath": {"path": gate}}]))
    got = b""
    async for chunk in node.engine.logs(workload.id, LogOptions(follow=True)):
        got += chunk.data
        if got == b"first\n":
            shown = (await node.engine.show(workload.id)).workload
            assert (shown.state, child(shown, "c").state) == (State.RUNNING, State.RUNNING)
            await node.boundary.write(f"{gate}/open", b"")
    assert got == b"first\nsecond\n"
    assert await node.log(workload, "c", tail=1) == b"second\n"


async def test_the_images_entrypoint_stays_when_only_args_are_given(node: Node) -> None:
    args = await node.run(pod({"name": "c", "image": ENTRY, "args": ["echo", "it's $HOME", "a  b"]}))
    assert (
        await node.log(args)
        == b"entrypoint: echo it's $HOME a  b (GREETING=hello, in /work)\nit's $HOME a  b\n"
    )
    plain = await node.run(pod({"name": "c", "image": ENTRY, "env": [{"name": "GREETING", "value": "hi"}]}))
    assert await node.log(plain) == b"entrypoint: echo default (GREETING=hi, in /work)\ndefault\n"
    own = await node.run(pod({"name": "c", "image": ENTRY, "command": ["echo"], "args": ["bare"]}))
    assert await node.log(own) == b"bare\n"


async def test_podman_runs_entrypoints_and_volumes_too(node: Node) -> None:
    node.open(images=", runtime: podman")
    done = await node.run(pod({"name": "c", "image": ENTRY, "args": ["echo", "x"]}))
    assert await node.log(done) == b"entrypoint: echo x (GREETING=hello, in /work)\nx\n"
    done = await node.run(example("sidecar"))
    assert done.state is State.SUCCEEDED
    assert b"read-only\n" in await node.log(done, "reader")


async def test_cancel_stops_the_containers_and_nothing_is_left_on_the_node(node: Node) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    workload = await node.submit(pod(sh("c", script), sh("d", "sleep 1000")))
    async for chunk in node.engine.logs(workload.id, LogOptions(container="c", follow=True)):
        if chunk.data.startswith(b"up"):
            report = await node.engine.cancel([workload.id])
            assert report.done == (workload.id,)
    done = await node.ended(workload)
    assert (done.state, done.reason) == (State.CANCELLED, "Cancelled")
    assert done.exit_code
    assert (await node.engine.cancel([workload.id])).message == f"ended already: {workload.id}"
    look = f"ssh -o StrictHostKeyChecking=no {done.nodes} 'ls -d /tmp/hpcsh-pod.* /dev/shm/hpcsh-pod.*; true'"
    for _ in range(100):  # Slurm says CANCELLED while the containers still have their grace period
        left = (await node.shell(look)).strip()
        if not left:
            break
        await asyncio.sleep(0.2)
    assert left == ""
    assert await node.log(done, "c") == b"up\nbye\n"


async def test_cancel_before_it_starts(node: Node) -> None:
    held = await node.submit(example("hello"), resources=_flags("--hold"))
    assert (await node.engine.show("hello")).workload.children[0].state is State.PENDING
    await node.engine.cancel([held.id])
    done = await node.ended(held)
    assert (done.state, child(done, "main").reason) == (State.CANCELLED, "NotStarted")


async def test_restart_on_failure_until_it_succeeds(node: Node) -> None:
    script = "echo try >> /w/n; [ $(wc -l < /w/n) -ge 2 ]"
    container = sh("c", script, volumeMounts=[{"name": "w", "mountPath": "/w"}])
    done = await node.run(pod(container, restartPolicy="OnFailure", volumes=[{"name": "w", "emptyDir": {}}]))
    assert done.state is State.SUCCEEDED
    assert "restarted 1 times" in child(done, "c").message


async def test_requests_reach_slurm_summed(node: Node) -> None:
    limits = {"resources": {"limits": {"cpu": "1500m", "memory": "60Mi"}}}
    both = pod(sh("a", "nproc", **limits), sh("b", "true", **limits))
    plan = await node.engine.plan(SubmitSpec(file=File("p.yaml", both.encode())))
    assert {"--cpus-per-task=3", "--mem=120M"} <= set(plan.commands[-1])
    gpu = pod(sh("a", "true", resources={"limits": {"cpu": 1, "memory": "60Mi", "nvidia.com/gpu": 1}}))
    plan = await node.engine.plan(SubmitSpec(file=File("p.yaml", gpu.encode())))
    assert "--gres=gpu:1" in plan.commands[-1]


def _flags(*flags: str) -> object:
    from hpcsh.model import Resources

    return Resources(flags=flags)


async def test_the_plan_is_what_submit_does(node: Node) -> None:
    spec = SubmitSpec(file=File("environment.yaml", example("environment").encode()))
    node.context.new_id = lambda: "planned2"
    plan = await node.engine.plan(spec)
    assert not await node.boundary.stat(f"{node.workdir}/jobs/planned2")
    workload = await node.engine.submit(spec)
    detail = await node.engine.show(workload.id)
    assert detail.script == plan.script
    for planned in plan.files:
        there = await node.boundary.stat(planned.path)
        assert there is not None
        assert (there.size, there.mode & 0o777) == (planned.size, planned.mode)
        if planned.data is not None:
            assert await node.boundary.read(planned.path) == planned.data
    await node.ended(workload)


async def test_bad_manifests_change_nothing(node: Node) -> None:
    bad = {
        "nfs": pod(sh("c", "x"), volumes=[{"name": "v", "nfs": {"server": "x", "path": "/"}}]),
        "no ConfigMap": pod(sh("c", "x", envFrom=[{"configMapRef": {"name": "gone"}}])),
        "unknown field": pod(sh("c", "x", comand=["x"])),
        "--output": json.dumps({
            **json.loads(pod(sh("c", "x"))),
            "metadata": {"name": "p", "annotations": {"slurm-job.vk.io/flags": "--output=/tmp/x"}},
        }),
        "newline": json.dumps({
            **json.loads(pod(sh("c", "x"))),
            "metadata": {"name": "p", "annotations": {"slurm-job.vk.io/flags": "-t 10\n#SBATCH --uid=0"}},
        }),
    }  # fmt: skip
    for word, text in bad.items():
        with pytest.raises(UsageError, match=word):
            await node.submit(text)
    with pytest.raises(HpcshError, match="no image"):
        await node.submit(pod({"name": "c", "image": "login:5000/no/such:image", "command": ["x"]}))
    with pytest.raises(RefusedError):
        await node.submit(
            pod({"name": "c", "image": "login:5000/mpi:latest", "command": ["x"], "imagePullPolicy": "Never"})
        )
    assert not (await node.engine.workloads(mine_only=True)).workloads
    assert await node.boundary.stat(node.workdir) is None


async def test_run_a_program_with_and_without_an_image(node: Node) -> None:
    words = ("printf", "%s|", "it's", "$HOME", "two\nlines", "")
    inside = await node.engine.submit(SubmitSpec(image=BUSYBOX, command=words, env={"A": "b"}))
    done = await node.ended(inside)
    assert (done.name, done.kind) == ("busybox", Kind.POD)
    assert await node.log(done) == b"it's|$HOME|two\nlines||"
    plain = await node.engine.submit(SubmitSpec(command=words))
    done = await node.ended(plain)
    assert (done.name, done.kind, done.state) == ("printf", Kind.JOB, State.SUCCEEDED)
    assert await node.log(done) == b"it's|$HOME|two\nlines||"
    failing = await node.engine.submit(
        SubmitSpec(command=("sh", "-c", 'echo "$V" >&2; exit 5'), env={"V": "it's"}, name="named")
    )
    done = await node.ended(failing)
    assert (done.name, done.exit_code, await node.log(done)) == ("named", 5, b"it's\n")


async def test_run_in_an_image_sees_the_directory_it_was_asked_to(node: Node) -> None:
    await node.boundary.mkdir(node.workdir)
    await node.boundary.write(f"{node.workdir}/input", b"data\n")
    spec = SubmitSpec(image=BUSYBOX, command=("sh", "-c", "cat input; echo out > output"), cwd=node.workdir)
    done = await node.ended(await node.engine.submit(spec))
    assert await node.log(done) == b"data\n"
    assert await node.boundary.read(f"{node.workdir}/output") == b"out\n"


async def test_a_batch_script_is_a_job(node: Node) -> None:
    script = '#!/bin/bash\n#SBATCH --job-name=mine -o out-%j.txt\necho "$SLURM_JOB_NAME $1"\n'
    await node.boundary.mkdir(node.workdir)
    done = await node.run(script, args=("an arg",), cwd=node.workdir)
    assert (done.kind, done.name, done.state) == (Kind.JOB, "mine", State.SUCCEEDED)
    assert await node.log(done) == b"mine an arg\n"


async def test_doctor_finds_the_lab_well_and_names_what_is_wrong(node: Node) -> None:
    findings = await node.engine.doctor()
    assert [f for f in findings if f.severity is Severity.ERROR] == []
    ids = {f.id for f in findings}
    assert {"slurm.version", "slurm.controller", "profile.resources", "workdir", "python", "containers",
            "containers.userns", "images.pool"} <= ids  # fmt: skip
    node.open("resources: {partition: nowhere}\nsetup: 'false'\n")
    bad = {f.id: f for f in await node.engine.doctor() if f.severity is Severity.ERROR}
    assert set(bad) == {"profile.resources", "profile.setup", "profile.setup.jobs"}
    assert "nowhere" in bad["profile.resources"].what or "partition" in bad["profile.resources"].what
    assert "false" in bad["profile.setup"].what


async def test_verbs_of_other_engines_are_refused_by_name(node: Node) -> None:
    from hpcsh.model import LaunchSpec, UpSpec

    for call in (
        lambda: node.engine.up(UpSpec()),
        lambda: node.engine.down("x"),
        lambda: node.engine.launch(LaunchSpec(tool="prun", program=("x",))),
    ):
        with pytest.raises(RefusedError, match=r"up|down|prun") as caught:
            call()
        assert "pmix" in str(caught.value)
    with pytest.raises(RefusedError, match="up"):
        await node.engine.plan_up(UpSpec())
