"""Lobes in memory: which stay within a budget, and which leave it; what a home remembers of that.

Neither class knows a model. `Memory` reads adapters when somebody needs them, and evicts the least
recently used ones. `Residency` keeps the budget and the pins of a home in `memory.json` beside its
lobes: they are about this machine, so they are not in the cards, which travel.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import MultiLobeError
from ..files import read_ours, write_json
from ..recent import Recent
from ..settings import check
from .deltas import Matrices, Plan, tensor_bytes

MIB = 1 << 20
PLANS_KEPT = 16


class Memory:
    """Matrices of the lobes in use, and the stacks that recent mixtures made of them.

    Args:
        read: lobe id → its matrices, where they are to be used. modules: the base's linear layers
            in their order.
        budget_bytes: lobes beyond this are evicted, least recently used first (they are read again
            when needed), but for pinned ones and those that a call is running with; None keeps all.
            It may be changed at any time.

    Attributes:
        lock: whoever changes what `read` gives holds it.
    """

    def __init__(
        self, read: Callable[[str], Matrices], modules: Sequence[str], budget_bytes: int | None = None
    ) -> None:
        self.lock = threading.RLock()
        self._read, self._modules, self._budget = read, tuple(modules), budget_bytes
        self._lobes: Recent[str, Matrices] = Recent(weigh=_nbytes)
        self._plans: Recent[tuple[str, ...], Plan] = Recent(PLANS_KEPT)
        self._pinned: set[str] = set()
        self._held: Counter[str] = Counter()  # calls that run with a lobe

    @property
    def resident(self) -> tuple[str, ...]:
        """Ids of the lobes whose matrices are in memory, least recently used first."""
        return tuple(self._lobes)

    @property
    def resident_bytes(self) -> int:
        """Memory of all adapter matrices: the lobes' own and the stacks that recent mixtures made of them."""
        with self.lock:
            return self._lobes.weight + sum(plan.extra_bytes for _, plan in self._plans.items())

    @property
    def budget_bytes(self) -> int | None:
        return self._budget

    @budget_bytes.setter
    def budget_bytes(self, most: int | None) -> None:
        with self.lock:
            self._budget = most
            self._evict(())

    @property
    def pinned(self) -> frozenset[str]:
        """Ids of the lobes that stay in memory whatever the budget."""
        return frozenset(self._pinned)

    def pin(self, lobe: str) -> None:
        """Read a lobe in now, and keep it in memory until it is unpinned or forgotten.

        Raises:
            LobeError: no such lobe. AdapterError: its files have gone or are damaged.
        """
        with self.lock:
            self.matrices(lobe)
            self._pinned.add(lobe)

    def unpin(self, lobe: str) -> None:
        with self.lock:
            self._pinned.discard(lobe)
            self._evict(())

    @contextmanager
    def hold(self, lobes: Sequence[str]) -> Iterator[None]:
        """Keep these lobes in memory, once they are, till the block ends, whatever the budget.
        Every call holds its own."""
        with self.lock:
            self._held.update(lobes)
        try:
            yield
        finally:
            with self.lock:
                self._held -= Counter(lobes)

    def matrices(self, lobe: str) -> Matrices:
        """Per module (A, B) on the base's device, B with the scaling folded in; read from disk if
        not resident.

        Raises:
            LobeError: no such lobe. AdapterError: its files have gone or are damaged.
        """
        with self.lock:
            return self._matrices(lobe, (lobe,))

    def plan(self, lobes: tuple[str, ...]) -> Plan:
        """What calls under these lobes need in every layer. Raises as `matrices` does."""
        with self.lock:
            matrices = [self._matrices(lobe, lobes) for lobe in lobes]
            if lobes not in self._plans:
                with torch.inference_mode(False):
                    self._plans[lobes] = Plan(matrices, self._modules)
                self._evict(lobes)
            return self._plans[lobes]

    def forget(self, lobe: str) -> None:
        """Give a lobe's memory back; calls that already run with it finish undisturbed."""
        with self.lock:
            self._pinned.discard(lobe)
            self._drop(lobe)

    def _matrices(self, lobe: str, in_use: tuple[str, ...]) -> Matrices:
        if lobe not in self._lobes:
            with torch.inference_mode(False):  # what chat reads first must serve training as well
                self._lobes[lobe] = self._read(lobe)
            self._evict(in_use)
        return self._lobes[lobe]

    def _evict(self, in_use: tuple[str, ...]) -> None:
        """Lobes in use stay, whatever they take: else every token of a large mixture would read
        them again."""
        if self._budget is None:
            return
        excess = self.resident_bytes - self._budget
        # stacks leave first: they are made of what is in memory, lobes must be read from the disk
        for lobes, plan in self._plans.items():
            if excess > 0 and plan.extra_bytes and lobes != in_use and not all(lobe in self._held for lobe in lobes):
                excess -= plan.extra_bytes
                self._plans.pop(lobes)
        for lobe in self.resident:
            if excess <= 0:
                return
            if lobe not in in_use and lobe not in self._held and lobe not in self._pinned:
                excess -= self._drop(lobe)

    def _drop(self, lobe: str) -> int:
        """Let a lobe's matrices and all stacks with it go; the bytes that were theirs."""
        before = self._lobes.weight
        self._lobes.pop(lobe)
        freed = before - self._lobes.weight
        for lobes, plan in self._plans.items():
            if lobe in lobes:
                self._plans.pop(lobes)
                freed += plan.extra_bytes
        return freed


