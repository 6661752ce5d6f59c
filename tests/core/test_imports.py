"""A command line stays quick because it imports little: seen from outside, in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"textual", "prompt_toolkit", "rich", "paramiko", "jinja2", "kubernetes", "grpc", "pydantic"}


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(chr(10).join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return set(out.split())


@pytest.mark.parametrize(
    "code",
    [
        "import hpcsh.cli",
        "import hpcsh.client",
        "import hpcsh.console, hpcsh.verbs.registry as r; r.verbs()",
        "from hpcsh.verbs.registry import find, parser; parser(find('ps')).parse_args([])",
    ],
)
def test_a_verb_needs_no_ui_and_no_cluster_library(code: str) -> None:
    assert not modules_after(code) & HEAVY


def test_the_version_needs_next_to_nothing() -> None:
    loaded = modules_after("import hpcsh.cli; hpcsh.cli.main(['--version'])")
    assert not loaded & (HEAVY | {"asyncio", "msgspec", "cyclopts", "json", "yaml"})


@pytest.mark.parametrize(
    "layer", ["pods", "slurm", "images", "engines", "session", "boundary", "store", "host"]
)
def test_no_room_below_the_front_ends_imports_a_ui_library(layer: str) -> None:
    code = (
        "import importlib, pkgutil\n"
        f"m = importlib.import_module('hpcsh.{layer}')\n"
        "for i in pkgutil.walk_packages(getattr(m, '__path__', []), m.__name__ + '.'):\n"
        "    if not i.name.endswith(('__main__', '.agent')): importlib.import_module(i.name)\n"
    )
    assert not modules_after(code) & {"textual", "prompt_toolkit", "rich"}
