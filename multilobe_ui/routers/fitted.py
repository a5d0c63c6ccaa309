"""The routers of one home: made for the lobes that are there, fitted, and known to be stale when lobes change.

What a person asked for is kept on disk and travels in bundles: the fits of routers that ask for one (gate, X-LoRA, complexity), and
a person's own settings (the stages of a chain, the words of a lobe). All else is derived from the lobes' rows, and only remembered
while the home is open.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, MultiLobeError, RoutingError
from ..lobes.card import now
from ..progress import Progress, finish
from ..routing.fits import Fit, Key, read_fit, write_fit
from . import ROUTERS, Router, RoutingContext
from .chain import DEFAULT as DEFAULT_STAGES

if TYPE_CHECKING:
    from ..routing.contexts import Contexts

ASIDE = "uncorrected"
PROBE = "What is this about?"
"""A prompt that a router with a stranger's fit must be able to decide."""
Birth = tuple[str, str]
"""Name and time of birth of a lobe, as in a fit's key."""
_FORESEEABLE = (MultiLobeError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError)
"""What a router can raise over a state of another version, or a stranger's."""


class Routers:
    """See the module's text. Safe to use from several threads. Whoever also needs the lobes' lock takes that one first.

    Args:
        folder: where fits are kept, a folder for each router. contexts: what routers know of the present lobes.
        default: the router that is used when none is named.

    Attributes:
        context, key: of the present lobes and corrections, see `Contexts`. corrections: what people know better.
        version: rises whenever lobes, corrections or fits change.
    """

    def __init__(self, folder: Path, contexts: Contexts, default: str) -> None:
        self.folder, self.default, self.contexts = folder, default, contexts
        self.context, self.key, self.corrections = contexts.context, contexts.key, contexts.corrections
        self.version = 0
        self._lock = threading.RLock()
        self._routers: dict[str, Router] = {}
        read = {name: _worth_keeping(fit) for name, fit in _read_fits(folder).items()}
        self._fits = {name: fit for name, fit in read.items() if fit is not None}
        self._derived: dict[str, Fit] = {}  # of routers that calibrate by themselves; never on disk
        self._aside: dict[str, Fit] = {}
        _sweep(folder, self._fits)
        contexts.lobes.on_change = self._lobes_changed

    @property
    def names(self) -> list[str]:
        """Every router, the default first."""
        return sorted(ROUTERS, key=lambda name: name != self.default)

    def named(self, name: str | None = None) -> Router:
        """The router of that name for the present lobes, with what still holds of its last fit.

        Raises:
            ConfigError: there is no such router.
        """
        name = name or self.default
        if name not in ROUTERS:
            raise ConfigError(f"There is no router {name!r}. There are: {', '.join(ROUTERS)}.")
        with self._lock:
            if name not in self._routers:
                self._routers[name] = self._made(name)
            return self._routers[name]

    def fit_of(self, name: str) -> Fit | None:
        """The last fit of a router, stale or not; of one that calibrates by itself what it found since the home was opened."""
        return self._derived.get(name) or self._fits.get(name)

    def fits_of(self, lobes: Collection[Birth]) -> dict[str, Fit]:
        """What a bundle of exactly these lobes should bring along, by router: fits that were made for them, and a person's
        settings if no other lobe is here."""
        key = self.key()
        found = {name: fit if _asks_for_fit(name) else replace(fit, key=key) for name, fit in dict(self._fits).items()}
        return {name: fit for name, fit in found.items() if _births(fit.key) == set(lobes)}

    def is_stale(self, name: str) -> bool:
        """Whether lobes have come, gone or been trained again since the router was fitted."""
        fit, router = self.fit_of(name), self.named(name)
        if fit is None or not router.asks_for_fit:
            return False
        there, here = fit.key, self.key()
        return there != here if router.learns_labels else (there[0][:2], there[1:]) != (here[0][:2], here[1:])

    def changed(self) -> None:
        """The lobes are others now: what calibrates by itself does so at its next use, the default router at once."""
        with self._lock:
            self._routers.clear()
            self.named()

    def take(self, fits: Mapping[str, Fit], came: Collection[Birth], *, settings: bool) -> None:
        """Calibrate for lobes that came with a bundle, and take over those of its fits that nobody here can miss: made exactly
        for the lobes that came, which must be all that there are, and for a router that has no fit or setting here. Of a state
        that its router cannot use nothing is left.

        Args:
            came: the lobes of the bundle. settings: whether a person's settings may be taken too (stages of a chain, words).

        Raises:
            What calibrating raises; then fits and routers are as before.
        """
        with self._lock:
            routers, derived, taken = dict(self._routers), dict(self._derived), list[str]()
            try:
                self._routers.clear()
                key = self.key()
                for name, offered in fits.items():
                    fit = _worth_keeping(replace(offered, router=name))
                    known = fit is None or name in self._fits or (not settings and not _asks_for_fit(name))
                    if fit is None or known or fit.key != key or _births(key) != set(came):
                        continue
                    if _serves(self._new(name), fit.state):
                        self._derived.pop(name, None)
                        self._keep(name, fit)
                        taken.append(name)
                self.named()
                self.version += 1
            except BaseException:
                for name in taken:
                    self._drop(name)
                self._routers, self._derived = routers, derived
                raise

    def prepare(self) -> None:
        """Load the sentence encoder and calibrate for the present lobes: call once after opening a home with lobes."""
        with self.contexts.lobes.lock:
            if self.contexts.lobes:
                self.contexts.lobes.encoder(["ready"])
                self.adopt({})

    def keep_corrections(self, ids: Sequence[str], fits: Mapping[str, Fit]) -> None:
        """Put corrections in force, with the routers' fits that know them."""
        with self.contexts.lobes.lock:
            self._put_aside(self.key([]))
            self.corrections.keep(ids)
            self.adopt(fits)

    def forget_corrections(self, ids: Sequence[str] | None = None) -> None:
        """Take back those corrections, or all; routers that calibrate by themselves do so without them."""
        with self.contexts.lobes.lock:
            if any(correction.kept for correction in self.corrections.forget(ids)):
                self.adopt({} if self.corrections.kept() else self._fits_aside())

    def adopt(self, fits: Mapping[str, Fit]) -> None:
        """The lobes or corrections are others now; these fits, made here, are in force if they are for them."""
        with self._lock:
            key = self.key()
            for name, fit in fits.items():
                if name in ROUTERS and fit.key == key:
                    self._note(name, fit)
            self.changed()
            self.version += 1

    def _lobes_changed(self, renamed: Mapping[str, str]) -> None:
        """See `Lobes.on_change`."""
        if renamed:
            self.rename(renamed)
        self.adopt({})

    def _put_aside(self, key: Key) -> None:
        """Remember the fits of this key, so that what is about to change them can be undone exactly. A person's settings are
        not among them: they hold whatever the key."""
        with self._lock:
            self._aside = {name: fit for name, fit in self._derived.items() if fit.key == key}
            for name, fit in self._fits.items():
                if fit.key == key and _asks_for_fit(name):
                    write_fit(self.folder / ASIDE / name, fit)

    def _fits_aside(self) -> dict[str, Fit]:
        """What `_put_aside` remembers."""
        kept = {name: fit for name, fit in _read_fits(self.folder / ASIDE).items() if _asks_for_fit(name)}
        return {**self._aside, **kept}

    def rename(self, names: Mapping[str, str]) -> None:
        """Lobes are called otherwise now (old name → new name): fits follow."""
        with self._lock:
            for name, fit in dict(self._fits).items():
                self._keep(name, fit.renamed(names) if _asks_for_fit(name) else _settings_renamed(fit, names))
            # a chain and the words are derived anew: in their states a lobe's name may be a stage's or a word as well
            kept = {name: fit for name, fit in self._derived.items() if name not in ("chain", "keyword")}
            self._derived = {name: fit.renamed(names) for name, fit in kept.items()}

    def change(self, name: str, change: Callable[[Router], None]) -> None:
        """Change what a router has learned by hand (words of a lobe, the order of a chain), and keep it.

        Raises:
            RoutingError: the router refuses it; then nothing has changed.
        """
        with self._lock:
            router = self._new(name)
            router.restore(self.named(name).state())
            change(router)
            if not router.asks_for_fit:
                changed, router = router.state(), self._new(name)
                router.refit(changed)  # calibrated as it will be after a restart, when only the settings are known
            fit = Fit(name, self.key(), router.state(), created=now())
            self._note(name, fit)
            if not _asks_for_fit(name):
                own = _worth_keeping(fit)
                if own is None:
                    self._drop(name)
                else:
                    self._keep(name, own)
            self._routers[name] = router

    def fitting(
        self, name: str, settings: Mapping[str, Any], stop: threading.Event | None = None, *, owner: str = ""
    ) -> Generator[Progress, None, Fit]:
        """Fit a router from the lobes' rows, step by step; the old fit serves until the new one is complete.

        Args:
            owner: whose the lobes are that the router made for itself.

        Raises:
            ConfigError, RoutingError: see `Router.fitting`.
        """
        self.named(name)
        key = self.key()
        router = self._new(name)
        outcome = yield from router.fitting(settings, stop or threading.Event())
        for tier, adapter in outcome.experts.items():  # takes the lobes' lock, so not under this object's
            self.contexts.lobes.add_expert(tier, adapter, owner)
        for folder in {adapter.parent for adapter in outcome.experts.values()}:
            shutil.rmtree(folder, ignore_errors=True)
        fit = Fit(name, key, router.state(), _plain(settings), outcome.report, now())
        with self._lock:
            self._note(name, fit)
            self._routers.pop(name, None)
            self.version += 1
        return fit

    def trial(self, name: str, context: RoutingContext, key: Key, stop: threading.Event) -> tuple[Router, Fit]:
        """A router fitted for another context, with the settings of its last fit; the one that serves stays as it is.

        Raises:
            ConfigError, RoutingError: see `Router.fitting`.
        """
        self.named(name)
        last, router = self.fit_of(name), ROUTERS[name](context, self.contexts.threshold)
        if last is not None and not router.asks_for_fit and not _takes(router.refit, last.state):
            router = ROUTERS[name](context, self.contexts.threshold)
        settings = last.settings if last else {}
        outcome = finish(router.fitting(settings, stop))
        return router, Fit(name, key, router.state(), settings, outcome.report, now())

    def _new(self, name: str) -> Router:
        return ROUTERS[name](self.context(), self.contexts.threshold)

    def _made(self, name: str) -> Router:
        router = self._new(name)
        if router.asks_for_fit:
            fit = self._fits.get(name)
            if fit is None or _takes(router.restore, fit.state):
                return router
            return self._new(name)  # what half a restore left is not to be trusted
        key, last = self.key(), self.fit_of(name)
        derived = self._derived.get(name)
        if derived is not None and derived.key == key:
            if _takes(router.restore, derived.state):
                return router
            router = self._new(name)
        if not _takes(router.refit, last.state if last else {}):
            router = self._new(name)
            router.refit({})
        self._derived[name] = Fit(name, key, router.state(), created=now())
        return router

    def _note(self, name: str, fit: Fit) -> None:
        """A fit that was made here: on disk if a person asked for it, else in memory."""
        if _asks_for_fit(name):
            self._keep(name, fit)
        else:
            self._derived[name] = fit

    def _keep(self, name: str, fit: Fit) -> None:
        self._fits[name] = fit
        write_fit(self.folder / name, fit)

    def _drop(self, name: str) -> None:
        self._fits.pop(name, None)
        shutil.rmtree(self.folder / name, ignore_errors=True)