class Residency:
    """Budget and pins, in force in the memory. A lobe of another base keeps its pin for when it can
    be used again.

    Args:
        path: the file. budget_mib: takes the place of the budget in the file, without being written
            there; None leaves that.

    Raises:
        ConfigError: the budget is not a number of MiB.
    """

    def __init__(self, path: Path, memory: Memory, budget_mib: float | None = None) -> None:
        self._path, self._memory = path, memory
        self._lock = threading.Lock()
        kept: dict[str, Any] = read_ours(path, dict, "the memory budget and the pins are")
        pins = kept.get("pinned")
        self._pinned = {id for id in pins if isinstance(id, str)} if isinstance(pins, list) else set[str]()
        if budget_mib is None and not _fault(kept.get("budget_mib")):
            budget_mib = kept.get("budget_mib")
        self._apply(budget_mib)

    @property
    def budget_mib(self) -> float | None:
        """MiB that lobes may take in memory; None is no limit."""
        most = self._memory.budget_bytes
        if most is None:
            return None
        return most / MIB

    def set_budget(self, mib: float | None) -> None:
        """Memory beyond it is given back at once. Raises ConfigError if it is not above 0."""
        with self._lock:
            self._apply(mib)
            self._save()

    def pin(self, lobe: str) -> None:
        """Read a lobe (its id) in, and keep it in memory from now on.

        Raises:
            LobeError: no such lobe on this base. AdapterError: it is damaged.
        """
        with self._lock:
            self._memory.pin(lobe)
            self._pinned.add(lobe)
            self._save()

    def unpin(self, lobe: str) -> None:
        """Also for a lobe that is gone."""
        with self._lock:
            self._memory.unpin(lobe)
            if lobe in self._pinned:
                self._pinned.remove(lobe)
                self._save()

    def registered(self, lobe: str) -> None:
        """This lobe can be read now: read it in if it is pinned. A damaged one says so itself, in
        the bank's `damaged`."""
        if lobe in self._pinned:
            with suppress(MultiLobeError):
                self._memory.pin(lobe)

    def is_pinned(self, lobe: str) -> bool:
        return lobe in self._pinned

    def _apply(self, mib: float | None) -> None:
        fault = _fault(mib)
        check(not fault, "memory_budget_mib", mib, fault)
        self._memory.budget_bytes = None if mib is None else int(mib * MIB)

    def _save(self) -> None:
        write_json(self._path, {"budget_mib": self.budget_mib, "pinned": sorted(self._pinned)})


def _fault(mib: Any) -> str:
    """What a budget must be and is not, or ""."""
    if mib is None or (isinstance(mib, (int, float)) and not isinstance(mib, bool) and 0 < mib < 1e9):
        return ""
    return "a number of MiB above 0, or None for no limit"


def _nbytes(matrices: Matrices) -> int:
    return sum(tensor_bytes(a, b) for a, b in matrices.values())
