"""PEFT's LoRA layer with fewer passes over memory: the same parameters, the same function, the same gradients.

On a small base, a good part of PEFT's layer goes into what surrounds its matrix products: drawing dropout, scaling, adding,
casting, and what autograd keeps of each. Here a layer is one autograd function whose products add in place. The modules, their
parameters and their files stay PEFT's.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D


class LeanLinear(Linear):  # type: ignore[misc]
    """`peft.tuners.lora.Linear`, worked out by `_LoraProduct` where base, adapter and input are of one dtype."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., in); returns (..., out)."""
        base, names = self.base_layer, self.active_adapters
        special = args or kwargs or self.disable_adapters or self.merged or len(names) != 1
        if special or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        a, b, dropout = self.lora_A[names[0]].weight, self.lora_B[names[0]].weight, self.lora_dropout[names[0]]
        if not x.dtype == base.weight.dtype == a.dtype == b.dtype:
            return super().forward(x)  # type: ignore[no-any-return]
        keep, kept = keep_mask(x, dropout.p) if dropout.training and isinstance(dropout, nn.Dropout) else (None, 1.0)
        weight = base.weight.T if self.fan_in_fan_out else base.weight
        product: Tensor = _LoraProduct.apply(  # type: ignore[no-untyped-call]
            x, weight, base.bias, a, b, keep, self.scaling[names[0]] / kept
        )
        return product


def make_lean(model: nn.Module) -> int:
    """Turn the plain LoRA layers of a PEFT model into LeanLinear, in place; returns how many.

    Left as they are: quantised and other special linear layers, variants such as DoRA, LoRA with a bias, and layers whose base is
    hooked (as accelerate does to offload weights), because nobody calls the base layer itself any more.
    """
    turned = 0
    for layer in model.modules():
        if type(layer) is not Linear or layer.lora_variant or any(layer.lora_bias.values()):
            continue
        base = layer.base_layer
        hooked = "forward" in vars(base) or base._forward_hooks or base._forward_pre_hooks
        if type(base) in (nn.Linear, Conv1D) and not hooked:
            layer.__class__ = LeanLinear
            turned += 1
    return turned


def keep_mask(x: Tensor, dropout: float) -> tuple[Tensor, float]:
    """(1 where an element of `x` is kept and 0 where it is dropped, in its dtype; the probability of being kept).

    On a CPU the probability is rounded to a multiple of 2^-16.
    """
    if x.device.type != "cpu":
        return torch.empty_like(x).bernoulli_(1 - dropout), 1 - dropout
    # Four 16-bit numbers from one 64-bit draw, a fifth of the cost of torch's Bernoulli numbers, which take a tenth of a training
    # step; and compared in place, because numbers become floats several times faster than booleans do.
    dropped = min(round(dropout * 2**16), 2**16 - 1)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return bits[: x.numel()].ge_(dropped - 2**15).view(x.shape).to(x.dtype), 1 - dropped / 2**16


class _LoraProduct(torch.autograd.Function):
    """x Wᵀ + bias + s (x ∘ keep) Aᵀ Bᵀ, for frozen W and bias.

    Shapes: x (..., in), W (out, in), bias (out,) or None, A (r, in), B (out, r), keep as x or None; returns (..., out).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, keep: Tensor | None, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        keep = None if keep is None else keep.view(rows.shape)
        seen = rows if keep is None else rows * keep
        low = seen @ a.T
        y = rows @ w.T if bias is None else torch.addmm(bias, rows, w.T)
        y.addmm_(low, b.T, alpha=scaling)  # scales and adds within the product: PEFT passes over y twice more
        ctx.save_for_backward(w, a, b, keep, seen, low)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, a, b, keep, seen, low = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        low_g = (g @ b).mul_(ctx.scaling)  # (tokens, r): scaled where it is narrow
        dx = None
        if ctx.needs_input_grad[0]:  # not below the first LoRA
            dx = g @ w
            if keep is None:
                dx.addmm_(low_g, a)
            else:
                dx.addcmul_(low_g @ a, keep)
            dx = dx.view(*grad.shape[:-1], dx.shape[-1])
        return dx, None, None, low_g.T @ seen, (g.T @ low).mul_(ctx.scaling), None, None
