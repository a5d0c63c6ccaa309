"""The same functions as transformers and PEFT have, in less time.

Each trick is a probe and a patch: where the probe finds that the outcome would differ, or that
there is nothing to gain, the model is left alone, and the report says why. With MULTILOBE_PLAIN=1
in the environment none is applied.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .cache import roomy_layers
from .linear import pack, products_at_hand
from .modules import call_directly, fuse_norms, lay_out
from .report import Report, Trick, is_plain, tried

__all__ = ["Report", "Trick", "for_every_tree", "for_serving", "for_training", "is_plain"]


def for_every_tree(model: nn.Module) -> Report:
    """Prepare the weights of a frozen base, once: all module trees over them, serving or training,
    gain by it."""
    return Report(
        (
            tried("matrices laid out column after column", lay_out, model, "no float32 matrices on a CPU"),
            tried(
                "weights packed in half precision", pack, model,
                "float16 does not hold them, they take too much memory, or this torch has no FBGEMM",
            ),
        )
    )  # fmt: skip


def for_serving(model: nn.Module) -> Report:
    """Prepare a module tree that answers. Whoever replaces the forward of a linear layer has done
    so before."""
    return Report(
        (
            tried("linear layers without a Python frame", products_at_hand, model, "no plain linear layers"),
            tried("norms computed by torch", fuse_norms, model, "no RMS norms that equal torch's own"),
            tried("modules called directly", call_directly, model, "every module has a call of its own"),
            tried("KV cache with room to grow", roomy_layers, model, "its layers keep windows or states"),
        )
    )


def for_training(model: Any) -> Report:
    """Prepare a PEFT model with a fresh LoRA, in evaluation mode."""
    from .attention import attend_by_row
    from .functions import lean_norms
    from .lora import leave_out_unlabelled, make_lean  # peft: not for those who only serve

    longest = [0]

    def by_row(model: Any) -> int:
        longest[0] = attend_by_row(model.get_base_model())
        return int(longest[0] > 0)

    tricks = (
        tried("LoRA layers in one function", make_lean, model, "no plain LoRA layers"),
        tried("norms in one function", lean_norms, model, "no frozen float32 RMS norms that equal torch's own"),
        tried("LoRA layers left out at unlabelled tokens", leave_out_unlabelled, model, "every layer serves others' tokens"),
        tried("packed rows that attend alone", by_row, model, "not on a CPU with SDPA, or the logits would differ"),
    )
    return Report(tricks, longest[0])
