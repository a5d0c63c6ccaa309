"""A trial fit of the routers with all corrections, to see what changes before it is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import MultiLobeError, RoutingError
from ..evenly import evenly
from ..model import MultiLobeModel
from ..progress import Progress
from ..routers import ROUTERS, Router
from ..routing.corrections import Correction
from ..routing.fits import Key, read_fit, write_fit
from ..routing.router import RoutingContext, same_prompt
from ..settings import check
from .labelled import LabelledRow, flattery, load_rows, own_rows

MOST_SHOWN = 100
AT_ONCE = 10
"""Prompts between two records."""


@dataclass(frozen=True)
class RefitSettings:
    """What may be set. `routers`: names; () takes those that choose among lobes and can be used. `most`: prompts asked at most."""

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
        routers: name → title, before and after (prompts right, of `of`; corrected prompts are not counted, for the person has
            decided them), now (prompts right by the router that serves), added and gone (names of lobes that came or went since
            it was fitted), error. `before` is a fit to the same lobes without the corrections that are tried, so that what
            changes from `before` to `after` is due to these alone.
        corrections: prompt, lobe, and who the default router sent it to before and after; None is the base.
        changed: other prompts that the default router now sends elsewhere: prompt, wanted, before, after; at most MOST_SHOWN.
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


def refitting(
    model: MultiLobeModel, settings: RefitSettings, *, data: Path | None, made: Path, stop: threading.Event
) -> Generator[Progress, None, Refit]:
    """Fit routers with every correction, in force or not, and ask them about labelled prompts; nothing that serves is touched.

    The fits go to `made`, from where `keep_refit` takes them.

    Raises:
        RoutingError: there is nothing to try.
    """
    started = time.perf_counter()
    told = model.routers.corrections.all()
    if not told:
        raise RoutingError("There is no correction to learn from. Correct a prompt in the report card first.")
    context, key = model.routers.context(told), model.routers.key(told)
    plain, plain_key = model.routers.context(), model.routers.key()
    serving = {name: model.routers.named(name) for name in settings.routers or model.routers.names}
    serving = {name: router for name, router in serving.items() if router.is_fitted and router.learns_labels}
    rows = _asked(load_rows(data) if data else own_rows(model), context, settings.most)
    note = "" if data else flattery(rows)
    steps = len(serving) * (len(rows) + 1)
    found: dict[str, dict[str, Any]] = {}
    decided: dict[str, tuple[list[str | None], list[str | None]]] = {}
    trials: dict[str, Router] = {}
    for number, (name, router) in enumerate(serving.items()):
        if stop.is_set():
            break
        step, title = number * (len(rows) + 1), router.title
        yield Progress(step, steps, f"Fitting {title} anew", {})
        began, fit_now = time.perf_counter(), model.routers.fit_of(name)
        try:
            trial, fit = model.routers.trial(name, context, key, stop)
            seconds = time.perf_counter() - began
            # what a person fits is the same after another fit to the same lobes; the others adjust without one
            same = router.asks_for_fit and fit_now is not None and fit_now.key == plain_key
            alike = router if same else model.routers.trial(name, plain, plain_key, stop)[0]
            now, before, after = list[str | None](), list[str | None](), list[str | None]()
            for i, row in enumerate(rows):
                if stop.is_set():
                    break
                if i % AT_ONCE == 0:
                    yield Progress(step + 1 + i, steps, f"Asking {title}", {})
                now.append(router.route(row.prompt).chosen)
                before.append(now[-1] if same else alike.route(row.prompt).chosen)
                after.append(trial.route(row.prompt).chosen)
        except MultiLobeError as error:
            found[name] = {"title": title, "error": str(error)}
            continue
        write_fit(made / name, fit)
        trials[name], decided[name] = trial, (before, after)
        wanted = [row.lobe for row in rows]
        added, gone = _came_and_went(fit_now.key if fit_now else plain_key, plain_key)
        found[name] = {
            "title": title,
            "now": _right(now, wanted),
            "before": _right(before, wanted),
            "after": _right(after, wanted),
            "of": len(after),
            "added": added,
            "gone": gone,
            "seconds": seconds,
            "error": "",
        }
    first = next(iter(decided), "")
    yield Progress(steps, steps, "Comparing", {})
    return Refit(
        routers=found,
        corrections=_corrected(model, told, trials.get(first), first),
        changed=_changed(rows, *decided[first]) if first else [],
        ids=[correction.id for correction in told],
        stopped=stop.is_set(),
        seconds=time.perf_counter() - started,
        notes=[note] if note else [],
    )


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
    """Names of the lobes of the one key that the other has not: (added, gone). A lobe trained again is both."""
    added = [name for name, created in now.lobes if (name, created) not in then.lobes]
    return added, [name for name, created in then.lobes if (name, created) not in now.lobes]


def _corrected(
    model: MultiLobeModel, told: Sequence[Correction], trial: Router | None, name: str
) -> list[dict[str, Any]]:
    if trial is None:
        return []
    lobes = {lobe.id: lobe.name for lobe in model.lobes}
    return [
        {
            "prompt": c.prompt,
            "lobe": lobes.get(c.lobe),
            "before": model.route(c.prompt, name).chosen,
            "after": trial.route(c.prompt).chosen,
        }
        for c in told
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

