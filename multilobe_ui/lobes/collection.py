"""The lobes of a home on one base: on disk, in the bank, and their rows for routing; taken in,
renamed and removed together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from ..errors import MultiLobeError
from .adapter import check_fits, read_header
from .bank import LobeBank
from .card import SHA256, Card, now
from .encoding import Encoder, RowEncoding
from .memory import Residency
from .row_memory import RowsOfLobes
from .store import Lobe, LobeStore


class Lobes(Sequence[Lobe]):
    """The lobes that fit a base, oldest first. Safe to use from several threads.

    Args:
        home: the folder that has the folder of lobes. encoder: makes the vectors of routing rows.
        memory_budget_mib: see `Residency`.

    Attributes:
        store: the lobes on disk, also those of other bases. bank: those of this base, ready to run.
            memory: which of them stay in memory. rows: their rows for routing. encoding: how rows
            are made usable.
        broken: why lobes of the home cannot be used, by their ids: damaged files.
        lock: held while lobes change. Whoever also needs a lock of the routers' or of the bank's
            takes this one first.
        on_change: called, with the lock held, when lobes have changed; with new names by old ones
            where lobes were renamed.
    """

    def __init__(
        self, home: Path, bank: LobeBank, encoder: Encoder, memory_budget_mib: float | None = None
    ) -> None:
        self.store, self.bank, self.encoder = LobeStore(home / "lobes"), bank, encoder
        self.memory = Residency(home / "memory.json", bank.memory, memory_budget_mib)
        self.encoding = RowEncoding(encoder, self.store)
        self.rows = RowsOfLobes(self.encoding.usable, self.encoding.trusts)
        self.broken: dict[str, str] = dict(self.store.broken)
        self.lock = threading.RLock()
        self.on_change: Callable[[Mapping[str, str]], None] = lambda renamed: None
        for lobe in self.store.all():
            self._register(lobe)

    @overload
    def __getitem__(self, index: int) -> Lobe: ...
    @overload
    def __getitem__(self, index: slice) -> list[Lobe]: ...
    def __getitem__(self, index: int | slice) -> Lobe | list[Lobe]:
        return list(self)[index]

    def __iter__(self) -> Iterator[Lobe]:
        return iter([lobe for lobe in self.store.all() if lobe.id in self.bank])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def names(self) -> list[str]:
        return [lobe.name for lobe in self]

    @property
    def pinned(self) -> list[str]:
        """Names of the lobes that stay in memory whatever the budget."""
        return [lobe.name for lobe in self if self.memory.is_pinned(lobe.id)]

    @property
    def experts(self) -> dict[str, Lobe]:
        """The expert of each tier of complexity routing: the one made here, else the first that
        came with a bundle, so that no stranger's takes over."""
        tiered = sorted(
            (lobe for lobe in self if lobe.card.tier), key=lambda lobe: SHA256 in lobe.card.adapter
        )
        return {lobe.card.tier: lobe for lobe in reversed(tiered)}

    def named(self, name: str) -> Lobe:
        """Also of another base. Raises LobeError if there is none."""
        return self.store.by_name(name)

    def fault(self, id: str) -> str:
        """Why the lobe with this id cannot be used, although it is of this base; "" if it can."""
        return self.broken.get(id) or self.bank.damaged.get(id, "")

    def leave_damaged(self) -> None:
        """Routers are not to choose a lobe that has turned out to be damaged."""
        if self.bank.damaged.keys() <= self.broken.keys():
            return
        with self.lock:
            self.broken.update(self.bank.damaged)
            self.on_change({})

    def new_card(self, name: str, origin: str, **more: Any) -> Card:
        """A card for a lobe made on this base now; `more` are other fields of `Card`."""
        backbone = self.bank.backbone
        base = {"name": backbone.name, "fingerprint": backbone.fingerprint}
        values = {"embedding_model": self.encoder.name, **more}
        return Card(name=name, created=now(), origin=origin, base=base, **values)

    def add(self, prepared: Path, card: Card, replaces: str = "") -> Lobe:
        """Take in a prepared folder (adapter files, perhaps routing rows), which is moved, if it
        fits the base.

        Args:
            replaces: id of a lobe whose place it takes, and whose pin.

        Raises:
            LobeError: the name is refused or taken; then the folder stays. AdapterError: it does
                not fit the base.
        """
        header = read_header(prepared)
        check_fits(header, self.bank.features, self.bank.backbone.name)
        facts = {"r": header.r, "target_modules": list(header.target_modules), "bytes": header.nbytes}
        with self.lock:
            was_pinned = self.memory.is_pinned(replaces)
            for old in [lobe for lobe in self.store.all() if lobe.id == replaces]:
                self.store.delete(old.name)
                self._forget(old)
            lobe = self.store.add(prepared, replace(card, adapter=facts))
            self._register(lobe)
            if was_pinned:
                self.memory.pin(lobe.id)
            self.on_change({})
        return lobe

    def add_expert(self, tier: str, adapter: Path, owner: str) -> None:
        """Take in one of the lobes that complexity routing made for itself, in the place of its
        forerunner."""
        name, replaces = self.store.free_name(tier), ""
        if (old := self.experts.get(tier)) is not None:
            name, replaces = old.name, old.id
        self.add(adapter, self.new_card(name, "complexity expert", owner=owner, tier=tier), replaces)

    def remove(self, *names: str) -> None:
        """Delete lobes and their files, and give their memory back.

        Raises:
            LobeError: there is none of one of those names; then all stay.
        """
        with self.lock:
            lobes = {lobe.id: lobe for lobe in map(self.named, names)}
            try:
                for lobe in lobes.values():
                    self.store.delete(lobe.name)
                    self._forget(lobe)
            finally:
                self.on_change({})

    def rename(self, name: str, new_name: str) -> Lobe:
        """Give a lobe another name; its id, its files and what routers have learned of it stay."""
        with self.lock:
            before = self.named(name).name
            lobe = self.store.rename(name, new_name)
            self.on_change({before: lobe.name})
            return lobe

    @contextmanager
    def instead(self, old: Sequence[Lobe], new: Sequence[Lobe]) -> Iterator[None]:
        """Make stored lobes available in the place of others, and undo it if the block fails. The
        caller holds the lock."""
        pinned = [lobe.id for lobe in old if self.memory.is_pinned(lobe.id)]
        try:
            for lobe in old:
                self._forget(lobe)
            for lobe in new:
                self._register(lobe)
            yield
        except BaseException:
            # a second failure must not keep the rest from coming back, nor hide the first
            for lobe in new:
                with suppress(Exception):
                    self._forget(lobe)
            for lobe in old:
                with suppress(Exception):
                    self._register(lobe)
            for id in pinned:
                with suppress(Exception):
                    self.memory.pin(id)
            raise

    def _register(self, lobe: Lobe) -> None:
        """Make a stored lobe available, if it belongs to this base; a damaged one is remembered in
        `broken`."""
        if lobe.card.base.get("fingerprint") != self.bank.backbone.fingerprint:
            return
        try:
            self.bank.register(lobe.id, lobe.path, str(lobe.card.adapter.get(SHA256, "")))
        except MultiLobeError as error:
            self.broken[lobe.id] = str(error)
            return
        self.rows.take(lobe)
        self.memory.registered(lobe.id)

    def _forget(self, lobe: Lobe) -> None:
        """A lobe is gone: nothing of it stays in memory."""
        self.bank.unregister(lobe.id)
        self.memory.unpin(lobe.id)
        self.rows.forget(lobe)
        self.broken.pop(lobe.id, None)
