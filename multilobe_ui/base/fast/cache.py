"""The KV cache of transformers, with room to grow: a token is written behind the others instead of
copying them all."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .report import is_plain

ROOM = 64
"""Tokens that a full buffer gains at least; a quarter of its length where that is more."""


class RoomyLayer(DynamicLayer):
    """A layer of `DynamicCache` whose keys and values are the front of larger buffers.

    Transformers' own layer concatenates, which copies all earlier tokens for each new one: on the
    built-in base at 700 tokens that is a fifth of a step. Whoever sets `keys` and `values`
    (cropping, choosing rows) is welcome: the next update begins new buffers.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._given: tuple[Any, Any] = (None, None)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)  # type: ignore[no-untyped-call]
        before = self.get_seq_length()
        end = before + key_states.shape[-2]
        ours = self._buffers is not None and self._given[0] is self.keys and self._given[1] is self.values
        if not ours or self._buffers is None or end > self._buffers[0].shape[-2]:
            room = end + max(ROOM, end // 4)
            self._buffers = (_enlarged(self.keys, key_states, room), _enlarged(self.values, value_states, room))
        keys, values = self._buffers
        keys.narrow(-2, before, end - before).copy_(key_states)
        values.narrow(-2, before, end - before).copy_(value_states)
        self.keys, self.values = self._given = keys.narrow(-2, 0, end), values.narrow(-2, 0, end)
        return self.keys, self.values

    def reset(self) -> None:
        super().reset()
        self._buffers = None


def _enlarged(states: Tensor | None, like: Tensor, room: int) -> Tensor:
    """A buffer for `room` tokens that begins with `states`, if there are any, and otherwise looks
    like `like`."""
    *rows, _, size = like.shape
    buffer = like.new_empty(*rows, room, size)
    if states is not None and states.numel():
        buffer[..., : states.shape[-2], :] = states
    return buffer


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this configuration; layers of other kinds (windows, states)
    stay transformers' own."""
    cache = DynamicCache(config=config)
    if not is_plain():
        cache.layers = [RoomyLayer() if keeps_all_tokens(layer) else layer for layer in cache.layers]
    return cache


def roomy_layers(model: Any) -> int:
    """How many layers of a model have a cache with room to grow."""
    return sum(isinstance(layer, RoomyLayer) for layer in new_cache(model.config).layers)


def keeps_all_tokens(layer: Any) -> bool:
    """Whether a layer keeps keys and values of all tokens, and nothing else."""
    return type(layer) in (DynamicLayer, RoomyLayer)
