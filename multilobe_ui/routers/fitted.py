"""The routers of one home: made for the lobes that are there, fitted, and known to be stale when
lobes change.

What a person asked for is kept on disk and travels in bundles: the fits of routers that ask for one
(gate, X-LoRA, complexity), and a person's own settings (the stages of a chain, the words of a
lobe). All else is derived from the lobes' rows, and only remembered while the home is open.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..lobes.card import now
from ..progress import Progress, finish
from ..routing.fits import Birth, Fit, Key
from ..routing.router import BankContext, State
from ..routing.strangers import adapts, serves
from . import ROUTERS, Router
from .kept import KeptFits, asks_for_fit, worth_keeping

if TYPE_CHECKING:
    from ..routing.contexts import Contexts


class Routers:
    """See the module's text. Safe to use from several threads. Whoever also needs the lobes' lock
    takes that one first.

    Args:
        folder: where fits are kept, a folder for each router. contexts: what routers know of the
            present lobes.
        default: the router that is used when none is named.

    Attributes:
        context, key: of the present lobes and corrections, see `Contexts`. corrections: what people
            know better.
        version: rises whenever lobes, corrections or fits change.
    """

    def __init__(self, folder: Path, contexts: Contexts, default: str) -> None:
        self.folder, self.default, self.contexts = folder, default, contexts
        self.context, self.key, self.corrections = contexts.context, contexts.key, contexts.corrections
        self.version = 0
        self._lock = threading.RLock()
        self._routers: dict[str, Router] = {}
        self._fits = KeptFits(folder)
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
        """The last fit of a router, stale or not; of one that calibrates by itself what it found
        since the home was opened."""
        return self._fits.of(name)

    def fits_of(self, lobes: Collection[Birth]) -> dict[str, Fit]:
        """What a bundle of exactly these lobes should bring along, by router: fits that were made
        for them, and a person's settings if no other lobe is here."""
        return self._fits.of_lobes(lobes, self.key())

    def is_stale(self, name: str) -> bool:
        """Whether lobes have come, gone or been trained again since the router was fitted."""
        fit, router = self.fit_of(name), self.named(name)
        if fit is None or not router.asks_for_fit:
            return False
        if router.learns_labels:
            return fit.key != self.key()
        return fit.key.uncorrected() != self.key().uncorrected()

    def changed(self) -> None:
        """The lobes are others now: what calibrates by itself does so at its next use, the default
        router at once."""
        with self._lock:
            self._routers.clear()
            self.named()

    def take(self, fits: Mapping[str, Fit], came: Collection[Birth], *, settings: bool) -> None:
        """Calibrate for lobes that came with a bundle, and take over those of its fits that nobody
        here can miss: made exactly for the lobes that came, which must be all that there are, and
        for a router that has no fit or setting here. Of a state that its router cannot use nothing
        is left.

        Args:
            came: the lobes of the bundle. settings: whether a person's settings may be taken too
                (stages of a chain, words).

        Raises:
            What calibrating raises; then fits and routers are as before.
        """
        with self._lock:
            routers, derived, taken = dict(self._routers), dict(self._fits.derived), list[str]()
            try:
                self._routers.clear()
                key = self.key()
                for name, offered in fits.items():
                    if offered.key != key or set(key.lobes) != set(came) or name in self._fits.asked_for:
                        continue
                    fit = worth_keeping(replace(offered, router=name))
                    if fit is None or not (settings or asks_for_fit(name)):
                        continue
                    if serves(self._new(name), fit.state):
                        self._fits.derived.pop(name, None)
                        self._fits.keep(name, fit)
                        taken.append(name)
                self.named()
                self.version += 1
            except BaseException:
                for name in taken:
                    self._fits.drop(name)
                self._routers, self._fits.derived = routers, derived
                raise

    def prepare(self) -> None:
        """Load the sentence encoder and calibrate for the present lobes: call once after opening a
        home with lobes."""
        with self.contexts.lobes.lock:
            if self.contexts.lobes:
                self.contexts.lobes.encoder(["ready"])
                self.adopt({})

    def keep_corrections(self, ids: Sequence[str], fits: Mapping[str, Fit]) -> None:
        """Put corrections in force, with the routers' fits that know them."""
        with self.contexts.lobes.lock:
            with self._lock:
                self._fits.put_aside(self.key([]))
            self.corrections.keep(ids)
            self.adopt(fits)

    def forget_corrections(self, ids: Sequence[str] | None = None) -> None:
        """Take back those corrections, or all; routers that calibrate by themselves do so without them."""
        with self.contexts.lobes.lock:
            if any(correction.kept for correction in self.corrections.forget(ids)):
                self.adopt({} if self.corrections.kept() else self._fits.aside())

    def adopt(self, fits: Mapping[str, Fit]) -> None:
        """The lobes or corrections are others now; these fits, made here, are in force if they are
        for them."""
        with self._lock:
            key = self.key()
            for name, fit in fits.items():
                if name in ROUTERS and fit.key == key:
                    self._fits.note(name, fit)
            self.changed()
            self.version += 1

    def _lobes_changed(self, renamed: Mapping[str, str]) -> None:
        """See `Lobes.on_change`."""
        if renamed:
            self.rename(renamed)
        self.adopt({})

    def rename(self, names: Mapping[str, str]) -> None:
        """Lobes are called otherwise now (old name → new name): fits follow."""
        with self._lock:
            self._fits.rename(names)

    def change(self, name: str, change: Callable[[Router], None]) -> None:
        """Change what a router has learned by hand (words of a lobe, the order of a chain), and keep it.

        Raises:
            RoutingError: the router refuses it; then nothing has changed.
        """
        with self._lock:
            router = self._new(name)
            router.adapt(State(self.named(name).state()))
            change(router)
            if not router.asks_for_fit:
                changed, router = router.state(), self._new(name)
                # calibrated as it will be after a restart, when only the settings are known
                router.adapt(State(changed, exact=False))
            fit = Fit(name, self.key(), router.state(), created=now())
            self._fits.note(name, fit)
            if not asks_for_fit(name):
                by_hand = worth_keeping(fit)
                if by_hand is None:
                    self._fits.drop(name)
                else:
                    self._fits.keep(name, by_hand)
            self._routers[name] = router

    def fitting(
        self, name: str, settings: Mapping[str, Any], stop: threading.Event | None = None, *, owner: str = ""
    ) -> Generator[Progress, None, Fit]:
        """Fit a router from the lobes' rows, step by step; the old fit serves until the new one is complete.

        Args:
            owner: whose the lobes are that the router made for itself.

        Raises:
            ConfigError, RoutingError: see `Router.learn`.
        """
        self.named(name)
        key = self.key()
        router = self._new(name)
        outcome = yield from router.learn(settings, stop or threading.Event())
        for tier, adapter in outcome.experts.items():  # takes the lobes' lock, so not under this object's
            self.contexts.lobes.add_expert(tier, adapter, owner)
        for folder in {adapter.parent for adapter in outcome.experts.values()}:
            shutil.rmtree(folder, ignore_errors=True)
        fit = Fit(name, key, router.state(), _plain(settings), outcome.report, now())
        with self._lock:
            self._fits.note(name, fit)
            self._routers.pop(name, None)
            self.version += 1
        return fit

    def trial(self, name: str, context: BankContext, key: Key, stop: threading.Event) -> tuple[Router, Fit]:
        """A router fitted for another context, with the settings of its last fit; the one that
        serves stays as it is.

        Raises:
            ConfigError, RoutingError: see `Router.learn`.
        """
        self.named(name)
        last, router = self.fit_of(name), ROUTERS[name](context, self.contexts.threshold)
        if (
            last is not None
            and not router.asks_for_fit
            and not adapts(router, State(last.state, exact=False))
        ):
            router = ROUTERS[name](context, self.contexts.threshold)
        settings = last.settings if last else {}
        outcome = finish(router.learn(settings, stop))
        return router, Fit(name, key, router.state(), settings, outcome.report, now())

    def _new(self, name: str) -> Router:
        return ROUTERS[name](self.context(), self.contexts.threshold)

    def _made(self, name: str) -> Router:
        """The router for the present lobes: with its own state, else with what still holds of the
        last, else as new."""
        router, key, last = self._new(name), self.key(), self._fits.of(name)
        if router.asks_for_fit:
            if last is None or adapts(router, State(last.state)):
                return router
            return self._new(name)
        derived = self._fits.derived.get(name)
        if derived is not None and derived.key == key:
            if adapts(router, State(derived.state)):
                return router
            router = self._new(name)
        state = State(exact=False)
        if last is not None:
            state = State(last.state, exact=False)
        if not adapts(router, state):
            router = self._new(name)
            router.adapt(State(exact=False))
        self._fits.derived[name] = Fit(name, key, router.state(), created=now())
        return router


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings worth keeping: rows that were handed in are data."""
    return {name: value for name, value in settings.items() if name != "rows"}
