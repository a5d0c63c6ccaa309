"""Several answers decoded together, whoever asked for them and whatever their lobes.

One thread runs a batch that never ends: a request joins it at the next step and leaves it when its answer is done (continuous
batching: Yu et al. 2022, Orca, OSDI). A token for eight chats costs little more than a token for one, because a small batch
waits for the weights to come from memory and for Python, not for arithmetic.

    lengths     tokens of each row in the cache; rows end together at the right, what is left of a shorter row is padding
    fair turns  at most one prompt, or `CHUNK` tokens of a long one, is read between two steps of those who are being answered

Rows do not see each other, but a product of eight rows is rounded otherwise than one of a single row: where two tokens are all but
equally likely, a greedy answer may turn with who else is there. So it is for shared servers, where many ask at once. Requests
with a mixer weigh lobes anew at every token, and some bases keep states that cannot be put under each other; these run
alone, in the thread that asks.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .bank import LobeBank, Mix
from .generation import Request, Sampler, stream_tokens

MOST_ROWS = 16
CHUNK = 256
"""Tokens of a prompt that are read at once while others are being answered."""
END = None
IDLE_SECONDS = 5.0
"""After so long without a request the thread ends; the next request starts another."""


class _Row:
    """One answer on its way."""

    def __init__(self, request: Request, bank: LobeBank) -> None:
        backbone = bank.backbone
        self.request = request
        self.sampler = Sampler(request.sampling, backbone.device)
        self.seen = list(request.ids)
        self.limit = min(request.sampling.max_new_tokens, backbone.context_length - len(request.ids))
        self.read = 0
        self.cache: Any = None
        """Its own until it joins the batch."""
        self.made = 0
        self.left = threading.Event()
        """Whoever asked has gone."""
        self.out: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        """Tokens, then END; or an error instead of the rest."""

    @property
    def over(self) -> bool:
        return self.made >= self.limit or self.request.stop.is_set() or self.left.is_set()


class RunningBatch:
    """See the module's text. Safe to use from several threads.

    Args:
        most_rows: answers at once; further requests wait for a place, in their order.
    """

    def __init__(self, bank: LobeBank, most_rows: int = MOST_ROWS) -> None:
        self._bank, self._most, self._batches = bank, most_rows, can_batch(bank)
        self._lock = threading.Condition()
        self._waiting: deque[_Row] = deque()
        self._thread: threading.Thread | None = None
        self._reading: _Row | None = None
        self._rows: list[_Row] = []
        self._cache: Any = None
        self._lengths: list[int] = []

    def tokens(self, request: Request) -> Generator[int, None, None]:
        """The answer's token ids, one at a time. Closing the iterator takes the request out of the batch.

        Raises:
            whatever the forward pass raised, for everybody who was in the batch then.
        """
        if request.mixer is not None or not self._batches:
            yield from stream_tokens(self._bank, request)
            return
        row = _Row(request, self._bank)
        with self._lock:
            self._waiting.append(row)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="decoding", daemon=True)
                self._thread.start()
            self._lock.notify()
        try:
            while (token := row.out.get()) is not END:
                if isinstance(token, BaseException):
                    raise token
                yield token
        finally:
            row.left.set()

    # ---- the thread -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._take_in():
            try:
                with torch.inference_mode():
                    self._read()
                    self._step()
            except BaseException as error:  # memory, most likely: these answers are lost, the next ones need not be
                self._fail(error)

    def _take_in(self) -> bool:
        """Wait for work; False when there has been none for a while."""
        with self._lock:
            while not (self._rows or self._reading or self._waiting):
                if not self._lock.wait(IDLE_SECONDS) and not self._waiting:
                    self._thread = None
                    return False
            if self._reading is None and self._waiting and len(self._rows) < self._most:
                self._reading = self._waiting.popleft()
            return True

    def _read(self) -> None:
        """Read the newcomer's prompt, a chunk of it while others wait for their next token; then it joins."""
        row = self._reading
        if row is None:
            return
        if row.over:
            self._reading = None
            row.out.put(END)
            return
        row.cache = row.cache if row.cache is not None else DynamicCache(config=self._bank.backbone.config)
        end = min(row.read + CHUNK, len(row.request.ids)) if self._rows else len(row.request.ids)
        piece = torch.tensor([list(row.request.ids[row.read : end])], device=self._bank.backbone.device)
        places = torch.arange(row.read, end, device=piece.device)[None]
        output = self._bank.run(
            Mix.of(row.request.weights), input_ids=piece, position_ids=places, past_key_values=row.cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        row.cache, row.read = output.past_key_values, end
        if end < len(row.request.ids):
            return
        self._reading = None
        if self._draw(row, output.logits[:, -1].float()):
            self._join(row)
        else:
            row.out.put(END)

    def _step(self) -> None:
        """One token for everybody."""
        self._leave([row.over for row in self._rows])
        if not self._rows:
            return
        device = self._bank.backbone.device
        ids = torch.tensor([[row.seen[-1]] for row in self._rows], device=device)
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": torch.tensor(self._lengths, device=device)[:, None],
            "past_key_values": self._cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        longest = max(self._lengths)
        if min(self._lengths) < longest:
            places = torch.arange(longest + 1, device=device)
            inputs["attention_mask"] = (places >= longest - torch.tensor(self._lengths, device=device)[:, None]).long()
        weights = [row.request.weights for row in self._rows]
        same = all(weight == weights[0] for weight in weights)
        output = self._bank.run(Mix.of(weights[0]) if same else Mix.rows(weights), **inputs)
        self._cache = output.past_key_values
        self._lengths = [length + 1 for length in self._lengths]
        logits = output.logits[:, -1].float()
        self._leave([not self._draw(row, logits[i : i + 1]) for i, row in enumerate(self._rows)])

    def _draw(self, row: _Row, logits: Tensor) -> bool:
        """Give out a row's next token; False if its answer is over."""
        token = None if row.over else row.sampler.draw(logits, row.seen)
        if token is None or token in self._bank.backbone.stop_ids:
            return False
        row.seen.append(token)
        row.made += 1
        row.out.put(token)
        return not row.over

    def _fail(self, error: BaseException) -> None:
        for row in [*self._rows, *([self._reading] if self._reading else [])]:
            row.out.put(error)
        self._rows, self._lengths, self._cache, self._reading = [], [], None, None

    # ---- the cache --------------------------------------------------------------------------------------------------------

    def _join(self, row: _Row) -> None:
        """Put a row's cache under those of the batch, padded on the left to one length."""
        length = len(row.request.ids)
        if not self._rows:
            self._cache = row.cache
        else:
            longest = max(length, *self._lengths)
            for ours, new in zip(self._cache.layers, row.cache.layers, strict=True):
                ours.keys = torch.cat([_padded(ours.keys, longest), _padded(new.keys, longest)])
                ours.values = torch.cat([_padded(ours.values, longest), _padded(new.values, longest)])
        row.cache = None
        self._rows.append(row)
        self._lengths.append(length)

    def _leave(self, gone: Sequence[bool]) -> None:
        """Take rows out, and with them the padding that only they made necessary."""
        if not any(gone):
            return
        for row, left in zip(self._rows, gone, strict=True):
            if left:
                row.out.put(END)
        stay = [i for i, left in enumerate(gone) if not left]
        before = max(self._lengths)
        self._rows, self._lengths = [self._rows[i] for i in stay], [self._lengths[i] for i in stay]
        if not stay:
            self._cache = None
            return
        cut = before - max(self._lengths)
        places = torch.tensor(stay, device=self._bank.backbone.device)
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[places, :, cut:], layer.values[places, :, cut:]


def _padded(states: Tensor, length: int) -> Tensor:
    """(rows, heads, tokens, size) with zeros on the left up to `length` tokens; a mask hides them."""
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))


def can_batch(bank: LobeBank) -> bool:
    """Whether caches of this base can be put under each other: plain keys and values of all tokens, no windows, no states."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=bank.backbone.config).layers)
