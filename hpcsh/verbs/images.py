"""Verbs about images."""

from __future__ import annotations

from contextlib import aclosing

from hpcsh.errors import OK, UsageError
from hpcsh.verbs.context import VerbContext
from hpcsh.verbs.output import moment, size
from hpcsh.verbs.registry import Risk, verb
from hpcsh.verbs.sessions import Json


@verb(risk=Risk.MUTATE, needs="pull")
async def pull(*references: str, context: VerbContext) -> int:
    """Bring images into the pool on the cluster.

    Parameters
    ----------
    references
        `docker://registry/name:tag`, a bare name, or a file on the cluster (.sif, OCI or Docker archive).
    """
    if not references:
        raise UsageError("pull: what?", fix="name at least one image or file")
    session = await context.session()
    async with aclosing(session.pull(references)) as stream:
        async for progress in stream:
            context.out.progress(progress)
    return OK


@verb(risk=Risk.READ, needs="images")
async def images(*, json: Json = False, context: VerbContext) -> int:
    """List the images in the pool on the cluster."""
    found = await (await context.session()).images()
    if json:
        context.out.data(found)
        return OK
    context.out.table(
        ["IMAGE", "SIZE", "PULLED", "RUNTIME", "DIGEST"],
        [[i.reference, size(i.size), moment(i.pulled), i.runtime, i.digest[:19]] for i in found],
        empty="The pool is empty: `hpcsh pull docker://…` fills it.",
    )
    return OK
