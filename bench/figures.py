"""Paired measurements and how they are told. Pure, but for the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Step = Callable[[], Awaitable[object]]
FAIL_AT = 1.5


@dataclass
class Figure:
    """One row: ours beside raw. `budget` bounds the median, `ratio_budget` the median of the ratios."""

    name: str
    ours: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    unit: str = "ms"
    budget: float | None = None
    ratio_budget: float | None = None
    slack: float = 0.0
    """Milliseconds by which ours may be above raw, whatever the ratio."""
    note: str = ""
    higher_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """Median of ours / raw, pair by pair."""
        if not self.raw:
            return None
        return statistics.median(a / b for a, b in zip(self.ours, self.raw, strict=True))

    def over(self) -> float:
        """How far over its budget the figure is: 1.0 is exactly at it, 0 without a budget."""
        median = statistics.median(self.ours)
        found = [0.0]
        if self.budget:
            found.append(self.budget / median if self.higher_is_better else median / self.budget)
        if self.ratio_budget and (ratio := self.ratio):
            if self.slack and median - statistics.median(self.raw) <= self.slack:
                ratio = min(ratio, self.ratio_budget)
            found.append(self.ratio_budget / ratio if self.higher_is_better else ratio / self.ratio_budget)
        return max(found)

    @property
    def failed(self) -> bool:
        """True when it is over 1.5 times its budget."""
        return self.over() > FAIL_AT

    def row(self) -> str:
        """The row of the report."""
        raw = f"{statistics.median(self.raw):.1f}" if self.raw else "–"
        ratio = f"{self.ratio:.2f}" if self.ratio else "–"
        sign = "≥" if self.higher_is_better else "≤"
        budgets = [f"{sign} {self.budget:g} {self.unit}"] if self.budget else []
        budgets += [f"{sign} {self.ratio_budget:g} ×"] if self.ratio_budget else []
        budgets += [f"or + {self.slack:g} {self.unit}"] if self.slack else []
        verdict = "fails" if self.failed else "over" if self.over() > 1 else "ok"
        ours = f"{statistics.median(self.ours):.1f} ({min(self.ours):.1f}–{max(self.ours):.1f})"
        return (
            f"| {self.name} | {ours} | {raw} | {ratio} | {self.unit} | {len(self.ours)} "
            f"| {', '.join(budgets) or '–'} | {verdict} | {self.note} |"
        )


HEADER = (
    "| what | hpcsh, median (min–max) | raw, median | ratio | unit | rounds | budget | verdict | raw is |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


async def timed(step: Step) -> float:
    """Milliseconds of one step."""
    began = time.perf_counter()
    await step()
    return (time.perf_counter() - began) * 1000


async def paired(
    figure: Figure, ours: Step, raw: Step, *, rounds: int, between: Step | None = None
) -> Figure:
    """Measure in turn, first one then the other in changing order, after one round that does not count."""
    for i in range(rounds + 1):
        pair: dict[str, float] = {}
        for which in ("ours", "raw") if i % 2 else ("raw", "ours"):
            if between:
                await between()
            pair[which] = await timed(ours if which == "ours" else raw)
        if i:
            figure.ours.append(pair["ours"])
            figure.raw.append(pair["raw"])
    return figure