def _read_fits(folder: Path) -> dict[str, Fit]:
    """The readable fits in a folder, by router."""
    found = {}
    for name in ROUTERS:
        with suppress(RoutingError):
            found[name] = replace(read_fit(folder / name), router=name)
    return found


def _sweep(folder: Path, kept: Collection[str]) -> None:
    """Remove what versions before this one kept of routers that calibrate by themselves."""
    for name in ROUTERS:
        if name not in kept and not _asks_for_fit(name):
            for place in (folder / name, folder / ASIDE / name):
                shutil.rmtree(place, ignore_errors=True)


@cache
def _asks_for_fit(name: str) -> bool:
    """Whether a person starts the fit of the router of this name."""
    return {router.name: router.asks_for_fit for router in without_lobes()}.get(name, False)


def _worth_keeping(fit: Fit) -> Fit | None:
    """The part of a fit that cannot be derived: all of it where a person asks for fits, else a person's settings; None where
    that is nothing, or no router can have said it."""
    if fit.router not in ROUTERS:
        return None
    if _asks_for_fit(fit.router):
        return fit
    own: dict[str, Any] = {}
    with suppress(*_FORESEEABLE):
        if fit.router == "chain":
            stages = [list(stage) for stage in fit.state["stages"]]
            own = {"stages": stages} if stages != [list(stage) for stage in DEFAULT_STAGES] else {}
        elif fit.router == "keyword":
            terms = {lobe: dict(fit.state["terms"][lobe]) for lobe in fit.state["edited"]}
            own = {"edited": list(terms), "terms": terms} if terms else {}
    return replace(fit, state=own, report={}) if own else None


