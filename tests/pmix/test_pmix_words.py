"""Command lines, facts and messages: pure."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsh.engines.pmix import commands, doctor, exact, facts, layout, messages
from hpcsh.engines.pmix.messages import Place, Program
from hpcsh.engines.pmix.submitting import is_manifest
from hpcsh.errors import CommandError, TargetError, UsageError
from hpcsh.model import Resources, Severity

TEMPLATES = Path(layout.__file__).parent / "templates"


def stripped(argv: list[str]) -> list[str]:
    """What prun makes of its arguments: `pmix_argv_copy_strip` of OpenPMIx, as its source has it."""
    out = []
    for word in argv:
        start = 1 if word[:1] == '"' else 0
        end = len(word) - 1 if word[-1:] == '"' else len(word)
        out.append(word[start:end])
    return out


@given(st.text(alphabet="\"'a $\\\n", max_size=6))
def test_prun_hands_on_every_word_as_it_was(word: str) -> None:
    assert stripped([commands.kept_by_prun(word)]) == [word]


PARTS = [b"abc", b"\n", b"\x1ehpcsh:", b"\x1e", b"i\x1e\n", b"\0\xff"]


@given(st.lists(st.sampled_from(PARTS), max_size=8), st.data())
def test_marks_are_taken_out_however_the_bytes_are_cut(parts: list[bytes], data: st.DataObject) -> None:
    end = exact.mark("i") + b"\n"
    text = b"".join(parts)
    if end in text or (text + end).count(end) != 1:
        return
    stream, filtered, unmark = text + end, b"", exact.Unmark("i")
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        filtered += unmark.feed(stream[:cut])
        stream = stream[cut:]
    assert filtered + unmark.rest() == text


def test_a_rank_keeps_its_status_and_both_streams() -> None:
    argv = exact.wrapped(["sh", "-c", "printf o; printf e >&2; exit 5"], "i")
    done = subprocess.run(argv, capture_output=True, check=False)
    end = exact.mark("i") + b"\n"
    assert (done.stdout, done.stderr, done.returncode) == (b"o" + end, b"e", 5)
    done = subprocess.run(exact.wrapped(["sh", "-c", "kill -SEGV $$"], "i"), capture_output=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (end, b"", 139)
    done = subprocess.run(exact.wrapped(["exit", "3"], "i"), capture_output=True, check=False)
    assert done.returncode == 127


def test_who_asks_for_lines_gets_lines() -> None:
    assert exact.possible("prun", ["-n", "1"], ["a"])
    assert not exact.possible("prun", ["--output", "tag"], ["a"])
    assert not exact.possible("prun", [], ["a", ":", "b"])
    assert not exact.possible("prterun", [], ["a"])


def test_prun_goes_to_the_named_dvm_only() -> None:
    command = commands.launch_command(
        "prun", ["-n", "2"], ["hostname"], launch_id="abc", uri_path="/d/uri", map_by="ppr:1:node"
    )
    assert command.argv == (
        "prun", "--dvm-uri", "file:/d/uri", "--map-by", "ppr:1:node", "-x", "HPCSH_LAUNCH=abc", "-n", "2",
        "hostname",
    )  # fmt: skip
    assert command.env["PMIX_SERVER_URI41"] is None
    assert "PMIX_NAMESPACE" in command.env


def test_another_personality_is_told_the_uri_by_variables() -> None:
    command = commands.launch_command(
        "prun", ["--personality", "ompi"], ["a"], launch_id="i", uri_path="/d/uri", uri="ns@0.0;tcp4://h:1"
    )
    assert "--dvm-uri" not in command.argv
    assert command.env["PMIX_SERVER_URI41"] == "ns@0.0;tcp4://h:1"


def test_the_users_mapping_replaces_the_profiles() -> None:
    for option in (["--map-by", "core"], ["--map-by=core"], ["-N", "2"]):
        command = commands.launch_command("prterun", option, ["a"], launch_id="i", map_by="slot")
        assert "slot" not in command.argv


def test_each_application_context_is_marked() -> None:
    argv = commands.launch_command("prun", [], ["a", "x", ":", "-n", "2", "b"], launch_id="i").argv
    assert argv.count("HPCSH_LAUNCH=i") == 2
    assert argv[argv.index(":") + 1 : argv.index(":") + 3] == ("-x", "HPCSH_LAUNCH=i")


@pytest.mark.parametrize("option", ["--dvm-uri", "--dvm-uri=x", "--pid", "--namespace", "--daemonize"])
def test_options_that_lead_elsewhere_are_refused(option: str) -> None:
    with pytest.raises(UsageError):
        commands.check_options("prun", [option], ["hostname"])


def test_bad_launches_are_refused() -> None:
    for tool, program in (("mpirun", ["a"]), ("prun", []), ("prun", [""]), ("prun", ["a\0b"])):
        with pytest.raises(UsageError):
            commands.check_options(tool, [], program)


def test_tasks_are_spread_evenly() -> None:
    flags = commands.even(Resources(ntasks=7), Resources(nodes="3")).flags
    assert flags == ("--ntasks-per-node=3", "--no-requeue")
    said = Resources(nodes="3", ntasks=6, flags=("--ntasks-per-node=4",))
    assert commands.even(said, Resources()).flags == ("--ntasks-per-node=4", "--no-requeue")
    assert commands.even(Resources(nodes="2-3", ntasks=6), Resources()).flags == ("--no-requeue",)


def test_mca_parameters_become_variables() -> None:
    assert commands.mca_variables({"OMPI_MCA_btl": "^ofi"}) == {"OMPI_MCA_btl": "^ofi"}
    assert set(commands.mca_variables({"if": "eth0"})) == {"PRTE_MCA_if", "OMPI_MCA_if", "PMIX_MCA_if"}
    with pytest.raises(UsageError):
        commands.mca_variables({"a b": "c"})


def test_a_uri_file_is_read_whole_or_not_at_all() -> None:
    uri = facts.parse_uri(b"prte-n1-113@0.0;tcp4://127.0.0.1:47193\nv5.0.7a1\n")
    assert uri
    assert (uri.namespace, uri.version) == ("prte-n1-113@0", "v5.0.7a1")
    assert (uri.host, uri.port) == ("127.0.0.1", 47193)
    assert uri.text == "prte-n1-113@0.0;tcp4://127.0.0.1:47193"
    for bad in (b"", b"prte-n1-113@0.0;tcp4://127.0", b"\n", b"hello\n", b"\xff\xfe"):
        assert facts.parse_uri(bad) is None


@pytest.mark.parametrize(("text", "total"), [("1(x3)", 3), ("4,1(x2)", 6), ("2", 2), ("", 0), ("a(x2)", 0)])
def test_slots_are_slurms_tasks(text: str, total: int) -> None:
    assert facts.count_tasks(text) == total


def test_facts_are_whole_or_nothing() -> None:
    known = facts.parse_facts(b"job 12\nhead n1\nnodes n1 n2 \ntasks 2(x2)\nend 5\n")
    assert known == facts.Facts("12", "n1", ("n1", "n2"), 4)
    assert facts.parse_facts(b"job 12\nhead n1\nnodes \n") is None


def test_the_proof_names_the_nodes_that_are_missing() -> None:
    nodes = ("n1", "n2", "n3")
    assert facts.named(b"n3\nn1\nn2\n", nodes) == ({"n1", "n2", "n3"}, set())
    assert facts.named(b"n1.example.org\nn3\n", nodes)[1] == {"n2"}
    assert facts.named(b"a\nb\nc\n", nodes)[1] == set()
    assert facts.named(b"", nodes)[1] == set(nodes)


def test_a_step_sees_the_whole_job() -> None:
    step = {"SLURM_NNODES": "1", "SLURM_STEP_ID": "4", "PATH": "/bin"}
    changed = facts.step_environment(step, {"SLURM_NNODES": "3", "SLURM_MEM_PER_CPU": "200"})
    assert changed["SLURM_NNODES"] == "3"
    assert changed["SLURM_STEP_ID"] is None
    assert changed["SLURM_MEM_PER_CPU"] is None
    assert changed["SLURM_OVERLAP"] == "1"
    assert "PATH" not in changed


def test_words_survive_their_file() -> None:
    env = {"A": "b=c\nd", "E": ""}
    assert layout.parse_assignments(layout.assignments(env)) == env
    assert layout.words(["a b", ""]) == b"a b\0\0"


def test_the_bodies_and_scripts_are_shell(tmp_path: Path) -> None:
    texts = [layout.dvm_body(), layout.one_shot_body(), layout.command_body()]
    texts += [layout.script("launch.sh").decode(), layout.script("sweep.sh").decode()]
    for i, text in enumerate(texts):
        path = tmp_path / f"{i}.sh"
        path.write_text(text)
        assert subprocess.run(["bash", "-n", path], capture_output=True, check=False).returncode == 0
        assert "{{" not in text


SLOTS = """--------------------------------------------------------------------------
There are not enough slots available in the system to satisfy the 6
slots that were requested by the application:

  hostname
