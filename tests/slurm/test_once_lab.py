"""At most once (design 6.1), on real Slurm: the real commands run behind wrappers that lose their answers."""

import asyncio
from typing import Any

import pytest

from hpcsh.engines import checks
from hpcsh.engines.jobs import submission
from hpcsh.engines.jobs.submission import WITHDRAWN
from hpcsh.engines.virtual_node.engine import VirtualNode
from hpcsh.errors import CommandError, TargetError, UnknownOutcomeError
from hpcsh.model import Severity, State
from hpcsh.slurm import client

pytestmark = pytest.mark.lab


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short time-outs; a grace that has passed at once."""
    monkeypatch.setitem(client.TIMEOUTS, "sbatch", 3.0)
    monkeypatch.setattr(submission, "GRACE", 0.0)


LOST = {
    "hangs after it": '"$REAL" "$@" > /dev/null; sleep 600',
    "is killed after it": '"$REAL" "$@" > /dev/null; kill -9 $$',
    "says nothing": '"$REAL" "$@" > /dev/null',
    "times out after it": '"$REAL" "$@" > /dev/null; echo "sbatch: error: Batch job submission failed: '
    'Socket timed out on send/recv operation" >&2; exit 1',
}


@pytest.mark.parametrize("how", LOST)
@pytest.mark.usefixtures("soon")
async def test_a_lost_answer_finds_its_job_and_never_makes_a_second(site: Any, how: str) -> None:
    await site.fake("sbatch", LOST[how])
    workload = await site.jobs.submit(
        site.spec("echo ran >> ran; exit 4", flags=(f"--chdir={site.workdir}",))
    )
    (done,) = await site.jobs.wait([workload.id])
    assert done.exit_code == 4
    assert await site.accounted(workload.id) == [[done.native_id, "FAILED"]]
    assert await site.shell(f"cat {site.workdir}/ran") == "ran\n"
    assert site.cluster.calls["sbatch"] == 1
    assert await site.shell("pgrep -u $(id -u) -x sleep | wc -l") == "0\n"


@pytest.mark.usefixtures("soon")
async def test_without_a_queue_the_outcome_is_unknown_and_nothing_is_lost(site: Any) -> None:
    """squeue has never worked: a session opens, `doctor` names it, `ps` fails, and no job is made twice."""
    await site.fake("squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    engine = VirtualNode(site.context)
    await engine.open()
    told = {f.id: f for f in await checks.slurm(site.context)}
    assert told["slurm.controller"].severity is Severity.ERROR
    with pytest.raises(CommandError, match="contact"):
        await site.jobs.snapshot()
    await site.fake("sbatch", LOST["says nothing"])
    with pytest.raises(UnknownOutcomeError):
        await site.jobs.submit(site.spec("exit 4", flags=("--begin=now+5",)))
    (record,) = site.store.records("lab:x")
    assert record.phase == "intent"
    await site.shell(f"rm {site.workdir}/bin/squeue")
    jobs = site.again()
    await jobs.settle()
    (done,) = await jobs.wait([record.id])
    assert done.exit_code == 4
    assert len(await site.accounted(record.id)) == 1


@pytest.mark.parametrize(
    "noise",
    [
        'echo "Welcome to the 2 clusters"; echo 4 >&2; echo "sbatch: warning: x" >&2; "$REAL" "$@"; echo bye',
        'echo "$("$REAL" "$@");cluster-1"',
        'sleep 1; "$REAL" "$@"',
    ],
)
async def test_noise_is_no_failure(site: Any, noise: str) -> None:
    await site.fake("sbatch", noise)
    workload = await site.jobs.submit(site.spec("exit 0"))
    assert await site.accounted(workload.id) in (
        [[workload.native_id, s]] for s in ("PENDING", "RUNNING", "COMPLETED")
    )
    (done,) = await site.jobs.wait([workload.id])
    assert done.state is State.SUCCEEDED


@pytest.mark.usefixtures("soon")
async def test_what_never_arrived_is_withdrawn_and_a_late_job_does_not_run(site: Any) -> None:
    await site.fake(
        "sbatch", 'printf "%q " "$REAL" "$@" > ~/late-$$; mv ~/late-$$ "$(dirname "$0")/late"; sleep 600'
    )
    spec = site.spec("echo ran >> ran", flags=(f"--chdir={site.workdir}",))
    with pytest.raises(UnknownOutcomeError, match="do not submit it again"):
        await site.jobs.submit(spec)
    assert site.store.get(spec.id).phase == "intent"
    jobs = site.again()
    await jobs.settle()
    (workload,) = (await jobs.snapshot(mine_only=True)).workloads
    assert (workload.state, workload.reason) == (State.FAILED, "Withdrawn")
    assert (await site.boundary.read(f"{workload.directory}/run/{spec.id}")).decode().strip() == WITHDRAWN
    late = (await site.shell(f"bash {site.workdir}/bin/late")).strip()
    for _ in range(60):
        found = await site.accounted(spec.id)
        if found and found[0][1] == "FAILED":
            break
        await asyncio.sleep(0.5)
    assert found == [[late, "FAILED"]]
    assert await site.boundary.stat(f"{site.workdir}/ran") is None
    (workload,) = (w for w in (await jobs.snapshot(fresh=True)).workloads if w.id == spec.id)
    assert (workload.state, workload.reason) == (State.FAILED, "Withdrawn")


async def test_within_the_grace_nothing_is_decided(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(client.TIMEOUTS, "sbatch", 1.0)
    await site.fake("sbatch", "sleep 600")
    spec = site.spec("true")
    with pytest.raises(UnknownOutcomeError):
        await site.jobs.submit(spec)
    await site.jobs.settle()
    (workload,) = (await site.jobs.snapshot(mine_only=True, fresh=True)).workloads
    assert workload.state is State.UNKNOWN
    assert await site.boundary.list(f"{workload.directory}/run") == []
    report = await site.jobs.cancel([spec.id])
    assert report.done == ()


@pytest.mark.usefixtures("soon")
async def test_without_an_answer_of_slurms_nothing_is_decided(site: Any) -> None:
    await site.fake("sbatch", "sleep 600")
    await site.fake("sacct", "echo 'sacct: error: slurm_persist_conn_open: failed' >&2; exit 1")
    spec = site.spec("true")
    with pytest.raises(UnknownOutcomeError):
        await site.jobs.submit(spec)
    await site.jobs.settle()
    await site.fake("sacct", '"$REAL" "$@"')
    await site.fake("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    await asyncio.sleep(1.1)
    await site.jobs.settle()
    assert site.store.get(spec.id).phase == "intent"
    snapshot = await site.jobs.snapshot()
    assert "Unable to contact" in snapshot.stale
    assert [w.state for w in snapshot.workloads if w.ours] == [State.UNKNOWN]


@pytest.mark.usefixtures("soon")
async def test_a_crash_between_sbatch_and_its_record(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        pass

    def crash(record: Any, native: str) -> Any:
        raise Crash

    monkeypatch.setattr(site.jobs._submission, "adopt", crash)
    spec = site.spec("echo ran; exit 3")
    with pytest.raises(Crash):
        await site.jobs.submit(spec)
    jobs = site.again()
    await jobs.settle()
    (done,) = await jobs.wait([spec.id])
    assert done.exit_code == 3
    assert len(await site.accounted(spec.id)) == 1


@pytest.mark.usefixtures("soon")
async def test_a_crash_before_sbatch(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        pass

    async def crash(*a: Any, **k: Any) -> str:
        raise Crash

    monkeypatch.setattr(site.cluster, "sbatch", crash)
    spec = site.spec("true")
    with pytest.raises(Crash):
        await site.jobs.submit(spec)
    jobs = site.again()
    await jobs.settle()
    assert (await jobs.resolve(spec.id)).reason == "Withdrawn"
    assert await site.accounted(spec.id) == []
    assert (await jobs.clean(await jobs.clean_plan())).done == (spec.id,)


@pytest.mark.usefixtures("soon")
async def test_a_site_whose_plugin_overwrites_the_comment(site: Any) -> None:
    await site.fake(
        "sbatch",
        'args=(); for a in "$@"; do args+=("${a/#--comment=*/--comment=x}"); done; "$REAL" "${args[@]}" >&2',
    )
    workload = await site.jobs.submit(site.spec("sleep 600"))
    assert workload.native_id
    snapshot = await site.jobs.snapshot(fresh=True)
    (found,) = (w for w in snapshot.workloads if w.native_id == workload.native_id)
    assert found.id == workload.id
    assert (await site.jobs.cancel([workload.id])).done == (workload.id,)
    (done,) = await site.jobs.wait([workload.id])
    assert done.state is State.CANCELLED


async def test_a_squeue_that_hangs_or_dies_leaves_the_last_answer(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(client.TIMEOUTS, "squeue", 1.0)
    workload = await site.jobs.submit(site.spec("sleep 600"))
    good = await site.jobs.snapshot(fresh=True)
    await site.fake("squeue", '"$REAL" "$@" | head -c 100; sleep 600')
    await asyncio.sleep(1.1)
    stale = await site.jobs.snapshot(fresh=True)
    assert stale.as_of == good.as_of
    assert stale.stale
    assert [w.id for w in stale.workloads if w.ours] == [workload.id]
    await site.fake("squeue", '"$REAL" "$@" | head -c 100; kill -9 $$')
    site.cluster._poller._failures = 0
    await asyncio.sleep(1.1)
    assert (await site.jobs.snapshot(fresh=True)).as_of == good.as_of
    assert await site.shell("pgrep -u $(id -u) -f 'bin/[s]queue' | wc -l") == "0\n"


async def test_a_target_that_is_lost_before_sbatch_leaves_no_doubt(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*a: Any, **k: Any) -> None:
        raise TargetError("gone")

    monkeypatch.setattr(site.boundary, "write", lost, raising=False)
    with pytest.raises(TargetError):
        await site.jobs.submit(site.spec("true"))
    assert site.store.records("lab:x") == []


async def test_cancelling_a_submission_in_the_middle(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "GRACE", 0.0)
    await site.fake("sbatch", '"$REAL" "$@" > /dev/null; touch "$(dirname "$0")/did"; sleep 600')
    spec = site.spec("exit 6")
    task = asyncio.create_task(site.jobs.submit(spec))
    while await site.boundary.stat(f"{site.workdir}/bin/did") is None:
        await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (done,) = await site.jobs.wait([spec.id])
    assert done.exit_code == 6
    assert len(await site.accounted(spec.id)) == 1


async def test_a_refusal_for_certain_is_told_in_slurms_words(site: Any) -> None:
    with pytest.raises(CommandError, match="Memory specification"):
        await site.jobs.submit(site.spec("true", memory=2**50))
    assert site.store.records("lab:x") == []
