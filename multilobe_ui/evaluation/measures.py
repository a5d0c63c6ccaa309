"""What is measured of decisions, in numpy alone: right and wrong by label, calibration, and what a
higher bar would do.

Decisions and labels are places (n,) in a list of labels; the last label, "", stands for "no lobe:
the base model".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..routing.calibration import calibration_error

Array = np.ndarray[Any, Any]
BINS = 10
MOST_POINTS = 60


def confusion(wanted: Array, decided: Array, labels: int) -> Array:
    """(labels, labels) counts: rows are the labels wanted, columns what was decided."""
    counts = np.bincount(wanted * labels + decided, minlength=labels * labels)
    return np.asarray(counts.reshape(labels, labels))


def by_label(counts: Array) -> dict[str, list[float | None]]:
    """Precision tp / (tp + fp), recall tp / (tp + fn) and F1 = 2 tp / (2 tp + fp + fn) of every
    label (van Rijsbergen 1979).

    None where nothing is divided by nothing: precision of a label never decided, recall of one
    never wanted, F1 of one that is neither.

    Args:
        counts: as `confusion` gives them.
    """
    right, decided, wanted = np.diag(counts), counts.sum(0), counts.sum(1)
    return {
        "precision": _shares(right, decided),
        "recall": _shares(right, wanted),
        "f1": _shares(2 * right, decided + wanted),
    }


def _shares(parts: Array, wholes: Array) -> list[float | None]:
    return [float(part / whole) if whole else None for part, whole in zip(parts, wholes, strict=True)]


def expected_calibration_error(confidence: Array, right: Array) -> float | None:
    """As `routers.base.calibration_error` (Guo et al. 2017, 15 equal bins), over the decisions
    whose confidence is a number; None if there are none."""
    known = np.isfinite(confidence)
    return calibration_error(np.clip(confidence[known], 0, 1), right[known]) if known.any() else None


def calibration(confidence: Array, right: Array, bins: int = BINS) -> list[dict[str, Any]]:
    """The reliability diagram (DeGroot & Fienberg 1983; Guo et al. 2017): mean confidence and
    accuracy in each of `bins` equal bins (low, high] that has decisions. Confidences that are no
    number are left out."""
    known = np.isfinite(confidence)
    confidence, right = np.clip(confidence[known], 0, 1), right[known]
    edges = np.linspace(0, 1, bins + 1)
    places = np.searchsorted(edges[1:-1], confidence)
    return [
        {
            "low": float(edges[b]),
            "high": float(edges[b + 1]),
            "confidence": float(confidence[places == b].mean()),
            "accuracy": float(right[places == b].mean()),
            "count": int((places == b).sum()),
        }
        for b in range(bins)
        if (places == b).any()
    ]


def abstention(confidence: Array, right: Array, to_lobe: Array, most: int = MOST_POINTS) -> list[dict[str, Any]]:
    """The risk-coverage curve (El-Yaniv & Wiener 2010): what if a lobe answered only from a
    confidence of `threshold` on?

    Args:
        right, to_lobe: (n,) whether a decision is as wanted, and whether it is for a lobe. Those
            for the base stay with the base, and so do lobes' whose confidence is no number.
    Returns: for rising thresholds, from the one that asks nothing to the highest confidence there
        is: `answered`, the share of all prompts that a lobe answers, and `accuracy`, the share of
        right ones among those (None if there are none). At most `most` points, evenly spread over
        the different confidences.
    """
    if not len(confidence):
        return []
    by_lobe = to_lobe & np.isfinite(confidence)
    order = np.argsort(-confidence[by_lobe], kind="stable")
    falling, rights = confidence[by_lobe][order], np.cumsum(right[by_lobe][order])
    # the last place of each confidence: all that is as sure, or surer
    lasts = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(falling) else np.zeros(0, int)
    lasts = lasts[::-1]  # thresholds rise
    if len(lasts) > most - 1:
        lasts = lasts[np.linspace(0, len(lasts) - 1, most - 1).round().astype(int)]
    points = [(float(falling[last]), int(last) + 1, int(rights[last])) for last in lasts]
    points.insert(0, (0.0, len(falling), int(rights[-1]) if len(rights) else 0))
    return [{"threshold": t, "answered": n / len(confidence), "accuracy": r / n if n else None} for t, n, r in points]
