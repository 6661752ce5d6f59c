"""The images on the target: found, resolved, pulled and listed.

Layout of the pool (`profile.images.pool`): `NAME.sif` (apptainer) or `NAME.rootfs/` (podman) with `NAME.json`
beside it, where NAME is made of the reference and the digest, so that a job keeps the image it was
submitted with when a tag moves. Work in progress is in `.tmp/`, locks are in `.locks/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from hpcsh.boundary.base import Boundary
from hpcsh.errors import RefusedError, UnavailableError, UsageError
from hpcsh.images import remote
from hpcsh.images.reference import Reference, parse, prefixed
from hpcsh.model import Image, Progress
from hpcsh.profiles import Profile

RUNTIMES = ("apptainer", "podman")
IN_PLACE = ("sif", "directory")
"""Kinds of files that are used where they are when a workload names them."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An image as a workload uses it. `present` is False for one that `pull` would bring to this path.

    `config` is the OCI configuration (Entrypoint, Cmd, Env, WorkingDir), {} where it is not known.
    """

    reference: Reference
    image: Image
    config: Mapping[str, Any] = {}
    present: bool = True
    resolved: Mapping[str, Any] = {}


class Pool:
    """The image pool of one session. Runtimes are looked for once."""

    def __init__(self, boundary: Boundary, profile: Profile) -> None:
        self._boundary = boundary
        self._profile = profile
        self._python = profile.target.python or "python3"
        self._found: dict[str, str] | None = None
        self._lock = asyncio.Lock()

    async def directory(self) -> str:
        """Absolute path of the pool on the target."""
        return await self._expand(self._profile.images.pool)

    async def _expand(self, path: str) -> str:
        if path == "~" or path.startswith("~/"):
            return (await self._boundary.home()).rstrip("/") + path[1:]
        if not path.startswith("/"):
            raise UsageError(f"images.pool {path!r} of the profile is no absolute path.")
        return path

    async def runtimes(self) -> dict[str, str]:
        """The container tools on the target's login side, name → version."""
        async with self._lock:
            if self._found is None:
                self._found = dict(await remote.answer(self._boundary, self._python, "probe"))
            return dict(self._found)

    async def runtime(self) -> str:
        """The tool that this session uses: the profile's, else apptainer, else podman.

        Raises `UnavailableError` where it is not there.
        """
        wanted = self._profile.images.runtime
        found = await self.runtimes()
        for name in RUNTIMES if wanted == "auto" else (wanted,):
            if name in found:
                return name
        what = "neither apptainer nor podman" if wanted == "auto" else f"no {wanted}"
        raise UnavailableError(
            f"There is {what} on {self._boundary.name}.",
            why="Images are pulled and run with it.",
            fix="load it in the profile's `setup:` (module load apptainer), or ask the site's support",
        )

    async def reference(self, text: str, *, image_root: str = "") -> Reference:
        """Check a reference, with the profile's prefix rule and the target's home."""
        home = (await self._boundary.home()).rstrip("/")
        return parse(prefixed(text, prefix=self._profile.images.prefix, image_root=image_root), home=home)

    async def _entries(self) -> list[dict[str, Any]]:
        pool = await self.directory()
        return list(await remote.answer(self._boundary, self._python, "list", pool=pool))

    async def images(self) -> list[Image]:
        """What the pool holds, newest first."""
        found = [_image(e) for e in await self._entries()]
        return sorted(found, key=lambda i: -i.pulled)

    async def locate(self, reference: Reference, *, policy: str = "") -> Entry:
        """The image of a reference: from the pool, a file used in place, or what a pull would bring.

        `policy` is Kubernetes' imagePullPolicy: "Always" asks the registry whether the tag has moved,
        "Never" refuses what is not in the pool. Changes nothing. Raises what `pull` would.
        """
        runtime = await self.runtime()
        if reference.kind == "docker" and policy != "Always":
            known = [
                e
                for e in await self._entries()
                if e["reference"] == reference.canonical and e["runtime"] == runtime
            ]
            if known:
                return _entry(reference, max(known, key=lambda e: float(e["pulled"])))
        if reference.kind == "docker" and policy == "Never":
            raise RefusedError(
                f"The image {reference.canonical} is not in the pool.",
                why="The container has imagePullPolicy: Never.",
                fix=f"hpcsh pull {reference.canonical}",
            )
        return await self._resolve(reference, runtime)

    async def _resolve(self, reference: Reference, runtime: str, *, to_pool: bool = False) -> Entry:
        pool = await self.directory()
        request = {**_request(reference), "plain_http": list(self._profile.images.plain_http), "pool": pool}
        found: dict[str, Any] = await remote.answer(
            self._boundary, self._python, "resolve", reference.canonical, **request, hash=to_pool
        )
        if found["source"] in IN_PLACE and not to_pool:
            if found["source"] == "sif" and runtime != "apptainer":
                raise UnavailableError(f"{reference.path} is a SIF file, which only apptainer can run.")
            image = Image(
                reference=reference.canonical, path=reference.path, size=found["bytes"], runtime=runtime
            )
            return Entry(reference=reference, image=image)
        if found["source"] == "directory":
            raise UsageError(
                f"{reference.path} is a directory.", why="It is used where it is, without a pull."
            )
        name = f"{reference.slug}-{found['digest'].removeprefix('sha256:')[:12]}"
        name += "" if runtime == "apptainer" else f"-{runtime}"
        there = [e for e in await self._entries() if e["file"].rsplit(".", 1)[0] == name]
        if there and there[0]["runtime"] == runtime:
            entry = _entry(reference, there[0])
            return msgspec.structs.replace(entry, resolved={**request, **found, "name": name})
        suffix = "sif" if runtime == "apptainer" else "rootfs"
        image = Image(
            reference=reference.canonical,
            path=f"{pool}/{name}.{suffix}",
            digest=found["digest"],
            runtime=runtime,
        )
        return Entry(
            reference=reference,
            image=image,
            config=found["config"],
            present=False,
            resolved={**request, **found, "name": name},
        )

    async def pull(self, text: str, *, image_root: str = "") -> AsyncGenerator[Progress, None]:
        """Bring an image into the pool; the last progress is "done" and has its path as message.

        Raises `UsageError` for a bad reference, `CommandError` or `NotFoundError` with the tool's words.
        Closing the iterator stops the tools and removes what they had written.
        """
        reference = await self.reference(text, image_root=image_root)
        yield Progress(step=reference.canonical, status="start")
        entry = await self._resolve(reference, await self.runtime(), to_pool=True)
        async with aclosing(self._bring(entry)) as progress:
            async for step in progress:
                yield step

    async def fetch(self, entry: Entry) -> Entry:
        """The same entry, in the pool, with its size and time."""
        if entry.present:
            return entry
        async with aclosing(self._bring(entry)) as progress:
            async for _ in progress:
                pass
        pulled = [i for i in await self.images() if i.path == entry.image.path]
        return msgspec.structs.replace(entry, image=pulled[0] if pulled else entry.image, present=True)

    async def _bring(self, entry: Entry) -> AsyncGenerator[Progress, None]:
        subject = entry.reference.canonical
        request = {**entry.resolved, "canonical": subject, "runtime": entry.image.runtime}
        async with aclosing(remote.ask(self._boundary, self._python, "pull", subject, **request)) as answers:
            async for kind, message in answers:
                if kind == "progress":
                    yield Progress(
                        step=subject,
                        status="running",
                        message=_words(message),
                        done=message.get("done"),
                        total=message.get("total"),
                        unit="bytes" if "done" in message else "",
                    )
                else:
                    yield Progress(
                        step=subject,
                        status="done",
                        message=message["path"] + (" (was there already)" if message["present"] else ""),
                        done=message["size"],
                        total=message["size"],
                        unit="bytes",
                    )


def _words(message: Mapping[str, Any]) -> str:
    said = str(message.get("message", ""))
    return f"{message['step']}: {said}" if said else str(message["step"])


def _request(reference: Reference) -> dict[str, Any]:
    return {f: getattr(reference, f) for f in ("kind", "registry", "repository", "tag", "digest", "path")} | {
        "canonical": reference.canonical
    }


def _image(entry: Mapping[str, Any]) -> Image:
    return Image(
        reference=str(entry["reference"]),
        path=str(entry["path"]),
        size=int(entry["size"]),
        digest=str(entry["digest"]),
        runtime=str(entry["runtime"]),
        pulled=float(entry["pulled"]),
    )


def _entry(reference: Reference, entry: Mapping[str, Any]) -> Entry:
    return Entry(reference=reference, image=_image(entry), config=entry.get("config") or {})
