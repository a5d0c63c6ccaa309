"""What the routers of a home have learned: on disk what a person asked for, in memory what is
derived from lobes' rows.

    routing/<base>/<router>/      the fits of routers that ask for one, and a person's own settings of the others
    routing/<base>/uncorrected/   fits from before corrections came in force, so that these can be taken back exactly
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RoutingError
from ..routing.fits import Birth, Fit, Key, read_fit, write_fit
from ..routing.router import BankContext
from ..routing.strangers import set_by_hand
from . import ROUTERS, Router

ASIDE = "uncorrected"


class KeptFits:
    """The last fit of every router. Not safe for several threads: `Routers` has the lock.

    Attributes:
        asked_for: also on disk. derived: of routers that calibrate by themselves, found since the
            home was opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        read = {name: worth_keeping(fit) for name, fit in _read_fits(folder).items()}
        self.asked_for = {name: fit for name, fit in read.items() if fit is not None}
        self.derived: dict[str, Fit] = {}
        self._aside: dict[str, Fit] = {}
        for name in ROUTERS.keys() - self.asked_for.keys():
            if not asks_for_fit(
                name
            ):  # what versions before this one kept of routers that calibrate by themselves
                for old in (folder / name, folder / ASIDE / name):
                    shutil.rmtree(old, ignore_errors=True)

    def of(self, name: str) -> Fit | None:
        """The last fit of a router, stale or not."""
        return self.derived.get(name) or self.asked_for.get(name)

    def of_lobes(self, lobes: Collection[Birth], key: Key) -> dict[str, Fit]:
        """By router, the fits that were made for exactly these lobes, and a person's settings if no
        other lobe is in `key`."""
        fits = {
            n: fit if asks_for_fit(n) else replace(fit, key=key) for n, fit in dict(self.asked_for).items()
        }
        return {name: fit for name, fit in fits.items() if set(fit.key.lobes) == set(lobes)}

    def note(self, name: str, fit: Fit) -> None:
        """A fit that was made here: on disk if a person asked for it, else in memory."""
        if asks_for_fit(name):
            self.keep(name, fit)
        else:
            self.derived[name] = fit

    def keep(self, name: str, fit: Fit) -> None:
        self.asked_for[name] = fit
        write_fit(self.folder / name, fit)

    def drop(self, name: str) -> None:
        self.asked_for.pop(name, None)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def rename(self, names: Mapping[str, str]) -> None:
        """Lobes are called otherwise now: old name → new name."""
        for name, fit in dict(self.asked_for).items():
            self.keep(name, fit.renamed(names) if asks_for_fit(name) else _settings_renamed(fit, names))
        # a chain and the words are derived anew: in their states a lobe's name may be a stage's or
        # a word as well
        derived = {name: fit for name, fit in self.derived.items() if name not in ("chain", "keyword")}
        self.derived = {name: fit.renamed(names) for name, fit in derived.items()}

    def put_aside(self, key: Key) -> None:
        """Remember the fits of this key, so that what is about to change them can be undone
        exactly. A person's settings are not among them: they hold whatever the key."""
        self._aside = {name: fit for name, fit in self.derived.items() if fit.key == key}
        for name, fit in self.asked_for.items():
            if fit.key == key and asks_for_fit(name):
                write_fit(self.folder / ASIDE / name, fit)

    def aside(self) -> dict[str, Fit]:
        """What `put_aside` remembers."""
        kept = {name: fit for name, fit in _read_fits(self.folder / ASIDE).items() if asks_for_fit(name)}
        return {**self._aside, **kept}


def worth_keeping(fit: Fit) -> Fit | None:
    """The part of a fit that cannot be derived: all of it where a person asks for fits, else a
    person's settings; None where that is nothing, or no router can have said it."""
    if fit.router not in ROUTERS:
        return None
    if asks_for_fit(fit.router):
        return fit
    by_hand = set_by_hand(_without_lobes(fit.router), fit.state)
    return replace(fit, state=by_hand, report={}) if by_hand else None


def asks_for_fit(name: str) -> bool:
    """Whether a person starts the fit of the router of this name."""
    return _without_lobes(name).asks_for_fit


def without_lobes() -> list[Router]:
    """Every router as it is where there are no lobes: what it is called, and what may be set."""
    return [_without_lobes(name) for name in ROUTERS]


@cache
def _without_lobes(name: str) -> Router:
    def nothing(*_: object) -> Any:
        return np.zeros((0, 0), np.float32)

    return ROUTERS[name](BankContext((), {}, nothing, nothing), None)


def _read_fits(folder: Path) -> dict[str, Fit]:
    """The readable fits in a folder, by router."""
    fits = {}
    for name in ROUTERS:
        with suppress(RoutingError):
            fits[name] = replace(read_fit(folder / name), router=name)
    return fits


def _settings_renamed(fit: Fit, names: Mapping[str, str]) -> Fit:
    """A person's settings when lobes are called otherwise: a stage or a word that is spelled like a
    lobe's name stays."""
    state = fit.state
    if "terms" in state:
        terms = {names.get(lobe, lobe): own for lobe, own in state["terms"].items()}
        state = {"edited": list(terms), "terms": terms}
    return replace(fit.renamed(names), state=state)
