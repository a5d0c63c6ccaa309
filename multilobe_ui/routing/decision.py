"""What a router found out about a prompt, and what follows from it: which lobes answer, with which
weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import RoutingError, some_of

NEGLIGIBLE = 0.01
"""Weight below which "soft" leaves a lobe out: the bank's time grows with the lobes that it runs."""
MODES = ("auto", "top_1", "top_k", "soft")
STANDS_OUT = 0.6
"""Share of the best lobe's weight that another needs for "auto" to let it answer too."""


@dataclass(frozen=True)
class Mixing:
    """How many lobes answer: "auto" the best and those that stand out beside it, "top_1" the best,
    "top_k" the `k` best, "soft" all that are not negligible. A router that weighs tokens mixes
    softly under "auto".

    Raises:
        RoutingError: no such mode, or fewer than one lobe.
    """

    mode: str = "auto"
    k: int = 2

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RoutingError(f"There is no mixing mode {self.mode!r}. There are: {', '.join(MODES)}.")
        if self.k < 1:
            raise RoutingError(f"k is {self.k}; at least 1 lobe must answer.")

    def weights(self, shares: Mapping[str, float]) -> dict[str, float]:
        """The shares of the lobes that answer, made to sum to 1; heaviest first."""
        ranked = sorted((name for name in shares if shares[name] > 0), key=lambda name: -shares[name])
        if self.mode == "auto":
            chosen = [name for name in ranked if shares[name] >= STANDS_OUT * shares[ranked[0]]]
        elif self.mode == "soft":
            chosen = [name for name in ranked if shares[name] >= NEGLIGIBLE] or ranked[:1]
        else:
            chosen = ranked[: self.k if self.mode == "top_k" else 1]
        total = sum(shares[name] for name in chosen)
        return {name: shares[name] / total for name in chosen}


AUTO, TOP_1 = Mixing(), Mixing("top_1")


@dataclass(frozen=True)
class RoutingDecision:
    """Which lobes answer a prompt, and why. Lobes go by their names.

    Attributes:
        router: name of the router, "hybrid" for instance; "manual" when a person chose.
        stage: which part of it decided: "embedding", "logprob", "manual", "empty prompt", "no
            lobes", "only lobe".
        scores: raw score of every lobe in the deciding stage's own unit, higher is better; may lack
            lobes not looked at.
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
        per_token: True when each token is weighed anew while the answer is written; `weights` are
            then the prompt's average.
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
    per_token: bool = False

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
            "per_token": self.per_token,
            "evidence": plain,
        }


@dataclass(frozen=True)
class Verdict:
    """What a router finds out about a prompt; `Router.route` makes the decision of it.

    Attributes:
        scores: raw, in the router's own unit, higher is better. probabilities: calibrated, that
            each lobe is the right one; what is missing to 1 is `none`. none: probability that no
            lobe fits; from 0.5 on the base answers.
        stage, reason, certain, threshold, evidence: as in `RoutingDecision`.
        weights: of a router that weighs tokens, its mean weights; None for the others, whose
            weights follow from the mixing mode.
    """

    scores: Mapping[str, float]
    probabilities: Mapping[str, float]
    none: float = 0.0
    stage: str = ""
    reason: str = ""
    certain: bool = True
    threshold: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] | None = None

    @property
    def best(self) -> str | None:
        """The likeliest lobe; None where the base answers."""
        if self.none >= 0.5 or not self.probabilities:
            return None
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def confidence(self) -> float:
        """Probability of what is chosen."""
        return self.none if self.best is None else self.probabilities[self.best]

    @classmethod
    def base(cls, stage: str, reason: str, certain: bool = True, **more: Any) -> Verdict:
        """Nothing is known of the prompt, so the base answers."""
        return cls({}, {}, **{"none": 1.0, **more}, stage=stage, reason=reason, certain=certain)


def base_decision(router: str, stage: str, reason: str, **more: Any) -> RoutingDecision:
    """The base model answers."""
    values: dict[str, Any] = {"scores": {}, "probabilities": {}, "confidence": 1.0, **more}
    return RoutingDecision(
        router=router, stage=stage, weights={}, chosen=None, abstained=True, reason=reason, **values
    )


def manual_decision(weights: Mapping[str, float], known: Sequence[str]) -> RoutingDecision:
    """A person chose the weights; {} is the base model.

    Raises:
        RoutingError: a lobe that does not exist, or a weight that is not a finite number.
    """
    for name, weight in weights.items():
        if name not in known:
            raise RoutingError(f"There is no lobe called {name!r}. There are: {some_of(known)}.")
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
