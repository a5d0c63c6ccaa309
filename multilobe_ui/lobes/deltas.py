"""What lobes add to the linear layers of their base, in one forward call.

A `Plan` has the matrices of a set of lobes in the layouts that products need, a `Stack` for each layer; a `Call` has their
weights as well, and adds the deltas. Neither knows the base, nor where lobes come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterError

Pair = tuple[Tensor, Tensor]
"""A (r, in) and B (out, r), with the scaling folded into B."""
Matrices = Mapping[str, Pair]
"""A lobe's matrices by module."""
Product = tuple[Tensor, Tensor, Tensor | None]
"""a (groups, in, R), b (groups, R, out) and a scale that is broadcast to (groups, rows, R), None where it is one: what a layer adds
to groups of rows x (groups, rows, in) is ((x a) * scale) b."""
MANY_TOKENS = 8
"""Tokens a row from which rows with one lobe each have products of their own, lobe by lobe."""
STRETCHED_AT_ONCE = 64
"""Most tokens whose weights per layer are stretched over the ranks of all layers at once: quick while decoding, but of a long
prompt it would take more memory than the layers' own activations."""


@dataclass(frozen=True)
class Groups:
    """Rows of one lobe each, put together by lobe: a product of each lobe with its own rows, not of every lobe with every row.

    Attributes:
        size: rows that a lobe has room for.
        order: (lobes * size,) the row at each place, where there is nobody any row; None if the rows lie so already.
        places: (batch,) where each row is; None likewise.
        weights: (lobes, size, 1); None if all are one.
    """

    size: int
    order: Tensor | None
    places: Tensor | None
    weights: Tensor | None

    @classmethod
    def of(cls, weights: Tensor) -> Groups | None:
        """From (batch, lobes); None where a row has several lobes, or to gather the rows would cost more than it saves."""
        several = weights.ndim == 2 and min(weights.shape) > 1 and not weights.requires_grad
        if not several or bool(((weights != 0).sum(1) > 1).any()):
            return None
        batch, lobes = weights.shape
        lobe, rows = weights.abs().argmax(1), torch.arange(batch)
        counts = lobe.bincount(minlength=lobes)
        size = int(counts.max())
        by_lobe = lobe.argsort(stable=True)
        places = torch.empty_like(lobe)
        places[by_lobe] = rows + (torch.arange(lobes) * size - counts.cumsum(0) + counts)[lobe[by_lobe]]
        in_order = lobes * size == batch and torch.equal(places, rows)
        if not in_order and (lobes < 4 or lobes * size > 2 * batch):
            return None
        order, own = torch.zeros(lobes * size, dtype=torch.long), torch.zeros(lobes * size)
        order[places], own[places] = rows, weights.sum(1)
        all_one = bool((weights.sum(1) == 1).all())
        own_weights = None if all_one else own.view(lobes, size, 1)
        return cls(size, None, None, own_weights) if in_order else cls(size, order, places, own_weights)


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
        """Of what is made here, of which one layout at least will be needed; a lobe alone is used as it is."""
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


