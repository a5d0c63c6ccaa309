"""Examples as token rows, rows as batches, and the loss of a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.backbone import Backbone
from ..base.fast.attention import packed_rows
from ..base.fast.functions import token_nll
from ..base.fast.last_layer import only_at
from ..data.examples import Example

PACKED_TOKENS = 1024
"""Most tokens in one packed sequence whose rows cannot attend one by one: attention costs grow with
its square, so longer batches are padded instead."""


class TokenRows:
    """Tokenised rows, side by side in one array: a million short rows take tens of megabytes.

    Attributes:
        truncated: how many rows were cut to `max_length` tokens.
    """

    def __init__(self, backbone: Backbone, examples: Sequence[Example], max_length: int) -> None:
        pieces: list[np.ndarray[Any, Any]] = []
        self.prompt_lengths = np.zeros(len(examples), np.int32)
        self.truncated = 0
        for i, example in enumerate(examples):
            prompt, answer = backbone.encode_chat(example.context), backbone.encode_answer(example.answer)
            if len(prompt) + len(answer) > max_length:
                self.truncated += 1
                answer = answer[: max(1, max_length - min(len(prompt), max_length // 2))]
                prompt = prompt[-(max_length - len(answer)) :]
            pieces.append(np.array(prompt + answer, np.int32))
            self.prompt_lengths[i] = len(prompt)
        self.ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        self.ids = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, i: int) -> tuple[np.ndarray[Any, Any], int]:
        """(token ids, how many of them are prompt)."""
        start = 0 if i == 0 else self.ends[i - 1]
        return self.ids[start : self.ends[i]], int(self.prompt_lengths[i])

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify all rows and their order."""
        digest = hashlib.sha256()
        for array in (self.ids, self.ends, self.prompt_lengths):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def length(self, i: int) -> int:
        return int(self.ends[i] - (0 if i == 0 else self.ends[i - 1]))


@dataclass(frozen=True)
class Batch:
    """Rows ready for a forward: packed into one sequence (`position_ids` restart at each row), or
    padded on the right.

    Attributes:
        inputs: keyword arguments of the model.
        places: (n,) flat positions whose next token is a label. targets: (n,) those tokens.
        is_answer: (n,) whether they belong to an answer. weights: (n,) 1 for answer tokens,
            `prompt_weight` for the prompt's.
        tokens: real tokens in the batch.
        apart: lengths of packed rows that attend one by one (`packed_attention`); None if the model
            masks them, or they are padded.
    """

    inputs: dict[str, Tensor]
    places: Tensor
    targets: Tensor
    is_answer: Tensor
    weights: Tensor
    tokens: int
    packed: bool
    apart: tuple[int, ...] | None


def make_batch(
    rows: Sequence[tuple[np.ndarray[Any, Any], int]],
    prompt_weight: float,
    may_pack: bool,
    backbone: Backbone,
    longest_apart: int = 0,
) -> Batch:
    """Lay rows out for one forward, without padding if they attend apart, or the model packs
    exactly and the batch is short.

    Args:
        prompt_weight: of a prompt token in the loss; at 0 the prompt has no labels.
        may_pack: whether the model masks packed rows by itself (`packs_exactly`).
        longest_apart: the longest row that the model can be given to attend by itself (`attend_by_row`).
    """
    lengths = [len(ids) for ids, _ in rows]
    apart = max(lengths) <= longest_apart
    packed = apart or (may_pack and sum(lengths) <= max(PACKED_TOKENS, lengths[0]))
    stride = max(lengths)
    places, targets, is_answer = [], [], []
    for i, (ids, prompt_length) in enumerate(rows):
        first = 0 if prompt_weight else max(0, prompt_length - 1)
        start = sum(lengths[:i]) if packed else i * stride
        places.append(np.arange(first, len(ids) - 1) + start)
        targets.append(ids[first + 1 :])
        is_answer.append(np.arange(first + 1, len(ids)) >= prompt_length)
    if packed:
        positions = np.concatenate([np.arange(n) for n in lengths])
        arrays = {"input_ids": np.concatenate([ids for ids, _ in rows])[None], "position_ids": positions[None]}
    else:
        ids = np.full((len(rows), stride), backbone.tokenizer.pad_token_id, np.int64)
        mask = np.zeros_like(ids)
        for i, (row, _) in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        arrays = {"input_ids": ids, "attention_mask": mask}
    device = backbone.device
    answer = torch.from_numpy(np.concatenate(is_answer)).to(device)
    return Batch(
        inputs={name: torch.from_numpy(array.astype(np.int64)).to(device) for name, array in arrays.items()},
        places=torch.from_numpy(np.concatenate(places)).to(device),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)).to(device),
        is_answer=answer,
        weights=torch.where(answer, 1.0, prompt_weight),
        tokens=sum(lengths),
        packed=packed,
        apart=tuple(lengths) if apart else None,
    )


