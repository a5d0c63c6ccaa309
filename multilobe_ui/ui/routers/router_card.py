"""Routers as HTML: the list, one in detail, its fit under way, its report, and what all say of one prompt. Pure; all is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...routing.decision import RoutingDecision
from ..kit import text
from ..kit.figures import BASE_COLOUR, NONE, bars_in_order, mix_title, probabilities, share_bar
from ..kit.table import fact

if TYPE_CHECKING:
    from ...app.views import JobView, RouterView

ACTIVE = ("running", "stopping")
WORKING = ("queued", *ACTIVE)
MOST_ROWS = 8
NAMES = {
    "ece": "Calibration error (ECE)", "loss": "Loss", "held_out_loss": "Held-out loss", "accuracy": "Accuracy",
    "routing_accuracy": "Routing accuracy", "test_loss": "Test loss", "test_loss_soft": "Test loss, soft mix",
    "base_loss": "Base model's loss", "held_out_rows": "Rows held out", "train_rows": "Rows trained on", "seconds": "Took",
    "known_to_lobes": "Of these, lobes learned",
}  # fmt: skip
SHARES = ("accuracy", "ece", "share", "fraction", "recall", "precision", "coverage", "agreement", "usage")
STATES = {"fitting": "Fitting", "waiting": "Waiting", "ready": "Ready", "stale": "Stale", "needs": "Needs a fit", "off": "Not now"}


def state_of(view: RouterView, job: JobView | None = None) -> str:
    """"fitting", "waiting", "stale", "needs", "off" or "ready"."""
    if job is not None and job.state in WORKING:
        return "waiting" if job.state == "queued" else "fitting"
    if view.asks_for_fit and not view.fitted:
        return "needs"
    if view.stale:
        return "stale"
    return "ready" if view.fitted else "off"


def pill(state: str) -> str:
    return f'<span class="router-pill is-{text.escape(state)}">{text.escape(STATES.get(state, state))}</span>'


def badge(view: RouterView) -> str:
    """Says that a router is experimental; "" for the others."""
    return '<span class="router-badge">experimental</span>' if view.experimental else ""


def router_list(views: Sequence[RouterView], jobs: Mapping[str, JobView], picked: str) -> str:
    """Buttons, one for each router, with its state and one sentence."""
    items = "".join(_item(view, jobs.get(view.name), view.name == picked) for view in views)
    return f'<div class="router-list">{items}</div>'


def _item(view: RouterView, job: JobView | None, picked: bool) -> str:
    state = state_of(view, job)
    known = view.fitted_at and view.asks_for_fit and state == "ready"
    when = f"<small>fitted {text.escape(text.when(view.fitted_at))}</small>" if known else ""
    done = f"<small>{_done(job)}</small>" if job is not None and state == "fitting" else ""
    return (
        f'<button type="button" class="router-item" data-row="{text.escape(view.name)}" aria-pressed="{str(picked).lower()}">'
        f"<span><b>{text.escape(view.title)}{badge(view)}</b>{pill(state)}</span><em>{text.escape(view.sentence)}</em>{when}{done}</button>"
    )


def router_detail(view: RouterView, job: JobView | None = None) -> str:
    """What the router is, how it stands, and what to do about it."""
    state = state_of(view, job)
    title = f'<b class="train-title">{text.escape(view.title)}{badge(view)}</b>'
    head = f'<div class="train-head">{title}{pill(state)}</div>'
    kind = "Weighs every token anew, layer by layer." if view.per_token else ""
    own = "" if view.asks_for_fit else "It calibrates itself when lobes come or go; there is nothing to start."
    about = " ".join(filter(None, [view.sentence, kind, own]))
    alert = ""
    if state == "stale":
        alert = f'<p class="train-ask" role="status"><b>The fit is stale.</b> {text.escape(view.why)} Press Fit again.</p>'
    elif state == "needs":
        alert = f'<p class="train-ask" role="status">{text.escape(view.why)} One click learns it from your lobes\' own rows.</p>'
    elif state in ("fitting", "waiting") and view.fitted:
        alert = '<p class="train-good">The earlier fit serves until the new one is complete.</p>'
    elif view.why and state == "off":
        alert = f'<p class="train-ask" role="status">{text.escape(view.why)}</p>'
    elif view.fitted_at and view.asks_for_fit:
        when = text.escape(text.when(view.fitted_at))
        alert = f'<p class="train-good">Fitted {when}. It goes with every bundle that you save in Manage.</p>'
    return f'<div class="ml-box">{head}<p class="router-about">{text.escape(about)}</p>{alert}</div>'


# ---- a fit -----------------------------------------------------------------------------------------------------------


def fit_status(job: JobView | None, title: str) -> str:
    """The fit in one sentence: the accessible value of bar and plot."""
    if job is None:
        return ""
    if job.state == "queued":
        return f"{title}: waiting, place {job.place} in the queue."
    if job.state == "running":
        step = f", step {job.step:,} of {job.steps:,}" if job.steps else ""
        left = f", {text.time_left(job.seconds_left)}" if job.step and job.seconds_left is not None else ""
        return f"{title}: {job.phase or 'starting'}{step}{left}."
    if job.state == "stopping":
        return f"{title}: stopping; the best so far is kept."
    word = {"finished": "fitted", "stopped": "stopped", "failed": "the fit has failed", "interrupted": "interrupted"}
    after = f" after {text.duration(job.seconds)}" if job.seconds else ""
    return f"{title}: {word.get(job.state, job.state)}{after}." + (f" {job.error}" if job.error else "")


def fit_card(job: JobView | None, title: str) -> str:
    """Progress of a fit at work; why the last one failed. "" otherwise: a fit that went well shows as its report."""
    if job is None:
        return ""
    line = text.escape(fit_status(job, title))
    if job.state not in WORKING:
        failed = job.state in ("failed", "interrupted")
        return f'<p class="train-warn">{line}</p>' if failed else ""
    percent = round(100 * job.step / job.steps) if job.steps else 0
    who = "" if job.mine else ' <span class="ml-faint">started by another visitor</span>'
    return (
        f'<div class="train-bar {text.escape(job.state)}" role="progressbar" aria-label="{text.escape(title)}" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}"><div style="width:{percent}%"></div></div>'
        f'<p class="train-status">{line}{who}</p>'
    )


def report_card(report: Mapping[str, Any], title: str = "What the last fit measured") -> str:
    """Numbers as facts, mappings of numbers as tables; "" for an empty report."""
    flat = {name: value for name, value in report.items() if _is_plain(value)}
    nested = {name: value for name, value in report.items() if isinstance(value, Mapping) and value}
    facts = "".join(fact(title_of(name), value_of(name, value)) for name, value in flat.items() if value not in ("", None))
    tables = "".join(_facts(name, value) if len(value) <= 6 and all(map(_is_plain, value.values())) else _table(name, value)
                     for name, value in nested.items())  # fmt: skip
    if not facts and not tables:
        return ""
    head = f'<div class="train-file"><b>{text.escape(title)}</b></div>'
    return f'<div class="ml-box">{head}<div class="train-facts">{facts}</div>{tables}</div>'


def _facts(name: str, value: Mapping[str, Any]) -> str:
    """A few numbers under one heading."""
    facts = "".join(fact(title_of(str(key)), value_of(name, one)) for key, one in value.items())
    return f'<p class="router-group">{text.escape(title_of(name))}</p><div class="train-facts">{facts}</div>'


def _table(name: str, value: Mapping[str, Any]) -> str:
    """{row: {column: number}} as a table, {row: number} as one of two columns."""
    rows = {row: own if isinstance(own, Mapping) else {"": own} for row, own in list(value.items())[:40]}
    columns = list(dict.fromkeys(column for own in rows.values() for column in own))[:8]
    heads = "".join(f'<th scope="col">{text.escape(title_of(str(column)))}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{text.escape(text.short(title_of(str(row)), 28))}</th>'
        + "".join(f"<td>{text.escape(value_of(column or name, own.get(column)))}</td>" for column in columns)
        + "</tr>"
        for row, own in rows.items()
    )
    head = f"<thead><tr><th></th>{heads}</tr></thead>" if columns != [""] else ""
    caption = f"<caption>{text.escape(title_of(name))}</caption>"
    return f'<div class="ml-scroll"><table class="ml-plain">{caption}{head}<tbody>{body}</tbody></table></div>'


def title_of(name: str) -> str:
    """A key as words."""
    words = NAMES.get(name) or name.replace("_", " ")
    return words[:1].upper() + words[1:]


def value_of(name: str, value: Any) -> str:
    """A number as its name asks for: shares in percent, seconds as a time, losses with three digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return text.short(str(value), 60) if value is not None else text.NOTHING
    if not math.isfinite(value):
        return text.NOTHING
    if name == "seconds" or name.endswith("_seconds"):
        return text.duration(float(value))
    if any(word in name for word in SHARES) and 0 <= value <= 1 and isinstance(value, float):
        return f"{100 * value:.1f} %"
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.2g}"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


