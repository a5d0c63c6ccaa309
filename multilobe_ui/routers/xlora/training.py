"""Training an X-LoRA head, as a generator of records: first to know the lobes, then to answer well with them.

    1. labels     - mean over tokens and layers of log w(token, layer, own lobe), every lobe of equal weight: the base's hidden
                    states are worked out once, so a step takes milliseconds
    2. language   NLL of the answers through the bank under the head's weights, plus `label_weight` times 1

Base and lobes stay frozen. The head that did best on held-out rows is kept: by 1 while labels are learned, then by the NLL.
Last, one factor on all deltas is chosen on them (PEFT's global_scaling_weight).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...base.backbone import Backbone
from ...data.examples import Example
from ...errors import MultiLobeError, RoutingError
from ...evenly import evenly
from ...lobes.bank import LobeBank
from ...lobes.weights import Mix
from ...progress import Progress
from ...settings import XLoraSettings
from ...training.batches import TokenRows, make_batch, packs_exactly, token_losses
from ...training.lobe import schedule
from .mixer import HeadShape, Reading, ScalingHead, last_hidden

TOKENS_PER_STEP = 2048
"""Tokens in one label step."""
RECORD_EVERY = 10
"""Label steps from one held-out measurement, and record, to the next; language steps are recorded one by one."""
LANGUAGE_EVERY = 10
"""Language steps from one held-out measurement to the next."""
HELD_OUT_ROWS = 96
"""Most rows of all lobes together whose answers are measured while the language-model loss is learned."""


SCALES = (1.0, 0.95, 0.9, 0.85, 0.8)


class LabelledRow(NamedTuple):
    """A row and the lobe that it belongs to. lobe: its place among the lobes. answer: "" where it was not kept."""

    lobe: int
    prompt: str
    answer: str = ""


@dataclass(frozen=True)
class HeadFit:
    """What came out. Losses are mean NLL per answer token, in nats; None without answers.

    All is measured on held-out rows, or on the training rows if there are none.

    Attributes:
        accuracy: share of held-out prompts whose own lobe has the largest weight, averaged over their tokens and layers.
        loss: under the head. own_loss: under each row's own lobe. base_loss: under the base alone.
    """

    head: ScalingHead
    accuracy: float | None
    loss: float | None
    own_loss: float | None
    base_loss: float | None
    label_loss: float | None
    seconds: float
    stopped: bool


def train_head(
    bank: LobeBank,
    lobes: Sequence[str],
    rows: Sequence[LabelledRow],
    held_out: Sequence[LabelledRow],
    settings: XLoraSettings,
    stop: threading.Event | None = None,
) -> Generator[Progress, None, HeadFit]:
    """Train a head over `lobes` (ids in the bank).

    Args:
        rows, held_out: of any lobes; rows without an answer count in stage 1 alone. Without `held_out` the
            head is judged on `rows`. Where lobes were trained on `held_out`, losses under them flatter.
        stop: set it and the best head so far is returned after the step under way.

    Raises:
        RoutingError: no lobe, or no row, or stopped before anything was learned. LobeError: the bank lacks a lobe.
        MultiLobeError: the loss is not finite.
    """
    if not lobes or not rows:
        raise RoutingError("X-LoRA has nothing to learn from: it needs lobes with training rows. Train a lobe first.")
    run = _Run(bank, tuple(lobes), rows, held_out, settings, stop or threading.Event())
    yield from run.read_rows()
    yield from run.learn_labels()
    yield from run.learn_language()
    run.choose_scale()
    return run.result()


class _Rows:
    """Labelled rows as token ids, and what the head reads of every token.

    Attributes:
        ids: (token ids, how many of them are prompt) of every row. answered: numbers of the rows with an answer.
        hidden: (all tokens, what the head reads), float32, once `read` has run through. owner: (all tokens,) place of the row's
            lobe. weight: (all tokens,), summing to 1, a lobe's tokens together as much as any other lobe's.
        own: (all tokens,) whether it is a word of the prompt itself.
    """

    def __init__(self, backbone: Backbone, rows: Sequence[LabelledRow], max_length: int) -> None:
        examples = [Example(({"role": "user", "content": row.prompt},), row.answer) for row in rows]
        tokens = TokenRows(backbone, examples, min(max_length, backbone.context_length))
        self.ids: list[tuple[np.ndarray[Any, Any], int]] = []
        for i, row in enumerate(rows):
            ids, prompt = tokens.row(i)
            self.ids.append((ids if row.answer else ids[:prompt], prompt))
        self.lobes = [row.lobe for row in rows]
        self.answered = [i for i, row in enumerate(rows) if row.answer]
        self.lengths = [len(ids) for ids, _ in self.ids]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(int) if rows else np.zeros(0, int)
        self.hidden = torch.zeros(0)
        device = backbone.device
        counts = torch.tensor(self.lengths, device=device, dtype=torch.long)
        self.owner = torch.tensor(self.lobes, device=device, dtype=torch.long).repeat_interleave(counts)
        of_lobe = torch.bincount(self.owner).clamp(min=1).float() if rows else torch.zeros(0)
        self.weight = 1 / (of_lobe[self.owner] * len(set(self.lobes))) if rows else torch.zeros(0)
        self.own = torch.zeros(len(self.owner), dtype=torch.bool, device=device)
        for i, row in enumerate(rows):
            opening, words = backbone.encode_prompt(row.prompt)
            first = min(len(opening), self.ids[i][1] - 1)
            last = max(first + 1, min(first + len(words), self.ids[i][1]))
            self.own[self.starts[i] + first : self.starts[i] + last] = True

    def __len__(self) -> int:
        return len(self.ids)

    @torch.no_grad()
    def read(self, backbone: Backbone, reads: str) -> Iterator[None]:
        """Work out `hidden`, some rows at a time."""
        packs = packs_exactly(backbone)
        found: dict[int, Tensor] = {}
        order = sorted(range(len(self)), key=lambda i: self.lengths[i])
        for group in (order[start : start + 16] for start in range(0, len(order), 16)):
            batch = make_batch([self.ids[i] for i in group], 1.0, packs, backbone)
            hidden = last_hidden(backbone, None, **batch.inputs)
            lengths = [self.lengths[i] for i in group]
            parts = torch.split(hidden[0], lengths) if batch.packed else [hidden[j, :n] for j, n in enumerate(lengths)]
            # a copy, or every row would keep its whole batch in memory
            for i, part in zip(group, parts, strict=True):
                given = torch.arange(len(part), device=part.device)[None] < self.ids[i][1]
                found[i] = Reading(reads)(part[None].float(), given=given)[0].clone()
            yield
        if found:
            self.hidden = torch.cat([found[i] for i in range(len(self))])

    def tokens_of(self, rows: Sequence[int]) -> Tensor:
        """Places of these rows' tokens among all tokens."""
        places = [np.arange(self.starts[i], self.starts[i] + self.lengths[i]) for i in rows]
        return torch.from_numpy(np.concatenate(places)).to(self.hidden.device)


