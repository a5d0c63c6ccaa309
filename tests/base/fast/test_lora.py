"""The lean LoRA layer, held against PEFT's own: outputs, gradients, dropout, and which layers it leaves alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.base.fast import lora as lean_lora
from multilobe_ui.base.fast.lora import LeanLinear, keep_mask, make_lean

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def wrapped(backbone: Backbone, **lora: Any) -> Any:
    """A PEFT model in training mode whose matrices are all random, none zero."""
    torch.manual_seed(5)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(copy.deepcopy(backbone.model), LoraConfig(**settings | lora))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.2)
    return model.train()


def lora_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def run(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of a loss over them by parameter."""
    logits = model(input_ids=tiny.numbers(2, 9)).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(one: Any, other: Any, **tolerance: float) -> None:
    (logits, gradients), (expected, wanted) = run(one), run(other)
    torch.testing.assert_close(logits, expected, **tolerance)
    assert gradients.keys() == wanted.keys() and any(g.abs().max() > 1e-3 for g in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, **tolerance)


@pytest.mark.parametrize(
    ("architecture", "lora"),
    [
        ("llama", {}),
        ("llama-tied", {"use_rslora": True}),  # attention with biases
        ("gpt2", {"fan_in_fan_out": True}),  # Conv1D: transposed weights, with biases
        ("llama", {"target_modules": ["lm_head", "v_proj"], "rank_pattern": {"v_proj": 6}}),
    ],
)
def test_outputs_and_gradients_are_those_of_peft(
    base_folder: Callable[..., Path], architecture: str, lora: dict[str, Any]
) -> None:
    backbone = Backbone.from_pretrained(base_folder(architecture), device="cpu")
    for module in backbone.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # GPT-2's own
    plain, lean = wrapped(backbone, **lora), wrapped(backbone, **lora)
    assert make_lean(lean) == len(lora_layers(lean)) > 1 and make_lean(lean) == 0
    assert_alike(lean, plain, **CLOSE)
    assert lean.state_dict().keys() == plain.state_dict().keys()


class Masked(nn.Module):
    """A dropout that drops what it is told to, in PEFT's place for it."""

    def __init__(self, keep: Tensor, kept: float) -> None:
        super().__init__()
        self.factor = keep / kept

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_dropout_is_on_the_input_of_a_alone(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, lean = wrapped(backbone, lora_dropout=0.3), wrapped(backbone, lora_dropout=0.3)
    assert make_lean(lean) == 14
    masks: list[Tensor] = []

    def recording(x: Tensor, dropout: float) -> tuple[Tensor, float]:
        keep, kept = keep_mask(x, dropout)
        masks.append(keep)
        return keep, kept

    monkeypatch.setattr(lean_lora, "keep_mask", recording)
    logits, gradients = run(lean)
    order: list[str] = []  # of the layers in the forward
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, layer in lora_layers(plain).items()
    ]
    with torch.no_grad():
        plain(input_ids=tiny.numbers(2, 9))
    for hook in hooks:
        hook.remove()
    _, kept = keep_mask(torch.zeros(4), 0.3)
    for name, keep in zip(order, masks, strict=True):
        lora_layers(plain)[name].lora_dropout["default"] = Masked(keep.view(2, 9, -1), kept)
    expected, wanted = run(plain)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5)
    assert not torch.equal(masks[0], masks[1])  # q_proj and k_proj read the same input, each with its own dropout
    lean.eval()
    plain.eval()
    for layer in lora_layers(plain).values():
        layer.lora_dropout["default"] = nn.Identity()
    with torch.no_grad():
        ids = tiny.numbers(2, 9)
        torch.testing.assert_close(lean(ids).logits, plain(ids).logits, **CLOSE)
    assert len(masks) == 14  # none was drawn in evaluation mode


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5, 0.97])
def test_elements_are_dropped_independently_and_as_often_as_asked(dropout: float) -> None:
    torch.manual_seed(0)
    x = torch.zeros(501, 401)
    keep, kept = keep_mask(x, dropout)
    assert keep.shape == x.shape and keep.dtype == x.dtype and set(keep.unique().tolist()) == {0.0, 1.0}
    assert kept == pytest.approx(1 - dropout, abs=2**-17)

    def as_often(values: Tensor, probability: float) -> bool:
        """Within five standard deviations."""
        spread = math.sqrt(probability * (1 - probability) / values.numel())
        return abs(float(values.mean()) - probability) < 5 * spread

    assert as_often(keep, kept)
    flat = keep.flatten()
    for shift in (1, 2, 3, 4, 401):  # four neighbours come out of one draw
        pairs = (flat[shift:] * flat[:-shift])[:: 2 * shift]
        assert as_often(pairs, kept**2)
    assert not torch.equal(keep, keep_mask(x, dropout)[0])
    torch.manual_seed(0)
    assert torch.equal(keep, keep_mask(x, dropout)[0])


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5])
def test_masks_of_any_size(size: int) -> None:
    assert keep_mask(torch.zeros(size), 0.5)[0].shape == (size,)
    assert keep_mask(torch.zeros(size), 1e-9)[0].tolist() == [1.0] * size
    assert keep_mask(torch.zeros(size), 1 - 1e-9)[1] > 0


def test_what_is_special_stays_with_peft(backbone: Backbone) -> None:
    biased = Backbone("biased", with_biases(backbone.model), backbone.tokenizer)
    assert make_lean(wrapped(backbone, use_dora=True)) == make_lean(wrapped(biased, lora_bias=True)) == 0
    assert make_lean(wrapped(biased)) == 14
    hooked = wrapped(backbone)
    first, *others = lora_layers(hooked).values()
    first.base_layer.register_forward_hook(lambda module, inputs, output: output + 1.0)
    assert make_lean(hooked) == len(others) and not isinstance(first, LeanLinear)


def with_biases(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(torch.zeros(module.out_features), requires_grad=False)
    return model


def test_mixed_precision_and_adapters_switched_off_are_left_to_peft(base_folder: Callable[..., Path]) -> None:
    half = Backbone.from_pretrained(base_folder(), device="cpu", dtype="bfloat16")
    plain, lean = wrapped(half), wrapped(half)
    assert make_lean(lean) == 14
    assert_alike(lean, plain, rtol=0, atol=0)
    full = Backbone.from_pretrained(base_folder(), device="cpu")
    plain, lean = wrapped(full), wrapped(full)
    make_lean(lean)
    with torch.autocast("cpu", torch.bfloat16):
        assert_alike(lean, plain, rtol=0, atol=0)
    ids = tiny.numbers(2, 9)
    with torch.no_grad(), lean.disable_adapter():
        assert torch.equal(lean(ids).logits, full.model(ids).logits)
    with torch.no_grad():
        before = lean(ids).logits
        lean.merge_adapter()
        torch.testing.assert_close(lean(ids).logits, before, rtol=1e-4, atol=1e-5)
