"""Attention over rows packed into one sequence, row by row.

In transformers' own packing every token is held against every other and a mask forgets most of it:
the cost grows with the square of the whole sequence. Here each row attends alone, causally and
without a mask; all else runs on the packed sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "row_by_row"
"""The implementation's name among transformers' own ("sdpa", "eager", ...)."""
_LENGTHS: ContextVar[tuple[int, ...] | None] = ContextVar("multilobe_ui_packed_rows", default=None)


@contextmanager
def packed_rows(lengths: Sequence[int] | None) -> Iterator[None]:
    """Within it, a model that `attends_by_row` takes its input for rows of these lengths; None: for
    what the input says."""
    token = _LENGTHS.set(tuple(lengths) if lengths else None)
    try:
        yield
    finally:
        _LENGTHS.reset(token)


@torch.no_grad()
def attend_by_row(model: Any) -> int:
    """Let a transformers model attend row by row wherever `packed_rows` says so; returns the
    longest row it may be given.

    It is tried on two tiny rows, so the model must be in evaluation mode. One that does not give
    them the logits that they have alone stays as it was, and the answer is 0; so does one that runs
    on anything but SDPA, and on a GPU, where a few large calls are better than many small ones.
    """
    text = model.config.get_text_config()
    usual = model.device.type == "cpu" and model.config._attn_implementation == "sdpa"
    if not usual or not getattr(model, "_supports_attention_backend", False):
        return 0
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    ids = torch.tensor([[5, 6, 7, 8, 9, 6, 5]]) % text.vocab_size
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    alone = torch.cat([model(row, use_cache=False).logits for row in torch.split(ids, [3, 4], 1)], 1).float()
    model.set_attn_implementation(NAME)
    try:
        with packed_rows((3, 4)):
            packed = model(ids, position_ids=positions, use_cache=False).logits.float()
        exact = bool(torch.allclose(packed, alone, rtol=0, atol=float(alone.abs().max()) * _tolerance(model.dtype)))
    except (RuntimeError, ValueError, TypeError, IndexError):
        exact = False
    if not exact:
        model.set_attn_implementation("sdpa")
        return 0
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min([int(w) for w in windows if w and w > 0], default=2**31)  # in longer rows, some layers would want a mask after all


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 2e-2


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """Shapes: query, key, value (1, heads, tokens, width); returns (1, tokens, heads, width), as
    transformers' functions do."""
    attend, lengths = ALL_ATTENTION_FUNCTIONS["sdpa"], _LENGTHS.get()
    if lengths is None:
        done: tuple[Tensor, None] = attend(module, query, key, value, attention_mask, **others)
        return done
    rows = zip(*(torch.split(states, list(lengths), 2) for states in (query, key, value)), strict=True)
    return torch.cat([attend(module, q, k, v, None, **others)[0] for q, k, v in rows], 1), None


def _mask(*args: Any, **kwargs: Any) -> Any:
    """None where rows attend alone: the mask of a whole sequence is not even made."""
    return None if _LENGTHS.get() else ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)
