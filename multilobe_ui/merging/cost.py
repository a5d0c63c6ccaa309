"""What a merge costs: the error of its delta, and its losses beside those of its parents.

    error   ||merged - D|| / ||D||, Frobenius, over all adapted layers; D is the exact weighted sum
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.backbone import Backbone
from ..data.examples import Example
from ..errors import AdapterError
from ..evaluation import loss_matrix
from ..lobes.bank import LobeBank
from ..lobes.deltas import Matrices
from ..lobes.weights import Mix
from ..settings import check
from ..training.batches import TokenRows, mean_answer_loss


def delta_errors(merged: Matrices, parts: Sequence[Matrices], weights: Sequence[float]) -> tuple[dict[str, float], float]:
    """(error of each layer, error of all): ||merged - exact|| / ||exact||, Frobenius.

    A difference of low-rank products is itself one, B A with all factors side by side, and ||B A||
    = ||R_B R_Aᵀ|| with B = Q_B R_B and Aᵀ = Q_A R_A: the work grows with the layer's width times
    rank², and no matrix of the layer's size is made.

    Raises:
        AdapterError: the exact sum is zero in every layer.
    """
    layers, off, whole = {}, 0.0, 0.0
    for module, made in merged.items():
        exact = [(a, b * w) for own, w in zip(parts, weights, strict=True) if module in own for a, b in [own[module]]]
        difference, size = _norm([(made[0], -made[1]), *exact]), _norm(exact)
        layers[module] = _relative(difference, size)
        off, whole = math.hypot(off, difference), math.hypot(whole, size)
    if whole <= 1e-7 * math.hypot(
        *(w * _norm([pair]) for own, w in zip(parts, weights, strict=True) for pair in own.values())
    ):
        raise AdapterError("With these weights the lobes cancel out: their weighted sum is zero. Change a weight.")
    return layers, off / whole


def _relative(difference: float, size: float) -> float:
    """A difference as a share of what it differs from; infinite where that is nothing."""
    if difference == 0:
        return 0.0
    if size == 0:
        return math.inf
    return difference / size


def _norm(products: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Frobenius norm of the sum of B A over (A, B). float64: a small difference of large products
    is asked for."""
    a, b = torch.cat([a.double() for a, _ in products]), torch.cat([b.double() for _, b in products], 1)
    r_a, r_b = torch.linalg.qr(a.t(), mode="r").R, torch.linalg.qr(b, mode="r").R
    return float(torch.linalg.matrix_norm(r_b @ r_a.t()))


@dataclass(frozen=True)
class DataLosses:
    """Mean NLL per answer token, in nats, of one dataset.

    Attributes:
        dataset: its name. base: of the plain base. parents: of each lobe alone. mixture: of the
            exact weighted sum, which the bank runs without a merge. merged: of the new lobe.
    """

    dataset: str
    base: float
    parents: tuple[float, ...]
    mixture: float
    merged: float


def losses(
    backbone: Backbone,
    made: Path,
    lobes: Sequence[tuple[Path, float]],
    datasets: Mapping[str, Sequence[Example]],
    max_length: int = 512,
) -> Iterator[DataLosses]:
    """What a new lobe has kept of its parents: their losses and its own on each dataset, one
    dataset at a time.

    A bank of its own serves a twin of the base: the new lobe may still be thrown away, and nobody
    else sees it.

    Args:
        made: folder of the new adapter. lobes: what it was made of. datasets: for example some rows
            of each parent's data, by name.

    Raises:
        ConfigError: a dataset has no rows. AdapterError: a folder cannot be read or does not fit the base.
    """
    for name, rows in datasets.items():
        check(len(rows) > 0, f"rows of {name}", len(rows), "at least one; leave out a dataset without rows")
    bank = LobeBank(backbone)
    ids = [f"parent_{i}" for i in range(len(lobes))]
    for lobe, folder in zip([*ids, "merged"], [*(folder for folder, _ in lobes), made], strict=True):
        bank.register(lobe, Path(folder))
    mix = Mix.of({lobe: float(weight) for lobe, (_, weight) in zip(ids, lobes, strict=True)})
    for name, rows in datasets.items():
        base, *parents, merged = (float(x) for x in loss_matrix(bank, [*ids, "merged"], {name: rows}, max_length)[:, 0])
        mixture = mixture_loss(bank, mix, TokenRows(backbone, rows, max_length))
        yield DataLosses(name, base, tuple(parents), mixture, merged)


def mixture_loss(bank: LobeBank, mix: Mix, rows: TokenRows) -> float:
    def run(**inputs: Any) -> Any:
        return bank.run(mix, **inputs)

    with torch.inference_mode():
        return mean_answer_loss(run, bank.backbone, rows)
