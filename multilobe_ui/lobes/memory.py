"""Which lobes of a home stay in memory: the budget and the pins, kept in `memory.json` beside the lobes.

They are about this machine, so they are not in the cards, which travel.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import MultiLobeError
from ..files import read_ours, write_json
from ..settings import check
from .bank import LobeBank

MIB = 1 << 20


class Residency:
    """Budget and pins, in force in the bank. A lobe of another base keeps its pin for when it can be used again.

    Args:
        path: the file. budget_mib: takes the place of the budget in the file, without being written there; None leaves that.

    Raises:
        ConfigError: the budget is not a number of MiB.
    """

    def __init__(self, path: Path, bank: LobeBank, budget_mib: float | None = None) -> None:
        self._path, self._bank = path, bank
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
        most = self._bank.budget_bytes
        return None if most is None else most / MIB

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
            self._bank.pin(lobe)
            self._pinned.add(lobe)
            self._save()

    def unpin(self, lobe: str) -> None:
        """Also for a lobe that is gone."""
        with self._lock:
            self._bank.unpin(lobe)
            if lobe in self._pinned:
                self._pinned.remove(lobe)
                self._save()

    def registered(self, lobe: str) -> None:
        """The bank knows this lobe now: read it in if it is pinned. A damaged one says so itself, in the bank's `damaged`."""
        if lobe in self._pinned:
            with suppress(MultiLobeError):
                self._bank.pin(lobe)

    def is_pinned(self, lobe: str) -> bool:
        return lobe in self._pinned

    def _apply(self, mib: float | None) -> None:
        fault = _fault(mib)
        check(not fault, "memory_budget_mib", mib, fault)
        self._bank.budget_bytes = None if mib is None else int(mib * MIB)

    def _save(self) -> None:
        write_json(self._path, {"budget_mib": self.budget_mib, "pinned": sorted(self._pinned)})


def _fault(mib: Any) -> str:
    """What a budget must be and is not, or ""."""
    if mib is None or (isinstance(mib, (int, float)) and not isinstance(mib, bool) and 0 < mib < 1e9):
        return ""
    return "a number of MiB above 0, or None for no limit"
