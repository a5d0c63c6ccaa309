"""The merge as an experiment: made, measured beside its parents, and a lobe only once a person has said so.

    made/adapter   the plain PEFT adapter        made/routing   rows of its parents, for routers to know it by
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.examples import Example
from ..errors import AdapterError, LobeError
from ..evenly import even_places, evenly
from ..files import new_folder
from ..lobes.adapter import read_header
from ..lobes.rows import (
    KEPT_TRAIN_ROWS,
    KEPT_VALIDATION_ROWS,
    PROMPTS_FILE,
    ROUTING_FILE,
    prototypes_of,
    write_routing_rows,
)
from ..lobes.store import Lobe
from ..model import MultiLobeModel
from ..progress import Progress, finish
from ..routers import RoutingRows
from .combining import Composition, combine
from .cost import losses
from .kinds import COMBINATIONS, possible
from .settings import MergeSettings, Pairs, pairs_of

EXACT, CLOSE, LOSSY = 1e-4, 0.1, 0.5
"""Errors of the delta up to which a merge is the weighted sum itself, close to it, and still much of it."""



@dataclass(frozen=True)
class MergeResult:
    """A merge and what it cost. Losses are mean NLL per answer token, in nats.

    Attributes:
        says: what the combination does. parents: (name, weight). rank, parameters, nbytes, error,
            layer_errors: see `Composition`; a layer whose error is infinite has None. seconds: that
            combining took.
        losses: for each parent's rows {"dataset", "rows", "held_out", "base", "parents", "mixture",
            "merged"}.
        without_rows: parents of which no rows are known, so that nothing could be measured on them.
        advice: one sentence. base: name and fingerprint of the base that it was made for.
        kept: name of the lobe that it became, "" before. stopped: whether losses are missing
            because somebody stopped it.
    """

    combination: str
    says: str
    parents: Pairs
    rank: int
    parameters: int
    nbytes: int
    error: float
    layer_errors: Mapping[str, float | None]
    density: float | None
    seed: int
    seconds: float
    losses: tuple[Mapping[str, Any], ...]
    without_rows: tuple[str, ...]
    advice: str
    base: Mapping[str, str]
    kept: str = ""
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"parents": [list(pair) for pair in self.parents]}


def run_merge(
    model: MultiLobeModel, settings: MergeSettings, *, data: Path | None = None, made: Path, stop: threading.Event
) -> Generator[Progress, None, MergeResult]:
    """The experiment "merge": combine into `made`, then measure losses, one parent's rows at a time.

    Raises:
        LobeError: no lobe of that name. AdapterError: these lobes cannot be combined so.
    """
    lobes = [(lobe, weight) for lobe, (_, weight) in zip(parents_of(model, settings.lobes), settings.lobes, strict=True)]
    reason = possible([read_header(lobe.path) for lobe, _ in lobes], [lobe.name for lobe, _ in lobes])[settings.combination]
    if reason:
        raise AdapterError(f"{settings.combination} cannot combine these lobes: {reason}.")
    rows = {lobe.name: rows_of(lobe, settings.most_rows) for lobe, _ in lobes}
    known = {name: own for name, (own, _) in rows.items() if own}
    steps = 1 + len(known)
    yield Progress(0, steps, "Combining the lobes", {})
    folders = [(lobe.path, weight) for lobe, weight in lobes]
    composition = combine(
        model.backbone, folders, settings.combination, made / "adapter", rank=settings.rank, density=settings.density,
        seed=settings.seed,
    )  # fmt: skip
    _keep_rows(model, [lobe.name for lobe, _ in lobes], made / "routing")
    yield Progress(1, steps, "Measuring losses", {"error": composition.error})
    measured: list[Mapping[str, Any]] = []
    for row in losses(model.backbone, composition.path, folders, known) if not stop.is_set() else ():
        more = {"rows": len(known[row.dataset]), "held_out": rows[row.dataset][1]}
        numbers = {"base": row.base, "mixture": row.mixture, "merged": row.merged}
        measured.append(
            {"dataset": row.dataset, **more, "parents": [finite(x) for x in row.parents],
             **{name: finite(value) for name, value in numbers.items()}}
        )  # fmt: skip
        yield Progress(1 + len(measured), steps, "Measuring losses", {"error": composition.error})
        if stop.is_set():
            break
    named = tuple((lobe.name, weight) for lobe, weight in lobes)
    stopped = len(measured) < len(known)
    return _result(model, composition, named, measured, tuple(name for name in rows if name not in known), stopped)


def merge_lobes(
    model: MultiLobeModel,
    lobes: Mapping[str, float],
    made: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    **settings: Any,
) -> MergeResult:
    """`run_merge` for scripts: {name: weight} into the folder `made`, which `keep_merge` makes a lobe of.

    Args:
        settings: the other fields of MergeSettings, such as combination="ties".
    """
    asked = MergeSettings(pairs_of(lobes), **settings)
    return finish(run_merge(model, asked, made=made, stop=stop or threading.Event()), progress)


def keep_merge(
    model: MultiLobeModel, made: Path, result: Mapping[str, Any], name: str, *, owner: str = "", routed: bool = True
) -> Lobe:
    """Make an ordinary lobe of what a merge left in `made`, which then goes; if it is refused,
    `made` stays as it is.

    Args:
        result: `MergeResult.to_json`. routed: give it rows of its parents, so that routers may
            choose it beside them; without rows it is found by hand, and by routers that ask the
            language model.

    Raises:
        LobeError: the name is refused or taken, or the files are gone. AdapterError: it was made
            for another base model.
    """
    name = model.lobes.store.check_free(name)
    if not (made / "adapter").is_dir():
        raise LobeError(f"The files of this merge are no longer there, so {name!r} cannot be made of them. Try the merge again.")
    base = result.get("base") or {}
    if base.get("fingerprint") != model.backbone.fingerprint:
        raise AdapterError(f"This merge was made for the base model {base.get('name')!r}. Load that one, then keep it.")
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=model.home) as scratch:
        adapter = Path(shutil.copytree(made / "adapter", Path(scratch) / "adapter"))
        for file in (made / "routing").glob("*") if routed else ():
            if file.name in (ROUTING_FILE, PROMPTS_FILE):
                shutil.copyfile(file, adapter / file.name)
        card = model.lobes.new_card(name, "merged", owner=owner, composition=composition_of(result))
        lobe = model.lobes.add(adapter, card)
    shutil.rmtree(made, ignore_errors=True)
    return lobe


def composition_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a merged lobe's card says of where it came from."""
    told = ("combination", "parents", "rank", "density", "seed", "error", "parameters", "nbytes")
    return {key: result.get(key) for key in told}


