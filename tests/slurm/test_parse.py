import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsh.model import State
from hpcsh.slurm import listings, parse
from hpcsh.slurm.parse import QUEUE_FIXED, QUEUE_FREE, RS, SACCT_FIXED, SACCT_FREE, US

FIXED = {
    "JobID": "12", "ArrayJobID": "12", "ArrayTaskID": "N/A", "HetJobID": "N/A", "HetJobOffset": "N/A",
    "State": "RUNNING", "exit_code": "0:0", "RestartCnt": "0", "UserID": "2001", "UserName": "alice",
    "NumNodes": "2", "NumCPUs": "8", "SubmitTime": "1795345542", "StartTime": "1795345543",
    "EndTime": "1795349143",
    "TimeLimit": "1-02:03:04", "PriorityLong": "1", "QOS": "normal", "Account": "science",
    "Partition": "debug",
    "NodeList": "n[1-2]",
}  # fmt: skip
FREE = {
    "Reason": "None", "WorkDir": "/home/alice", "StdOut": "/home/alice/slurm-%j.out",
    "Command": "/home/alice/j.sh",
    "Name": "job", "Comment": "(null)",
}  # fmt: skip


def row(**changed: str) -> str:
    values = {**FIXED, **FREE, **changed}
    return US.join(values[f] for f in (*QUEUE_FIXED, *QUEUE_FREE)) + RS + "\n"


def one(text: str) -> parse.Job:
    (job,) = parse.parse_queue(text).values()
    return job


def test_a_plain_job() -> None:
    job = one(row())
    assert (job.id, job.state, job.native, job.nodes, job.node_count, job.cpus) == (
        "12", State.RUNNING, "RUNNING", "n[1-2]", 2, 8,
    )  # fmt: skip
    assert job.time_limit == 93784
    assert (job.started, job.ended, job.exit_code) == (1795345543.0, None, None)
    assert job.comment == ""
    assert job.extra["stdout"] == "/home/alice/slurm-%j.out"


def test_a_waiting_jobs_start_is_an_estimate() -> None:
    assert one(row(State="PENDING")).started is None


def test_arrays_and_het_jobs() -> None:
    text = (
        row(JobID="12", ArrayTaskID="3-9%2", State="PENDING")
        + row(JobID="14", ArrayTaskID="4")
        + row(JobID="20", ArrayJobID="20", HetJobID="20", HetJobOffset="0")
        + row(JobID="21", ArrayJobID="21", HetJobID="20", HetJobOffset="1")
    )
    assert list(parse.parse_queue(text)) == ["12_[3-9%2]", "12_4", "20+0", "20+1"]


def test_a_job_in_two_partitions_is_one_job() -> None:
    assert len(parse.parse_queue(row(State="PENDING") + row(State="PENDING", Partition="high"))) == 1


def test_banners_and_a_cluster_line_are_skipped() -> None:
    assert list(
        parse.parse_queue("CLUSTER: c1\n" + row() + "CLUSTER: c2\n" + row(JobID="13", ArrayJobID="13"))
    ) == [
        "12",
        "13",
    ]
    assert parse.parse_queue("slurm_load_jobs error: Unable to contact slurm controller\n") == {}
    assert parse.parse_queue("") == {}


def test_a_cut_answer_loses_only_what_is_cut() -> None:
    text = row() + row(JobID="13", ArrayJobID="13")
    assert list(parse.parse_queue(text[:-120])) == ["12"]


def test_a_megabyte() -> None:
    job = one(row(Name="x" * 2**20, Comment="y" * 2**20))
    assert len(job.name) == len(job.comment) == 2**20


NASTY = st.lists(st.sampled_from([*"a|;,=%'\" \t\n\r\\é\x1b\x00", "\x1b[31m", "🙂", "9", US, RS])).map(
    "".join
)
CLEAN = st.lists(st.sampled_from([*"a|;,=%'\" \t\n\r\\é\x1b", "🙂", "JobId=9", "\n12", "9"])).map("".join)


@given(st.lists(st.tuples(NASTY, NASTY), min_size=1, max_size=5))
def test_nothing_in_names_and_comments_damages_ids_and_states(texts: list[tuple[str, str]]) -> None:
    rows = [
        row(JobID=str(i), ArrayJobID=str(i), Name=n, Comment=c, State="FAILED", exit_code="3:0")
        for i, (n, c) in enumerate(texts, 1)
    ]
    jobs = parse.parse_queue("".join(rows))
    assert list(jobs) == [str(i) for i in range(1, len(texts) + 1)]
    assert all(j.state is State.FAILED and j.exit_code == 3 for j in jobs.values())


@given(CLEAN, CLEAN, CLEAN)
def test_free_text_without_our_own_separators_is_exact(name: str, comment: str, directory: str) -> None:
    job = one(row(Name=name + ".", Comment=comment + ".", WorkDir="/" + directory))
    assert (job.name, job.comment, job.directory) == (name + ".", comment + ".", "/" + directory)


