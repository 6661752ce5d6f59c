"""Images for this engine: the pool on the target, and the command line that runs a rank in an image."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from hpcsh.engines.context import Context
from hpcsh.errors import UsageError
from hpcsh.model import Finding, Image, LaunchSpec, Progress


class Containers:
    """The image pool of one context."""

    def __init__(self, context: Context) -> None:
        self._c = context

    async def doctor(self) -> list[Finding]:
        """What all engines need."""
        return []

    def pull(self, references: Sequence[str]) -> AsyncIterator[Progress]:
        """Bring images into the pool."""
        raise NotImplementedError

    async def images(self) -> list[Image]:
        """The images in the pool."""
        raise NotImplementedError

    async def wrap(self, reference: str, program: Sequence[str]) -> tuple[str, ...]:
        """A program in an image of the pool."""
        raise NotImplementedError

    async def resolve(self, spec: LaunchSpec) -> LaunchSpec:
        """The same launch with its image made part of every rank's command line."""
        if not spec.image:
            return spec
        if ":" in spec.program:
            raise UsageError(
                "--image is possible with one application context only.",
                fix="write the container runtime's command line in each context instead",
            )
        program = await self.wrap(spec.image, spec.program)
        return msgspec.structs.replace(spec, program=program)
