"""Least squares on which lobe a row came from, and what leaving each row out says of it. For
routers that read sentence vectors.

With K the kernel matrix of all rows, Y their labels and λ the ridge, the scores of a prompt are

    s(x) = k(x) α,     α = (K + λ I)⁻¹ Y

They estimate how much of each lobe is in the prompt: a row of two lobes has the label 0.5 in each.
The generic prompts are one more class. What a row's scores would be without it is free (Rifkin and
Lippert 2007, "Notes on regularized least squares"):

    s₋ᵢ = y_i - α_i / [(K + λ I)⁻¹]_ii

So nothing need be held out, and everything below is calibrated on scores that no row had a part in.
How well a prompt is known is

    v = |max(s, 0)| + the cosine of the nearest row of a lobe

over the lobes' scores: a blend of two lobes is as well known as a prompt of one. A lobe fits where
v reaches a floor, the value that all but `false_abstention` of the lobes' own rows reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..lobes.rows import Vector
from .calibration import calibration_error, softmax
from .router import RoutingContext

Array = np.ndarray[Any, Any]
Kernel = Callable[[Array], Array]
"""Cosines → values of a positive definite kernel."""
MOST_ROWS = 2600
"""Rows of lobes that are learned from, evenly from all: the time of a fit grows with their cube."""
FEW = 8
"""A lobe that may bring fewer rows than this brings its prototypes instead, which stand for more."""
MOST_SCORES = 500_000
"""Scores, of rows times lobes, that the temperature is fitted to."""
DOUBTFUL = (0.01, 0.10)
"""Shares of the lobes' own rows between whose values of v it is in doubt whether any lobe fits."""
FALSE_ABSTENTION = 0.025
"""Share of the lobes' own rows that may fall below the floor: the base's answer costs little, a
stranger in a lobe looks absurd."""


@dataclass(frozen=True)
class Rows:
    """What is learned from: each prompt once.

    Attributes:
        vectors: (n, d), unit length. labels: (n, lobes + 1), each row of sum 1, the generic
            prompts' class last.
        texts: of the lobes' rows, which come first; "" where there is none.
    """

    vectors: Vector
    labels: Vector
    texts: Sequence[str] = ()

    @property
    def known(self) -> Array:
        """(n,) whether a row is a lobe's."""
        return np.asarray(self.labels[:, -1] < 1)


def lobes_with_rows(context: RoutingContext) -> list[str]:
    """Names of the lobes that came with vectors."""
    rows = context.rows
    return [
        name
        for name in context.lobes
        if name in rows and (len(context.prototypes(name)) or len(rows[name].train))
    ]


