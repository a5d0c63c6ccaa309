"""A lean base is the same function of the same weights."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from multilobe_ui.base.fast.modules import call_directly, fuse_norms, lay_out

COUNTS = {"llama": 5, "qwen3": 9, "gemma2": 0, "gpt2": 0}
"""Norms of two layers: two each and one at the end; Qwen 3 has two more in each attention."""


@pytest.mark.parametrize("name", COUNTS)
@torch.no_grad()
def test_a_model_with_fused_norms_is_the_same_model(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny.ARCHITECTURES[name]()).eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            torch.nn.init.normal_(module.weight)
    ids = tiny.numbers(2, 9)
    before = model(ids).logits
    assert fuse_norms(model) == COUNTS[name]
    assert torch.equal(model(ids).logits, before)
    call_directly(model)
    assert torch.equal(model(ids).logits, before)


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    class OtherRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x

    model = torch.nn.Sequential(OtherRMSNorm())
    assert fuse_norms(model) == 0
    torch.testing.assert_close(model(torch.full((1, 8), 2.0)), torch.full((1, 8), 2.0))


def test_modules_that_are_called_directly_still_heed_their_hooks() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
    x = torch.randn(2, 3, requires_grad=True)
    expected = model(x)
    call_directly(model)
    assert type(model[0]).__name__ == "Linear" and isinstance(model[0], torch.nn.Linear)
    seen: list[str] = []
    model[0].register_forward_hook(lambda *_: seen.append("after"))
    model[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    model[1].register_full_backward_hook(lambda *_: seen.append("back"))
    result = model(x)
    result.sum().backward()
    assert torch.equal(result, expected) and seen == ["before", "after", "back"]


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2"])
@torch.no_grad()
def test_a_model_that_is_laid_out_anew_is_the_same_model(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny.ARCHITECTURES[name]()).eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    ids = tiny.numbers(2, 9)
    before = model(ids).logits
    turned = lay_out(model)
    layers = [m for m in model.modules() if type(m) is torch.nn.Linear]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert turned == sum(m.weight.stride(0) == 1 for m in layers) == len(layers)
    assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])
    torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-5)
