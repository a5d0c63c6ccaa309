"""The routers of one home: made for the lobes that are there, fitted, kept on disk, and known to be stale when lobes change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigError, MultiLobeError, RoutingError
from .fits import Fit, Key, read_fit, write_fit
from .lobe import now
from .progress import Progress, finish
from .routers import ROUTERS, Router, RoutingContext, RoutingDecision
from .routers.base import AUTO, FitOutcome, Mixing

ASIDE = "uncorrected"


class Routing:
    """See the module's text. Safe to use from several threads.

    Args:
        folder: where fits are kept, a folder for each router. context: makes the context for the present lobes.
        key: what a fit made now would belong to (see `fits.Fit`). default: the router that is used when none is named.
        threshold: embedding score that a lobe must reach; None calibrates it.
    """

    def __init__(
        self,
        folder: Path,
        context: Callable[[], RoutingContext],
        key: Callable[[], Key],
        default: str,
        threshold: float | None,
    ) -> None:
        self.folder, self.default = folder, default
        self._context, self._key, self._threshold = context, key, threshold
        self._lock = threading.RLock()
        self._routers: dict[str, Router] = {}
        self._fits = _read_fits(folder)

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

    def route(self, prompt: str, router: str | None = None, mixing: Mixing = AUTO) -> RoutingDecision:
        return self.named(router).route(prompt, mixing)

    def fit_of(self, name: str) -> Fit | None:
        """The last fit of a router, stale or not."""
        return self._fits.get(name)

    def fits(self) -> dict[str, Fit]:
        return dict(self._fits)

    def is_stale(self, name: str) -> bool:
        """Whether lobes have come, gone or been trained again since the router was fitted."""
        fit, router = self.fit_of(name), self.named(name)
        if fit is None or not router.asks_for_fit:
            return False
        there, here = fit.key, self._key()
        return there != here if router.learns_labels else (there[0][:2], there[1:]) != (here[0][:2], here[1:])

    def changed(self) -> None:
        """The lobes are others now: what calibrates by itself does so at its next use, the default router at once."""
        with self._lock:
            self._routers.clear()
            self.named()

    def take(self, fits: Mapping[str, Fit]) -> None:
        """Fits that came with a bundle: each is taken over where this home has none that it can use."""
        with self._lock:
            for name, fit in fits.items():
                if name in ROUTERS and (name not in self._fits or fit.key == self._key()):
                    self._keep(name, fit)
            self.changed()

    def put_aside(self, key: Key) -> None:
        """Remember the fits of this key, so that what is about to change them can be undone exactly."""
        for name, fit in self.fits().items():
            if fit.key == key:
                write_fit(self.folder / ASIDE / name, fit)

    def put_aside_fits(self) -> dict[str, Fit]:
        """What `put_aside` remembers."""
        return _read_fits(self.folder / ASIDE)

    def rename(self, names: Mapping[str, str]) -> None:
        """Lobes are called otherwise now (old name → new name): fits follow."""
        with self._lock:
            for name, fit in self.fits().items():
                self._keep(name, fit.renamed(names))

    def change(self, name: str, change: Callable[[Router], None]) -> None:
        """Change what a router has learned by hand (words of a lobe, the order of a chain), and keep it.

        Raises:
            RoutingError: the router refuses it; then nothing has changed.
        """
        with self._lock:
            router = self._new(name)
            router.restore(self.named(name).state())
            change(router)
            self._keep(name, Fit(name, self._key(), router.state(), created=now()))
            self._routers[name] = router

    def fitting(
        self,
        name: str,
        settings: Mapping[str, Any],
        stop: threading.Event,
        experts: Callable[[FitOutcome], None] = lambda outcome: None,
    ) -> Generator[Progress, None, Fit]:
        """Fit a router from the lobes' rows, step by step; the old fit serves until the new one is complete.

        Args:
            experts: takes in the lobes that the router made for itself.

        Raises:
            ConfigError, RoutingError: see `Router.fitting`.
        """
        self.named(name)
        key = self._key()
        router = self._new(name)
        outcome = yield from router.fitting(settings, stop)
        with self._lock:
            experts(outcome)
            fit = Fit(name, key, router.state(), _plain(settings), outcome.report, now())
            self._keep(name, fit)
            self._routers.pop(name, None)
        return fit

    def trial(self, name: str, context: RoutingContext, key: Key, stop: threading.Event) -> tuple[Router, Fit]:
        """A router fitted for another context, with the settings of its last fit; the one that serves stays as it is.

        Raises:
            ConfigError, RoutingError: see `Router.fitting`.
        """
        self.named(name)
        last, router = self.fit_of(name), ROUTERS[name](context, self._threshold)
        if last is not None and not router.asks_for_fit and not _takes(router.refit, last.state):
            router = ROUTERS[name](context, self._threshold)
        settings = last.settings if last else {}
        outcome = finish(router.fitting(settings, stop))
        return router, Fit(name, key, router.state(), settings, outcome.report, now())

    def _new(self, name: str) -> Router:
        return ROUTERS[name](self._context(), self._threshold)

    def _made(self, name: str) -> Router:
        fit, router = self._fits.get(name), self._new(name)
        if fit is not None and (router.asks_for_fit or fit.key == self._key()) and _takes(router.restore, fit.state):
            return router
        router = self._new(name)  # what half a restore left is not to be trusted
        if not router.asks_for_fit:
            if not _takes(router.refit, fit.state if fit else {}):
                router = self._new(name)
                router.refit({})
            self._keep(name, Fit(name, self._key(), router.state(), created=now()))
        return router

    def _keep(self, name: str, fit: Fit) -> None:
        self._fits[name] = fit
        write_fit(self.folder / name, fit)


def _read_fits(folder: Path) -> dict[str, Fit]:
    """The readable fits in a folder, by router."""
    found = {}
    for name in ROUTERS:
        with suppress(RoutingError):
            found[name] = read_fit(folder / name)
    return found


def _takes(take_up: Callable[[Mapping[str, Any]], None], state: Mapping[str, Any]) -> bool:
    """Whether a router can take up a state, which may be of another version or a stranger's."""
    try:
        take_up(state)
    except (MultiLobeError, LookupError, TypeError, ValueError, AttributeError):
        return False
    return True


def without_lobes() -> list[Router]:
    """Every router as it is where there are no lobes: what it is called, and what may be set."""

    def nothing(*_: object) -> Any:
        return np.zeros((0, 0), np.float32)

    return [make(RoutingContext((), {}, nothing, nothing), None) for make in ROUTERS.values()]


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings worth keeping: rows that were handed in are data."""
    return {name: value for name, value in settings.items() if name != "rows"}
