"""The norm and the loss of training, held against transformers' and torch's own, and against numeric gradients."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch.autograd import gradcheck
from transformers import AutoModelForCausalLM

from multilobe_ui.base.fast.functions import _RmsNorm, lean_norms, token_nll


@pytest.mark.parametrize(("name", "norms"), [("llama", 5), ("qwen3", 9), ("gemma2", 0), ("gpt2", 0)])
def test_a_model_with_lean_norms_is_the_same_model(name: str, norms: int) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny.ARCHITECTURES[name]()).eval().requires_grad_(False)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            torch.nn.init.normal_(module.weight)
    x = torch.randn(2, 9, 32, requires_grad=True)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(inputs_embeds=x, use_cache=False).logits
        loss = (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()
        return logits.detach(), torch.autograd.grad(loss, x)[0]

    expected, gradient = run()
    assert lean_norms(model) == norms
    logits, found = run()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4)


def test_norms_that_learn_or_are_not_float32_are_left_alone() -> None:
    model = AutoModelForCausalLM.from_config(tiny.ARCHITECTURES["llama"]())
    assert lean_norms(model) == 0  # its weights would get no gradient
    assert lean_norms(model.requires_grad_(False).bfloat16()) == 0


def test_gradient_of_the_norm() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    assert gradcheck(lambda x: _RmsNorm.apply(x, weight, 1e-6), (x,))


def test_nll_is_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, targets = 30 * torch.randn(7, 50), torch.randint(0, 50, (7,))
    logits[0, 3], logits[1, targets[1]] = 900.0, -900.0  # exp of these is not finite
    logits.requires_grad_()
    weights = torch.linspace(-1, 1, 7)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    wanted = torch.autograd.grad((expected * weights).sum(), logits)[0]
    nll = token_nll(logits, targets)
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(torch.autograd.grad((nll * weights).sum(), logits)[0], wanted)


def test_gradient_of_the_nll() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda logits: token_nll(logits, torch.tensor([0, 5, 2, 2])), (logits,))
    assert token_nll(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)).shape == (0,)
