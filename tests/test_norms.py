"""Fused RMS norms: only where they are the same function, bit for bit."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from multilobe_ui.norms import fuse_norms

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
