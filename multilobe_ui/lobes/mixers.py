"""Mixers: weights over lobes that are worked out anew for every token, while the base reads or writes it.

A `Mixer` is settled and may be shared by any number of answers and threads; what one answer needs
while it grows (a second KV cache, the weights of the last call) lives in the `MixerRun` that
`start` gives. X-LoRA (`xlora`) and Arrow (`arrow`) are mixers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from .bank import LobeBank


class MixerRun(Protocol):
    """One sequence, or batch of sequences, under a mixer; for one thread, from its first token on."""

    @property
    def weights(self) -> Tensor | None:
        """(batch, tokens, layers, lobes) of the last call's tokens, layers as in `LobeBank.layers`;
        None before the first."""

    def __call__(self, bank: LobeBank, *, given: Tensor | None = None, **inputs: Any) -> Any:
        """One forward of the base under the token weights: arguments and result as of `LobeBank.run`.

        With use_cache the next call goes on where this one ended; the caller keeps the base's own
        past_key_values as always.

        Args:
            given: (batch, tokens) True for tokens of a prompt, which are known all at once: they
                may be weighed by what follows them in the prompt. None means all tokens of the
                first call with use_cache, and no token in any other.
        """


class Mixer(Protocol):
    """A way to weigh lobes token by token."""

    @property
    def lobes(self) -> tuple[str, ...]:
        """Ids in the bank, in the order of the weights' last dimension."""

    def start(self) -> MixerRun:
        """A run for a sequence that is about to begin."""


def runner(bank: LobeBank, mixer: Mixer) -> Callable[..., Any]:
    """The bank under a mixer as one function of a model's inputs, each call a sequence of its own:
    for losses and scores."""

    def run(**inputs: Any) -> Any:
        return mixer.start()(bank, **inputs)

    return run


def mean_weights(weights: Tensor, first: int = 0, last: int | None = None) -> Tensor:
    """(lobes,) averaged over layers and over tokens `first` to `last` of a single row's weights (1,
    tokens, layers, lobes)."""
    return weights[0, first:last].float().mean((0, 1))
