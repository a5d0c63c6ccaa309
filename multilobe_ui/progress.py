"""Long work as a generator: it yields where it is, and returns what came out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """One step of long work, for a bar or a live plot.

    Attributes:
        step, steps: of the whole work, from 0. phase: what is being done, in a person's words.
        values: what is measured at this step, such as loss, held_out_loss, accuracy; finite numbers.
    """

    step: int
    steps: int
    phase: str
    values: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def finish(work: Generator[Any, None, T], progress: Callable[[Any], None] | None = None) -> T:
    """Run it to its end and return what it returns; `progress` gets all that it yields."""
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        if progress:
            progress(event)


def converted(work: Generator[R, None, T], convert: Callable[[R], S]) -> Generator[S, None, T]:
    """The same work as part of another: each of its records as the other tells it."""
    while True:
        try:
            record = next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        yield convert(record)