"""
NO_FILE = """prterun was unable to find the specified executable file, and therefore did
not launch the job.  This error was first reported for process rank
0; it may have occurred for other processes as well.

   Node:       n1
   Executable: nosuch
"""
LACKED = """prterun was unable to launch the specified application as it lacked
permissions to execute an executable:

   Executable: /opt/x
   Node: n3
"""
OLD_SLURM = """The Slurm process starter requires a minimum Slurm version level
of v17.11. The detected version being used here is:

  Major: 0
  Minor: 0
"""


@pytest.mark.parametrize(
    ("code", "text", "says", "exit_code"),
    [
        (77, SLOTS, "not enough slots", 1),
        (77, "[n1:1] PMIx_Spawn failed (-179): PMIX_ERR_JOB_FAILED_TO_MAP\n", "not enough slots", 1),
        (66, NO_FILE, "'x' was not found on n1", 127),
        (183, LACKED, "may not be executed on n3", 126),
        (75, "PMIx_Spawn failed (-181): PMIX_ERR_JOB_FAILED_TO_LAUNCH", "could not start 'x'", 127),
        (250, OLD_SLURM, "daemons ended", 1),
        (213, "The specified map-by directive is not recognized:\n\n  Directive: foo\n", "--map-by: foo", 1),
        (213, "An unrecognized option was included\n\n  Option: --bogus\n", "option --bogus", 1),
        (77, "At least one of the requested hosts is not included in the current\nallocation.\n\n"
             "   Missing requested host: n9\n", "n9 is not in", 1),
        (195, "", "does not answer", 1),
        (1, "prun failed to initialize, likely due to no DVM being available", "does not answer", 1),
    ],
)  # fmt: skip
def test_prrtes_words_become_ours(code: int, text: str, says: str, exit_code: int) -> None:
    error = messages.explain(code, text, Program("x"), Place(3, ("n1",), ("-n", "9")))
    assert error is not None
    assert says in error.what
    assert error.exit_code == exit_code
    assert error.fix or "DVM" in error.what


def test_a_reason_that_prrte_does_not_repeat_is_found_from_the_options() -> None:
    text = "[n1:1] PMIx_Spawn failed (-179): PMIX_ERR_JOB_FAILED_TO_MAP\n"
    for options, says in (
        (("--host", "n1:2,n9"), "host n9"),
        (("-n", "9"), "not enough slots"),
        (("-n", "2"), "could not place"),
    ):  # fmt: skip
        error = messages.explain(77, text, Program("x"), Place(3, ("n1", "n2"), options))
        assert error
        assert says in error.what


def test_what_the_first_node_knows_makes_it_clearer() -> None:
    text = "PMIx_Spawn failed (-181): PMIX_ERR_JOB_FAILED_TO_LAUNCH"
    missing = messages.explain(75, text, Program("x", "missing"))
    denied = messages.explain(75, text, Program("x", "denied"))
    assert missing
    assert denied
    assert (missing.exit_code, denied.exit_code) == (127, 126)
    by_env = messages.explain(127, "env: \u2018x\u2019: No such file or directory", Program("x"))
    assert by_env
    assert by_env.exit_code == 127
    assert messages.explain(127, "env: 'y': No such file or directory", Program("x")) is None
    silent = messages.explain(137, "", Program("x", "denied"))
    assert silent
    assert silent.exit_code == 126
    assert messages.explain(137, "", Program("x", "denied"), output=True) is None


def test_a_programs_own_failure_is_not_prrtes() -> None:
    assert messages.explain(3, SLOTS, Program("x")) is None
    assert messages.explain(1, "my own words", Program("x", "missing")) is None
    assert messages.explain(139, "", Program("x")) is None


@pytest.mark.parametrize(
    "words", ['FATAL:   "x": executable file not found in $PATH', "FATAL:   stat /x: no such file"]
)
def test_a_program_that_the_image_lacks(words: str) -> None:
    error = messages.explain(255, words, Program("x", image="img"))
    assert isinstance(error, CommandError)
    assert "in the image img" in error.what
    assert messages.explain(255, words, Program("x")) is None


def test_the_dvm_that_is_gone_is_a_matter_of_the_target() -> None:
    assert isinstance(messages.dvm_unreachable(), TargetError)
    assert "prte" in messages.start_failure("line 3: prte: command not found").what


def test_the_log_is_told_without_noise() -> None:
    log = b"DVM ready\n[n1:1] PRTE ERROR: process whose contact information is unknown in file x.c\nreal\n"
    assert messages.dvm_log(log) == "real"


def test_the_first_rank_that_failed_is_named() -> None:
    text = "The first process to do so was:\n\n   Process name: [prte-n1-113@9,2]\n   Exit code:    5\n"
    assert messages.first_failure(text) == "rank 2 was the first to end with status 5"
    assert messages.first_failure("") == ""


def test_doctor_names_what_is_missing() -> None:
    good = {n: (f"/usr/bin/{n}", f"{n} (PRRTE) 3.0.8") for n in (*doctor.NEEDED, "pterm.openmpi", "mpicc")}
    assert {f.severity for f in doctor.judge(good)} == {Severity.OK}
    bad = doctor.judge({"prte": ("/p", "prte (PRRTE) 5.0.0rc1"), "prterun": ("/p", "prterun (PRRTE) 3.0.8")})
    found = {f.id: f.severity for f in bad}
    assert found["pmix.prun"] is Severity.ERROR
    assert found["pmix.versions"] is Severity.ERROR
    assert found["pmix.pterm"] is Severity.WARNING
    assert found["pmix.prrte"] is Severity.WARNING
    assert all(f.fix for f in bad if f.severity is Severity.ERROR)


def test_a_manifest_is_told_from_a_script() -> None:
    assert is_manifest(b"# a pod\napiVersion: v1\nkind: Pod\n")
    assert is_manifest(b'{"apiVersion": "v1"}')
    assert not is_manifest(b"#!/bin/bash\nkind: Pod\n")
    assert not is_manifest(b"echo hi\n")


def test_the_examples_header_lines_are_sbatchs() -> None:
    text = (Path(__file__).resolve().parents[2] / "examples/mpi/init_finalize.job.sh").read_text()
    assert re.search(r"^#SBATCH --nodes=3$", text, re.M)
    assert "srun --mpi=pmix" in text
