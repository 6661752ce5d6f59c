"""Jobs on real Slurm."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from hpcsh.engines.jobs import Mark
from hpcsh.errors import CommandError, NotFoundError, TimedOutError, UsageError
from hpcsh.model import LogOptions, Resources, State, Workload
from hpcsh.store import Record

pytestmark = pytest.mark.lab


async def test_a_users_script_end_to_end(site: Any) -> None:
    script = """#!/bin/bash
#SBATCH --job-name=hello --time=5
#SBATCH -n2
echo "one $1 $SLURM_NTASKS $PWD"
srun -n2 -l hostname | sort
echo last line without end | tr -d '\\n'
exit 7
"""
    workload = await site.batch(script, "a b")
    assert (workload.state, workload.name) == (State.PENDING, "hello")
    log = await site.log(workload.id, follow=True)
    assert log.startswith(f"one a b 2 {site.workdir}\n0: ".encode())
    assert log.endswith(b"last line without end")
    (done,) = await site.jobs.wait([workload.id])
    assert (done.state, done.exit_code, done.time_limit, done.user) == (State.FAILED, 7, 300.0, "alice")
    assert await site.boundary.read(f"{site.workdir}/slurm-{done.native_id}.out") == log
    assert await site.accounted(workload.id) == [[done.native_id, "FAILED"]]
    assert site.cluster.calls["sbatch"] == 1
    assert site.cluster.calls["sacct"] == 0
    detail = await site.jobs.show("hello")
    assert dict(detail.facts)["JobName"] == "hello"
    assert "#SBATCH --job-name=hello --time=5\n#SBATCH -n2\n" in detail.script


async def test_scripts_in_other_languages(site: Any) -> None:
    workload = await site.batch(
        "#!/usr/bin/env python3\nimport sys\nprint(sys.argv[1:])\nsys.exit(3)\n", "x y"
    )
    (done,) = await site.jobs.wait([workload.id])
    assert (done.exit_code, await site.log(workload.id)) == (3, b"['x y']\n")


async def test_arguments_stand_in_no_record_of_slurms(site: Any) -> None:
    args = ("canary-7f3a", "", "two\nlines", "ünï→")
    script = (
        "#!/usr/bin/env python3\nimport sys, time\nprint(ascii(sys.argv[1:]), flush=True)\ntime.sleep(3)\n"
    )
    spec = await site.jobs.batch_script(
        script.encode(), args, "job.py", Resources(), cwd=site.workdir, inherit_env=False
    )
    plan = await site.jobs.plan(spec)
    planned = next(f for f in plan.files if f.path.endswith("/script.argv"))
    assert (planned.mode, planned.data) == (0o600, "\0".join(args).encode() + b"\0")
    workload = await site.jobs.submit(spec)
    told = [await site.shell(f"scontrol -d show job {workload.native_id}")]
    assert await site.boundary.read(f"{workload.directory}/script.argv") == planned.data
    assert (await site.boundary.stat(f"{workload.directory}/script.argv")).mode & 0o777 == 0o600
    await site.jobs.wait([workload.id])
    assert await site.log(workload.id) == f"{list(args)!a}\n".encode()
    told.append(await site.shell(f"sacct -n -P -j {workload.native_id} -o SubmitLine,Comment,JobName"))
    told.append((await site.boundary.read(f"{workload.directory}/job.slurm")).decode())
    assert all(workload.id in text for text in told)
    assert not any("canary-7f3a" in text for text in (*told, str(plan.commands)))


async def test_the_environment_of_the_login_is_not_inherited_unless_asked(site: Any) -> None:
    site.boundary.env["SECRET_OF_LOGIN"] = "s3cret"
    site.setup = "export FROM_SETUP=yes"
    site.again()
    script = """#!/bin/bash
