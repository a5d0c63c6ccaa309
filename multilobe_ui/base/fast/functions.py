"""A norm and a loss for training, each as one autograd function: what torch does in a dozen passes
over memory is done in a few."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .modules import plain_rms_norms
from .report import is_plain


def lean_norms(model: nn.Module) -> int:
    """Let the frozen float32 RMS norms of a model be computed by `_RmsNorm`; returns how many."""
    norms = [
        (module, weight, epsilon)
        for module, weight, epsilon in plain_rms_norms(model)
        if weight.dtype is torch.float32 and not weight.requires_grad
    ]
    for module, weight, epsilon in norms:
        module.forward = partial(_rms_norm, weight, epsilon)  # type: ignore[method-assign]
    return len(norms)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] of every row, in nats: cross-entropy without its mean.

    Shapes: logits (n, vocabulary), targets (n,); returns (n,).
    """
    if is_plain():
        return nn.functional.cross_entropy(logits, targets, reduction="none")
    nll: Tensor = _TokenNll.apply(logits, targets)  # type: ignore[no-untyped-call]
    return nll


def _rms_norm(weight: Tensor, epsilon: float, x: Tensor) -> Tensor:
    normed: Tensor = _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return normed


class _RmsNorm(torch.autograd.Function):
    """y = w n with n = x / sqrt(mean(x²) + epsilon) over the last dimension, for frozen w (Zhang
    and Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normed: Tensor = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """dL/dx = scale (v - n mean(v n)) with v = w dL/dy."""
        normed, scale, weight = ctx.saved_tensors
        v = grad * weight
        along = torch.linalg.vecdot(v, normed).unsqueeze(-1)
        return v.addcmul_(normed, along, value=-1 / v.shape[-1]).mul_(scale), None, None


class _TokenNll(torch.autograd.Function):
    """See `token_nll`. What is kept for the gradient, exp(logits - largest), is all that is ever
    made of their size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        powers = logits - logits.amax(-1, keepdim=True)
        own = powers.gather(1, targets[:, None]).squeeze(1)
        total = powers.exp_().sum(-1)
        ctx.save_for_backward(powers, total, targets)
        return total.log() - own

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """dL/dlogits = (softmax(logits) - one-hot(targets)) dL/dnll."""
        powers, total, targets = ctx.saved_tensors
        return (powers * (grad / total)[:, None]).scatter_add_(1, targets[:, None], -grad[:, None]), None
