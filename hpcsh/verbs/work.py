"""Verbs about work: submit it, see it, read its logs, end it."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from contextlib import aclosing
from typing import Annotated

from cyclopts import Parameter

from hpcsh.errors import FAILED, OK, PARTIAL, TargetError, UsageError
from hpcsh.model import LogOptions, Plan, Resources, Snapshot, State, SubmitSpec, Workload
from hpcsh.session import Session
from hpcsh.verbs.context import Front, VerbContext
from hpcsh.verbs.flags import SbatchFlags, image_and_command, script_and_args
from hpcsh.verbs.output import Cell, duration, moment, size
from hpcsh.verbs.registry import Risk, verb
from hpcsh.verbs.sessions import Json

DryRun = Annotated[
    bool, Parameter(name=["--dry-run"], negative="", help="Print the exact script and commands; do nothing.")
]
Inherit = Annotated[
    bool | None,
    Parameter(name=["--inherit-env"], negative="", help="Give the job the login environment (default: no)."),
]
Follow = Annotated[
    bool, Parameter(name=["--follow", "-f"], negative="", help="Go on until the workload ends.")
]
Yes = Annotated[bool, Parameter(name=["--yes", "-y"], negative="", help="Do not ask.")]


@verb(risk=Risk.COST, needs="submit", aliases=("apply", "sbatch"), split=script_and_args)
async def submit(
    file: str,
    /,
    *args: Annotated[str, Parameter(allow_leading_hyphen=True)],
    flags: SbatchFlags | None = None,
    inherit_env: Inherit = None,
    dry_run: DryRun = False,
    json: Json = False,
    context: VerbContext,
) -> int:
    """Submit a batch script or a Kubernetes manifest.

    Parameters
    ----------
    file
        The script or manifest here, `-` for standard input. Its `#SBATCH` lines count as with sbatch.
    args
        Arguments of the script: all that follows its name.
    """
    resources = flags.resources() if flags else Resources()
    content = context.read(file)
    if not content.data.strip():
        raise UsageError(f"{'standard input' if file == '-' else file} is empty.")
    spec = SubmitSpec(
        file=content, args=args, resources=resources, inherit_env=inherit_env, cwd=resources.chdir
    )
    return await _submit(context, spec, dry_run=dry_run, json=json)


@verb(risk=Risk.COST, needs="run", split=image_and_command)
async def run(
    image: str = "",
    /,
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    flags: SbatchFlags | None = None,
    image_option: Annotated[str, Parameter(name=["--image"], help="The image, said as prun has it.")] = "",
    env: Annotated[list[str] | None, Parameter(name=["--env", "-e"], negative="")] = None,
    detach: Annotated[bool, Parameter(name=["--detach"], negative="")] = False,
    inherit_env: Inherit = None,
    dry_run: DryRun = False,
    json: Json = False,
    context: VerbContext,
) -> int:
    """Run a command on the cluster, in an image or without one: `run [IMAGE] [flags] -- COMMAND`.

    Waits for it, prints its output and ends with its exit code.

    Parameters
    ----------
    image
        Image to run in; without it the command runs on the node itself.
    command
        The command; without it the image's own entry point.
    env
        NAME=VALUE for the command; may be repeated.
    detach
        Print the id and return at once.
    """
    image = image or image_option
    if not image and not command:
        raise UsageError("run: nothing to run.", fix="`hpcsh run IMAGE -- COMMAND` or `hpcsh run -- COMMAND`")
    resources = flags.resources() if flags else Resources()
    spec = SubmitSpec(
        image=image or None, command=command, env=_pairs(env or []), resources=resources,
        name=resources.job_name, inherit_env=inherit_env, cwd=resources.chdir,
    )  # fmt: skip
    if dry_run or detach:
        return await _submit(context, spec, dry_run=dry_run, json=json)
    session = await context.session()
    workload = await session.submit(spec)
    context.out.note(f"{workload.id} is job {workload.native_id}")
    try:
        await _follow(context, session, workload.id, 2 if json else 1)
        (workload,) = await session.wait([workload.id])
    except (asyncio.CancelledError, BrokenPipeError):
        await session.cancel([workload.id])
        context.out.note(f"cancelled {workload.id}")
        raise
    if json:
        context.out.data(workload)
        return exit_status(workload)
    return _tell_end(context, workload)


async def _follow(context: Front, session: Session, ref: str, stream: int) -> None:
    """Print a log to its end; where the session host is lost, go on with the next at the same byte."""
    seen = 0
    for patience in (2, 1, 0):
        skip = seen
        try:
            async with aclosing(session.logs(ref, LogOptions(follow=True))) as chunks:
                async for chunk in chunks:
                    fresh = chunk.data[skip:]
                    skip -= len(chunk.data) - len(fresh)
                    seen += len(fresh)
                    if fresh:
                        context.out.raw(fresh, stream)
            return
        except TargetError:
            if not patience:
                context.out.note(f"{ref} goes on: `hpcsh logs -f {ref}`")
                raise


def _pairs(words: list[str]) -> dict[str, str]:
    for word in words:
        if not word.partition("=")[0] or "=" not in word:
            raise UsageError(f"--env {word}: not NAME=VALUE.")
    return dict(word.split("=", 1) for word in words)


async def _submit(context: Front, spec: SubmitSpec, *, dry_run: bool, json: bool) -> int:
    session = await context.session()
    if dry_run:
        tell_plan(context, await session.plan(spec), json=json)
        return OK
    workload = await session.submit(spec)
    if json:
        context.out.data(workload)
    else:
        context.out.line(workload.id)
        context.out.note(f"{workload.kind} {workload.name} is job {workload.native_id}")
    return OK


def tell_plan(context: Front, plan: Plan, *, json: bool) -> None:
    """Print what would happen; secrets are named, not shown."""
    out = context.out
    if json:
        out.data(plan)
        return
    out.line(f"# {plan.title}")
    for warning in plan.warnings:
        out.line(f"# warning: {warning}")
    for f in plan.files:
        what = "secret" if f.data is None else size(f.size)
        out.line(f"# file {f.path} ({f.mode:04o}, {what})")
    for command in plan.commands:
        out.line("$ " + shlex.join(command))
    if plan.script:
        out.line("# the script:")
        out.raw(plan.script.encode("utf-8", "surrogateescape"))


@verb(risk=Risk.READ, needs="ps", aliases=("get", "squeue"))
async def ps(
    *,
    mine: Annotated[bool, Parameter(name=["--mine"], negative="")] = False,
    active: Annotated[bool, Parameter(name=["--active"], negative="")] = False,
    json: Json = False,
    context: VerbContext,
) -> int:
    """List workloads: yours by hpcsh, and your other jobs (marked with `·`).

    Parameters
    ----------
    mine
        Only what hpcsh started.
    active
        Only what has not ended.
    """
    session = await context.session()
    snapshot = await session.workloads(mine_only=mine, fresh=True)
    shown = tuple(w for w in snapshot.workloads if not (active and w.state.terminal))
    if json:
        context.out.data(Snapshot(workloads=shown, as_of=snapshot.as_of, stale=snapshot.stale))
        return OK
    rows = [row for w in shown for row in _rows(w, snapshot.as_of)]
    context.out.table(
        ["", "ID", "NAME", "KIND", "STATE", "EXIT", "JOB", "NODES", "ELAPSED", "LIMIT", "REASON"],
        rows,
        empty="No workloads.",
    )
    tell_age(context, snapshot)
    return OK


def tell_age(context: Front, snapshot: Snapshot) -> None:
    """Say how old an answer is that is not from just now, and why nothing newer could be had."""
    age = time.time() - snapshot.as_of
    if snapshot.stale or age > 5:
        why = f": {snapshot.stale}" if snapshot.stale else ""
        context.out.note(f"as of {moment(snapshot.as_of)}, {duration(age)} ago{why}")


def _rows(w: Workload, now: float, depth: int = 0) -> list[list[Cell]]:
    elapsed = (w.ended or now) - w.started if w.started else None
    first: list[Cell] = [
        "" if w.ours else "·", "" if depth else w.id, "  " * depth + w.name, w.kind, w.state,
        "" if w.exit_code is None else str(w.exit_code), w.native_id, w.nodes, duration(elapsed),
        duration(w.time_limit), w.reason,
    ]  # fmt: skip
    return [first, *(row for child in w.children for row in _rows(child, now, depth + 1))]


@verb(risk=Risk.READ, needs="show", aliases=("describe",))
async def show(
    ref: str,
    /,
    *,
    script: Annotated[bool, Parameter(name=["--script"], negative="")] = False,
    json: Json = False,
    context: VerbContext,
) -> int:
    """Show all facts about a workload.

    Parameters
    ----------
    ref
        Its id or the beginning of it, its name, or a Slurm job id; so in every verb.
    script
        Print the exact script that runs instead.
    """
    detail = await (await context.session()).show(ref)
    if json:
        context.out.data(detail)
        return OK
    if script:
        context.out.raw(detail.script.encode("utf-8", "surrogateescape"))
        return OK
    w = detail.workload
    for name, value in (
        ("id", w.id), ("name", w.name), ("kind", w.kind), ("state", f"{w.state} ({w.native_state})"),
        ("reason", w.reason), ("message", w.message), ("exit code", w.exit_code), ("job", w.native_id),
        ("partition", w.partition), ("nodes", w.nodes), ("submitted", moment(w.submitted)),
        ("started", moment(w.started)), ("ended", moment(w.ended)), ("time limit", duration(w.time_limit)),
        ("image", w.image), ("directory", w.directory), ("by", "hpcsh" if w.ours else "not hpcsh"),
    ):  # fmt: skip
        if value not in (None, "", "-"):
            context.out.line(f"{name:11} {value}")
    for child in w.children:
        exit_code = "" if child.exit_code is None else f", exit {child.exit_code}"
        context.out.line(f"  {child.kind} {child.name}: {child.state}{exit_code} {child.reason}".rstrip())
    for key, value in detail.facts:
        if value not in ("", "(null)", "N/A", "None"):
            context.out.line(f"{key:25} {_readable(key, value)}")
    return OK


def _readable(key: str, value: str) -> str:
    """Slurm's times as a time of day; the facts have them as Unix seconds."""
    return (
        moment(float(value)) if key.endswith(("Time", "Eval")) and re.fullmatch(r"\d{9,}", value) else value
    )