@given(st.text())
def test_no_output_breaks_the_parser(text: str) -> None:
    for damaged in (text, row() + text, text + row()):
        parse.parse_queue(damaged)
        parse.parse_accounting(damaged)
        listings.parse_nodes(damaged)
        listings.parse_facts(damaged, "1")
        parse.submitted_id(damaged)


ACCOUNT = {
    "JobID": "12", "JobIDRaw": "12", "State": "CANCELLED by 2001", "ExitCode": "0:15", "Submit": "1795345542",
    "Start": "1795345543", "End": "1795349143", "TimelimitRaw": "60", "NNodes": "1", "AllocCPUS": "1",
    "UID": "2001",
    "User": "alice", "QOS": "normal", "Account": "science", "Partition": "debug", "NodeList": "n1",
    "Reason": "None", "WorkDir": "/home/alice", "SubmitLine": "sbatch j.sh", "JobName": "job", "Comment": "c",
}  # fmt: skip


def account(**changed: str) -> str:
    values = {**ACCOUNT, **changed}
    return US.join(values[f] for f in (*SACCT_FIXED, *SACCT_FREE)) + "\n"


def test_accounting() -> None:
    jobs = parse.parse_accounting(
        account()
        + account(JobID="13_4", JobIDRaw="15", State="TIMEOUT", ExitCode="0:0", Start="Unknown", End="None")
    )
    assert jobs["12"].state is State.CANCELLED
    assert jobs["12"].exit_code == 143
    assert jobs["12"].time_limit == 3600
    assert jobs["13_4"].exit_code == 124
    assert jobs["13_4"].started is None


@given(st.lists(CLEAN, min_size=1, max_size=4))
def test_accounting_with_newlines_in_comments(comments: list[str]) -> None:
    text = "".join(account(JobID=str(i), JobIDRaw=str(i), Comment=c) for i, c in enumerate(comments, 1))
    jobs = parse.parse_accounting(text)
    assert [j.comment for j in jobs.values()] == comments


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5:00", 300),
        ("1:00:00", 3600),
        ("2-03:04:05", 183845),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse.duration(text) == seconds


@pytest.mark.parametrize(
    ("output", "job"),
    [
        ("123\n", "123"),
        ("123;cluster\n", "123"),
        ("Welcome to site 7\n*** 42 nodes ***\n123\n", "123"),
        ("sbatch: lua: hello\nSubmitted batch job 99\n", "99"),
        ("", None),
        ("no job\n", None),
        ("12 34\n", None),
    ],
)
def test_submitted_id(output: str, job: str | None) -> None:
    assert parse.submitted_id(output) == job


def test_base_id() -> None:
    assert [parse.base_id(i) for i in ("12", "12_4", "12_[3-9%2]", "12+0", "12;c", "x")] == ["12"] * 5 + ["x"]


def test_nodes_merge_partitions() -> None:
    def node(partition: str, reason: str = "none") -> str:
        return US.join(["n1", "mixed", "2/2/0/4", "4000", "800", "gpu:2", partition, reason]) + RS + "\n"

    (found,) = listings.parse_nodes(node("debug*") + node("high", "disk\nbroken"))
    assert found.partitions == ("debug", "high")
    assert (found.cpus, found.cpus_used, found.memory, found.memory_free) == (
        4,
        2,
        4000 * 2**20,
        3200 * 2**20,
    )
    assert found.reason == "disk\nbroken"


FACTS = """JobId=12 JobName=a b=c d
   UserId=alice(2001) GroupId=alice(2001) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   ReqB:S:C:T=0:0:*:* CPUs/Task=1
   Command=/home/alice/my job.sh x=1
   Comment=first
second line
   WorkDir=/home/alice
   TresPerNode=gres/gpu:1
   

"""  # noqa: W293


def test_facts() -> None:
    facts = dict(listings.parse_facts(FACTS, "12"))
    assert facts["JobName"] == "a b=c d"
    assert facts["Command"] == "/home/alice/my job.sh x=1"
    assert facts["Comment"] == "first\nsecond line"
    assert facts["CPUs/Task"] == "1"
    assert facts["TresPerNode"] == "gres/gpu:1"


def test_facts_of_one_task_of_an_array() -> None:
    text = "\n\n".join(
        f"JobId={n} ArrayJobId=5 ArrayTaskId={t} JobName=a\n   JobState=R" for n, t in ((5, 2), (6, 1))
    )
    assert dict(listings.parse_facts(text, "5_1"))["JobId"] == "6"
    assert dict(listings.parse_facts(text, "5"))["JobId"] == "5"


def test_the_separators_are_no_printable_characters() -> None:
    assert not {US, RS} & set(string.printable)
