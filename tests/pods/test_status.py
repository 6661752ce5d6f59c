"""A pod's state from Slurm's and from what the containers left behind."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsh.model import Kind, State, Workload
from hpcsh.pods.status import Happening, Part, refine

PARTS = [Part("i", "x", init=True), Part("a", "x"), Part("b", "x")]


def pod(state: State, native: str = "", exit_code: int | None = None) -> Workload:
    return Workload(id="p", name="p", kind=Kind.POD, state=state, native_state=native, exit_code=exit_code)


def happened(*lines: str) -> list[Happening]:
    out = []
    for at, line in enumerate(lines):
        what, who, value = (*line.split(" "), "", "")[:3]
        out.append(Happening(float(at), what, who, value))
    return out


def told(workload: Workload) -> list[tuple[str, State, str, int | None]]:
    return [(c.name, c.state, c.reason, c.exit_code) for c in workload.children]


def test_pending() -> None:
    now = refine(pod(State.PENDING), PARTS, [])
    assert [c.state for c in now.children] == [State.PENDING] * 3
    assert now.exit_code is None


def test_init_containers_first() -> None:
    now = refine(pod(State.RUNNING), PARTS, happened("start 1", "container-start i"))
    assert told(now) == [
        ("i", State.RUNNING, "", None), ("a", State.PENDING, "PodInitializing", None),
        ("b", State.PENDING, "PodInitializing", None),
    ]  # fmt: skip


def test_running_with_one_that_has_ended() -> None:
    lines = ("start 1", "container-start i", "container-exit i 0", "container-start a", "container-exit a 3")
    now = refine(pod(State.RUNNING), PARTS, happened(*lines))
    assert told(now) == [
        ("i", State.SUCCEEDED, "Completed", 0), ("a", State.FAILED, "Error", 3),
        ("b", State.PENDING, "ContainerCreating", None),
    ]  # fmt: skip
    assert now.state is State.RUNNING


def test_a_requeued_job_begins_again() -> None:
    lines = ("start 1", "container-start i", "container-exit i 9", "start 1", "container-start i")
    assert told(refine(pod(State.RUNNING), PARTS, happened(*lines)))[0] == ("i", State.RUNNING, "", None)


def test_succeeded_although_the_last_mark_has_not_arrived() -> None:
    now = refine(pod(State.SUCCEEDED, "COMPLETED", 0), PARTS, happened("start 1", "container-start i"))
    assert [c.state for c in now.children] == [State.SUCCEEDED] * 3
    assert (now.reason, now.exit_code) == ("Completed", 0)


def test_never_succeeded_when_a_container_failed() -> None:
    now = refine(
        pod(State.SUCCEEDED, "COMPLETED", 0), PARTS, happened("container-start a", "container-exit a 5")
    )
    assert (now.state, now.exit_code) == (State.FAILED, 5)


@pytest.mark.parametrize(
    ("native", "state", "code", "reason"),
    [
        ("OUT_OF_MEMORY", State.FAILED, 137, "OOMKilled"), ("OOM", State.FAILED, 137, "OOMKilled"),
        ("TIMEOUT", State.FAILED, 143, "DeadlineExceeded"), ("NODE_FAIL", State.FAILED, 1, "NodeLost"),
        ("PREEMPTED", State.FAILED, 143, "Preempted"), ("CANCELLED by 1234", State.CANCELLED, 143, "Cancelled"),  # noqa: E501
        ("CANCELLED+", State.CANCELLED, 143, "Cancelled"), ("FAILED", State.FAILED, 1, "Error"),
    ],
)  # fmt: skip
def test_how_jobs_end(native: str, state: State, code: int, reason: str) -> None:
    lines = ("start 1", "container-start i", "container-exit i 0", "container-start a")
    now = refine(pod(state, native, code), PARTS, happened(*lines))
    assert (now.state, now.reason, now.exit_code) == (state, reason, code)
    assert told(now)[1][1:] == (state, reason, code)
    assert told(now)[2] == ("b", State.CANCELLED, "NotStarted", None)


def test_oom_is_said_of_the_container_that_was_killed_only() -> None:
    lines = ("container-start a", "container-exit a 137", "container-start b", "container-exit b 0")
    now = refine(pod(State.FAILED, "OUT_OF_MEMORY", 125), PARTS[1:], happened(*lines))
    assert told(now) == [("a", State.FAILED, "OOMKilled", 137), ("b", State.SUCCEEDED, "Completed", 0)]
    assert (now.exit_code, now.reason) == (137, "OOMKilled")


def test_137_without_slurm_seeing_memory_run_out_is_an_error() -> None:
    now = refine(
        pod(State.FAILED, "FAILED", 137), PARTS[1:2], happened("container-start a", "container-exit a 137")
    )
    assert told(now) == [("a", State.FAILED, "Error", 137)]


def test_restarts_are_counted() -> None:
    lines = ("container-start a", "container-exit a 1", "container-start a", "container-exit a 0")
    now = refine(pod(State.SUCCEEDED, "COMPLETED", 0), PARTS[1:2], happened(*lines))
    assert (now.state, now.children[0].message) == (State.SUCCEEDED, "restarted 1 times")


LINES = st.tuples(
    st.sampled_from(["start", "container-start", "container-exit", "pod-failed", "end", "noise"]),
    st.sampled_from(["i", "a", "b", "z", ""]),
    st.sampled_from(["0", "1", "137", "", "x", "-1"]),
)


@given(st.sampled_from(list(State)), st.sampled_from([None, 0, 1, 137]), st.lists(LINES, max_size=12))
def test_whatever_was_left_behind(state: State, code: int | None, lines: list[tuple[str, str, str]]) -> None:
    before = pod(state, "", code)
    now = refine(before, PARTS, [Happening(float(i), *line) for i, line in enumerate(lines)])
    assert [c.name for c in now.children] == ["i", "a", "b"]
    if now.state is State.FAILED:
        assert now.exit_code
    if now.state is State.SUCCEEDED:
        assert now.exit_code == 0
        assert all(c.state is State.SUCCEEDED for c in now.children)
    if state in (State.FAILED, State.CANCELLED):
        assert now.state is state
    if not state.terminal:
        assert now.state is state
        assert now.exit_code is None
    if now.state.terminal:
        assert all(c.state.terminal for c in now.children)
    again = refine(now, PARTS, [Happening(float(i), *line) for i, line in enumerate(lines)])
    assert again.state is now.state
    assert msgspec.json.decode(msgspec.json.encode(now), type=Workload) == now
