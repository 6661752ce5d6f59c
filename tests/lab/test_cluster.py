"""The lab is a real cluster: what a user of one expects, on the one that all tests share."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from pathlib import Path

import lab_checks
import paramiko
import pytest
from lab_checks import on, run_lab

from hpcsh.lab import paths

pytestmark = pytest.mark.lab

HELLO = r"""
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv) {
    int rank, size, one = 1, sum;
    char host[MPI_MAX_PROCESSOR_NAME];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Get_processor_name(host, &size);
    printf("%s %d\n", host, sum);
    MPI_Finalize();
}
"""


def until(lab: str, script: str, wanted: str, seconds: float = 60) -> str:
    """Ask until the answer contains what is wanted."""
    end = time.monotonic() + seconds
    said = ""
    while wanted not in said and time.monotonic() < end:
        said = on(lab, "login", script)
        time.sleep(0.2)
    assert wanted in said
    return said


def status(lab: str) -> dict[str, object]:
    done = run_lab("status", lab, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def config_of(lab: str) -> dict[str, str]:
    """The lab's SSH configuration as paramiko reads it."""
    found = paramiko.SSHConfig.from_path(str(paths.ssh_config(lab))).lookup("login")
    return {k: v[0] if isinstance(v, list) else v for k, v in found.items()}


def test_every_node_runs_a_task(lab: str) -> None:
    nodes = [n["name"] for n in status(lab)["nodes"] if n["name"] != "login"]  # type: ignore[attr-defined]
    out = on(lab, "login", f"srun -N{len(nodes)} hostname")
    assert sorted(out.split()) == sorted(nodes)


def test_status_says_what_there_is(lab: str) -> None:
    found = status(lab)
    assert found["state"] == "up"
    assert all(n["alive"] and not n["missing"] for n in found["nodes"])  # type: ignore[attr-defined]
    assert f"Lab {lab}: up" in run_lab("status", lab).stdout


def test_up_twice_is_one_lab(lab: str) -> None:
    before = run_lab(
        "exec", "--lab", lab, "login", "--", "cat", "/proc/sys/kernel/random/boot_id", "/proc/1/stat"
    )
    done = run_lab("up", lab)
    assert "already up" in done.stdout
    after = run_lab(
        "exec", "--lab", lab, "login", "--", "cat", "/proc/sys/kernel/random/boot_id", "/proc/1/stat"
    )
    assert before.stdout.split()[:2] == after.stdout.split()[:2]
    assert before.stdout.split()[22] == after.stdout.split()[22], "the login node was started again"


def test_paramiko_reaches_it_with_the_host_key_checked(lab: str) -> None:
    where = config_of(lab)
    with paramiko.SSHClient() as client:
        client.load_host_keys(where["userknownhostsfile"])
        client.connect(
            where["hostname"], int(where["port"]), where["user"], key_filename=where["identityfile"],
            allow_agent=False, look_for_keys=False, timeout=20,
        )  # fmt: skip
        _, out, _ = client.exec_command("id -un; hostname; sinfo -h -o %P", timeout=20)
        assert out.read().decode().split() == ["alice", "login", "debug*", "high"]
        channel = client.invoke_shell()
        channel.settimeout(20)
        channel.send(b"tty; exit\n")
        said = b""
        while b"/dev/pts/" not in said:
            said += channel.recv(1000)


def test_another_host_key_is_refused(lab: str, tmp_path: Path) -> None:
    where = config_of(lab)
    other = paramiko.Ed25519Key.from_private_key_file(where["identityfile"])
    with paramiko.SSHClient() as client:
        client.get_host_keys().add(f"[{where['hostname']}]:{where['port']}", "ssh-ed25519", other)
        with pytest.raises(paramiko.BadHostKeyException):
            client.connect(
                where["hostname"], int(where["port"]), where["user"], key_filename=where["identityfile"]
            )


