"""Linear layers that read their weights in half precision without losing any of it, where no
gradient is asked for.

Most bases are published in bf16, whose eight significant bits float16 holds as well, and computed
in float32 on a CPU. FBGEMM has a product for that: it keeps float16 weights packed in the order in
which it reads them, and multiplies and sums in float32. A token of one chat is bound by the reading
of weights, which is half as much so; several tokens at once were bound by MKL's packing of the
weights, which is made anew for every product (four fifths of the time of eight rows), and is not made here.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .report import is_plain

MOST_BYTES = 2**31
"""Most memory for packed weights: those of a base with a billion parameters. They come on top of
the float32 ones, which training needs."""

product: Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x (..., in) float32, packed weight, bias (out,) or None → x Wᵀ + bias (..., out), without a gradient.

`torch.ops.quantized.linear_dynamic_fp16` computes the same and is not deprecated, but takes 12
microseconds more a call."""
product = getattr(torch, "fbgemm_linear_fp16_weight_fp32_activation", torch.nn.functional.linear)


class PackedLinear(nn.Linear):
    """A frozen `nn.Linear` with a packed second copy of its weight, for calls without gradients.

    Whoever changes the weight through the module (another device or dtype, a state dict), copies it
    or stores it, has a plain layer; a copy that shares the weight shares the packed one too.
    """

    packed: Tensor | None = None
    """A handle that torch hides in a tensor of eight bytes: never to be copied."""

    def forward(self, input: Tensor) -> Tensor:
        """input (..., in); returns (..., out)."""
        if self.packed is None or input.requires_grad or input.dtype is not torch.float32 or self.weight.requires_grad:
            return super().forward(input)
        return product(input, self.packed, self.bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        if twin.weight is self.weight:
            twin.packed = self.packed
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "packed"}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.packed = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.packed = None
        super()._load_from_state_dict(*args, **kwargs)


@torch.no_grad()
def pack(model: nn.Module, most_bytes: int = MOST_BYTES) -> int:
    """Turn the linear layers of a frozen model into PackedLinear, in place; returns how many.

    Left as they are: layers off the CPU or not in float32, whose weights float16 does not hold
    (`is_held`), all of them where this torch or this processor has no such product, or where the
    packed weights would take more than `most_bytes`.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _can_be_packed(layer.weight)]
    if 2 * sum(layer.weight.numel() for layer in layers) > most_bytes:
        return 0
    packed = 0
    for layer in layers:
        if is_held(layer.weight) and (handle := _packed(layer.weight)) is not None:
            layer.__class__ = PackedLinear
            layer.packed = handle  # type: ignore[assignment]
            packed += 1
    return packed


def product_at_hand(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What a plain linear layer computes, with its weight at hand: no Python frame and no look-ups
    for every layer and token.

    The layer must stay as it is. None for layers of other kinds, and for those whose weights
    accelerate brings only for the time of the layer's own forward.
    """
    hooked = hasattr(layer, "_hf_hook") or any(parameter.is_meta for parameter in layer.parameters(recurse=False))
    if hooked or not isinstance(layer, nn.Linear) or type(layer) not in (nn.Linear, PackedLinear) or is_plain():
        return None
    weight, bias, packed = layer.weight, layer.bias, getattr(layer, "packed", None)
    plain = partial(nn.functional.linear, weight=weight, bias=bias)
    if packed is None:
        return plain

    def without_gradient(x: Tensor) -> Tensor:
        if x.requires_grad or x.dtype is not torch.float32:
            return plain(x)
        return product(x, packed, bias)

    return without_gradient


def products_at_hand(model: nn.Module) -> int:
    """How many layers have a `product_at_hand`."""
    return sum(product_at_hand(layer) is not None for layer in model.modules())


def is_held(weight: Tensor) -> bool:
    """Whether float16 holds a float32 weight (out, in): what it loses of any row is less than
    float32 itself rounds off.

    bf16 weights are held exactly from 6e-5 to 65,504; below that float16 has a step of 6e-8.
    """
    lost = (weight - weight.half().float()).abs().sum(1)
    return bool((lost <= 2**-24 * weight.abs().sum(1)).all())


def _can_be_packed(weight: Tensor) -> bool:
    frozen = not weight.requires_grad and weight.numel() > 0
    return frozen and weight.device.type == "cpu" and weight.dtype is torch.float32


def _packed(weight: Tensor) -> Tensor | None:
    """The packed weight, or None where it cannot be had or does not do what it should."""
    sample = torch.linspace(-1, 1, weight.shape[1])[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # deprecated: see `product`
        try:
            handle: Tensor = torch.fbgemm_pack_gemm_matrix_fp16(weight)
            right = torch.allclose(product(sample, handle, None), sample @ weight.t(), atol=1e-3, rtol=1e-3)
        except (AttributeError, RuntimeError, TypeError):
            return None
    return handle if right else None
