"""The forgetting check: is the base the same after a lobe was trained, is every lobe, and what
would one adapter have lost?

A lobe is really trained again, on the same frozen weights in memory as in the app, and thrown away.
Before and after, every byte of the base and of the lobes is hashed, and their logits on fixed
prompts are compared bit for bit (`snapshot`). Then the contrast: one ordinary adapter learns one
domain and then another (`drift`).
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ...data.examples import Example
from ...errors import ConfigError, DataError, LobeError
from ...evenly import evenly
from ...lobes.store import Lobe, same_name
from ...model import MultiLobeModel
from ...progress import Progress, converted, finish
from ...routers import RoutingRows
from ...settings import TrainingConfig, from_json
from ...training.lobe import StepRecord, train_lobe
from ..settings import FEWEST_ROWS, ForgettingSettings
from .drift import Contrast, Domain, Drift, farthest
from .snapshot import Snapshot, taking
from .verdict import RESTART, ForgettingReport, judge, some

T = TypeVar("T")
GENERIC_PROBES = 4
STAND_IN_ROWS = 32
"""Everyday prompts that an adapter learns to repeat where no lobe has rows to be trained on again."""
LOOKING = "Hashing the weights and asking the probes"
COMPARING = "Comparing bit for bit"
STOPPED = "The check was stopped before one adapter had learned both domains. Check again, and let it run."


def forgetting_check(
    model: MultiLobeModel,
    *,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    **settings: Any,
) -> ForgettingReport:
    """Check that training leaves the base and all lobes as they are, and measure what one adapter
    would have forgotten.

    Args:
        settings: fields of ForgettingSettings. stop: set it to end early with what there is.

    Raises:
        ConfigError: a setting out of range. LobeError: no such lobe. DataError: a lobe that is
            named has kept no rows.
    """
    with tempfile.TemporaryDirectory(prefix="multilobe-forgetting-") as scratch:
        work = checking(
            model, ForgettingSettings(**settings), data=None, made=Path(scratch) / "made", stop=stop or threading.Event()
        )
        return finish(work, progress)


def checking(
    model: MultiLobeModel, settings: ForgettingSettings, *, data: Path | None, made: Path, stop: threading.Event
) -> Generator[Progress, None, ForgettingReport]:
    """`forgetting_check` as an experiment of the Lab. Nothing stays in `made`; `data` is not used."""
    check = _Check(model, settings, made, stop)
    try:
        return (yield from check.run())
    finally:
        shutil.rmtree(made, ignore_errors=True)


class _Check:
    """One check at work."""

    def __init__(self, model: MultiLobeModel, settings: ForgettingSettings, made: Path, stop: threading.Event) -> None:
        self.model, self.settings, self.made, self.stop = model, settings, made, stop
        self.began = time.perf_counter()
        self.lobes = list(model.lobes)
        self.rows = {lobe.name: rows for lobe in self.lobes if (rows := _rows_of(lobe)) is not None}
        self.ids = {lobe.name: lobe.id for lobe in self.lobes}
        self.newest, self.work, self.config = self._to_train()
        self.drift, self.contrast_why = self._to_contrast()
        self.step = self.looked = 0
        trainings = [(self.work, self.config)]
        trainings += [(domain, self.drift.config) for domain in (self.drift.first, self.drift.second)] if self.drift else []
        self.steps = 2 + sum(-(-len(d.train) // (c.batch_size * c.gradient_accumulation)) * settings.epochs for d, c in trainings)
        self.trained: dict[str, Any] = {
            "rows": len(self.work.train), "steps": 0, "loss_before": None, "loss_after": None,
            "held_out": 0 if self.work.trained else len(self.work.held_out),
        }  # fmt: skip

    def run(self) -> Generator[Progress, None, ForgettingReport]:
        probes = self._probes()
        before, spent = yield from self._look(LOOKING, probes, "before")
        lobe_losses = self.drift.lobe_losses() if self.drift else None
        yield from self._train_again()
        contrast = yield from self._contrast()
        after, again = yield from self._look(COMPARING, probes, "after")
        verdict = judge(self.model, self.lobes, before, after)
        reasons = list(verdict.reasons)
        if contrast and lobe_losses != tuple(own["lobe"] for own in contrast.losses.values()):
            reasons.append(f"The losses of {contrast.first} and {contrast.second} on their own rows have changed. {RESTART}")
        if not self.trained["steps"]:
            reasons.append("It was stopped before anything was trained, so nothing is proven. Run it again.")
        return ForgettingReport(
            passed=not reasons,
            base=replace(verdict.base, probes=len(probes), seconds=spent + again),
            lobes=verdict.lobes,
            newest=self.newest,
            trained=self.trained,
            contrast=contrast,
            contrast_why="" if contrast else self.contrast_why,
            reasons=reasons,
            stopped=self.stop.is_set(),
            seconds=time.perf_counter() - self.began,
        )

    # ---- what is to be done -----------------------------------------------------------------------------------------------

    def _to_train(self) -> tuple[str | None, Domain, TrainingConfig]:
        """The lobe that is trained again, its rows, and the settings of its card as far as they
        matter here."""
        few: dict[str, Any] = {"epochs": self.settings.epochs, "evaluations_per_epoch": 1, "patience": 0, "keep": "best"}
        name = self._named(self.settings.newest) or next(reversed(self.rows), None)
        if name is None:
            prompts = self.model.routers.context().generic_prompts[:STAND_IN_ROWS] or ["Good morning.", "How are you?"]
            rows = [_example(prompt, prompt) for prompt in prompts]
            stand_in = Domain("", "", rows, rows[:4], trained=True)
            return None, stand_in, replace(TrainingConfig(seed=self.settings.seed), **few)
        card = self.model.lobes.named(name).card
        try:
            config = from_json(TrainingConfig, dict(card.config))
        except (ConfigError, TypeError):  # a card from elsewhere
            config = TrainingConfig()
        return name, self._domain(name), replace(config, **few)

    def _to_contrast(self) -> tuple[Drift | None, str]:
        """The single adapter's two halves, or why there are none."""
        if not self.settings.contrast:
            return None, "The contrast was left out."
        given = [found for name in (self.settings.first, self.settings.second) if (found := self._named(name))]
        if len(self.rows) < 2:
            have = "no lobe has" if not self.rows else f"only {next(iter(self.rows))} has"
            return None, f"The contrast needs two lobes that have kept rows with answers, and {have}. Train another lobe here."
        pair = farthest(self.rows, given)
        if self.settings.second and not self.settings.first:
            pair = pair[1], pair[0]
        config = TrainingConfig(epochs=self.settings.epochs, evaluations_per_epoch=2, keep="best", seed=self.settings.seed)
        first, second = (self._domain(name) for name in pair)
        return Drift(self.model.bank, first, second, config, self.made / "one adapter"), STOPPED

    def _named(self, name: str) -> str:
        """A name as the lobe has it; "" for "". Raises LobeError for an unknown one, DataError for
        one without rows."""
        if not name:
            return ""
        known = next((own for own in self.ids if same_name(own, name)), None)
        if known is None:
            raise LobeError(f"There is no lobe called {name!r} on this base. There are: {some(list(self.ids)) or 'none yet'}.")
        if known not in self.rows:
            raise DataError(f"{known} has kept no rows with answers, so it cannot be trained again. Choose another lobe.")
        return known

    def _domain(self, name: str) -> Domain:
        rows, settings = self.rows[name], self.settings
        train = [_example(p, a) for p, a in zip(rows.train_prompts, rows.train_answers, strict=True)]
        held_out = [_example(p, a) for p, a in zip(rows.validation_prompts, rows.validation_answers, strict=False)]
        train = evenly(train, settings.rows)
        # a fact that is not trained is not learned: a lobe that held nothing out is measured on trained rows
        measured = evenly(held_out or train, settings.held_out)
        return Domain(name, self.ids[name], train, measured, trained=not held_out)

    def _probes(self) -> list[list[int]]:
        """Token ids of prompts that lobes held out (or were trained on), in turn, and of everyday ones."""
        own = [list(rows.validation_prompts) or list(rows.train_prompts) for rows in self.rows.values()]
        turns = [prompts[i] for i in range(max(map(len, own), default=0)) for prompts in own if i < len(prompts)]
        generic = list(self.model.routers.context().generic_prompts) or ["What can you do?"]
        prompts = [*turns[: self.settings.probes], *evenly(generic, GENERIC_PROBES)]
        backbone = self.model.backbone
        ids = (backbone.encode_chat([{"role": "user", "content": prompt}]) for prompt in prompts)
        return [row[-backbone.context_length :] for row in ids]

    # ---- doing it ---------------------------------------------------------------------------------------------------------

    def _look(
        self, phase: str, probes: Sequence[Sequence[int]], name: str
    ) -> Generator[Progress, None, tuple[Snapshot, float]]:
        """A snapshot, and the seconds that it took. A lobe deleted meanwhile is looked at no more."""
        start = time.perf_counter()
        there = set(self.model.bank.lobes)
        self.lobes = [lobe for lobe in self.lobes if lobe.id in there]
        work = taking(self.model.bank, self.lobes, probes, self.made / name)
        snapshot = yield from converted(work, lambda _: Progress(self.step, self.steps, phase, {}))
        self.step += 1
        return snapshot, time.perf_counter() - start

    def _train_again(self) -> Generator[Progress, None, None]:
        if self.stop.is_set():
            return
        name = self.newest or "everyday prompts"
        run = train_lobe(
            self.model.backbone, self.work.train, self.work.held_out, self.config, self.made / "newest", stop=self.stop
        )
        result = yield from self._told(run, f"Training {name} again", self.work)
        self.trained |= {
            "steps": result.steps, "loss_before": result.base_validation_loss, "loss_after": result.validation_loss,
        }  # fmt: skip

    def _contrast(self) -> Generator[Progress, None, Contrast | None]:
        drift = self.drift
        if drift is None or self.stop.is_set():
            return None
        begins = f"One adapter learns {drift.first.name}"
        yield from self._told(drift.learn_first(stop=self.stop), begins, drift.first)
        if self.stop.is_set():
            return None
        again = f"The same adapter learns {drift.second.name}"
        yield from self._told(drift.learn_second(stop=self.stop), again, drift.second)
        return drift.contrast()

    def _told(
        self, run: Generator[StepRecord, None, T], phase: str, domain: Domain
    ) -> Generator[Progress, None, T]:
        """Records of a training as progress of the whole."""
        done, measured = self.step, "held_out_loss"
        if domain.trained:
            measured = "measured_loss"

        def told(record: StepRecord) -> Progress:
            self.step = done + record.step
            values = {"loss": record.loss, measured: record.validation_loss}
            known = {name: value for name, value in values.items() if value is not None}
            return Progress(self.step, self.steps, phase, known)

        return (yield from converted(run, told))


def _rows_of(lobe: Lobe) -> RoutingRows | None:
    """What a lobe has kept of its rows, if it can be trained on again."""
    rows = None if lobe.card.tier else lobe.routing_rows()
    if rows is None or len(rows.train_prompts) < FEWEST_ROWS or len(rows.train_answers) != len(rows.train_prompts):
        return None
    return rows


def _example(prompt: str, answer: str) -> Example:
    return Example(({"role": "user", "content": prompt},), answer)


__all__ = ["Contrast", "ForgettingReport", "ForgettingSettings", "checking", "forgetting_check"]