def rows_of(context: RoutingContext, names: Sequence[str], most: int = MOST_ROWS) -> Rows:
    """The rows of these lobes, at most `most`, and the generic prompts. A prompt that several lobes
    have belongs to all of them."""
    share = max(1, most // max(1, len(names)))
    vectors: list[Vector] = []
    owners: list[list[int]] = []
    texts: list[str] = []
    place: dict[str, int] = {}
    for lobe, name in enumerate(names):
        prototypes = context.prototypes(name)[:share]
        if len(prototypes) and (share < FEW or not len(context.rows[name].train)):
            vectors += [*prototypes]
            owners += [[lobe]] * len(prototypes)
            texts += [""] * len(prototypes)
            continue
        rows = context.rows[name]
        own = [*rows.train_prompts, *rows.validation_prompts]
        both = np.concatenate([rows.train, rows.validation]) if len(rows.validation) else rows.train
        for i in np.unique(np.linspace(0, len(both) - 1, share).astype(int)).tolist():
            text = own[i] if len(own) == len(both) else ""
            if text in place:
                owners[place[text]] = sorted({*owners[place[text]], lobe})
                continue
            if text:
                place[text] = len(vectors)
            vectors.append(both[i])
            owners.append([lobe])
            texts.append(text)
    generic = context.generic()[
        :: 2 if share < FEW else 1
    ]  # many lobes cover what every second everyday prompt tells
    labels = np.zeros((len(vectors) + len(generic), len(names) + 1), np.float32)
    for row, lobes in enumerate(owners):
        labels[row, lobes] = 1 / len(lobes)
    labels[len(vectors) :, -1] = 1
    stacked = np.stack(vectors) if vectors else generic[:0]
    return Rows(np.concatenate([stacked, generic]) if len(generic) else stacked, labels, texts)


@dataclass(frozen=True)
class Calibration:
    """What leaving each row out says of scores; see the module's text.

    Attributes:
        temperature: of `probabilities`. floor: the value of v from which a lobe fits. low, high:
            between them that is in doubt.
        spread: how fast doubt goes with distance to the floor. accuracy: share of the lobes' rows
            that are their own lobe's. ece: expected calibration error of the probability of what
            was chosen for them.
    """

    temperature: float
    floor: float
    low: float
    high: float
    spread: float
    accuracy: float = 0.0
    ece: float = 0.0

    @classmethod
    def of(
        cls, scores: Vector, labels: Vector, own: Vector, strange: Vector, false_abstention: float
    ) -> Calibration:
        """From rows of lobes that had no part in it: their scores and labels (n, lobes) and values
        of v (n,); and the values of v of the generic prompts."""
        floor, low, high = (float(v) for v in np.quantile(own, (false_abstention, *DOUBTFUL)))
        temperature = _temperature(scores, labels)
        sure = softmax(scores / np.float32(temperature)).max(1)
        right = labels[np.arange(len(labels)), scores.argmax(1)] > 0
        return cls(
            temperature, floor, min(low, floor), max(high, floor), _spread(own - floor, strange - floor),
            float(right.mean()), calibration_error(sure, right),
        )  # fmt: skip

    def probabilities(self, scores: Vector) -> Vector:
        """(lobes,) that each of them is the right one, if any is; from scores (lobes + 1,)."""
        return softmax(scores[:-1] / np.float32(self.temperature))

    def none(self, value: float) -> float:
        """Probability that no lobe fits a prompt that is known so well; 0.5 at the floor."""
        return float(1 / (1 + np.exp(np.clip((value - self.floor) / self.spread, -50, 50))))


class Regression:
    """Kernel ridge regression of `rows.labels` on `rows.vectors`.

    Attributes:
        weights: (n, lobes + 1), α of the module's text. calibration: from leaving each row out.
    """

    def __init__(
        self, rows: Rows, kernel: Kernel, ridge: float, false_abstention: float = FALSE_ABSTENTION
    ) -> None:
        self.rows, self.kernel = rows, kernel
        cosines = rows.vectors @ rows.vectors.T
        self.weights, left_out = _solved(kernel(cosines), rows.labels, ridge)
        np.fill_diagonal(cosines, -1)
        values, known = how_known(left_out, cosines, rows.known), rows.known
        self.calibration = Calibration.of(
            left_out[known, :-1], rows.labels[known, :-1], values[known], values[~known], false_abstention
        )

    def scores(self, vectors: Vector) -> tuple[Vector, Vector, Vector]:
        """((n, lobes + 1) scores, (n,) how well each is known, (n, rows) cosines) of prompts with
        vectors (n, d)."""
        cosines = vectors @ self.rows.vectors.T
        scores = np.asarray(self.kernel(cosines) @ self.weights, np.float32)
        return scores, how_known(scores, cosines, self.rows.known), cosines


def how_known(scores: Vector, cosines: Array, known: Array) -> Vector:
    """(n,) v of the module's text, of prompts with scores (n, lobes + 1) and cosines (n, rows);
    `known` are the lobes' rows."""
    return np.asarray(
        np.linalg.norm(np.maximum(scores[:, :-1], 0), axis=1) + cosines[:, known].max(1), np.float32
    )


def nearest_rows(rows: Rows, names: Sequence[str], cosines: Vector, count: int = 5) -> list[dict[str, Any]]:
    """The lobes' rows nearest to a prompt with cosines (rows,): {prompt, lobe, score}, best first."""
    own = cosines[: len(rows.texts)]
    order = np.argsort(-own)[:count].tolist()
    return [
        {"prompt": rows.texts[i], "lobe": names[int(rows.labels[i].argmax())], "score": float(own[i])}
        for i in order
        if rows.texts[i]
    ]


def shares_of(scores: Mapping[str, float]) -> dict[str, float]:
    """What a prompt is made of: positive scores by lobe, made to sum to 1."""
    positive = {name: max(score, 0.0) for name, score in scores.items()}
    total = sum(positive.values()) or 1.0
    return {name: score / total for name, score in positive.items()}


def _solved(gram: Array, labels: Vector, ridge: float) -> tuple[Vector, Vector]:
    """(α, scores of every row without it), each (n, classes), by one Cholesky factor and its inverse."""
    from scipy.linalg.lapack import spotrf, spotri  # not imported by the page
    from scipy.sparse import csr_array

    gram[np.diag_indices_from(gram)] += ridge
    factor, failed = spotrf(gram, lower=1, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError("the rows' kernel matrix is not positive definite")
    inverse, _ = spotri(factor, lower=1, overwrite_c=1)
    _mirror(inverse)
    # labels are nearly all zero: with a thousand lobes a dense product would take as long as the inverse
    weights = np.asarray((csr_array(labels.T) @ inverse).T, np.float32)
    return weights, np.asarray(labels - weights / np.diag(inverse)[:, None], np.float32)


def _mirror(lower: Array, block: int = 256) -> None:
    """Write the lower triangle of a square matrix to its upper one, by blocks that fit a
    processor's cache."""
    for i in range(0, len(lower), block):
        end = i + block
        lower[i:end, end:] = lower[end:, i:end].T
        corner = np.tril(lower[i:end, i:end])
        lower[i:end, i:end] = corner + np.tril(corner, -1).T


def _temperature(scores: Vector, labels: Vector) -> float:
    """That which makes softmax(scores / T) likeliest for labels (n, lobes) of sum 1 (Guo et al.
    2017), from 0.02 to 1."""
    from scipy.optimize import minimize_scalar

    step = max(1, scores.size // MOST_SCORES)
    scores, labels = scores[::step], labels[::step]
    shifted = (scores - scores.max(1, keepdims=True)).astype(np.float64)
    wanted = (labels * shifted).sum(1).mean()

    def loss(inverse: float) -> float:
        return float(np.log(np.exp(shifted * inverse).sum(1)).mean() - wanted * inverse)

    return 1 / float(minimize_scalar(loss, bounds=(1.0, 50.0), method="bounded").x)


def _spread(own: Array, strange: Array) -> float:
    """The scale in 1 / (1 + exp(distance / scale)) that makes it likeliest that rows of lobes are
    known and generic ones are not; both as distances from the floor, and each kind counts as much
    as the other."""
    from scipy.optimize import minimize_scalar

    def loss(inverse: float) -> float:
        known = np.logaddexp(0, -own * inverse).mean()
        return float(known + (np.logaddexp(0, strange * inverse).mean() if len(strange) else 0.01 * inverse))

    return 1 / float(minimize_scalar(loss, bounds=(1.0, 50.0), method="bounded").x)
