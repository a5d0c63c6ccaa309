"""Generation: a prompt in, tokens out, one at a time, under given lobe weights.

The decode loop keeps a KV cache and runs the bank once a token. It knows nothing of routers:
whoever calls has already decided the weights. Rows of a batch are independent: each has its own
weights, sampling and end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..base.backbone import Backbone, Messages, pad_left
from ..base.fast.cache import new_cache
from ..errors import ConfigError
from ..lobes.bank import LobeBank
from ..lobes.mixers import Mixer, MixerRun
from ..lobes.weights import Mix
from ..settings import SamplingConfig

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Request:
    """One answer to generate.

    Attributes:
        ids: prompt token ids, as `prepare` gives them.
        weights: lobe id → weight; {} is the base model.
        sampling: how tokens are drawn.
        stop: set it from any thread and the answer ends after the token under way.
        mixer: weighs the lobes anew for every token; `weights` then count for nothing. All requests
            of a batch have the same.
        watch: called with the weights (layers, lobes) under which each token was drawn, before the
            token is given out; lobes are in the mixer's order. Only where there is a mixer.
    """

    ids: Sequence[int]
    weights: Mapping[str, float]
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    stop: threading.Event = field(default_factory=threading.Event)
    mixer: Mixer | None = None
    watch: Callable[[Tensor], None] | None = None


def prepare(backbone: Backbone, messages: Messages, max_new_tokens: int) -> tuple[list[int], list[Mapping[str, str]]]:
    """Prompt token ids and the messages that they hold: the oldest turns are dropped until prompt
    and answer fit.

    System messages and the last turn stay. Up to half of the context is kept free for the answer.

    Raises:
        ConfigError: there is no message, or the last one alone is longer than the context.
    """
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ConfigError(
            "There is nothing to answer: the last message must be a question with at least one character."
        )
    room = backbone.context_length - min(max_new_tokens, backbone.context_length // 2)
    kept = list(messages)
    while len(ids := backbone.encode_chat(kept)) > room:
        turns = [i for i, m in enumerate(kept[:-1]) if m["role"] != "system"]
        if not turns:
            raise ConfigError(
                f"The prompt has {len(ids)} tokens; {backbone.name} reads {backbone.context_length} in all, "
                f"{room} of them before the answer. Shorten it."
            )
        first = turns[0]
        # a question leaves together with its answer, so that the conversation still alternates
        last = first + 1 if first + 1 < len(kept) - 1 and kept[first + 1]["role"] == "assistant" else first
        del kept[first : last + 1]
    return ids, kept


def generate_tokens(bank: LobeBank, requests: Sequence[Request]) -> Iterator[list[int | None]]:
    """Decode a batch; yields, for every step, each row's next token id, or None for rows that have ended.

    An end-of-turn token ends its row and is not yielded. Greedy rows of a batch give the tokens
    that they would give alone.

    Raises:
        ConfigError: requests of one batch have different mixers, or only some have one.
    """
    lobes = dict.fromkeys(lobe for r in requests for lobe in (r.weights if r.mixer is None else r.mixer.lobes))
    with bank.memory.hold(tuple(lobes)):  # two chats under a budget for one lobe would read theirs anew for every token
        yield from _decoded(bank, requests)


def _decoded(bank: LobeBank, requests: Sequence[Request]) -> Iterator[list[int | None]]:
    backbone, mix, run = bank.backbone, Mix.rows([r.weights for r in requests]), _started(requests)
    if len(requests) == 1:
        mix = Mix.of(requests[0].weights)
    ids, mask = pad_left([r.ids for r in requests], backbone.tokenizer.pad_token_id, backbone.device)
    rows = [Row(request, backbone) for request in requests]
    cache = new_cache(backbone.config)
    padded = bool((mask == 0).any())
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    while True:
        inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "logits_to_keep": 1}
        if padded:
            inputs["attention_mask"] = mask
        # inference_mode is entered and left for each step: a generator must not leave it switched
        # on between its tokens
        with torch.inference_mode():
            inputs |= {"past_key_values": cache, "use_cache": True}
            output = bank.run(mix, **inputs) if run is None else run(bank, **inputs)
            logits = output.logits[:, -1].float()
        tokens = next_tokens(rows, logits)
        for i, (request, token) in enumerate(zip(requests, tokens, strict=True)):
            if token is not None and run is not None and run.weights is not None and request.watch is not None:
                request.watch(run.weights[i, -1].float().cpu())
        if all(row.ended for row in rows):
            return
        yield tokens
        if all(row.over for row in rows):
            return
        pad = backbone.tokenizer.pad_token_id
        ids = torch.tensor([[pad if token is None else token] for token in tokens], device=backbone.device)
        # a row that has ended runs along: its places must not leave a table of learned positions
        positions = (positions[:, -1:] + 1).clamp(max=backbone.context_length - 1)
        if padded:
            mask = torch.cat([mask, mask.new_ones(len(requests), 1)], dim=1)


def _started(requests: Sequence[Request]) -> MixerRun | None:
    """The run of the batch's mixer, if it has one."""
    mixer = requests[0].mixer
    if any(r.mixer is not mixer for r in requests):
        raise ConfigError("The answers of one batch must have the same mixer, or none. Ask for them one after another.")
    return None if mixer is None else mixer.start()


