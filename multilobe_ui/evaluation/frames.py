"""Results of experiments as tables of numbers (pandas), for the page, for CSV and for scripts.
Pure: from a result's JSON.

What was not measured is NaN or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

Result = Mapping[str, Any]

BASE = "base model"
ORACLE = "the right lobe"
COSTS = [
    "time", "router", "stage", "lobes", "route_ms", "first_token_ms", "prompt_tokens", "answer_tokens",
    "seconds",
    "tokens_per_second", "resident", "resident_bytes", "stopped",
]  # fmt: skip
CHECKED = {"same": "logits", "files_same": "files", "fingerprint_same": "base"}


def report_frame(result: Result) -> pd.DataFrame:
    """A report card: a row for each router, with why it could not be asked in `error`."""
    columns = ["title", "accuracy", "right", "of", "ece", "strangers", "ms", "error"]
    return _frame(result.get("routers"), columns)


def scores_frame(result: Result, router: str) -> pd.DataFrame:
    """Precision, recall and F1 of every label that prompts or a router's decisions have; "" is no lobe."""
    own = result["routers"][router]
    confusion = confusion_frame(result, router)
    known = [label for label in confusion if confusion.loc[label].any() or confusion[label].any()]
    columns = ["precision", "recall", "f1"]
    return pd.DataFrame({column: [own[column].get(label) for label in known] for column in columns}, index=known)


def confusion_frame(result: Result, router: str) -> pd.DataFrame:
    """Rows: the label wanted. Columns: what the router decided. Cells: how many prompts."""
    labels = list(result["labels"])
    return pd.DataFrame(result["routers"][router]["confusion"], index=labels, columns=labels)


def calibration_frame(own: Result) -> pd.DataFrame:
    """Of one router: by bin of confidence how many prompts it has, how sure the router was of them,
    and the share right."""
    bins = {f"{100 * each['low']:.0f} to {100 * each['high']:.0f} %": each for each in own.get("calibration") or ()}
    frame = _frame(bins, ["low", "high", "count", "confidence", "accuracy"])
    return frame[frame["count"].fillna(0) > 0]


def abstention_frame(own: Result) -> pd.DataFrame:
    """Of one router: by the least confidence at which lobes would answer, the share that they
    answer, and the share right of it."""
    steps = {f"{100 * each['threshold']:.0f} %": each for each in own.get("abstention") or ()}
    return _frame(steps, ["answered", "accuracy"])


def refit_frame(result: Result) -> pd.DataFrame:
    """A trial refit: how many prompts each router has right before and after it."""
    return _frame(result.get("routers"), ["title", "before", "after", "of", "seconds", "error"])


def losses_frame(result: Result) -> pd.DataFrame:
    """A loss matrix in nats per answer token, with a column for each dataset.

    Rows: the base, every lobe, the router's choice, the right lobe.
    """
    routed = " by ".join(filter(None, ["routed", result.get("router")]))
    rows = list(zip([BASE, *result["lobes"]], result["losses"], strict=False))
    rows += [(name, result[key]) for name, key in ((routed, "routed"), (ORACLE, "oracle")) if result.get(key)]
    names = [name for name, _ in rows]
    return pd.DataFrame([values for _, values in rows], index=names, columns=list(result["datasets"]), dtype=float)


def answers_frame(result: Result) -> pd.DataFrame:
    """Exact match and F1 of short answers by dataset, of the base, of routed answers, and of the
    right lobe."""
    titles = {"base": BASE, "routed": "routed", "oracle": ORACLE}
    measured = result.get("task") or {}
    columns = pd.MultiIndex.from_product([titles.values(), ["exact", "f1"]])
    cells = [
        [(own.get(who) or {}).get(kind) for who in titles for kind in ("exact", "f1")] for own in measured.values()
    ]
    return pd.DataFrame(cells, index=list(measured), columns=columns)


def forgetting_frame(result: Result) -> pd.DataFrame:
    """A forgetting check: whether each lobe is the same (None: not known), and how far its logits
    are from what they were."""
    lobes = {str(lobe.get("name", "")): lobe for lobe in result.get("lobes") or ()}
    return _frame(lobes, ["same", "files_same", "fingerprint_same", "max_difference", "mean_kl"])


def contrast_frame(contrast: Result) -> pd.DataFrame:
    """Losses of one adapter that learns one domain after another, and the lobes' own, in nats per
    answer token."""
    losses = {contrast[which]: contrast["losses"][which] for which in ("first", "second")}
    return _frame(losses, ["base", "after_first", "after_second", "lobe"])


def merge_frame(result: Result) -> pd.DataFrame:
    """Losses on each parent's data: of the base, every parent, the exact mixture and the merge; the
    share of the parent's own gain over the base that the merge keeps (None of what is taken away,
    or gains nothing)."""
    weights = dict(result.get("parents") or ())
    rows = {str(row["dataset"]): row for row in result.get("losses") or ()}
    cells = {
        name: [row.get("base"), *row["parents"], row.get("mixture"), row.get("merged"), _gain_kept(row, name, weights)]
        for name, row in rows.items()
    }
    columns = ["base", *weights, "exact mix", "merged", "gain kept"]
    return pd.DataFrame.from_dict(cells, orient="index", columns=columns)


def search_frame(result: Result) -> pd.DataFrame:
    """A row for each trial of a search for weights: the weights, the loss, and whether it was the
    best so far."""
    trials = [trial for trial in result.get("trials") or () if "loss" in trial]
    weights = pd.DataFrame([trial.get("weights") or {} for trial in trials])
    return weights.assign(loss=[trial["loss"] for trial in trials], best=[trial.get("best") for trial in trials])


def ledger_frame(totals: Mapping[str, Result]) -> pd.DataFrame:
    """A ledger's totals: a row for each router, with how many replies each lobe gave in `by_lobe`."""
    columns = ["replies", "stopped", "route_ms", "route_ms_mean", "first_token_ms", "prompt_tokens", "answer_tokens", "seconds",
               "tokens_per_second", "by_lobe"]  # fmt: skip
    return _frame(totals, columns)


def costs_frame(costs: Sequence[Result]) -> pd.DataFrame:
    """A row for each answer of a ledger (`Cost.to_json`); names of several lobes in one cell."""
    frame = pd.DataFrame(list(costs), columns=COSTS)
    return frame.assign(lobes=frame["lobes"].map(", ".join), resident=frame["resident"].map(", ".join))


FRAMES: Mapping[str, Callable[[Result], pd.DataFrame]] = {
    "report": report_frame,
    "refit": refit_frame,
    "losses": losses_frame,
    "forgetting": forgetting_frame,
    "merge": merge_frame,
    "search": search_frame,
}
"""By experiment: the table that can be taken away."""


def _gain_kept(row: Result, name: str, weights: Mapping[str, float]) -> float | None:
    own = dict(zip(weights, row["parents"], strict=False)).get(name)
    losses = [row.get("base"), row.get("merged"), own]
    if weights.get(name, 0.0) <= 0 or None in losses:
        return None
    base, merged, alone = (float(loss) for loss in losses if loss is not None)
    if base - alone <= 0.01:
        return None
    return (base - merged) / (base - alone)


def _frame(rows: Mapping[str, Result] | None, columns: Sequence[str]) -> pd.DataFrame:
    """A row for each mapping, with these of its values."""
    given = rows or {}
    return pd.DataFrame(
        [[own.get(column) for column in columns] for own in given.values()], index=list(given),
        columns=columns
    )
