"""Routing rows of any number of lobes: prototypes are kept, the rest is read when routers ask for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ..recent import Recent
from .rows import RoutingRows, RowsByName, Vector, bytes_of_rows, read_prototypes, read_rows
from .store import Lobe

ROWS_IN_MEMORY = 128 << 20
"""Bytes of routing rows that are kept; the rows of 1,000 lobes take five times as much, and routers
make an index of their own."""


class RowsOfLobes:
    """Sound routing rows of any number of lobes: read from their files when asked for, the most
    recent ones kept.

    Args:
        sound: what routers may see of the rows that a lobe's files hold; None if that is nothing
            (see `sound_rows`).
        trusted: whether a lobe's prototypes can be used as they are. Then the rest of its rows is
            not read before a router asks.
        most_bytes: of vectors that are kept at most.
    """

    def __init__(
        self,
        sound: Callable[[Lobe, RoutingRows], RoutingRows | None] = lambda lobe, rows: rows if len(rows.prototypes) else None,
        trusted: Callable[[Lobe, Vector], bool] = lambda lobe, prototypes: len(prototypes) > 0,
        most_bytes: int = ROWS_IN_MEMORY,
    ) -> None:
        self._sound, self._trusted = sound, trusted
        self._new: dict[str, Lobe] = {}  # taken in, and not yet looked at
        self._prototypes: dict[str, Vector] = {}  # of those whose rows can be used
        self._kept: Recent[str, RoutingRows] = Recent(most_bytes, bytes_of_rows)
        self._lock = threading.Lock()

    def take(self, lobe: Lobe) -> None:
        """Know a lobe from now on. Its files are read when routers first ask, as mending its rows
        may need the encoder."""
        self.forget(lobe)
        with self._lock:
            self._new[lobe.id] = lobe

    def has(self, lobe: Lobe) -> bool:
        """Whether a lobe has rows that routers can use."""
        with self._lock:
            new = self._new.get(lobe.id)
        if new is not None:
            rows, prototypes = None, read_prototypes(lobe.path)  # without the lock: it may take seconds
            if prototypes is None or not self._trusted(lobe, prototypes):
                rows = self._sound(lobe, read_rows(lobe.path))
                prototypes = None if rows is None else rows.prototypes
            with self._lock:
                if self._new.get(lobe.id) is new:  # it has not gone meanwhile
                    del self._new[lobe.id]
                    if prototypes is not None:
                        self._prototypes[lobe.id] = prototypes
            if rows is not None:
                self._keep(lobe.id, rows)
        return lobe.id in self._prototypes

    def prototypes(self, lobe: Lobe) -> Vector:
        """Its prototypes, which are always in memory. Raises KeyError as `of` does."""
        return self._prototypes[lobe.id]

    def of(self, lobe: Lobe) -> RoutingRows:
        """Its rows. Where the files have gone since, one prototype that is near to nothing, so that
        routers go on.

        Raises:
            KeyError: it has no rows that can be used, or has been forgotten.
        """
        width = self._prototypes[lobe.id].shape[1]
        with self._lock:
            if lobe.id in self._kept:
                return self._kept[lobe.id]
        rows = self._sound(lobe, read_rows(lobe.path))
        if rows is None or rows.prototypes.shape[1] != width:
            nothing = np.zeros((0, width), np.float32)
            return RoutingRows(np.zeros((1, width), np.float32), nothing, nothing)
        self._keep(lobe.id, rows)
        return rows

    def forget(self, lobe: Lobe) -> None:
        with self._lock:
            self._new.pop(lobe.id, None)
            self._prototypes.pop(lobe.id, None)
            self._kept.pop(lobe.id)

    def among(self, lobes: Mapping[str, Lobe]) -> RowsByName:
        """The rows of those lobes that have some, by the keys of `lobes`; read as they are asked for."""
        return _RowsByName(self, {name: lobe for name, lobe in lobes.items() if self.has(lobe)})

    def _keep(self, id: str, rows: RoutingRows) -> None:
        with self._lock:
            if id in self._prototypes and id not in self._kept:
                self._kept[id] = rows


class _RowsByName(RowsByName):
    """What a router's context sees of `RowsOfLobes`. Rows outlive a lobe that is deleted while a
    router still knows it."""

    def __init__(self, rows: RowsOfLobes, lobes: Mapping[str, Lobe]) -> None:
        self._rows, self._lobes = rows, lobes

    def __getitem__(self, name: str) -> RoutingRows:
        lobe = self._lobes[name]
        try:
            return self._rows.of(lobe)
        except KeyError:
            nothing = np.zeros((0, 0), np.float32)
            return RoutingRows(nothing, nothing, nothing)

    def prototypes(self, name: str) -> Vector:
        try:
            return self._rows.prototypes(self._lobes[name])
        except KeyError:
            return self[name].prototypes

    def __contains__(self, name: object) -> bool:
        return name in self._lobes  # what a Mapping has would read the rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._lobes)

    def __len__(self) -> int:
        return len(self._lobes)
