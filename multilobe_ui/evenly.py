"""A few of many, evenly spread from the first on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def even_places(count: int, most: int) -> list[int]:
    """At most `most` of `count` places."""
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of these."""
    return [items[i] for i in even_places(len(items), most)]
