"""Two ways of doing one piece of work, timed in turns: what the suite's table is made of.

Machines that benchmarks run on are shared, and slow down for minutes at a time. So nothing is compared with a number of another
run: every round times everybody once, in an order that changes, and what counts is the ratio of the medians. And work in one
process and one thread is timed in seconds of CPU, which a neighbour who takes the processor away does not lengthen.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Sense = Literal["at least", "at most"]
now: Callable[[], float] = time.process_time
"""Seconds of CPU, or of the clock on the wall (`use_wall_clock`); import the module, not the name."""


def use_wall_clock() -> None:
    """CPU seconds of several threads are added up, so they do not say how long anything takes."""
    global now
    now = time.perf_counter


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        work: what was done, and of what size. base: on which model. against: what it is compared with.
        ours, theirs: one measurement a round, both in `unit`; smaller is better.
        goal, sense: "at least" 5 asks for theirs / ours >= 5; "at most" 1.15 for ours / theirs <= 1.15. No goal: shown, not judged.
        note: what a reader must know to trust the line.
    """

    work: str
    base: str
    against: str
    ours: list[float]
    theirs: list[float]
    unit: str
    goal: float | None = None
    sense: Sense = "at least"
    note: str = ""

    @property
    def ratio(self) -> float:
        ours, theirs = median(self.ours), median(self.theirs)
        return theirs / ours if self.sense == "at least" else ours / theirs

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest ratio of a round; of the medians alone where the two took different numbers of rounds."""
        if len(self.ours) != len(self.theirs):
            return self.ratio, self.ratio
        pairs = [(a, b) if self.sense == "at most" else (b, a) for a, b in zip(self.ours, self.theirs, strict=True)]
        ratios = [one / other for one, other in pairs]
        return min(ratios), max(ratios)

    @property
    def is_met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.sense == "at least" else self.ratio <= self.goal

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "ours_median": median(self.ours),
            "theirs_median": median(self.theirs),
            "ratio": self.ratio,
            "spread": self.spread,
            "is_met": self.is_met,
        }


def race(rounds: int, runs: Mapping[str, Callable[[], float | None]], *, warm_up: int = 1) -> dict[str, list[float]]:
    """Measurements by name, one a round; the first `warm_up` rounds are thrown away.

    A run that returns a number has measured itself; else its seconds count.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + warm_up):
        order = list(runs.items())
        for name, run in order if number % 2 == 0 else reversed(order):
            gc.collect()  # what one left behind is not to be tidied on another's time
            start = now()
            measured = run()
            took = now() - start
            if number >= warm_up:
                taken[name].append(took if measured is None else measured)
    return taken


def table(results: list[Result]) -> str:
    """The results as Markdown."""
    lines = ["| work | base | against | ours | theirs | ratio | spread | goal |", "|---|---|---|--:|--:|--:|--:|---|"]
    for r in results:
        low, high = r.spread
        sign = "≥" if r.sense == "at least" else "≤"
        goal = "" if r.goal is None else f"{sign} {r.goal:g} {'✓' if r.is_met else '✗'}"
        lines.append(
            f"| {r.work} | {r.base} | {r.against} | {_short(median(r.ours))} {r.unit} | {_short(median(r.theirs))} {r.unit} "
            f"| {r.ratio:.2f} | {low:.2f}–{high:.2f} | {goal} |"
        )
    return "\n".join([*lines, "", *_notes(results)])


def _notes(results: list[Result]) -> list[str]:
    """Every note once, after the first work that it is about and how many more there are."""
    works: dict[str, list[str]] = {}
    for r in results:
        if r.note and r.work not in works.setdefault(r.note, []):
            works[r.note].append(r.work)
    more = {note: f" (and {len(about) - 1} more)" if len(about) > 1 else "" for note, about in works.items()}
    return [f"- {about[0]}{more[note]}: {note}" for note, about in works.items()]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
