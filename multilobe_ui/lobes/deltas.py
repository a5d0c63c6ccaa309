"""What lobes add to the linear layers of their base, in one forward call.

A `Plan` has the matrices of a set of lobes in the layouts that products need, a `Stack` for each
layer. It knows neither their weights (see `layouts`), nor the base, nor where lobes come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""A (r, in) and B (out, r), with the scaling folded into B."""
Matrices = Mapping[str, Pair]
"""A lobe's matrices by module."""
Product = tuple[Tensor, Tensor, Tensor | None]
"""a (groups, in, R), b (groups, R, out) and a scale that is broadcast to (groups, rows, R), None
where it is one: what a layer adds to groups of rows x (groups, rows, in) is ((x a) * scale) b."""


class Stack:
    """The lobes' matrices of one linear layer, in the two layouts that calls need.

    wide:  a (in, R), b (R, out): all ranks side by side, `ranks` says whose each is.
    rows:  a (lobes, in, r), b (lobes, r, out): ranks padded to the largest, for batches in which each row has one lobe.

    Attributes:
        pairs: a place for each lobe, None where it leaves the layer alone; one at least does not.
        layer: the layer's place among those adapted.
    """

    def __init__(self, pairs: Sequence[Pair | None], layer: int) -> None:
        self.layer = layer
        self.pairs = pairs
        self._present = [pair for pair in pairs if pair is not None]
        self.ranks = tuple((lobe, len(pair[0])) for lobe, pair in enumerate(pairs) if pair is not None)
        a, b = self._present[0]
        self.n_in, self.n_out, self.dtype = a.shape[1], b.shape[0], a.dtype

    @property
    def extra_bytes(self) -> int:
        """Of what is made here, of which one layout at least will be needed; a lobe alone is used
        as it is."""
        made = vars(self)
        rows = tensor_bytes(*made.get("rows", ()))
        if len(self._present) == 1:
            return rows
        wide = tensor_bytes(*(made[key] for key in ("a", "b") if key in made))
        return max(wide + rows, sum(tensor_bytes(*pair) for pair in self._present))

    @cached_property
    @torch.inference_mode(False)
    def a(self) -> Tensor:
        matrices = [a.t() for a, _ in self._present]
        return matrices[0] if len(matrices) == 1 else torch.cat(matrices, 1)

    @cached_property
    @torch.inference_mode(False)
    def b(self) -> Tensor:
        matrices = [b.t() for _, b in self._present]
        return matrices[0] if len(matrices) == 1 else torch.cat(matrices)

    @cached_property
    @torch.inference_mode(False)
    def columns(self) -> Tensor:
        """(R,): the lobe of each rank."""
        return torch.tensor([lobe for lobe, rank in self.ranks for _ in range(rank)], device=self._present[0][0].device)

    def over_ranks(self, weights: Tensor) -> Tensor:
        """(..., lobes) → (..., R): every rank has the weight of its lobe."""
        return weights.index_select(-1, self.columns).to(self.dtype)

    @cached_property
    @torch.inference_mode(False)
    def rows(self) -> tuple[Tensor, Tensor]:
        r, lobes, like = max(rank for _, rank in self.ranks), len(self.pairs), self._present[0][0]
        a, b = like.new_zeros(lobes, self.n_in, r), like.new_zeros(lobes, r, self.n_out)
        for i, pair in enumerate(self.pairs):
            if pair is not None:
                rank = len(pair[0])
                a[i, :, :rank] = pair[0].t()
                b[i, :rank] = pair[1].t()
        return a, b


class Plan:
    """What a set of lobes needs in every layer; made once for the set and kept while it is in use.

    Attributes:
        stacks: by layer, in the base's module order.
    """

    def __init__(self, lobes: Sequence[Matrices], module_order: Iterable[str]) -> None:
        touched = [m for m in module_order if any(m in matrices for matrices in lobes)]
        self.stacks = {m: Stack([matrices.get(m) for matrices in lobes], i) for i, m in enumerate(touched)}
        self._lobes = len(lobes)

    @cached_property
    def by_lobe(self) -> Mapping[str, Product]:
        """For rows that lie in groups of one lobe each."""
        return {module: (*stack.rows, None) for module, stack in self.stacks.items()}

    @cached_property
    @torch.inference_mode(False)
    def at_once(self) -> Mapping[str, Product]:
        """For rows that all pass through all lobes."""
        return {module: (stack.a[None], stack.b[None], None) for module, stack in self.stacks.items()}

    @property
    def extra_bytes(self) -> int:
        return sum(stack.extra_bytes for stack in self.stacks.values())

    @cached_property
    @torch.inference_mode(False)
    def columns(self) -> Tensor:
        """(Σ R,) where the ranks of all layers find their weight among (layers * lobes,)."""
        stacks = list(self.stacks.values())
        places = [stack.layer * self._lobes + lobe for stack in stacks for lobe, rank in stack.ranks for _ in range(rank)]
        return torch.tensor(places, device=stacks[0].a.device)

    @cached_property
    def widths(self) -> list[int]:
        """Ranks of each layer."""
        return [sum(rank for _, rank in stack.ranks) for stack in self.stacks.values()]


def tensor_bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
