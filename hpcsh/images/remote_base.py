"""What the parts that run on the target share: the answer's lines and the one error."""
# ruff: noqa: UP006, UP035

import json
import sys
from typing import Any, Dict

Json = Dict[str, Any]


class Failed(Exception):
    """Ends the request; `words` are those of the tool or the system."""

    def __init__(self, words: str, **facts: Any) -> None:
        super().__init__(words)
        self.facts = dict(facts, words=words)


def say(**message: Any) -> None:
    """One line of the answer."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