class Call:
    """One forward call under weights: adds each layer's delta, and works out each weight layout only once.

    Args:
        how: weights in one of the shapes of `Mix`, or what a `LayerMix` asks each layer.
    """

    def __init__(
        self,
        plan: Plan,
        how: Tensor | Callable[[str, Tensor], Tensor],
        rows_tokens: Sequence[int],
        logits_to_keep: int | Tensor,
    ) -> None:
        self._plan, self.stacks = plan, plan.stacks
        self._weigh = None if isinstance(how, Tensor) else how
        self._rows_tokens = tuple(rows_tokens)
        self._logits_to_keep = logits_to_keep
        self._kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        self._scales: dict[Any, Tensor | None] = {}
        self._layer_scales: Sequence[Tensor] = ()
        self._columns: dict[tuple[tuple[int, int], ...], Tensor] = {}
        self._runs: list[tuple[int, int, int, float]] = []
        self.groups: Groups | None = None
        """For a quick call: its rows by their lobes, where that pays."""
        # weights that differ by row or token need to see the rows and tokens apart
        self.by_place = self._weigh is not None or how.ndim > 1  # type: ignore[union-attr]
        self.is_quick = False
        """Tokens in one long row can be multiplied by the same weights: one token a row, or one mix for all. What was worked out
        for such a call serves the next tokens of the same chats."""
        self._is_one = False  # a quick call under one lobe with weight one
        if isinstance(how, Tensor):
            self.weights = how[:, 0] if how.ndim == 3 and self._rows_tokens[1] == 1 else how
            self._runs = self._runs_of(how)
            self.is_quick = not how.requires_grad and (how.ndim == 1 or self._rows_tokens[1] == 1)
            self._is_one = self.is_quick and how.shape == (1,) and float(how) == 1

    @cached_property
    def products(self) -> Mapping[str, Product]:
        """By layer, for the tokens of chats: all that is to be decided about them is decided here, once for a call and for those
        like it. Empty for calls that are not quick, and where gradients are asked for."""
        if not self.is_quick or torch.is_grad_enabled():
            return {}
        groups = self.groups
        same = self._plan.at_once if groups is None else self._plan.by_lobe
        if self._is_one or (groups is not None and groups.weights is None):
            return same
        scales = (self._scale_of_tokens(stack) if groups is None else groups.weights for stack in self.stacks.values())
        return {module: (a, b, scale) for (module, (a, b, _)), scale in zip(same.items(), scales, strict=True)}

    @cached_property
    def is_grouped(self) -> bool:
        """Whether x (rows, tokens, in) lies in the groups of `products` as it comes."""
        groups = self.groups
        return self._rows_tokens[0] == 1 if groups is None else groups.order is None and groups.size == 1

    def add_in_groups(self, product: Product, x: Tensor, output: Tensor) -> Tensor:
        """A layer's output (rows, tokens, out) with its delta of x (rows, tokens, in), in place."""
        a, b, scale = product
        order, places = (None, None) if self.groups is None else (self.groups.order, self.groups.places)
        rows = x if order is None else x.index_select(0, order)
        hidden = torch.bmm(rows.reshape(len(a), -1, a.shape[1]), a)
        if scale is not None:
            hidden.mul_(scale)
        if places is not None:
            return output.add_(torch.bmm(hidden, b).view(-1, 1, b.shape[2]).index_select(0, places))
        output.view(len(a), -1, b.shape[2]).baddbmm_(hidden, b)
        return output

    def is_like(self, plan: Plan, rows_tokens: Sequence[int], logits_to_keep: int | Tensor) -> bool:
        """Whether another call under the same weights needs what this one did."""
        same_tokens = self._rows_tokens == tuple(rows_tokens) and self._logits_to_keep is logits_to_keep
        return same_tokens and self._plan is plan

    def _runs_of(self, weights: Tensor) -> list[tuple[int, int, int, float]]:
        """(first row, end, lobe, weight) of neighbouring rows that have the same one lobe, or none; empty where a row has several,
        or so few tokens that a product for each run would cost more than all lobes' ranks for every row do."""
        few = weights.ndim != 2 or weights.shape[1] < 2 or self._rows_tokens[1] < MANY_TOKENS
        if few or torch.is_grad_enabled() or bool(((weights != 0).sum(1) > 1).any()):
            return []
        own = list(zip(weights.abs().argmax(1).tolist(), weights.sum(1).tolist(), strict=True))
        starts = [i for i, row in enumerate(own) if i == 0 or row != own[i - 1]]
        return [(start, end, *own[start]) for start, end in zip(starts, [*starts[1:], len(own)], strict=True)]

    def add_delta(self, name: str, stack: Stack, x: Tensor, output: Tensor) -> Tensor:
        """The layer's output (..., out) with its delta of x (..., in): changed in place where that is possible."""
        if x.ndim == 2 and self.by_place:  # some layers see the tokens of all rows in one long row
            if len(x) != math.prod(self._rows_tokens):
                raise AdapterError(
                    f"{name} sees only some tokens (an expert?), so its LoRA cannot be weighted by row or token."
                )
            x, wide = (t.view(*self._rows_tokens, -1) for t in (x, output))
            return self.add_delta(name, stack, x, wide).view(output.shape)
        if self._runs:
            return self._add_by_run(stack, x, output)
        dtype = stack.dtype
        hidden = torch.mm(x.reshape(-1, stack.n_in).to(dtype), stack.a)
        scale = self._scale(name, stack, x)
        if scale is not None:
            hidden = hidden * scale if scale.ndim < 3 else (hidden.view(*x.shape[:-1], -1) * scale).view(hidden.shape)
        if output.dtype is dtype and output.is_contiguous():  # without a temporary of its size
            output.view(-1, stack.n_out).addmm_(hidden, stack.b)
            return output
        return (output.to(dtype) + torch.mm(hidden, stack.b).view(output.shape)).to(output.dtype)

    def _add_by_run(self, stack: Stack, x: Tensor, output: Tensor) -> Tensor:
        output = output.contiguous()
        for start, end, lobe, weight in self._runs:
            pair = stack.pairs[lobe]
            if pair is None or not weight:
                continue
            a, b = pair
            hidden = torch.mm(x[start:end].reshape(-1, stack.n_in).to(stack.dtype), a.t())
            rows = output[start:end].view(-1, stack.n_out)
            if rows.dtype is stack.dtype:
                rows.addmm_(hidden, b.t(), alpha=weight)
            else:
                rows.copy_(torch.addmm(rows.to(stack.dtype), hidden, b.t(), alpha=weight))
        return output

    def _scale(self, name: str, stack: Stack, x: Tensor) -> Tensor | None:
        """Weights stretched over the ranks, broadcastable to (batch, tokens, R), or in two dimensions to (batch * tokens, R); None
        where all are one."""
        if self._weigh is not None:  # from this layer's own input, so it has the tokens that this layer has
            return self._over_ranks(stack, self._weigh(name, x))
        if self.weights.ndim < 4:
            scale = self._stretched(stack)
        elif math.prod(self._rows_tokens) > STRETCHED_AT_ONCE:
            scale = self._over_ranks(stack, self.weights[:, :, stack.layer])
        else:
            scale = self._stretched_by_layer(stack)
        if scale is not None and scale.ndim == 3 and scale.shape[1] not in (1, x.shape[1]):
            scale = scale[:, self._kept]  # an output head that runs on some tokens only
        return scale

    def _scale_of_tokens(self, stack: Stack) -> Tensor | None:
        """Weights over the ranks, (R,) or (batch, R), of a quick call; None where all are one."""
        return self._stretched_by_layer(stack) if self.weights.ndim == 4 else self._stretched(stack)

    def _stretched(self, stack: Stack) -> Tensor | None:
        if stack.ranks not in self._scales:
            scale = self._over_ranks(stack, self.weights)
            scale = scale[:, None, :] if scale.ndim == 2 and self._rows_tokens[1] > 1 else scale
            is_one = not scale.requires_grad and scale.ndim == 1 and bool((scale == 1).all())
            self._scales[stack.ranks] = None if is_one else scale
        return self._scales[stack.ranks]

    def _stretched_by_layer(self, stack: Stack) -> Tensor:
        """(batch, tokens, R), or (batch, R) while decoding: stretched for all layers in one go."""
        if not self._layer_scales:
            scale = self.weights.flatten(-2).index_select(-1, self._plan.columns).to(stack.dtype)
            self._layer_scales = (scale[:, 0] if scale.shape[1] == 1 else scale).split(self._plan.widths, -1)  # type: ignore[no-untyped-call]
        return self._layer_scales[stack.layer]

    def _over_ranks(self, stack: Stack, weights: Tensor) -> Tensor:
        """(..., lobes) → (..., R): every rank has the weight of its lobe."""
        if stack.ranks not in self._columns:
            columns = [i for i, rank in stack.ranks for _ in range(rank)]
            self._columns[stack.ranks] = torch.tensor(columns, device=weights.device)
        return weights.index_select(-1, self._columns[stack.ranks]).to(stack.dtype)


def tensor_bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