@verb(risk=Risk.READ, needs="logs")
async def logs(
    ref: str,
    container_name: str = "",
    /,
    *,
    container: Annotated[str, Parameter(name=["--container", "-c"])] = "",
    follow: Follow = False,
    tail: Annotated[int | None, Parameter(name=["--tail"])] = None,
    all_containers: Annotated[bool, Parameter(name=["--all-containers"], negative="")] = False,
    context: VerbContext,
) -> int:
    """Print a workload's log.

    Parameters
    ----------
    container
        Which container, where there are several (an init container has a log too).
    tail
        Only the last lines.
    all_containers
        Of every container, each line with its container's name.
    """
    wanted = LogOptions(
        container=container or container_name, follow=follow, tail=tail, all_containers=all_containers
    )
    midline: dict[str, bool] = {}
    async with aclosing((await context.session()).logs(ref, wanted)) as stream:
        async for chunk in stream:
            data = _prefixed(chunk.source, chunk.data, midline) if all_containers else chunk.data
            context.out.raw(data, chunk.stream)
    return OK


def _prefixed(source: str, data: bytes, midline: dict[str, bool]) -> bytes:
    """Put `[source] ` before each line; a line may come in several pieces."""
    if not source or not data:
        return data
    mark = f"[{source}] ".encode()
    lines = data.splitlines(keepends=True)
    out = b"".join(line if i == 0 and midline.get(source) else mark + line for i, line in enumerate(lines))
    midline[source] = not data.endswith(b"\n")
    return out


