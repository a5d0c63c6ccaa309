"""Packed rows that attend one by one, held against each row alone: logits, gradients, and who may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.base.fast.attention import NAME, attend_by_row, packed_rows

LENGTHS = (5, 1, 7, 3)
ENDLESS = 2**31


def packed() -> dict[str, Tensor]:
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    return {"input_ids": tiny.numbers(1, sum(LENGTHS)), "position_ids": positions}


def gradients(model: Any, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("architecture", "longest"),
    [
        *((name, ENDLESS) for name in ("llama", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox", "opt", "granite")),
        *((name, 8) for name in ("mistral", "gemma3")),  # sliding windows: longer rows want a mask after all
    ],
)
def test_packed_rows_are_the_rows_alone(base_folder: Callable[..., Path], architecture: str, longest: int) -> None:
    # weights of its own, because `gradients` unfreezes them
    model: Any = Backbone.from_pretrained(base_folder(architecture), device="cpu").model
    assert attend_by_row(model) == longest and model.config._attn_implementation == NAME
    inputs = packed()
    with torch.enable_grad():
        model.requires_grad_(True)
        rows = inputs["input_ids"].split(LENGTHS, 1)
        alone = torch.cat([model(row, use_cache=False).logits for row in rows], 1)
        expected = gradients(model, alone)
        with packed_rows(LENGTHS):
            logits = model(**inputs, use_cache=False).logits
    torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)
    found = gradients(model, logits)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_lengths_all_is_as_ever(backbone: Backbone) -> None:
    model: Any = backbone.twin()
    assert attend_by_row(model) == ENDLESS and backbone.config._attn_implementation == "sdpa"
    ids, mask = tiny.numbers(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[0, 5:] = 0
    for inputs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}, packed()):
        assert torch.equal(model(**inputs, use_cache=False).logits, backbone.model(**inputs, use_cache=False).logits)
    expected = backbone.model(**packed(), use_cache=False).logits
    with packed_rows(LENGTHS):  # a model that was not asked to does not look at them
        assert torch.equal(backbone.model(**packed(), use_cache=False).logits, expected)
        with packed_rows(None):
            assert torch.equal(model(**packed(), use_cache=False).logits, expected)
    with packed_rows((sum(LENGTHS),)):  # as one row: they are looked at
        assert not torch.allclose(model(**packed(), use_cache=False).logits, expected, atol=1e-3)


@pytest.mark.parametrize(
    "architecture", ["bloom", "falcon", "falcon-alibi", "gemma2"]
)  # with attention of their own, or eager
def test_who_cannot_stays_as_it_was(base_folder: Callable[..., Path], architecture: str) -> None:
    model: Any = Backbone.from_pretrained(base_folder(architecture), device="cpu").twin()
    before = model.config._attn_implementation
    assert attend_by_row(model) == 0 and model.config._attn_implementation == before


def test_a_model_that_mixes_rows_elsewhere_stays_as_it_was(backbone: Backbone) -> None:
    model: Any = backbone.twin()
    layer = model.model.layers[1].mlp
    layer.register_forward_hook(lambda module, inputs, output: output + 1e-3 * output.cumsum(1))  # as a recurrence does
    assert attend_by_row(model) == 0 and model.config._attn_implementation == "sdpa"
