"""This machine as a target."""

from __future__ import annotations

import sys

from hpcsh.boundary import bootstrap
from hpcsh.boundary.client import AgentBoundary
from hpcsh.boundary.transport import PipeTransport, Transport


class LocalBoundary(AgentBoundary):
    """This machine, through an agent that is a child of this process.

    `python` is the interpreter of the agent (default: the one that runs hpcsh).
    """

    def __init__(self, name: str = "this machine", python: str | None = None) -> None:
        super().__init__(name, python=python)

    def _transport(self) -> Transport:
        return PipeTransport([self._python or sys.executable, "-I", "-S", "-c", bootstrap.LOADER])
