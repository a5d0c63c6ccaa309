"""The report card: how every router does on labelled prompts."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import DataError, MultiLobeError
from ..evenly import evenly_by
from ..model import MultiLobeModel
from ..progress import Progress, finish
from ..routers import ROUTERS, Router, RoutingContext, RoutingDecision
from ..routers.kept import without_lobes
from ..settings import check
from . import measures
from .labelled import LabelledRow, flattery, load_rows, own_rows

EVERY = 10
"""Prompts between two signs of life."""
T = TypeVar("T")


@dataclass(frozen=True)
class ReportSettings:
    """What is asked of a report card."""

    routers: tuple[str, ...] = ()
    """Names of routers; none means all that can be used now."""
    most: int = 2000
    """At most so many prompts, evenly over the labels."""

    def __post_init__(self) -> None:
        chosen = self.routers
        known = isinstance(chosen, (list, tuple)) and all(isinstance(n, str) and n in ROUTERS for n in chosen)
        check(known, "routers", chosen, f"a list of {', '.join(ROUTERS)}")
        object.__setattr__(self, "routers", tuple(dict.fromkeys(chosen)))
        whole = isinstance(self.most, int) and not isinstance(self.most, bool)
        check(whole and 1 <= self.most <= 100_000, "most", self.most, "a whole number from 1 to 100,000")


@dataclass(frozen=True)
class RouterScore:
    """How one router did; the measures are those of `measures`, over the labels of the card.

    Attributes:
        right, of: prompts decided as labelled, and all. accuracy: right / of; None where nothing was asked.
        precision, recall, f1: by label. confusion: rows are labels wanted, columns what was
            decided, in the card's order.
        ece: expected calibration error, 15 bins. calibration: the reliability diagram, 10 bins.
            abstention: risk and coverage.
        strangers: share of the prompts of no lobe that were sent to the base; None if there are none.
        ms, ms_mean: median and mean time of a decision on a prompt that nothing is remembered of,
            in milliseconds.
        decided: place among the labels, for each prompt. confidence: for each prompt, None where it
            is no number.
        error: why it could not be asked, or not to the end; "" if it could. note: what to know when
            reading its numbers.
        unfinished: it was being asked when it failed, so nothing can be said of how it would have done.
    """

    title: str
    accuracy: float | None = None
    right: int = 0
    of: int = 0
    precision: Mapping[str, float | None] = field(default_factory=dict)
    recall: Mapping[str, float | None] = field(default_factory=dict)
    f1: Mapping[str, float | None] = field(default_factory=dict)
    confusion: Sequence[Sequence[int]] = ()
    ece: float | None = None
    calibration: Sequence[Mapping[str, Any]] = ()
    abstention: Sequence[Mapping[str, Any]] = ()
    strangers: float | None = None
    ms: float | None = None
    ms_mean: float | None = None
    decided: Sequence[int] = ()
    confidence: Sequence[float | None] = ()
    error: str = ""
    note: str = ""
    unfinished: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ReportCard:
    """What `report_card` found.

    Attributes:
        labels: names of lobes, and "" for none, last. prompts: what was asked, with its label.
        routers: by name. stopped: it ended early; a router that had not been asked everything is
            then left out, unless it was the first: then the prompts are those that it was asked.
            seconds: that it took.
        notes: what to know when reading the numbers, in sentences.
    """

    labels: Sequence[str]
    prompts: Sequence[LabelledRow]
    routers: Mapping[str, RouterScore]
    stopped: bool
    seconds: float
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "labels": list(self.labels),
            "prompts": [{"prompt": row.prompt, "lobe": row.lobe or "", "source": row.source} for row in self.prompts],
            "routers": {name: score.to_json() for name, score in self.routers.items()},
            "stopped": self.stopped,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def report_card(
    model: MultiLobeModel,
    routers: Sequence[str] = (),
    rows: Sequence[LabelledRow] | None = None,
    *,
    most: int = 2000,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> ReportCard:
    """Ask routers for a decision on labelled prompts, and compare. The lobes are those that were
    there when it began.

    Args:
        routers: names; () means all that can be used.
        rows: None takes those that lobes held out from training, or were trained on where they held out none:
            see `own_rows`.
        most: at most so many prompts, evenly over the labels. stop: set it to end early.

    Raises:
        ConfigError: no such router, or `most` out of range. DataError: there are no prompts.
    """
    settings = ReportSettings(tuple(routers), most)
    return finish(_card(model, settings, rows, stop or threading.Event()), progress)


def reporting(
    model: MultiLobeModel, settings: ReportSettings, *, data: Path | None, made: Path, stop: threading.Event
) -> Generator[Progress, None, ReportCard]:
    """`report_card` as an experiment of the Lab."""
    return (yield from _card(model, settings, load_rows(data) if data else None, stop))


def _card(
    model: MultiLobeModel, settings: ReportSettings, rows: Sequence[LabelledRow] | None, stop: threading.Event
) -> Generator[Progress, None, ReportCard]:
    began, then, lobes = time.perf_counter(), model.routers.context(), Roll(model)
    names = settings.routers or [name for name in model.routers.names if model.routers.named(name).is_fitted]
    routers = {name: _as_it_is(model, name) for name in names}
    given = rows is not None
    if rows is None:
        rows = own_rows(model)
    rows = evenly_by(lambda row: row.lobe, rows, settings.most)
    if not rows:
        raise DataError(
            "There are no labelled prompts: no lobe has kept rows that it was trained on. "
            'Give a file with the columns "input" and "lobe".'
        )
    turns = _turns(rows)
    decided: dict[str, list[RoutingDecision] | _Failure] = {}
    for place, (name, router) in enumerate(routers.items()):
        prompts = [rows[i].prompt for i in turns]
        found = yield from _asked(model, lobes, name, router, prompts, stop, (place, len(names)))
        if isinstance(found, list) and len(found) < len(rows):  # stopped
            if found and not any(isinstance(other, list) for other in decided.values()):
                turns, decided[name] = turns[: len(found)], found
            break
        decided[name] = found
    order = sorted(range(len(turns)), key=turns.__getitem__)
    in_order = {n: [d[i] for i in order] if isinstance(d, list) else d for n, d in decided.items()}
    asked, seconds = [rows[turns[i]] for i in order], time.perf_counter() - began
    card = _compared(then, asked, in_order, stop.is_set(), seconds)
    note = "" if given else flattery(card.prompts)
    return replace(card, notes=[note] if note else [])


@dataclass(frozen=True)
class _Failure:
    """Why a router could not be asked, and whether it had been asked some prompts by then."""

    error: str
    unfinished: bool = False


def _as_it_is(model: MultiLobeModel, name: str) -> Router | _Failure:
    """The router with the lobes that are there now: it keeps them, whatever comes or goes meanwhile."""
    try:
        router = model.routers.named(name)
    except MultiLobeError as error:
        return _Failure(str(error))
    if not router.is_fitted:
        return _Failure(f"{title_of(name)} has not been fitted yet. Fit it under Routers, then ask again.")
    return router


def _turns(rows: Sequence[LabelledRow]) -> list[int]:
    """Places of the rows in an order in which labels take turns, so that what is stopped early has
    seen all of them."""
    seen: Counter[str | None] = Counter()
    turn = []
    for row in rows:
        turn.append(seen[row.lobe])
        seen[row.lobe] += 1
    return sorted(range(len(rows)), key=turn.__getitem__)


def _asked(
    model: MultiLobeModel,
    lobes: Roll,
    name: str,
    router: Router | _Failure,
    prompts: Sequence[str],
    stop: threading.Event,
    place: tuple[int, int],
) -> Generator[Progress, None, list[RoutingDecision] | _Failure]:
    """A router's decisions, fewer than prompts if it was stopped; or why there are none.

    Args:
        lobes: those that were there when the report began.
    """
    title = title_of(name)
    decisions: list[RoutingDecision] = []
    first, steps = place[0] * len(prompts), place[1] * len(prompts)
    yield Progress(first, steps, f"Asking {title}", {})
    if isinstance(router, _Failure):
        return router
    try:
        router.route("What do you need to begin?")  # models that are loaded at first use are no part of a decision's time
        for prompt in prompts:
            if stop.is_set():
                break
            model.routers.contexts.forget([prompt])
            if router.needs_model and lobes.replaced():  # it would read another lobe, and say nothing of it
                return _what_happened(lobes.gone(), len(decisions), len(prompts))
            decisions.append(router.route(prompt))
            if len(decisions) % EVERY == 0 or len(decisions) == len(prompts):
                yield Progress(first + len(decisions), steps, f"Asking {title}", {"prompts": float(len(decisions))})
    except (MultiLobeError, LookupError) as error:
        if gone := lobes.gone():
            return _what_happened(gone, len(decisions), len(prompts))
        if not isinstance(error, MultiLobeError):
            raise
        return _Failure(str(error), unfinished=bool(decisions))
    return decisions


class Roll:
    """The lobes of a model at one moment, to see later which of them are gone. A lobe that was
    renamed is still there."""

    def __init__(self, model: MultiLobeModel) -> None:
        self._model = model
        self._names = {lobe.id: lobe.name for lobe in model.lobes}
        self._then = self._births()

    def _births(self) -> dict[str, tuple[str, str]]:
        """By id what tells a lobe from a later one that got the id of a deleted one."""
        return {lobe.id: (lobe.card.created, repr(lobe.card.adapter)) for lobe in self._model.lobes}

    def gone(self) -> list[str]:
        """Names, as they were, of the lobes that were deleted since."""
        here = self._births()
        return [self._names[id] for id, birth in self._then.items() if here.get(id) != birth]

    def replaced(self) -> bool:
        """Whether a new lobe has the id of one that was deleted: what knows lobes by their ids
        would take it for that one."""
        here = self._births()
        return any(here.get(id, birth) != birth for id, birth in self._then.items())


def _what_happened(gone: Sequence[str], asked: int, of: int) -> _Failure:
    """Why a router whose lobe was deleted could not be asked everything."""
    who = f"The lobe {gone[0]} was" if len(gone) == 1 else f"The lobes {', '.join(gone)} were"
    it = "it" if len(gone) == 1 else "them"
    return _Failure(
        f"{who} deleted while the report ran, and this router reads {it}: it had been asked {asked:,} of {of:,} prompts. "
        "Run the report again.",
        unfinished=True,
    )


def title_of(router: str) -> str:
    """What a person calls a router."""
    return next((each.title for each in without_lobes() if each.name == router), router)


def _compared(
    context: RoutingContext,
    rows: Sequence[LabelledRow],
    decided: Mapping[str, Sequence[RoutingDecision] | _Failure],
    stopped: bool,
    seconds: float,
) -> ReportCard:
    """The card of decisions, one for each row in order, or of why there are none."""
    chosen = [d.chosen or "" for each in decided.values() if not isinstance(each, _Failure) for d in each]
    others = dict.fromkeys([*(row.lobe or "" for row in rows), *chosen])  # experts that a router made for itself
    labels = [*context.lobes, *(name for name in others if name and name not in context.lobes), ""]
    experts = set(context.experts.values())
    scores = {}
    for name, each in decided.items():
        if isinstance(each, _Failure):
            scores[name] = RouterScore(title_of(name), error=each.error, unfinished=each.unfinished)
        else:
            scores[name] = score(name, labels, rows, each, experts)
    return ReportCard(labels, rows, scores, stopped, seconds)


def score(
    name: str,
    labels: Sequence[str],
    rows: Sequence[LabelledRow],
    decisions: Sequence[RoutingDecision],
    experts: Collection[str] = (),
) -> RouterScore:
    """Every measure of one router's decisions, one for each row; `labels` has every name that
    occurs, and "" last."""
    place = {label: i for i, label in enumerate(labels)}
    base = place[""]
    wanted = np.array([place[row.lobe or ""] for row in rows], np.int64)
    decided = np.array([place[d.chosen or ""] for d in decisions], np.int64)
    confidence = np.array([d.confidence for d in decisions], np.float64)
    right, counts = decided == wanted, measures.confusion(wanted, decided, len(labels))
    shares = {kind: dict(zip(labels, values, strict=True)) for kind, values in measures.by_label(counts).items()}
    strange, times = wanted == base, [d.elapsed_ms for d in decisions]
    own = bool(experts) and {labels[i] for i in decided} - {""} <= set(experts)
    return RouterScore(
        title=title_of(name),
        accuracy=float(right.mean()) if len(right) else None,
        right=int(right.sum()),
        of=len(right),
        precision=shares["precision"],
        recall=shares["recall"],
        f1=shares["f1"],
        confusion=counts.tolist(),
        ece=measures.expected_calibration_error(confidence, right),
        calibration=measures.calibration(confidence, right),
        abstention=measures.abstention(confidence, right, decided != base),
        strangers=float((decided[strange] == base).mean()) if strange.any() else None,
        ms=float(np.median(times)) if times else None,
        ms_mean=float(np.mean(times)) if times else None,
        decided=decided.tolist(),
        confidence=[float(value) if np.isfinite(value) else None for value in confidence],
        note="It chooses among experts of its own, by how hard a prompt is, so lobes' labels do not measure it." if own else "",
    )


@dataclass(frozen=True)
class RoutingReport:
    """How a router did on labelled prompts; None as a label means that no lobe fits.

    Attributes:
        accuracy: share of prompts that were decided as labelled. by_label: the same for every label
            (None as "").
        stages: share of prompts that each stage decided. confusion: (label, decided) → count.
        milliseconds: median time of a decision. ece: expected calibration error of the confidence,
            15 equal bins (Guo 2017).
    """

    accuracy: float
    by_label: Mapping[str, float]
    stages: Mapping[str, float]
    confusion: Mapping[tuple[str, str], int]
    milliseconds: float
    ece: float
    decisions: Sequence[RoutingDecision]


def routing_report(
    route: Callable[[str], RoutingDecision], prompts: Sequence[str], labels: Sequence[str | None]
) -> RoutingReport:
    """Route every prompt and compare with its label; for any function that routes, without a model."""
    decisions = [route(prompt) for prompt in prompts]
    rows = [LabelledRow(prompt, "", label) for prompt, label in zip(prompts, labels, strict=True)]
    wanted, decided = [label or "" for label in labels], [decision.chosen or "" for decision in decisions]
    found = score("", [*sorted({*wanted, *decided} - {""}), ""], rows, decisions)
    return RoutingReport(
        accuracy=found.accuracy or 0.0,
        by_label={name: share for name, share in found.recall.items() if share is not None},
        stages={stage: count / len(decisions) for stage, count in Counter(d.stage for d in decisions).items()},
        confusion=Counter(zip(wanted, decided, strict=True)),
        milliseconds=found.ms or 0.0,
        ece=found.ece or 0.0,
        decisions=decisions,
    )
