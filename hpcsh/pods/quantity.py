"""Kubernetes quantities: `100m`, `1.5`, `2Gi`, `1e3`.

Grammar: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from hpcsh.errors import UsageError

_GRAMMAR = re.compile(
    r"([+-]?)(\d+(?:\.\d*)?|\.\d+)(?:([eE][+-]?\d{1,2})|([KMGTPE]i|[numkMGTPE])?)\Z", re.ASCII
)
_SUFFIX: dict[str, Fraction] = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    **{s: Fraction(1000 ** (i + 1)) for i, s in enumerate("kMGTPE")},
    **{f"{s}i": Fraction(1024 ** (i + 1)) for i, s in enumerate("KMGTPE")},
}  # fmt: skip


def parse(value: str | int | float, where: str) -> Fraction:
    """The exact number a quantity stands for. Raises `UsageError` naming `where` for anything else."""
    match = _GRAMMAR.match(str(value).strip())
    if match is None:
        raise UsageError(
            f"{where}: {value!r} is not a Kubernetes quantity.", fix="write for example 500m, 2, 100Mi or 4Gi"
        )
    sign, digits, exponent, suffix = match.groups()
    if sign == "-":
        raise UsageError(f"{where}: {value!r} is negative.")
    number = Fraction(digits if not digits.endswith(".") else digits[:-1])
    return number * (Fraction(10) ** int(exponent[1:]) if exponent else _SUFFIX[suffix or ""])


def ceil(number: Fraction) -> int:
    """Rounded up, as Kubernetes rounds quantities that must be whole."""
    return math.ceil(number)
