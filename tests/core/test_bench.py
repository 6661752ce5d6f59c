"""A benchmark that cannot fail says nothing."""

from __future__ import annotations

import pytest

from bench.figures import Figure


@pytest.mark.parametrize(
    ("figure", "failed"),
    [
        (Figure("f", [100.0], [], budget=120), False),
        (Figure("f", [181.0], [], budget=120), True),
        (Figure("f", [19.0], [10.0], ratio_budget=1.2), True),
        (Figure("f", [17.0], [10.0], ratio_budget=1.2), False),
        (Figure("f", [19.0], [10.0], ratio_budget=1.2, slack=10), False),
        (Figure("f", [40.0], [20.0], ratio_budget=0.8, higher_is_better=True), False),
        (Figure("f", [10.0], [20.0], ratio_budget=0.8, higher_is_better=True), True),
    ],
)
def test_over_half_as_much_again_fails(figure: Figure, failed: bool) -> None:
    assert figure.failed is failed
