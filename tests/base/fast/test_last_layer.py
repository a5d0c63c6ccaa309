"""The last layer at labels alone, held against the whole of it: which layers, what they say, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.base.fast.last_layer import only_at, serve_their_own_token, wanted_of
from multilobe_ui.base.fast.lora import LeanLinear, leave_out_unlabelled, make_lean

FEED_FORWARD = {"gate_proj", "up_proj", "down_proj"}
OWN = {
    "llama": {"q_proj", "o_proj", *FEED_FORWARD},
    "gemma2": {"q_proj", "o_proj", *FEED_FORWARD},  # norms behind attention and feed-forward, a window
    "qwen3": {"q_proj", "o_proj", *FEED_FORWARD},  # norms on queries
    "gpt2": {"c_proj", "c_fc"},  # c_attn gives keys and values too; c_proj is the name of two
    "gpt_neox": {"dense", "dense_h_to_4h", "dense_4h_to_h"},
}
PLACES = torch.tensor([4, 5, 8, 15, 17])
"""Labels among two rows of nine tokens."""


def fresh(backbone: Backbone, **lora: Any) -> Any:
    """A lean PEFT model whose B are zero, in evaluation mode."""
    torch.manual_seed(5)
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | lora
    model: Any = get_peft_model(backbone.twin(), LoraConfig(**settings)).eval()  # type: ignore[arg-type]
    assert make_lean(model)
    return model


def own(model: Any) -> dict[str, LeanLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LeanLinear) and m.serves_its_own_token}


def labelled(model: Any, only: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits at the labels, and the gradients of a loss over them by parameter."""
    model.zero_grad()
    with only_at(PLACES, 18) if only else nullcontext():
        logits = model(input_ids=tiny.numbers(2, 9), use_cache=False).logits.flatten(0, 1)[PLACES]
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", OWN)
def test_at_the_labels_nothing_changes(base_folder: Callable[..., Path], architecture: str) -> None:
    backbone = Backbone.from_pretrained(base_folder(architecture), device="cpu")
    model = fresh(backbone)
    count = leave_out_unlabelled(model)
    assert {name.rsplit(".", 1)[-1] for name in own(model)} == OWN[architecture]
    assert count == len(own(model)) and all(".1." in name for name in own(model))  # of two layers, the last
    for name, parameter in model.named_parameters():
        assert ("lora_B" in name) <= (not parameter.any())  # as fresh as before
        if "lora_" in name:
            parameter.data.normal_(0, 0.2)
    logits, gradients = labelled(model, only=True)
    expected, wanted = labelled(model, only=False)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted.keys() and any(g.abs().max() > 1e-3 for g in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-4)


def test_other_tokens_are_not_worked_out(backbone: Backbone) -> None:
    model = fresh(backbone)
    assert leave_out_unlabelled(model) == 5
    seen: dict[str, int] = {}
    for name, layer in own(model).items():
        layer.register_forward_hook(lambda _m, _i, out, n=name: seen.__setitem__(n, int(out[0].any(-1).sum())))
    with only_at(PLACES, 18), torch.no_grad():
        model(input_ids=tiny.numbers(2, 9), use_cache=False)
    assert set(seen.values()) == {3}  # labels in the first row
    with torch.no_grad():
        model(input_ids=tiny.numbers(2, 9), use_cache=False)
    assert set(seen.values()) == {9}


def test_dropout_is_drawn_for_the_labels_alone(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    from multilobe_ui.base.fast import lora as lean_lora

    model, drawn = fresh(backbone, lora_dropout=0.5), []
    leave_out_unlabelled(model)
    keep_mask = lean_lora.keep_mask

    def recording(x: Tensor, dropout: float) -> tuple[Tensor, float]:
        drawn.append(len(x))
        return keep_mask(x, dropout)

    monkeypatch.setattr(lean_lora, "keep_mask", recording)
    labelled(model.train(), only=True)
    assert sorted(set(drawn)) == [5, 18] and drawn.count(5) == 5


def test_a_head_that_has_labels_alone_is_not_asked_to_choose_again(backbone: Backbone) -> None:
    model = fresh(backbone, target_modules=["lm_head", "q_proj"])
    assert leave_out_unlabelled(model) == 2 and "base_model.model.lm_head" in own(model)
    ids = tiny.numbers(1, 9)
    kept = torch.tensor([2, 3, 8])
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[:, kept]
        with only_at(kept, 9):
            found = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_b_of_zero_hides_nothing(base_folder: Callable[..., Path]) -> None:
    """Where a frozen output product is zero, only its LoRA will let later tokens see the values: it has to be asked with one."""
    model = fresh(Backbone.from_pretrained(base_folder("llama"), device="cpu"))  # weights of its own
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and name.endswith("o_proj"):
                module.base_layer.weight.zero_()
    layers = [module for module in model.modules() if isinstance(module, LeanLinear)]
    assert sum(serve_their_own_token(model, layers)) > 5  # as it stands, values seem to reach nobody
    assert leave_out_unlabelled(model) == 5


def test_outside_nothing_is_wanted_apart() -> None:
    x = torch.zeros(2, 9, 4)
    assert wanted_of(x) is None
    with only_at(PLACES, 18):
        assert wanted_of(x) is PLACES and wanted_of(x[:, :3]) is None
        with only_at(torch.arange(18), 18):
            assert wanted_of(x) is None  # all of them
        assert wanted_of(x) is PLACES
    assert wanted_of(x) is None
