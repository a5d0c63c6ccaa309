"""From scores to probabilities and floors."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from ..lobes.rows import Vector
from .router import RoutingContext


def softmax(values: Vector) -> Vector:
    """Along the last axis; values (..., n)."""
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True), np.float32)


def fit_temperature(scores: Vector, owner: np.ndarray[Any, Any], lowest: float = 0.02) -> float:
    """The temperature that makes softmax(scores / T) likeliest for the true owners (Guo et al.
    2017), by a fine grid.

    On rows that are told apart without a mistake the likeliest is zero; `lowest` keeps such a
    router from being sure of all.
    """
    grid: list[float] = np.geomspace(lowest, 1.0, 60).tolist()
    behind = scores - scores[np.arange(len(owner)), owner, None]
    furthest = behind.max(1)

    def loss(t: float) -> float:
        powers = np.exp((behind - furthest[:, None]) / t)
        return float((furthest / t + np.log(powers.sum(1))).mean())

    # it is convex in 1 / T, so one can see on which side of a point the least one lies
    return grid[bisect_left(range(len(grid) - 1), True, key=lambda i: loss(grid[i]) <= loss(grid[i + 1]))]


def calibration_error(confidence: np.ndarray[Any, Any], right: np.ndarray[Any, Any], bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins,
    weighted by their size."""
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [
        abs(float(confidence[places == b].mean() - right[places == b].mean())) * (places == b).mean()
        for b in set(places)
    ]
    return float(sum(gaps))


def low_tail(values: np.ndarray[Any, Any], share: float) -> float:
    """The value below which that share of `values` (n,) lies, if what is below the median is half a
    normal distribution: a few dozen values have no first percentile of their own."""
    middle = float(np.median(values))
    below = values[values <= middle]
    spread = float(np.sqrt(np.mean((below - middle) ** 2)))
    return middle + NormalDist().inv_cdf(min(max(share, 1e-4), 0.5)) * spread


def held_out_prompts(
    context: RoutingContext, names: Sequence[str], most: int = 96
) -> tuple[list[str], list[int]]:
    """(prompts, owner): evenly from every lobe, rows held out from training where there are at
    least five, else training rows."""
    prompts: list[str] = []
    owner: list[int] = []
    for i, name in enumerate(names):
        if name not in context.rows:
            continue
        rows = context.rows[name]
        own = rows.validation_prompts if len(rows.validation_prompts) >= 5 else rows.train_prompts
        chosen = list(own)[: max(4, min(24, most // len(names)))]
        prompts += chosen
        owner += [i] * len(chosen)
    return prompts, owner
