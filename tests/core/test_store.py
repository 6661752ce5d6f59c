from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcsh.errors import RefusedError
from hpcsh.model import Environment, EnvironmentState, Kind
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


def environment(name: str, state: EnvironmentState = EnvironmentState.READY) -> Environment:
    return Environment(id=name, name=name, engine="pmix", state=state, native_id="7", uri="/h/dvm.uri")


def test_a_lost_database_still_knows_environments(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("e", "f"):
        store.put_environment("lab:x", environment(name, EnvironmentState.PENDING))
    store.put_environment("lab:x", environment("e"))
    store.forget_environment("f")
    store.close()
    for path in tmp_path.glob("store.db*"):
        path.unlink()
    again = Store(tmp_path)
    assert again.environments("lab:x") == [environment("e")]
    assert again.environments("lab:y") == []
    again.forget_environment("e")
    again.close()
    assert not list((tmp_path / "environments").iterdir())
    Store(tmp_path).close()


@pytest.mark.parametrize("damage", ["all", "head", "page", "empty log"])
def test_a_damaged_database_is_set_aside_and_built_anew(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    for n in range(200):
        store.commit_intent(record(f"w{n}"))
    store.put_environment("lab:x", environment("e"))
    token = store.token
    store.close()
    database = tmp_path / "store.db"
    good = database.read_bytes()
    bad = {
        "all": b"\x5a" * len(good),
        "head": b"not a database" + good[14:],
        "page": good[:4096] + b"\xff" * 8192 + good[12288:],
        "empty log": b"\x5a" * 100,
    }[damage]
    database.write_bytes(bad)
    if damage == "empty log":
        (tmp_path / "store.db-wal").write_bytes(b"")
    before = int(time.time())
    again = Store(tmp_path)
    assert len(again.records("lab:x")) == 200
    assert again.environments("lab:x") == [environment("e")]
    assert again.token == token
    again.save(record("w0"))
    again.close()
    aside = next(p for p in tmp_path.glob("store.db.broken-*") if p.name.count("-") == 1)
    assert int(aside.name.rpartition("-")[2]) >= before
    assert aside.read_bytes() == bad
    Store(tmp_path).close()
    assert len([p for p in tmp_path.glob("store.db.broken-*") if p.name.count("-") == 1]) == 1


def test_a_database_that_cannot_be_opened_is_not_taken_for_damaged(tmp_path: Path) -> None:
    (tmp_path / "store.db").mkdir()
    with pytest.raises(sqlite3.OperationalError):
        Store(tmp_path)
    assert not list(tmp_path.glob("store.db.broken-*"))
    (tmp_path / "store.db").rmdir()
    Store(tmp_path).close()


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
    store.put_environment("lab:x", environment("e"))
    store.close()
    for path in (tmp_path / "s").rglob("*"):
        assert not path.stat().st_mode & 0o077 or path.name.startswith("store.db"), path
    assert not (tmp_path / "s").stat().st_mode & 0o077


def test_the_file_system_is_known() -> None:
    assert file_system(Path("/proc/self")) == "proc"
