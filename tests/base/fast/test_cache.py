"""The KV cache with room to grow, held against transformers' own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from multilobe_ui.base.fast.cache import ROOM, RoomyLayer, keeps_all_tokens, new_cache

CHANGES: dict[str, Callable[[DynamicLayer], None]] = {
    "crop": lambda layer: layer.crop(-3),
    "choose rows": lambda layer: layer.batch_select_indices(torch.tensor([1])),
    "repeat rows": lambda layer: layer.batch_repeat_interleave(2),
    "reorder": lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
    "set": lambda layer: (
        setattr(layer, "keys", layer.keys[:, :, 1:]),
        setattr(layer, "values", layer.values[:, :, 1:]),
    ),
    "reset": lambda layer: layer.reset(),
}


def tokens(rows: int, count: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 2, count, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("change", CHANGES)
def test_it_keeps_what_transformers_keeps(change: str) -> None:
    ours, theirs = RoomyLayer(), DynamicLayer()
    rows, seed = 2, 0
    for count in (5, 1, 1, ROOM, 1, 0, 2):  # the fourth does not fit the first buffer
        seed += 1
        if seed == 6:
            CHANGES[change](ours)
            CHANGES[change](theirs)
            rows = len(theirs.keys) if theirs.keys is not None else 2
            continue
        keys, values = tokens(rows, count, seed), tokens(rows, count, 100 + seed)
        for a, b in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


def test_tokens_are_not_copied_while_there_is_room() -> None:
    layer = RoomyLayer()
    layer.update(tokens(1, 3, 0), tokens(1, 3, 1))
    place = layer.keys.data_ptr()
    for seed in range(ROOM):
        layer.update(tokens(1, 1, seed), tokens(1, 1, seed))
    assert layer.keys.data_ptr() == place and layer.keys.shape[-2] == 3 + ROOM


def test_what_was_given_out_stays_as_it_was() -> None:
    layer = RoomyLayer()
    before, _ = layer.update(tokens(1, 3, 0), tokens(1, 3, 0))
    layer.update(tokens(1, 1, 1), tokens(1, 1, 1))
    torch.testing.assert_close(before, tokens(1, 3, 0), rtol=0, atol=0)


def test_windows_stay_transformers_own() -> None:
    plain, windowed = (new_cache(tiny.ARCHITECTURES[name]()) for name in ("llama", "mistral"))
    assert all(type(layer) is RoomyLayer and keeps_all_tokens(layer) for layer in plain.layers)
    assert all(type(layer) is DynamicSlidingWindowLayer and not keeps_all_tokens(layer) for layer in windowed.layers)
