"""Embedding router: which lobe's training data is this prompt near to? No language model runs.

    score(l, x) = half the cosine to l's best prototype + half the mean cosine to l's three nearest rows

Prototypes know the domain, rows know its questions. The best lobe is certain when it is far enough
ahead of the second ("margin"), and none fits when even the best is far away ("floor"); both are
calibrated on rows that were held out from training. An explicit threshold replaces the margin: then
a lobe is certain when its score reaches that number, as in the peer package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import RoutingError
from ..lobes.rows import Vector
from ..routing.calibration import fit_temperature, softmax
from ..routing.decision import Verdict
from ..routing.router import Router, RoutingContext, State

NEAREST = 3
PRECISION = 0.985
"""How often stage 1 must be right on held-out rows for its margin to count as certain."""
FALSE_ABSTENTION = 0.02
"""Share of held-out rows that may be sent to the base model although a lobe fits, where there are
no generic prompts."""
CALIBRATION_ROWS = 1024
"""Rows that calibrate at most, but for one of every lobe: each is compared with all rows of all lobes."""
ABSTENTION_COST = 3.0
"""A prompt that a lobe could have answered but went to the base counts as much as three that a lobe
answered for nothing."""


class EmbeddingRouter(Router):
    """See the module's text.

    Args:
        threshold: None calibrates; a number is the score that a lobe must reach to be certain.
    """

    name: ClassVar[str] = "embedding"
    title: ClassVar[str] = "Embedding"
    sentence: ClassVar[str] = "The lobe whose training prompts lie nearest in meaning."

    def __init__(self, context: RoutingContext, threshold: float | None = None) -> None:
        super().__init__(context)
        self.threshold = threshold
        self.names = [name for name in context.lobes if name in context.rows]
        self.margin = 0.1
        self.floor = 0.3
        self.temperature = 0.05
        rows = (context.rows[name] for name in self.names)
        # a lobe of the peer package has one prototype and no rows: it stands in for them
        self._index = _Index([(r.prototypes, r.train if len(r.train) else r.prototypes) for r in rows])

    def scores(self, vectors: Vector, *, leave_out_self: bool = False) -> Vector:
        """(n, lobes with rows): score of every such lobe for every text. `leave_out_self` ignores
        rows equal to the text."""
        return self._index.scores(vectors, leave_out_self)

    def judge(self, prompt: str) -> Verdict:
        if not self.names:
            return Verdict.base(
                "embedding", "No lobe came with training rows to compare with.", certain=False
            )
        vector = self.context.embed([prompt])[0]
        row = self.scores(vector[None])[0]
        order = np.argsort(-row)
        best, top = self.names[order[0]], float(row[order[0]])
        runner_up = float(row[order[1]]) if len(order) > 1 else -np.inf
        none, threshold = 0.0, self.threshold
        if threshold is None:
            threshold = max(self.floor, runner_up + self.margin)
        certain = top >= threshold
        second = f", {self.names[order[1]]} {runner_up:.2f}" if len(order) > 1 else ""
        reason = f"The prompt is nearest to what {best} was trained on ({top:.2f}{second})."
        if top < self.floor and self.threshold is None:
            none, threshold = float(np.clip(0.5 + 2 * (self.floor - top), 0.5, 1.0)), self.floor
            near = f"{best} comes closest with {top:.2f}, below {self.floor:.2f}"
            reason = f"Nothing that a lobe has learned is near: {near}."
            certain = len(self.names) == len(
                self.context.lobes
            )  # lobes without rows could still fit: a later stage must say so
        likely = (1 - none) * softmax(row / self.temperature)
        return Verdict(
            scores=dict(zip(self.names, map(float, row), strict=True)),
            probabilities=dict(zip(self.names, map(float, likely), strict=True)),
            none=none,
            stage="embedding",
            reason=reason,
            certain=certain,
            threshold=threshold,
            evidence={"nearest": self.nearest(vector), "floor": self.floor},
        )

    def nearest(self, vector: Vector, count: int = 5) -> list[dict[str, Any]]:
        """The training rows nearest to a prompt: {prompt, lobe, score}, best first."""
        found = []
        for place, similarity in self._index.nearest(vector, count):
            lobe, row = self._index.owner(place)
            prompts = self.context.rows[self.names[lobe]].train_prompts
            if row < len(prompts):
                found.append({"prompt": prompts[row], "lobe": self.names[lobe], "score": similarity})
        return found

    # ---- calibration ------------------------------------------------------------------------------------------------------

    def adapt(self, state: State) -> None:
        if not state.exact:
            self._calibrate()  # no language model, so nothing to spare
            return
        if list(state.values.get("lobes", ())) != self.names:
            raise RoutingError("The calibration is of other lobes.")
        self.margin, self.floor, self.temperature = (
            float(state.values[k]) for k in ("margin", "floor", "temperature")
        )

    def _calibrate(self) -> None:
        """Margin, floor and temperature, on held-out rows (on the training rows themselves, each
        left out of its own score, for lobes that held none out) and on the shipped generic
        prompts."""
        if not self.names:
            return
        scores, owner = self.held_out()
        if not len(scores):
            return
        top = scores.max(1)
        generic = self.context.generic()
        strange = self.scores(generic).max(1) if len(generic) else np.zeros(0, np.float32)
        self.floor = _floor(top, strange)
        if len(set(owner)) > 1:
            self.temperature = fit_temperature(scores, owner)
            self.margin = _margin(scores, owner)

    def held_out(self) -> tuple[Vector, np.ndarray[Any, Any]]:
        """(scores (n, lobes), owner (n,)) of the rows that calibrate, evenly from every lobe."""
        parts: list[Vector] = []
        owner: list[int] = []
        leave_out: list[bool] = []
        most = max(1, CALIBRATION_ROWS // max(1, len(self.names)))
        for i, name in enumerate(self.names):
            rows = self.context.rows[name]
            held_out = len(rows.validation) >= 5
            own = rows.validation if held_out else rows.train
            if not len(own):
                continue
            parts.append(own[:: -(-len(own) // most)])
            owner += [i] * len(parts[-1])
            leave_out += [not held_out] * len(parts[-1])
        scores = np.zeros((len(owner), len(self.names)), np.float32)
        for alone in {*leave_out}:  # one product for all lobes, not one for each
            these = np.array(leave_out) == alone
            scores[these] = self.scores(np.concatenate(parts)[these], leave_out_self=alone)
        return scores, np.array(owner)

    def state(self) -> dict[str, Any]:
        return {
            "lobes": self.names,
            "margin": self.margin,
            "floor": self.floor,
            "temperature": self.temperature,
        }


class _Index:
    """All lobes' prototypes and rows as two matrices: one product a prompt, whatever the number of lobes."""

    def __init__(self, lobes: Sequence[tuple[Vector, Vector]]) -> None:
        self.count = len(lobes)
        if not lobes:
            return
        self._prototypes = np.concatenate([p for p, _ in lobes])
        self._rows = np.concatenate([r for _, r in lobes])
        self._prototype_starts = np.cumsum([0, *(len(p) for p, _ in lobes[:-1])])
        lengths = [len(r) for _, r in lobes]
        self._row_starts = np.cumsum([0, *lengths[:-1]])
        # place of every lobe's rows in the product, short lobes filled up with a column that is always -1
        self._table = np.full((len(lobes), max(NEAREST, *lengths)), len(self._rows))
        for i, (start, n) in enumerate(zip(self._row_starts, lengths, strict=True)):
            self._table[i, :n] = np.arange(start, start + n)
        self._mean_of = np.minimum(lengths, NEAREST)

    def scores(self, vectors: Vector, leave_out_self: bool) -> Vector:
        if not self.count:
            return np.zeros((len(vectors), 0), np.float32)
        result = np.empty((len(vectors), self.count), np.float32)
        for start in range(0, len(vectors), 256):
            part = vectors[start : start + 256]
            best = np.maximum.reduceat(part @ self._prototypes.T, self._prototype_starts, axis=1)
            rows = part @ self._rows.T
            if leave_out_self:
                rows[rows > 0.9999] = -1.0
            padded = np.concatenate([rows, np.full((len(part), 1), -1.0, np.float32)], axis=1)[:, self._table]
            nearest = -np.partition(-padded, NEAREST - 1, axis=2)[:, :, :NEAREST]
            nearest = np.where(nearest > -1, nearest, 0).sum(2) / self._mean_of
            result[start : start + 256] = (best + nearest) / 2
        return result

    def nearest(self, vector: Vector, count: int) -> list[tuple[int, float]]:
        similarity = self._rows @ vector
        order = np.argsort(-similarity)[:count]
        return [(int(i), float(similarity[i])) for i in order]

    def owner(self, place: int) -> tuple[int, int]:
        """(lobe, row within the lobe) of a row's place."""
        lobe = int(np.searchsorted(self._row_starts, place, side="right")) - 1
        return lobe, place - int(self._row_starts[lobe])


def _margin(scores: Vector, owner: np.ndarray[Any, Any]) -> float:
    """The smallest lead over the second lobe with which the first is right at least PRECISION of the time."""
    ordered = np.sort(scores, axis=1)
    lead = ordered[:, -1] - ordered[:, -2]
    right = scores.argmax(1) == owner
    order = np.argsort(-lead)
    precision = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(precision >= PRECISION)
    return float(lead[order[good[-1]]]) if len(good) else float(lead.max() + 1e-6)


def _floor(known: Vector, strange: Vector) -> float:
    """The score below which no lobe fits: where ABSTENTION_COST times the share of held-out rows
    turned away, plus the share of generic prompts let in, is least."""
    if not len(strange):
        return float(np.quantile(known, FALSE_ABSTENTION))
    candidates = np.unique(np.concatenate([known, strange]))
    turned_away = np.searchsorted(np.sort(known), candidates) / len(known)
    let_in = 1 - np.searchsorted(np.sort(strange), candidates) / len(strange)
    best = int(np.argmin(ABSTENTION_COST * turned_away + let_in))
    return float(
        candidates[max(0, best - 1) : best + 1].mean()
    )  # anywhere between the two costs the same: the middle