echo "${SECRET_OF_LOGIN-none} $FROM_SETUP"
srun -n1 bash -c 'echo task $FROM_SETUP'
"""
    plain = await site.batch(script)
    asked = await site.batch(script, inherit_env=True)
    said = await site.batch(script, flags=("--export=SECRET_OF_LOGIN",))
    await site.jobs.wait([plain.id, asked.id, said.id])
    assert await site.log(plain.id) == b"none yes\ntask yes\n"
    assert await site.log(asked.id) == b"s3cret yes\ntask yes\n"
    assert (await site.log(said.id)).startswith(b"s3cret yes\n")


async def test_a_hostile_environment_changes_nothing(site: Any) -> None:
    site.boundary.env.update({
        "SQUEUE_FORMAT": "%i", "SQUEUE_FORMAT2": "JobID", "SQUEUE_STATES": "PD", "SQUEUE_USERS": "root",
        "SQUEUE_PARTITION": "high", "SLURM_TIME_FORMAT": "relative", "SACCT_FORMAT": "JobID",
        "SBATCH_HOLD": "1",
        "SBATCH_PARTITION": "nowhere", "SBATCH_ACCOUNT": "nobody", "SBATCH_OUTPUT": "/nowhere/x",
        "SBATCH_TIMELIMIT": "x",
        "SLURM_JOB_ID": "1", "SLURM_JOBID": "1", "SLURM_NNODES": "9", "SLURM_RESTART_COUNT": "3",
        "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "5", "SINFO_FORMAT": "%n",
        "SCANCEL_STATE": "PENDING",
    })  # fmt: skip
    workload = await site.batch("#!/bin/bash\necho $SLURM_NNODES\n")
    (done,) = await site.jobs.wait([workload.id])
    assert (done.state, done.partition) == (State.SUCCEEDED, "debug")
    assert await site.log(workload.id) == b"1\n"
    assert len(await site.cluster.nodes()) == 3


def refine(record: Record, workload: Workload, marks: Sequence[Mark]) -> Workload:
    return msgspec.structs.replace(workload, image=",".join(f"{m.what} {m.who} {m.value}" for m in marks))


async def test_marks_of_a_body_reach_the_engine(site: Any) -> None:
    jobs = site.again(refine)
    spec = site.spec("hpcsh_mark container-start a\necho out\nhpcsh_mark container-exit a 0\n")
    workload = await jobs.submit(spec)
    (done,) = await jobs.wait([workload.id])
    assert done.state is State.SUCCEEDED
    start = f"start {done.native_id} {site.workdir}/jobs/{done.id}/job.out"
    assert done.image == f"{start},container-start a ,container-exit a 0,end  0"
    assert await site.log(done.id) == b"out\n"
    assert done.started is not None
    assert done.ended is not None


async def test_every_byte_of_a_log_once(site: Any) -> None:
    body = "for i in 1 2 3 4 5; do head -c 1000003 /dev/urandom; sleep 0.2; done; printf end"
    workload = await site.jobs.submit(site.spec(body))
    readers = await asyncio.gather(*(site.log(workload.id, follow=True) for _ in range(3)))
    whole = await site.boundary.read(f"{workload.directory}/job.out")
    assert len(whole) == 5 * 1000003 + 3
    assert {hashlib.sha256(r).digest() for r in readers} == {hashlib.sha256(whole).digest()}


async def test_tail_and_logs_that_are_not_there(site: Any) -> None:
    held = await site.jobs.submit(site.spec("echo never", flags=("--hold",)))
    with pytest.raises(NotFoundError, match="no log yet"):
        await site.log(held.id)
    follower = asyncio.create_task(site.log(held.id, follow=True))
    await asyncio.sleep(0.5)
    report = await site.jobs.cancel([held.id])
    assert report.done == (held.id,)
    with pytest.raises(NotFoundError, match="There is no log"):
        await follower
    (gone,) = await site.jobs.wait([held.id])
    assert (gone.state, gone.exit_code) == (State.CANCELLED, 143)
    workload = await site.jobs.submit(site.spec("seq 1 100000"))
    await site.jobs.wait([workload.id])
    assert await site.log(workload.id, tail=3) == b"99998\n99999\n100000\n"
    assert await site.log(workload.id, tail=0) == b""
    assert len(await site.log(workload.id, tail=10**6)) == 588895


async def test_a_running_job_is_cancelled(site: Any) -> None:
    workload = await site.batch("#!/bin/bash\necho ready; srun sleep 600; echo after\n")
    async for chunk in site.jobs.logs(workload.id, LogOptions(follow=True)):
        assert chunk.data == b"ready\n"
        break
    report = await site.jobs.cancel([workload.name, "nonsense"])
    assert report.done == (workload.name,)
    assert [ref for ref, _ in report.failed] == ["nonsense"]
    (done,) = await site.jobs.wait([workload.id])
    assert done.state is State.CANCELLED
    assert done.exit_code not in (None, 0)
    again = await site.jobs.cancel([workload.id])
    assert (again.done, again.failed) == ((), ())
    assert again.message == f"ended already: {workload.id}"
    assert site.cluster.calls["scancel"] == 1


async def test_what_did_not_fit_into_memory(site: Any) -> None:
    workload = await site.batch("#!/usr/bin/env python3\nx = b'x' * 400_000_000\n", memory=50 * 2**20)
    (done,) = await site.jobs.wait([workload.id])
    assert (done.state, done.native_state, done.exit_code) == (State.FAILED, "OUT_OF_MEMORY", 137)
    assert "memory" in done.message


async def test_jobs_that_hpcsh_did_not_start(site: Any) -> None:
    name = "na|me\n\x1b[31m"
    options = f"--parsable -o 'x y-%j.out' -D {site.workdir} --comment=$'a\\nb'"
    job = (await site.shell(f"sbatch {options} -J $'na|me\\n\\e[31m' --wrap 'echo out; sleep 600'")).strip()
    ours = await site.jobs.submit(site.spec("sleep 600"))
    snapshot = await site.jobs.snapshot(fresh=True)
    theirs = next(w for w in snapshot.workloads if w.id == job)
    assert (theirs.ours, theirs.name, theirs.native_id) == (False, name, job)
    assert [w.id for w in (await site.jobs.snapshot(mine_only=True)).workloads] == [ours.id]
    async for chunk in site.jobs.logs(job, LogOptions(follow=True)):
        assert chunk.data == b"out\n"
        break
    detail = await site.jobs.show(job)
    assert dict(detail.facts)["Comment"] == "a\nb"
    assert "echo out; sleep 600" in detail.script
    assert {i.target for i in await site.jobs.clean_plan(everything=True)} == {ours.id}
    report = await site.jobs.clean(await site.jobs.clean_plan(everything=True))
    assert (report.done, report.failed) == ((ours.id,), ())
    assert await site.boundary.stat(ours.directory) is None
    assert (await site.jobs.resolve(job)).state is State.RUNNING
    assert (await site.jobs.cancel([job])).done == (job,)
    (done,) = await site.jobs.wait([job])
    assert done.state is State.CANCELLED
    await site.until_gone(job)
    assert (await site.jobs.resolve(job)).state is State.CANCELLED


async def test_vanished_jobs_are_completed_by_one_question_to_accounting(site: Any) -> None:
    workloads = [await site.batch(f"#!/bin/bash\nexit {n}\n") for n in range(6)]
    for workload in workloads:
        done = await site.boundary.run(["scontrol", "show", "job", workload.native_id], timeout=30)
        assert done.code == 0
    await site.until_gone(workloads[-1].native_id)
    await site.until_gone(workloads[0].native_id)
    # Their own marks are taken away, so that accounting alone can tell.
    await site.shell(f"rm -f {site.workdir}/jobs/*/marks")
    snapshot = await site.jobs.snapshot(fresh=True)
    assert {w.id: w.exit_code for w in snapshot.workloads} == {w.id: n for n, w in enumerate(workloads)}
    assert site.cluster.calls["sacct"] == 1
    assert site.cluster.calls["squeue"] == 1


async def test_without_accounting_the_marks_tell(site: Any) -> None:
    await site.fake("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    workload = await site.batch("#!/bin/bash\nexit 5\n")
    await site.until_gone(workload.native_id)
    (done,) = await site.jobs.wait([workload.id])
    assert (done.state, done.exit_code) == (State.FAILED, 5)


async def test_an_array(site: Any) -> None:
    script = """#!/bin/bash
