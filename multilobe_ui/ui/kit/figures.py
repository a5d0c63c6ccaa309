"""Figures that explain a decision: pure functions from a decision to HTML.

HTML and not plotly, because bars made of text stay readable at any width, can be read aloud, follow
the colour scheme and are there at once (plotly's first figure loads 4.6 MB of script).

Every bar runs from 0 to 1 in a track that can be seen, so a bar of 0.67 fills two thirds. Scores
have units of their own (nats, log-odds, cosines) and are shown as numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ...routing.decision import RoutingDecision
from .html import Markup, and_more, around, html, joined
from .text import NOTHING, colour, is_number, parts_of, percent, score, short

MOST_BARS = 12
NONE = ""
"""Stands for "no lobe fits" among the lobes of `probabilities`: no lobe has an empty name."""
NONE_TITLE = "none of these"
BASE_COLOUR = "var(--ml-base)"

STAGES = {"embedding": "embedding", "gate": "gate", "logprob": "log-prob"}
UNITS = {
    "embedding": "nearness to its training prompts",
    "logprob": "log-probability of the prompt, nats per token",
    "keyword": "weight of its words in the prompt",
    "gate": "output of the gate",
    "arrow": "deviations from what is usual for the lobe",
}
LINES = {"embedding": ("floor", "floor"), "logprob": ("base_logprob", "base model")}
"""Of a stage: what in the evidence its scores are held against, and what that is called."""


def score_bars(
    decision: RoutingDecision, colours: Mapping[str, str], *, over: str = "the prompt", note: str = ""
) -> Markup:
    """What the router made of the lobes, as bars from 0 to 1, best first; the raw scores follow as
    numbers, folded away.

    Where a router weighs tokens, or a person mixed, the bars are weights; else they are
    probabilities, and that of what was decided is the decision's confidence.

    Args:
        over: what the mean weights of a router that weighs tokens are the mean of. note: a sentence
            below probabilities.
    """
    if decision.stage == "manual":
        if len(decision.weights) < 2:
            return Markup()
        return titled("Weight of every lobe", "", bars(decision.weights, colours, decision.chosen))
    if decision.per_token:
        figure = bars(decision.weights, colours, decision.chosen)
        return titled("Mean weight", f"over the tokens of {over} and all layers", figure) + raw_scores(
            decision
        )
    shares = probabilities(decision)
    if not shares:
        return Markup()
    figure = bars(shares, colours, decision.chosen or NONE)
    remark = around('<p class="ml-more">{}</p>', note)
    return titled("Probability", "that it is the right one", figure) + remark + raw_scores(decision)


def probabilities(decision: RoutingDecision) -> dict[str, float]:
    """The probability that each lobe is the right one, and under NONE that no lobe fits, where the
    router knows it.

    That of what was decided is the decision's confidence, and all together are at most 1. {} where
    nothing was estimated: nobody was asked, or a person has said who answers.
    """
    if decision.per_token or decision.stage == "corrected":
        return {}
    estimates = {name: float(p) for name, p in decision.probabilities.items() if math.isfinite(p)}
    none = decision.evidence.get("none")
    if is_number(none):
        estimates[NONE] = float(none)
    if not estimates and not decision.chosen:
        return {}
    decided, sure = decision.chosen or NONE, _share(decision.confidence)
    others = {name: _share(p) for name, p in estimates.items() if name != decided}
    room = 1 - sure
    scale = room / max(room, sum(others.values()), 1e-12)
    return {**{name: scale * p for name, p in others.items()}, decided: sure}


def share_bar(
    weights: Mapping[str, float], colours: Mapping[str, str], label: str = "Weights", *, legend: bool = True
) -> Markup:
    """Weights side by side as one bar, each as wide as its share: what a mix is made of. Empty
    without any weight.

    legend: names and weights below the bar.
    """
    used = {name: abs(w) for name, w in weights.items() if w and math.isfinite(w)}
    total = sum(used.values())
    if not total:
        return Markup()
    order = parts_of(used)
    parts = joined(
        html(
            '<i style="--c:{};flex-grow:{:.4f}" title="{} {}"></i>',
            colour(colours.get(name)), used[name] / total, name, percent(weights[name]),
        )
        for name in order
    )  # fmt: skip
    below = Markup()
    if legend:
        below = html("<ul>{}</ul>", _legend(weights, order, colours))
    spoken = ", ".join(f"{name} {percent(weights[name])}" for name in order[:6])
    return html(
        '<div class="ml-shares"><div role="img" aria-label="{}: {}">{}</div>{}</div>',
        label, spoken, parts, below,
    )  # fmt: skip


def _legend(weights: Mapping[str, float], order: Sequence[str], colours: Mapping[str, str]) -> Markup:
    items = joined(
        html(
            '<li style="--c:{}"><i></i><span>{}</span><b>{}</b></li>',
            colour(colours.get(name)), short(name, 24), percent(weights[name]),
        )
        for name in order[:6]
    )  # fmt: skip
    return items + and_more("<li>and {} more</li>", len(order) - 6)


def mix_title(weights: Mapping[str, float], colours: Mapping[str, str], most: int = 3) -> Markup:
    """'python 58 %, maths 42 %' as HTML, each name after a dot of its lobe's colour."""
    order = parts_of(weights)
    names = joined(
        html(
            '<span style="--c:{}"><i></i>{} <b>{}</b></span>',
            colour(colours.get(name)), short(name, 24), percent(weights[name]),
        )
        for name in order[:most]
    )  # fmt: skip
    return names + and_more("<small>and {} more</small>", len(order) - most)


