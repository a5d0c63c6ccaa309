"""A base model with less around its products: the same function of the same weights.

A token of a small base is half products and half Python and small kernels around them. What is done
here is done to a whole tree of modules, whatever its architecture, and only where the outcome is
the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def lay_out(model: nn.Module) -> int:
    """Lay the matrices of a float32 model on a CPU out in memory as products read them, column
    after column; returns how many.

    For batches of four to a hundred tokens, in which chats are decoded together and prompts are
    scored, MKL is a tenth faster so, and not slower for one token or in training. Nothing is copied
    for good. An embedding that is the output head too is laid out with it: to gather a prompt's
    tokens from it takes longer, a few microseconds each, and every token that is written takes a
    twentieth less.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    matrices = {id(layer.weight): layer.weight for layer in layers}
    turned = 0
    for weight in matrices.values():
        if weight.device.type == "cpu" and weight.dtype is torch.float32:
            weight.data = weight.t().contiguous().t()
            turned += 1
    return turned


def fuse_norms(model: nn.Module) -> int:
    """Let the plain RMS norms of a model be computed by torch's own; returns how many.

    Transformers writes the norm out in Python, in six operations, and a base has two or more in every layer.
    """
    norms = list(plain_rms_norms(model))
    for module, weight, epsilon in norms:
        module.forward = partial(  # type: ignore[method-assign]
            torch.rms_norm, normalized_shape=weight.shape, weight=weight, eps=epsilon
        )
    return len(norms)


@torch.inference_mode()
def plain_rms_norms(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor, float]]:
    """(module, weight, epsilon) of the RMS norms that compute, to the bit, what torch's own does.

    Whether a class is this norm (Gemma's adds 1 to its weight, others cast elsewhere) is tried on
    the weights at hand.
    """
    for module in model.modules():
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
            continue
        if not isinstance(weight, Tensor) or weight.ndim != 1:
            continue
        sample = torch.linspace(-3, 3, 8 * len(weight), device=weight.device).view(1, 8, -1).to(weight.dtype)
        try:
            same = torch.equal(module(sample), torch.rms_norm(sample, weight.shape, weight, epsilon))
        except (RuntimeError, TypeError):
            same = False
        if same:
            yield module, weight, epsilon


def call_directly(model: nn.Module) -> int:
    """Let modules without hooks go straight to their forward; returns how many.

    Torch's own way there takes two Python frames and looks for every kind of hook, at a hundred
    modules a token. A module that is given a hook later is called in torch's way again.
    """
    modules = [module for module in model.modules() if type(module).__call__ is nn.Module.__call__]
    for module in modules:
        module.__class__ = _direct(type(module))  # type: ignore[arg-type]
    return len(modules)


@cache
def _direct(kind: type[nn.Module]) -> type[nn.Module]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks:
            return nn.Module.__call__(self, *args, **kwargs)
        return self.forward(*args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
