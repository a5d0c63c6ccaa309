"""Losses of every lobe on every dataset: does each lobe earn its place?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..bank import LobeBank, Mix
from ..dataset import Example
from ..training import TokenRows, mean_answer_loss


def loss_matrix(
    bank: LobeBank, lobes: Sequence[str], datasets: Mapping[str, Sequence[Example]], max_length: int = 512
) -> np.ndarray[Any, Any]:
    """Mean NLL per answer token, in nats, of every dataset under the base (first row) and every lobe: (lobes + 1, datasets).

    Args:
        lobes: ids in the bank.
    """
    tokenised = [TokenRows(bank.backbone, rows, max_length) for rows in datasets.values()]
    result = np.full((len(lobes) + 1, len(tokenised)), np.nan)
    for i, mix in enumerate([None, *(Mix.of({lobe: 1.0}) for lobe in lobes)]):

        def run(_mix: Mix | None = mix, **inputs: Any) -> Any:
            return bank.run(_mix, **inputs)

        for j, rows in enumerate(tokenised):
            with torch.inference_mode():
                result[i, j] = mean_answer_loss(run, bank.backbone, rows)
    return result
