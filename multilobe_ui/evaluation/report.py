"""How routers do on labelled prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..routers import RoutingDecision
from ..routers.base import calibration_error


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
