"""A dict that forgets what was used longest ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values used last, least recently used first. One lock is its owner's affair.

    Args:
        most: what all values may weigh together; the newest is kept whatever it weighs. None keeps all.
        weigh: what a value weighs; 1 unless something else is given.
    """

    def __init__(self, most: int | None = None, weigh: Callable[[V], int] = lambda value: 1) -> None:
        self._most, self._weigh = most, weigh
        self._values: OrderedDict[K, V] = OrderedDict()
        self._weights: dict[K, int] = {}
        self.weight = 0
        """Of all values together, as weighed when they came."""

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def __getitem__(self, key: K) -> V:
        """The value, which counts as used now. Raises KeyError."""
        self._values.move_to_end(key)
        return self._values[key]

    def __setitem__(self, key: K, value: V) -> None:
        self.pop(key)
        self._values[key], self._weights[key] = value, self._weigh(value)
        self.weight += self._weights[key]
        while self._most is not None and self.weight > self._most and len(self._values) > 1:
            self.pop(next(iter(self._values)))

    def pop(self, key: K) -> V | None:
        """Forget a value; it, or None if there is none."""
        self.weight -= self._weights.pop(key, 0)
        return self._values.pop(key, None)

    def items(self) -> list[tuple[K, V]]:
        """All of them, without using any."""
        return list(self._values.items())
