from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcsh.errors import RefusedError
from hpcsh.model import Kind
from hpcsh.store import Record, Store, file_system


def record(name: str, created: float = 1.0) -> Record:
    return Record(
        id=name, profile="p", target="lab:x", engine="virtual_node", kind=Kind.POD, name=name,
        phase="intent", created=created, directory=f"/home/alice/.hpcsh/jobs/{name}",
    )  # fmt: skip


def test_what_was_stored_is_there_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit_intent(record("a", 2.0))
    store.commit_intent(record("b", 1.0))
    token = store.token
    store.close()
    again = Store(tmp_path)
    assert [r.id for r in again.records("lab:x")] == ["b", "a"]
    assert again.records("lab:y") == []
    assert again.token == token
    again.close()


def test_the_intents_alone_rebuild_a_lost_database(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit_intent(record("a"))
    store.close()
    for path in tmp_path.glob("store.db*"):
        path.unlink()
    again = Store(tmp_path)
    assert again.get("a") == record("a")
    again.forget("a")
    again.close()
    assert not list((tmp_path / "intents").iterdir())


def test_one_writer(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RefusedError, match="Another hpcsh process") as caught:
        Store(tmp_path)
    assert str(os.getpid()) in caught.value.why
    store.close()
    Store(tmp_path).close()


def test_the_lease_of_a_killed_writer_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from hpcsh.store import Store;"
        f"Store(Path({str(tmp_path)!r})); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    Store(tmp_path).close()


def test_only_its_own_mark_is_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.owned(store.mark("a")) == "a"
    for foreign in ("", "hpcsh::a", "hpcsh:00000000:a", f"x hpcsh:{store.token}:a", f"hpcsh:{store.token}:"):
        assert store.owned(foreign) is None
    store.close()


def test_files_are_private(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.commit_intent(record("a"))
    store.close()
    for path in (tmp_path / "s").rglob("*"):
        assert not path.stat().st_mode & 0o077 or path.name.startswith("store.db"), path
    assert not (tmp_path / "s").stat().st_mode & 0o077


def test_the_file_system_is_known() -> None:
    assert file_system(Path("/proc/self")) == "proc"
