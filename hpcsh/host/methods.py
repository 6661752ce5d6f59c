"""What clients may call, and the types of the arguments; a test holds it equal to the `Session` protocol."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from hpcsh.errors import UsageError
from hpcsh.model import CleanItem, LaunchSpec, LogOptions, SubmitSpec, UpSpec

_Names = tuple[str, ...]

METHODS: dict[str, dict[str, Any]] = {
    "info": {},
    "events": {"after": int | None},
    "doctor": {},
    "nodes": {},
    "plan": {"spec": SubmitSpec},
    "submit": {"spec": SubmitSpec},
    "workloads": {"mine_only": bool, "fresh": bool},
    "show": {"ref": str},
    "logs": {"ref": str, "options": LogOptions},
    "wait": {"refs": _Names, "timeout": float | None},
    "cancel": {"refs": _Names},
    "clean_plan": {"everything": bool},
    "clean": {"items": tuple[CleanItem, ...]},
    "pull": {"references": _Names},
    "images": {},
    "plan_up": {"spec": UpSpec},
    "up": {"spec": UpSpec},
    "down": {"name": str},
    "environments": {},
    "plan_launch": {"spec": LaunchSpec},
    "launch": {"spec": LaunchSpec},
}
"""Methods of a session."""

CONTROL: dict[str, dict[str, Any]] = {
    "attach": {"profile": str},
    "status": {},
    "stop": {},
    "retire": {},
}
"""Methods of the host itself. `retire` stops it when nobody uses it, and returns whether it does."""


@cache
def _decoder(method: str) -> msgspec.msgpack.Decoder[Any]:
    fields = (METHODS | CONTROL)[method].items()
    return msgspec.msgpack.Decoder(msgspec.defstruct(method, fields, forbid_unknown_fields=True))


def arguments(method: str, args: msgspec.Raw) -> Mapping[str, Any]:
    """The decoded arguments of a call. Raises `UsageError` for what is not a method or does not fit it."""
    if method not in METHODS and method not in CONTROL:
        raise UsageError(f"The session host knows no {method!r}.", fix="hpcsh host stop, then try again")
    try:
        decoded = _decoder(method).decode(args)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as e:
        raise UsageError(f"The arguments of {method!r} do not fit.", why=str(e)) from None
    return {name: getattr(decoded, name) for name in decoded.__struct_fields__}
