from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance", ROOT / "tools" / "conformance.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_that_nothing_holds_is_found(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_one(): ...")
    rows = [
        {"id": "1", "rule": "r", "tests": ["test_a.py::test_one"]},
        {"id": "2", "rule": "r", "tests": ["test_a.py::test_gone"]},
        {"id": "3", "rule": "r", "tests": []},
        {"id": "1", "rule": "r", "tests": ["test_a.py::test_one"]},
    ]
    assert tool.problems([{"title": "t", "rows": rows}], tmp_path) == [
        "2: there is no test test_a.py::test_gone",
        "3: no test",
        "1: used twice",
    ]
