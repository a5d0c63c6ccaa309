"""PEFT's LoRA layer with fewer passes over memory: the same parameters, the same function, the same
gradients.

On a small base, a good part of PEFT's layer goes into what surrounds its matrix products: drawing
dropout, scaling, adding, casting, and what autograd keeps of each. Here a layer is one autograd
function whose products add in place. The modules, their parameters and their files stay PEFT's.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from .last_layer import serve_their_own_token, wanted_of
from .linear import PackedLinear


class LeanLinear(Linear):  # type: ignore[misc]
    """`peft.tuners.lora.Linear`, worked out by `_LoraProduct` where base, adapter and input are of
    one dtype."""

    serves_its_own_token = False
    """What it says at a token reaches no other token: it is worked out only at the tokens that
    `last_layer` names."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., in); returns (..., out)."""
        base, names = self.base_layer, self.active_adapters
        special = args or kwargs or self.disable_adapters or self.merged or len(names) != 1
        if special or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        a, b, dropout = self.lora_A[names[0]].weight, self.lora_B[names[0]].weight, self.lora_dropout[names[0]]
        if not x.dtype == base.weight.dtype == a.dtype == b.dtype:
            return super().forward(x)  # type: ignore[no-any-return]
        dropped = dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0
        weight = base.weight.T if self.fan_in_fan_out else base.weight
        wanted = wanted_of(x) if self.serves_its_own_token else None
        product: Tensor = _LoraProduct.apply(  # type: ignore[no-untyped-call]
            x, weight, base.bias, a, b, dropped, self.scaling[names[0]], wanted
        )
        return product


def make_lean(model: nn.Module) -> int:
    """Turn the plain LoRA layers of a PEFT model into LeanLinear, in place; returns how many.

    Left as they are: quantised and other special linear layers, variants such as DoRA, LoRA with a
    bias, and layers whose base is hooked (as accelerate does to offload weights), because nobody
    calls the base layer itself any more.
    """
    turned = 0
    for layer in model.modules():
        if type(layer) is not Linear or layer.lora_variant or any(layer.lora_bias.values()):
            continue
        base = layer.base_layer
        hooked = "forward" in vars(base) or base._forward_hooks or base._forward_pre_hooks
        if type(base) in (nn.Linear, PackedLinear, Conv1D) and not hooked:
            layer.__class__ = LeanLinear
            turned += 1
    return turned


def leave_out_unlabelled(model: nn.Module) -> int:
    """Let `last_layer.only_at` spare LeanLinear layers the tokens whose output nobody asks for;
    returns how many it may spare.

    Args:
        model: a PEFT model with a fresh LoRA (whose B are zero), in evaluation mode.
    """
    layers = [module for module in model.modules() if isinstance(module, LeanLinear)]
    fresh: list[Tensor] = [b.weight for layer in layers for b in layer.lora_B.values()]  # type: ignore[misc]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for b in fresh:  # else a B that is zero could hide that a layer reaches other tokens
            b.copy_(torch.randn(b.shape, generator=generator) / b.shape[1])
    try:
        answers = serve_their_own_token(model, layers)
    finally:
        with torch.no_grad():
            for b in fresh:
                b.zero_()
    for layer, alone in zip(layers, answers, strict=True):
        layer.serves_its_own_token = alone
    return sum(answers)


def keep_mask(x: Tensor, dropout: float) -> tuple[Tensor, float]:
    """(1 where an element of `x` is kept and 0 where it is dropped, in its dtype; the probability
    of being kept).

    On a CPU the probability is rounded to a multiple of 2^-16.
    """
    if x.device.type != "cpu":
        return torch.empty_like(x).bernoulli_(1 - dropout), 1 - dropout
    # Four 16-bit numbers from one 64-bit draw, a fifth of the cost of torch's Bernoulli numbers,
    # which take a tenth of a training
    # step; and compared in place, because numbers become floats several times faster than booleans do.
    dropped = min(round(dropout * 2**16), 2**16 - 1)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return bits[: x.numel()].ge_(dropped - 2**15).view(x.shape).to(x.dtype), 1 - dropped / 2**16


class _LoraProduct(torch.autograd.Function):
    """x Wᵀ + bias + s dropout(x) Aᵀ Bᵀ, for frozen W and bias.

    Shapes: x (..., in), W (out, in), bias (out,) or None, A (r, in), B (out, r); returns (...,
    out). With `wanted` (n,), only these rows of the flattened x are worked out; the others are
    zero, and get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, dropout: float, scaling: float,
        wanted: Tensor | None,
    ) -> Tensor:  # fmt: skip
        rows = x.reshape(-1, x.shape[-1])
        some = rows if wanted is None else rows.index_select(0, wanted)
        keep, kept = keep_mask(some, dropout) if dropout else (None, 1.0)
        seen = some if keep is None else some * keep
        low = seen @ a.T
        y = some @ w.T if bias is None else torch.addmm(bias, some, w.T)
        # scales and adds within the product: PEFT passes over y twice more
        y.addmm_(low, b.T, alpha=scaling / kept)
        ctx.save_for_backward(w, a, b, keep, seen, low, wanted)
        ctx.scaling = scaling / kept
        return _at(y, wanted, len(rows)).view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, a, b, keep, seen, low, wanted = ctx.saved_tensors
        every = grad.reshape(-1, grad.shape[-1])
        g = every if wanted is None else every.index_select(0, wanted)
        low_g = (g @ b).mul_(ctx.scaling)  # (tokens, r): scaled where it is narrow
        dx = None
        if ctx.needs_input_grad[0]:  # not below the first LoRA
            dx = g @ w
            if keep is None:
                dx.addmm_(low_g, a)
            else:
                dx.addcmul_(low_g @ a, keep)
            dx = _at(dx, wanted, len(every)).view(*grad.shape[:-1], dx.shape[-1])
        return dx, None, None, low_g.T @ seen, (g.T @ low).mul_(ctx.scaling), None, None, None


def _at(rows: Tensor, places: Tensor | None, count: int) -> Tensor:
    """(count, width), zero but for `rows` (n, width) at these places; None: they are all."""
    return rows if places is None else rows.new_zeros(count, rows.shape[1]).index_copy_(0, places, rows)
