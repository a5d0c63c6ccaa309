"""What the complexity router is, without torch: how it is trained, and the trained network, in numpy.

    x = standardised features of the analyser ⊕ 0.2 · sentence embedding  (n, f + d)
    h = relu(W1 x + b1)                                                    (n, 256)
    s = sigmoid(w3 h + b3)                                                 (n,) the complexity score
    p(tier | x) = softmax((W2 h + b2 + k m(s)) / T)                        (n, 3)
    m(s) = (low - s, min(s - low, high - s), s - high)                     how far the score lies within each tier

Tiers are cuts through the score, so their logits read it (k is learned); W2 h is what else speaks for a tier, above all what the
answers teach when router and experts are trained together.

The features are the analyser's, each scaled to 0..1 (`complexity.scaled`), then to mean 0 and deviation 1 over the training
prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...errors import RoutingError
from ...routing.calibration import softmax
from ...settings import check, suggested_learning_rate
from .features import FEATURES, HIGH, LOW, TIERS, check_thresholds

Array = np.ndarray[Any, Any]
WEIGHTS = ("body.weight", "body.bias", "tiers.weight", "tiers.bias", "score.weight", "score.bias", "sharpness")
"""W1, b1, W2, b2, w3, b3, k as `router_mlp.RouterMLP` names them."""
EMBEDDING_SCALE = 0.2
"""Of the sentence embedding, a unit vector, beside the features. The tiers follow from the features alone; at full length the
embedding's many numbers are learned by heart (measured: a point of accuracy lost)."""


