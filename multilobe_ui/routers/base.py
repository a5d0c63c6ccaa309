"""What all routers share: the decision they produce, the narrow context they see, and the steps from scores to weights.

A router file holds only `score`; everything else about routing is here, once. Routers never see the studio, the page, or each
other.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from ..errors import RoutingError

Vector = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class RoutingDecision:
    """Which lobes answer a prompt, and why. Lobes go by their names.

    Attributes:
        router: name of the router, "hybrid" for instance; "manual" when a person chose.
        stage: which part of it decided: "embedding", "logprob", "manual", "empty prompt", "no lobes", "only lobe".
        scores: raw score of every lobe in the deciding stage's own unit, higher is better; may lack lobes not looked at.
        probabilities: calibrated; over all lobes they sum to 1, or to less by the share of "none of these".
        weights: what the bank runs; empty is the base model.
        chosen: the heaviest lobe, or None for the base model.
        confidence: probability of what was decided, 0 to 1.
        abstained: True when the router found that no lobe fits.
        threshold: the score that `stage` asks of a lobe, in the unit of `scores`; None where there is none.
        elapsed_ms: wall time of the decision.
        reason: one sentence for a person.
        certain: False when a chain of stages should ask its next stage.
        evidence: what else can be shown: per-stage scores, nearest training rows, the prompt's embedding.
    """

    router: str
    stage: str
    scores: Mapping[str, float]
    probabilities: Mapping[str, float]
    weights: Mapping[str, float]
    chosen: str | None
    confidence: float
    abstained: bool = False
    threshold: float | None = None
    elapsed_ms: float = 0.0
    reason: str = ""
    certain: bool = True
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values only; evidence that is not (embeddings) is left out."""
        plain = {k: v for k, v in self.evidence.items() if not isinstance(v, np.ndarray)}
        return {
            "router": self.router,
            "stage": self.stage,
            "scores": dict(self.scores),
            "probabilities": dict(self.probabilities),
            "weights": dict(self.weights),
            "chosen": self.chosen,
            "confidence": self.confidence,
            "abstained": self.abstained,
            "threshold": self.threshold,
            "elapsed_ms": self.elapsed_ms,
            "reason": self.reason,
            "certain": self.certain,
            "evidence": plain,
        }


@dataclass(frozen=True)
class RoutingRows:
    """What routing knows of one lobe: embeddings of its rows, unit length.

    Attributes:
        prototypes: (k, d) cluster centres of the training rows. train: (n, d). validation: (m, d), rows held out from training.
        train_prompts, validation_prompts: their texts, same order.
    """

    prototypes: Vector
    train: Vector
    validation: Vector
    train_prompts: Sequence[str] = ()
    validation_prompts: Sequence[str] = ()


@dataclass(frozen=True)
class RoutingContext:
    """All that a router may use; tests pass plain functions.

    Attributes:
        lobes: names of the lobes that can be chosen.
        rows: routing rows by lobe name; a lobe imported without data has none.
        embed: texts → (n, d) unit vectors.
        nll: (texts, lobe names) → (texts, lobes + 1): mean NLL per token of each text's first tokens under every lobe, the
            plain base in the last column; NaN where a text has no token to score.
        generic: embeddings (g, d) of prompts that belong to no specialist; `generic_prompts` their texts.
    """

    lobes: Sequence[str]
    rows: Mapping[str, RoutingRows]
    embed: Callable[[Sequence[str]], Vector]
    nll: Callable[[Sequence[str], Sequence[str]], Vector]
    generic: Callable[[], Vector] = lambda: np.zeros((0, 0), np.float32)
    generic_prompts: Sequence[str] = ()


