"""What all training loops share: the learning rate's course, one descent, and the best state so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..errors import MultiLobeError

State = TypeVar("State")


def schedule(step: int, steps: int, warmup_fraction: float) -> float:
    """Factor on the peak learning rate: linear warm-up, then a cosine that reaches zero after the
    last step."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, way_out: str, step: int, max_norm: float = 1.0) -> None:
    """One optimizer step down `loss`, the gradients of each parameter group clipped to a norm.

    Args:
        way_out: what a person can do where the loss explodes. step: counted from 0, for the message.

    Raises:
        MultiLobeError: a gradient is not finite; nothing has been changed.
    """
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for group in optimizer.param_groups:
        norm = torch.nn.utils.clip_grad_norm_(group["params"], max_norm)
        if not bool(torch.isfinite(norm)):
            raise MultiLobeError(f"The loss is no longer a finite number at step {step + 1}. {way_out}")
    optimizer.step()


class Best(Generic[State]):
    """The state with the lowest held-out loss so far.

    Args:
        copy: makes a copy of the present state. loss: of that state; infinite where it was not measured.

    Attributes:
        loss: the lowest. state: what had it. since: offers that were no better, one after the other.
    """

    def __init__(self, copy: Callable[[], State], loss: float = math.inf) -> None:
        self._copy = copy
        self.loss, self.state, self.since = loss, copy(), 0

    def offer(self, loss: float, least_gain: float = 0.0) -> None:
        """The present state has this loss: keep it if it is lower by more than `least_gain`."""
        self.since += 1
        if loss < self.loss - least_gain:
            self.loss, self.state, self.since = loss, self._copy(), 0
