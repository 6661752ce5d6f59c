"""References, argv and errors: pure."""

# ruff: noqa: E501

from __future__ import annotations

import ast
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsh.errors import CommandError, NotFoundError, UsageError
from hpcsh.images import remote, runtime
from hpcsh.images.errors import explained
from hpcsh.images.reference import Reference, parse, prefixed
from hpcsh.model import Image

D = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("busybox", "docker://docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker://docker.io/library/busybox:1.36"),
        ("docker://busybox", "docker://docker.io/library/busybox:latest"),
        ("docker://index.docker.io/busybox", "docker://docker.io/library/busybox:latest"),
        ("user/app", "docker://docker.io/user/app:latest"),
        ("login:5000/python", "docker://login:5000/python:latest"),
        ("docker://login:5000/a/b_c/d-e:v1.2", "docker://login:5000/a/b_c/d-e:v1.2"),
        ("localhost/x", "docker://localhost/x:latest"),
        (f"ghcr.io/a/b@{D}", f"docker://ghcr.io/a/b@{D}"),
        (f"ghcr.io/a/b:1@{D}", f"docker://ghcr.io/a/b:1@{D}"),
        ("DOCKER://ghcr.io/a/b", "docker://ghcr.io/a/b:latest"),
        ("[::1]:5000/x", "docker://[::1]:5000/x:latest"),
        ("/images/x.sif", "/images/x.sif"),
        ("~/x.sif", "/home/me/x.sif"),
        ("docker-archive:/tmp/x.tar", "docker-archive:/tmp/x.tar"),
        ("oci-archive:~/x.tar", "oci-archive:/home/me/x.tar"),
        ("oras/x", "docker://docker.io/oras/x:latest"),
        ("instance", "docker://docker.io/library/instance:latest"),
        ("library:1", "docker://docker.io/library/library:1"),
    ],
)
def test_what_references_mean(text: str, canonical: str) -> None:
    assert parse(text, home="/home/me").canonical == canonical


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a b", "a;rm -rf /", "-x", "--help", "a\nb", "UPPER", "login:5000/Upper", "a:", "a@sha256:1", "a//b",
        "oras://x/y", "library://x", "shub://x/y", "ftp://x/y", "./x.sif", "x.sif", "../x", "docker-archive:x.tar",
        "oci:/x", "a:b:c", "docker://", "docker:x/y", "x/$(id)", "x/`id`", "é/x", "a:" + "t" * 200, "docker-daemon:x/y",
    ],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text, home="/home/me")


@pytest.mark.parametrize(
    ("text", "prefix", "root", "result"),
    [
        ("busybox", "docker://login:5000/", "", "docker://login:5000/busybox"),
        ("busybox", "docker://login:5000", "", "docker://login:5000busybox"),
        ("busybox", "", "docker://", "docker://busybox"),
        ("busybox", "docker://a/", "docker://b/", "docker://b/busybox"),
        ("/x.sif", "docker://", "", "/x.sif"),
        ("docker://x", "docker://a/", "", "docker://x"),
        ("oci-archive:/x", "docker://a/", "", "oci-archive:/x"),
        ("x.sif", "/images", "", "/images/x.sif"),
    ],
)
def test_the_prefix_rule(text: str, prefix: str, root: str, result: str) -> None:
    assert prefixed(text, prefix=prefix, image_root=root) == result


@given(st.text(max_size=60))
def test_any_text_is_a_safe_reference_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except UsageError:
        return
    assert not set(found.slug) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not found.slug.startswith((".", "-"))
    if found.kind == "docker":
        assert parse(found.canonical) == found


def run(**more: Any) -> runtime.ContainerRun:
    image = Image(reference="r", path="/pool/x.sif", runtime=more.pop("tool", "apptainer"))
    return runtime.ContainerRun(name="c", image=image, scratch="/d/local", rc="/d/ct/c.rc", **more)


def test_apptainer_is_isolated_and_gets_its_words() -> None:
    argv = runtime.container_argv(run(command=("echo",), args=("a b",), workdir="/w"))
    assert argv == [
        "apptainer", "--silent", "exec", "--containall", "--no-eval", "--cleanenv", "--writable-tmpfs",
        "--workdir", "/d/local/work/c", "--pwd", "/w", "/pool/x.sif", "echo", "a b",
    ]  # fmt: skip
    assert "run" in runtime.container_argv(run(args=("x",)))
    assert "--nv" not in argv
    assert "--nv" in runtime.container_argv(run(command=("x",), gpus="nvidia"))
    assert "--writable-tmpfs" not in runtime.container_argv(run(command=("x",), read_only_root=True))
    with_config = run(config={"WorkingDir": "/here", "Cmd": ["x"]})
    assert "/here" in runtime.container_argv(with_config)
    with pytest.raises(UsageError, match="neither ENTRYPOINT nor CMD"):
        runtime.container_argv(run(config={"Env": ["A=b"]}))


