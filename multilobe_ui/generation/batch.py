"""Several answers decoded together, whoever asked for them and whatever their lobes.

One thread runs a batch that never ends: a request joins it at the next step and leaves it when its
answer is done (continuous batching: Yu et al. 2022, Orca, OSDI). A token for eight chats costs
little more than a token for one, because a small batch waits for the weights to come from memory
and for Python, not for arithmetic.

    lengths     tokens of each row in the cache; rows end together at the right, what is left of a shorter row is padding
    fair turns  at most `CHUNK` tokens of prompts are read between two steps of those who are being answered

Rows do not see each other, but a product of eight rows is rounded otherwise than one of a single
row: where two tokens are all but equally likely, a greedy answer may turn with who else is there.
So it is for shared servers, where many ask at once. Requests with a mixer weigh lobes anew at every
token, and some bases keep states that cannot be put under each other; these run alone, in the
thread that asks.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.backbone import pad_left
from ..base.fast import is_plain
from ..base.fast.cache import keeps_all_tokens, new_cache
from ..lobes.bank import LobeBank
from ..lobes.weights import Mix
from .decode import Request, Row, next_tokens, stream_tokens

MOST_ROWS = 16
CHUNK = 256
"""Tokens of prompts that are read at once while others are being answered."""
END = None
HAND_OUT_SECONDS = 0.03
"""Least time between two hand-outs to one reader: nobody reads more than thirty times a second. The
first token is handed out at once."""
HAND_OUTS_A_SECOND = 100
"""Most hand-outs to all readers together, but for first tokens. Every one wakes a thread that takes
the interpreter from the one that decodes: eight readers who were woken for every other token took a
twentieth of its time."""
GATHERING_SECONDS = 0.002
"""So long is waited for more requests when there was none: prompts that come together are read together."""
IDLE_SECONDS = 5.0
"""After so long without a request the thread ends; the next request starts another."""


_BATCHES: weakref.WeakSet[RunningBatch] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Let no thread compute while the interpreter goes: Python would end it inside torch, and that
    ends in an abort."""
    for batch in list(_BATCHES):
        batch._end()