# ---- one prompt, all routers -----------------------------------------------------------------------------------------


def comparison(decisions: Sequence[RoutingDecision], titles: Mapping[str, str], colours: Mapping[str, str]) -> str:
    """A small card for each router, its lobes in one order and one colour, so that the eye compares."""
    if not decisions:
        return '<p class="train-ask">No router can decide yet. Fit one above, or train a lobe first.</p>'
    columns = [_shares(decision) for decision in decisions]
    order = _order(columns)
    cards = "".join(
        _verdict(decision, shares, order, titles, colours) for decision, shares in zip(decisions, columns, strict=True)
    )
    return f'<p class="compare-sum" role="status">{_agreement(decisions)}</p><div class="compare-grid">{cards}</div>'


def _shares(decision: RoutingDecision) -> Mapping[str, float]:
    """What the bars of a card show: probabilities, or weights where every token is weighed anew."""
    return decision.weights if decision.per_token else probabilities(decision)


def _order(columns: Sequence[Mapping[str, float]]) -> list[str]:
    """The lobes that matter to any router, heaviest in all first; "no lobe fits" last."""
    total: dict[str, float] = {}
    for shares in columns:
        for name, share in shares.items():
            if name != NONE:
                total[name] = total.get(name, 0.0) + share
    return [*sorted(total, key=lambda name: -total[name]), NONE]