def test_secret_values_are_in_no_argv() -> None:
    env = (("KEY", "canary"), ("HOME", "/canary"), ("CR", "canary\r"))
    for tool in ("apptainer", "podman"):
        one = run(tool=tool, command=("x",), env=env, secret_env=frozenset({"KEY", "CR"}))
        assert not [
            w for w in runtime.container_argv(one) if w in ("canary", "canary\r") or "KEY=canary" in w
        ]
    with pytest.raises(UsageError, match="HOME"):
        runtime.container_argv(run(tool="podman", command=("x",), env=env, secret_env=frozenset({"HOME"})))


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
def test_the_file_of_variables_says_exactly_the_value(value: str) -> None:
    """bash reads `$'…'` as apptainer's own shell does."""
    data = runtime.rc_file(run(env=(("HOME", value),)))
    done = subprocess.run(
        ["bash", "-c", '. /dev/stdin; printf %s "$HOME"'], input=data, capture_output=True, check=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert done.stdout == value.encode()


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1))
def test_any_path_can_be_mounted(path: str) -> None:
    import csv

    (row,) = csv.reader([runtime.mount_option(runtime.Bind("/" + path, "/t" + path, True))])
    assert row == ["type=bind", f"source=/{path}", f"destination=/t{path}", "ro"]


def test_ranks_get_their_words_one_by_one() -> None:
    words = ["prog", "it's", "$HOME", ""]
    for image in ("/x.sif", "/x.rootfs", Image(reference="r", path="/x.sif", runtime="apptainer")):
        argv = runtime.rank_argv(image, words)
        assert argv[-4:] == words
        assert shlex.split(shlex.join(argv)) == argv
    assert runtime.rank_argv("/x.rootfs", ["p"])[0] == "bash"


@pytest.mark.parametrize("prepared", ["nothing", "ours", "link", "file", "other user's"])
def test_podmans_place_is_our_own_directory(tmp_path: Path, prepared: str) -> None:
    tools = {"podman": "echo ran", "stat": "echo ext2/ext3"}
    for name, line in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    place = tmp_path / f"hpcsh-podman-{os.geteuid()}"
    if prepared == "file":
        place.write_text("")
    elif prepared == "link":
        place.symlink_to(tmp_path)
    elif prepared != "nothing":
        place.mkdir()
    if prepared == "other user's":
        if os.geteuid():
            pytest.skip("only root can give a directory away")
        os.chown(place, 12345, -1)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    argv = runtime.rank_argv("/x.rootfs", ["p"])
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if prepared in ("nothing", "ours"):
        assert (done.stdout, done.stderr, done.returncode) == ("ran\n", "", 0)
        assert prepared == "ours" or place.stat().st_mode & 0o777 == 0o700
    else:
        assert (done.stdout, done.returncode) == ("", 126)
        assert str(place) in done.stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("HTTP 401 Unauthorized: authentication required", "does not let you read"),
        (
            "FATAL: unable to retrieve auth token: invalid username/password: unauthorized",
            "does not let you read",
        ),
        ("HTTP 404 Not Found: manifest unknown", "There is no image"),
        ("HTTP 429 Too Many Requests: toomanyrequests", "rate limit"),
        ("FATAL: write /x/y: no space left on device", "disk is full"),
        ("write failed: Disk quota exceeded", "disk is full"),
        ("https://login:5000: [SSL: WRONG_VERSION_NUMBER] wrong version number", "does not speak TLS"),
        ("http: server gave HTTP response to HTTPS client", "does not speak TLS"),
        ("https://h: [Errno 111] Connection refused", "Nothing answers"),
        ("dial tcp: lookup h: no such host", "cannot be found"),
        ("https://h: timed out", "cannot be reached"),
        ("certificate verify failed: self-signed", "certificate"),
        ("something else", "could not be brought"),
    ],
)
def test_what_a_failed_pull_means(words: str, what: str) -> None:
    error = explained("docker://h/x:1", {"words": words, "free": 5 << 20})
    assert isinstance(error, CommandError)
    assert what in error.what
    assert words.split(":")[0] in error.why


def test_a_file_that_is_not_there_and_tokens_in_addresses() -> None:
    error = explained("/x.sif", {"words": "/x.sif: No such file or directory", "errno": 2, "file": "/x.sif"})
    assert isinstance(error, NotFoundError)
    error = explained("x", {"words": "GET https://cdn/x?X-Amz-Signature=abcdef&token=hush: HTTP 403"})
    assert "hush" not in str(error)
    assert "abcdef" not in str(error)


def test_the_remote_part_is_one_program_of_the_standard_library() -> None:
    ast.parse(remote.source(), feature_version=(3, 6))
    assert "from hpcsh" not in remote.source()
    assert len(remote.source()) < 100_000


def test_a_reference_is_not_confused_with_another() -> None:
    assert Reference(kind="docker", registry="a", repository="b_c", tag="d").slug != parse("a.b/c:d").slug