def stream_tokens(bank: LobeBank, request: Request) -> Generator[int, None, None]:
    """One answer's token ids, decoded alone."""
    yield from (token for (token,) in generate_tokens(bank, [request]) if token is not None)


def stream_text(bank: LobeBank, request: Request) -> Iterator[str]:
    """Pieces of one answer's text as they become certain (a piece never ends inside a character)."""
    piece = TextPieces(bank.backbone)
    for token in stream_tokens(bank, request):
        if text := piece.add(token):
            yield text
    if text := piece.rest():
        yield text


def generate_text(bank: LobeBank, requests: Sequence[Request]) -> list[str]:
    """Whole answers, the rows decoded together in one batch."""
    rows: list[list[int]] = [[] for _ in requests]
    for tokens in generate_tokens(bank, requests):
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.append(token)
    return [bank.backbone.decode(row).strip() for row in rows]


class TextPieces:
    """Turns a stream of token ids into a stream of text.

    A token may hold part of a character, and its spacing may depend on its neighbours: so the
    tokens since the last safe point are decoded again, and what is new is given out once it does
    not end in half a character.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._decode = backbone.decode
        self._ids: list[int] = []
        self._given = ""

    def add(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT) or len(text) <= len(self._given):
            return ""
        new, self._given = text[len(self._given) :], text
        last = self._decode([token])
        if (new.endswith((" ", "\n")) or len(self._ids) > 64) and last and REPLACEMENT not in last:
            # a safe point: keep the last token, which says whether the next begins with a space
            self._ids, self._given = [token], last
        return new

    def rest(self) -> str:
        return self._decode(self._ids)[len(self._given) :]


class Sampler:
    """Draws one token from logits (1, vocabulary); its random numbers are its own, so a seed fixes
    one answer only."""

    def __init__(self, config: SamplingConfig, device: torch.device) -> None:
        self._greedy = config.greedy or config.temperature < 1e-6  # so cold that logits overflow
        self.is_plain = self._greedy and config.repetition_penalty == 1.0
        """The likeliest token is drawn, whatever went before."""
        self._processors = LogitsProcessorList()
        if config.repetition_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
        if not self._greedy:
            if config.temperature != 1.0:
                self._processors.append(TemperatureLogitsWarper(config.temperature))
            if config.top_k:
                self._processors.append(TopKLogitsWarper(config.top_k))
            if config.top_p < 1.0:
                self._processors.append(TopPLogitsWarper(config.top_p))
            self._generator = torch.Generator("cpu")
            if config.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(config.seed)

    def draw(self, logits: Tensor, seen: Sequence[int]) -> int:
        if self._processors:
            ids: Any = torch.tensor([list(seen)], device=logits.device)
            logits = self._processors(ids, logits)
        if self._greedy:
            return _likeliest(logits)[0]
        # drawn on the CPU: the same seed gives the same answer on every device
        return int(torch.multinomial(logits.softmax(-1).cpu(), 1, generator=self._generator))


class Row:
    """One answer on its way.

    Attributes:
        seen: ids of the prompt and of the answer so far. limit, made: tokens of the answer, at most
            and so far.
        ended: the base has emitted a stop token, or nobody wants more.
    """

    def __init__(self, request: Request, backbone: Backbone) -> None:
        self.request, self.sampler = request, Sampler(request.sampling, backbone.device)
        self.seen, self.stop_ids = list(request.ids), backbone.stop_ids
        self.limit = min(request.sampling.max_new_tokens, backbone.context_length - len(request.ids))
        self.made = 0
        self.ended = False

    @property
    def over(self) -> bool:
        return self.ended or self.made >= self.limit or self.request.stop.is_set()


def next_tokens(rows: Sequence[Row], logits: Tensor) -> list[int | None]:
    """Draw each row's next token from logits (rows, vocabulary) and note it there; None for rows
    that have ended."""
    # the likeliest tokens of all rows in one go: one kernel and one copy to Python instead of one
    # for each row
    likeliest: list[int] = []
    if any(row.sampler.is_plain for row in rows):
        likeliest = _likeliest(logits)
    tokens: list[int | None] = [None] * len(rows)
    for i, row in enumerate(rows):
        if row.over:
            row.ended = True
            continue
        if row.sampler.is_plain:
            token = likeliest[i]
        else:
            token = row.sampler.draw(logits[i : i + 1], row.seen)
        row.ended = token in row.stop_ids
        if not row.ended:
            tokens[i] = token
            row.seen.append(token)
            row.made += 1
    return tokens


def _likeliest(logits: Tensor) -> list[int]:
    """Place of the largest logit of each row, the first of equals. On a CPU numpy finds it in a
    tenth of torch's time."""
    places: list[int] = (logits.numpy() if logits.device.type == "cpu" else logits).argmax(-1).tolist()
    return places
