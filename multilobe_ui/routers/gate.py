"""Gate router: a small network, trained on which lobe a row came from, reads the prompt's embedding. No language model runs.

    p(l | x) = softmax((W e(x) + b) / T)_l     over the lobes with rows, and "none" where there are generic prompts

W and b minimise the cross-entropy, every class of equal weight, plus an L2 penalty; the step with the lowest loss on held-out rows
is kept, and T is calibrated on the same rows (Guo et al. 2017). The decision's weights are the gate's, as in MixLoRA (Li et al.
2024, arXiv:2404.15159): those of the best lobe, of the k best made to sum to 1, or of all (`base.Mixing`).

One linear layer, because that was measured best: on unseen prompts of eight domains 64 hidden units were right a point less often.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..errors import RoutingError
from .base import Router, RoutingContext, RoutingDecision, RoutingRows, base_decision, fit_temperature, softmax

WEIGHT_DECAY = 3e-4
LEARNING_RATE = 0.1
STEPS = 400
PATIENCE = 20
"""Steps without a lower held-out loss after which training ends."""
ROWS = 6000
"""Rows to train on, of all lobes together, so that 200 lobes take seconds too."""
LOGIT_SCALE = 10.0
"""`fit_temperature` looks from 0.02 to 1; of logits divided by ten that is T from 0.2 to 10."""

Array = np.ndarray[Any, Any]


class GateRouter(Router):
    """See the module's text."""

    name: ClassVar[str] = "gate"

    def __init__(self, context: RoutingContext) -> None:
        super().__init__(context)
        self.names = [name for name in context.lobes if name in context.rows and len(context.rows[name].train)]
        self.temperature = 1.0
        self.none = False
        self._weight: Array | None = None  # (classes, d), "none" last
        self._bias: Array = np.zeros(0)

    def logits(self, vectors: Array) -> Array:
        """(n, classes) for embeddings (n, d): the lobes with rows, then "none" if the gate learned it.

        Raises:
            RoutingError: the gate has not been fitted.
        """
        if self._weight is None:
            raise RoutingError("The gate has not been trained yet. Calibrate routing first.")
        return np.asarray(vectors @ self._weight.T + self._bias)

    def decide(self, prompt: str) -> RoutingDecision:
        if not self.names:
            return base_decision(self.name, "gate", "No lobe came with training rows to learn from.", certain=False)
        logits = self.logits(self.context.embed([prompt]))[0]
        classes = softmax(logits / self.temperature)
        lobes, none = classes[: len(self.names)], float(classes[-1]) if self.none else 0.0
        among = softmax(logits[: len(self.names)] / self.temperature)
        by_lobe = dict(zip(self.names, map(float, among), strict=True))
        unknown = [name for name in self.context.lobes if name not in by_lobe]
        values: dict[str, Any] = {
            "scores": dict(zip(self.names, map(float, logits), strict=False)),
            "probabilities": {name: by_lobe.get(name, 0.0) for name in self.context.lobes},
            "evidence": {"none": none},
        }
        best = self.names[int(lobes.argmax())]
        if none >= lobes.max():
            reason = f"The prompt looks more like everyday ones than like {best}'s{_left_out(unknown)}."
            # a lobe without rows could still fit: then a later stage must say so
            return base_decision(self.name, "gate", reason, **{**values, "confidence": none, "certain": not unknown})
        return RoutingDecision(
            router=self.name,
            stage="gate",
            weights={best: 1.0},
            chosen=best,
            confidence=float(lobes.max()),
            reason=f"The gate gives it to {best} ({lobes.max():.0%}{_left_out(unknown)}).",
            **values,
        )

    def fit(self) -> None:
        """Train the gate on the lobes' rows and the generic prompts; the same rows give the same gate."""
        if not self.names:
            return
        parts = [_split(self.context.rows[name]) for name in self.names]
        generic = self.context.generic()
        self.none = len(generic) > 0
        if self.none:
            parts.append(_every_fifth(generic))
        most = max(20, ROWS // len(parts))
        train, owner = _stack([_thinned(kept, most) for kept, _ in parts])
        held, held_owner = _stack([_thinned(held, most // 4) for _, held in parts])
        weight, bias = _train(train, owner, held, held_owner, len(parts))
        # rounded here and not in `state`, so that a restored gate decides as this one
        self._weight, self._bias = np.round(weight, 4), np.round(bias, 4)
        self.temperature = 1.0
        if len(set(held_owner.tolist())) > 1:
            scaled = np.asarray(self.logits(held) / LOGIT_SCALE, np.float32)
            self.temperature = fit_temperature(scaled, held_owner) * LOGIT_SCALE

    def refit(self, earlier: Mapping[str, Any]) -> None:
        self.fit()  # no language model, so nothing to spare

    def state(self) -> dict[str, Any]:
        return {
            "lobes": self.names,
            "none": self.none,
            "temperature": self.temperature,
            "weight": None if self._weight is None else self._weight.tolist(),
            "bias": self._bias.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if list(state.get("lobes", ())) != self.names:
            raise RoutingError("The gate was trained for other lobes.")
        none = bool(state["none"])
        weight = None if state["weight"] is None else np.array(state["weight"], np.float64)
        bias = np.array(state["bias"], np.float64)
        if weight is not None and (weight.ndim != 2 or not len(weight) == len(bias) == len(self.names) + none):
            raise RoutingError("The gate's weights do not fit its lobes.")
        self.none, self._weight, self._bias = none, weight, bias
        self.temperature = float(state["temperature"])


def _left_out(names: list[str]) -> str:
    """The end of a reason: which lobes the gate cannot know."""
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"; {shown} came without rows, so the gate cannot choose {'it' if len(names) == 1 else 'them'}"


def _split(rows: RoutingRows) -> tuple[Array, Array]:
    """(to train on, to hold out): the lobe's own held-out rows where there are at least five."""
    return (rows.train, rows.validation) if len(rows.validation) >= 5 else _every_fifth(rows.train)


def _every_fifth(vectors: Array) -> tuple[Array, Array]:
    held = np.arange(len(vectors)) % 5 == 4
    return vectors[~held], vectors[held]


def _thinned(vectors: Array, most: int) -> Array:
    """At most `most` of the rows, from first to last."""
    return vectors if len(vectors) <= most else vectors[np.linspace(0, len(vectors) - 1, most).astype(int)]


def _stack(parts: list[Array]) -> tuple[Array, Array]:
    """(rows (n, d), class of every row (n,))."""
    return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def _train(train: Array, owner: Array, held: Array, held_owner: Array, classes: int) -> tuple[Array, Array]:
    """(W (classes, d), b (classes,)) by full-batch Adam from zero: nothing is drawn at random, so no seed can change it."""
    if classes == 1:
        return np.zeros((1, train.shape[1])), np.zeros(1)
    import torch  # seconds to import: not before there is something to learn

    x, y, held_x, held_y = (torch.from_numpy(np.ascontiguousarray(part)) for part in (train, owner, held, held_owner))
    weight = torch.zeros(classes, train.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    # a lobe of many rows must not swallow the prompts of a lobe of few
    balance = 1 / torch.bincount(y, minlength=classes).clamp(min=1).float()
    best, lowest, since = (weight, bias), float("inf"), 0
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y, weight=balance)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            judged = float(torch.nn.functional.cross_entropy(held_x @ weight.T + bias, held_y) if len(held) else loss)
        since += 1
        if judged < lowest - 1e-5:
            best, lowest, since = (weight.detach().clone(), bias.detach().clone()), judged, 0
        if since >= PATIENCE:
            break
    return best[0].detach().double().numpy(), best[1].detach().double().numpy()