class ScoringStage(Protocol):
    """What a chain asks of a stage that scores by embedding."""

    names: list[str]
    temperature: float

    def decide(self, prompt: str) -> RoutingDecision: ...
    def scores(self, vectors: Vector, *, leave_out_self: bool = False) -> Vector: ...
    def fit(self) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class Router(ABC):
    """One way to choose lobes.

    A subclass sets `name`, implements `decide`, and if it learns something, `fit`, `state` and `restore` (JSON values only).
    """

    name: ClassVar[str]
    needs_model: ClassVar[bool] = False
    """Whether `fit` runs the language model, which takes seconds."""

    def __init__(self, context: RoutingContext) -> None:
        self.context = context

    @abstractmethod
    def decide(self, prompt: str) -> RoutingDecision:
        """Decide for a prompt that is not empty, with at least one lobe in the context."""

    def fit(self) -> None:
        """Learn or calibrate from the context's rows."""

    def state(self) -> dict[str, Any]:
        """What `fit` learned, as JSON values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up `state()` of an earlier fit.

        Raises:
            RoutingError: it belongs to other lobes or another version.
        """

    def refit(self, earlier: Mapping[str, Any]) -> None:
        """Adjust to lobes that came or went without running the language model; `earlier` is the last router's state."""

    def route(self, prompt: str) -> RoutingDecision:
        """Decide, with the cases that every router shares: no lobes, an empty prompt, and the time it took."""
        start = time.perf_counter()
        if not self.context.lobes:
            decision = base_decision(self.name, "no lobes", "There is no lobe yet, so the base model answers.")
        elif not prompt.strip():
            decision = base_decision(
                self.name, "empty prompt", "An empty prompt says nothing, so the base model answers."
            )
        else:
            decision = self.decide(prompt)
        elapsed = (time.perf_counter() - start) * 1000
        return RoutingDecision(**{**decision.__dict__, "elapsed_ms": elapsed})


def base_decision(router: str, stage: str, reason: str, **more: Any) -> RoutingDecision:
    """The base model answers."""
    values: dict[str, Any] = {"scores": {}, "probabilities": {}, "confidence": 1.0, **more}
    return RoutingDecision(router=router, stage=stage, weights={}, chosen=None, abstained=True, reason=reason, **values)


def manual_decision(weights: Mapping[str, float], known: Sequence[str]) -> RoutingDecision:
    """A person chose the weights; {} is the base model.

    Raises:
        RoutingError: a lobe that does not exist, or a weight that is not a finite number.
    """
    for name, weight in weights.items():
        if name not in known:
            raise RoutingError(f"There is no lobe called {name!r}. There are: {', '.join(known) or 'none yet'}.")
        if not np.isfinite(weight):
            raise RoutingError(f"The weight of {name} is {weight}; it must be a finite number.")
    used = {name: float(weight) for name, weight in weights.items() if weight}
    chosen = max(used, key=lambda name: abs(used[name])) if used else None
    reason = f"You chose {chosen}." if chosen else "You chose the base model."
    return RoutingDecision(
        router="manual",
        stage="manual",
        scores=used,
        probabilities=used,
        weights=used,
        chosen=chosen,
        confidence=1.0,
        reason=reason,
    )


def softmax(values: Vector) -> Vector:
    """Along the last axis; values (..., n)."""
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True), np.float32)


def fit_temperature(scores: Vector, owner: np.ndarray[Any, Any], lowest: float = 0.02) -> float:
    """The temperature that makes softmax(scores / T) likeliest for the true owners (Guo et al. 2017), by a fine grid.

    On rows that are told apart without a mistake the likeliest is zero; `lowest` keeps such a router from being sure of all.
    """
    grid = np.geomspace(lowest, 1.0, 60)
    places = np.arange(len(owner))
    losses = [-np.log(softmax(scores / t)[places, owner] + 1e-12).mean() for t in grid]
    return float(grid[int(np.argmin(losses))])


def held_out_prompts(context: RoutingContext, names: Sequence[str], most: int = 96) -> tuple[list[str], list[int]]:
    """(prompts, owner): evenly from every lobe, rows held out from training where there are at least five, else training rows."""
    prompts: list[str] = []
    owner: list[int] = []
    for i, name in enumerate(names):
        if name not in context.rows:
            continue
        rows = context.rows[name]
        own = rows.validation_prompts if len(rows.validation_prompts) >= 5 else rows.train_prompts
        chosen = list(own)[: max(4, min(24, most // len(names)))]
        prompts += chosen
        owner += [i] * len(chosen)
    return prompts, owner
