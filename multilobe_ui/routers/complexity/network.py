"""What the complexity router is, without torch: how it is trained, and the trained network, in numpy.

    x = standardised features of the analyser ⊕ 0.2 · sentence embedding  (n, f + d)
    h = relu(W1 x + b1)                                                    (n, 256)
    s = sigmoid(w3 h + b3)                                                 (n,) the complexity score
    p(tier | x) = softmax((W2 h + b2 + k m(s)) / T)                        (n, 3)
    m(s) = (low - s, min(s - low, high - s), s - high)                     how far the score lies within each tier

Tiers are cuts through the score, so their logits read it (k is learned); W2 h is what else speaks
for a tier, above all what the answers teach when router and experts are trained together.

The features are the analyser's, each scaled to 0..1 (`complexity.scaled`), then to mean 0 and
deviation 1 over the training prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...errors import RoutingError
from ...routing.calibration import softmax
from ...settings import check_all, setting, suggested_learning_rate
from .features import FEATURES, HIGH, LOW, TIERS, check_thresholds

Array = np.ndarray[Any, Any]
WEIGHTS = ("body.weight", "body.bias", "tiers.weight", "tiers.bias", "score.weight", "score.bias", "sharpness")
"""W1, b1, W2, b2, w3, b3, k as `router_mlp.RouterMLP` names them."""
EMBEDDING_SCALE = 0.2
"""Of the sentence embedding, a unit vector, beside the features. The tiers follow from the features
alone; at full length the embedding's many numbers are learned by heart (measured: a point of
accuracy lost)."""


@dataclass(frozen=True)
class ComplexitySettings:
    """How the complexity router and its experts are trained."""

    low: float = setting(LOW, "Low", "Prompts below are simple.", low=0, high=1)
    high: float = setting(HIGH, "High", "Prompts from here on are complex.", low=0, high=1)
    lora_r: int = setting(16, "Rank (r)", "Size of every expert.", low=1, high=1024)
    lora_alpha: int = setting(32, "Alpha", "Strength: scaled by alpha / r.", above=0)
    target_modules: str | tuple[str, ...] | None = setting(
        None, "Target modules", "Linear layers that get a LoRA. Empty: all."
    )  # all but the output head (for GPT-2: c_attn, c_proj, c_fc)
    hidden: int = setting(256, "Hidden", "Hidden units of the router.", low=1, high=65_536)
    router_learning_rate: float = setting(
        1e-3, "Router learning rate", "Peak rate of the first phase.", above=0, below=1
    )
    expert_learning_rate: float | None = setting(
        5e-5, "Expert learning rate", "Peak rate of the experts. Empty: automatic.", above=0, below=1
    )
    """5e-5 suits bases of billions of parameters; None chooses one for the size of the base (see
    `expert_rate`). Measured on the built-in base, 540 rows, 2 passes: 5e-5 brings a quarter of what
    None brings."""
    balance_weight: float = setting(
        0.1, "Balance weight", "How much an even use of the experts counts.", low=0, high=10
    )
    router_epochs: int = setting(60, "Router epochs", "Passes of phase 1, the router alone.", low=1, high=10_000)
    """A pass takes a tenth of a second; the phase ends earlier when the held-out loss no longer falls."""
    expert_epochs: int = setting(
        1, "Expert epochs", "Passes of phase 2, the experts alone; 0 leaves it out.", low=0, high=1000
    )
    joint_epochs: int = setting(
        1, "Joint epochs", "Passes of phase 3, both together; 0 leaves it out.", low=0, high=1000
    )
    batch_size: int = setting(8, "Batch size", "Rows in one step; lower it if memory runs out.", low=1, high=1024)
    max_length: int = setting(512, "Longest row (tokens)", "Longer rows are cut.", low=8, high=1_000_000)
    max_rows: int = setting(4000, "Most rows", "Most rows to learn from, evenly from all.", low=10)
    seed: int = setting(0, "Seed", "Same seed, same data: same fit.", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        check_all(self)
        check_thresholds(self.low, self.high)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def expert_rate(hidden_size: int) -> float:
    """Peak learning rate of experts on a base of this width: a quarter of what suits a lobe
    (`suggested_learning_rate`), because a tier's rows are of all topics. (Measured on the built-in
    base, 540 rows: at the full rate the second pass learns by heart.)"""
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
        arrays: its weights, by the names of WEIGHTS. temperature: T. low, high: the thresholds of
            the tiers that it learned.
        tier_means: (tiers, f) mean scaled features of each tier's training prompts; zeros for a
            tier that had none.
    """

    arrays: Mapping[str, Array]
    scale: Scale
    temperature: float
    low: float
    high: float
    tier_means: Array

    def __call__(self, features: Array, embeddings: Array) -> tuple[Array, Array]:
        """(probabilities of the tiers (n, 3), score (n,) from 0 to 1) from scaled features (n, f)
        and embeddings (n, d)."""
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
