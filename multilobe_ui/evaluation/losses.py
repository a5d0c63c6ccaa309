"""Losses of every lobe on every dataset: does each lobe earn its place, and how much of its gain does a router bring home?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bank import LobeBank
from ..config import check
from ..dataset import Example
from ..errors import DataError, RoutingError
from ..mix import Mix
from ..model import MultiLobeModel
from ..progress import Progress, finish
from ..routers import ROUTERS
from ..training import TokenRows, answer_losses
from .labelled import LabelledRow, held_out_rows, load_rows
from .loss_table import Array, Choice, LossTable, share_of_exact
from .report import evenly, title_of
from .tasks import exact_match, greedy_answers, is_short, token_f1


@dataclass(frozen=True)
class LossSettings:
    """What is asked of a loss matrix."""

    most_rows: int = 64
    """At most so many rows of each dataset."""
    router: str = ""
    """Name of the router that is held against the oracle; "" is the model's own."""
    task: bool = True
    """Whether datasets of short answers are answered, too, and the answers marked."""
    max_length: int = 512
    """Longest row in tokens; longer rows are cut (the answer is kept before the prompt)."""
    task_rows: int = 16
    """At most so many rows of each dataset are answered."""

    def __post_init__(self) -> None:
        for name, low, high in (("most_rows", 1, 10_000), ("max_length", 8, 1_000_000), ("task_rows", 1, 1000)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            check(whole and low <= value <= high, name, value, f"a whole number from {low:,} to {high:,}")
        known = isinstance(self.router, str) and self.router in ("", *ROUTERS)
        check(known, "router", self.router, f"empty, or one of {', '.join(ROUTERS)}")
        check(isinstance(self.task, bool), "task", self.task, "true or false")


@dataclass(frozen=True)
class LossMatrix:
    """What `lobe_losses` found. Losses are mean NLL per answer token, in nats; None where it was stopped before.

    Attributes:
        lobes, datasets: names. rows, tokens: of each dataset, tokens of the answers alone. left_out: datasets without answers.
        own: each dataset's own lobe, None where no lobe fits or none is known.
        losses: (lobes + 1, datasets), the base first.
        router: name of the router. routed: loss of each dataset when each of its rows runs under the one lobe that the router
            chooses, or under the base where it chooses none. oracle: loss under the own lobe, None where there is none.
        gain: by lobe, the base's loss minus its own on its dataset. idle: lobes that gain nothing, or whose dataset another
            lobe reads better.
        share_of_oracle: (base - routed) / (base - oracle) of the losses over all answer tokens of the datasets that have a lobe
            of their own; None where their lobes gain nothing.
        task: by dataset of short answers, how many were asked, and the share of exact matches and the mean F1 (see `tasks`)
            under the base, the router's choice and the own lobe. task_share: exact matches of the router's choices / of the
            own lobes, over the datasets that have one; None where these have no exact match.
    """

    lobes: Sequence[str]
    datasets: Sequence[str]
    rows: Sequence[int]
    tokens: Sequence[int]
    left_out: Sequence[str]
    own: Sequence[Choice]
    losses: Sequence[Sequence[float | None]]
    router: str
    routed: Sequence[float | None]
    oracle: Sequence[float | None]
    gain: Mapping[str, float]
    idle: Sequence[str]
    share_of_oracle: float | None
    task: Mapping[str, Mapping[str, Any]]
    task_share: float | None
    stopped: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def loss_matrix(bank: LobeBank, lobes: Sequence[str], datasets: Mapping[str, Sequence[Example]], max_length: int = 512) -> Array:
    """Mean NLL per answer token, in nats, of every dataset under the base (first row) and every lobe: (lobes + 1, datasets).

    Args:
        lobes: ids in the bank.
    """
    tokenised = [TokenRows(bank.backbone, rows, max_length) for rows in datasets.values()]
    result = np.full((len(lobes) + 1, len(tokenised)), np.nan)
    for i, lobe in enumerate([None, *lobes]):
        for j, rows in enumerate(tokenised):
            nll, tokens = losses_under(bank, lobe, rows)
            result[i, j] = nll.sum() / max(tokens.sum(), 1)
    return result


def losses_under(bank: LobeBank, lobe: str | None, rows: TokenRows) -> tuple[Array, Array]:
    """(n,) NLL of each row's answer in nats, (n,) its tokens, under the lobe of that id; None is the base."""
    mix = None if lobe is None else Mix.of({lobe: 1.0})

    def run(**inputs: Any) -> Any:
        return bank.run(mix, **inputs)

    with torch.inference_mode():
        return answer_losses(run, bank.backbone, rows)


def lobe_losses(
    model: MultiLobeModel,
    rows: Sequence[LabelledRow] | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    **settings: Any,
) -> LossMatrix:
    """Measure every lobe on every dataset, and a router against the oracle.

    Args:
        rows: with answers; those of a lobe are its dataset, those without one make a dataset of each file. None takes the rows
            that lobes held out from training.
        settings: fields of LossSettings. stop: set it to end early.

    Raises:
        ConfigError: a setting. DataError: there are no answers. RoutingError: the router has not been fitted.
    """
    return finish(_measured(model, LossSettings(**settings), rows, stop or threading.Event()), progress)


def measuring(
    model: MultiLobeModel, settings: LossSettings, *, data: Path | None, made: Path, stop: threading.Event
) -> Generator[Progress, None, LossMatrix]:
    """`lobe_losses` as an experiment of the Lab."""
    return (yield from _measured(model, settings, load_rows(data) if data else None, stop))


def _measured(
    model: MultiLobeModel, settings: LossSettings, rows: Sequence[LabelledRow] | None, stop: threading.Event
) -> Generator[Progress, None, LossMatrix]:
    began = time.perf_counter()
    datasets, left_out = _datasets(held_out_rows(model) if rows is None else rows, settings.most_rows)
    work = _Measuring(model, settings, datasets, stop)
    yield from work.ask_router()
    yield from work.read()
    if settings.task:
        yield from work.answer()
    return work.result(left_out, time.perf_counter() - began)


def _datasets(rows: Sequence[LabelledRow], most: int) -> tuple[dict[str, list[LabelledRow]], list[str]]:
    """Rows with answers by their lobe, or by their file where they have none; and the names of datasets without answers."""
    found: dict[str, list[LabelledRow]] = {}
    lobes = {row.lobe for row in rows}
    for row in rows:
        file = f"{row.source or 'rows'}{' (no lobe)' if row.source in lobes else ''}"
        found.setdefault(row.lobe or file, []).append(row)
    answered = {name: [row for row in own if row.answer.strip()] for name, own in found.items()}
    kept = {name: evenly(own, most, lambda row: row.lobe) for name, own in answered.items() if own}
    left_out = [name for name in found if name not in kept]
    if not kept:
        what = f"{', '.join(left_out)}: no row has an answer" if left_out else "no lobe has rows held out from training"
        raise DataError(f"There is nothing to measure losses on ({what}). Give a file with the columns \"input\" and \"output\".")
    return kept, left_out


class _Measuring:
    """One run, step by step; `table` and `marks` hold what has been measured so far."""

    def __init__(
        self, model: MultiLobeModel, settings: LossSettings, datasets: Mapping[str, Sequence[LabelledRow]], stop: threading.Event
    ) -> None:
        self.model, self.settings, self.datasets, self.stop = model, settings, datasets, stop
        self.router = settings.router or model.routing.default
        if not model.routing.named(self.router).is_fitted:
            raise RoutingError(f"{title_of(self.router)} has not been fitted yet. Fit it under Routers, or choose another.")
        own = [rows[0].lobe for rows in datasets.values()]
        self.table = LossTable(list(dict.fromkeys([*model.routing_context().lobes, *filter(None, own)])), own)
        self.marks: dict[str, dict[str, Any]] = {}
        self.short = [j for j, rows in enumerate(datasets.values()) if settings.task and is_short(rows)]
        self.step = 0

    def _at(self, phase: str, **values: float) -> Progress:
        steps = len(self.datasets) * (len(self.table.lobes) + 2) + len(self.short)
        return Progress(min(self.step, steps), steps, phase, values)

    def ask_router(self) -> Generator[Progress, None, None]:
        """What the router chooses for every row, of as many datasets as it comes to."""
        phase = f"Asking {title_of(self.router)}"
        for j, rows in enumerate(self.datasets.values()):
            yield self._at(phase)
            choices: list[Choice] = []
            for row in rows:
                if self.stop.is_set():
                    return
                choices.append(self.model.route(row.prompt, self.router).chosen)
            self.table.choices[j] = choices
            self.step += 1
        chosen = {name for choices in self.table.choices.values() for name in choices if name}
        self.table.lobes += sorted(chosen - set(self.table.lobes))  # lobes that the router made for itself

    def read(self) -> Generator[Progress, None, None]:
        """The table of losses, lobe by lobe."""
        bank, table = self.model.bank, self.table
        longest = min(self.settings.max_length, bank.backbone.context_length)
        tokenised = [TokenRows(bank.backbone, [row.example for row in rows], longest) for rows in self.datasets.values()]
        ids: dict[Choice, str] = {lobe.name: lobe.id for lobe in self.model.lobes}
        missing = [name for name in table.lobes if name not in ids]
        if missing:
            raise DataError(f"There is no lobe {missing[0]!r} any more. Start again with the lobes that there are.")
        for name in (None, *table.lobes):
            for j, rows in enumerate(tokenised):
                if self.stop.is_set():
                    return
                table.nll[name, j], table.tokens[j] = losses_under(bank, ids.get(name), rows)
                self.step += 1
                loss = table.mean(j, table.nll[name, j])
                values = {} if loss is None else {"loss": loss}
                yield self._at(f"Reading with {name or 'the base model'}", **values)

    def answer(self) -> Generator[Progress, None, None]:
        """Greedy answers to some rows of datasets of short answers, under the base, the router's choice and the own lobe."""
        for j in self.short:
            if self.stop.is_set() or j not in self.table.choices:
                return
            name, rows = list(self.datasets.items())[j]
            yield self._at(f"Answering {name}")
            if (marks := self._marked(j, rows)) is None:
                return
            self.marks[name] = marks
            self.step += 1
            yield self._at(f"Answering {name}", routed=marks["routed"]["exact"])

    def _marked(self, j: int, rows: Sequence[LabelledRow]) -> dict[str, Any] | None:
        """The marks of dataset j's answers; None if it was stopped. What two ways have in common is answered once."""
        count = min(len(rows), self.settings.task_rows)
        places = [i * len(rows) // count for i in range(count)]
        chosen, own = self.table.choices[j], self.table.own[j]
        ways: dict[str, list[Choice]] = {"base": [None] * count, "routed": [chosen[i] for i in places]}
        if own is not None:
            ways["oracle"] = [own] * count
        asked = dict.fromkeys(pair for choices in ways.values() for pair in zip(places, choices, strict=True))
        requests = [(rows[i].prompt, {choice: 1.0} if choice else {}) for i, choice in asked]
        texts = greedy_answers(self.model, requests, self.stop)
        if texts is None:
            return None
        answers = dict(zip(asked, texts, strict=True))
        marks: dict[str, Any] = {"rows": count, "oracle": {"exact": None, "f1": None}}
        for way, choices in ways.items():
            pairs = [(answers[i, choice], rows[i].answer) for i, choice in zip(places, choices, strict=True)]
            exact, f1 = ([float(mark(*pair)) for pair in pairs] for mark in (exact_match, token_f1))
            marks[way] = {"exact": sum(exact) / count, "f1": sum(f1) / count}
        return marks

    def result(self, left_out: Sequence[str], seconds: float) -> LossMatrix:
        """What there is so far."""
        table, places = self.table, range(len(self.datasets))
        return LossMatrix(
            lobes=table.lobes,
            datasets=list(self.datasets),
            rows=[len(rows) for rows in self.datasets.values()],
            tokens=[int(table.tokens[j].sum()) if j in table.tokens else 0 for j in places],
            left_out=left_out,
            own=table.own,
            losses=table.losses(),
            router=self.router,
            routed=[table.mean(j, table.routed(j)) for j in places],
            oracle=table.oracle(),
            gain=table.gain(),
            idle=table.idle(),
            share_of_oracle=table.share_of_oracle(),
            task=self.marks,
            task_share=share_of_exact(self.marks),
            stopped=self.stop.is_set(),
            seconds=seconds,
        )
