"""Arrow router: every layer weighs the lobes for every token by their own singular vectors (see
`..arrow`). Nothing is trained.

The decision that is shown before the answer is the mean over the prompt's own tokens and all
layers, over every lobe and not the k best alone, so that close ones can be told apart:

    s(l) = mean of softmax(|x . p(l)| / t)           p(l) = softmax(z(l) / T)_l,  z(l) = (s(l) - m(l)) / d(l)

Some lobes' vectors are long in every prompt. So m and d, a lobe's mean and deviation over held-out
prompts, and T are calibrated (Guo et al. 2017) with the language model, and with them the z that a
prompt must reach for any lobe to answer; until then m is the mean over all lobes, and nothing is
sent to the base. The weights that the answer is written with are Arrow's own, not calibrated.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import RoutingError
from ...lobes.rows import Vector
from ...progress import Progress
from ...routing.calibration import fit_temperature, held_out_prompts, softmax
from ...routing.decision import Mixing, Verdict
from ...routing.router import BankContext, FitOutcome, Learning, Router, State
from ...settings import check_all, setting, settings_of

if TYPE_CHECKING:  # torch: not before a prompt is weighed
    from .mixer import ArrowMixer

FALSE_ABSTENTION = 0.03
FEWEST_GENERIC = 20
MOST_TOKENS = 120
Z_SCALE = 10.0
"""`fit_temperature` looks from 0.02 to 1; of z divided by ten that is T from 0.2 to 10."""


@dataclass(frozen=True)
class ArrowSettings:
    """What can be chosen of Arrow."""

    temperature: float = setting(
        1.0, "Temperature", "Divides the similarities before the softmax: lower gives more to the nearest lobe.", above=0, high=100
    )

    def __post_init__(self) -> None:
        check_all(self)


class ArrowRouter(Router):
    """See the module's text."""

    name: ClassVar[str] = "arrow"
    title: ClassVar[str] = "Arrow"
    sentence: ClassVar[str] = (
        "Weighs every token in every layer by what each lobe's own matrices respond to most; there is nothing to train. "
        "It is an experiment: it hardly tells lobes of one form apart."
    )
    experimental: ClassVar[bool] = True
    learns_labels: ClassVar[bool] = False
    settings: ClassVar[type[Any] | None] = ArrowSettings
    per_token: ClassVar[bool] = True
    needs_model: ClassVar[bool] = True

    def __init__(self, context: BankContext) -> None:
        super().__init__(context)
        self.context: BankContext = context
        self.chosen = ArrowSettings()
        self.temperature = 1.0
        self.threshold: float | None = None
        self._usual: dict[str, tuple[float, float]] = {}  # mean and deviation of s, by lobe
        self._all: ArrowMixer | None = None

    @property
    def _names(self) -> list[str]:
        """Lobes that the bank can run."""
        bank, ids = self.context.bank, self.context.ids
        return [] if bank is None else [name for name in self.context.lobes if ids.get(name) in bank]

    @property
    def is_fitted(self) -> bool:
        return bool(self._names)

    # ---- deciding ---------------------------------------------------------------------------------------------------------

    def judge(self, prompt: str) -> Verdict:
        names = self._names
        if not names:
            reason = "Arrow reads the lobes' matrices, and no language model is loaded with them."
            return Verdict.base("not fitted", reason, certain=False)
        ids, shares = self._read(prompt, names)
        mean = shares.mean(0)
        z = self._against_usual(names, mean[None])[0]
        likely = softmax(np.asarray(z / self.temperature, np.float32))
        best = names[int(z.argmax())]
        by_lobe = dict(zip(names, map(float, likely), strict=True))
        none = 0.0
        if self.threshold is not None:
            none = float(1 / (1 + np.exp(np.clip(4 * (z.max() - self.threshold), -50, 50))))
        reason = f"{best}'s vectors respond to the prompt's tokens most, against what is usual for each lobe."
        if none >= 0.5:
            reason = "No lobe's vectors respond to this prompt more than to any other."
        return Verdict(
            scores=dict(zip(names, map(float, z), strict=True)),
            probabilities={name: (1 - none) * by_lobe.get(name, 0.0) for name in self.context.lobes},
            none=none,
            stage=self.name,
            reason=reason,
            threshold=self.threshold,
            evidence={"tokens": self._by_token(names, ids, shares)},
            weights={name: float(share) for name, share in zip(names, mean, strict=True) if share > 0},
        )

    def mixer(self, mixing: Mixing) -> ArrowMixer:
        """Top-1 and top-k keep each token's best lobes in each layer; soft mixes all.

        Raises:
            RoutingError: there is no lobe that the bank can run.
        """
        names = self._names
        if not names:
            raise RoutingError("Arrow needs lobes and a language model that is loaded with them.")
        return self._mixer(names, {"top_1": 1, "top_k": mixing.k}.get(mixing.mode))

    def _mixer(self, names: list[str], top_k: int | None) -> ArrowMixer:
        from .mixer import ArrowMixer

        ids = tuple(self.context.ids[name] for name in names)
        return ArrowMixer.of(self.context.bank, ids, top_k, self.chosen.temperature)

    def _read(self, prompt: str, names: list[str]) -> tuple[list[int], Vector]:
        """(the prompt's own token ids, their weights (tokens, lobes) averaged over layers), all
        lobes mixing."""
        import torch

        if self._all is None:
            self._all = self._mixer(names, None)
        bank = self.context.bank
        opening, words = bank.backbone.encode_prompt(prompt)
        ids = (opening + words)[: bank.backbone.context_length]
        first = len(opening) if len(opening) < len(ids) else 0
        run = self._all.start()
        with torch.inference_mode():
            run(bank, input_ids=torch.tensor([ids], device=bank.backbone.device), use_cache=False, logits_to_keep=1)
        weights = run.weights
        assert weights is not None
        shares = weights[0, first:].float().mean(1).cpu().numpy()
        return ids[first:], shares

    def _by_token(self, names: list[str], ids: list[int], shares: Vector, most: int = 4) -> list[dict[str, Any]]:
        """Each prompt token with its heaviest lobes, for a strip of coloured words."""
        decode, found = self.context.bank.backbone.decode, []
        for token, row in zip(ids[:MOST_TOKENS], shares, strict=False):
            found.append(
                {
                    "text": decode([token]),
                    "weights": {names[i]: round(float(row[i]), 3) for i in np.argsort(-row)[:most]},
                }
            )
        return found

    def _against_usual(self, names: list[str], means: Vector) -> Vector:
        """z (prompts, lobes) of mean weights (prompts, lobes)."""
        middle = 1 / len(names)
        usual = np.array([self._usual.get(name, (middle, 0.05 * middle)) for name in names], np.float32)
        return np.asarray((means - usual[:, 0]) / usual[:, 1], np.float32)

    # ---- calibration ------------------------------------------------------------------------------------------------------

    def learn(self, settings: Mapping[str, Any], stop: threading.Event) -> Learning:
        """Calibrate on the lobes' held-out prompts; without a model or rows the settings alone are taken.

        Args:
            settings: fields of `ArrowSettings`.
        """
        self.chosen, self._all, self._usual, self.threshold = settings_of(ArrowSettings, settings), None, {}, None
        self.temperature = 1.0
        names = self._names
        prompts, owner = held_out_prompts(self.context, names, most=160) if names else ([], [])
        known = sorted(set(owner))
        if len(known) < 2:
            return FitOutcome()
        found: list[Vector] = []
        for i, prompt in enumerate(prompts):
            if stop.is_set():
                break
            found.append(self._read(prompt, names)[1].mean(0))
            if i % 16 == 0:
                yield Progress(i, len(prompts), "Reading held-out prompts", {})
        if len(set(owner[: len(found)])) < len(known):
            raise RoutingError(
                "Arrow was stopped before it had seen every lobe's prompts. An earlier fit stays as it is."
            )
        means, owners = np.stack(found), np.array(owner[: len(found)])
        # every lobe's prompts count the same, or a lobe of many rows would set what is usual
        middle = np.mean([means[owners == i].mean(0) for i in known], axis=0)
        spread = np.sqrt(np.mean([((means[owners == i] - middle) ** 2).mean(0) for i in known], axis=0)) + 1e-6
        self._usual = {name: (float(m), float(d)) for name, m, d in zip(names, middle, spread, strict=True)}
        z = self._against_usual(names, means)
        self.temperature = fit_temperature(z / Z_SCALE, owners) * Z_SCALE
        report: dict[str, Any] = {"accuracy": float((z.argmax(1) == owners).mean()), "held_out_rows": len(found)}
        generic = [prompt for prompt in self.context.generic_prompts if prompt.strip()][:80]
        if len(generic) >= FEWEST_GENERIC:
            self.threshold = float(np.quantile(z.max(1), FALSE_ABSTENTION))
            outside = self._against_usual(names, np.stack([self._read(p, names)[1].mean(0) for p in generic]))
            report["false_abstention"] = float((z.max(1) < self.threshold).mean())
            report["everyday_prompts_abstained"] = float((outside.max(1) < self.threshold).mean())
        return FitOutcome(report)

    def state(self) -> dict[str, Any]:
        return {
            "arrow_temperature": self.chosen.temperature,
            "temperature": self.temperature,
            "threshold": self.threshold,
            "usual": {name: list(values) for name, values in self._usual.items()},
        }

    def adapt(self, state: State) -> None:
        """For other lobes Arrow's own temperature stays, and the calibration has to be made again."""
        values = state.values
        if not state.exact:
            self.chosen, self._all = ArrowSettings(float(values.get("arrow_temperature", self.chosen.temperature))), None
            return
        usual = {str(name): (float(mean), float(spread)) for name, (mean, spread) in values["usual"].items()}
        if usual and set(usual) != set(self.context.lobes):
            # a lobe more or less changes every lobe's share
            raise RoutingError("Arrow was calibrated for other lobes.")
        self.chosen, self._all = ArrowSettings(float(values["arrow_temperature"])), None
        self.temperature = float(values["temperature"])
        self.threshold = None if values["threshold"] is None else float(values["threshold"])
        self._usual = usual
