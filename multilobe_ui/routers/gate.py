"""Gate router: a small network, trained on which lobe a row came from, reads the prompt's embedding. No language model runs.

    p(l | x) = softmax((W e(x) + b) / T)_l     over the lobes with rows, and "none" where there are generic prompts

e(x) is the sentence embedding, or the mean hidden state of the base's last layer (`GateSettings.embedding`).

W and b minimise the cross-entropy, every class of equal weight, plus an L2 penalty; the step with the lowest loss on held-out rows
is kept, and T is calibrated on the same rows (Guo et al. 2017). The decision's weights are the gate's, as in MixLoRA (Li et al.
2024, arXiv:2404.15159): those of the best lobe, of the k best made to sum to 1, or of all (`base.Mixing`).

A mixture is made of what the gate makes of the whole prompt and of each of its parts (sentences, and what "and" joins) of which it
is sure: the embedding of "summarise this and say if it is positive" is nearly that of its louder half.

One linear layer, because that was measured best: on unseen prompts of eight domains 64 hidden units were right a point less often.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..config import check, settings_of
from ..errors import RoutingError
from ..progress import Progress
from .base import (
    FitOutcome,
    Fitting,
    Router,
    RoutingContext,
    RoutingDecision,
    RoutingRows,
    base_decision,
    calibration_error,
    fit_temperature,
    softmax,
)

EMBEDDINGS = ("sentence", "base")
PATIENCE = 20
"""Steps without a lower held-out loss after which training ends."""
EVERY = 5
"""Steps between two records of a fit."""
ROWS = 6000
"""Rows to train on, of all lobes together, so that 200 lobes take seconds too."""
PARTS = re.compile(r"[.!?;:,\n]+|\b(?:and|then)\b")
FEWEST_WORDS, MOST_PARTS, SURE_PART = 2, 8, 0.7
"""Words that a part has at least, parts that are looked at, and the probability from which a part counts."""
LOGIT_SCALE = 10.0
"""`fit_temperature` looks from 0.02 to 1; of logits divided by ten that is T from 0.2 to 10."""

Array = np.ndarray[Any, Any]
Parameters = tuple[Array, Array]
"""W (classes, d) and b (classes,)."""


@dataclass(frozen=True)
class GateSettings:
    """How the gate is trained."""

    embedding: str = "sentence"
    """What the gate reads: "sentence", the sentence encoder's vector, or "base", the base model's mean hidden state."""
    steps: int = 400
    learning_rate: float = 0.1
    weight_decay: float = 3e-4
    false_abstention: float = 0.01
    """Share of held-out rows that may go to the base model although a lobe fits."""

    def __post_init__(self) -> None:
        check(self.embedding in EMBEDDINGS, "embedding", self.embedding, f"one of {', '.join(EMBEDDINGS)}")
        check(1 <= self.steps <= 100_000, "steps", self.steps, "from 1 to 100,000")
        check(0 < self.learning_rate <= 10, "learning_rate", self.learning_rate, "above 0 and at most 10")
        check(0 <= self.weight_decay <= 1, "weight_decay", self.weight_decay, "from 0 to 1")
        check(0 <= self.false_abstention < 1, "false_abstention", self.false_abstention, "from 0 to below 1")


class GateRouter(Router):
    """See the module's text."""

    name: ClassVar[str] = "gate"
    title: ClassVar[str] = "Gate"
    sentence: ClassVar[str] = "A small network that learned from the lobes' rows which lobe a prompt belongs to."
    settings: ClassVar[type[Any] | None] = GateSettings
    asks_for_fit: ClassVar[bool] = True

    def __init__(self, context: RoutingContext) -> None:
        super().__init__(context)
        self.names = [name for name in context.lobes if name in context.rows and len(context.rows[name].train)]
        self.chosen = GateSettings()
        self.temperature = 1.0
        self.limit = 1.0
        self.none = False
        self._weight: Array | None = None  # (classes, d), "none" last
        self._bias: Array = np.zeros(0)

    @property
    def is_fitted(self) -> bool:
        return self._weight is not None

    def logits(self, vectors: Array) -> Array:
        """(n, classes) for embeddings (n, d): the lobes of the fit, then "none" if the gate learned it.

        Raises:
            RoutingError: the gate has not been fitted.
        """
        if self._weight is None:
            raise RoutingError("The gate has not been fitted yet. Fit it under Routers.")
        return np.asarray(vectors @ self._weight.T + self._bias)

    def decide(self, prompt: str) -> RoutingDecision:
        if self._weight is None:
            reason = "The gate has not been fitted yet; fit it under Routers."
            return base_decision(self.name, "gate", reason, certain=False)
        if not self.names:
            return base_decision(self.name, "gate", "No lobe that the gate knows is left; fit it again.", certain=False)
        logits = self.logits(self._vectors([prompt]))[0]
        classes = softmax(logits / self.temperature)
        lobes, none = classes[: len(self.names)], float(classes[-1]) if self.none else 0.0
        among = softmax(logits[: len(self.names)] / self.temperature)
        by_lobe = dict(zip(self.names, map(float, among), strict=True))
        unknown = [name for name in self.context.lobes if name not in by_lobe]
        values: dict[str, Any] = {
            "scores": dict(zip(self.names, map(float, logits), strict=False)),
            "probabilities": {name: by_lobe.get(name, 0.0) for name in self.context.lobes},
            "evidence": {"none": none, "limit": self.limit, "gate": {**by_lobe}},
        }
        best = self.names[int(lobes.argmax())]
        if none >= self.limit and none >= lobes.max():
            reason = f"The prompt looks more like everyday ones than like {best}'s{_left_out(unknown)}."
            # a lobe that the gate does not know could still fit: then a later stage must say so
            return base_decision(self.name, "gate", reason, **{**values, "confidence": none, "certain": not unknown})
        return RoutingDecision(
            router=self.name,
            stage="gate",
            weights={best: 1.0},
            chosen=best,
            confidence=float(among.max()),
            reason=f"The gate gives it to {best} ({among.max():.0%}{_left_out(unknown)}).",
            **values,
        )

    def shares(self, prompt: str, decision: RoutingDecision) -> Mapping[str, float]:
        parts = [part for part in PARTS.split(prompt) if len(part.split()) >= FEWEST_WORDS][:MOST_PARTS]
        if len(parts) < 2:
            return decision.probabilities
        classes = softmax(np.asarray(self.logits(self._vectors(parts)), np.float32) / np.float32(self.temperature))
        sure = [row for row in classes[:, : len(self.names)] if row.max() >= SURE_PART]
        whole = [decision.probabilities[name] for name in self.names]
        mean = np.mean([whole, *sure], axis=0)
        return dict(zip(self.names, map(float, mean / mean.sum()), strict=True))

    def fitting(self, settings: Mapping[str, Any], stop: threading.Event) -> Fitting:
        """Train on the lobes' rows and the generic prompts; the same rows and settings give the same gate."""
        self.chosen = settings_of(GateSettings, settings)
        self.names = [n for n in self.context.lobes if n in self.context.rows and len(self.context.rows[n].train)]
        start = time.perf_counter()
        if not self.names:
            return FitOutcome({"rows": 0, "seconds": 0.0})
        parts = [self._split(self.context.rows[name]) for name in self.names]
        generic = self._generic()
        self.none = len(generic) > 0
        if self.none:
            parts.append(_every_fifth(generic))
        most = max(20, ROWS // len(parts))
        train, owner = _stack([_thinned(kept, most) for kept, _ in parts])
        held, held_owner = _stack([_thinned(held, most // 4) for _, held in parts])
        weight, bias = yield from _train(train, owner, held, held_owner, len(parts), self.chosen, stop)
        self._weight, self._bias = weight.astype(np.float32), bias.astype(np.float32)
        self.temperature, self.limit = 1.0, 1.0 if not self.none else 0.5
        if len(set(held_owner.tolist())) > 1:
            scaled = np.asarray(self.logits(held) / LOGIT_SCALE, np.float32)
            self.temperature = fit_temperature(scaled, held_owner) * LOGIT_SCALE
        report = self._judge(held, held_owner)
        seconds = round(time.perf_counter() - start, 3)
        return FitOutcome({**report, "rows": len(train), "seconds": seconds, "embedding": self.chosen.embedding})

    def _judge(self, held: Array, owner: Array) -> dict[str, float]:
        """Accuracy and ECE on held-out rows of lobes; sets the limit of "none" that turns few enough of them away."""
        own = owner < len(self.names)
        if not own.any():
            return {}
        p = softmax(np.asarray(self.logits(held[own]), np.float32) / np.float32(self.temperature))
        lobes = p[:, : len(self.names)] / np.maximum(p[:, : len(self.names)].sum(1, keepdims=True), 1e-9)
        if self.none:
            self.limit = limit_of(p[:, -1], self.chosen.false_abstention)
        right = lobes.argmax(1) == owner[own]
        return {"accuracy": float(right.mean()), "ece": calibration_error(lobes.max(1), right)}

    def _vectors(self, texts: Sequence[str]) -> Array:
        """(n, d) of what the settings say that the gate reads."""
        if self.chosen.embedding == "sentence":
            return self.context.embed(texts)
        if self.context.hidden is None:
            raise RoutingError("The gate reads the base model's hidden states, and no base model is loaded.")
        return self.context.hidden(texts)

    def _generic(self) -> Array:
        if self.chosen.embedding == "sentence":
            return self.context.generic()
        return self._vectors(self.context.generic_prompts) if self.context.generic_prompts else np.zeros((0, 0))

    def _split(self, rows: RoutingRows) -> tuple[Array, Array]:
        """(to train on, to hold out): the lobe's own held-out rows where there are at least five."""
        if self.chosen.embedding == "sentence":
            train, held = rows.train, rows.validation
        else:
            train = self._vectors(rows.train_prompts)
            held = self._vectors(rows.validation_prompts) if rows.validation_prompts else train[:0]
        return (train, held) if len(held) >= 5 else _every_fifth(train)

    def state(self) -> dict[str, Any]:
        if self._weight is None:
            return {"lobes": []}
        return {
            "lobes": list(self.names),
            "embedding": self.chosen.embedding,
            "none": self.none,
            "temperature": self.temperature,
            "limit": self.limit,
            "weight": self._weight,
            "bias": self._bias,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if state.get("weight") is None:
            self._weight = None
            return
        none, lobes = bool(state["none"]), list(state["lobes"])
        weight, bias = np.asarray(state["weight"], np.float32), np.asarray(state["bias"], np.float32)
        if weight.ndim != 2 or not len(weight) == len(bias) == len(lobes) + none:
            raise RoutingError("The gate's weights do not fit its lobes.")
        kept = [i for i, name in enumerate(lobes) if name in self.context.lobes]
        rows = [*kept, *([len(lobes)] if none else [])]
        self.names, self.none = [lobes[i] for i in kept], none
        self._weight, self._bias = weight[rows], bias[rows]
        self.chosen = GateSettings(embedding=state.get("embedding", "sentence"))
        self.temperature, self.limit = float(state["temperature"]), float(state["limit"])


def _left_out(names: list[str]) -> str:
    """The end of a reason: which lobes the gate cannot know."""
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"; {shown} had no rows when the gate was fitted, so it cannot choose {'it' if len(names) == 1 else 'them'}"


def _every_fifth(vectors: Array) -> tuple[Array, Array]:
    held = np.arange(len(vectors)) % 5 == 4
    return vectors[~held], vectors[held]


def _thinned(vectors: Array, most: int) -> Array:
    """At most `most` of the rows, from first to last."""
    return vectors if len(vectors) <= most else vectors[np.linspace(0, len(vectors) - 1, most).astype(int)]


def _stack(parts: list[Array]) -> tuple[Array, Array]:
    """(rows (n, d), class of every row (n,))."""
    return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def limit_of(strangeness: Array, false_abstention: float) -> float:
    """The value that at most that share of held-out rows (n,) reach."""
    return float(np.quantile(strangeness, 1 - false_abstention, method="higher")) + 1e-6


def _train(
    train: Array, owner: Array, held: Array, held_owner: Array, classes: int, settings: GateSettings, stop: threading.Event
) -> Generator[Progress, None, Parameters]:
    """Full-batch Adam from zero: nothing is drawn at random, so no seed can change it."""
    if classes == 1:
        return np.zeros((1, train.shape[1])), np.zeros(1)
    import torch  # seconds to import: not before there is something to learn

    x, held_x = (torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32)) for part in (train, held))
    y, held_y = torch.from_numpy(owner), torch.from_numpy(held_owner)
    weight = torch.zeros(classes, train.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    # a lobe of many rows must not swallow the prompts of a lobe of few
    balance = 1 / torch.bincount(y, minlength=classes).clamp(min=1).float()
    best, lowest, since = (weight.detach().clone(), bias.detach().clone()), float("inf"), 0
    for step in range(settings.steps):
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y, weight=balance)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            logits = held_x @ weight.T + bias
            judged = float(torch.nn.functional.cross_entropy(logits, held_y) if len(held) else loss)
        since += 1
        if judged < lowest - 1e-5:
            best, lowest, since = (weight.detach().clone(), bias.detach().clone()), judged, 0
        if step % EVERY == 0:
            values = {"loss": float(loss.detach()), "held_out_loss": judged}
            if len(held):
                values["accuracy"] = float((logits.argmax(1) == held_y).float().mean())
            yield Progress(step, settings.steps, "Training the gate", values)
        if since >= PATIENCE or stop.is_set():
            break
    return best[0].detach().numpy(), best[1].detach().numpy()
