import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsh.errors import UsageError
from hpcsh.model import Resources
from hpcsh.slurm.header import header_options, read_header
from hpcsh.slurm.options import SHORT, check_value, from_resources, long_name, merge, parse_flags, to_argv
from hpcsh.slurm.sbatch_table import OWNED, REFUSED, SBATCH


def test_short_forms_lead_to_known_options() -> None:
    assert set(SHORT.values()) <= set(SBATCH)
    assert SHORT["-p"] == "partition"


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--gres=gpu:1"], {"gres": "gpu:1"}),
        (["--gres", "gpu:1"], {"gres": "gpu:1"}),
        (["--gres gpu:1"], {"gres": "gpu:1"}),
        (["-n4", "-N", "2", "-H"], {"ntasks": "4", "nodes": "2", "hold": None}),
        (["-Hn4"], {"hold": None, "ntasks": "4"}),
        (["--exclusive", "--exclusive=user"], {"exclusive": "user"}),
        (["--part=debug"], {"partition": "debug"}),
        (["-n1", "--ntasks=2"], {"ntasks": "2"}),
        (["--tasks-per-node=2"], {"ntasks-per-node": "2"}),
        (["--comment=a b"], {"comment": "a b"}),
    ],
)
def test_spellings(flags: list[str], options: dict[str, str | None]) -> None:
    assert parse_flags(flags) == options


@pytest.mark.parametrize("flags", [["--bogus"], ["job.sh"], ["-Z"], ["--hold=1"], ["--"], ["-"], ["--n=1"]])
def test_unknown_options_are_refused_and_skipped_when_lenient(flags: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_flags(flags)
    assert parse_flags(flags, strict=False) == {}


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UsageError, match="--partition"):
        parse_flags(["--partitoin=x"])
    assert long_name("g") is None


def test_precedence() -> None:
    profile = Resources(
        partition="low", qos="q", time="10", memory=2**30, flags=("--gres=gpu:1", "--exclusive")
    )
    said = Resources(time="5", flags=("--mem-per-cpu=2G", "-G2"))
    merged = merge(said, profile, frozenset({"qos"}))
    assert merged == {"partition": "low", "exclusive": None, "time": "5", "mem-per-cpu": "2G", "gpus": "2"}
    assert to_argv(merged)[-1] == "--gpus=2"


def test_the_header_counts_more_than_the_profile_and_less_than_what_is_said() -> None:
    profile = Resources(memory=2**30, partition="low")
    assert merge(Resources(), profile, frozenset({"mem-per-cpu"})) == {"partition": "low"}
    assert merge(Resources(partition="high"), profile, frozenset({"mem", "partition"})) == {
        "partition": "high"
    }


def test_merging_twice_changes_nothing() -> None:
    profile = Resources(partition="low", flags=("--gres=gpu:1",))
    said = Resources(time="5")
    assert merge(said.over(profile), profile) == merge(said, profile)


def test_memory_is_rounded_up_to_mib() -> None:
    assert from_resources(Resources(memory=100_000_000)) == {"mem": "96M"}
    assert from_resources(Resources(memory=1)) == {"mem": "1M"}
    with pytest.raises(UsageError):
        from_resources(Resources(memory=0))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_dangerous_options_are_refused_with_a_reason(name: str) -> None:
    flag = f"--{name}" if SBATCH[name] == "flag" else f"--{name}=1"
    for said, profile in ((Resources(flags=(flag,)), Resources()), (Resources(), Resources(flags=(flag,)))):
        with pytest.raises(UsageError) as caught:
            merge(said, profile, owned=False)
        assert f"--{name}" in caught.value.what
        assert caught.value.why


@pytest.mark.parametrize("name", sorted(OWNED))
def test_what_would_break_our_own_script_is_refused_there_only(name: str) -> None:
    said = Resources(flags=(f"--{name}=1",))
    with pytest.raises(UsageError):
        merge(said, Resources())
    assert merge(said, Resources(), owned=False) == {name: "1"}


def test_get_user_env() -> None:
    assert merge(Resources(flags=("--get-user-env",)), Resources()) == {"get-user-env": None}
    with pytest.raises(UsageError):
        merge(Resources(flags=("--get-user-env=60",)), Resources())


CONTROL = [chr(c) for c in [*range(32), *range(127, 160)]]


