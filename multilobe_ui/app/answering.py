"""One answer in the chat: decided, decoded, told in events while it grows, and its cost noted,
however it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..evaluation.compare import EVENT_SECONDS, Column, decide
from ..generation.decode import TextPieces, prepare, stream_tokens
from ..model import MultiLobeModel
from ..settings import SamplingConfig
from .ledger import Cost
from .views import ChatEvent, TokenTrace


class Answering:
    """The answer to the last of some messages.

    Args:
        column: who answers. note: is told the cost once, also when the listener goes away halfway.
        together: decode it in the model's running batch, with all others.

    Raises:
        MultiLobeError: the lobe is gone, or the message empty or too long.
    """

    def __init__(
        self,
        model: MultiLobeModel,
        messages: Sequence[Mapping[str, str]],
        column: Column,
        sampling: SamplingConfig,
        stop: threading.Event | None,
        note: Callable[[Cost], None],
        together: bool = False,
    ) -> None:
        self._began = time.perf_counter()
        self._model, self._note = model, note
        ids, kept = prepare(model.backbone, messages, sampling.max_new_tokens)
        self._dropped = len(messages) - len(kept)
        self._decision = decide(model, kept, column)
        self._weights: list[Tensor] = []  # of the token that is about to come, where tokens are weighed one by one
        self._request = model.answers.request(
            kept, self._decision, sampling, mixing=column.mixing, stop=stop, watch=self._weights.append, ids=ids
        )
        self._names = {lobe.id: lobe.name for lobe in model.lobes}
        self._mixed = self._named(self._request.mixer.lobes) if self._request.mixer else []
        self._routed = self._latest = time.perf_counter()
        self._text, self._count = "", 0
        self._first_ms: float | None = None
        self._trace: list[TokenTrace] = []
        self._tokens = model.serving.tokens(self._request) if together else stream_tokens(model.bank, self._request)

    def events(self) -> Iterator[ChatEvent]:
        """First one with the decision, then the growing text, last one that is done."""
        noted, shown, pieces = False, 0.0, TextPieces(self._model.backbone)
        try:
            yield self._event()
            for token in self._tokens:
                self._take(pieces.add(token))
                if self._latest - shown >= EVENT_SECONDS:
                    shown = time.perf_counter()
                    yield self._event()
            self._latest = time.perf_counter()
            before, self._text = len(self._text), (self._text + pieces.rest()).strip()
            if self._trace and len(self._text) > before:
                self._trace[-1] = replace(self._trace[-1], text=self._trace[-1].text + self._text[before:])
            cost, noted = self._cost(cut=False), True
            self._note(cost)
            yield self._event(cost)
        finally:
            self._tokens.close()  # whoever is gone leaves the batch now, not when memory is tidied
            if not noted:  # closed by whoever listened (Stop, a page that has gone), or failed
                self._note(self._cost(cut=True))

    def _take(self, piece: str) -> None:
        """A token has come, and with it this text."""
        self._count, self._latest = self._count + 1, time.perf_counter()
        self._first_ms = self._first_ms or (self._latest - self._began) * 1000
        before, self._text = len(self._text), (self._text + piece).lstrip()
        if self._weights:
            layers = self._weights.pop()  # (layers, lobes)
            means = dict(zip(self._mixed, layers.mean(0).tolist(), strict=True))
            self._trace.append(TokenTrace(self._text[before:], means, layers.numpy()))

    def _event(self, cost: Cost | None = None) -> ChatEvent:
        """How it stands; `cost` comes with the last."""
        done = cost is not None
        seconds = (self._latest if done else time.perf_counter()) - self._routed
        return ChatEvent(
            text=self._text,
            decision=self._decision,
            done=done,
            stopped=done and self._request.stop.is_set(),
            prompt_tokens=len(self._request.ids),
            answer_tokens=self._count,
            seconds=seconds,
            tokens_per_second=self._count / seconds if self._count else 0.0,
            first_token_ms=self._first_ms,
            dropped_messages=self._dropped,
            trace=tuple(self._trace),
            cost=cost,
        )

    def _cost(self, cut: bool) -> Cost:
        """What has been done so far; `cut` where nobody waits for the rest."""
        bank, weights = self._model.bank, self._decision.weights
        return Cost.of(
            self._decision,
            self._mixed or sorted(filter(weights.get, weights), key=lambda name: -abs(weights[name])),
            self._latest - self._routed,
            first_token_ms=self._first_ms,
            prompt_tokens=0 if cut and not self._count else len(self._request.ids),  # it is read with the first token
            answer_tokens=self._count,
            resident=tuple(self._named(bank.memory.resident)),
            resident_bytes=bank.memory.resident_bytes,
            stopped=cut or self._request.stop.is_set(),
        )

    def _named(self, ids: Sequence[Any]) -> list[str]:
        return [self._names.get(id, id) for id in ids]
