"""Routing rows: what routing knows of one lobe, in memory and in its folder.

    routing.safetensors  prototypes, train and validation vectors      prompts.json  their texts"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Vector = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class RoutingRows:
    """What routing knows of one lobe: embeddings of its rows, unit length.

    Attributes:
        prototypes: (k, d) cluster centres of the training rows. train: (n, d). validation: (m, d), rows held out from training.
        train_prompts, validation_prompts: their texts, same order. train_answers, validation_answers: what was answered; empty
            for a lobe that came from a version that did not keep them.
    """

    prototypes: Vector
    train: Vector
    validation: Vector
    train_prompts: Sequence[str] = ()
    validation_prompts: Sequence[str] = ()
    train_answers: Sequence[str] = ()
    validation_answers: Sequence[str] = ()


class RowsByName(Mapping[str, RoutingRows]):
    """Routing rows by lobe name, which are read when they are asked for. With a thousand lobes that takes seconds."""

    def prototypes(self, name: str) -> Vector:
        """The lobe's prototypes, without the rest of its rows where that saves reading them."""
        return self[name].prototypes
