"""Hybrid router: the embedding decides what is clear; what is not goes to the language model's log-probs.

Stage 2 does not throw stage 1's evidence away. With s the embedding scores (over their temperature) and g the log-probs against
their mean, both over the lobes of the shortlist, it takes

    softmax(a * s + b * g)

where a and b are fitted on held-out rows (multinomial logistic regression with two coefficients for all lobes, so that they
stay valid when lobes come and go).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from .base import (
    Router,
    RoutingContext,
    RoutingDecision,
    ScoringStage,
    Vector,
    base_decision,
    held_out_prompts,
    softmax,
)

SHORTLIST = 8
"""Lobes that stage 2 scores at most: the nearest by embedding, and as many of those without rows."""


class HybridRouter(Router):
    """See the module's text.

    Args:
        first: a stage with `decide` and `scores` that needs no language model (the embedding router).
    """

    name: ClassVar[str] = "hybrid"
    needs_model: ClassVar[bool] = True

    def __init__(self, context: RoutingContext, first: ScoringStage) -> None:
        super().__init__(context)
        self.first = first
        self.coefficients = (0.77, 5.0)

    def decide(self, prompt: str) -> RoutingDecision:
        decision = self.first.decide(prompt)
        if decision.certain or not self.context.lobes:
            return replace(decision, router=self.name)
        if len(self.context.lobes) == 1 and self.first.names:
            return replace(decision, router=self.name)  # one lobe: it fits or it does not, and the embedding knows
        return self._second(prompt, decision)

    def _second(self, prompt: str, first: RoutingDecision) -> RoutingDecision:
        shortlist = self._shortlist(first.scores)
        logprobs = -self.context.nll([prompt], shortlist)[0]
        if np.isnan(logprobs).any():
            return replace(first, router=self.name, certain=True)
        lobes, base = logprobs[:-1], float(logprobs[-1])
        # scores below the floor say which lobe is least far away, and that is no evidence
        embedding = self._fill(first.scores if first.chosen else {}, shortlist)
        probabilities = softmax(self._evidence(embedding, lobes))
        best = int(probabilities.argmax())
        by_lobe = dict(zip(shortlist, map(float, probabilities), strict=True))
        evidence = {
            **first.evidence,
            "embedding": dict(first.scores),
            "logprob": dict(zip(shortlist, map(float, lobes), strict=True)),
            "base_logprob": base,
        }
        values: dict[str, Any] = {"scores": by_lobe, "probabilities": by_lobe, "evidence": evidence}
        if first.chosen is None and lobes.max() <= base:
            reason = "No lobe's data is near, and none finds the prompt likelier than the base model does."
            return base_decision(
                self.name, "logprob", reason, **{**values, "confidence": float(1 - probabilities[best])}
            )
        hesitation = (
            f"{first.chosen} was not far enough ahead by embedding" if first.chosen else "No embedding was near"
        )
        return RoutingDecision(
            router=self.name,
            stage="logprob",
            weights={shortlist[best]: 1.0},
            chosen=shortlist[best],
            confidence=float(probabilities[best]),
            reason=f"{hesitation}; reading the prompt under each lobe, {shortlist[best]} fits best.",
            **values,
        )

    def _shortlist(self, scores: Mapping[str, float]) -> list[str]:
        near = sorted(scores, key=lambda name: -scores[name])[:SHORTLIST]
        return near + [name for name in self.context.lobes if name not in scores][:SHORTLIST]

    @staticmethod
    def _fill(scores: Mapping[str, float], names: list[str]) -> Vector:
        """Embedding scores in the order of `names`; a lobe without rows gets the median, which speaks neither for nor against."""
        middle = float(np.median([*scores.values()])) if scores else 0.0
        return np.array([scores.get(name, middle) for name in names], np.float32)

    def _evidence(self, embedding: Vector, logprob: Vector) -> Vector:
        a, b = self.coefficients
        relative = logprob - logprob.mean(-1, keepdims=True)
        return np.asarray(a * embedding / self.first.temperature + b * relative, np.float32)

    def fit(self) -> None:
        """Calibrate stage 1, then the two coefficients on held-out prompts."""
        self.first.fit()
        names = list(self.first.names)
        if len(names) < 2:
            return
        from scipy.optimize import minimize

        prompts, owner = held_out_prompts(self.context, names)
        scores = self.first.scores(self.context.embed(prompts), leave_out_self=True)
        features, places = [], []
        for prompt, row, true in zip(prompts, scores, owner, strict=True):
            by_name = dict(zip(names, map(float, row), strict=True))
            shortlist = sorted(by_name, key=lambda name: -by_name[name])[:SHORTLIST]
            if names[true] not in shortlist:
                continue
            logprobs = -self.context.nll([prompt], shortlist)[0][:-1]
            if not np.isnan(logprobs).any():
                s = self._fill(by_name, shortlist) / self.first.temperature
                features.append(np.stack([s, logprobs - logprobs.mean()]))
                places.append(shortlist.index(names[true]))
        if not features:
            return
        stacked, targets = np.stack(features).astype(np.float64), np.array(places)

        def loss(coefficients: Vector) -> float:
            z = np.tensordot(coefficients, stacked.transpose(1, 0, 2), axes=1)
            z -= z.max(1, keepdims=True)
            # a weak pull towards the defaults keeps a handful of rows from choosing wild coefficients
            pull = 0.01 * float(((coefficients / np.array([0.77, 5.0]) - 1) ** 2).sum())
            return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), targets]).mean()) + pull

        best = minimize(loss, np.array(self.coefficients), bounds=[(0.05, 5.0), (0.0, 50.0)]).x
        self.coefficients = (float(best[0]), float(best[1]))

    def refit(self, earlier: Mapping[str, Any]) -> None:
        self.first.fit()
        a, b = earlier.get("coefficients", self.coefficients)
        self.coefficients = (float(a), float(b))

    def state(self) -> dict[str, Any]:
        return {"coefficients": list(self.coefficients), "first": self.first.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        a, b = map(float, state["coefficients"])
        self.coefficients = (a, b)
        self.first.restore(state["first"])