@dataclass(frozen=True)
class ComplexitySettings:
    """How the complexity router and its experts are trained."""

    low: float = LOW
    """Prompts below this score are simple."""
    high: float = HIGH
    """Prompts from this score on are complex."""
    lora_r: int = 16
    """Rank of every expert's LoRA matrices."""
    lora_alpha: int = 32
    """An expert's delta is scaled by lora_alpha / lora_r."""
    target_modules: str | tuple[str, ...] | None = None
    """Linear layers that get a LoRA; None means every one but the output head (for GPT-2: c_attn, c_proj, c_fc)."""
    hidden: int = 256
    """Hidden units of the router."""
    router_learning_rate: float = 1e-3
    expert_learning_rate: float | None = 5e-5
    """Peak rate of the experts. 5e-5 suits bases of billions of parameters; None chooses one for the size of the base (see
    `expert_rate`). Measured on the built-in base, 540 rows, 2 passes: 5e-5 brings a quarter of what None brings."""
    balance_weight: float = 0.1
    """Weight of the load-balance loss beside the router's other losses."""
    router_epochs: int = 60
    """Passes of phase 1 (a pass takes a tenth of a second); it ends earlier when the held-out loss no longer falls."""
    expert_epochs: int = 1
    """Passes of phase 2."""
    joint_epochs: int = 1
    """Passes of phase 3."""
    batch_size: int = 8
    """Rows in one optimizer step of phases 2 and 3."""
    max_length: int = 512
    """Longest row in tokens; longer rows are cut."""
    max_rows: int = 4000
    """Most rows to learn from, evenly from all."""
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        check_thresholds(self.low, self.high)
        for name, most in (("lora_r", 1024), ("hidden", 65_536), ("router_epochs", 10_000), ("batch_size", 1024)):
            value = getattr(self, name)
            check(isinstance(value, int) and 1 <= value <= most, name, value, f"a whole number from 1 to {most}")
        for name in ("expert_epochs", "joint_epochs"):
            value = getattr(self, name)
            check(
                isinstance(value, int) and 0 <= value <= 1000,
                name,
                value,
                "a whole number from 0 (leave the phase out) to 1000",
            )
        check(self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "above 0")
        check(
            0 < self.router_learning_rate < 1, "router_learning_rate", self.router_learning_rate, "above 0 and below 1"
        )
        rate = self.expert_learning_rate
        check(rate is None or 0 < rate < 1, "expert_learning_rate", rate, "above 0 and below 1, or empty for automatic")
        check(0 <= self.balance_weight <= 10, "balance_weight", self.balance_weight, "from 0 to 10")
        check(8 <= self.max_length <= 1_000_000, "max_length", self.max_length, "at least 8 tokens")
        check(self.max_rows >= 10, "max_rows", self.max_rows, "at least 10")
        check(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def expert_rate(hidden_size: int) -> float:
    """Peak learning rate of experts on a base of this width: a quarter of what suits a lobe (`suggested_learning_rate`), because a
    tier's rows are of all topics. (Measured on the built-in base, 540 rows: at the full rate the second pass learns by heart.)"""
    return suggested_learning_rate(hidden_size) / 4


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation (f,) of every scaled feature over the training prompts."""

    mean: Array
    deviation: Array

    @classmethod
    def of(cls, features: Array) -> Scale:
        """Of features (n, f) from 0 to 1."""
        deviation = features.std(0)
        # a feature that never differs says nothing: dividing by 1 leaves it near zero
        return cls(features.mean(0).astype(np.float32), np.where(deviation > 1e-6, deviation, 1).astype(np.float32))

    def __call__(self, features: Array, embeddings: Array) -> Array:
        """The network's input x (n, f + d), float32."""
        standard = (features - self.mean) / self.deviation
        return np.concatenate([standard, EMBEDDING_SCALE * embeddings], axis=1).astype(np.float32)


@dataclass(frozen=True)
class TierNetwork:
    """A trained router.

    Attributes:
        arrays: its weights, by the names of WEIGHTS. temperature: T. low, high: the thresholds of the tiers that it learned.
        tier_means: (tiers, f) mean scaled features of each tier's training prompts; zeros for a tier that had none.
    """

    arrays: Mapping[str, Array]
    scale: Scale
    temperature: float
    low: float
    high: float
    tier_means: Array

    def __call__(self, features: Array, embeddings: Array) -> tuple[Array, Array]:
        """(probabilities of the tiers (n, 3), score (n,) from 0 to 1) from scaled features (n, f) and embeddings (n, d)."""
        w = self.arrays
        hidden = np.maximum(self.scale(features, embeddings) @ w["body.weight"].T + w["body.bias"], 0)
        score = 1 / (1 + np.exp(-(hidden @ w["score.weight"][0] + w["score.bias"][0])))
        margins = [self.low - score, np.minimum(score - self.low, self.high - score), score - self.high]
        logits = hidden @ w["tiers.weight"].T + w["tiers.bias"] + w["sharpness"] * np.stack(margins, axis=1)
        return softmax(logits / self.temperature), score

    def state(self) -> dict[str, Any]:
        """Numbers and arrays, by name."""
        plain = {"low": self.low, "high": self.high, "temperature": self.temperature}
        scale = {"mean": self.scale.mean, "deviation": self.scale.deviation}
        return {**plain, **scale, "tier_means": self.tier_means, **self.arrays}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TierNetwork:
        """Raises RoutingError unless the state is whole and made for these features and tiers."""
        features, tiers = len(FEATURES), len(TIERS)
        try:
            shapes: dict[str, tuple[int, ...]] = {
                "mean": (features,),
                "deviation": (features,),
                "tier_means": (tiers, features),
            }
            arrays = {name: np.asarray(state[name], np.float32) for name in (*WEIGHTS, *shapes)}
            hidden, inputs = arrays["body.weight"].shape
            shapes |= {"body.bias": (hidden,), "tiers.weight": (tiers, hidden), "tiers.bias": (tiers,)}
            shapes |= {"score.weight": (1, hidden), "score.bias": (1,), "sharpness": (1,)}
            if inputs <= features or any(arrays[name].shape != shape for name, shape in shapes.items()):
                raise ValueError("its arrays have other shapes")
            scale = Scale(arrays["mean"], arrays["deviation"])
            temperature, low, high = (float(state[name]) for name in ("temperature", "low", "high"))
            weights = {name: arrays[name] for name in WEIGHTS}
            return cls(weights, scale, temperature, low, high, arrays["tier_means"])
        except (KeyError, TypeError, ValueError) as error:
            raise RoutingError(
                f"The complexity router was trained by another version ({error}). Fit it again under Routers."
            ) from error
