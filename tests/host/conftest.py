"""The session tests' fixtures: private places, and sessions attached to a host there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "session"))

from session_fixtures import attached, place  # noqa: F401