def parents_of(model: MultiLobeModel, names: Sequence[tuple[str, float]] | Sequence[str]) -> list[Lobe]:
    """The lobes of these names. Raises LobeError: there is none, it belongs to another base, or one
    is named twice."""
    found = [model.lobes.named(name if isinstance(name, str) else name[0]) for name in names]
    for lobe in found:
        if lobe.id not in model.bank:
            raise LobeError(f"{lobe.name!r} belongs to another base model or is damaged, so it cannot be used. Choose another.")
        if found.count(lobe) > 1:
            raise LobeError(f"{lobe.name!r} is named twice. Name it once, with all its weight.")
    return found


def rows_of(lobe: Lobe, most: int) -> tuple[list[Example], bool]:
    """(rows on which a lobe can be measured, whether it was not trained on them): evenly spread;
    none if it came without data."""
    kept = lobe.routing_rows()
    if kept is None:
        return [], False
    for prompts, answers, held_out in (
        (kept.validation_prompts, kept.validation_answers, True),
        (kept.train_prompts, kept.train_answers, False),
    ):
        rows = [Example(({"role": "user", "content": p},), a) for p, a in zip(prompts, answers, strict=False) if p and a]
        if rows:
            return evenly(rows, most), held_out
    return [], False


def finite(value: float) -> float | None:
    """For JSON, which knows no infinity."""
    return float(value) if math.isfinite(value) else None