def _verdict(
    decision: RoutingDecision,
    shares: Mapping[str, float],
    order: Sequence[str],
    titles: Mapping[str, str],
    colours: Mapping[str, str],
) -> str:
    """One router's card: who answers, how sure that is or with which weights, the bars, and why."""
    tone = text.colour(colours.get(decision.chosen)) if decision.chosen else BASE_COLOUR
    title = text.escape(titles.get(decision.router, decision.router))
    took = text.milliseconds(decision.elapsed_ms)
    mixed = not decision.per_token and len(text.parts_of(decision.weights)) > 1
    who = f"<i></i>{text.escape(text.short(_who(decision), 34))}"
    if mixed:
        who = mix_title(decision.weights, colours)
    bar = share_bar(decision.weights, colours, "Weights of the lobes", legend=False) if mixed else ""
    kind = "Mean weight over the prompt" if decision.per_token else "Probability"
    figure = bars_in_order(shares, order, colours, decision.chosen or NONE, MOST_ROWS)
    heading = f"<h5>{kind}</h5>" if figure else ""
    return (
        f'<article style="--c:{tone}"><header><span>{title}</span><small>{took}</small></header>'
        f'<h4{" class=ml-mixed" if mixed else ""}>{who}</h4>{bar}<p class="compare-sure">{text.escape(_said(decision))}</p>'
        f"{heading}{figure}<p>{text.escape(decision.reason)}</p></article>"
    )


def _who(decision: RoutingDecision) -> str:
    """Who answers; of a router that weighs each token, the lobe with most of the weight."""
    if decision.per_token and decision.weights:
        return text.parts_of(decision.weights)[0]
    return text.answerer(decision)


def _said(decision: RoutingDecision) -> str:
    """The line below who answers: how sure the router is, or what the numbers above are."""
    if decision.per_token:
        return f"the greatest weight, {text.percent(max(decision.weights.values(), default=0.0))}"
    mixed = len(text.parts_of(decision.weights)) > 1
    said = text.certainty(decision)
    if mixed and said:
        return f"weights; {text.percent(decision.confidence)} sure that {decision.chosen} is the right one"
    return said or "no estimate"


def _agreement(decisions: Sequence[RoutingDecision]) -> str:
    votes: dict[str, int] = {}
    for decision in decisions:
        name = decision.chosen or "the base model"
        votes[name] = votes.get(name, 0) + 1
    order = sorted(votes, key=lambda name: -votes[name])
    first = f"<b>{votes[order[0]]} of {len(decisions)}</b> choose <b>{text.escape(order[0])}</b>"
    rest = [f"{votes[name]} {text.escape(name)}" for name in order[1:]]
    return first + (f"; {text.listed(rest)}." if rest else ".")


def _done(job: JobView) -> str:
    return f"{round(100 * job.step / job.steps)} %" if job.steps else ""
