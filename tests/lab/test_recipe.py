"""What the lab is built from, without building it."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from hpcsh.errors import UsageError
from hpcsh.lab import build, config, images, oci, paths, recipe, userns

DEB822 = """\
Types: deb
URIs: https://third.example/apt
Suites: stable
Components: extra

Types: deb
# http://old.example/debian
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "os-release").write_text("NAME=x\nID=debian\n")
    return tmp_path


def mirror(apt: Path) -> str | None:
    return recipe.mirror(apt, apt / "os-release")


def test_the_mirror_of_deb822_sources(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    assert mirror(apt) == "http://mirror.example/debian"


def test_a_disabled_stanza_is_no_mirror(apt: Path) -> None:
    text = DEB822.replace("Components: main contrib", "Components: main contrib\nEnabled: no")
    (apt / "sources.list.d/debian.sources").write_text(text)
    assert mirror(apt) is None


def test_the_mirror_of_a_one_line_list(apt: Path) -> None:
    (apt / "sources.list").write_text(
        "# deb http://no.example/debian bookworm main\n"
        "deb http://security.example/debian-security bookworm-security main\n"
        "deb [arch=amd64 signed-by=/k] http://one.example/debian bookworm main non-free\n"
    )
    assert mirror(apt) == "http://one.example/debian"


def test_another_distribution_leaves_the_mirror_to_mmdebstrap(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    (apt / "os-release").write_text("ID=ubuntu\nID_LIKE=debian\n")
    assert mirror(apt) is None
    assert mirror(apt / "nowhere") is None


def test_progress_is_what_apt_and_dpkg_said() -> None:
    follower = build.Follower()
    said = [
        follower.feed(line)
        for line in (
            "I: downloading packages with apt...",
            "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.",
            "Need to get 30.3 MB of archives.",
            "Get:1 http://mirror trixie/main amd64 tini amd64 [255 kB]",
            "Get:2 http://mirror trixie/main amd64 tcsh amd64 [430 kB]",
            "Unpacking tini (0.19.0-3) ...",
            "Setting up tini (0.19.0-3) ...",
            "hpcsh: apptainer did not install",
        )
    ]
    assert said[3:7] == [
        "1 of 2 packages fetched (30.3 MB)",
        "2 of 2 packages fetched (30.3 MB)",
        "1 of 2 packages unpacked",
        "1 of 2 packages installed",
    ]
    assert follower.notices == ["apptainer did not install"]


def test_an_archive_that_tools_can_read(tmp_path: Path) -> None:
    layer = oci.Layer(tmp_path / "layer.gz")
    layer.directory("tmp", 0o1777)
    layer.file("bin/x", b"#!/bin/sh\n", 0o755)
    layer.link("bin/y", "x")
    layer.link("bin/x", "never")
    diff_id = layer.close()
    oci.write_archive(tmp_path / "image.tar", layer.path, diff_id, {"Cmd": ["x"]})
    with tarfile.open(tmp_path / "image.tar") as archive:
        index = json.load(archive.extractfile("index.json"))  # type: ignore[arg-type]
        blob = index["manifests"][0]["digest"].replace(":", "/")
        manifest = json.load(archive.extractfile(f"blobs/{blob}"))  # type: ignore[arg-type]
        assert f"blobs/{manifest['layers'][0]['digest'].replace(':', '/')}" in archive.getnames()
        described = manifest["config"]["digest"].replace(":", "/")
        document = json.load(archive.extractfile(f"blobs/{described}"))  # type: ignore[arg-type]
    assert document["rootfs"]["diff_ids"] == [diff_id]
    assert document["config"] == {"Cmd": ["x"]}
    with tarfile.open(tmp_path / "layer.gz") as tree:
        assert {m.name: m.mode for m in tree} == {"tmp": 0o1777, "bin/x": 0o755, "bin/y": 0o777}


def test_keys_change_with_what_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = images.key()
    monkeypatch.setitem(images.RECIPES, "busybox", images.Recipe(config={"Cmd": ["ash"]}))
    assert images.key() != before
    assert len(recipe.key()) == 12


@pytest.mark.parametrize("name", ["", "Foo", "a/b", "..", "-a", "a-", "a" * 33, "a b", "a\n"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        paths.lab_dir(name)


@pytest.mark.parametrize("count", [0, -1, 201])
def test_a_bad_number_of_nodes_is_refused(count: int) -> None:
    with pytest.raises(UsageError):
        config.node_names(count)


def test_addresses_are_unique() -> None:
    nodes = config.all_nodes(config.MAX_NODES)
    assert len({config.address(n) for n in nodes} | {config.BRIDGE}) == len(nodes) + 1


@pytest.mark.parametrize("ids", [65_537, 100_001, 200_000, 262_144, 4_294_967_295])
def test_subordinate_ids_fit_and_do_not_overlap(ids: int) -> None:
    can = config.Abilities(cgroups=False, gpus=True, fuse=True, ids=ids)
    lines = config.files(config.Settings("x"), can)["etc/subuid"].split()
    ranges = sorted((int(f), int(f) + int(n)) for _, f, n in (line.split(":") for line in lines))
    assert ranges[0][1] <= ranges[1][0]
    assert ranges[1][1] <= ids
    assert ranges[0][0] > max(config.USERS.values())


def test_without_cgroups_slurm_does_not_ask_for_them() -> None:
    can = config.Abilities(cgroups=False, gpus=False, fuse=False, ids=65_537)
    made = config.files(config.Settings("x", 5), can)
    assert "cgroup" not in made["etc/slurm/slurm.conf"]
    assert "$" not in made["etc/slurm/slurm.conf"]
    assert "n[1-5]" in made["etc/slurm/slurm.conf"]
    assert "gpu" not in made["etc/slurm/slurm.conf"]
    assert made["etc/slurm/cgroup.conf"] == "CgroupPlugin=disabled\n"


def test_subordinate_ranges_of_a_user(tmp_path: Path) -> None:
    (tmp_path / "subuid").write_text("other:1:2\njo:100000:65536\n1000:300000:10\njo:bad:1\n")
    assert userns.subordinate(tmp_path / "subuid", 1000, "jo") == [(100000, 65536), (300000, 10)]
    assert userns.subordinate(tmp_path / "none", 1000, "jo") == []


def test_paths_need_nothing_but_the_standard_library() -> None:
    heavy = "('jinja2', 'paramiko', 'ctypes', 'subprocess')"
    code = f"import sys, hpcsh.lab.paths; print([m for m in sys.modules if m in {heavy}])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
