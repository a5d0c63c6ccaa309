"""What may be set of a merge, and of a search for weights. Nothing heavy is imported, so that the
page has its forms before the model is there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..lobes.store import same_name
from ..settings import check, check_all, setting
from .kinds import COMBINATIONS

MOST_LOBES = 32
MOST_EXAMPLES = 64
"""Of a person's own file: every trial runs all of them."""

Pairs = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class MergeSettings:
    """What is merged, and how.

    Attributes:
        lobes: (name, weight) of each; a mapping, or the lists that JSON makes of pairs, will do.
        combination: a name of `COMBINATIONS`. rank: of those that end in an SVD; None is the
            largest of the lobes' ranks.
    """

    lobes: Pairs = ()
    combination: str = "cat"
    rank: int | None = setting(None, "Rank", "0: the largest of the lobes", low=1, high=4096)
    density: float = setting(0.5, "Density", "share of the numbers that are kept", above=0, high=1)
    seed: int = setting(0, "Seed", "of what is dropped", low=0, high=2**32 - 1)
    most_rows: int = setting(24, "", "Of each parent, on which losses are measured.", low=1, high=10_000)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lobes", pairs_of(self.lobes))
        check(1 <= len(self.lobes) <= MOST_LOBES, "lobes", len(self.lobes), f"1 to {MOST_LOBES}; choose at least one")
        for name, weight in self.lobes:
            fine = math.isfinite(weight) and weight != 0 and abs(weight) <= 100
            check(fine, f"weight of {name}", weight, "a number from -100 to 100 other than 0; leave out a lobe without weight")
        check(self.combination in COMBINATIONS, "combination", self.combination, f"one of {', '.join(COMBINATIONS)}")
        check_all(self)


@dataclass(frozen=True)
class SearchSettings:
    """What is searched. `lobes` are names."""

    lobes: tuple[str, ...] = ()
    budget: int = setting(40, "Trials", "", low=2, high=1000)
    penalty: float = setting(0.05, "Penalty", "nats for a mean weight of 1; keeps weights small", low=0, high=100)
    seed: int = setting(0, "", "The same gives the same trials.", low=0, high=2**32 - 1)
    rows: int = setting(8, "", "Of each lobe, if no examples are given.", low=1, high=MOST_EXAMPLES)

    def __post_init__(self) -> None:
        fine = isinstance(self.lobes, (list, tuple)) and all(isinstance(name, str) for name in self.lobes)
        check(fine, "lobes", self.lobes, "a list of names")
        object.__setattr__(self, "lobes", tuple(self.lobes))
        check(1 <= len(self.lobes) <= MOST_LOBES, "lobes", len(self.lobes), f"1 to {MOST_LOBES}; choose at least one")
        for i, name in enumerate(self.lobes):
            check(not any(same_name(name, other) for other in self.lobes[:i]), "lobes", name, "named once")
        check_all(self)


def pairs_of(lobes: Any) -> Pairs:
    """Raises ConfigError unless it says a name and a weight of each lobe, and each lobe once."""
    items = list(lobes.items()) if isinstance(lobes, Mapping) else lobes
    try:
        pairs = tuple((str(name), float(weight)) for name, weight in items)
    except (TypeError, ValueError):
        raise ConfigError(f"lobes is {lobes!r}: it must be names with weights, such as [['medical', 0.5]].") from None
    for i, (name, _) in enumerate(pairs):
        check(not any(same_name(name, other) for other, _ in pairs[:i]), "lobes", name, "named once")
    return pairs
