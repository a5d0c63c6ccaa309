"""Complexity router: how complex a prompt is decides which of three experts answers it.

    prompt → analyser's features ⊕ sentence embedding → MLP → p(tier | x) = softmax(logits / T),
    complexity score

The experts are lobes that this router has made for itself (`..experts` trains router and experts in
three phases); the lobes that a person trained are not among its choices. Complexity is independent
of the topic, so nothing is too strange to be given a tier, and the router abstains from one kind of
prompt only: what is written in another script, of which the English analyser understands nothing. T
is calibrated on rows that the router is not trained on (Guo et al. 2017).

To decide takes the analyser, the sentence encoder and two small matrix products; torch and the
language model are for the fit.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...data.examples import Example
from ...errors import ConfigError
from ...routing.decision import Verdict
from ...routing.router import BankContext, FitOutcome, Learning, Router, State
from .features import FEATURES, TIERS, Analyser, scaled, score, tier_of
from .network import ComplexitySettings, TierNetwork

Array = np.ndarray[Any, Any]
LAST_LATIN = 0x024F


class ComplexityRouter(Router):
    """See the module's text.

    Args:
        analyser: of prompts; None makes one, whose parser is loaded when it is first needed.
    """

    name: ClassVar[str] = "complexity"
    title: ClassVar[str] = "Complexity"
    sentence: ClassVar[str] = "Simple, medium or complex? Three experts of its own answer, one for each."
    learns_labels: ClassVar[bool] = False
    settings: ClassVar[type[Any] | None] = ComplexitySettings
    needs_model: ClassVar[bool] = True
    asks_for_fit: ClassVar[bool] = True

    def __init__(self, context: BankContext, analyser: Analyser | None = None) -> None:
        super().__init__(context)
        self.context: BankContext = context
        self.analyser = analyser or Analyser()
        self.network: TierNetwork | None = None

    @property
    def is_fitted(self) -> bool:
        return self.network is not None and bool(self._experts)

    @property
    def _experts(self) -> dict[str, str]:
        """Lobe by tier, in the order of TIERS."""
        return {tier: self.context.experts[tier] for tier in TIERS if tier in self.context.experts}

    # ---- deciding ---------------------------------------------------------------------------------------------------------

    def judge(self, prompt: str) -> Verdict:
        if self.network is None:
            return Verdict.base("not fitted", "The complexity router has not been trained yet; fit it under Routers.")
        if _in_another_script(prompt):
            reason = "The complexity analyser reads English, and most of this prompt is in another script."
            return Verdict.base("complexity", reason)
        evidence = self._read(prompt, self.network)
        tiers = evidence["tiers"]
        experts = self._experts
        tier = max(tiers, key=tiers.__getitem__)
        if not experts:
            reason = (
                f"The prompt is {tier}, but there are no experts yet; fit the router with a base model and answers."
            )
            return Verdict.base("complexity", reason, evidence=evidence, none=tiers[tier])
        total = sum(tiers[t] for t in experts)  # an expert may have been deleted: the others share what it had
        if not total > 0:
            total, tiers = float(len(experts)), dict.fromkeys(experts, 1.0)
        by_tier = {t: tiers[t] / total for t in experts}
        best = max(by_tier, key=by_tier.__getitem__)
        by_lobe = {experts[t]: p for t, p in by_tier.items()}
        missing = "" if tier in experts else f"; there is no expert for {tier} ones"
        return Verdict(
            scores=by_lobe,
            probabilities=by_lobe,
            stage="complexity",
            reason=f"Complexity {evidence['score']:.2f}: {best} ({by_tier[best]:.0%}), so {experts[best]} answers{missing}.",
            evidence=evidence,
        )

    def _read(self, prompt: str, network: TierNetwork) -> dict[str, Any]:
        """What is known of a prompt: its features in their own units and scaled (`profile`, for a
        radar beside the training prompts' `tier_profiles`), the analyser's score and tier, the
        network's estimate and the tiers' probabilities."""
        features = self.analyser.features([prompt])
        profile, truth = scaled(features), float(score(features)[0])
        tiers, estimate = network(profile, self.context.embed([prompt]))
        means = network.tier_means.tolist()
        return {
            "features": dict(zip(FEATURES, features[0].tolist(), strict=True)),
            "profile": dict(zip(FEATURES, profile[0].tolist(), strict=True)),
            "tier_profiles": {
                t: dict(zip(FEATURES, row, strict=True)) for t, row in zip(TIERS, means, strict=True) if any(row)
            },
            "score": truth,
            "tier": tier_of(truth, network.low, network.high),
            "thresholds": [network.low, network.high],
            "estimated_score": float(estimate[0]),
            "tiers": dict(zip(TIERS, map(float, tiers[0]), strict=True)),
        }

    # ---- learning ---------------------------------------------------------------------------------------------------------

    def learn(self, settings: Mapping[str, Any], stop: threading.Event) -> Learning:
        """Train the router and its experts.

        Args:
            settings: fields of `tiers.ComplexitySettings`, and "rows", a list of {"input",
                "output"}: what to learn from instead of the lobes' own rows.
        Raises:
            ConfigError: a setting that is unknown or out of range. RoutingError: there are no rows.
        """
        from .experts import train_experts  # torch: not before it is needed

        values = {name: value for name, value in settings.items() if name != "rows"}
        unknown = values.keys() - {field.name for field in fields(ComplexitySettings)}
        if unknown:
            raise ConfigError(f"The complexity router has no setting {sorted(unknown)[0]!r}.")
        chosen = ComplexitySettings(**values)
        given = settings.get("rows")
        rows, held_out = ([_example(row["input"], row["output"]) for row in given], []) if given else self._own_rows()
        backbone = self.context.bank.backbone if self.context.bank is not None else None
        folder = Path(tempfile.mkdtemp(prefix="multilobe-experts-"))
        made: Mapping[str, Path] = {}
        try:
            result = yield from train_experts(
                backbone, self._embed, self.analyser, rows, chosen, folder, stop, held_out
            )
            made = result.experts
        finally:
            if not made:
                shutil.rmtree(folder, ignore_errors=True)
        self.network = result.router
        return FitOutcome(result.report, result.experts)

    def _own_rows(self) -> tuple[list[Example], list[Example]]:
        """(to learn from, to report on): the rows of all lobes, each prompt once; answers not kept are empty.

        Where some lobes held rows out, every sixth row of the others is reported on, so that the report is of
        all lobes. Where none did, there is nothing to report on: `train_experts` then parts the rows itself.
        """
        rows = self.context.rows.values()
        some = any(len(r.validation_prompts) for r in rows)
        train: dict[str, str] = {}
        reported: dict[str, str] = {}
        for r in rows:
            pairs = _pairs(r.train_prompts, r.train_answers)
            parts = some and not len(r.validation_prompts) and len(pairs) >= 6
            train |= {pair[0]: pair[1] for i, pair in enumerate(pairs) if not parts or i % 6 != 5}
            reported |= dict(pairs[5::6] if parts else _pairs(r.validation_prompts, r.validation_answers))
        held_out = {p: a for p, a in reported.items() if p not in train}
        return [_example(*pair) for pair in train.items()], [_example(*pair) for pair in held_out.items()]

    def _embed(self, prompts: Sequence[str]) -> Array:
        """As the context's, but rows that came with their vectors are not encoded again."""
        known: dict[str, Array] = {}
        for rows in self.context.rows.values():
            known |= zip(rows.train_prompts, rows.train, strict=False)
            known |= zip(rows.validation_prompts, rows.validation, strict=False)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if new:
            known |= zip(new, self.context.embed(new), strict=True)
        return np.stack([known[prompt] for prompt in prompts])

    def state(self) -> dict[str, Any]:
        return self.network.state() if self.network else {}

    def adapt(self, state: State) -> None:
        """Lobes that come and go are not this router's concern: what it has learned stays."""
        if state.values:
            self.network = TierNetwork.from_state(state.values)


def _example(prompt: str, answer: str) -> Example:
    return Example(({"role": "user", "content": prompt},), answer)


def _pairs(prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[str, str]]:
    """Prompts with their answers, which are empty for a lobe that did not keep them."""
    return list(zip(prompts, answers if len(answers) == len(prompts) else [""] * len(prompts), strict=True))


def _in_another_script(prompt: str) -> bool:
    """Whether fewer than half of the letters are Latin; a prompt of digits and signs alone is in none."""
    letters = [c for c in prompt if c.isalpha()]
    return 2 * sum(ord(c) <= LAST_LATIN for c in letters) < len(letters)
