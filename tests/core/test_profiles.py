from __future__ import annotations

from pathlib import Path

import pytest

from hpcsh import profiles
from hpcsh.errors import HpcshError, NotFoundError, UsageError
from hpcsh.model import Resources


def test_shipped_profiles_are_valid() -> None:
    names = [n for n, path in profiles.available().items() if "profiles" in path.parts]
    assert {"lab-virtual-node", "lab-pmix"} <= set(names)
    assert {profiles.load(n).engine for n in names} == {"virtual_node", "pmix"}


def test_the_users_profile_comes_before_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    mine = tmp_path / "hpcsh" / "profiles" / "lab-pmix.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("engine: pmix\ntarget: {local: true}\nresources: {account: mine}\n")
    profile = profiles.load("lab-pmix")
    assert (profile.origin, profile.resources.account) == (str(mine), "mine")


@pytest.mark.parametrize("name", ["nope", "../../etc/passwd", "", "a/b", "-x", "x\n"])
def test_an_unknown_name_is_told(name: str) -> None:
    with pytest.raises(NotFoundError, match="no profile"):
        profiles.load(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("engine: pmix\ntarget: {local: true\n", "p.yaml:3"),
        ("engine: nope\ntarget: {local: true}\n", "unknown engine"),
        ("engine: pmix\ntarget: {}\n", "exactly one"),
        ("engine: pmix\ntarget: {local: true, lab: x}\n", "exactly one"),
        ("engine: pmix\ntarget: {local: true}\npoll: {floor: 0}\n", "at least 1"),
        ("engine: pmix\ntarget: {local: true}\nacount: x\n", "acount"),
        ("engine: pmix\ntarget: {local: true}\nimages: {runtime: docker}\n", "apptainer or podman"),
        ("- a list\n", "not a valid profile"),
        ("!!python/object:os.system {}\n", "not YAML"),
    ],
)
def test_a_wrong_profile_says_what_and_where(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        profiles.parse(text.encode(), "p", "p.yaml")
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_resources_are_taken_as_they_are_written() -> None:
    text = (
        "engine: pmix\ntarget: {local: true}\n"
        "resources: {time: 1:30:00, nodes: 2, qos: 1.10, memory: 4G, ntasks: 6, partition: null}\n"
    )
    assert profiles.parse(text.encode(), "p", "p.yaml").resources == Resources(
        time="1:30:00", nodes="2", qos="1.10", memory=4 << 30, ntasks=6
    )


def test_one_broken_file_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "hpcsh" / "profiles" / "dir.yaml").mkdir(parents=True)
    assert "dir" not in profiles.available()
    assert "lab-pmix" in profiles.available()


def test_what_is_said_now_counts_more_than_the_profile() -> None:
    base = Resources(account="a", partition="p", flags=("--gres=gpu:1",))
    said = Resources(partition="q", flags=("--exclusive",))
    assert said.over(base) == Resources(account="a", partition="q", flags=("--gres=gpu:1", "--exclusive"))


def test_errors_tell_what_why_and_fix() -> None:
    error = HpcshError("It broke.", why="The tool said so.", fix="do this")
    assert str(error).splitlines() == ["It broke.", "The tool said so.", "Fix: do this"]
