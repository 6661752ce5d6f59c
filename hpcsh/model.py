"""The nouns of hpcsh: what verbs take and return, the same in every process and on every wire.

All are msgspec structs, so they cross the session host's socket and become `--json` unchanged.
Times are Unix seconds (float), durations seconds, memory bytes, unless a name says otherwise.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class State(StrEnum):
    """The state of a workload or of one of its parts. The scheduler's own word stands in `native_state`."""

    SUBMITTING = "submitting"
    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @property
    def terminal(self) -> bool:
        """True for a state that never changes again."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Kind(StrEnum):
    """What a workload, or an element of one, is."""

    POD = "pod"
    CONTAINER = "container"
    JOB = "job"
    LAUNCH = "launch"
    ALLOCATION = "allocation"


class Resources(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job asks the scheduler for. None means: not said, the next layer or the site decides.

    `flags` are further sbatch options in sbatch's own spelling (`--gres=gpu:1`), validated by
    `slurm.options` before anything is changed.
    """

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    nodes: str | None = None
    ntasks: int | None = None
    cpus_per_task: int | None = None
    memory: int | None = None
    gpus: str | None = None
    nodelist: str | None = None
    job_name: str | None = None
    dependency: str | None = None
    chdir: str | None = None
    flags: tuple[str, ...] = ()

    def over(self, base: Resources) -> Resources:
        """These values where they are said, `base`'s elsewhere; flags of both, ours last."""
        mine = {f: getattr(self, f) for f in self.__struct_fields__}
        theirs = {f: getattr(base, f) for f in self.__struct_fields__}
        merged: dict[str, Any] = {k: v if v is not None else theirs[k] for k, v in mine.items()}
        merged["flags"] = (*base.flags, *self.flags)
        return Resources(**merged)


class File(msgspec.Struct, frozen=True):
    """A file that a front end read for the user: its name as the user wrote it and its bytes."""

    name: str
    data: bytes


class SubmitSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What `submit` and `run` ask for.

    Either `file` is given (a batch script or a Kubernetes manifest; the engine tells which by its content),
    or `image`/`command` describe the short form `run [--image I] -- CMD`. `args` go to the batch script.
    """

    file: File | None = None
    args: tuple[str, ...] = ()
    image: str | None = None
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    name: str | None = None
    resources: Resources = Resources()
    inherit_env: bool | None = None
    """Take over the login environment of the target; None: as the profile says (default: no)."""
    cwd: str | None = None
    """Directory on the target in which the job starts; None: the home directory."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Something a user submitted, or a part of it (a pod's containers are its `children`).

    `ours` is False for a job that hpcsh did not start: it can be shown, followed and cancelled, and is
    never cleaned. `id` is hpcsh's id for ours and the scheduler's job id for others.
    """

    id: str
    name: str
    kind: Kind
    state: State
    ours: bool = True
    engine: str = ""
    native_id: str = ""
    native_state: str = ""
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    """The program's own exit status, or 128 + n when signal n ended it; never 0 for one that failed."""
    user: str = ""
    partition: str = ""
    nodes: str = ""
    node_count: int = 0
    cpus: int = 0
    image: str = ""
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    time_limit: float | None = None
    directory: str = ""
    """Where its files are on the target."""
    environment: str = ""
    """For a launch: the environment (DVM) it runs in."""
    children: tuple[Workload, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler last said. `stale` tells why nothing newer could be had ("" when it is fresh)."""

    workloads: tuple[Workload, ...]
    as_of: float
    stale: str = ""


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `show` knows: the workload, ordered facts, and the exact script that runs."""

    workload: Workload
    facts: tuple[tuple[str, str], ...] = ()
    script: str = ""
    as_of: float = 0.0


class PlannedFile(msgspec.Struct, frozen=True):
    """A file that a submission writes on the target. `data` is None where it is secret."""

    path: str
    mode: int
    size: int
    data: bytes | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What would happen: the command lines in order, the batch script and the files beside it."""

    title: str
    commands: tuple[tuple[str, ...], ...] = ()
    script: str = ""
    files: tuple[PlannedFile, ...] = ()
    warnings: tuple[str, ...] = ()


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """kubectl's options for `logs`: container ("" = the only one), follow, last `tail` lines."""

    container: str = ""
    follow: bool = False
    tail: int | None = None
    all_containers: bool = False


class LogChunk(msgspec.Struct, frozen=True):
    """Bytes of one log, exact. `source` names the container, or is "" for a plain job. `stream` is 1 or 2."""

    source: str
    data: bytes
    stream: int = 1


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A step of something long. `status` is "start", "running", "done", "failed" or "info".

    `done`/`total` count `unit`s where they are known; they are measured, never guessed.
    """

    step: str
    status: str = "running"
    message: str = ""
    done: int | None = None
    total: int | None = None
    unit: str = ""
    seconds: float | None = None


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image in the pool on the target. `reference` is what the user pulls, `path` where it lies."""

    reference: str
    path: str
    size: int = 0
    digest: str = ""
    runtime: str = ""
    pulled: float = 0.0


class EnvironmentState(StrEnum):
    """The life of what `up` and `down` manage."""

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    DOWN = "down"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What `up` started, here a DVM on a Slurm allocation. `native_id` is the allocation's job id."""

    id: str
    name: str
    engine: str
    state: EnvironmentState
    native_id: str = ""
    nodes: tuple[str, ...] = ()
    slots: int = 0
    uri: str = ""
    """Path of the DVM's URI file on the target."""
    created: float = 0.0
    ends: float | None = None
    message: str = ""
    directory: str = ""


class UpSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What `up` asks for: a name and the allocation's resources."""

    name: str = "default"
    resources: Resources = Resources()


class LaunchSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A parallel launch. `options` are PRRTE's own, `program` the argv of each rank.

    With `image` every rank runs inside it. `tool` is "prun" (into the environment `environment`) or
    "prterun" (in that environment's allocation when there is one, else in a job of its own).
    """

    tool: str
    options: tuple[str, ...] = ()
    program: tuple[str, ...]
    image: str | None = None
    environment: str = ""
    resources: Resources = Resources()
    cwd: str | None = None
    timeout: float | None = None


class LaunchFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a running launch: output (`stream` 1 or 2), a message of ours (`stream` 0), or the end.

    The last frame has `exit_code`.
    """

    stream: int = 0
    data: bytes = b""
    exit_code: int | None = None
    workload: Workload | None = None


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A compute node. Counts are cpus and bytes; `reason` is why it is drained or down."""

    name: str
    state: str
    partitions: tuple[str, ...] = ()
    cpus: int = 0
    cpus_used: int = 0
    memory: int = 0
    memory_free: int | None = None
    gres: str = ""
    reason: str = ""


class Severity(StrEnum):
    """How bad a finding is: `ok` is said too, so that `doctor` shows what it looked at."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What `doctor` found: a stable id, how bad it is, what it is, and how to fix it."""

    id: str
    severity: Severity
    what: str
    fix: str = ""


class CleanItem(msgspec.Struct, frozen=True, kw_only=True):
    """Something of ours that `clean` removes: what it is ("directory", "job", "environment"), which, why."""

    kind: str
    target: str
    detail: str = ""
    size: int = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for each of several things: `done` names, and `failed` (name, reason) pairs."""

    done: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    message: str = ""


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An opened session: its profile, engine, target and what it can do."""

    profile: str
    engine: str
    target: str
    user: str
    capabilities: tuple[str, ...]
    description: str = ""
    host_pid: int | None = None
    """Process id of the session host; None when the session lives in the front end."""