def _settings_renamed(fit: Fit, names: Mapping[str, str]) -> Fit:
    """A person's settings when lobes are called otherwise: a stage or a word that is spelled like a lobe's name stays."""
    state = fit.state
    if "terms" in state:
        terms = {names.get(lobe, lobe): own for lobe, own in state["terms"].items()}
        state = {"edited": list(terms), "terms": terms}
    return replace(fit.renamed(names), state=state)


def _births(key: Key) -> set[Birth]:
    """The lobes of a fit's key."""
    return {(entry[0], entry[1] if len(entry) > 1 else "") for entry in key[1:]}


def _takes(take_up: Callable[[Mapping[str, Any]], None], state: Mapping[str, Any]) -> bool:
    """Whether a router can take up a state, which may be of another version or a stranger's."""
    try:
        take_up(state)
    except _FORESEEABLE:
        return False
    return True


def _serves(router: Router, state: Mapping[str, Any]) -> bool:
    """Whether a new router with a stranger's state decides a prompt, by finite numbers."""
    if not _takes(router.restore if router.asks_for_fit else router.refit, state):
        return False
    try:
        with np.errstate(all="ignore"):  # what overflows shows in the numbers
            decision = router.route(PROBE)
        numbers = [decision.confidence, *decision.scores.values(), *decision.probabilities.values()]
        return bool(np.isfinite(numbers).all())
    except _FORESEEABLE:
        return False


def without_lobes() -> list[Router]:
    """Every router as it is where there are no lobes: what it is called, and what may be set."""

    def nothing(*_: object) -> Any:
        return np.zeros((0, 0), np.float32)

    return [make(RoutingContext((), {}, nothing, nothing), None) for make in ROUTERS.values()]


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings worth keeping: rows that were handed in are data."""
    return {name: value for name, value in settings.items() if name != "rows"}
