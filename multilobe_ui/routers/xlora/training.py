"""Training an X-LoRA head, as a generator of records: first to know the lobes, then to answer well with them.

    1. labels     - mean over tokens and layers of log w(token, layer, own lobe), every lobe of equal weight: the base's hidden
                    states are worked out once, so a step takes milliseconds
    2. language   NLL of the answers through the bank under the head's weights, plus `label_weight` times 1

Base and lobes stay frozen. The head that did best on held-out rows is kept: by 1 while labels are
learned, then by the NLL. Last, one factor on all deltas is chosen on them (PEFT's global_scaling_weight).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import RoutingError
from ...lobes.bank import LobeBank
from ...lobes.weights import Mix
from ...progress import Progress
from ...settings import XLoraSettings
from ...training.batches import make_batch, packs_exactly, token_losses
from ...training.loop import Best, descend, schedule, set_rate
from .mixer import HeadShape, ScalingHead
from .rows import HeadRows, LabelledRow, evenly_by_lobe, groups_of_rows, spread_over_lobes, taking_turns

TOKENS_PER_STEP = 2048
"""Tokens in one label step."""
RECORD_EVERY = 10
"""Label steps from one held-out measurement, and record, to the next; language steps are recorded
one by one."""
LANGUAGE_EVERY = 10
"""Language steps from one held-out measurement to the next."""
HELD_OUT_ROWS = 96
"""Most rows of all lobes together whose answers are measured while the language-model loss is learned."""


LABELS_WAY_OUT = "Lower learning_rate and fit again."
SCALES = (1.0, 0.95, 0.9, 0.85, 0.8)


@dataclass(frozen=True)
class HeadFit:
    """What came out. Losses are mean NLL per answer token, in nats; None without answers.

    All is measured on held-out rows, or on the training rows if there are none.

    Attributes:
        accuracy: share of held-out prompts whose own lobe has the largest weight, averaged over
            their tokens and layers.
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
        RoutingError: no lobe, or no row, or stopped before anything was learned. LobeError: the
            bank lacks a lobe.
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
        self.train = HeadRows(bank.backbone, evenly_by_lobe(rows, most), settings.max_length)
        self.held = HeadRows(bank.backbone, evenly_by_lobe(held_out, max(1, most // 4)), settings.max_length)
        self.packs = packs_exactly(bank.backbone)
        with _seeded(settings.seed):
            self.head = _new_head(bank, lobes, settings)
        self.head.to(bank.backbone.device)
        alone = len(lobes) == 1  # a single lobe has weight 1 whatever the head says
        self.label_steps = 0 if alone else settings.supervised_steps
        self.language_steps = 0 if alone or not self.train.answered else settings.language_steps
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
        """All layers have the same labels, so one layer's outputs are learned and then given to
        every layer."""
        if not self.label_steps:
            return
        with _seeded(self.settings.seed):
            small = _one_layer(self.head)
        optimizer = torch.optim.AdamW(small.parameters(), lr=self.settings.learning_rate, weight_decay=0.01)
        random = np.random.default_rng(self.settings.seed)
        judged = self.held if len(self.held) else self.train
        best = Best(lambda: _tensors(small))
        for step in range(self.label_steps):
            if self.stop.is_set():
                if step < RECORD_EVERY:
                    self._check_not_stopped()
                self.stopped = True
                break
            set_rate(optimizer, self.settings.learning_rate * schedule(step, self.label_steps, 0.05))
            drawn = random.integers(0, len(self.train.owner), TOKENS_PER_STEP)
            places = torch.from_numpy(drawn).to(self.train.hidden.device)
            small.train()
            with _seeded(self.settings.seed, step):
                loss = self._label_loss(small, self.train, places)
            descend(optimizer, loss, LABELS_WAY_OUT, step)
            if step % RECORD_EVERY == RECORD_EVERY - 1 or step == self.label_steps - 1:
                small.eval()
                with torch.no_grad():
                    held = float(self._label_loss(small, judged))
                best.offer(held)
                values = {"label_loss": float(loss.detach()), "held_out_label_loss": held}
                values["accuracy"] = _accuracy(small, judged)
                yield Progress(step, self.steps, "Learning which lobe a token belongs to", values)
        small.load_state_dict(best.state)
        _spread(small, self.head)

    def _label_loss(self, head: ScalingHead, rows: HeadRows, places: Tensor | None = None) -> Tensor:
        """Cross-entropy of the dense softmax against each token's own lobe, in nats; every lobe of
        equal weight."""
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
        watched = spread_over_lobes(judged, HELD_OUT_ROWS)
        best = Best(self._copy, self._held_out_loss(judged, watched))
        yield self._language_record(0, {"held_out_loss": best.loss, "accuracy": _accuracy(head, judged)})
        for step, numbers in enumerate(self._batches()):
            if self.stop.is_set():
                self.stopped = True
                break
            set_rate(optimizer, settings.language_rate * schedule(step, self.language_steps, 0.05))
            head.train()
            with _seeded(settings.seed, self.label_steps + step):
                nll = self._nll(self.train, numbers, head).mean()
                label = self._label_loss(head, self.train, self.train.tokens_of(numbers))
            loss = nll + settings.label_weight * label
            descend(optimizer, loss, f"Lower language_rate ({settings.language_rate:g}) and fit again.", step)
            values = {"loss": float(nll.detach()), "label_loss": float(label.detach())}
            if step % LANGUAGE_EVERY == LANGUAGE_EVERY - 1 or step == self.language_steps - 1:
                held = self._held_out_loss(judged, watched)
                best.offer(held)
                values |= {"held_out_loss": held, "accuracy": _accuracy(head, judged)}
            yield self._language_record(step, values)
        head.load_state_dict(best.state)

    def _language_record(self, step: int, values: dict[str, float]) -> Progress:
        return Progress(self.label_steps + step, self.steps, "Learning to answer with them", values)

    def _batches(self) -> Iterator[list[int]]:
        """Row numbers of each step, lobes taking turns, a new order every time round; from the seed."""
        random = np.random.default_rng([self.settings.seed, 1])
        waiting: list[int] = []
        for _ in range(self.language_steps):
            while len(waiting) < self.settings.batch_size:
                waiting += taking_turns(random, self.train)
            batch, waiting = waiting[: self.settings.batch_size], waiting[self.settings.batch_size :]
            yield batch

    def _nll(self, rows: HeadRows, numbers: Sequence[int], head: ScalingHead | None, mix: Mix | None = None) -> Tensor:
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
    def _held_out_loss(self, rows: HeadRows, numbers: Sequence[int], how: str = "head") -> float:
        """Mean NLL per answer token under the head, each row's own lobe ("own"), or the base ("base")."""
        self.head.eval()
        total = count = 0.0
        for group in groups_of_rows(rows, numbers, by_lobe=how == "own"):
            mix = Mix.of({self.lobes[rows.lobes[group[0]]]: 1.0}) if how == "own" else None
            losses = self._nll(rows, group, self.head if how == "head" else None, mix)
            total, count = total + float(losses.sum()), count + len(losses)
        return total / max(count, 1.0)

    def choose_scale(self) -> None:
        """What a mixture adds is often a little too much for rows that the lobes have not seen: the
        factor that is best on the held-out rows, for all lobes and tokens alike. Lobes that hold
        nothing out have seen these."""
        rows = spread_over_lobes(self.held, HELD_OUT_ROWS) if len(self.held) else []
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
        rows = spread_over_lobes(judged, HELD_OUT_ROWS) if judged.answered and not self.stop.is_set() else []
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
    """First numbers and dropout depend on the seed and the step alone; the process's own random
    numbers are left as they were."""
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
def _accuracy(head: ScalingHead, rows: HeadRows) -> float:
    """Share of rows whose lobe has the largest weight, averaged over the prompt's own tokens and
    over layers."""
    head.eval()
    right = 0
    for i in range(len(rows)):
        tokens = slice(rows.starts[i], rows.starts[i] + rows.lengths[i])
        weights = head(rows.hidden[tokens][rows.own[tokens]][None])
        right += int(weights.mean((0, 1, 2)).argmax()) == rows.lobes[i]
    return right / len(rows)


def _tensors(head: ScalingHead) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
