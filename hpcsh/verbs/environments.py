"""Verbs about environments and parallel launches."""

from __future__ import annotations

import shlex
from contextlib import aclosing
from typing import Annotated

from cyclopts import Parameter

from hpcsh.errors import FAILED, OK, UsageError
from hpcsh.model import LaunchSpec, Resources, UpSpec
from hpcsh.verbs import prrte
from hpcsh.verbs.context import Front, VerbContext
from hpcsh.verbs.flags import SbatchFlags
from hpcsh.verbs.registry import Risk, verb
from hpcsh.verbs.sessions import Json
from hpcsh.verbs.work import DryRun, tell_plan

Words = Annotated[str, Parameter(allow_leading_hyphen=True)]
ImageOption = Annotated[str | None, Parameter(name=["--image"], help="Run every rank in this image.")]
Within = Annotated[str, Parameter(name=["--in"], help="Environment to launch in, by name.")]
Wdir = Annotated[str | None, Parameter(name=["--chdir"], help="Directory on the nodes to start in.")]
Timeout = Annotated[
    float | None, Parameter(name=["--time-limit"], help="End the launch after these seconds.")
]


@verb(risk=Risk.COST, needs="up", aliases=("salloc",))
async def up(
    name: str = "default",
    /,
    *,
    flags: SbatchFlags | None = None,
    dry_run: DryRun = False,
    json: Json = False,
    context: VerbContext,
) -> int:
    """Start an environment: an allocation with a DVM on it, ready for `prun`.

    Parameters
    ----------
    name
        Name of the environment, where you want several.
    """
    session = await context.session()
    spec = UpSpec(name=name, resources=flags.resources() if flags else Resources())
    if dry_run:
        tell_plan(context, await session.plan_up(spec), json=json)
        return OK
    async with aclosing(session.up(spec)) as stream:
        async for progress in stream:
            context.out.progress(progress)
    return OK


@verb(risk=Risk.DESTROY, needs="down")
async def down(name: str = "default", /, *, context: VerbContext) -> int:
    """Stop an environment and release all it holds; harmless when it is down."""
    async with aclosing((await context.session()).down(name)) as stream:
        async for progress in stream:
            context.out.progress(progress)
    return OK


@verb(risk=Risk.COST, needs="prun", split=prrte.own_and_rest)
async def prun(
    *words: Words,
    image: ImageOption = None,
    within: Within = "default",
    chdir: Wdir = None,
    time_limit: Timeout = None,
    dry_run: DryRun = False,
    json: Json = False,
    context: VerbContext,
) -> int:
    """Launch a parallel program in the environment's DVM: `prun [PRRTE's options] PROGRAM [ARG...]`.

    Its output comes as it is, and the exit code is the program's.
    """
    spec = _spec("prun", words, image, within, chdir, time_limit, Resources())
    return await _launch(context, spec, dry_run=dry_run, json=json)


@verb(risk=Risk.COST, needs="prterun", split=prrte.own_and_rest)
async def prterun(
    *words: Words,
    image: ImageOption = None,
    within: Within = "default",
    chdir: Wdir = None,
    time_limit: Timeout = None,
    alloc: Annotated[str, Parameter(name=["--alloc"], allow_leading_hyphen=True)] = "",
    dry_run: DryRun = False,
    json: Json = False,
    context: VerbContext,
) -> int:
    """Launch once, with daemons of its own: `prterun [PRRTE's options] PROGRAM [ARG...]`.

    Runs in the environment's allocation when there is one, else in a job of its own.

    Parameters
    ----------
    alloc
        What that job asks of Slurm, in one word: --alloc="-N 3 -t 10".
    """
    spec = _spec("prterun", words, image, within, chdir, time_limit, _allocation(alloc))
    return await _launch(context, spec, dry_run=dry_run, json=json)


def _spec(
    tool: str, words: tuple[str, ...], image: str | None, within: str, chdir: str | None,
    timeout: float | None, resources: Resources,
) -> LaunchSpec:  # fmt: skip
    own, program = prrte.split(words)
    if not program:
        raise UsageError(f"{tool}: no program to launch.", fix=f"`hpcsh {tool} [options] PROGRAM [ARG...]`")
    return LaunchSpec(
        tool=tool, options=tuple(own), program=tuple(program), image=image, environment=within, cwd=chdir,
        timeout=timeout, resources=resources,
    )  # fmt: skip


def _allocation(text: str) -> Resources:
    if not text:
        return Resources()
    from cyclopts import App, CycloptsError

    found: list[Resources] = []

    def take(*, flags: SbatchFlags | None = None) -> None:
        found.append(flags.resources() if flags else Resources())

    app = App(name="--alloc", help_flags=[], version_flags=[])
    app.default(take)
    try:
        command, bound, _ = app.parse_args(shlex.split(text), exit_on_error=False, print_error=False)
    except CycloptsError as e:
        raise UsageError(f"--alloc={text!r}: {e}") from None
    command(*bound.args, **bound.kwargs)
    return found[0]


async def _launch(context: Front, spec: LaunchSpec, *, dry_run: bool, json: bool) -> int:
    session = await context.session()
    if dry_run:
        tell_plan(context, await session.plan_launch(spec), json=json)
        return OK
    code = FAILED
    async with aclosing(session.launch(spec)) as stream:
        async for frame in stream:
            if frame.stream in (1, 2):
                context.out.raw(frame.data, 2 if json else frame.stream)
            elif frame.data:
                context.out.note(frame.data.decode("utf-8", "replace"))
            if frame.exit_code is not None:
                code = frame.exit_code
                if json:
                    context.out.data(frame.workload)
    return code