class _Row(Row):
    """An answer whose tokens somebody reads in another thread."""

    def __init__(self, request: Request, bank: LobeBank) -> None:
        super().__init__(request, bank.backbone)
        self.left = threading.Event()
        """Whoever asked has gone."""
        self.out: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
        """Tokens, then END; or an error instead of the rest."""
        self._ready: list[int] = []
        self._handed_out = 0.0

    @property
    def over(self) -> bool:
        return super().over or self.left.is_set()

    def hand_out(self, token: int, now: float, apart: float) -> None:
        """Hand a token out with those before it if the last hand-out was `apart` seconds ago."""
        self._ready.append(token)
        if now - self._handed_out >= apart:
            self._handed_out = now
            self.out.put(self._ready)
            self._ready = []

    def close(self, last: BaseException | None = END) -> None:
        """Hand out what is left, and the end, or an error in its place."""
        if self._ready:
            self.out.put(self._ready)
        self.out.put(last)


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
        self._reading: list[_Row] = []
        self._reading_cache: Any = None
        """Of those who are being read, once it has begun; and how many tokens of it are read."""
        self._tokens_read = 0
        self._rows: list[_Row] = []
        self._cache: Any = None
        self._lengths: list[int] = []
        self._mix = Mix.of({})
        self._sees: Tensor | None = None
        self._takes_scores: bool | None = None
        self._ending = False
        _BATCHES.add(self)

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
            with self._bank.memory.hold(tuple(request.weights)):
                while (tokens := row.out.get()) is not END:
                    if isinstance(tokens, BaseException):
                        raise tokens
                    yield from tokens
        finally:
            row.left.set()

    def _end(self) -> None:
        with self._lock:
            self._ending, thread = True, self._thread
            self._lock.notify()
        if thread is not None:
            thread.join(IDLE_SECONDS)

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
            while not (self._rows or self._reading or self._waiting or self._ending):
                if not self._lock.wait(IDLE_SECONDS) and not self._waiting:
                    self._thread = None
                    return False
            if not (self._rows or self._reading):
                self._lock.wait_for(lambda: self._ending, GATHERING_SECONDS)
            if self._ending:
                return False
            while not self._reading_is_full():
                self._reading.append(self._waiting.popleft())
            return True

    def _reading_is_full(self) -> bool:
        """Short prompts are read together, as if each were as long as the longest of them; a long
        one is read alone."""
        if not self._waiting or len(self._rows) + len(self._reading) >= self._most:
            return True
        together = [*self._reading, self._waiting[0]]
        longest = max(len(row.request.ids) for row in together)
        return bool(self._reading) and (longest * len(together) > CHUNK or self._reading_cache is not None)

    def _read(self) -> None:
        """Read the newcomers' prompts, of a long one a chunk while others wait for their next
        token; then they join."""
        for row in [row for row in self._reading if row.over]:
            self._reading.remove(row)
            row.close()
        rows, device = self._reading, self._bank.backbone.device
        if not rows:
            self._reading_cache = None
            return
        if self._reading_cache is None:
            rows.sort(key=_lobes_of)  # those on one lobe next to each other: they can be multiplied together
            self._reading_cache, self._tokens_read = new_cache(self._bank.backbone.config), 0
        ids, mask = pad_left([row.request.ids for row in rows], self._bank.backbone.tokenizer.pad_token_id, device)
        first, length = self._tokens_read, ids.shape[1]
        end = min(first + CHUNK, length) if self._rows else length
        inputs: dict[str, Any] = {} if bool(mask.all()) else {"attention_mask": mask[:, :end]}
        output = self._bank.run(
            _mix_of(rows), input_ids=ids[:, first:end], position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, first:end],
            past_key_values=self._reading_cache, use_cache=True, logits_to_keep=1, **inputs,
        )  # fmt: skip
        self._tokens_read = end
        if end < length:
            return
        self._join(rows, self._reading_cache)
        self._reading, self._reading_cache = [], None
        self._draw(rows, output.logits[:, -1].float())
        self._leave()

    def _step(self) -> None:
        """One token for everybody."""
        self._leave()
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
        if min(self._lengths) < max(self._lengths):
            inputs["attention_mask"] = self._mask()
        output = self._bank.run(self._mix, **inputs)
        self._lengths = [length + 1 for length in self._lengths]
        logits = output.logits[:, -1].float()
        self._draw(self._rows, logits)
        self._leave()

    def _mask(self) -> Tensor:
        """What a new token of each row sees: its own row, and not the padding before it.

        Where the base takes it, what is added to scores, (rows, 1, 1, tokens) with 0 or -inf: while
        nobody joins or leaves, each step's is the front of the same one. Else (rows, tokens) with 1
        or 0, of which transformers makes the other in every step.
        """
        longest = max(self._lengths) + 1
        if self._takes_scores is None:
            self._takes_scores = takes_score_masks(self._bank)
        if self._sees is None or self._sees.shape[-1] < longest:
            device, room = self._bank.backbone.device, longest + (CHUNK if self._takes_scores else 0)
            padding = longest - 1 - torch.tensor(self._lengths, device=device)[:, None]
            sees = torch.arange(room, device=device) >= padding
            self._sees = score_mask(sees, self._bank.backbone.dtype) if self._takes_scores else sees.long()
        return self._sees[..., :longest]

    def _draw(self, rows: Sequence[_Row], logits: Tensor) -> None:
        """Give out the rows' next tokens."""
        drawn = next_tokens(rows, logits)
        now, apart = time.monotonic(), max(HAND_OUT_SECONDS, len(self._rows) / HAND_OUTS_A_SECOND)
        for row, token in zip(rows, drawn, strict=True):
            if token is not None:
                row.hand_out(token, now, apart)

    def _fail(self, error: BaseException) -> None:
        for row in {*self._rows, *self._reading}:
            row.close(error)
        self._rows, self._lengths, self._cache, self._reading, self._reading_cache = [], [], None, [], None
        self._sees, self._mix = None, Mix.of({})

    # ---- the cache --------------------------------------------------------------------------------------------------------

    def _join(self, rows: Sequence[_Row], cache: Any) -> None:
        """Put the newcomers' cache under that of the batch, padded on the left to one length."""
        lengths = [len(row.request.ids) for row in rows]
        if not self._rows:
            self._cache = cache
        else:
            longest = max(*lengths, *self._lengths)
            for ours, new in zip(self._cache.layers, cache.layers, strict=True):
                ours.keys = torch.cat([_padded(ours.keys, longest), _padded(new.keys, longest)])
                ours.values = torch.cat([_padded(ours.values, longest), _padded(new.values, longest)])
        self._rows = [*self._rows, *rows]
        self._lengths = [*self._lengths, *lengths]
        self._keep(sorted(range(len(self._rows)), key=lambda i: _lobes_of(self._rows[i])))  # as in `_read`

    def _leave(self) -> None:
        """Take those out whose answers are over."""
        over = [row for row in self._rows if row.over]
        if over:
            self._keep([i for i, row in enumerate(self._rows) if row not in over])
            for row in over:
                row.close()

    def _keep(self, places: Sequence[int]) -> None:
        """Keep these rows, in this order, without the padding that only others made necessary."""
        self._sees = None
        before, rows = max(self._lengths), len(self._rows)
        self._rows, self._lengths = [self._rows[i] for i in places], [self._lengths[i] for i in places]
        self._mix = _mix_of(self._rows) if places else Mix.of({})
        if not places:
            self._cache = None
            return
        cut = before - max(self._lengths)
        if list(places) == list(range(rows)):
            return
        index = torch.tensor(places, device=self._bank.backbone.device)
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[index, :, cut:], layer.values[index, :, cut:]