@verb(risk=Risk.READ, needs="wait")
async def wait(
    *refs: str,
    timeout: Annotated[float | None, Parameter(name=["--timeout"])] = None,
    json: Json = False,
    context: VerbContext,
) -> int:
    """Wait until workloads have ended; the exit code is the workload's (the highest of several).

    Parameters
    ----------
    timeout
        Seconds to wait at most; then the exit code is 124.
    """
    if not refs:
        raise UsageError("wait: for which?", fix="name at least one id, name or job id")
    ended = await (await context.session()).wait(list(refs), timeout=timeout)
    if json:
        context.out.data(ended)
        return max((exit_status(w) for w in ended), default=OK)
    return max((_tell_end(context, w) for w in ended), default=OK)


def exit_status(w: Workload) -> int:
    """The code with which we tell how a workload ended; never 0 for one that did not succeed."""
    return OK if w.state is State.SUCCEEDED else w.exit_code or FAILED


def _tell_end(context: Front, w: Workload) -> int:
    why = f": {w.reason}" if w.reason and w.state is not State.SUCCEEDED else ""
    code = "" if w.exit_code is None else f", exit code {w.exit_code}"
    context.out.note(f"{w.id} {w.name} {w.state}{why}{code}")
    return exit_status(w)


@verb(risk=Risk.DESTROY, needs="cancel", aliases=("scancel", "delete"))
async def cancel(*refs: str, context: VerbContext) -> int:
    """Cancel workloads by id, name or job id; those that have ended already are left alone."""
    if not refs:
        raise UsageError("cancel: which?", fix="name at least one id, name or job id")
    report = await (await context.session()).cancel(list(refs))
    for name in report.done:
        context.out.line(f"cancelled {name}")
    for name, why in report.failed:
        context.out.note(f"{name}: {why}")
    if report.message:
        context.out.note(report.message)
    return OK if not report.failed else PARTIAL if report.done else FAILED


@verb(risk=Risk.DESTROY, needs="clean")
async def clean(
    *,
    all_: Annotated[bool, Parameter(name=["--all"], negative="")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
    context: VerbContext,
) -> int:
    """Remove what hpcsh left on the cluster: directories of ended workloads, and nothing it did not make.

    Shows what goes and asks.

    Parameters
    ----------
    all_
        End and remove what still runs as well.
    """
    session: Session = await context.session()
    items = await session.clean_plan(everything=all_)
    if json and (dry_run or not items):
        context.out.data(items)
        return OK
    if not items:
        context.out.line("Nothing to clean.")
        return OK
    lines = [f"{i.kind} {i.target} {i.detail}".rstrip() for i in items]
    if dry_run:
        for text in lines:
            context.out.line(text)
        return OK
    if not yes and not context.confirm(f"Remove these {len(items)}?", lines):
        context.out.line("Nothing was removed.")
        return OK
    began = time.monotonic()
    report = await session.clean(items)
    if json:
        context.out.data(report)
    else:
        context.out.line(f"Removed {len(report.done)} in {time.monotonic() - began:.1f} s.")
        for name, why in report.failed:
            context.out.note(f"{name}: {why}")
    return PARTIAL if report.failed else OK