def mixed_rows(parents: Sequence[RoutingRows]) -> RoutingRows:
    """Rows for routing out of several lobes' rows, as many of each lobe as of the others where
    there are enough."""
    train, learned = _shares([(p.train, p.train_prompts, p.train_answers) for p in parents], KEPT_TRAIN_ROWS)
    kept, held_out = _shares(
        [(p.validation, p.validation_prompts, p.validation_answers) for p in parents], KEPT_VALIDATION_ROWS
    )
    known = np.concatenate([p.train if len(p.train) else p.prototypes for p in parents])
    prompts, answers = [list(side) for side in zip(*learned, strict=True)] or [[], []]
    others, replies = [list(side) for side in zip(*held_out, strict=True)] or [[], []]
    return RoutingRows(prototypes_of(known, 4 * len(parents)), train, kept, prompts, others, answers, replies)


def advice(combination: str, rank: int, error: float, measured: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for a person: what most speaks against a merge, else what speaks for it."""
    worse = [row["dataset"] for row in measured if None not in (row["merged"], row["base"]) and row["merged"] > row["base"]]
    if worse:
        return f"On the data of {worse[0]} it does worse than the base model with no lobe: use cat or svd, or other weights."
    if error <= EXACT:
        return f"It is exactly the weighted sum, at rank {rank}: nothing is lost, but a larger rank costs memory and time."
    if "ties" in combination:
        return "It averages where lobes agree and does not aim at their sum, so judge it by the losses and not by the error."
    if error > LOSSY:
        return "Much of the weighted sum is lost: use cat or svd, a higher rank or density, or fewer lobes."
    if combination.startswith("dare"):
        return "What it drops is chance: try other seeds, and compare their losses before you keep one."
    if error > CLOSE:
        return "A part of the weighted sum is lost: compare the losses, and raise the rank or density if they matter."
    return "It is close to the weighted sum, at a small size."


# ---- inside ----------------------------------------------------------------------------------------------------------------


def _keep_rows(model: MultiLobeModel, names: Sequence[str], folder: Path) -> None:
    """Write rows of these lobes for routing, as the parents may be gone by the time that the merge
    is kept."""
    known = model.routers.context().rows
    parents = [known[name] for name in names if name in known]
    if parents:
        with new_folder(folder) as temporary:
            write_routing_rows(temporary, mixed_rows(parents))


def _shares(parents: Sequence[tuple[Any, Sequence[str], Sequence[str]]], most: int) -> tuple[Any, list[tuple[str, str]]]:
    """(vectors, (prompt, answer) of each) of at most `most` rows, every lobe with as large a share;
    a prompt comes once."""
    vectors, rows, seen = [], [], set()
    for own, prompts, answers in parents:
        answers = list(answers) or [""] * len(prompts)
        for i in even_places(len(prompts), max(1, most // len(parents))):
            if prompts[i] not in seen:
                seen.add(prompts[i])
                vectors.append(own[i])
                rows.append((prompts[i], answers[i]))
    return (np.stack(vectors) if vectors else parents[0][0][:0]), rows


def _result(
    model: MultiLobeModel,
    made: Composition,
    parents: Pairs,
    measured: Sequence[Mapping[str, Any]],
    without_rows: tuple[str, ...],
    stopped: bool,
) -> MergeResult:
    added = {name for name, weight in parents if weight > 0}  # what is subtracted is meant to become worse
    telling = [row for row in measured if row["dataset"] in added]
    return MergeResult(
        combination=made.combination,
        says=COMBINATIONS[made.combination].says,
        parents=parents,
        rank=made.rank,
        parameters=made.parameters,
        nbytes=made.nbytes,
        error=made.error,
        layer_errors={module: finite(error) for module, error in made.layer_errors.items()},
        density=made.density,
        seed=made.seed,
        seconds=made.seconds,
        losses=tuple(measured),
        without_rows=without_rows,
        advice=advice(made.combination, made.rank, made.error, telling),
        base={"name": model.backbone.name, "fingerprint": model.backbone.fingerprint},
        stopped=stopped,
    )
