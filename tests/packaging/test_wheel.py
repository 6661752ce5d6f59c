"""`pip install` somewhere else works without the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


def test_profiles_examples_recordings_and_templates_travel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("profiles", "examples", "recordings"):
        here = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()}
        assert here <= {n.removeprefix("hpcsh/data/") for n in names}, folder
    code = {p.relative_to(ROOT).as_posix() for p in (ROOT / "hpcsh").rglob("*") if p.is_file()}
    assert {p for p in code if "__pycache__" not in p} <= names


def test_it_runs_where_there_is_no_source_tree(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "pip"), "install", "-q", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HPCSH", "PYTHON", "XDG"))}
    env |= {"HOME": str(tmp_path), "HPCSH_RUNTIME_DIR": str(tmp_path / "run")}

    def hpcsh(*words: str) -> str:
        argv = [str(venv / "bin" / "hpcsh"), *words]
        return subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert hpcsh("--version").startswith("hpcsh ")
    assert "lab-virtual-node" in hpcsh("profiles")
    assert "hpcsh lab up" in hpcsh("lab", "status")
    where = "import hpcsh.resources as r; print(r.shipped('profiles'))"
    shown = subprocess.run([str(venv / "bin" / "python"), "-c", where], cwd=tmp_path, env=env, check=True,
                           capture_output=True, text=True).stdout  # fmt: skip
    assert str(venv) in shown
