"""RMS norms as one operation instead of six."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn


@torch.inference_mode()
def fuse_norms(model: nn.Module) -> int:
    """Let those RMS norms of a model that compute exactly what torch's own does be computed by it; returns how many.

    Transformers writes the norm out in Python, in six operations, and a base has two or more in every layer: a tenth of a token.
    Whether a class is this norm (Gemma's adds 1 to its weight, others cast elsewhere) is tried on the weights at hand, and only
    bit for bit the same counts.
    """
    fused = 0
    for module in model.modules():
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
            continue
        if not isinstance(weight, torch.Tensor) or weight.ndim != 1:
            continue
        norm = partial(torch.rms_norm, normalized_shape=weight.shape, weight=weight, eps=epsilon)
        sample = torch.linspace(-3, 3, 8 * len(weight), device=weight.device).view(1, 8, -1)
        sample = sample.to(weight.dtype)
        try:
            same = torch.equal(module(sample), norm(sample))
        except (RuntimeError, TypeError):
            same = False
        if same:
            module.forward = norm  # type: ignore[method-assign]
            fused += 1
    return fused