def test_users_reach_every_node_without_a_password(lab: str) -> None:
    for user in ("alice", "bob"):
        assert on(lab, "login", "ssh n1 ssh login id -un", user) == f"{user}\n"


def test_home_is_shared_and_private(lab: str) -> None:
    on(lab, "n1", "echo shared > ~/from-n1")
    assert on(lab, "login", "cat ~/from-n1") == "shared\n"
    assert "denied" in on(lab, "login", "cat /home/alice/from-n1 2>&1 || true", "bob")


def test_accounting_keeps_comment_and_script(lab: str) -> None:
    job = on(
        lab, "login", "sbatch --parsable -W -o /dev/null --comment=hpcsh:s:1 --wrap 'exit 3' || true"
    ).split()[0]
    until(lab, f"sacct -X -n -P -j {job} -o State,ExitCode,Account,Comment", "FAILED|3:0|science|hpcsh:s:1")
    assert "exit 3" in until(lab, f"sacct -j {job} --batch-script", "exit 3")


def test_a_job_soon_leaves_the_controller(lab: str) -> None:
    job = on(lab, "login", "sbatch --parsable -W -o /dev/null --wrap true").strip()
    until(lab, f"scontrol show job {job} 2>&1 || true", "Invalid job id")


def test_a_job_is_preempted_and_queued_again(lab: str) -> None:
    low = on(lab, "login", "sbatch --parsable -o /dev/null -w n1 --exclusive --wrap 'sleep 600'").strip()
    try:
        until(lab, f"squeue -h -j {low} -o %T", "RUNNING")
        assert on(lab, "login", "srun -p high -w n1 --exclusive hostname") == "n1\n"
        until(lab, f"scontrol show job {low}", "Restarts=1")
    finally:
        on(lab, "login", f"scancel {low}")


def test_limits_are_as_documented(lab: str) -> None:
    shown = on(lab, "login", "scontrol show config | tr -s ' '")
    for line in ("MinJobAge = 5 sec", "MaxJobCount = 50000", "MaxArraySize = 20001", "JobRequeue = 1"):
        assert line in shown


def test_memory_limits_are_enforced_or_said_not_to_be(lab: str) -> None:
    script = "srun --mem=100 python3 -c 'x = b\"a\" * 300_000_000; print(len(x))' 2>&1; echo code $?"
    out = on(lab, "login", script)
    if status(lab)["can"]["memory_limits"]:  # type: ignore[index]
        assert "Out Of Memory" in out
        assert "code 0" not in out
    else:
        assert "not enforced" in run_lab("status", lab).stdout


def test_gpus_are_handed_out(lab: str) -> None:
    out = on(lab, "login", "srun --gres=gpu:2 sh -c 'echo $SLURM_STEP_GPUS; ls /dev/nvidia0 /dev/nvidia1'")
    assert out.split() == ["0,1", "/dev/nvidia0", "/dev/nvidia1"]


@pytest.mark.mpi
def test_mpi_runs_over_three_nodes_by_every_launcher(lab: str) -> None:
    on(
        lab,
        "login",
        f"mkdir -p ~/mpi && cd ~/mpi && cat > hello.c <<'END'\n{HELLO}END\nmpicc hello.c -o hello",
    )
    wanted = sorted(["n1 6", "n2 6", "n3 6"] * 2)
    launch = "--ntasks-per-node=2 -N3"
    assert sorted(on(lab, "login", f"srun {launch} --mpi=pmix ~/mpi/hello").splitlines()) == wanted
    allocated = f"salloc -Q {launch} bash -c"
    one_shot = on(lab, "login", f"{allocated} 'prterun --map-by ppr:2:node ~/mpi/hello'")
    assert sorted(one_shot.splitlines()) == wanted
    machine = (
        "cd ~/mpi; rm -f uri; prte --daemonize --report-uri uri; until [ -s uri ]; do sleep 0.1; done; "
        "prun --dvm-uri file:uri --map-by ppr:2:node ./hello; pterm.openmpi --dvm-uri file:uri >/dev/null"
    )
    assert sorted(on(lab, "login", f"{allocated} '{machine}'").splitlines()) == wanted
    over_ssh = "printf 'n1 slots=2\\nn2 slots=2\\nn3 slots=2\\n' > ~/mpi/hosts; PRTE_MCA_plm=ssh prterun"
    out = on(lab, "login", f"{over_ssh} --hostfile ~/mpi/hosts --map-by ppr:2:node ~/mpi/hello")
    assert sorted(out.splitlines()) == wanted


