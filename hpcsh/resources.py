"""Files that travel with hpcsh: profiles, examples, recordings."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(kind: str) -> Path:
    """Directory of the shipped `kind` ("profiles", "examples", "recordings").

    In an installed wheel they live inside the package, in a source tree beside it.
    """
    inside = _PACKAGE / "data" / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind
