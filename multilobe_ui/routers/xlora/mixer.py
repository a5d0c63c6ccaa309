"""X-LoRA: a small head reads the plain base's hidden states and weighs the lobes for every token
and layer (Buehler and Buehler 2024, arXiv:2402.07148).

    h = last hidden state of the base without lobes          the "scaling pass"
    w(token, layer, :) = softmax(head(h(token)) / T)         dense, or over the k best only
    y = W x + sum over l of  w_l * d(l, x)                   the "mixed pass", in the bank

Options are those of PEFT's XLoraConfig, and with the same tensors the logits are the same. But both
passes keep a KV cache here, so a token costs two steps of the base however long the text is; and
the head's tensors are all that there is to save.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...base.backbone import Backbone
from ...base.fast.cache import new_cache
from ...errors import RoutingError
from ...lobes.bank import LobeBank
from ...lobes.weights import Mix
from ...settings import check

READS = ("token", "sequence", "both")
SHARED = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
"""What both passes are given."""


@dataclass(frozen=True)
class HeadShape:
    """What a scaling head is; the names in brackets are PEFT's.

    Attributes:
        depth: linear layers [xlora_depth]. size: features between them [xlora_size]. dropout:
            between them, while training [xlora_dropout_p]. bias: whether they have one.
        layerwise: weights of their own for each adapted linear layer [layerwise_scalings], else the
            same for all.
        reads: "token", each token's own hidden state, as PEFT does; "sequence", the mean one of all
            tokens so far, so that weights change little along a text; or "both" side by side. A
            prompt is known before its first token is weighed, so all of its tokens have the mean of
            the whole; what is written later never changes how a token was weighed.
        softmax: over all lobes [enable_softmax]. softmax_topk: over the `top_k` best only
            [enable_softmax_topk]. Without either the head's outputs are the weights.
        temperature: divides the outputs before a softmax [softmax_temperature; PEFT leaves it out
            of enable_softmax_topk].
        top_k: all other lobes get no weight [top_k_lora]; None keeps all.
        scale: factor on the lobes' deltas, beside the weights, which still sum to 1 [global_scaling_weight].

    Raises:
        ConfigError: a value out of range.
    """

    depth: int = 1
    size: int = 64
    dropout: float = 0.0
    bias: bool = True
    layerwise: bool = True
    reads: str = "token"
    softmax: bool = True
    softmax_topk: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        check(self.depth >= 1, "depth", self.depth, "at least 1")
        check(self.reads in READS, "reads", self.reads, f"one of {', '.join(READS)}")
        check(self.size >= 1, "size", self.size, "at least 1")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        check(self.temperature > 0, "temperature", self.temperature, "above 0")
        check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1, or None for all lobes")
        check(
            not (self.softmax and self.softmax_topk),
            "softmax_topk",
            True,
            "False where softmax is True, and vice versa",
        )
        check(not self.softmax_topk or self.top_k is not None, "top_k", self.top_k, "at least 1 for softmax_topk")


class ScalingHead(nn.Module):
    """Hidden states → weights over lobes.

    Args:
        hidden_size: of the base. lobes, layers: how many; layers counts the adapted linear layers
            (`LobeBank.layers`).
    """

    def __init__(self, hidden_size: int, lobes: int, layers: int, shape: HeadShape | None = None) -> None:
        super().__init__()
        self.hidden_size, self.lobes, self.n_layers = hidden_size, lobes, layers
        self.shape = shape = shape or HeadShape()
        parts: list[nn.Module] = []
        width = hidden_size * (2 if shape.reads == "both" else 1)
        for _ in range(shape.depth - 1):
            parts += [nn.Linear(width, shape.size, shape.bias), nn.ReLU(), nn.Dropout(shape.dropout)]
            width = shape.size
        self.inner = nn.Sequential(*parts)
        self.last = nn.Linear(width, lobes * (layers if shape.layerwise else 1), shape.bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden) → (..., layers, lobes), before temperature and softmax; one layer if not
        layerwise."""
        found: Tensor = self.last(self.inner(hidden.to(self.last.weight.dtype)))
        return found.view(*found.shape[:-1], -1, self.lobes)

    def forward(self, hidden: Tensor, top_k: int | None = None) -> Tensor:
        """Weights (batch, tokens, layers, lobes) for what `Reading` gives: (batch, tokens, hidden),
        or twice that for "both".

        Args:
            top_k: mix only the k best, made to sum to 1, whatever the head's shape says.
        """
        weights = self._weights(self.logits(hidden), top_k)
        return weights.expand(*weights.shape[:-2], self.n_layers, -1)

    def _weights(self, logits: Tensor, top_k: int | None) -> Tensor:
        shape = self.shape
        k = min(top_k or shape.top_k or self.lobes, self.lobes)
        if top_k is not None or shape.softmax_topk:
            return torch.softmax(_best(logits, k, -torch.inf) / shape.temperature, -1)
        if shape.softmax:
            logits = torch.softmax(logits / shape.temperature, -1)
        return _best(logits, k, 0.0)


def _best(values: Tensor, k: int, otherwise: float) -> Tensor:
    """The k largest along the last dimension, `otherwise` in the places of the others."""
    if k >= values.shape[-1]:
        return values
    places = values.topk(k, dim=-1).indices
    return torch.full_like(values, otherwise).scatter(-1, places, values.gather(-1, places))


@dataclass(frozen=True, eq=False)
class XLoraMixer:
    """A trained head over lobes of the bank (see `mixing.Mixer`).

    Attributes:
        head: nobody changes it any more. lobes: ids, in the order of its outputs. top_k: see
            `ScalingHead.forward`.
    """

    head: ScalingHead
    lobes: tuple[str, ...]
    top_k: int | None = None

    def __post_init__(self) -> None:
        if len(self.lobes) != self.head.lobes:
            raise RoutingError(f"The X-LoRA head weighs {self.head.lobes} lobes, not {len(self.lobes)}. Fit it again.")

    def start(self) -> XLoraRun:
        return XLoraRun(self)


class XLoraRun:
    """One text under X-LoRA: the scaling pass's own KV cache, and the weights of the last call."""

    def __init__(self, mixer: XLoraMixer) -> None:
        self.mixer = mixer
        self.weights: Tensor | None = None
        self._cache: Any = None
        self._reading = Reading(mixer.head.shape.reads)

    def __call__(self, bank: LobeBank, *, given: Tensor | None = None, **inputs: Any) -> Any:
        """See `mixing.MixerRun`.

        Raises:
            RoutingError: the lobes no longer have the layers that the head was made for. LobeError:
                one has gone.
        """
        first = inputs.get("input_ids", inputs.get("inputs_embeds"))
        if self.weights is None:
            self._check(bank)
            if given is None and inputs.get("use_cache") and first is not None:
                given = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
        if inputs.get("use_cache") and self._cache is None:
            self._cache = new_cache(bank.backbone.config)
        shared = {key: inputs[key] for key in SHARED if inputs.get(key) is not None}
        hidden = last_hidden(bank.backbone, self._cache, bank.model, **shared)
        read = self._reading(hidden, shared.get("attention_mask"), shared.get("position_ids"), given)
        self.weights = self.mixer.head(read, self.mixer.top_k)
        return bank.run(Mix(self.mixer.lobes, self.weights * self.mixer.head.shape.scale), **inputs)

    def _check(self, bank: LobeBank) -> None:
        layers = len(bank.layers(self.mixer.lobes))
        if layers != self.mixer.head.n_layers:
            raise RoutingError(
                f"The X-LoRA head was made for {self.mixer.head.n_layers} layers, but its lobes adapt {layers} now. Fit it again."
            )


def last_hidden(backbone: Backbone, cache: Any = None, twin: nn.Module | None = None, /, **inputs: Any) -> Tensor:
    """The plain base's last hidden states (batch, tokens, hidden), without gradients.

    Args:
        cache: of the tokens before, to which these are added; None for a sequence that starts here
            and needs no cache.
        twin: of the base, which is run in its place (the bank's is a little faster).
        inputs: input_ids (batch, tokens), and attention_mask and position_ids where they matter.
    """
    model: Any = twin or backbone.model
    inputs = backbone.accepted(
        inputs | ({"use_cache": False} if cache is None else {"past_key_values": cache, "use_cache": True})
    )
    with torch.no_grad():
        if model.base_model is not model:  # the output head would be the dearest layer, for nothing
            hidden: Tensor = model.base_model(**inputs).last_hidden_state
        else:
            hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
    return hidden


class Reading:
    """What a head reads of hidden states (see `HeadShape.reads`): call after call as a text grows.

    Returns: (batch, tokens, hidden), or for "both" (batch, tokens, 2 * hidden).
    """

    def __init__(self, reads: str) -> None:
        self.reads = reads
        self._sum: Tensor | None = None  # (batch, 1, hidden) over all tokens so far
        self._count: Tensor | None = None  # (batch, 1, 1)

    def __call__(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            mask: (batch, tokens so far) 0 for padding, which does not count. positions: (batch,
                tokens); rows that are packed side by side begin where they are 0, and so does the
                mean. given: (batch, tokens) True for a prompt's tokens.
        """
        if self.reads == "token":
            return hidden
        mean = self._mean(hidden, None if mask is None else mask[:, -hidden.shape[1] :], positions)
        if given is not None:
            mean = _at_the_end_of_prompts(mean, given, positions)
        return mean if self.reads == "sequence" else torch.cat([hidden, mean], -1)

    def _mean(self, hidden: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        here = torch.ones_like(hidden[..., :1]) if mask is None else mask[..., None].to(hidden.dtype)
        values = hidden * here
        total, count = values.float().cumsum(1), here.float().cumsum(1)
        if positions is not None and bool((positions[:, 1:] == 0).any()):
            # what stood before a packed row's first token is taken away again
            places = torch.arange(hidden.shape[1], device=hidden.device).expand(positions.shape)
            first = torch.where(positions == 0, places, 0).cummax(1).values[..., None]
            total = total - (total - values).gather(1, first.expand(-1, -1, total.shape[-1]))
            count = count - (count - here).gather(1, first)
        if self._sum is not None and self._count is not None:
            total, count = total + self._sum, count + self._count
        self._sum, self._count = total[:, -1:], count[:, -1:]
        return (total / count.clamp(min=1)).to(hidden.dtype)


def _at_the_end_of_prompts(mean: Tensor, given: Tensor, positions: Tensor | None) -> Tensor:
    """Running means (batch, tokens, hidden) with every prompt token's replaced by that of its
    prompt's last token."""
    ends = given.clone()
    ends[:, :-1] &= ~given[:, 1:] if positions is None else ~given[:, 1:] | (positions[:, 1:] == 0)
    length = given.shape[1]
    places = torch.arange(length, device=given.device).expand(given.shape)
    next_end = torch.where(ends, places, length - 1).flip(1).cummin(1).values.flip(1)
    source = torch.where(given, next_end, places)[..., None]
    return mean.gather(1, source.expand(-1, -1, mean.shape[-1]))