@pytest.mark.parametrize(
    "field", ["account", "partition", "constraint", "job_name", "nodelist", "chdir", "dependency"]
)
@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\x00b", "a\x1bb", "\n#SBATCH --uid=0"])
def test_control_characters_are_refused(field: str, bad: str) -> None:
    with pytest.raises(UsageError, match="control character"):
        merge(Resources(**{field: bad}), Resources())


@given(st.text(min_size=1), st.sampled_from(sorted(set(SBATCH) - set(REFUSED))))
def test_no_value_can_become_a_second_option(value: str, name: str) -> None:
    if SBATCH[name] == "flag":
        return
    try:
        merged = merge(Resources(flags=(f"--{name}={value}",)), Resources(), owned=False)
    except UsageError:
        return
    (word,) = to_argv(merged)
    assert word == f"--{name}={value}"
    assert not set(word) & set(CONTROL)


@pytest.mark.parametrize(
    "value", ["5", "5:30", "1:00:00", "1-0", "1-12", "1-12:30", "1-12:30:00", "UNLIMITED"]
)
def test_times(value: str) -> None:
    assert check_value("time", value) == value


@pytest.mark.parametrize("value", ["", "1h", "1:2:3:4", "-5", "1-", "1-2-3", "５", "30 m", "1.5", "1d"])
def test_bad_times(value: str) -> None:
    with pytest.raises(UsageError):
        check_value("time", value)


@pytest.mark.parametrize(
    ("name", "value"), [("ntasks", "0"), ("ntasks", "x"), ("cpus-per-task", "-1"), ("nodes", "0")]
)
def test_bad_counts(name: str, value: str) -> None:
    with pytest.raises(UsageError):
        check_value(name, value)


@pytest.mark.parametrize("value", ["1", "2-4", "1k", "1,3-5", "2-8:2"])
def test_node_counts(value: str) -> None:
    assert check_value("nodes", value) == value


SCRIPT = b"""#!/bin/bash -l
#SBATCH -N2 --job-name='a b' # a comment --mem=1
#SBATCH --part=debug

# a remark
#  SBATCH --qos=no
 #SBATCH --qos=no
##SBATCH --qos=no
#SBATCH--time=5
#SBATCH --gres=a\\ b "--constraint=x|y"
echo hello
#SBATCH --ntasks=9
"""


def test_the_header_as_sbatch_reads_it() -> None:
    header = read_header(SCRIPT, "job.sh")
    assert header.interpreter == "/bin/bash -l"
    assert header.options == {
        "nodes": "2", "job-name": "a b", "partition": "debug", "time": "5", "gres": "a b",
        "constraint": "x|y",
    }  # fmt: skip
    assert header.lines[0] == "#SBATCH -N2 --job-name='a b' # a comment --mem=1"
    assert len(header.lines) == 4
    assert header_options(header.lines) == header.options


def test_het_jobs_and_unknown_options_are_left_to_sbatch() -> None:
    header = read_header(b"#!/bin/sh\n#SBATCH -n1\n#SBATCH hetjob\n#SBATCH --new-in-2030=x -N3\n", "j")
    assert header.options == {"ntasks": "1", "nodes": "3"}
    assert len(header.lines) == 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"  \n\n", "empty"),
        (b"echo hi\n", "#!"),
        (b"#!\n", "#!"),
        (b"\n#!/bin/sh\n", "#!"),
        (b"#!/bin/sh\r\necho\r\n", "CRLF"),
        (b"#!/bin/sh\necho\r\n", "line 2"),
        (b"#!/bin/sh\n\0", "NUL"),
        (b"#!/bin/sh\n#SBATCH -J 'x\n", "j:2"),
        (b"#!/bin/sh\n#SBATCH --wait\n", "--wait"),
        (b"#!/bin/sh\n#SBATCH --test-only\n", "--test-only"),
        (b"#!/bin/sh\n#SBATCH -M other\n", "--clusters"),
        (b"#!/bin/sh\n#" + b"x" * 2**22, "bytes"),
    ],
)
def test_scripts_that_sbatch_would_not_take(data: bytes, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_header(data, "j")
    assert words in str(caught.value)


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    try:
        header = read_header(b"#!/bin/sh\n#SBATCH " + data, "j")
    except UsageError:
        return
    assert header.lines[0].encode("utf-8", "surrogateescape").startswith(b"#SBATCH ")
