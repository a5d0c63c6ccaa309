"""What was made faster in a model, and what was left alone for which reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

TURNED_OFF = "MULTILOBE_PLAIN=1"


def is_plain() -> bool:
    """Whether the environment asks for transformers' and PEFT's own functions: MULTILOBE_PLAIN=1."""
    return os.environ.get("MULTILOBE_PLAIN", "") == "1"


@dataclass(frozen=True)
class Trick:
    """One way to save time.

    Attributes:
        name: what is done. changed: how many modules, matrices or layers it was done to. reason:
            why it was left alone; "" if it was not.
    """

    name: str
    changed: int
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """The tricks that were tried on one model. `longest_row`: tokens of the longest row that
    training may pack to attend alone."""

    tricks: tuple[Trick, ...] = ()
    longest_row: int = 0

    def __add__(self, other: Report) -> Report:
        return Report((*self.tricks, *other.tricks), max(self.longest_row, other.longest_row))


def tried(name: str, patch: Callable[[nn.Module], int], model: nn.Module, otherwise: str) -> Trick:
    """Do one trick, unless the environment asks for none; `otherwise` is the reason where there was
    nothing to do it to."""
    if is_plain():
        return Trick(name, 0, TURNED_OFF)
    changed = patch(model)
    return Trick(name, changed, "" if changed else otherwise)
