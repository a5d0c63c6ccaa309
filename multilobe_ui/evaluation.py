"""Measuring: what a lobe gains over the base, whether each wins on its own data, and how often the router is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .bank import LobeBank, Mix
from .dataset import Example
from .routers import RoutingDecision
from .routers.base import calibration_error
from .training import TokenRows, mean_answer_loss


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


@dataclass(frozen=True)
class RoutingReport:
    """How a router did on labelled prompts; None as a label means that no lobe fits.

    Attributes:
        accuracy: share of prompts that were decided as labelled. by_label: the same for every label (None as "").
        stages: share of prompts that each stage decided. confusion: (label, decided) → count.
        milliseconds: median time of a decision. ece: expected calibration error of the confidence, 15 equal bins (Guo 2017).
    """

    accuracy: float
    by_label: Mapping[str, float]
    stages: Mapping[str, float]
    confusion: Mapping[tuple[str, str], int]
    milliseconds: float
    ece: float
    decisions: Sequence[RoutingDecision]


def routing_report(
    route: Callable[[str], RoutingDecision], prompts: Sequence[str], labels: Sequence[str | None]
) -> RoutingReport:
    """Route every prompt and compare with its label."""
    decisions = [route(prompt) for prompt in prompts]
    decided = [decision.chosen or "" for decision in decisions]
    wanted = [label or "" for label in labels]
    right = np.array([a == b for a, b in zip(decided, wanted, strict=True)])
    of_label = {name: right[[w == name for w in wanted]] for name in sorted(set(wanted))}
    stages = Counter(decision.stage for decision in decisions)
    confidence = np.array([decision.confidence for decision in decisions])
    return RoutingReport(
        accuracy=float(right.mean()),
        by_label={name: float(values.mean()) for name, values in of_label.items()},
        stages={stage: count / len(decisions) for stage, count in stages.items()},
        confusion=Counter(zip(wanted, decided, strict=True)),
        milliseconds=float(np.median([decision.elapsed_ms for decision in decisions])),
        ece=calibration_error(confidence, right),
        decisions=decisions,
    )
