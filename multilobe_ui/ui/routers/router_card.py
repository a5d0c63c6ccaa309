"""Routers as HTML: the list, one in detail, its fit under way, and its report. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..kit import text
from ..kit.frames import column_head, frame_table, row_head, td
from ..kit.html import Markup, around, html, joined
from ..kit.table import fact

if TYPE_CHECKING:
    from ...app.views import JobView, RouterView

ACTIVE = ("running", "stopping")
WORKING = ("queued", *ACTIVE)
NAMES = {
    "ece": "Calibration error (ECE)", "loss": "Loss", "held_out_loss": "Held-out loss",
    "accuracy": "Accuracy",
    "routing_accuracy": "Routing accuracy", "test_loss": "Test loss", "test_loss_soft": "Test loss, soft mix",
    "base_loss": "Base model's loss", "held_out_rows": "Rows held out", "train_rows": "Rows trained on",
    "seconds": "Took",
    "known_to_lobes": "Of these, lobes learned",
}  # fmt: skip
SHARES = ("accuracy", "ece", "share", "fraction", "recall", "precision", "coverage", "agreement", "usage")
STATES = {
    "fitting": "Fitting",
    "waiting": "Waiting",
    "ready": "Ready",
    "stale": "Stale",
    "needs": "Needs a fit",
    "off": "Not now",
}
ENDS = {"finished": "fitted", "failed": "the fit has failed"}
MOST_ROWS, MOST_COLUMNS = 40, 8
"""Of a table in a report."""


def state_of(view: RouterView, job: JobView | None = None) -> str:
    """ "fitting", "waiting", "stale", "needs", "off" or "ready"."""
    if job is not None and job.state == "queued":
        return "waiting"
    if job is not None and job.state in ACTIVE:
        return "fitting"
    if view.asks_for_fit and not view.fitted:
        return "needs"
    if view.stale:
        return "stale"
    if view.fitted:
        return "ready"
    return "off"


def _title_and_state(view: RouterView, state: str, kind: str) -> Markup:
    """The title, and whether the router is experimental; its state."""
    badge = Markup()
    if view.experimental:
        badge = Markup('<span class="router-badge">experimental</span>')
    return html(
        '<b class="{}">{}{}</b><span class="router-pill is-{}">{}</span>', kind, view.title, badge, state,
        STATES[state]
    )


def router_list(views: Sequence[RouterView], jobs: Mapping[str, JobView], picked: str) -> Markup:
    """Buttons, one for each router, with its state and one sentence."""
    return html(
        '<div class="router-list">{}</div>',
        joined(_item(view, jobs.get(view.name), view.name == picked) for view in views),
    )


def _item(view: RouterView, job: JobView | None, picked: bool) -> Markup:
    state, small = state_of(view, job), ""
    if state == "fitting" and job is not None and job.steps:
        small = f"{round(100 * job.step / job.steps)} %"
    elif state == "ready" and view.fitted_at and view.asks_for_fit:
        small = f"fitted {text.when(view.fitted_at)}"
    return html(
        '<button type="button" class="router-item" data-row="{}" '
        'aria-pressed="{}"><span>{}</span><em>{}</em>{}</button>', view.name, str(picked).lower(),
        _title_and_state(view, state, ""), view.sentence, around("<small>{}</small>", small),
    )  # fmt: skip


def router_detail(view: RouterView, job: JobView | None = None) -> Markup:
    """What the router is, how it stands, and what to do about it."""
    state, about = state_of(view, job), [view.sentence]
    if view.per_token:
        about.append("Weighs every token anew, layer by layer.")
    if not view.asks_for_fit:
        about.append("It calibrates itself when lobes come or go; there is nothing to start.")
    return html(
        '<div class="ml-box"><div class="train-head">{}</div><p class="router-about">{}</p>{}</div>',
        _title_and_state(view, state, "train-title"), " ".join(about), _alert(view, state),
    )  # fmt: skip


def _alert(view: RouterView, state: str) -> Markup:
    if state == "stale":
        return html('<p class="train-ask" role="status"><b>The fit is stale.</b> {} Press Fit again.</p>', view.why)
    if state == "needs":
        return html(
            '<p class="train-ask" role="status">{} One click learns it from your lobes\' own rows.</p>',
            view.why
        )
    if state in ("fitting", "waiting") and view.fitted:
        return Markup('<p class="train-good">The earlier fit serves until the new one is complete.</p>')
    if state == "off":
        return around('<p class="train-ask" role="status">{}</p>', view.why)
    if view.fitted_at and view.asks_for_fit:
        when = text.when(view.fitted_at)
        return html('<p class="train-good">Fitted {}. It goes with every bundle that you save in Manage.</p>', when)
    return Markup()


# ---- a fit ---------------------------------------------------------------------------------------


def fit_status(job: JobView, title: str) -> str:
    """The fit in one sentence: the accessible value of bar and plot."""
    if job.state == "queued":
        return f"{title}: waiting, place {job.place} in the queue."
    if job.state == "running":
        parts = [f"{title}: {job.phase or 'starting'}"]
        if job.steps:
            parts.append(f"step {job.step:,} of {job.steps:,}")
        if job.step and job.seconds_left is not None:
            parts.append(text.time_left(job.seconds_left))
        return f"{', '.join(parts)}."
    if job.state == "stopping":
        return f"{title}: stopping; the best so far is kept."
    end = f"{title}: {ENDS.get(job.state, job.state)}"
    if job.seconds:
        end += f" after {text.duration(job.seconds)}"
    return f"{end}. {job.error}".strip()


def fit_card(job: JobView | None, title: str) -> Markup:
    """Progress of a fit at work; why the last one failed. Empty otherwise: a fit that went well
    shows as its report."""
    if job is None:
        return Markup()
    line = fit_status(job, title)
    if job.state in ("failed", "interrupted"):
        return html('<p class="train-warn">{}</p>', line)
    if job.state not in WORKING:
        return Markup()
    percent, who = 0, Markup()
    if job.steps:
        percent = round(100 * job.step / job.steps)
    if not job.mine:
        who = Markup(' <span class="ml-faint">started by another visitor</span>')
    return html(
        '<div class="train-bar {}" role="progressbar" aria-label="{}" aria-valuemin="0" aria-valuemax="100" '
        'aria-valuenow="{}"><div style="width:{}%"></div></div><p class="train-status">{}{}</p>',
        job.state, title, percent, percent, line, who,
    )  # fmt: skip


def report_card(report: Mapping[str, Any]) -> Markup:
    """Numbers as facts, mappings of numbers as tables; nothing for an empty report."""
    plain = {name: value for name, value in report.items() if _is_plain(value) and value not in ("", None)}
    nested = {name: value for name, value in report.items() if isinstance(value, Mapping) and value}
    facts, tables = _facts(plain), joined(_group(name, value) for name, value in nested.items())
    if not plain and not tables:
        return Markup()
    return html(
        '<div class="ml-box"><div class="train-file"><b>What the last fit measured</b></div>{}{}</div>',
        facts, tables
    )


def _facts(values: Mapping[str, Any], named: str = "") -> Markup:
    """`named`: what says how the values are written, if that is not their own name."""
    facts = joined(fact(title_of(str(key)), value_of(named or key, value)) for key, value in values.items())
    return html('<div class="train-facts">{}</div>', facts)


def _group(name: str, values: Mapping[str, Any]) -> Markup:
    """A few numbers under one heading, or a table of many."""
    if len(values) > 6 or not all(map(_is_plain, values.values())):
        return _table(name, values)
    return html('<p class="router-group">{}</p>{}', title_of(name), _facts(values, name))


def _table(name: str, values: Mapping[str, Any]) -> Markup:
    """{row: {column: number}} as a table, {row: number} as one of two columns."""
    rows = {row: own if isinstance(own, Mapping) else {"": own} for row, own in values.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index").iloc[:MOST_ROWS, :MOST_COLUMNS]
    return frame_table(
        frame, "ml-plain", caption=title_of(name), corner=Markup("<th></th>"),
        head=lambda column: column_head(title_of(str(column))),
        row=lambda row, cells: html("<tr>{}{}</tr>", row_head(text.short(title_of(str(row)), 28)), cells),
        cell=lambda row, column, value: td(value_of(column or name, value)),
    )  # fmt: skip


def title_of(name: str) -> str:
    """A key as words."""
    words = NAMES.get(name) or name.replace("_", " ")
    return words[:1].upper() + words[1:]


def value_of(name: str, value: Any) -> str:
    """A number as its name asks for: shares in percent, seconds as a time, losses with three digits."""
    if value is True:
        return "yes"
    if value is False:
        return "no"
    if isinstance(value, str):
        return text.short(value, 60)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return text.NOTHING
    if name == "seconds" or name.endswith("_seconds"):
        return text.duration(float(value))
    if any(word in name for word in SHARES) and 0 <= value <= 1 and isinstance(value, float):
        return f"{100 * value:.1f} %"
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 0.001:
        return f"{value:.3f}"
    return f"{value:.2g}"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
