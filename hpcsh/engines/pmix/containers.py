"""Images for this engine: the pool on the target, and the command line that runs a rank in an image."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from hpcsh.engines.context import Context
from hpcsh.errors import UsageError
from hpcsh.images.pool import Entry, Pool
from hpcsh.images.runtime import rank_argv
from hpcsh.model import Image, LaunchSpec, Progress


class Containers:
    """The image pool of one context. What was found once is looked at again by later launches, not for."""

    def __init__(self, context: Context) -> None:
        self._c = context
        self.pool = Pool(context.boundary, context.profile)
        self._known: dict[str, Entry] = {}

    async def pull(self, references: Sequence[str]) -> AsyncGenerator[Progress, None]:
        """Bring images into the pool, one after the other."""
        for reference in references:
            self._known.pop(reference, None)
            async with aclosing(self.pool.pull(reference)) as steps:
                async for step in steps:
                    yield step

    async def images(self) -> list[Image]:
        """The images in the pool."""
        return await self.pool.images()

    async def entry(self, text: str) -> Entry:
        """The image of a reference, which a launch may still have to fetch; changes nothing."""
        known = self._known.get(text)
        if known is not None and await self._c.boundary.stat(known.image.path) is not None:
            return known
        entry = await self.pool.locate(await self.pool.reference(text))
        if entry.present:
            self._known[text] = entry
        return entry

    async def fetched(self, text: str, entry: Entry) -> Entry:
        """The same image, in the pool."""
        if not entry.present:
            entry = self._known[text] = await self.pool.fetch(entry)
        return entry


def check(spec: LaunchSpec) -> None:
    """Raise `UsageError` for a launch that cannot run in an image."""
    if spec.image and ":" in spec.program:
        raise UsageError(
            "--image is possible with one application context only.",
            fix="write the container runtime's command line in each context instead",
        )


def inside(spec: LaunchSpec, entry: Entry) -> LaunchSpec:
    """The same launch with its image made part of every rank's command line."""
    return msgspec.structs.replace(spec, program=tuple(rank_argv(entry.image, spec.program)))
