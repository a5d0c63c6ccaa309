"""Weights for lobes by search on a few examples, without gradients."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.examples import Example
from ..errors import ConfigError
from ..lobes.bank import LobeBank
from ..lobes.weights import Mix
from ..settings import check
from ..training.batches import TokenRows
from .cost import mixture_loss


@dataclass(frozen=True)
class Trial:
    """One set of weights that was tried.

    Attributes:
        number: from 1. weights: lobe → weight. loss: mean NLL per answer token, in nats. penalty:
            what the weights cost.
        best: whether loss + penalty is the lowest so far.
    """

    number: int
    weights: Mapping[str, float]
    loss: float
    penalty: float
    best: bool

    @property
    def objective(self) -> float:
        return self.loss + self.penalty


def search_weights(
    bank: LobeBank,
    lobes: Sequence[str],
    rows: Sequence[Example],
    *,
    budget: int = 40,
    bounds: tuple[float, float] = (-1.5, 1.5),
    penalty: float = 0.05,
    seed: int = 0,
    stop: threading.Event | None = None,
    max_length: int = 512,
) -> Generator[Trial, None, dict[str, float]]:
    """Find weights for some lobes on a few examples, without gradients: yields every trial, returns
    the best weights.

    LoraHub's idea (Huang et al. 2023, arXiv:2307.13269), and its defaults: mean answer loss +
    penalty * mean |w| is minimised, 40 trials between -1.5 and 1.5. LoraHub tries merges of A and B
    apart; here the bank runs the exact mixture. See `_propose` for how the next trial is chosen.

    Args:
        lobes: ids in the bank. rows: the examples; LoraHub takes five.
        penalty: in nats. seed: the same seed gives the same trials. stop: when set, the best so far
            is returned.

    Raises:
        ConfigError: no lobes or rows, or a setting out of range. LobeError: the bank lacks a lobe.
    """
    low, high = map(float, bounds)
    check(-100 <= low < high <= 100 and low <= 0 <= high, "bounds", bounds, "two numbers, with 0 between them")
    check(budget >= 1, "budget", budget, "at least 1 trial")
    check(penalty >= 0, "penalty", penalty, "0 or more")
    if not lobes or len(set(lobes)) < len(lobes):
        raise ConfigError(f"lobes are {list(lobes)!r}: the search for weights needs at least one, each once.")
    if not rows:
        raise ConfigError("The search for weights has no examples. Give a few; five are enough to begin with.")
    bank.layers(lobes)  # names a lobe that is missing before anything runs
    tokens, generator = TokenRows(bank.backbone, rows, max_length), np.random.default_rng(seed)
    tried: list[NDArray[Any]] = []
    values: list[float] = []
    opening = _opening(len(lobes), low, high)[: max(1, (budget + 1) // 2)]
    while len(tried) < budget and not (stop is not None and stop.is_set() and tried):
        point = opening[len(tried)] if len(tried) < len(opening) else _propose(tried, values, low, high, generator)
        weights = {lobe: float(weight) for lobe, weight in zip(lobes, point, strict=True)}
        loss, cost = mixture_loss(bank, Mix.of(weights), tokens), penalty * float(np.abs(point).mean())
        loss = loss if math.isfinite(loss) else 1e6  # so large a mixture that the base breaks down
        best = not values or loss + cost < min(values)
        tried.append(point)
        values.append(loss + cost)
        yield Trial(len(tried), weights, loss, cost, best)
    found = tried[int(np.argmin(values))]
    return {lobe: float(weight) for lobe, weight in zip(lobes, found, strict=True)}


def _opening(n: int, low: float, high: float) -> list[NDArray[Any]]:
    """What a person would try first: the base, all lobes equally, each alone."""
    first = [np.zeros(n), np.full(n, 1 / n), *np.eye(n)]
    return [np.clip(point, low, high) for point in (first if n > 1 else [first[0], first[1]])]


def _propose(
    tried: Sequence[NDArray[Any]], values: Sequence[float], low: float, high: float, generator: np.random.Generator
) -> NDArray[Any]:
    """The weights to try next: those with the highest expected improvement under a Gaussian process
    through all trials.

    Efficient global optimization (Jones, Schonlau and Welch 1998, J. Global Optimization 13:455),
    on the logarithm: far from the optimum losses grow so large that near it everything would look
    alike. Candidates lie everywhere and, closer and closer, around the best.
    """
    # here, because it takes a second and only the search needs it
    from scipy.stats import norm
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    heights, n = np.log(np.maximum(values, 1e-9)), len(tried[0])
    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(1.0, (0.1, 20.0), nu=2.5)
    process = GaussianProcessRegressor(kernel, alpha=1e-6, normalize_y=True)
    steps = np.exp(generator.uniform(np.log(0.01), np.log(1.0), (2000, 1)))
    around = tried[int(np.argmin(values))] + steps * generator.normal(size=(2000, n))
    candidates = np.concatenate([generator.uniform(low, high, (500, n)), np.clip(around, low, high)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a length scale has reached its bound
        process.fit(np.stack(tried), heights)
        mean, deviation = process.predict(candidates, return_std=True)
    better = heights.min() - mean
    z = better / np.maximum(deviation, 1e-12)
    improvement = better * norm.cdf(z) + deviation * norm.pdf(z)
    return np.asarray(candidates[int(improvement.argmax())])
