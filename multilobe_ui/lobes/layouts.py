"""How weights over lobes are laid out over rows and tokens, and how a layer's delta is computed
under each layout.

    Shared      (lobes,)                        the same for every token
    ByRow       (batch, lobes)                  for each row
      Grouped                                   one lobe a row, one token each: rows are gathered by lobe
      InRuns                                    one lobe a row, many tokens: neighbouring rows of a lobe are multiplied together
    ByToken     (batch, tokens, lobes)
    ByLayer     (batch, tokens, layers, lobes)
    FromInputs  asked of each layer's own input while the call runs

`call_under` chooses; nobody else looks at the shape of weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterError
from .deltas import Plan, Product, Stack
from .weights import LayerMix, Mix

MANY_TOKENS = 8
"""Tokens a row from which rows with one lobe each have products of their own, lobe by lobe."""
STRETCHED_AT_ONCE = 64
"""Most tokens whose weights per layer are stretched over the ranks of all layers at once: quick
while decoding, but of a long prompt it would take more memory than the layers' own activations."""


def call_under(plan: Plan, mix: Mix | LayerMix, inputs: Inputs, device: torch.device) -> Call:
    """The call for a mix; the one for the last token, if that does."""
    if isinstance(mix, LayerMix):
        return FromInputs(plan, inputs, mix.weigh)
    last = mix.last_call
    if isinstance(last, Call) and not torch.is_grad_enabled() and last.serves(plan, inputs):
        return last
    call = call_of(plan, mix.weights.to(device), inputs)
    if call.is_quick:
        vars(mix)["last_call"] = call  # last: another thread may run with it from here on
    return call


def call_of(plan: Plan, weights: Tensor, inputs: Inputs) -> Call:
    """The call for weights in one of the shapes of `Mix`: what is to be decided about their layout
    is decided here."""
    if weights.ndim == 1:
        return Shared(plan, inputs, weights)
    if weights.ndim == 4:
        return ByLayer(plan, inputs, weights)
    if weights.ndim == 3 and inputs.tokens > 1:
        return ByToken(plan, inputs, weights)
    if weights.ndim == 3:
        return ByRow(plan, inputs, weights[:, 0])
    if inputs.tokens >= MANY_TOKENS and _one_lobe_a_row(weights):
        return InRuns(plan, inputs, weights)
    if inputs.tokens == 1 and weights.device.type == "cpu" and not torch.is_grad_enabled():
        groups = Groups.of(weights)
        if groups is not None:
            return Grouped(plan, inputs, weights, groups)
    return ByRow(plan, inputs, weights)


def _one_lobe_a_row(weights: Tensor) -> bool:
    """Whether products lobe by lobe do for weights (batch, lobes); there is no gradient through them."""
    if torch.is_grad_enabled() or weights.shape[1] < 2:
        return False
    return not bool(((weights != 0).sum(1) > 1).any())


@dataclass(frozen=True)
class Inputs:
    """What a call is given: `rows` of `tokens` each, and for which of them the output head runs, as
    transformers takes it."""

    rows: int
    tokens: int
    logits_to_keep: int | Tensor = 0

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Inputs:
        """From the arguments of a model's forward."""
        tokens = arguments.get("input_ids")
        if tokens is None:
            tokens = arguments["inputs_embeds"]
        rows, length = tokens.shape[:2]
        return cls(rows, length, arguments.get("logits_to_keep", 0))

    def are_like(self, other: Inputs) -> bool:
        """Tensors are compared by identity."""
        same = self.rows == other.rows and self.tokens == other.tokens
        return same and self.logits_to_keep is other.logits_to_keep

    @property
    def kept(self) -> slice | Tensor:
        """Tokens on which an output head runs that does not see all of them."""
        if isinstance(self.logits_to_keep, int):
            return slice(-self.logits_to_keep, None)
        return self.logits_to_keep


@dataclass(frozen=True)
class Groups:
    """Rows of one lobe each, put together by lobe: a product of each lobe with its own rows, not of
    every lobe with every row.

    Attributes:
        size: rows that a lobe has room for.
        order: (lobes * size,) the row at each place, where there is nobody any row; None if the
            rows lie so already.
        places: (batch,) where each row is; None likewise.
        weights: (lobes, size, 1); None if all are one.
    """

    size: int
    order: Tensor | None
    places: Tensor | None
    weights: Tensor | None

    @classmethod
    def of(cls, weights: Tensor) -> Groups | None:
        """From (batch, lobes); None where a row has several lobes, or to gather the rows would cost
        more than it saves."""
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


