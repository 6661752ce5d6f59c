import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsh.model import State
from hpcsh.slurm.states import (
    COMPACT,
    canceller,
    exit_code,
    parts,
    reason_words,
    state_of,
    state_words,
    wait_status,
)

EXPECTED = {
    "PD": State.PENDING, "CF": State.PENDING, "RQ": State.PENDING, "RF": State.PENDING, "RH": State.PENDING,
    "RD": State.PENDING, "SE": State.PENDING, "R": State.RUNNING, "CG": State.RUNNING, "RS": State.RUNNING,
    "SI": State.RUNNING, "SO": State.RUNNING, "S": State.SUSPENDED, "ST": State.SUSPENDED,
    "CD": State.SUCCEEDED, "CA": State.CANCELLED, "F": State.FAILED, "TO": State.FAILED, "NF": State.FAILED,
    "PR": State.FAILED, "BF": State.FAILED, "DL": State.FAILED, "OOM": State.FAILED,
    "RV": State.UNKNOWN, "LF": State.UNKNOWN, "EX": State.UNKNOWN,
}  # fmt: skip


def test_every_compact_code_is_expected() -> None:
    assert set(EXPECTED) == set(COMPACT)


@pytest.mark.parametrize(("code", "state"), EXPECTED.items())
def test_compact_and_long_mean_the_same(code: str, state: State) -> None:
    assert state_of(code) is state
    assert state_of(COMPACT[code]) is state
    assert state_of(COMPACT[code].lower()) is state


@pytest.mark.parametrize(
    ("native", "state"),
    [
        ("CANCELLED by 1234", State.CANCELLED),
        ("FAILED,LAUNCH_FAILED", State.FAILED),
        ("PENDING,REQUEUED", State.PENDING),
        ("PREEMPTED+REQUEUED", State.PENDING),
        ("PREEMPTED,COMPLETING", State.RUNNING),
        ("COMPLETED+COMPLETING", State.RUNNING),
        ("RUNNING,CONFIGURING", State.PENDING),
        ("RUNNING+SIGNALING", State.RUNNING),
        ("SUSPENDED,SIGNALING", State.SUSPENDED),
        ("RUNNING,EXPEDITING", State.RUNNING),
        ("?", State.UNKNOWN),
        ("", State.UNKNOWN),
        ("TELEPORTED", State.UNKNOWN),
        ("RUNNING,TELEPORTING", State.UNKNOWN),
    ],
)
def test_flags(native: str, state: State) -> None:
    assert state_of(native) is state


@given(st.text())
def test_no_text_breaks_it_or_makes_it_guess(text: str) -> None:
    known = set(parts(text)) & set(COMPACT.values())
    assert known or state_of(text) is State.UNKNOWN
    state_words(text)
    reason_words(text)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("0:0", 0), ("7:0", 7), ("0:9", 137), ("0:15", 143), ("137:0", 137), ("0:125", 137), ("256", 1),
        ("12800", 50), ("9", 137), ("0", 0), ("-1:0", 255), ("4294967294", None),
        ("", None), ("N/A", None), ("255:0", 255),
    ],
)  # fmt: skip
def test_wait_status(text: str, code: int | None) -> None:
    assert wait_status(text) == code


@pytest.mark.parametrize(
    "native", ["F", "TIMEOUT", "NODE_FAIL", "OOM", "CANCELLED by 0", "PR", "BF", "DEADLINE"]
)
@pytest.mark.parametrize("text", ["0:0", "", "garbage", "0:15", "3:0"])
def test_a_job_that_did_not_succeed_is_never_0(native: str, text: str) -> None:
    code = exit_code(native, text)
    assert code is not None
    assert 0 < code < 256


def test_sensible_codes() -> None:
    assert exit_code("FAILED", "0:0") == 1
    assert exit_code("TIMEOUT", "0:0") == 124
    assert exit_code("OUT_OF_MEMORY", "0:125") == 137
    assert exit_code("CANCELLED by 5", "0:0") == 143
    assert exit_code("COMPLETED", "0:0") == 0
    assert exit_code("RUNNING", "0:0") is None
    assert exit_code("PREEMPTED,REQUEUED", "0:15") is None
    assert canceller("CANCELLED by 1234") == 1234
    assert canceller("CANCELLED") is None


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("None", ""),
        ("(null)", ""),
        ("Priority", "jobs with a higher priority are before it"),
        ("AssocGrpCPULimit", "a limit of its account association: AssocGrpCPULimit"),
        ("QOSMaxJobsPerUserLimit", "a limit of its QOS: QOSMaxJobsPerUserLimit"),
        ("Nodes required for job are DOWN", "Nodes required for job are DOWN"),
    ],
)
def test_reasons(reason: str, words: str) -> None:
    assert reason_words(reason) == words


def test_reserved_nodes_reason() -> None:
    assert re.search("not available", reason_words("ReqNodeNotAvail, UnavailableNodes:n1"))
