"""A trial fit of the routers with all corrections, to see what changes before it is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import MultiLobeError, RoutingError
from ..evenly import evenly
from ..model import MultiLobeModel
from ..progress import Progress, converted
from ..routers import ROUTERS, Router
from ..routing.corrections import Correction
from ..routing.fits import Fit, Key, read_fit, write_fit
from ..routing.router import BankContext, RoutingContext, same_prompt
from ..settings import check
from .labelled import LabelledRow, flattery, load_rows, own_rows

MOST_SHOWN = 100
AT_ONCE = 10
"""Prompts between two records."""


@dataclass(frozen=True)
class RefitSettings:
    """What may be set. `routers`: names; () takes those that choose among lobes and can be used.
    `most`: prompts asked at most."""

    routers: tuple[str, ...] = ()
    most: int = 200

    def __post_init__(self) -> None:
        object.__setattr__(self, "routers", tuple(self.routers))
        known = [name for name in self.routers if name in ROUTERS]
        check(len(known) == len(self.routers), "routers", list(self.routers), f"among {', '.join(ROUTERS)}")
        check(self.most >= 1, "most", self.most, "at least 1 prompt")


@dataclass(frozen=True)
class Refit:
    """What the trial showed.

    Attributes:
        routers: name → title, before and after (prompts right, of `of`; corrected prompts are not
            counted, for the person has decided them), now (prompts right by the router that
            serves), added and gone (names of lobes that came or went since it was fitted), error.
            `before` is a fit to the same lobes without the corrections that are tried, so that what
            changes from `before` to `after` is due to these alone.
        corrections: prompt, lobe, and who the default router sent it to before and after; None is the base.
        changed: other prompts that the default router now sends elsewhere: prompt, wanted, before,
            after; at most MOST_SHOWN.
        ids: of the corrections that were tried. kept: whether they are in force.
        notes: what to know when reading the numbers, in sentences.
    """

    routers: Mapping[str, Mapping[str, Any]]
    corrections: Sequence[Mapping[str, Any]]
    changed: Sequence[Mapping[str, Any]]
    ids: Sequence[str]
    kept: bool = False
    stopped: bool = False
    seconds: float = 0.0
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Tried:
    """One router, fitted with the corrections.

    Attributes:
        trial: it. fit: what it learned. seconds: that this took.
        now, before, after: whom the serving router, one fitted without the corrections, and `trial`
            choose, by row.
    """

    trial: Router
    fit: Fit
    seconds: float
    now: list[str | None]
    before: list[str | None]
    after: list[str | None]


def refitting(
    model: MultiLobeModel, settings: RefitSettings, *, data: Path | None, made: Path, stop: threading.Event
) -> Generator[Progress, None, Refit]:
    """Fit routers with every correction, in force or not, and ask them about labelled prompts;
    nothing that serves is touched.

    The fits go to `made`, from where `keep_refit` takes them.

    Raises:
        RoutingError: there is nothing to try.
    """
    started = time.perf_counter()
    corrections = model.routers.corrections.all()
    if not corrections:
        raise RoutingError("There is no correction to learn from. Correct a prompt in the report card first.")
    serving = {name: model.routers.named(name) for name in settings.routers or model.routers.names}
    serving = {name: router for name, router in serving.items() if router.is_fitted and router.learns_labels}
    corrected = model.routers.context(corrections), model.routers.key(corrections)
    plain = model.routers.context(), model.routers.key()
    rows, notes = _rows(model, data)
    rows = _asked(rows, corrected[0], settings.most)
    steps = len(serving) * (len(rows) + 1)
    results: dict[str, dict[str, Any]] = {}
    tried: dict[str, _Tried] = {}
    for number, (name, router) in enumerate(serving.items()):
        if stop.is_set():
            break
        fit_now = model.routers.fit_of(name)
        try:
            first = number * (len(rows) + 1)
            shifted = partial(_shifted, first=first, steps=steps)
            tried[name] = yield from converted(_trying(model, router, corrected, plain, rows, stop), shifted)
        except MultiLobeError as error:
            results[name] = {"title": router.title, "error": str(error)}
            continue
        write_fit(made / name, tried[name].fit)
        results[name] = _result(router, fit_now, plain[1], tried[name], rows)
    default = next(iter(tried), "")
    yield Progress(steps, steps, "Comparing", {})
    changed: list[dict[str, Any]] = []
    if default:
        changed = _changed(rows, tried[default].before, tried[default].after)
    return Refit(
        routers=results,
        corrections=_corrected(model, corrections, tried.get(default), default),
        changed=changed,
        ids=[correction.id for correction in corrections],
        stopped=stop.is_set(),
        seconds=time.perf_counter() - started,
        notes=notes,
    )


def _rows(model: MultiLobeModel, data: Path | None) -> tuple[list[LabelledRow], list[str]]:
    """The prompts that are asked, and what to know of them: a person's, else the lobes' own."""
    if data is not None:
        return load_rows(data), []
    rows = own_rows(model)
    note = flattery(rows)
    return rows, [note] * bool(note)


def _trying(
    model: MultiLobeModel,
    router: Router,
    corrected: tuple[BankContext, Key],
    plain: tuple[BankContext, Key],
    rows: Sequence[LabelledRow],
    stop: threading.Event,
) -> Generator[Progress, None, _Tried]:
    """Fit one router with the corrections, and ask it and the others about the rows; steps count from 0."""
    yield Progress(0, 0, f"Fitting {router.title} anew", {})
    began, fit_now = time.perf_counter(), model.routers.fit_of(router.name)
    trial, fit = model.routers.trial(router.name, *corrected, stop)
    seconds = time.perf_counter() - began
    uncorrected = router
    # what a person fits is the same after another fit to the same lobes; the others adjust without one
    if not (router.asks_for_fit and fit_now is not None and fit_now.key == plain[1]):
        uncorrected, _ = model.routers.trial(router.name, *plain, stop)
    tried = _Tried(trial, fit, seconds, [], [], [])
    for i, row in enumerate(rows):
        if stop.is_set():
            break
        if i % AT_ONCE == 0:
            yield Progress(1 + i, 0, f"Asking {router.title}", {})
        tried.now.append(router.route(row.prompt).chosen)
        if uncorrected is router:
            tried.before.append(tried.now[-1])
        else:
            tried.before.append(uncorrected.route(row.prompt).chosen)
        tried.after.append(trial.route(row.prompt).chosen)
    return tried


def _shifted(progress: Progress, first: int, steps: int) -> Progress:
    """A record of a part of the work: its steps count from `first` of `steps`."""
    return replace(progress, step=first + progress.step, steps=steps)


def _result(router: Router, fit: Fit | None, key: Key, tried: _Tried, rows: Sequence[LabelledRow]) -> dict[str, Any]:
    """What `Refit.routers` says of one router."""
    wanted = [row.lobe for row in rows]
    then = key
    if fit is not None:
        then = fit.key
    added, gone = _came_and_went(then, key)
    return {
        "title": router.title,
        "now": _right(tried.now, wanted),
        "before": _right(tried.before, wanted),
        "after": _right(tried.after, wanted),
        "of": len(tried.after),
        "added": added,
        "gone": gone,
        "seconds": tried.seconds,
        "error": "",
    }


def keep_refit(model: MultiLobeModel, ids: Sequence[str], made: Path) -> None:
    """Put the corrections of a trial in force, and take over the fits that it made.

    Raises:
        RoutingError: lobes have changed since, or corrections have: what was shown would not be what is kept.
    """
    told = model.routers.corrections.all()
    if sorted(correction.id for correction in told) != sorted(ids):
        raise RoutingError("Corrections have come or gone since this trial. Refit again to see what they do.")
    fits = {path.name: read_fit(path) for path in sorted(made.iterdir()) if path.name in ROUTERS} if made.is_dir() else {}
    if any(fit.key != model.routers.key(told) for fit in fits.values()):
        raise RoutingError("Lobes or corrections have changed since this trial. Refit again to see what it does now.")
    model.routers.keep_corrections(ids, fits)


def _asked(rows: Sequence[LabelledRow], context: RoutingContext, most: int) -> list[LabelledRow]:
    """At most so many rows, evenly, without those that a person has decided."""
    kept = [row for row in rows if same_prompt(row.prompt) not in context.labels]
    return evenly(kept, most)


def _right(decided: Sequence[str | None], wanted: Sequence[str | None]) -> int:
    return sum(a == b for a, b in zip(decided, wanted, strict=False))


def _came_and_went(then: Key, now: Key) -> tuple[list[str], list[str]]:
    """Names of the lobes of the one key that the other has not: (added, gone). A lobe trained again
    is both."""
    added = [name for name, created in now.lobes if (name, created) not in then.lobes]
    return added, [name for name, created in then.lobes if (name, created) not in now.lobes]


def _corrected(
    model: MultiLobeModel, corrections: Sequence[Correction], tried: _Tried | None, name: str
) -> list[dict[str, Any]]:
    if tried is None:
        return []
    lobes = {lobe.id: lobe.name for lobe in model.lobes}
    return [
        {
            "prompt": c.prompt,
            "lobe": lobes.get(c.lobe),
            "before": model.route(c.prompt, name).chosen,
            "after": tried.trial.route(c.prompt).chosen,
        }
        for c in corrections
    ]


def _changed(
    rows: Sequence[LabelledRow], before: Sequence[str | None], after: Sequence[str | None]
) -> list[dict[str, Any]]:
    moved = [
        {"prompt": row.prompt, "wanted": row.lobe, "before": b, "after": a}
        for row, b, a in zip(rows, before, after, strict=False)
        if a != b
    ]
    return moved[:MOST_SHOWN]

