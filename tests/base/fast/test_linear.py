"""Packed weights are the same weights: against float64, against transformers, and against whoever changes them."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from multilobe_ui.assets import builtin_base
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.base.fast.linear import PackedLinear, is_held, pack
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.weights import Mix

FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines
pytestmark = pytest.mark.skipif(not FBGEMM, reason="torch has FBGEMM on x86 only")


def bf16(*shape: int, seed: int = 0, size: float = 0.05) -> Tensor:
    values = size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.bfloat16().float()


def layer(n_in: int = 48, n_out: int = 40, bias: bool = False) -> nn.Linear:
    made = nn.Linear(n_in, n_out, bias)
    made.weight.data = bf16(n_out, n_in)
    return made.requires_grad_(False)


def packed(n_in: int = 48, n_out: int = 40, bias: bool = False) -> PackedLinear:
    made = layer(n_in, n_out, bias)
    assert pack(nn.Sequential(made)) == 1 and isinstance(made, PackedLinear) and made.packed is not None
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 65])
@pytest.mark.parametrize(("n_in", "n_out"), [(48, 40), (1030, 17), (3, 129)])
def test_the_product_is_that_of_float64_but_for_rounding(n_in: int, n_out: int, rows: int, bias: bool) -> None:
    made, x = packed(n_in, n_out, bias), numbers(rows, n_in)
    exact = x.double() @ made.weight.double().t() + (made.bias.double() if bias else 0)
    torch.testing.assert_close(made(x).double(), exact, atol=3e-6, rtol=1e-5)
    torch.testing.assert_close(made(x.view(1, rows, n_in)), made(x)[None], atol=0, rtol=0)


def numbers(rows: int, n_in: int) -> Tensor:
    return torch.randn(rows, n_in, generator=torch.Generator().manual_seed(rows))


def test_where_a_gradient_is_asked_for_it_is_the_plain_layer() -> None:
    made, x = packed(bias=True), numbers(5, 48).requires_grad_()
    assert torch.equal(made(x), nn.functional.linear(x, made.weight, made.bias))
    made(x).sum().backward()
    torch.testing.assert_close(x.grad, made.weight.sum(0).expand(5, -1))
    made.weight.requires_grad_()
    made(x.detach()).sum().backward()
    assert made.weight.grad is not None


@pytest.mark.parametrize("seed", range(3))
def test_what_float16_holds_is_what_numpy_says(seed: int) -> None:
    weight = bf16(4, 50, seed=seed, size=10.0 ** -(2 * seed))
    lost = np.abs(weight.numpy() - weight.numpy().astype(np.float16).astype(np.float32)).sum(1)
    held = bool((lost <= 2.0**-24 * np.abs(weight.numpy()).sum(1)).all())
    assert is_held(weight) == held == (seed < 2)


def test_weights_that_float16_does_not_hold_stay_as_they_are() -> None:
    finer, larger, row = bf16(8, 8) + 1e-4 * torch.rand(8, 8), bf16(8, 8), bf16(8, 8)
    larger[3, 3] = 70_000.0
    row[5] *= 1e-6  # a row of its own size, however large the others are
    model = nn.Sequential(*(nn.Linear(8, 8, False) for _ in range(3))).requires_grad_(False)
    for made, weight in zip(model, (finer, larger, row), strict=True):
        made.weight.data = weight
    before = model(torch.ones(1, 8))
    assert pack(model) == 0 and not any(isinstance(made, PackedLinear) for made in model)
    assert torch.equal(model(torch.ones(1, 8)), before)


def test_other_layers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Special(nn.Linear):
        pass

    special = Special(4, 4)
    special.weight.data = bf16(4, 4)
    others = [special.requires_grad_(False), layer().requires_grad_(), layer().bfloat16(), layer().to("meta")]
    assert [pack(nn.Sequential(other)) for other in others] == [0] * 4
    assert pack(nn.Sequential(layer()), most_bytes=2 * 48 * 40 - 1) == 0
    assert pack(nn.Sequential(layer()), most_bytes=2 * 48 * 40) == 1
    monkeypatch.delattr(torch, "fbgemm_pack_gemm_matrix_fp16")  # a torch that has parted with it
    assert pack(nn.Sequential(layer())) == 0


def test_whoever_changes_the_weight_gets_the_changed_layer() -> None:
    x = numbers(2, 48)
    for change in (change_dtype, load_other, copy_and_scale, store_and_read):
        made = packed()
        before = made(x)
        changed = change(made)
        exact = x.double() @ changed.weight.double().t()
        torch.testing.assert_close(changed(x.to(changed.weight.dtype)).double(), exact, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(before.double(), exact, atol=1e-3)


def change_dtype(made: Any) -> Any:
    made = made.double()
    made.weight.mul_(2)
    return made


def load_other(made: Any) -> Any:
    made.load_state_dict({"weight": bf16(40, 48, seed=5)})
    return made


def copy_and_scale(made: Any) -> Any:
    copied = copy.deepcopy(made)
    copied.weight.data.mul_(3)  # as merging a LoRA does, which nobody is told of
    return copied


def store_and_read(made: Any) -> Any:
    stored = io.BytesIO()
    torch.save(made, stored)
    read = torch.load(io.BytesIO(stored.getvalue()), weights_only=False)
    read.weight.data.mul_(3)
    return read


def test_a_twin_that_shares_the_weight_shares_the_packed_one() -> None:
    made = packed()
    twin = copy.deepcopy(made, {id(made.weight): made.weight})
    assert twin.packed is made.packed and torch.equal(twin(torch.ones(1, 48)), made(torch.ones(1, 48)))
    assert copy.deepcopy(made).packed is None and made.packed is not None


@pytest.mark.builtin
@torch.no_grad()
def test_the_builtin_base_is_packed_whole_and_says_what_transformers_says(builtin: Backbone, tmp_path: Path) -> None:
    layers = [module for module in builtin.model.modules() if isinstance(module, nn.Linear)]
    assert all(isinstance(module, PackedLinear) and module.packed is not None for module in layers)
    plain = AutoModelForCausalLM.from_pretrained(builtin_base(), dtype=torch.float32)
    ids = torch.tensor([builtin.encode_chat([{"role": "user", "content": "What does insulin do in the body?"}])])
    torch.testing.assert_close(builtin.model(ids).logits, plain(ids).logits, atol=1e-4, rtol=1e-4)
    path, bank = tiny.save_adapter(builtin.model, tmp_path / "lobe", size=0.02, r=8), LobeBank(builtin)
    bank.register("lobe", path)
    for rows in (1, 5):
        ours = bank.run(Mix.of({"lobe": 1.0}), input_ids=ids.repeat(rows, 1)).logits
        torch.testing.assert_close(
            ours, tiny.with_peft(plain, path)(ids.repeat(rows, 1)).logits, atol=2e-4, rtol=1e-4
        )
    mix = Mix.of({"lobe": 1.0})
    inputs = plain.get_input_embeddings()(ids)
    bank.run(mix, inputs_embeds=inputs)  # what is kept of a call without gradients must not serve one with them
    with torch.enable_grad():
        inputs = inputs.clone().requires_grad_()
        (ours,) = torch.autograd.grad(bank.run(mix, inputs_embeds=inputs).logits.square().mean(), inputs)
        (theirs,) = torch.autograd.grad(tiny.with_peft(plain, path)(inputs_embeds=inputs).logits.square().mean(), inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-6 * float(theirs.abs().max()) + 1e-9, rtol=1e-3)