class Call(ABC):
    """One forward call under weights: adds each layer's delta, and works out each layout of weights
    only once.

    Attributes:
        stacks: the lobes' matrices by layer.
        is_quick: tokens in one long row can be multiplied by the same weights: one token a row, or
            one mix for all. What is worked out for such a call serves the next tokens of the same chats.
    """

    by_place = True
    """Weights differ by row or token, so a layer needs to see rows and tokens apart."""
    is_quick = False

    def __init__(self, plan: Plan, inputs: Inputs) -> None:
        self.plan, self.stacks, self.inputs = plan, plan.stacks, inputs

    def serves(self, plan: Plan, inputs: Inputs) -> bool:
        """Whether another call under the same weights needs what this one did."""
        return self.plan is plan and self.inputs.are_like(inputs)

    @cached_property
    def products(self) -> Mapping[str, Product]:
        """By layer, for the tokens of chats, with all decided that is to be decided. Empty for
        calls that are not quick."""
        return {}

    @cached_property
    def is_grouped(self) -> bool:
        """Whether x (rows, tokens, in) lies in the groups of `products` as it comes."""
        return self.inputs.rows == 1

    def add_in_groups(self, product: Product, x: Tensor, output: Tensor) -> Tensor:
        """A layer's output (rows, tokens, out) with its delta of x (rows, tokens, in), in place."""
        a, b, scale = product
        hidden = torch.bmm(x.reshape(len(a), -1, a.shape[1]), a)
        if scale is not None:
            hidden.mul_(scale)
        output.view(len(a), -1, b.shape[2]).baddbmm_(hidden, b)
        return output

    def add_delta(self, name: str, stack: Stack, x: Tensor, output: Tensor) -> Tensor:
        """The layer's output (..., out) with its delta of x (..., in): changed in place where that
        is possible."""
        if x.ndim > 2 or not self.by_place:
            return self._add(name, stack, x, output)
        shape = self.inputs.rows, self.inputs.tokens, -1  # some layers see the tokens of all rows in one long row
        if len(x) != self.inputs.rows * self.inputs.tokens:
            raise AdapterError(f"{name} sees only some tokens (an expert?), so its LoRA cannot be weighted by row or token.")
        return self._add(name, stack, x.view(shape), output.view(shape)).view(output.shape)

    def _add(self, name: str, stack: Stack, x: Tensor, output: Tensor) -> Tensor:
        dtype = stack.dtype
        hidden = torch.mm(x.reshape(-1, stack.n_in).to(dtype), stack.a)
        scale = self._scale(name, stack, x)
        if scale is not None and scale.ndim == 3:
            hidden = (hidden.view(*x.shape[:-1], -1) * scale).view(hidden.shape)
        elif scale is not None:
            hidden = hidden * scale
        if output.dtype is dtype and output.is_contiguous():  # without a temporary of its size
            output.view(-1, stack.n_out).addmm_(hidden, stack.b)
            return output
        return (output.to(dtype) + torch.mm(hidden, stack.b).view(output.shape)).to(output.dtype)

    @abstractmethod
    def _scale(self, name: str, stack: Stack, x: Tensor) -> Tensor | None:
        """Weights stretched over the ranks, broadcastable to (batch, tokens, R), or in two
        dimensions to (batch * tokens, R); None where all are one."""