def _mix_of(rows: Sequence[_Row]) -> Mix:
    """Each row's own weights; all rows under the same ones are cheaper to run."""
    weights = [row.request.weights for row in rows]
    return Mix.of(weights[0]) if all(weight == weights[0] for weight in weights) else Mix.rows(weights)


def _lobes_of(row: _Row) -> tuple[str, ...]:
    return tuple(row.request.weights)


def _padded(states: Tensor, length: int) -> Tensor:
    """(rows, heads, tokens, size) with zeros on the left up to `length` tokens; a mask hides them."""
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))


def can_batch(bank: LobeBank) -> bool:
    """Whether caches of this base can be put under each other: plain keys and values of all tokens,
    no windows, no states."""
    return all(map(keeps_all_tokens, new_cache(bank.backbone.config).layers))


def score_mask(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows, tokens) of booleans → (rows, 1, 1, tokens): what is added to the scores of one new
    token a row."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -torch.inf)[:, None, None]


@torch.inference_mode()
def takes_score_masks(bank: LobeBank) -> bool:
    """Whether the base takes a `score_mask` in place of a mask of ones and zeros, and means the
    same: tried on three tokens.

    Bases that work out more from the mask than who sees whom (ALiBi's distances) do not.
    """
    if is_plain():
        return False
    device, found = bank.backbone.device, list[Tensor]()
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]], device=device) % bank.backbone.config.get_text_config().vocab_size
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]], device=device)
    positions = torch.tensor([[0, 0, 1], [0, 1, 2]], device=device)
    for last in (mask, score_mask(mask.bool(), bank.backbone.dtype)):
        cache = new_cache(bank.backbone.config)
        for here, shown in ((slice(0, 2), mask[:, :2]), (slice(2, 3), last)):
            try:
                inputs = {"input_ids": ids[:, here], "position_ids": positions[:, here], "attention_mask": shown}
                output = bank.model(**bank.backbone.accepted(inputs | {"past_key_values": cache, "use_cache": True}))
            except Exception:  # a base that cannot read it raises whatever its own code raises
                return False
        found.append(output.logits[:, -1].float())
    return torch.allclose(found[0], found[1], atol=1e-4, rtol=1e-3)
