"""Losses of every lobe on every dataset: does each lobe earn its place, and how much of its gain
does a router bring home?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.examples import Example
from ..errors import AdapterError, DataError, MultiLobeError, RoutingError
from ..evenly import even_places, evenly_by
from ..lobes.bank import LobeBank
from ..lobes.weights import Mix
from ..model import MultiLobeModel
from ..progress import Progress, finish
from ..training.batches import TokenRows, answer_losses
from .labelled import LabelledRow, flattery, load_rows, own_rows
from .loss_table import Array, Choice, LossTable, share_of_exact
from .report import Roll, title_of
from .settings import LossSettings
from .tasks import exact_match, greedy_answers, is_short, token_f1

FILES = "files of other prompts and answers"


@dataclass(frozen=True)
class LossMatrix:
    """What `lobe_losses` found. Losses are mean NLL per answer token, in nats; None where it was
    stopped before.

    Attributes:
        lobes, datasets: names, as they were when it began.
        rows, tokens: of each dataset, tokens of the answers alone. left_out: datasets without answers.
        own: each dataset's own lobe, None where no lobe fits or none is known.
        losses: (lobes + 1, datasets), the base first.
        router: name of the router. routed: loss of each dataset when each of its rows runs under
            the one lobe that the router chooses, or under the base where it chooses none. oracle:
            loss under the own lobe, None where there is none.
        gain: by lobe, the base's loss minus its own on its dataset. idle: lobes that gain nothing,
            or whose dataset another lobe reads better.
        share_of_oracle: (base - routed) / (base - oracle) of the losses over all answer tokens of
            the datasets that have a lobe of their own; None where their lobes gain nothing.
        task: by dataset of short answers, how many were asked, and the share of exact matches and
            the mean F1 (see `tasks`) under the base, the router's choice and the own lobe.
            task_share: exact matches of the router's choices / of the own lobes, over the datasets
            that have one; None where these have no exact match.
        notes: what to know when reading the numbers, in sentences.
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
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def loss_matrix(
    bank: LobeBank, lobes: Sequence[str], datasets: Mapping[str, Sequence[Example]], max_length: int = 512
) -> Array:
    """Mean NLL per answer token, in nats, of every dataset under the base (first row) and every
    lobe: (lobes + 1, datasets).

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

    The lobes are those that were there when it began. One that is deleted before it has been measured is left
    out, with a note.

    Args:
        rows: with answers; those of a lobe are its dataset, those without one make a dataset of each file.
            None takes rows that lobes held out from training, or were trained on where they held out none.
        settings: fields of LossSettings. stop: set it to end early.

    Raises:
        ConfigError: a setting. DataError: there are no answers, or no lobe is left.
        RoutingError: the router has not been fitted.
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
    asked = own_rows(model, answered=True) if rows is None else rows
    datasets, left_out = _datasets(asked, settings.most_rows)
    work = _Measuring(model, settings, datasets, stop)
    if rows is None and (note := flattery(asked, FILES)):
        work.notes.append(note)
    yield from work.ask_router()
    yield from work.read()
    if settings.task:
        yield from work.answer()
    return work.result(left_out, time.perf_counter() - began)


def _datasets(rows: Sequence[LabelledRow], most: int) -> tuple[dict[str, list[LabelledRow]], list[str]]:
    """Rows with answers by their lobe, or by their file where they have none; and the names of
    datasets without answers."""
    found: dict[str, list[LabelledRow]] = {}
    lobes = {row.lobe for row in rows}
    for row in rows:
        file = f"{row.source or 'rows'}{' (no lobe)' if row.source in lobes else ''}"
        found.setdefault(row.lobe or file, []).append(row)
    answered = {name: [row for row in own if row.answer.strip()] for name, own in found.items()}
    kept = {name: evenly_by(lambda row: row.lobe, own, most) for name, own in answered.items() if own}
    left_out = [name for name in found if name not in kept]
    if not kept:
        nobody = "no lobe has kept rows with answers"
        what = f"{', '.join(left_out)}: no row has an answer" if left_out else nobody
        raise DataError(
            f'There is nothing to measure losses on ({what}). Give a file with the columns "input" and "output".'
        )
    return kept, left_out


class _Measuring:
    """One run, step by step; `table` and `marks` hold what has been measured so far.

    It goes by the ids that lobes had when it began, so one that is renamed meanwhile keeps its old name here.
    """

    def __init__(
        self,
        model: MultiLobeModel,
        settings: LossSettings,
        datasets: Mapping[str, Sequence[LabelledRow]],
        stop: threading.Event,
    ) -> None:
        self.model, self.settings, self.datasets, self.stop = model, settings, datasets, stop
        self.there, self.ids = Roll(model), {lobe.name: lobe.id for lobe in model.lobes}
        name = settings.router or model.routers.default
        self.router = model.routers.named(name)
        if not self.router.is_fitted:
            raise RoutingError(f"{title_of(name)} has not been fitted yet. Fit it under Routers, or choose another.")
        own = [rows[0].lobe for rows in datasets.values()]
        self.table = LossTable(list(dict.fromkeys([*model.routers.context().lobes, *filter(None, own)])), own)
        self.marks: dict[str, dict[str, Any]] = {}
        self.short = [j for j, rows in enumerate(datasets.values()) if settings.task and is_short(rows)]
        self.step = 0
        self.notes: list[str] = []
        self.unread: list[str] = []
        """Lobes that were gone before they had been measured."""

    def _at(self, phase: str, **values: float) -> Progress:
        steps = len(self.datasets) * (len(self.table.lobes) + 2) + len(self.short)
        return Progress(min(self.step, steps), steps, phase, values)

    def ask_router(self) -> Generator[Progress, None, None]:
        """What the router chooses for every row, of as many datasets as it comes to."""
        phase = f"Asking {title_of(self.router.name)}"
        for j, rows in enumerate(self.datasets.values()):
            yield self._at(phase)
            choices = self._choices(rows)
            if self.stop.is_set():
                return
            if choices is None:
                self.notes.append(
                    f"{title_of(self.router.name)} reads a lobe that was deleted meanwhile, "
                    f"so it could be asked about {j} of {len(self.datasets)} datasets."
                )
                break
            self.table.choices[j] = choices
            self.step += 1
        self.step = len(self.datasets)
        chosen = {name for choices in self.table.choices.values() for name in choices if name}
        self.table.lobes += sorted(chosen - set(self.table.lobes))  # lobes that the router made for itself

    def _choices(self, rows: Sequence[LabelledRow]) -> list[Choice] | None:
        """The router's choice for each row, for fewer if stopped; None if it reads a lobe that is gone."""
        choices: list[Choice] = []
        for row in rows:
            if self.stop.is_set():
                break
            if self.router.needs_model and self.there.replaced():
                return None  # it would read another lobe, and say nothing of it
            try:
                choices.append(self._choice(row.prompt))
            except (MultiLobeError, LookupError):
                if self.there.gone():
                    return None
                raise
        return choices

    def _choice(self, prompt: str) -> Choice:
        try:
            return self.router.route(prompt).chosen
        except AdapterError:  # a lobe's weights turned out to be damaged: go on without it, as answers do
            chosen = self.model.route(prompt, self.router.name).chosen
            self.router = self.model.routers.named(self.router.name)
            return chosen

    def read(self) -> Generator[Progress, None, None]:
        """The table of losses, lobe by lobe."""
        bank, table = self.model.bank, self.table
        longest = min(self.settings.max_length, bank.backbone.context_length)
        tokenised = [
            TokenRows(bank.backbone, [row.example for row in rows], longest) for rows in self.datasets.values()
        ]
        for place, name in enumerate((None, *table.lobes)):
            for j, rows in enumerate(tokenised):
                if self.stop.is_set():
                    return
                found = self._losses(name, rows)
                if found is None:
                    self.unread.append(str(name))
                    break
                table.nll[name, j], table.tokens[j] = found
                self.step += 1
                loss = table.mean(j, table.nll[name, j])
                values = {} if loss is None else {"loss": loss}
                yield self._at(f"Reading with {name or 'the base model'}", **values)
            self.step = len(tokenised) * (place + 2)

    def _losses(self, lobe: Choice, rows: TokenRows) -> tuple[Array, Array] | None:
        """`losses_under`; None if the lobe is gone, be it before or meanwhile."""
        if lobe is None:
            return losses_under(self.model.bank, None, rows)
        if self._is_gone(lobe):
            return None
        try:
            found = losses_under(self.model.bank, self.ids[lobe], rows)
        except (MultiLobeError, LookupError):
            if self._is_gone(lobe):
                return None
            raise
        return None if self._is_gone(lobe) else found

    def _is_gone(self, lobe: str) -> bool:
        return lobe not in self.ids or lobe in self.there.gone()

    def answer(self) -> Generator[Progress, None, None]:
        """Greedy answers to some rows of datasets of short answers, under the base, the router's
        choice and the own lobe."""
        skipped: list[str] = []
        for j in self.short:
            if self.stop.is_set():
                break
            name, rows = list(self.datasets.items())[j]
            if j not in self.table.choices or self.table.own[j] in self.unread:
                continue  # which a note says already
            yield self._at(f"Answering {name}")
            try:
                marks = None if self._needs_a_gone_lobe(j) else self._marked(j, rows)
            except (MultiLobeError, LookupError):
                if not self._needs_a_gone_lobe(j):
                    raise
                marks = None
            if marks is None and not self.stop.is_set():
                skipped.append(name)
            if marks is not None:
                self.marks[name] = marks
            self.step += 1
            yield self._at(f"Answering {name}", **({"routed": marks["routed"]["exact"]} if marks else {}))
        if skipped:
            self.notes.append(f"Not answered, because a lobe was deleted before: {', '.join(skipped)}.")

    def _needs_a_gone_lobe(self, j: int) -> bool:
        return any(self._is_gone(name) for name in {self.table.own[j], *self.table.choices[j]} if name)

    def _marked(self, j: int, rows: Sequence[LabelledRow]) -> dict[str, Any] | None:
        """The marks of dataset j's answers; None if it was stopped. What two ways have in common is
        answered once."""
        places = even_places(len(rows), self.settings.task_rows)
        count = len(places)
        chosen, own = self.table.choices[j], self.table.own[j]
        ways: dict[str, list[Choice]] = {"base": [None] * count, "routed": [chosen[i] for i in places]}
        if own is not None:
            ways["oracle"] = [own] * count
        asked = dict.fromkeys(pair for choices in ways.values() for pair in zip(places, choices, strict=True))
        names = {lobe.id: lobe.name for lobe in self.model.lobes}  # a lobe may have been renamed
        requests = [(rows[i].prompt, {names[self.ids[choice]]: 1.0} if choice else {}) for i, choice in asked]
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
        gone = set(self.unread)
        datasets = {name: rows for name, rows in self.datasets.items() if rows[0].lobe not in gone}
        if not datasets:
            raise DataError(
                "Every lobe was deleted while its losses were measured, so there is nothing to show. "
                "Measure the lobes that there are now."
            )
        table, places = self.table.without(gone), range(len(datasets))
        return LossMatrix(
            lobes=table.lobes,
            datasets=list(datasets),
            rows=[len(rows) for rows in datasets.values()],
            tokens=[int(table.tokens[j].sum()) if j in table.tokens else 0 for j in places],
            left_out=left_out,
            own=table.own,
            losses=table.losses(),
            router=self.router.name,
            routed=[table.mean(j, table.routed(j)) for j in places],
            oracle=table.oracle(),
            gain=table.gain(),
            idle=table.idle(),
            share_of_oracle=table.share_of_oracle(),
            task=self.marks,
            task_share=share_of_exact(self.marks),
            stopped=self.stop.is_set(),
            seconds=seconds,
            notes=[*self._left_out(), *self.notes],
        )

    def _left_out(self) -> list[str]:
        """What happened to lobes that were not measured, in sentences."""
        told = []
        unknown = [name for name in self.unread if name not in self.ids]
        if unknown:
            told.append(
                f"No lobe is called {' or '.join(unknown)} any more, so those rows are left out. "
                "Measure again if it was renamed."
            )
        deleted = [name for name in self.unread if name in self.ids]
        one = len(deleted) == 1
        if deleted:
            who = f"The lobe {deleted[0]} was" if one else f"The lobes {', '.join(deleted)} were"
            they_are = "it is" if one else "they are"
            told.append(f"{who} deleted before all losses were measured, so {they_are} left out.")
        choices = self.table.without(self.unread).choices
        if set(deleted) & {name for each in choices.values() for name in each}:
            title, them = title_of(self.router.name), "it" if one else "them"
            told.append(f"{title} chose {them} for some other rows, so there is no routed loss of those.")
        return told
