"""A prompt among the lobes' rows, in two dimensions that a person can look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..lobes.rows import RoutingRows, Vector

ROWS = 40
"""Rows shown of each lobe; more is a cloud in which nothing can be pointed at."""
LONGEST_TEXT = 120


@dataclass(frozen=True)
class PromptMap:
    """Where a prompt lies among the lobes' rows, in two dimensions (principal components of the
    lobes' prototypes).

    Attributes:
        lobes: name → (n, 2) places of some of its rows. prototypes: name → (k, 2). prompt: (2,), or
            None without one.
        texts: name → the n rows' prompts, cut short.
        explained: share of the prototypes' variance that the two dimensions show, 0 to 1.
    """

    lobes: Mapping[str, np.ndarray[Any, Any]]
    prototypes: Mapping[str, np.ndarray[Any, Any]]
    prompt: np.ndarray[Any, Any] | None
    texts: Mapping[str, Sequence[str]]
    explained: float


def prompt_map(rows: Mapping[str, RoutingRows], prompt: Vector | None) -> PromptMap:
    """Principal components of the lobes' prototypes, every lobe of equal weight, and everything
    else laid into that plane.

    The prototypes, and not the rows, choose the plane: it then shows what sets the lobes apart
    rather than what their rows vary in.

    Args:
        prompt: its embedding (d,), or None.
    """
    rows = {name: own for name, own in rows.items() if len(own.prototypes)}
    if not rows:
        return PromptMap({}, {}, None, {}, 0.0)
    means = np.stack([own.prototypes.mean(0) for own in rows.values()])
    centre = means.mean(0)
    spread = np.concatenate(
        [(own.prototypes - centre) / np.sqrt(len(own.prototypes)) for own in rows.values()]
    )
    _, strength, axes = np.linalg.svd(spread, full_matrices=False)
    axes = np.concatenate([axes[:2], np.zeros((max(0, 2 - len(axes)), spread.shape[1]), np.float32)])
    # the sign of a component is arbitrary: fixed, so that the map does not flip when a lobe comes
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])
    plane = (axes * np.where(signs == 0, 1, signs)[:, None]).T
    shown = {
        name: np.linspace(0, len(own.train) - 1, min(ROWS, len(own.train))).astype(int)
        for name, own in rows.items()
    }
    total = float((strength**2).sum())
    return PromptMap(
        lobes={name: (own.train[shown[name]] - centre) @ plane for name, own in rows.items()},
        prototypes={name: (own.prototypes - centre) @ plane for name, own in rows.items()},
        prompt=None if prompt is None else (prompt - centre) @ plane,
        texts={name: _texts(own, shown[name]) for name, own in rows.items()},
        explained=float((strength[:2] ** 2).sum()) / total if total > 0 else 0.0,
    )


def _texts(rows: RoutingRows, places: np.ndarray) -> Sequence[str]:  # type: ignore[type-arg]
    """A lobe of the older kind has vectors without texts."""
    texts = rows.train_prompts if len(rows.train_prompts) == len(rows.train) else [""] * len(rows.train)
    return [texts[i] if len(texts[i]) <= LONGEST_TEXT else texts[i][: LONGEST_TEXT - 1] + "…" for i in places]
