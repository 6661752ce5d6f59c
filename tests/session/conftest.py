"""Fixtures of the session tests; they are written in `session_fixtures.py` so that tests can import it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from session_fixtures import attached, opened, place  # noqa: F401
