"""Three experts for prompts of three complexities, and the router between them, trained in three phases.

    1  router   the MLP alone learns the analyser's tiers and scores (`router_mlp`)
    2  experts  the router rests; each expert, a LoRA, learns to answer the rows of its own tier
    3  joint    every row is answered by all experts under the router's weights, y = W x + Σ_t p_t(prompt) · scaling · B_t A_t x,
                so that the loss of the answer sends gradients into experts and router together

Phases 2 and 3 run through the lobe bank, with the formula that serves the experts afterwards, and
leave plain PEFT adapters. There are no threads and no pages here: the caller iterates. What is
random depends on the seed and the step alone.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...base.backbone import Backbone
from ...data.dataset import split
from ...data.examples import Example
from ...errors import MultiLobeError, RoutingError
from ...progress import Progress
from ...training.batches import TokenRows
from ...training.loop import Best, descend, schedule
from .features import TIERS, scaled, score, tier_of
from .loras import TierLoras
from .network import ComplexitySettings, Scale, TierNetwork, expert_rate
from .training import RouterMLP, TierRows, calibrated_temperature, load, report, router_loss, tier_weights, train_router

Array = np.ndarray[Any, Any]
EVALUATIONS = 4
"""Of the validation loss, in each phase that trains experts."""
JUDGED_ROWS = 300
"""Most held-out answers whose loss is measured, evenly from all; routing is measured on every
held-out prompt."""
VALIDATION_ROWS = 120
"""Most rows taken from training to choose the best step and calibrate the temperature."""
WARMUP = 0.06
ROUTER, EXPERTS, JOINT = PHASES = ("Router", "Experts", "Router and experts together")

Weighed = tuple[Tensor, Tensor | None, dict[str, float]]
"""Of a batch: the experts' weights (rows, tiers), the router's own loss if it is learning, and what
to plot."""


class Features(Protocol):
    """What is asked of the analyser: prompts → (n, f), columns in the order of `complexity.FEATURES`."""

    def features(self, prompts: Sequence[str]) -> Array: ...


@dataclass(frozen=True)
class ExpertsResult:
    """What three phases leave.

    Attributes:
        router: the trained network.
        report: numbers for a person (JSON). experts: PEFT adapter folders by tier; empty if no
            expert was trained.
    """

    router: TierNetwork
    report: Mapping[str, Any]
    experts: Mapping[str, Path] = field(default_factory=dict)


def train_experts(
    backbone: Backbone | None,
    embed: Callable[[Sequence[str]], Array],
    analyser: Features,
    rows: Sequence[Example],
    settings: ComplexitySettings,
    folder: Path,
    stop: threading.Event | None = None,
    held_out: Sequence[Example] = (),
) -> Generator[Progress, None, ExpertsResult]:
    """Train router and experts; see the module's text.

    Args:
        backbone: the base; None trains the router alone (phase 1).
        embed: texts → (n, d) unit vectors.
        rows: what to learn from; rows with an empty answer teach the router alone.
        folder: the experts go to folder/simple, folder/medium and folder/complex, where such rows exist.
        stop: set it to end after the step under way; the best so far is kept, the phases that
            follow are left out.
        held_out: rows for the report alone; if empty, a sixth of `rows` is held out for it.

    Yields: a record for every pass of phase 1, every step of phases 2 and 3, and every evaluation.

    Raises:
        RoutingError: there are no rows. ConfigError: target_modules names no linear layer of the base.
        MultiLobeError: the loss is no longer finite, or memory ran out.
    """
    if not rows:
        raise RoutingError("There is no row to learn from. Train a lobe first, or give a file of prompts and answers.")
    run = _Run(backbone, embed, analyser, rows, settings, stop or threading.Event(), held_out)
    try:
        yield from run.router_phase()
        if run.experts is not None:
            yield from run.expert_phase()
            yield from run.joint_phase()
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):  # GPU, CPU
            raise
        raise MultiLobeError(
            f"Out of memory with batch_size={settings.batch_size} and max_length={settings.max_length}. Lower one of them."
        ) from error
    return run.result(folder)


class _Part:
    """Rows as both networks see them.

    Attributes:
        features: (n, f) from 0 to 1. seen: x, tier and score for the router (after `look`).
        answered: (m,) numbers of the rows that have an answer; `tokens` are theirs, for the experts.
    """

    seen: TierRows

    def __init__(
        self, rows: Sequence[Example], analyser: Features, settings: ComplexitySettings, backbone: Backbone | None
    ) -> None:
        self.prompts = [row.prompt for row in rows]
        raw = analyser.features(self.prompts)
        self.features, self.scores = scaled(raw), score(raw)
        names = [tier_of(value, settings.low, settings.high) for value in self.scores.tolist()]
        self.tiers = np.array([TIERS.index(name) for name in names], np.int64)
        answered = [i for i, row in enumerate(rows) if backbone is not None and row.answer.strip()]
        self.answered = np.array(answered, np.int64)
        if backbone is not None:
            length = min(settings.max_length, backbone.context_length)
            self.tokens = TokenRows(backbone, [rows[i] for i in answered], length)

    def look(self, scale: Scale, embed: Callable[[Sequence[str]], Array]) -> None:
        embeddings = embed(self.prompts) if self.prompts else np.zeros((0, 0))
        self.seen = TierRows.of(scale(self.features, embeddings), self.tiers, self.scores)

    @property
    def tier_means(self) -> Array:
        """(tiers, f); zeros for a tier without rows."""
        chosen = np.eye(len(TIERS))[self.tiers]
        means = chosen.T @ self.features / np.maximum(chosen.sum(0), 1)[:, None]
        return np.asarray(means, np.float32)


class _Run:
    """The state of one training of router and experts."""

    def __init__(
        self,
        backbone: Backbone | None,
        embed: Callable[[Sequence[str]], Array],
        analyser: Features,
        rows: Sequence[Example],
        settings: ComplexitySettings,
        stop: threading.Event,
        held_out: Sequence[Example],
    ) -> None:
        self.settings, self.stop, self.began = settings, stop, time.perf_counter()
        rows = _evenly(rows, settings.max_rows)
        if not held_out:
            rows, held_out = split(rows, 1 / 6, settings.seed, max_validation=JUDGED_ROWS)
        train, validation = split(rows, 0.1, settings.seed, max_validation=VALIDATION_ROWS)
        if not train:
            train = list(rows)  # all rows have one prompt
        parts = [_Part(part, analyser, settings, backbone) for part in (train, validation, held_out)]
        self.train, self.validation, self.held_out = parts
        self.scale = Scale.of(self.train.features)
        for part in parts:
            part.look(self.scale, embed)
        self.balance = tier_weights(self.train.seen, len(TIERS))

        torch.manual_seed(settings.seed)
        self.router = RouterMLP(self.train.seen.x.shape[1], settings.hidden, settings.low, settings.high)
        self.experts: TierLoras | None = None
        per_epoch = math.ceil(len(self.train.answered) / settings.batch_size)
        self.lengths = [settings.router_epochs, per_epoch * settings.expert_epochs, per_epoch * settings.joint_epochs]
        if backbone is not None and per_epoch:
            self.experts = TierLoras(backbone, TIERS, settings)
            self.expert_rate = settings.expert_learning_rate or expert_rate(backbone.hidden_size)
        else:
            self.lengths[1:] = [0, 0]
        self.step = 0
        self.temperature = 1.0
        self.phases: dict[str, dict[str, Any]] = {}

    # ---- phase 1 ----------------------------------------------------------------------------------------------------------

    def router_phase(self) -> Iterator[Progress]:
        settings = self.settings
        passes = train_router(
            self.router,
            self.train.seen,
            self.validation.seen,
            epochs=settings.router_epochs,
            learning_rate=settings.router_learning_rate,
            balance_weight=settings.balance_weight,
            seed=settings.seed,
        )
        for values in passes:
            self.step += 1
            yield self._record(ROUTER, values)
            if self.stop.is_set():
                passes.close()
        self.step = self.lengths[0]
        self._judge_phase("router")

    # ---- phases 2 and 3 ---------------------------------------------------------------------------------------------------

    def expert_phase(self) -> Iterator[Progress]:
        """Hard tiers as weights: an expert sees its own tier's rows and no others."""

        def weigh(rows: TierRows) -> Weighed:
            return torch.nn.functional.one_hot(rows.tier, len(TIERS)).float(), None, {}

        if self._goes_on(self.lengths[1]):
            optimizer = torch.optim.AdamW(self._live.parameters, lr=self.expert_rate, weight_decay=0.0)
            yield from self._steps(EXPERTS, self.lengths[1], optimizer, weigh, 2)
            self._judge_phase("experts")

    def joint_phase(self) -> Iterator[Progress]:
        """The router's probabilities as weights, so that the answers' loss teaches it too; its own
        losses keep it in place."""

        def weigh(rows: TierRows) -> Weighed:
            self.router.train()
            logits, scores = self.router(rows.x)
            loss = router_loss(logits, scores, rows, self.settings.balance_weight, self.balance)
            return logits.softmax(-1), loss.total, loss.values()

        if self._goes_on(self.lengths[2]):
            groups = [
                {"params": self._live.parameters, "lr": self.expert_rate},
                {"params": list(self.router.parameters()), "lr": self.settings.router_learning_rate},
            ]
            yield from self._steps(JOINT, self.lengths[2], torch.optim.AdamW(groups, weight_decay=0.0), weigh, 3)
            self._judge_phase("joint")

    def _goes_on(self, steps: int) -> bool:
        return steps > 0 and not self.stop.is_set()

    def _steps(
        self,
        phase: str,
        steps: int,
        optimizer: torch.optim.Optimizer,
        weigh: Callable[[TierRows], Weighed],
        number: int,
    ) -> Iterator[Progress]:
        """Optimizer steps of a phase; afterwards router and experts are as they were when the
        validation loss was lowest."""
        peaks = [group["lr"] for group in optimizer.param_groups]
        best = Best(lambda: (self._live.snapshot(), self.router.arrays()), self._validation_loss())
        yield self._record(phase, _measured("held_out_loss", best.loss))
        for step in range(steps):
            # the experts' schedule spans both phases: a second warm-up would undo what the first has settled
            experts = schedule(step + self.lengths[1] * (number == 3), sum(self.lengths[1:]), WARMUP)
            for group, peak, factor in zip(
                optimizer.param_groups, peaks, (experts, schedule(step, steps, WARMUP)), strict=False
            ):
                group["lr"] = peak * factor
            torch.manual_seed(
                (self.settings.seed * 1_000_003 + number * 100_003 + step) % 2**63
            )  # the router's dropout
            values = self._optimize(optimizer, weigh, self._rows_of(step, number))
            self.step += 1
            last = step == steps - 1 or self.stop.is_set()
            if last or (step + 1) % max(1, steps // EVALUATIONS) == 0:
                loss = self._validation_loss()
                values |= _measured("held_out_loss", loss)
                best.offer(loss)
            yield self._record(phase, values)
            if last:
                break
        loras, network = best.state
        self._live.restore(loras)
        load(self.router, network)

    def _optimize(
        self,
        optimizer: torch.optim.Optimizer,
        weigh: Callable[[TierRows], Weighed],
        numbers: Array,
    ) -> dict[str, float]:
        """One step on the answered rows `numbers`; returns what it measured."""
        rows = self.train.seen[torch.from_numpy(self.train.answered[numbers])]
        weights, own, values = weigh(rows)
        answers = self._live.losses(self.train.tokens, numbers, weights).mean()
        total = answers
        if own is not None:
            total = answers + own.to(answers.device)
        rates = f"({self.expert_rate:g} and {self.settings.router_learning_rate:g})"
        descend(optimizer, total, f"Lower the learning rates {rates} and start again.", self.step)
        usage = weights.detach().mean(0).tolist()
        shares = {f"usage_{tier}": share for tier, share in zip(TIERS, usage, strict=True)}
        return {"loss": float(answers.detach()), **values, **shares}

    def _rows_of(self, step: int, number: int) -> Array:
        """Numbers of the answered rows of a step: a new order in every pass, from the seed."""
        size, count = self.settings.batch_size, len(self.train.answered)
        epoch, place = divmod(step, math.ceil(count / size))
        order = np.random.default_rng([self.settings.seed, number, epoch]).permutation(count)
        return order[place * size : (place + 1) * size]

    @property
    def _live(self) -> TierLoras:
        assert self.experts is not None
        return self.experts

    # ---- measuring --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _weights(self, rows: TierRows, temperature: float | None = None) -> Tensor:
        """(n, tiers) as the router serves: all on its best tier, or its probabilities at a temperature."""
        self.router.eval()
        logits: Tensor = self.router(rows.x)[0]
        if temperature is not None:
            return (logits / temperature).softmax(-1)
        return torch.nn.functional.one_hot(logits.argmax(1), len(TIERS)).float()

    def _validation_loss(self) -> float:
        part = self.validation if len(self.validation.answered) else self.train
        return self._loss(part, VALIDATION_ROWS)

    def _loss(self, part: _Part, most: int, temperature: float | None = None, base: bool = False) -> float:
        """Mean NLL per answer token of at most `most` rows, evenly from all, as the router serves
        them (or by the base alone)."""
        numbers = _evenly(np.arange(len(part.answered)), most)
        weights = self._weights(part.seen[torch.from_numpy(part.answered[numbers])], temperature)
        return self._live.mean_loss(part.tokens, numbers, torch.zeros_like(weights) if base else weights)

    def _judge_phase(self, name: str) -> None:
        """Note what the held-out rows say after a phase."""
        self.temperature = calibrated_temperature(self.router, self.validation.seen)
        part = self.held_out if len(self.held_out.seen) else self.train
        values = report(self.router, part.seen, TIERS)
        if self.experts is not None and len(part.answered):
            most = JUDGED_ROWS // 4 if self.stop.is_set() else JUDGED_ROWS  # who has stopped does not want to wait
            if name == "router":
                values |= _measured("test_loss", self._loss(part, most, base=True))  # experts that add nothing yet
            else:
                values |= _measured("test_loss", self._loss(part, most))
                values["test_loss_soft"] = self._loss(part, most, self.temperature)
        self.phases[name] = values

    def _record(self, phase: str, values: Mapping[str, float]) -> Progress:
        return Progress(self.step, sum(self.lengths), phase, {k: v for k, v in values.items() if math.isfinite(v)})

    def result(self, folder: Path) -> ExpertsResult:
        counts = dict(zip(TIERS, torch.bincount(self.train.seen.tier, minlength=len(TIERS)).tolist(), strict=True))
        experts: Mapping[str, Path] = {}
        if self.experts is not None and {"experts", "joint"} & self.phases.keys():
            experts = self.experts.save(folder, [tier for tier, count in counts.items() if count])
        summary = {
            "phases": self.phases,
            "counts": counts,
            "train_rows": len(self.train.seen),
            "held_out_rows": len(self.held_out.seen),
            "temperature": self.temperature,
            "expert_learning_rate": self.expert_rate if self.experts is not None else None,
            "stopped": self.stop.is_set() and self.step < sum(self.lengths),
            "seconds": time.perf_counter() - self.began,
        }
        low, high = float(self.settings.low), float(self.settings.high)
        network = TierNetwork(self.router.arrays(), self.scale, self.temperature, low, high, self.train.tier_means)
        return ExpertsResult(network, summary, experts)


def _measured(name: str, loss: float) -> dict[str, float]:
    """A loss in nats per token, and its perplexity."""
    return {name: loss, "perplexity": math.exp(min(loss, 700.0))}


def _evenly(rows: Any, most: int) -> Any:
    """At most `most` of a list's or an array's items, from first to last."""
    if len(rows) <= most:
        return rows
    places = np.linspace(0, len(rows) - 1, most).astype(int)
    return rows[places] if isinstance(rows, np.ndarray) else [rows[i] for i in places]
