"""A few of many, evenly spread from the first on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def even_places(count: int, most: int) -> list[int]:
    """At most `most` of `count` places."""
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of these."""
    return [items[i] for i in even_places(len(items), most)]


def evenly_by(group: Callable[[T], Any], rows: Sequence[T], most: int) -> list[T]:
    """At most `most` rows, as even over their groups as these are large, and spread over each; in
    the order given."""
    places: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(group(row), []).append(i)
    room, kept = most, []
    for left, own in zip(range(len(places), 0, -1), sorted(places.values(), key=len), strict=True):
        share = min(len(own), -(-room // left))
        kept += [own[i] for i in even_places(len(own), share)]
        room -= share
    return [rows[i] for i in sorted(kept)]
