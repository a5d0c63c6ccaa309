"""Log-prob router: under which lobe is the prompt itself least surprising?

    score(l, x) = mean log-probability per token of x's first tokens under lobe l

All lobes are scored in one batched forward. No training rows are needed, so it can also judge lobes
that were imported without any. It abstains when the best lobe's gain over the plain base is below
`floor`: 0 until it is fitted, then the quantile of held-out prompts that `false_abstention` asks
for.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..routing.calibration import fit_temperature, held_out_prompts, low_tail, softmax
from ..routing.decision import Verdict
from ..routing.router import FitOutcome, Learning, Router, RoutingContext, State

FALSE_ABSTENTION = 0.01
"""Share of held-out rows that may be sent to the base model although a lobe fits."""


SHARPNESS = 5.0
"""How fast the probability that no lobe fits falls with nats per token over the floor."""


def doubt(above: float) -> float:
    """Probability that no lobe fits a prompt whose best lobe gains so many nats per token over what
    is asked; 0.5 at 0."""
    return float(1 / (1 + np.exp(np.clip(SHARPNESS * above, -50, 50))))


class LogprobRouter(Router):
    """See the module's text. Scores are in nats per token.

    Args:
        false_abstention: share of held-out rows that may be sent to the base model although a lobe fits.
    """

    name: ClassVar[str] = "logprob"
    title: ClassVar[str] = "Log-prob"
    sentence: ClassVar[str] = "The lobe under which the language model finds the prompt least surprising."
    learns_labels: ClassVar[bool] = False
    needs_model: ClassVar[bool] = True
    temperature = 0.09

    def __init__(self, context: RoutingContext, false_abstention: float = FALSE_ABSTENTION) -> None:
        super().__init__(context)
        self.false_abstention, self.floor = false_abstention, 0.0

    def judge(self, prompt: str) -> Verdict:
        names = list(self.context.lobes)
        scores = -self.context.nll([prompt], names)[0]
        if np.isnan(scores).any():
            return Verdict.base("logprob", "The prompt has no token to score, so the base model answers.")
        lobes, base = scores[:-1], float(scores[-1])
        best = int(lobes.argmax())
        gain = float(lobes[best]) - base
        none = doubt(gain - self.floor) if len(names) > 1 else 0.0
        against = f"({gain:+.2f} nats per token against the base"
        reason = f"{names[best]} finds the prompt's words likeliest {against})."
        if none >= 0.5:
            reason = f"No lobe finds this prompt likely enough: {names[best]} comes closest {against}, {self.floor:+.2f} needed)."
        likely = (1 - none) * softmax(lobes / self.temperature)
        return Verdict(
            scores=dict(zip(names, map(float, lobes), strict=True)),
            probabilities=dict(zip(names, map(float, likely), strict=True)),
            none=none,
            stage="logprob",
            reason=reason,
            threshold=base + self.floor,
            evidence={"base_logprob": base, "floor": self.floor},
        )

    def learn(self, settings: Mapping[str, Any], stop: threading.Event) -> Learning:
        """Calibrate temperature and floor on held-out prompts."""
        self._calibrate()
        return FitOutcome()
        yield

    def adapt(self, state: State) -> None:
        if state.exact or state.values:
            self.temperature, self.floor = float(state.values["temperature"]), float(state.values["floor"])

    def _calibrate(self) -> None:
        prompts, owner = held_out_prompts(self.context, list(self.context.lobes))
        if len(set(owner)) < 2:
            return
        logprobs = -self.context.nll(prompts, list(self.context.lobes))
        good = ~np.isnan(logprobs).any(1)
        if not good.any():
            return
        scores = logprobs[good, :-1]
        self.temperature = fit_temperature(np.asarray(scores, np.float32), np.array(owner)[good])
        # never above 0: what a lobe finds likelier than the base does is its own to try
        self.floor = min(0.0, low_tail(scores.max(1) - logprobs[good, -1], self.false_abstention))

    def state(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "floor": self.floor}
