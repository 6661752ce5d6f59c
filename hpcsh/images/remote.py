"""Sends the part that runs on the target, and turns its lines into progress, results and errors.

The part is the `remote_*` modules put together into one source: standard library only, Python 3.6 or
later, nothing installed (design 5). It runs as `python3 -c SOURCE REQUEST`. No request holds a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hpcsh.boundary.base import Boundary
from hpcsh.errors import CommandError
from hpcsh.images.errors import explained

_PARTS = ("base", "pool", "registry", "tools", "main")
_OWN = re.compile(r"^from hpcsh\.images\.remote_\w+ import .*\n", re.M)
GRACE = 15.0
"""Seconds that a cancelled pull has to remove what it has written."""


@cache
def source() -> str:
    """The program as one text."""
    here = Path(__file__).parent
    return "\n".join(_OWN.sub("", (here / f"remote_{part}.py").read_text()) for part in _PARTS)


async def ask(
    boundary: Boundary, python: str, verb: str, subject: str = "", **request: Any
) -> AsyncGenerator[tuple[str, Any], None]:
    """Yield ("progress", message) pairs and at last ("result", value).

    `subject` is the reference, for messages. Raises `CommandError` that explains the target's error.
    Closing the iterator ends the remote process group and removes what it had begun.
    """
    argv = [python, "-c", source(), json.dumps({"verb": verb, **request})]
    errors = b""
    rest = b""
    async with boundary.stream(argv, grace=GRACE) as process:
        await process.close_stdin()
        async for stream, data in process.output():
            if stream == 2:
                errors = (errors + data)[-4000:]
                continue
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message: Mapping[str, Any] = json.loads(line)
                if "error" in message:
                    raise explained(subject, message["error"])
                if "result" in message:
                    yield "result", message["result"]
                    return
                yield "progress", message
        code = await process.wait()
    words = errors.decode("utf-8", "replace").strip()
    raise CommandError(
        f"{python} on {boundary.name} could not handle {subject or 'the image pool'}.",
        why=words or f"It ended with status {code} without an answer.",
        fix="Python 3.6 or later is needed on the target; name it with `target: {python: …}` in the profile",
    )


async def answer(boundary: Boundary, python: str, verb: str, subject: str = "", **request: Any) -> Any:
    """The result of a request whose progress nobody needs."""
    value: Any = None
    async for kind, message in ask(boundary, python, verb, subject, **request):
        if kind == "result":
            value = message
    return value