def test_the_registry_has_the_images(lab: str) -> None:
    query = "import json, urllib.request as r; print(*json.load(r.urlopen('http://login:5000/v2/_catalog'))['repositories'])"
    assert on(lab, "n1", f'python3 -c "{query}"').split() == ["busybox", "entrypoint", "mpi", "python"]


def test_podman_runs_an_image_in_a_job(lab: str) -> None:
    out = on(lab, "login", "srun podman run -q --rm --network=host --cgroups=disabled login:5000/entrypoint")
    assert out == "entrypoint: echo default (GREETING=hello, in /work)\ndefault\n"


def test_apptainer_runs_images_in_a_job(lab: str) -> None:
    if not status(lab)["can"]["apptainer"]:  # type: ignore[index]
        lab_checks.require("apptainer", "the image was built without it")
    on(lab, "login", "apptainer -q pull --no-https -F python.sif docker://login:5000/python")
    assert on(lab, "login", "srun apptainer -q exec python.sif python3 -c 'print(6 * 7)'") == "42\n"
    # Pulled beforehand: pulls of one image at the same time break each other's cache in the shared home.
    on(lab, "login", "apptainer -q pull --no-https -F busybox.sif docker://login:5000/busybox")
    out = on(lab, "login", "srun -N3 apptainer -q exec busybox.sif hostname")
    assert sorted(out.split()) == ["n1", "n2", "n3"]


def test_exec_passes_on_what_it_should(lab: str) -> None:
    assert run_lab("exec", "--lab", lab, "n1", "--", "sh", "-c", "exit 7").returncode == 7
    assert run_lab("exec", "--lab", lab, "n1", "--", "sh", "-c", "kill -9 $$").returncode == 137
    assert run_lab("exec", "--lab", lab, "n1", "--", "no-such-program").returncode == 127
    assert run_lab("exec", "--lab", lab, "n1", "--", "cat", stdin="to and fro").stdout == "to and fro"
    done = run_lab("exec", "--lab", lab, "n9", "--", "true")
    assert done.returncode == 1
    assert "It has: login, n1" in done.stderr
    assert run_lab("exec", "--lab", lab, "n1").returncode == 2
    done = run_lab("exec", "--lab", lab, "--user", "nobody9", "login", "--", "true")
    assert done.returncode == 2
    assert "no user nobody9" in done.stderr
    assert "root, alice, bob" in done.stderr


def test_a_shell_has_a_terminal_of_the_node(lab: str) -> None:
    ours, theirs = pty.openpty()
    command = [*lab_checks.command("shell"), "--lab", lab, "n1"]
    shell = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=lab_checks.ROOT)
    os.write(ours, b"tty; hostname; id -un; exit 5\n")
    assert shell.wait(timeout=60) == 5
    said = os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)
    assert b"/dev/pts/" in said
    assert b"n1" in said


def test_logs_show_a_service(lab: str) -> None:
    assert "slurmctld version" in run_lab("logs", "--lab", lab, "slurmctld", "-n", "5000").stdout
    assert run_lab("logs", "--lab", lab, "slurmd").stdout.count("==>") >= 3
    assert "slurmdbd" in run_lab("logs").stdout.split()
    assert run_lab("logs", "--lab", lab, "nothing").returncode == 1
