"""What is missing is named, with the way to get it, before anything is begun."""

from __future__ import annotations

import os
import subprocess

import pytest

from hpcsh.errors import UnavailableError
from hpcsh.lab import requirements, userns


@pytest.fixture
def machine_without_tools(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """No tool is installed, and apt-get fails; the commands that were tried."""
    tried: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        tried.append(command)
        return subprocess.CompletedProcess(command, 100)

    monkeypatch.setattr(userns, "which", lambda tool: "/usr/bin/apt-get" if tool == "apt-get" else None)
    monkeypatch.setattr(requirements.subprocess, "run", run)
    return tried


def test_root_installs_what_is_missing_or_names_it(
    machine_without_tools: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UnavailableError) as refused:
        requirements.check(build=True)
    assert [c[:2] for c in machine_without_tools] == [
        ["apt-get", "install"], ["apt-get", "update"], ["apt-get", "install"],
    ]  # fmt: skip
    assert refused.value.exit_code == 77
    assert "mmdebstrap" in refused.value.why
    assert refused.value.fix == "apt-get install -y mmdebstrap tar"


def test_an_ordinary_user_is_told_all_at_once(
    machine_without_tools: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(UnavailableError) as refused:
        requirements.check(build=True)
    assert machine_without_tools == []
    assert refused.value.fix.splitlines()[0] == "sudo apt-get install -y mmdebstrap tar uidmap"
    assert "usermod --add-subuids" in refused.value.fix
    assert "usermod --add-subgids" in refused.value.fix


def test_a_kernel_that_refuses_namespaces_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(requirements, "_refused", lambda flags: "unshare: Operation not permitted")
    switches = {"/proc/sys/user/max_user_namespaces": "0"}
    monkeypatch.setattr(requirements, "_contents", lambda path: switches.get(path, ""))
    with pytest.raises(UnavailableError) as refused:
        requirements.check(build=False)
    assert "Operation not permitted" in refused.value.why
    assert refused.value.fix == "sudo sysctl -w user.max_user_namespaces=15000"
