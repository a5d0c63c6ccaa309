"""Hybrid router: what is clear from the lobes' rows is decided by them, and only where that is in
doubt the language model reads.

Stage 1 is kernel ridge regression on the sentence vectors (`regression`), with k = exp(γ (cos -
1)). Its scores say how much of each lobe is in the prompt, and how well the prompt is known at all.

Stage 2 is asked where the prompt is known about as well as the floor asks: between what all but 1 %
and what all but 10 % of the lobes' own rows reach. Then it is read under the likeliest lobe and
under the base, and g, the gain in nats per token, moves it:

    v' = v + SAY clip(g - USUAL, -LIMIT, LIMIT)

Lobes that came without rows are known to the language model alone: they are asked for wherever the
rows are not clear.

All is made from the lobes' rows and a few fixed numbers, in well under a second, so nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..lobes.rows import Vector
from ..routing.calibration import softmax
from ..routing.decision import AUTO, RoutingDecision, Verdict
from ..routing.regression import Regression, lobes_with_rows, nearest_rows, rows_of, shares_of
from ..routing.router import Router, RoutingContext, ScoringStage, State
from .logprob import SHARPNESS, doubt

WIDTH, RIDGE = 4.0, 0.1
"""γ and λ; with γ 3 or λ between 0.05 and 0.2 hardly anything changes."""
SAY, USUAL, LIMIT = 0.3, 0.2, 0.5
"""What a nat per token counts beside v, the gain that most prompts have whose template a lobe has
learned, and the gain over or below it that counts at most. Chosen on rows that lobes had not been
trained on, never on test prompts."""
STRANGERS = 8
"""Lobes without rows that are asked for at most."""
SHORTLIST = 3
"""Lobes that are read under where a person's own embedding threshold is not reached."""