def token_losses(model: Callable[..., Any], backbone: Backbone, batch: Batch) -> Tensor:
    """NLL of every label of the batch, (n,), in nats."""
    inputs: dict[str, Any] = dict(batch.inputs)
    if batch.packed:
        inputs["logits_to_keep"] = batch.places  # the output head runs only where there are labels
    inputs = backbone.accepted(inputs)
    with packed_rows(batch.apart), only_at(batch.places, batch.inputs["input_ids"].numel()):
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)
    if "logits_to_keep" not in inputs:
        logits = logits[batch.places]
    return token_nll(logits.float(), batch.targets)


def mean_answer_loss(
    model: Callable[..., Any], backbone: Backbone, rows: TokenRows, longest_apart: int = 0
) -> float:
    """Mean NLL per answer token over all rows, in nats; the model is used as it stands.
    longest_apart: see `make_batch`."""
    nll, tokens = answer_losses(model, backbone, rows, longest_apart)
    return float(nll.sum() / max(tokens.sum(), 1))


def answer_losses(
    model: Callable[..., Any], backbone: Backbone, rows: TokenRows, longest_apart: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(n,) NLL of each row's answer, summed over its tokens, in nats; (n,) how many tokens these are."""
    nll, tokens = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    may_pack = packs_exactly(backbone)
    for numbers in _by_size(rows, PACKED_TOKENS):
        pairs = [rows.row(i) for i in numbers]
        batch = make_batch(pairs, 0.0, may_pack, backbone, longest_apart)
        losses = token_losses(model, backbone, batch).double().cpu().numpy()
        counts = [len(ids) - max(1, prompt) for ids, prompt in pairs]  # the very first token has nothing to be predicted from
        tokens[numbers] = counts
        nll[numbers] = np.bincount(np.repeat(np.arange(len(pairs)), counts), losses, len(pairs))
    return nll, tokens


def packs_exactly(backbone: Backbone) -> bool:
    """Whether rows packed side by side give this model the same logits as alone (tried once, on two
    tiny rows).

    Transformers separates packed rows wherever position ids restart. Architectures without position
    ids (ALiBi) or with their own masks do not; they are padded instead.
    """
    known: bool | None = getattr(backbone, "_packs_exactly", None)
    if known is None:
        known = _try_packing(backbone)
        backbone._packs_exactly = known  # type: ignore[attr-defined]
    return known


@torch.no_grad()
def _try_packing(backbone: Backbone) -> bool:
    if "position_ids" not in backbone.accepted({"position_ids": None}):
        return False
    ids = torch.tensor([[5, 6, 7, 8, 9, 6, 5]], device=backbone.device) % backbone.config.get_text_config().vocab_size
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]], device=backbone.device)
    try:
        packed = backbone.model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 3:].float()
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    alone = backbone.model(input_ids=ids[:, 3:], use_cache=False).logits.float()
    return bool(
        (packed - alone).abs().max()
        <= 2e-2 * alone.abs().max().clamp(min=1e-3) * (backbone.dtype != torch.float32) + 1e-4
    )


def _by_size(rows: TokenRows, tokens: int) -> Iterator[list[int]]:
    """Row numbers in groups of about `tokens` tokens, similar lengths together."""
    group: list[int] = []
    size = 0
    for i in sorted(range(len(rows)), key=rows.length):
        if group and size + rows.length(i) > tokens:
            yield group
            group, size = [], 0
        group.append(i)
        size += rows.length(i)
    if group:
        yield group