#SBATCH --array=0-3%2
echo $SLURM_ARRAY_TASK_ID
exit $((SLURM_ARRAY_TASK_ID == 2 ? 6 : 0))
"""
    workload = await site.batch(script)
    (done,) = await site.jobs.wait([workload.id])
    assert (done.state, done.exit_code, done.native_id) == (State.FAILED, 6, workload.native_id)
    assert {c.id: c.exit_code for c in done.children} == {
        f"{done.native_id}_{t}": 6 * (t == 2) for t in range(4)
    }
    assert await site.boundary.read(f"{site.workdir}/slurm-{done.native_id}_2.out") == b"2\n"


async def test_a_requeued_job_is_waiting_again_and_runs_again(site: Any) -> None:
    workload = await site.batch(
        "#!/bin/bash\necho run $SLURM_RESTART_COUNT; sleep 600\n", flags=("--open-mode=append",)
    )
    async for _ in site.jobs.logs(workload.id, LogOptions(follow=True)):
        break
    await site.shell(f"scontrol requeue {workload.native_id}")
    states = set()
    for _ in range(60):
        now = next(w for w in (await site.jobs.snapshot(fresh=True)).workloads if w.id == workload.id)
        states.add(now.state)
        if now.state is State.PENDING:
            break
        await asyncio.sleep(0.5)
    assert now.state is State.PENDING
    assert states <= {State.RUNNING, State.PENDING}
    assert now.native_id == workload.native_id
    for _ in range(120):
        await site.boundary.run(
            ["scontrol", "update", f"JobId={workload.native_id}", "StartTime=now"], timeout=30
        )
        if (await site.log(workload.id)).endswith(b"run 1\n"):
            break
        await asyncio.sleep(1)
    assert (await site.log(workload.id)).startswith(b"run\n")


async def test_a_finished_job_that_is_requeued_lives_again(site: Any) -> None:
    workload = await site.batch("#!/bin/bash\nexit 0\n")
    (done,) = await site.jobs.wait([workload.id])
    assert done.state is State.SUCCEEDED
    await site.shell(f"scontrol requeuehold {workload.native_id}")
    for _ in range(30):
        now = next(w for w in (await site.jobs.snapshot(fresh=True)).workloads if w.id == workload.id)
        if not now.state.terminal:
            break
        await asyncio.sleep(0.5)
    assert (now.state, now.exit_code) == (State.PENDING, None)


async def test_the_number_of_questions_does_not_grow_with_who_asks(site: Any) -> None:
    workloads = [await site.jobs.submit(site.spec("sleep 4")) for _ in range(12)]
    before = len(site.boundary.runs)
    waits = [site.jobs.wait([w.id for w in workloads]) for _ in range(5)]
    tables = [site.jobs.snapshot() for _ in range(50)]
    began = asyncio.get_running_loop().time()
    await asyncio.gather(*waits, *tables)
    seconds = asyncio.get_running_loop().time() - began
    asked = [r[0] for r in site.boundary.runs[before:]]
    assert asked.count("squeue") <= seconds / site.cluster._poller.floor + 2
    assert set(asked) <= {"squeue", "grep", "env"}
    assert site.cluster.calls["sbatch"] == 12


async def test_a_job_id_that_is_another_jobs_by_now(site: Any) -> None:
    job = (await site.shell(f"sbatch --parsable -D {site.workdir} --wrap 'sleep 600'")).strip()
    old = await site.jobs.submit(site.spec("sleep 600"))
    await site.shell(f"scancel {old.native_id}")
    record = site.store.get(old.id)
    forged = msgspec.structs.replace(record.workload, native_id=job)
    site.store.save(msgspec.structs.replace(record, native_id=job, workload=forged))
    report = await site.jobs.cancel([old.id])
    snapshot = {w.id: w for w in (await site.jobs.snapshot(fresh=True)).workloads}
    assert snapshot[job].ours is False
    assert snapshot[job].state in (State.RUNNING, State.PENDING)
    assert snapshot[old.id].native_state != "RUNNING" or not snapshot[old.id].nodes
    assert report.failed == ()
    assert (await site.jobs.show(old.id)).facts[2:] == ()


async def test_slurms_refusal_leaves_nothing(site: Any) -> None:
    with pytest.raises(CommandError, match="invalid partition") as caught:
        await site.batch("#!/bin/bash\n", partition="nowhere")
    assert "-p" in caught.value.fix
    assert site.store.records("lab:x") == []
    assert await site.boundary.list(f"{site.workdir}/jobs") == []
    with pytest.raises(UsageError):
        await site.batch("#!/bin/bash\n", partition="a\nb")
    with pytest.raises(UsageError, match=r"/no/such/directory does not exist"):
        await site.jobs.submit(msgspec_cwd(site))
    assert await site.accounted(site.store.token) == []


def msgspec_cwd(site: Any) -> Any:
    import dataclasses

    return dataclasses.replace(site.spec("true"), cwd="/no/such/directory")


async def test_a_plan_changes_nothing_and_says_exactly_what_submit_does(site: Any) -> None:
    spec = site.spec("true", partition="debug", memory=2**27)
    plan = await site.jobs.plan(spec)
    assert await site.boundary.stat(f"{site.workdir}/jobs") is None
    assert site.cluster.calls == {}
    await site.jobs.submit(spec)
    ran = next(r for r in site.boundary.runs if r[0] == "sbatch")
    assert plan.commands == (ran,)
    assert await site.boundary.read(plan.files[0].path) == plan.script.encode() == plan.files[0].data


async def test_waiting_ends_in_time(site: Any) -> None:
    workload = await site.jobs.submit(site.spec("sleep 600"))
    with pytest.raises(TimedOutError, match=workload.id):
        await site.jobs.wait([workload.id], timeout=1.5)


async def test_cleaning_takes_what_is_ours_and_over_and_nothing_else(site: Any) -> None:
    over = await site.jobs.submit(site.spec("true"))
    runs = await site.jobs.submit(site.spec("sleep 600"))
    await site.jobs.wait([over.id])
    await site.boundary.mkdir(f"{site.workdir}/jobs/zzzzzzzz")
    items = await site.jobs.clean_plan()
    assert [(i.kind, i.target) for i in items] == [("directory", over.id)]
    # A link that took the place of the directory is not followed and not removed.
    await site.shell(
        f"mv {over.directory} {site.workdir}/aside && ln -s {site.workdir}/aside {over.directory}"
    )
    report = await site.jobs.clean(items)
    assert [ref for ref, _ in report.failed] == [over.id]
    await site.shell(f"rm {over.directory} && mv {site.workdir}/aside {over.directory}")
    assert (await site.jobs.clean(items)).done == (over.id,)
    assert (await site.jobs.clean(items)).done == (over.id,)
    seen = {w.native_id for w in (await site.jobs.snapshot(fresh=True)).workloads}
    assert seen & {over.native_id, runs.native_id} == {runs.native_id}  # it does not come back as foreign
    forged = msgspec.structs.replace(items[0], target=runs.id)
    assert (await site.jobs.clean([forged])).done == ()
    assert (await site.jobs.resolve(runs.id)).id == runs.id
    names = [f.path.rsplit("/", 1)[-1] for f in await site.boundary.list(f"{site.workdir}/jobs")]
    assert sorted(names) == sorted([runs.id, "zzzzzzzz"])
