"""The store: what hpcsh must not forget, in SQLite, with every intent also as a small file of its own.

One writer at a time holds the lease. The intent files (fsync + rename) are written before an effect and
are enough to rebuild the database (design 6.9); so are the files of environments, which outlive sessions.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec

from hpcsh.errors import RefusedError
from hpcsh.model import Environment, Kind, Workload

log = logging.getLogger(__name__)

_NETWORK = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "fuse.sshfs", "afs"}


_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Record(msgspec.Struct, kw_only=True):
    """What the store knows of one submission.

    `phase` is "intent" (committed, outcome not known), "submitted", "refused" (Slurm said no, there is
    no job) or "ended" (the workload is final). `extra` belongs to the engine.
    """

    id: str
    profile: str
    target: str
    engine: str
    kind: Kind
    name: str
    phase: str
    created: float
    directory: str
    native_id: str = ""
    workload: Workload | None = None
    extra: dict[str, Any] = {}


class _Kept(msgspec.Struct):
    """The file of an environment."""

    target: str
    environment: Environment


def state_dir() -> Path:
    """`$XDG_STATE_HOME/hpcsh`, made 0700."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "hpcsh"
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    return base


def file_system(path: Path) -> str:
    """Type of the file system that holds `path`, from the kernel's mount table."""
    best, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, fstype, *_ = line.split(" ")
        mount = mount.encode().decode("unicode_escape")
        if (str(path.resolve()) + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
            best, kind = mount, fstype
    return kind


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file so that after a crash it is either old or new: write, fsync, rename, fsync."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Store:
    """Opened by the one process that writes. Raises `RefusedError` when another one holds the lease."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or state_dir() / "store"
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._intents = self.root / "intents"
        self._intents.mkdir(exist_ok=True, mode=0o700)
        self._environments = self.root / "environments"
        self._environments.mkdir(exist_ok=True, mode=0o700)
        self._lease = self._take_lease()
        try:
            try:
                self._db = self._open()
            except sqlite3.DatabaseError as error:
                # A full disk or a denied access is no damage, and nothing that moving a file away mends.
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                    raise
                self._set_aside(error)
                self._db = self._open()
            self.token = self._read_token()
            self._rebuild()
        except BaseException:
            os.close(self._lease)
            raise

    def _open(self) -> sqlite3.Connection:
        """The database, looked through for damage; it is closed when that fails."""
        db = sqlite3.connect(self.root / "store.db", check_same_thread=False, isolation_level=None)
        try:
            network = file_system(self.root) in _NETWORK
            db.execute(f"pragma journal_mode={'delete' if network else 'wal'}")
            # What must survive a power cut is in files of its own; WAL keeps the database itself sound.
            db.execute(f"pragma synchronous={'full' if network else 'normal'}")
            said = db.execute("pragma quick_check(1)").fetchone()[0]
            if said != "ok":
                damaged = sqlite3.DatabaseError(said)
                damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise damaged
            db.execute(
                "create table if not exists workloads"
                "(id text primary key, target text, native_id text, phase text, data blob)"
            )
            db.execute("create table if not exists environments(id text primary key, target text, data blob)")
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self, error: Exception) -> None:
        """Move a damaged database away, for whoever wants to look; `_rebuild` makes a new one."""
        aside = f"store.db.broken-{int(time.time())}"
        # The log goes first: left behind, it would be taken for the new database's.
        for end in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.root / f"store.db{end}", self.root / f"{aside}{end}")
        log.error("The store's database is damaged (%s); it is now %s, and built anew.", error, aside)

    def _take_lease(self) -> int:
        path = self.root / "lease"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(fd, 4096).decode("utf-8", "replace")
            os.close(fd)
            raise RefusedError(
                "Another hpcsh process writes this store.",
                why=f"Holder: {holder or 'unknown'} ({self.root})",
                fix="use hpcsh without --in-process, or stop that process with `hpcsh host stop`",
            ) from None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        os.ftruncate(fd, 0)
        holder_now = {"host": socket.gethostname(), "boot": boot, "pid": os.getpid()}
        os.pwrite(fd, json.dumps(holder_now).encode(), 0)
        return fd

    def _read_token(self) -> str:
        path = self.root / "token"
        if not path.exists():
            write_durably(path, secrets.token_hex(4).encode())
        return path.read_text()

    def _rebuild(self) -> None:
        """Take up every intent that the database does not know (it was lost, or never written).

        Of an environment the file is never older than the database.
        """
        known = {row[0] for row in self._db.execute("select id from workloads")}
        for path in self._intents.glob("*.json"):
            if path.stem not in known:
                self._put(msgspec.json.decode(path.read_bytes(), type=Record))
        for path in self._environments.glob("*.json"):
            kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            self._put_environment(kept.target, kept.environment)

    def close(self) -> None:
        """Close the database and give up the lease."""
        self._db.close()
        os.close(self._lease)

    def mark(self, workload_id: str) -> str:
        """The comment that ties a Slurm job to this store: `hpcsh:<store>:<id>` (design 6.1)."""
        return f"hpcsh:{self.token}:{workload_id}"

    def owned(self, comment: str) -> str | None:
        """The workload id in a job's comment when the job is this store's, else None."""
        head, _, workload_id = comment.strip().rpartition(":")
        return workload_id if head == f"hpcsh:{self.token}" and workload_id else None

    def commit_intent(self, record: Record) -> None:
        """Make an intent durable, before its effect is attempted."""
        write_durably(self._intents / f"{record.id}.json", msgspec.json.encode(record))
        self._put(record)

    def save(self, record: Record) -> None:
        """Store a record's new state."""
        self._put(record)

    def _put(self, record: Record) -> None:
        self._db.execute(
            "insert or replace into workloads values(?, ?, ?, ?, ?)",
            (record.id, record.target, record.native_id, record.phase, msgspec.json.encode(record)),
        )

    def get(self, workload_id: str) -> Record | None:
        """One record, or None."""
        row = self._db.execute("select data from workloads where id=?", (workload_id,)).fetchone()
        return msgspec.json.decode(row[0], type=Record) if row else None

    def records(self, target: str) -> list[Record]:
        """Every record of a target, oldest first."""
        rows = self._db.execute("select data from workloads where target=?", (target,)).fetchall()
        return sorted((msgspec.json.decode(r[0], type=Record) for r in rows), key=lambda r: r.created)

    def forget(self, workload_id: str) -> None:
        """Remove a record whose files and job are gone."""
        self._db.execute("delete from workloads where id=?", (workload_id,))
        (self._intents / f"{workload_id}.json").unlink(missing_ok=True)

    def put_environment(self, target: str, environment: Environment) -> None:
        """Store an environment's new state, durably."""
        path = self._environments / f"{environment.id}.json"
        data = msgspec.json.encode(_Kept(target, environment))
        if not path.exists() or path.read_bytes() != data:
            write_durably(path, data)
        self._put_environment(target, environment)

    def _put_environment(self, target: str, environment: Environment) -> None:
        self._db.execute(
            "insert or replace into environments values(?, ?, ?)",
            (environment.id, target, msgspec.json.encode(environment)),
        )

    def environments(self, target: str) -> list[Environment]:
        """Every environment of a target, oldest first."""
        rows = self._db.execute("select data from environments where target=?", (target,)).fetchall()
        return sorted((msgspec.json.decode(r[0], type=Environment) for r in rows), key=lambda e: e.created)

    def forget_environment(self, environment_id: str) -> None:
        """Remove an environment that is down and holds nothing any more."""
        (self._environments / f"{environment_id}.json").unlink(missing_ok=True)
        self._db.execute("delete from environments where id=?", (environment_id,))
