"""The engines by name. They are imported when a session is opened, not before."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, cast

from hpcsh.errors import UnavailableError

if TYPE_CHECKING:
    from hpcsh.engines.base import Engine
    from hpcsh.engines.context import Context

    EngineClass = Callable[[Context], Engine]

ENGINES: dict[str, str] = {
    "virtual_node": "hpcsh.engines.virtual_node:VirtualNode",
    "pmix": "hpcsh.engines.pmix:Pmix",
}
"""Engine name → `module:class`. The class is called with a `Context`."""


def engine_class(name: str) -> EngineClass:
    """The class of an engine. Raises `UnavailableError` when a library that it needs is missing."""
    module, _, attribute = ENGINES[name].partition(":")
    try:
        return cast("EngineClass", getattr(import_module(module), attribute))
    except ImportError as e:
        raise UnavailableError(
            f"The engine {name!r} cannot be loaded.", why=str(e), fix="pip install --force-reinstall hpcsh"
        ) from e
