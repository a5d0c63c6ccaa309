"""What the page gets to see: plain frozen values, made by the studio. No torch, no gradio."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..routing.decision import RoutingDecision
from ..routing.fits import Fit
from ..routing.router import Router
from .job import Job
from .ledger import Cost

if TYPE_CHECKING:
    from ..lobes.store import Lobe
    from ..model import MultiLobeModel

PALETTE = (
    "#e5484d", "#c9880b", "#2f8fe0", "#8e5bd9", "#1f9d6b", "#d6498f",
    "#6d8f1f", "#c2632d", "#16a0a0", "#5966e0", "#a3752c", "#b14fc0",
)  # fmt: skip
"""A lobe keeps the colour of its number for life; mid tones that can be told apart on light and
dark grounds."""
LOADING = "The base model is still loading."
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class StudioStatus:
    """How things are.

    Attributes:
        state: "loading", "ready" or "failed". message: one sentence for the person.
        base: what `backbone.describe` says; None until it is loaded.
        version: changes whenever lobes, base or jobs do: a cheap probe before anything is drawn again.
    """

    state: str
    message: str
    base: Mapping[str, Any] | None
    lobes: int
    version: int


@dataclass(frozen=True)
class LobeView:
    """A lobe as a page shows it. `name` is a person's words: escape it. Losses are mean NLL per
    answer token, in nats. `fault` says why its files are no good, "" if they are; `pinned`: it
    stays in memory."""

    id: str
    name: str
    colour: str
    rows: int | None
    r: int
    nbytes: int
    base_validation_loss: float | None
    validation_loss: float | None
    train_loss: float | None
    created: str
    base: str
    usable: bool
    origin: str
    target_modules: tuple[str, ...]
    protected: bool
    fault: str = ""
    pinned: bool = False


@dataclass(frozen=True)
class MemoryView:
    """What lobes take in memory, beside the base.

    Attributes:
        lobes: ids of those in memory, least recently used first. nbytes: what they take, with what
            mixtures made of them.
        pinned: ids of those that stay whatever the budget. budget_mib: MiB that all may take; None
            is no limit.
        changeable: whether people may change the budget and the pins here.
    """

    lobes: tuple[str, ...]
    nbytes: int
    pinned: frozenset[str]
    budget_mib: float | None
    changeable: bool


@dataclass(frozen=True)
class ChatEvent:
    """One moment of an answer; `text` is the whole answer so far. The first event has no text but
    the decision.

    `trace` has an entry for every token of `text` where a router weighs each token (X-LoRA, Arrow),
    and is empty otherwise. `cost` is known at the last event.
    """

    text: str
    decision: RoutingDecision | None
    done: bool
    stopped: bool
    prompt_tokens: int
    answer_tokens: int
    seconds: float
    tokens_per_second: float
    first_token_ms: float | None
    dropped_messages: int
    trace: Sequence[TokenTrace] = ()
    cost: Cost | None = None


@dataclass(frozen=True)
class JobView:
    """A job as a page shows it: a lobe that is trained (`kind` "lobe") or a router that is fitted
    ("router", then `name` is the router's). `mine`: this visitor may stop, resume or cancel it."""

    id: str
    name: str
    state: str
    created: str
    started: str | None
    finished: str | None
    rows: int | None
    step: int
    steps: int
    epoch: float
    loss: float | None
    validation_loss: float | None
    best_validation_loss: float | None
    base_validation_loss: float | None
    tokens_per_second: float
    seconds_left: float | None
    seconds: float
    error: str
    place: int | None
    mine: bool
    config: Mapping[str, Any]
    phase: str
    kind: str = "lobe"


@dataclass(frozen=True)
class TokenTrace:
    """How one token of an answer was weighed.

    Attributes:
        text: what the token added to the answer; the traces' texts joined are the answer. weights:
            lobe's name → its weight at this token, the mean over layers.
        layers: (layers, lobes) weights of this token in every adapted layer, lobes in the order of
            `weights`; layers from the first to the last of the model.
    """

    text: str
    weights: Mapping[str, float]
    layers: np.ndarray[Any, Any]


@dataclass(frozen=True)
class RouterView:
    """A router as a page shows it.

    Attributes:
        title, sentence: what it is called and what it does, for a person.
        asks_for_fit: whether a person starts its fit. fitted: whether it can choose lobes now.
            stale: whether lobes have come, gone or changed since the fit. why: one sentence, why it
            is stale or cannot be used; "" if all is well.
        per_token: whether it weighs every token anew.
        settings: name → default of what a person may set for a fit. report: what the last fit
            measured. fitted_at: ISO 8601 or "".
        job_id: its fit that is queued or running, "" if none is.
        experimental: whether it is there to be tried and not yet to be trusted.
    """

    name: str
    title: str
    sentence: str
    asks_for_fit: bool
    fitted: bool
    stale: bool
    why: str
    per_token: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    fitted_at: str = ""
    job_id: str = ""
    experimental: bool = False


def job_view(job: Job, mine: bool) -> JobView:
    """A job as one visitor sees it."""
    latest = job.latest
    return JobView(
        id=job.id,
        name=job.spec.name,
        state=job.state,
        created=job.created,
        started=job.started or None,
        finished=job.finished or None,
        rows=job.rows,
        step=int(latest.get("step", 0)),
        steps=int(latest.get("steps", 0)),
        epoch=float(latest.get("epoch", 0.0)),
        loss=latest.get("loss"),
        validation_loss=latest.get("validation_loss"),
        best_validation_loss=job.best_validation_loss,
        base_validation_loss=job.base_validation_loss,
        tokens_per_second=float(latest.get("tokens_per_second", 0.0)),
        seconds_left=latest.get("seconds_left"),
        seconds=float(latest.get("seconds", 0.0)),
        error=job.error,
        place=job.place,
        mine=mine,
        config=job.spec.config,
        phase=job.phase,
        kind=job.spec.kind,
    )


def lobe_view(lobe: Lobe, model: MultiLobeModel | None, mine: bool) -> LobeView:
    """A lobe as one visitor sees it; until the model is loaded every lobe may turn out to be usable."""
    card = lobe.card
    view = LobeView(
        id=lobe.id,
        name=lobe.name,
        colour=PALETTE[(int(lobe.id.removeprefix("lobe_")) - 1) % len(PALETTE)],
        rows=_number(card.data.get("rows"), int),
        r=_number(card.adapter.get("r"), int) or 0,
        nbytes=_number(card.adapter.get("bytes"), int) or 0,
        base_validation_loss=_number(card.training.get("base_validation_loss"), float),
        validation_loss=_number(card.training.get("validation_loss"), float),
        train_loss=_number(card.training.get("train_loss"), float),
        created=card.created,
        base=card.base.get("name", ""),
        usable=True,
        origin=card.origin,
        target_modules=tuple(map(str, card.adapter.get("target_modules") or ())),
        protected=not mine,
    )
    if model is None:
        return view
    pinned = model.memory.is_pinned(lobe.id)
    return replace(view, usable=lobe.id in model.bank, fault=model.lobes.fault(lobe.id), pinned=pinned)


def router_view(
    router: Router, fit: Fit | None = None, *, stale: bool = False, why: str = "", job_id: str = ""
) -> RouterView:
    """A router and its last fit.

    Args:
        why: it is stale or cannot be used.
    """
    usable = router.is_fitted and why != LOADING
    view = RouterView(
        name=router.name,
        title=router.title,
        sentence=router.sentence,
        asks_for_fit=router.asks_for_fit,
        fitted=usable,
        stale=stale,
        why=why,
        per_token=router.per_token,
        settings=router.present_settings,
        job_id=job_id,
        experimental=bool(getattr(router, "experimental", False)),
    )
    if fit is None:
        return view
    if not usable:
        return replace(view, report=fit.report)
    return replace(view, report=fit.report, fitted_at=fit.created)


def _number(value: Any, kind: Callable[[Any], N]) -> N | None:
    """A number from a card, which may be a stranger's; None for anything else."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return kind(value)
    return None
