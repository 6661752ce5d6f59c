from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Hpcsh = Callable[..., "subprocess.CompletedProcess[bytes]"]

PROFILE = """\
engine: {engine}
target: {{lab: {lab}}}
resources: {{account: science, partition: debug, time: "10"}}
images: {{plain_http: ["login:5000"]}}
poll: {{floor: 1}}
"""


@pytest.fixture(scope="module")
def places(lab: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which hpcsh has its own configuration, store and session host, on the test lab."""
    base = tmp_path_factory.mktemp("hpcsh")
    profiles = base / "config" / "hpcsh" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "pods.yaml").write_text(PROFILE.format(engine="virtual_node", lab=lab))
    (profiles / "mpi.yaml").write_text(PROFILE.format(engine="pmix", lab=lab))
    state = os.environ.get("HPCSH_LAB_STATE")
    if state is None:
        from hpcsh.lab.paths import state_root

        state = str(state_root())
    env = dict(
        os.environ,
        HPCSH_LAB_STATE=state,
        XDG_CONFIG_HOME=str(base / "config"),
        XDG_STATE_HOME=str(base / "state"),
        HPCSH_RUNTIME_DIR=str(base / "run"),
        HPCSH_PROFILE="pods",
    )
    yield env
    subprocess.run([sys.executable, "-m", "hpcsh", "clean", "--all", "-y"], env=env, check=False)
    subprocess.run([sys.executable, "-m", "hpcsh", "host", "stop"], env=env, check=True)


@pytest.fixture
def hpcsh(places: dict[str, str], tmp_path: Path) -> Hpcsh:
    """Run one command line: `hpcsh("ps", "--json")`; `stdin=` bytes, `code=` the exit code it must have."""

    def run(
        *words: str, stdin: bytes = b"", code: int | None = 0, timeout: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "hpcsh", *words],
            input=stdin, capture_output=True, env=places, cwd=tmp_path, timeout=timeout, check=False,
        )  # fmt: skip
        if code is not None:
            assert done.returncode == code, (words, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return done

    return run