class FromInputs(Call):
    """Weights that each layer's own input gives: `weigh` as in `LayerMix`."""

    def __init__(self, plan: Plan, inputs: Inputs, weigh: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__(plan, inputs)
        self._weigh = weigh

    def _scale(self, name: str, stack: Stack, x: Tensor) -> Tensor:
        return stack.over_ranks(self._weigh(name, x))


class Weighted(Call):
    """Weights that are known before the call."""

    def __init__(self, plan: Plan, inputs: Inputs, weights: Tensor) -> None:
        super().__init__(plan, inputs)
        self.weights = weights
        without_gradient = not weights.requires_grad and not torch.is_grad_enabled()
        self.is_quick = without_gradient and (inputs.tokens == 1 or not self.by_place)
        self._scales: dict[tuple[tuple[int, int], ...], Tensor | None] = {}

    @cached_property
    def products(self) -> Mapping[str, Product]:
        if not self.is_quick:
            return {}
        at_once = self.plan.at_once.items()
        return {name: (a, b, self._stretched(self.stacks[name])) for name, (a, b, _) in at_once}

    def _scale(self, name: str, stack: Stack, x: Tensor) -> Tensor | None:
        scale = self._stretched(stack)
        if scale is not None and scale.ndim == 3 and scale.shape[1] not in (1, x.shape[1]):
            return scale[:, self.inputs.kept]  # an output head that runs on some tokens only
        return scale

    def _stretched(self, stack: Stack) -> Tensor | None:
        """The scale for all tokens; layers of the same ranks have the same."""
        if stack.ranks not in self._scales:
            self._scales[stack.ranks] = self._stretch(stack)
        return self._scales[stack.ranks]

    def _stretch(self, stack: Stack) -> Tensor | None:
        return stack.over_ranks(self.weights)


class Shared(Weighted):
    by_place = False

    def _stretch(self, stack: Stack) -> Tensor | None:
        scale = stack.over_ranks(self.weights)
        if not scale.requires_grad and bool((scale == 1).all()):
            return None
        return scale


class ByToken(Weighted):
    pass


class ByRow(Weighted):
    def _stretch(self, stack: Stack) -> Tensor | None:
        scale = stack.over_ranks(self.weights)
        if self.inputs.tokens > 1:
            return scale[:, None, :]
        return scale


class ByLayer(Weighted):
    def _stretched(self, stack: Stack) -> Tensor:
        """(batch, tokens, R), or (batch, R) while decoding."""
        tokens = self.inputs.tokens
        if tokens > 1 and self.inputs.rows * tokens > STRETCHED_AT_ONCE:
            return stack.over_ranks(self.weights[:, :, stack.layer])
        return self._all_layers[stack.layer]

    @cached_property
    def _all_layers(self) -> Sequence[Tensor]:
        """Stretched for all layers in one go."""
        scale = self.weights.flatten(-2).index_select(-1, self.plan.columns)
        scale = scale.to(next(iter(self.stacks.values())).dtype)
        if scale.shape[1] == 1:
            scale = scale[:, 0]
        split: Sequence[Tensor] = scale.split(self.plan.widths, -1)  # type: ignore[no-untyped-call]
        return split


class InRuns(ByRow):
    """A product for each run of neighbouring rows that have the same one lobe: not of every lobe
    with every row."""

    def __init__(self, plan: Plan, inputs: Inputs, weights: Tensor) -> None:
        super().__init__(plan, inputs, weights)
        rows = list(zip(weights.abs().argmax(1).tolist(), weights.sum(1).tolist(), strict=True))
        starts = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1]]
        ends = [*starts[1:], len(rows)]
        self._runs = [(start, end, *rows[start]) for start, end in zip(starts, ends, strict=True)]

    def _add(self, name: str, stack: Stack, x: Tensor, output: Tensor) -> Tensor:
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


class Grouped(ByRow):
    """Rows put together by lobe: a product of each lobe with its own rows, not of every lobe with
    every row."""

    def __init__(self, plan: Plan, inputs: Inputs, weights: Tensor, groups: Groups) -> None:
        super().__init__(plan, inputs, weights)
        self._groups = groups

    @cached_property
    def products(self) -> Mapping[str, Product]:
        return {name: (a, b, self._groups.weights) for name, (a, b, _) in self.plan.by_lobe.items()}

    @cached_property
    def is_grouped(self) -> bool:
        return self._groups.order is None and self._groups.size == 1

    def add_in_groups(self, product: Product, x: Tensor, output: Tensor) -> Tensor:
        order, places = self._groups.order, self._groups.places
        if order is None or places is None:
            return super().add_in_groups(product, x, output)
        a, b, scale = product
        hidden = torch.bmm(x.index_select(0, order).reshape(len(a), -1, a.shape[1]), a)
        if scale is not None:
            hidden.mul_(scale)
        return output.add_(torch.bmm(hidden, b).view(-1, 1, b.shape[2]).index_select(0, places))