class HybridRouter(Router):
    """See the module's text.

    Args:
        threshold: None decides as above; a number is the embedding score from which a lobe answers
            without more ado, and below which the likeliest three are read under, as in the package
            `multilobe`.
        embedding: makes the router that knows that score; it indexes all rows, so it is made only
            where it is asked.
    """

    name: ClassVar[str] = "hybrid"
    title: ClassVar[str] = "Hybrid"
    sentence: ClassVar[str] = (
        "The lobes whose rows the prompt is made of; where that is in doubt, the language model reads it too."
    )

    def __init__(
        self, context: RoutingContext, embedding: Callable[[], ScoringStage], threshold: float | None = None
    ) -> None:
        super().__init__(context)
        self._make_embedding, self.threshold = embedding, threshold
        self.names = lobes_with_rows(context)
        known = set(self.names)
        self._strangers = [name for name in context.lobes if name not in known][:STRANGERS]
        self._regression: Regression | None = None

    def adapt(self, state: State) -> None:
        if not state.exact:
            self._solve()

    def _solve(self) -> None:
        """Solve and calibrate; the language model is not asked."""
        if self.names:
            rows = rows_of(self.context, self.names)
            self._regression = Regression(rows, lambda cosines: np.exp(WIDTH * (cosines - 1)), RIDGE)

    def judge(self, prompt: str) -> Verdict:
        if self._regression is None:
            self._solve()
        if self._regression is None:
            return self._by_reading(prompt, self._strangers)
        if self.threshold is not None:
            return self._by_threshold(prompt, self.threshold)
        vector = self.context.embed([prompt])
        (scores,), (value,), (cosines,) = self._regression.scores(vector)
        fitted = self._regression.calibration
        likely = fitted.probabilities(scores)
        best = self.names[int(likely.argmax())]
        evidence: dict[str, Any] = {
            "everyday": float(scores[-1]), "known": float(value), "floor": fitted.floor,
            "nearest": nearest_rows(self._regression.rows, self.names, cosines),
        }  # fmt: skip
        gain = None
        if fitted.low <= value < fitted.high or (self._strangers and value < fitted.high):
            nll = self.context.nll([prompt], [best, *self._strangers])[0]
            if np.isfinite(nll).all():
                gains = {
                    name: float(nll[-1] - own)
                    for name, own in zip([best, *self._strangers], nll[:-1], strict=True)
                }
                evidence["gains"], gain = gains, gains[best]
                value += SAY * float(np.clip(gain - USUAL, -LIMIT, LIMIT))
                stranger = max(self._strangers, key=lambda name: gains[name], default=best)
                if value < fitted.floor and stranger != best and gains[stranger] > max(USUAL, gain):
                    return self._by_reading(prompt, [stranger], evidence)
        none = fitted.none(float(value))
        return Verdict(
            scores=dict(zip(self.names, map(float, scores), strict=False)),
            probabilities=dict(zip(self.names, map(float, (1 - none) * likely), strict=True)),
            none=none,
            stage="embedding" if gain is None else "logprob",
            reason=_reason(best, none, gain, self._second(scores)),
            certain=not self._strangers or none < 0.5,
            evidence=evidence,
        )

    def _second(self, scores: Vector) -> list[str]:
        """The lobes that stand out beside the best."""
        return list(AUTO.weights(shares_of(dict(zip(self.names, map(float, scores), strict=False)))))[1:]

    def shares(self, prompt: str, decision: RoutingDecision) -> Mapping[str, float]:
        """What the scores say the prompt is made of."""
        return (
            shares_of(decision.scores)
            if decision.stage in ("embedding", "logprob")
            else decision.probabilities
        )

    @cached_property
    def _embedding(self) -> ScoringStage:
        return self._make_embedding()

    def _by_reading(
        self, prompt: str, lobes: Sequence[str], evidence: Mapping[str, Any] | None = None
    ) -> Verdict:
        """Where the rows say nothing: the lobe under which the prompt gains most over the base, if
        any gains."""
        nll = self.context.nll([prompt], lobes)[0]
        if not lobes or not np.isfinite(nll).all():
            reason = "No lobe came with rows, and the prompt has no token to read, so the base model answers."
            return Verdict.base("logprob", reason, certain=False, evidence=evidence or {})
        gains = nll[-1] - nll[:-1]
        likely = softmax(np.asarray(SHARPNESS * gains, np.float32))
        none = doubt(float(gains.max()))
        best = lobes[int(gains.argmax())]
        against = f"{gains.max():+.2f} nats per token against the base"
        told = f"Read under {best}, the prompt is likelier than under the base ({against})."
        if none >= 0.5:
            told = f"No lobe finds the prompt likelier than the base does; {best} comes closest ({against})."
        return Verdict(
            scores=dict(zip(lobes, map(float, gains), strict=True)),
            probabilities=dict(zip(lobes, map(float, (1 - none) * likely), strict=True)),
            none=none,
            stage="logprob",
            reason=told,
            evidence={**(evidence or {}), "gains": dict(zip(lobes, map(float, gains), strict=True))},
        )

    def _by_threshold(self, prompt: str, threshold: float) -> Verdict:
        """A person's own threshold: at once from there on, else by reading under the likeliest."""
        scores = self._embedding.scores(self.context.embed([prompt]))[0]
        by_lobe = dict(zip(self._embedding.names, map(float, scores), strict=True))
        order = sorted(by_lobe, key=lambda name: -by_lobe[name])
        if by_lobe[order[0]] < threshold:
            verdict = self._by_reading(prompt, [*order[:SHORTLIST], *self._strangers])
            return replace(verdict, evidence={**verdict.evidence, "embedding": by_lobe})
        likely = softmax(np.asarray(scores / self._embedding.temperature, np.float32))
        return Verdict(
            scores=by_lobe,
            probabilities=dict(zip(self._embedding.names, map(float, likely), strict=True)),
            stage="embedding",
            reason=f"The prompt is as near to {order[0]} as you ask ({by_lobe[order[0]]:.2f}, {threshold:.2f} needed).",
            threshold=threshold,
        )


def _reason(best: str, none: float, gain: float | None, others: Sequence[str]) -> str:
    read = "" if gain is None else f" Read under {best}, it gains {gain:+.2f} nats per token over the base."
    if none >= 0.5:
        return f"No lobe's rows are near enough; {best} comes closest.{read}"
    if gain is not None:
        return f"The lobes' rows leave it in doubt.{read}"
    if others:
        return f"The prompt asks for what {best} and {' and '.join(others)} were taught."
    return f"The prompt is like what {best} was taught."