def bars(
    shares: Mapping[str, float], colours: Mapping[str, str], chosen: str | None = None, most: int = MOST_BARS
) -> Markup:
    """A bar for every share from 0 to 1, as long as it is large, best first; what is not a number
    is left out.

    chosen: whose bar is marked. It and that of NONE are shown however many others there are.
    """
    order = sorted((name for name in shares if math.isfinite(shares[name])), key=lambda name: -shares[name])
    return bars_in_order(shares, order, colours, chosen, most)


def bars_in_order(
    shares: Mapping[str, float],
    order: Sequence[str],
    colours: Mapping[str, str],
    chosen: str | None,
    most: int,
) -> Markup:
    """`bars` in an order that is given, so that several figures can be compared."""
    names = [name for name in order if name in shares and math.isfinite(shares[name])]
    if not names:
        return Markup()
    always = [name for name in dict.fromkeys((chosen, NONE)) if name in names]
    others = [name for name in names if name not in always][: most - len(always)]
    shown = [name for name in names if name in always or name in others]
    rows = joined(_row(name, shares[name], colours, name == chosen) for name in shown)
    figure = html('<div class="ml-bars"><ol>{}</ol></div>', rows)
    rest = [shares[name] for name in names if name not in shown]
    if not rest:
        return figure
    return figure + html('<p class="ml-more">and {} more, none above {}</p>', len(rest), percent(max(rest)))


def raw_scores(decision: RoutingDecision) -> Markup:
    """The scores of the router and of its stages, each in its own unit: numbers, never bars. Empty
    without any."""
    columns = _score_columns(decision)
    if not columns:
        return Markup()
    names = list(dict.fromkeys(name for scores in columns.values() for name in _ranked(scores)))[:MOST_BARS]
    heads = joined(
        html('<th scope="col" title="{}">{}</th>', _unit(name, decision), STAGES.get(name, "score"))
        for name in columns
    )
    rows = joined(
        html(
            '<tr><th scope="row" title="{}">{}</th>{}</tr>',
            name, short(name, 22), joined(html("<td>{}</td>", _number(scores.get(name))) for scores in columns.values()),
        )
        for name in names
    )  # fmt: skip
    limits = [_limit(name, decision) for name in columns]
    foot = note = Markup()
    if any(limits):
        foot = html(
            '<tfoot><tr><th scope="row">needed</th>{}</tr></tfoot>',
            joined(html("<td>{}</td>", limit) for limit in limits),
        )
    if len(columns) == 1:
        note = around("<p>{}</p>", _unit(next(iter(columns)), decision))
    return html(
        '<details class="ml-raw"><summary>Raw scores</summary>{}<table><thead><tr><td></td>{}</tr></thead>'
        "<tbody>{}</tbody>{}</table></details>",
        note, heads, rows, foot,
    )  # fmt: skip


def _score_columns(decision: RoutingDecision) -> dict[str, Mapping[str, float]]:
    """Name of a stage → its scores; "" is the router itself, unless its scores are those of a stage."""
    stages = {name: decision.evidence.get(name) for name in STAGES}
    columns = {name: scores for name, scores in stages.items() if scores and isinstance(scores, Mapping)}
    if decision.scores and all(dict(scores) != dict(decision.scores) for scores in columns.values()):
        return {"": decision.scores, **columns}
    return columns


def _ranked(scores: Mapping[str, float]) -> list[str]:
    """Names of the scores that are numbers, best first."""
    return sorted((name for name in scores if is_number(scores[name])), key=lambda name: -scores[name])


def titled(heading: str, about: str, figure: Markup) -> Markup:
    """A figure with its heading; empty without one."""
    if not figure:
        return Markup()
    return html("<h4>{}{}</h4>{}", heading, around(" <span>{}</span>", about), figure)


def _row(name: str, value: float, colours: Mapping[str, str], chosen: bool) -> Markup:
    words = about = name
    tone, kinds, mark = colour(colours.get(name)), [], Markup()
    if name == NONE:
        words, about = NONE_TITLE, "No lobe fits, and the base model answers"
        tone, kinds = BASE_COLOUR, ["is-none"]
    if chosen:
        kinds.append("is-chosen")
        mark = Markup(' aria-current="true"')
    return html(
        '<li{}{} style="--c:{};--w:{:.1f}%"><span title="{}">{}</span><div><i></i></div><b>{}</b></li>',
        around(' class="{}"', " ".join(kinds)), mark, tone, 100 * _share(value), about, words, percent(value),
    )  # fmt: skip


def _share(value: float) -> float:
    if not math.isfinite(value):
        return 0.0
    return min(1.0, max(0.0, float(value)))


def _unit(stage: str, decision: RoutingDecision) -> str:
    """What scores of a stage are, where that is known; the stage "" is the router itself."""
    if not stage and decision.router == decision.stage:
        stage = decision.stage
    return UNITS.get(stage, "")


def _limit(stage: str, decision: RoutingDecision) -> str:
    """What a score of the stage is held against: '0.35', 'base model −2.50'; "" where there is nothing."""
    key, title = LINES.get(stage or decision.stage, ("", ""))
    if not stage and is_number(decision.threshold):
        return score(decision.threshold)
    value = decision.evidence.get(key)
    if not is_number(value):
        return ""
    return f"{title} {score(value)}"


def _number(value: object) -> str:
    if not is_number(value):
        return NOTHING
    return score(value)
