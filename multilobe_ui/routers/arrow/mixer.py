"""Arrow: every adapted layer weighs the lobes for every token by the lobes' own singular vectors;
nothing is trained (Ostapenko et al. 2024, arXiv:2405.11157).

    p(l) = first right singular vector of B_l A_l, the direction of input that lobe l amplifies most
    w(token, layer, :) = softmax over the k largest |x . p(l)| / T          x: the layer's own input for that token

PEFT finds p by 15 power iterations, which stop short where two singular values are close; here it
is exact, by a QR and the SVD of an r x r matrix. Ranks and targets may differ: in a layer that a
lobe does not adapt, it has no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...lobes.bank import LobeBank
from ...lobes.deltas import Matrices
from ...lobes.weights import LayerMix
from ...settings import check

TOP_K = 3
"""PEFT's default number of lobes that mix in a layer."""


def prototypes(matrices: Matrices) -> dict[str, Tensor]:
    """(in,) of unit length for each module: the first right singular vector of B A; its sign is arbitrary.

    B A = B (Q R)ᵀ with A's rows orthogonalised: Aᵀ = Q R. The right singular vectors of B Rᵀ are
    those of R_B Rᵀ, r x r; times Q they are B A's.
    """
    found = {}
    for module, (a, b) in matrices.items():
        q, r = torch.linalg.qr(a.float().t())
        r_b = torch.linalg.qr(b.float(), mode="r").R
        _, _, right = torch.linalg.svd(r_b @ r.t())
        found[module] = q @ right[0]
    return found


@dataclass(frozen=True, eq=False)
class ArrowMixer:
    """Arrow over lobes of the bank (see `mixing.Mixer`).

    Attributes:
        lobes: ids. directions: per module (in, lobes), zeros for a lobe that does not adapt it.
            absent: per module that not all adapt, (lobes,) True for those that do not.
        top_k: lobes that mix in a layer; None all. temperature: PEFT's router_temperature.
    """

    lobes: tuple[str, ...]
    directions: Mapping[str, Tensor]
    absent: Mapping[str, Tensor]
    top_k: int | None = TOP_K
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1, or None for all lobes")
        check(self.temperature > 0, "temperature", self.temperature, "above 0")

    @classmethod
    def of(
        cls, bank: LobeBank, lobes: tuple[str, ...], top_k: int | None = TOP_K, temperature: float = 1.0
    ) -> ArrowMixer:
        """Raises LobeError if the bank lacks a lobe, AdapterError if one cannot be read."""
        found = [bank.derived(lobe, "arrow", prototypes) for lobe in lobes]
        directions, absent = {}, {}
        for module in bank.layers(lobes):
            present = [own.get(module) for own in found]
            some = next(p for p in present if p is not None)
            directions[module] = torch.stack([torch.zeros_like(some) if p is None else p for p in present], 1)
            if any(p is None for p in present):
                absent[module] = torch.tensor([p is None for p in present], device=some.device)
        return cls(lobes, directions, absent, top_k, temperature)

    def weigh(self, module: str, x: Tensor) -> Tensor:
        """Weights (batch, tokens, lobes) in one layer from its input (batch, tokens, in)."""
        direction = self.directions[module]
        scores = (x.to(direction.dtype) @ direction).abs_() / self.temperature
        absent = self.absent.get(module)
        if absent is not None:
            scores = scores.masked_fill(absent, -torch.inf)
        if self.top_k is not None and self.top_k < len(self.lobes):
            kept = scores.topk(self.top_k, dim=-1)
            return torch.zeros_like(scores).scatter_(-1, kept.indices, kept.values.softmax(-1))
        return scores.softmax(-1)

    def start(self) -> ArrowRun:
        return ArrowRun(self)


class ArrowRun:
    """One text under Arrow. There is one KV cache only, which the caller keeps."""

    def __init__(self, mixer: ArrowMixer) -> None:
        self.mixer = mixer
        self._seen: list[Tensor] = []

    def __call__(self, bank: LobeBank, *, given: Tensor | None = None, **inputs: Any) -> Any:
        """See `mixing.MixerRun`; a token is weighed by itself, whatever is given."""
        seen: list[Tensor] = []

        def weigh(module: str, x: Tensor) -> Tensor:
            weights = self.mixer.weigh(module, x)
            seen.append(weights)
            return weights

        output = bank.run(LayerMix(self.mixer.lobes, weigh), **inputs)
        self._seen = seen
        return output

    @property
    def weights(self) -> Tensor | None:
        """(batch, tokens, layers, lobes) of the last call, without layers that saw only some of its
        tokens (an output head)."""
        if not self._seen:
            return None
        most = max(weights.shape[1] for weights in self._seen)
        return torch.stack([weights for weights in self._seen if weights.shape[1] == most], 2)
