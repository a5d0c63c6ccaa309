"""The last layer where there are labels, and nowhere else.

Behind the last attention no token looks at another any more: what the last layer's query, output
and feed-forward products say at a token without a label is thrown away. Prompts have no labels, so
that is most of a batch. Which products these are is found out on the model at hand, by a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_WANTED: ContextVar[tuple[Tensor, int] | None] = ContextVar("multilobe_ui_wanted_tokens", default=None)


@contextmanager
def only_at(places: Tensor, tokens: int) -> Iterator[None]:
    """Within it, layers that `serve_their_own_token` are worked out at these places alone.

    Args:
        places: (n,) among the batch's tokens, row after row. tokens: how many these are, padding among them.
    """
    token = _WANTED.set((places, tokens) if len(places) < tokens else None)
    try:
        yield
    finally:
        _WANTED.reset(token)


def wanted_of(x: Tensor) -> Tensor | None:
    """Rows of the flattened x (..., in) that are wanted; None: all, also where x has only some of
    the batch's tokens already."""
    wanted = _WANTED.get()
    return wanted[0] if wanted is not None and x.numel() == wanted[1] * x.shape[-1] else None


def serve_their_own_token(model: nn.Module, layers: Sequence[nn.Module]) -> list[bool]:
    """Whether what each layer says at a token reaches the logits of that token alone.

    The last token's logits are asked, on one tiny row, for their gradient at every layer's output.
    The model must be in evaluation mode, and its weights such that nothing is multiplied by zero (a
    fresh LoRA's B must not be what lets the gradient through).
    """
    outputs: list[Any] = [None] * len(layers)

    def note(number: int, module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[number] = output

    hooks = [layer.register_forward_hook(partial(note, i)) for i, layer in enumerate(layers)]
    ids = torch.tensor([[5, 6, 7, 8, 9, 6, 5]], device=next(model.parameters()).device)
    try:
        with torch.enable_grad():
            last = model(input_ids=ids % _vocabulary(model), use_cache=False).logits[0, -1]
            seen = [i for i, output in enumerate(outputs) if output is not None and output.shape[:-1] == ids.shape]
            asked = [outputs[i] for i in seen]
            gradients = torch.autograd.grad(last.float().square().sum(), asked, allow_unused=True) if asked else ()
    finally:
        for hook in hooks:
            hook.remove()
    answers = [False] * len(layers)
    for i, gradient in zip(seen, gradients, strict=True):
        answers[i] = gradient is not None and not bool(gradient[:, :-1].any())
    return answers


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)
