"""Weights over lobes: what one forward call of the base is run under."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """Weights over lobes for one forward call.

    Attributes:
        lobes: ids of the lobes, one for each place in the last dimension of `weights`.
        weights: (lobes,) the same for every token; (batch, lobes) for each row; (batch, tokens,
            lobes) for each token; (batch, tokens, layers, lobes) for each token and adapted linear
            layer, in the base's module order.
    """

    lobes: tuple[str, ...]
    weights: Tensor
    last_call: object = field(default=None, init=False, repr=False, compare=False)
    """What the bank worked out for a token (a `layouts.Call`): the next ones of the same chats need
    the same."""

    def __post_init__(self) -> None:
        if self.weights.ndim not in (1, 2, 3, 4) or self.weights.shape[-1] != len(self.lobes):
            raise ValueError(f"weights have shape {tuple(self.weights.shape)} for {len(self.lobes)} lobes")

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Mix:
        """One weight a lobe, for the whole batch: {} is the base."""
        return cls(tuple(weights), torch.tensor(list(weights.values()), dtype=torch.float32))

    @classmethod
    def rows(cls, rows: Sequence[Mapping[str, float]]) -> Mix:
        """One set of weights for each row of the batch."""
        lobes = tuple(dict.fromkeys(lobe for row in rows for lobe in row))
        values = [[row.get(lobe, 0.0) for lobe in lobes] for row in rows]
        return cls(lobes, torch.tensor(values, dtype=torch.float32).reshape(len(rows), len(lobes)))

    def active(self) -> Mix:
        """Without the lobes that have no weight anywhere: their delta is not computed at all."""
        return self._active

    @cached_property
    def _active(self) -> Mix:
        """Found once: a chat runs under the same mix for all its tokens."""
        if self.weights.requires_grad or not self.lobes:
            return self
        used = (self.weights != 0).reshape(-1, len(self.lobes)).any(0).tolist()
        if all(used) or (self.weights.ndim == 4 and any(used)):  # a lobe fewer could be a layer fewer: they are counted
            return self
        keep = [i for i, is_used in enumerate(used) if is_used]
        return Mix(tuple(self.lobes[i] for i in keep), self.weights[..., keep])


@dataclass(frozen=True)
class LayerMix:
    """Weights over lobes that each linear layer works out from its own input, while the call runs (Arrow).

    Attributes:
        lobes: ids of the lobes, one for each place in the last dimension of the weights.
        weigh: (module name, its input (batch, tokens, in)) → weights (batch, tokens, lobes). It is
            asked by adapted layers only.
    """

    lobes: tuple[str, ...]
    weigh: Callable[[str, Tensor], Tensor]

    def active(self) -> LayerMix:
        return self