class _Run:
    """The state of one fit."""

    def __init__(
        self,
        bank: LobeBank,
        lobes: tuple[str, ...],
        rows: Sequence[LabelledRow],
        held_out: Sequence[LabelledRow],
        settings: XLoraSettings,
        stop: threading.Event,
    ) -> None:
        self.bank, self.lobes, self.settings, self.stop = bank, lobes, settings, stop
        self.began = time.perf_counter()
        most = settings.rows_per_lobe
        self.train = _Rows(bank.backbone, _evenly_by_lobe(rows, most), settings.max_length)
        self.held = _Rows(bank.backbone, _evenly_by_lobe(held_out, max(1, most // 4)), settings.max_length)
        self.packs = packs_exactly(bank.backbone)
        with _seeded(settings.seed):
            self.head = _new_head(bank, lobes, settings)
        self.head.to(bank.backbone.device)
        alone = len(lobes) == 1  # a single lobe has weight 1 whatever the head says
        self.label_steps = 0 if alone else settings.supervised_steps
        self.language_steps = 0 if alone or not self.train.answered else settings.language_steps
        self.best: dict[str, Tensor] = self._copy()
        self.stopped = False

    @property
    def steps(self) -> int:
        return self.label_steps + self.language_steps

    def read_rows(self) -> Iterator[Progress]:
        for rows in (self.train, self.held):
            for group, _ in enumerate(rows.read(self.bank.backbone, self.settings.granularity)):
                self._check_not_stopped()
                if group % 8 == 0:
                    yield Progress(0, self.steps, "Reading the rows", {})

    def _check_not_stopped(self) -> None:
        if self.stop.is_set():
            raise RoutingError("X-LoRA was stopped before it had learned anything. An earlier fit stays as it is.")

    # ---- stage 1: labels ------------------------------------------------------------------------------------------------

    def learn_labels(self) -> Iterator[Progress]:
        """All layers have the same labels, so one layer's outputs are learned and then given to every layer."""
        if not self.label_steps:
            return
        with _seeded(self.settings.seed):
            small = _one_layer(self.head)
        optimizer = torch.optim.AdamW(small.parameters(), lr=self.settings.learning_rate, weight_decay=0.01)
        random = np.random.default_rng(self.settings.seed)
        judged = self.held if len(self.held) else self.train
        best, lowest = _tensors(small), float("inf")
        for step in range(self.label_steps):
            if self.stop.is_set():
                if step < RECORD_EVERY:
                    self._check_not_stopped()
                self.stopped = True
                break
            _set_rate(optimizer, self.settings.learning_rate * schedule(step, self.label_steps, 0.05))
            drawn = random.integers(0, len(self.train.owner), TOKENS_PER_STEP)
            places = torch.from_numpy(drawn).to(self.train.hidden.device)
            small.train()
            with _seeded(self.settings.seed, step):
                loss = self._label_loss(small, self.train, places)
            _descend(optimizer, loss)
            if step % RECORD_EVERY == RECORD_EVERY - 1 or step == self.label_steps - 1:
                small.eval()
                with torch.no_grad():
                    held = float(self._label_loss(small, judged))
                if held < lowest:
                    best, lowest = _tensors(small), held
                values = {"label_loss": float(loss.detach()), "held_out_label_loss": held}
                values["accuracy"] = _accuracy(small, judged)
                yield Progress(step, self.steps, "Learning which lobe a token belongs to", values)
        small.load_state_dict(best)
        _spread(small, self.head)
        self.best = self._copy()

    def _label_loss(self, head: ScalingHead, rows: _Rows, places: Tensor | None = None) -> Tensor:
        """Cross-entropy of the dense softmax against each token's own lobe, in nats; every lobe of equal weight."""
        hidden, owner, weight = rows.hidden, rows.owner, rows.weight
        if places is not None:
            hidden, owner, weight = hidden[places], owner[places], weight[places]
        logits = head.logits(hidden) / head.shape.temperature  # (tokens, layers, lobes)
        wanted = owner[:, None].expand(logits.shape[:2])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        return (loss.view(logits.shape[:2]).mean(1) * weight).sum() / weight.sum()

    # ---- stage 2: language ------------------------------------------------------------------------------------------------

    def learn_language(self) -> Iterator[Progress]:
        if not self.language_steps or self.stop.is_set():
            self.stopped = self.stopped or self.stop.is_set()
            return
        settings, head = self.settings, self.head
        optimizer = torch.optim.AdamW(head.parameters(), lr=settings.language_rate, weight_decay=0.0)
        judged = self.held if self.held.answered else self.train
        watched = _spread_over_lobes(judged, HELD_OUT_ROWS)
        lowest = self._held_out_loss(judged, watched)
        yield self._language_record(0, {"held_out_loss": lowest, "accuracy": _accuracy(head, judged)})
        for step, numbers in enumerate(self._batches()):
            if self.stop.is_set():
                self.stopped = True
                break
            _set_rate(optimizer, settings.language_rate * schedule(step, self.language_steps, 0.05))
            head.train()
            with _seeded(settings.seed, self.label_steps + step):
                nll = self._nll(self.train, numbers, head).mean()
                label = self._label_loss(head, self.train, self.train.tokens_of(numbers))
            loss = nll + settings.label_weight * label
            if not torch.isfinite(loss):
                raise MultiLobeError(
                    f"X-LoRA's loss is no longer a finite number at step {step + 1}. Lower language_rate "
                    f"({settings.language_rate:g}) and fit again."
                )
            _descend(optimizer, loss)
            values = {"loss": float(nll.detach()), "label_loss": float(label.detach())}
            if step % LANGUAGE_EVERY == LANGUAGE_EVERY - 1 or step == self.language_steps - 1:
                held = self._held_out_loss(judged, watched)
                if held < lowest:
                    self.best, lowest = self._copy(), held
                values |= {"held_out_loss": held, "accuracy": _accuracy(head, judged)}
            yield self._language_record(step, values)
        head.load_state_dict(self.best)

    def _language_record(self, step: int, values: dict[str, float]) -> Progress:
        return Progress(self.label_steps + step, self.steps, "Learning to answer with them", values)

    def _batches(self) -> Iterator[list[int]]:
        """Row numbers of each step, lobes taking turns, a new order every time round; from the seed."""
        random = np.random.default_rng([self.settings.seed, 1])
        waiting: list[int] = []
        for _ in range(self.language_steps):
            while len(waiting) < self.settings.batch_size:
                waiting += _taking_turns(random, self.train)
            batch, waiting = waiting[: self.settings.batch_size], waiting[self.settings.batch_size :]
            yield batch

    def _nll(self, rows: _Rows, numbers: Sequence[int], head: ScalingHead | None, mix: Mix | None = None) -> Tensor:
        """NLL of every answer token of these rows, under the head's weights or (without one) under `mix`."""
        batch = make_batch([rows.ids[i] for i in numbers], 0.0, self.packs, self.bank.backbone)
        if head is not None:
            hidden = rows.hidden[rows.tokens_of(numbers)]
            if batch.packed:
                laid = hidden[None]
            else:
                laid = nn.utils.rnn.pad_sequence(
                    list(torch.split(hidden, [rows.lengths[i] for i in numbers])), batch_first=True
                )
            mix = Mix(self.lobes, head(laid) * head.shape.scale)

        def run(**inputs: Any) -> Any:
            return self.bank.run(mix, **inputs)

        return token_losses(run, self.bank.backbone, batch)

    @torch.no_grad()
    def _held_out_loss(self, rows: _Rows, numbers: Sequence[int], how: str = "head") -> float:
        """Mean NLL per answer token under the head, each row's own lobe ("own"), or the base ("base")."""
        self.head.eval()
        total = count = 0.0
        for group in _groups(rows, numbers, by_lobe=how == "own"):
            mix = Mix.of({self.lobes[rows.lobes[group[0]]]: 1.0}) if how == "own" else None
            losses = self._nll(rows, group, self.head if how == "head" else None, mix)
            total, count = total + float(losses.sum()), count + len(losses)
        return total / max(count, 1.0)

    def choose_scale(self) -> None:
        """What a mixture adds is often a little too much for rows that the lobes have not seen: the factor that is best on the
        held-out rows, for all lobes and tokens alike. Lobes that hold nothing out have seen these."""
        rows = _spread_over_lobes(self.held, HELD_OUT_ROWS) if len(self.held) else []
        if not rows or not self.language_steps:
            return
        found: dict[float, float] = {}
        for scale in SCALES:
            if self.stop.is_set():
                break
            self.head.shape = replace(self.head.shape, scale=scale)
            found[scale] = self._held_out_loss(self.held, rows)
        self.head.shape = replace(self.head.shape, scale=min(found, key=found.__getitem__, default=1.0))

    # ---- the end ----------------------------------------------------------------------------------------------------------

    def _copy(self) -> dict[str, Tensor]:
        return _tensors(self.head)

    def result(self) -> HeadFit:
        head = self.head.eval().requires_grad_(False)
        judged = self.held if len(self.held) else self.train
        rows = _spread_over_lobes(judged, HELD_OUT_ROWS) if judged.answered and not self.stop.is_set() else []
        losses = {how: self._held_out_loss(judged, rows, how) for how in ("head", "own", "base")} if rows else {}
        with torch.no_grad():
            label_loss = float(self._label_loss(head, judged))
        return HeadFit(
            head=head,
            accuracy=_accuracy(head, judged),
            loss=losses.get("head"),
            own_loss=losses.get("own"),
            base_loss=losses.get("base"),
            label_loss=label_loss,
            seconds=time.perf_counter() - self.began,
            stopped=self.stopped,
        )


def head_shape(settings: XLoraSettings) -> HeadShape:
    return HeadShape(
        depth=settings.depth,
        size=settings.size,
        dropout=settings.dropout,
        layerwise=settings.layerwise,
        reads=settings.granularity,
        softmax=not settings.top_k,
        softmax_topk=bool(settings.top_k),
        temperature=settings.temperature,
        top_k=settings.top_k or None,
    )


@contextmanager
def _seeded(seed: int, step: int = 0) -> Iterator[None]:
    """First numbers and dropout depend on the seed and the step alone; the process's own random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + step)
        yield


def _new_head(bank: LobeBank, lobes: tuple[str, ...], settings: XLoraSettings) -> ScalingHead:
    """All lobes of equal weight at first: nothing is preferred that was not learned."""
    head = ScalingHead(bank.backbone.hidden_size, len(lobes), len(bank.layers(lobes)), head_shape(settings))
    nn.init.zeros_(head.last.weight)
    nn.init.zeros_(head.last.bias)
    return head


def _one_layer(head: ScalingHead) -> ScalingHead:
    """A head that gives every layer the same weights, with the inner layers of `head` itself."""
    small = ScalingHead(head.hidden_size, head.lobes, 1, head.shape).to(head.last.weight.device)
    small.inner.load_state_dict(head.inner.state_dict())
    nn.init.zeros_(small.last.weight)
    nn.init.zeros_(small.last.bias)
    return small


def _spread(small: ScalingHead, head: ScalingHead) -> None:
    """Give `head` what `small` learned, the same in each layer."""
    layers = head.n_layers if head.shape.layerwise else 1
    head.inner.load_state_dict(small.inner.state_dict())
    with torch.no_grad():
        head.last.weight.copy_(small.last.weight.repeat(layers, 1))
        head.last.bias.copy_(small.last.bias.repeat(layers))


@torch.no_grad()
def _accuracy(head: ScalingHead, rows: _Rows) -> float:
    """Share of rows whose lobe has the largest weight, averaged over the prompt's own tokens and over layers."""
    head.eval()
    right = 0
    for i in range(len(rows)):
        tokens = slice(rows.starts[i], rows.starts[i] + rows.lengths[i])
        weights = head(rows.hidden[tokens][rows.own[tokens]][None])
        right += int(weights.mean((0, 1, 2)).argmax()) == rows.lobes[i]
    return right / len(rows)


def _evenly_by_lobe(rows: Sequence[LabelledRow], most: int) -> list[LabelledRow]:
    """At most `most` rows of each lobe, from the first to the last."""
    kept: list[LabelledRow] = []
    for lobe in sorted({row.lobe for row in rows}):
        own = [row for row in rows if row.lobe == lobe]
        kept += evenly(own, most)
    return kept


def _taking_turns(random: np.random.Generator, rows: _Rows) -> list[int]:
    """All rows with answers, shuffled within each lobe, one lobe after the other; lobes of few rows come again."""
    by_lobe: dict[int, list[int]] = {}
    for i in rows.answered:
        by_lobe.setdefault(rows.lobes[i], []).append(i)
    longest = max(map(len, by_lobe.values()))
    shuffled = []
    for own in by_lobe.values():
        times = -(-longest // len(own))
        shuffled.append(np.concatenate([random.permutation(own) for _ in range(times)])[:longest])
    order = [random.permutation([column[i] for column in shuffled]) for i in range(longest)]
    return [int(i) for i in np.concatenate(order)]


def _spread_over_lobes(rows: _Rows, most: int) -> list[int]:
    """At most `most` rows with answers, as many of each lobe."""
    by_lobe: dict[int, list[int]] = {}
    for i in rows.answered:
        by_lobe.setdefault(rows.lobes[i], []).append(i)
    each = max(1, most // max(1, len(by_lobe)))
    return [i for own in by_lobe.values() for i in own[:each]]


def _groups(rows: _Rows, numbers: Sequence[int], by_lobe: bool) -> Iterator[list[int]]:
    """Eight rows at a time, similar lengths together; of one lobe each if `by_lobe`."""
    order = sorted(numbers, key=lambda i: (rows.lobes[i] if by_lobe else 0, rows.lengths[i]))
    group: list[int] = []
    for i in order:
        if group and (len(group) == 8 or (by_lobe and rows.lobes[i] != rows.lobes[group[0]])):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _tensors(head: ScalingHead) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()
