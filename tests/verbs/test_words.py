"""The command line of each verb, down to what the session is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsh.errors import UsageError
from hpcsh.profiles import memory
from hpcsh.verbs import prrte
from hpcsh.verbs.flags import image_and_command, options, script_and_args
from hpcsh.verbs.registry import find, parser, verbs

SUBMIT = find("submit").function
RUN = find("run").function
PRUN = find("prun").function


def parsed(name: str, words: list[str]) -> tuple[tuple[object, ...], dict[str, object]]:
    verb = find(name)
    _, bound, _ = parser(verb).parse_args(
        verb.split(verb.function, words), exit_on_error=False, print_error=False
    )
    return bound.args, bound.kwargs


def test_what_follows_the_script_belongs_to_it() -> None:
    args, kwargs = parsed("submit", ["-p", "debug", "-N2", "job.sh", "-t", "5", "--dry-run", "--", "x"])
    assert args == ("job.sh", "-t", "5", "--dry-run", "--", "x")
    flags = kwargs["flags"].resources()  # type: ignore[attr-defined]
    assert (flags.partition, flags.nodes, flags.time) == ("debug", "2", None)
    assert "dry_run" not in kwargs


def test_other_options_go_to_sbatch() -> None:
    _, kwargs = parsed("submit", ["--gres=gpu:1", "--exclusive", "--mem=2G", "--dry-run", "job.sh"])
    flags = kwargs["flags"].resources()  # type: ignore[attr-defined]
    assert flags.flags == ("--gres=gpu:1", "--exclusive")
    assert flags.memory == 2 << 30
    assert kwargs["dry_run"] is True


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--gres", "gpu:1"], ("--gres=gpu:1",)),
        (["--nice", "job.sh"], ("--nice",)),
        (["-o", "out.txt"], ("--output=out.txt",)),
        (["-oout.txt", "-H"], ("--output=out.txt", "--hold")),
        (["--tasks-per-node", "2"], ("--tasks-per-node=2",)),
        (["--typo=1"], ("--typo=1",)),
    ],
)
def test_sbatchs_own_spellings(words: list[str], flags: tuple[str, ...]) -> None:
    args, kwargs = parsed("submit", [*words, "job.sh"] if words[-1] != "job.sh" else words)
    assert args == ("job.sh",)
    assert kwargs["flags"].resources().flags == flags  # type: ignore[attr-defined]


@pytest.mark.parametrize("short", list("pAqtNncGJwCd"))
def test_habits_of_sbatch_count(short: str) -> None:
    assert options(SUBMIT)[f"-{short}"] is True
    assert options(RUN)[f"-{short}"] is True


@pytest.mark.parametrize(
    ("words", "image", "command"),
    [
        (["--", "hostname"], "", ["hostname"]),
        (["-N", "3", "--", "echo", "--", "-p"], "", ["echo", "--", "-p"]),
        (["img", "-p", "debug", "--", "ls", "-l"], "img", ["ls", "-l"]),
        (["-e", "A=b c", "img"], "img", []),
    ],
)
def test_run_tells_image_and_command_apart(words: list[str], image: str, command: list[str]) -> None:
    split = image_and_command(RUN, words)
    at = split.index("--")
    assert split[at + 1 :] == [image, *command]


def test_run_refuses_a_second_word_before_the_dashes() -> None:
    with pytest.raises(UsageError, match="what is 'ls'"):
        image_and_command(RUN, ["img", "ls"])


@given(st.lists(st.text(min_size=1), max_size=5))
def test_script_arguments_survive_exactly(args: list[str]) -> None:
    split = script_and_args(SUBMIT, ["job.sh", *args])
    assert split == ["--", "job.sh", *args]


def test_a_switch_takes_no_value() -> None:
    assert parsed("run", ["--inherit-env", "--", "ls"]) == (("", "ls"), {"inherit_env": True})


def test_the_image_may_be_an_option_as_for_prun() -> None:
    assert parsed("run", ["--image", "i", "--", "ls"]) == (("", "ls"), {"image_option": "i"})


def test_a_dash_is_standard_input() -> None:
    assert parsed("submit", ["-p", "debug", "-", "x"])[0] == ("-", "x")


@pytest.mark.parametrize(
    ("words", "own", "program"),
    [
        (["hostname"], [], ["hostname"]),
        (["-n", "4", "--map-by", "x", "./a", "-n", "x"], ["-n", "4", "--map-by", "x"], ["./a", "-n", "x"]),
        (["--mca", "btl", "tcp,self", "a"], ["--mca", "btl", "tcp,self"], ["a"]),
        (["--new-option", "3", "--", "a", "--", "b"], ["--new-option", "3"], ["a", "--", "b"]),
        (["--bind-to=core", "a"], ["--bind-to=core"], ["a"]),
        ([], [], []),
    ],
)  # fmt: skip
def test_prrte_options_and_program(words: list[str], own: list[str], program: list[str]) -> None:
    assert prrte.split(words) == (own, program)


def test_an_unknown_prrte_option_is_not_guessed() -> None:
    with pytest.raises(UsageError, match="takes a value"):
        prrte.split(["--shiny", "3", "a.out"])


def test_our_options_are_taken_out_before_the_program_only() -> None:
    words = prrte.own_and_rest(PRUN, ["-n", "2", "--image", "i", "--json", "./a", "--image", "x"])
    assert words == ["--image", "i", "--json", "--", "-n", "2", "./a", "--image", "x"]


@pytest.mark.parametrize(
    ("text", "size"), [("100", 100 << 20), ("1K", 1024), ("4g", 4 << 30), ("2GiB", 2 << 30)]
)
def test_memory_as_sbatch_reads_it(text: str | None, size: int | None) -> None:
    assert memory(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "G", "1X", "1\n2"])
def test_wrong_memory_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="--mem"):
        memory(text)


def test_every_verb_has_a_summary_and_no_name_means_two_things() -> None:
    names = [n for v in verbs().values() for n in (v.name, *v.aliases)]
    assert len(names) == len(set(names))
    assert all(v.summary for v in verbs().values())


def test_an_unknown_verb_names_what_is_near() -> None:
    with pytest.raises(UsageError) as caught:
        find("sumbit")
    assert "submit" in caught.value.why


def test_only_what_can_be_typed_is_an_option() -> None:
    for verb in verbs().values():
        assert "--context" not in options(verb.function)
