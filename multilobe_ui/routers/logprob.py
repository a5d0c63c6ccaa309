"""Log-prob router: under which lobe is the prompt itself least surprising?

    score(l, x) = mean log-probability per token of x's first tokens under lobe l

All lobes are scored in one batched forward. No training rows are needed, so it can also judge lobes that were imported without
any. It abstains when every lobe finds the prompt more surprising than the plain base does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .base import Router, RoutingDecision, base_decision, fit_temperature, held_out_prompts, softmax


class LogprobRouter(Router):
    """See the module's text. Scores are in nats per token."""

    name: ClassVar[str] = "logprob"
    needs_model: ClassVar[bool] = True
    temperature = 0.09

    def decide(self, prompt: str) -> RoutingDecision:
        names = list(self.context.lobes)
        scores = -self.context.nll([prompt], names)[0]
        if np.isnan(scores).any():
            return base_decision(self.name, "logprob", "The prompt has no token to score, so the base model answers.")
        lobes, base = scores[:-1], float(scores[-1])
        probabilities = softmax(lobes / self.temperature)
        best = int(lobes.argmax())
        values: dict[str, Any] = {
            "scores": dict(zip(names, map(float, lobes), strict=True)),
            "probabilities": dict(zip(names, map(float, probabilities), strict=True)),
            "threshold": base,
            "evidence": {"base_logprob": base},
        }
        if lobes[best] <= base and len(names) > 1:
            reason = "Every lobe finds this prompt more surprising than the base model does."
            return base_decision(
                self.name, "logprob", reason, **{**values, "confidence": float(1 - probabilities[best])}
            )
        gain = lobes[best] - base
        return RoutingDecision(
            router=self.name,
            stage="logprob",
            weights={names[best]: 1.0},
            chosen=names[best],
            confidence=float(probabilities[best]),
            reason=f"{names[best]} finds the prompt's words likeliest ({gain:+.2f} nats per token against the base).",
            **values,
        )

    def fit(self) -> None:
        """Calibrate the temperature on held-out prompts."""
        prompts, owner = held_out_prompts(self.context, list(self.context.lobes))
        if len(set(owner)) < 2:
            return
        scores = -self.context.nll(prompts, list(self.context.lobes))[:, :-1]
        good = ~np.isnan(scores).any(1)
        self.temperature = fit_temperature(np.asarray(scores[good], np.float32), np.array(owner)[good])

    def refit(self, earlier: Mapping[str, Any]) -> None:
        self.temperature = float(earlier.get("temperature", self.temperature))

    def state(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.temperature = float(state["temperature"])
