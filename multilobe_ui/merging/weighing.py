"""The search for weights as an experiment: a few examples in, weights for some lobes out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.examples import Example
from ..errors import DataError
from ..evaluation.labelled import LabelledRow, load_rows, write_rows
from ..evenly import evenly
from ..lobes.store import Lobe
from ..model import MultiLobeModel
from ..progress import Progress, finish
from .merge import parents_of, rows_of
from .search import Trial, search_weights
from .settings import MOST_EXAMPLES, SearchSettings


@dataclass(frozen=True)
class SearchResult:
    """What was found. Losses are mean NLL per answer token, in nats, on the rows of the search.

    Attributes:
        weights: lobe → the best weights. trials: in their order. base: loss of the plain base.
            loss: with the best weights.
        rows: examples used. given: whether a person gave them; else they are the lobes' own.
            stopped: ended before its budget.
    """

    weights: Mapping[str, float]
    trials: tuple[Trial, ...]
    base: float
    loss: float
    rows: int
    given: bool
    stopped: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_search(
    model: MultiLobeModel,
    settings: SearchSettings,
    *,
    data: Path | None = None,
    made: Path | None = None,
    stop: threading.Event,
) -> Generator[Progress, None, SearchResult]:
    """The experiment "search": on the rows of `data`, else on some of each lobe's own.

    Raises:
        LobeError: no lobe of that name. DataError: there is no row with an answer.
    """
    lobes = parents_of(model, settings.lobes)
    names = {lobe.id: lobe.name for lobe in lobes}
    rows = given_rows(load_rows(data)) if data else _own_rows(lobes, settings.rows)
    yield Progress(0, settings.budget, "Trying weights", {})
    search = search_weights(
        model.bank, list(names), rows, budget=settings.budget, penalty=settings.penalty, seed=settings.seed, stop=stop
    )
    trials: list[Trial] = []
    best = 0
    for trial in search:
        named = {names[id]: weight for id, weight in trial.weights.items()}
        trials.append(Trial(trial.number, named, trial.loss, trial.penalty, trial.best))
        best = len(trials) - 1 if trial.best else best
        yield Progress(trial.number, settings.budget, "Trying weights", {"loss": trial.loss, "best": trials[best].loss})
    return SearchResult(
        weights=trials[best].weights,
        trials=tuple(trials),
        base=trials[0].loss,  # the search begins with the base
        loss=trials[best].loss,
        rows=len(rows),
        given=data is not None,
        stopped=len(trials) < settings.budget,
    )


def search_lobes(
    model: MultiLobeModel,
    lobes: Sequence[str],
    rows: Sequence[tuple[str, str]] | None = None,
    *,
    scratch: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    **settings: Any,
) -> SearchResult:
    """`run_search` for scripts.

    Args:
        rows: (prompt, answer) of each example; None takes rows of the lobes. scratch: folder for
            them; None is the model's home.
        settings: the other fields of SearchSettings, such as budget=20.
    """
    asked, data = SearchSettings(tuple(lobes), **settings), None
    if rows is not None:
        data = (scratch or model.home) / ".search-rows.jsonl"
        write_rows(data, [LabelledRow(prompt, answer, None) for prompt, answer in rows])
    try:
        return finish(run_search(model, asked, data=data, stop=stop or threading.Event()), progress)
    finally:
        if data is not None:
            data.unlink(missing_ok=True)


def given_rows(rows: Sequence[LabelledRow]) -> list[Example]:
    """Examples out of a person's file. Raises DataError if no row has an answer."""
    found = [row.example for row in rows if row.answer]
    if not found:
        raise DataError(
            "The examples have no answers, so no loss can be measured on them. Give prompts with their answers."
        )
    return evenly(found, MOST_EXAMPLES)


def _own_rows(lobes: Sequence[Lobe], most: int) -> list[Example]:
    found = [row for lobe in lobes for row in rows_of(lobe, most)[0]]
    if not found:
        raise DataError("None of these lobes kept rows of its data. Upload a few examples of the task that you want.")
    return found
