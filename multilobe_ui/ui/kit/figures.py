"""Figures that explain a decision: pure functions from a decision to HTML.

HTML and not plotly, because bars made of text stay readable at any width, can be read aloud, follow the colour scheme and
are there at once (plotly's first figure loads 4.6 MB of script).

Every bar runs from 0 to 1 in a track that can be seen, so a bar of 0.67 fills two thirds. Scores have units of their own
(nats, log-odds, cosines) and are shown as numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ...routing.decision import RoutingDecision
from .text import colour, escape, is_number, parts_of, percent, score, short

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
) -> str:
    """What the router made of the lobes, as bars from 0 to 1, best first; the raw scores follow as numbers, folded away.

    Where a router weighs tokens, or a person mixed, the bars are weights; else they are probabilities, and that of what was
    decided is the decision's confidence.

    Args:
        over: what the mean weights of a router that weighs tokens are the mean of. note: a sentence below probabilities.
    """
    if decision.stage == "manual":
        several = len(decision.weights) > 1
        return titled("Weight of every lobe", "", bars(decision.weights, colours, decision.chosen)) if several else ""
    if decision.per_token:
        figure = bars(decision.weights, colours, decision.chosen)
        return titled("Mean weight", f"over the tokens of {over} and all layers", figure) + raw_scores(decision)
    shares = probabilities(decision)
    if not shares:
        return ""
    figure = bars(shares, colours, decision.chosen or NONE)
    said = f'<p class="ml-more">{escape(note)}</p>' if note else ""
    return titled("Probability", "that it is the right one", figure) + said + raw_scores(decision)


def probabilities(decision: RoutingDecision) -> dict[str, float]:
    """The probability that each lobe is the right one, and under NONE that no lobe fits, where the router knows it.

    That of what was decided is the decision's confidence, and all together are at most 1. {} where nothing was estimated:
    nobody was asked, or a person has said who answers.
    """
    if decision.per_token or decision.stage == "corrected":
        return {}
    found = {name: float(p) for name, p in decision.probabilities.items() if math.isfinite(p)}
    none = decision.evidence.get("none")
    if is_number(none):
        found[NONE] = float(none)
    if not found and not decision.chosen:
        return {}
    decided, sure = decision.chosen or NONE, _share(decision.confidence)
    others = {name: _share(p) for name, p in found.items() if name != decided}
    total, room = sum(others.values()), 1 - sure
    scale = room / total if total > room else 1.0
    return {**{name: scale * p for name, p in others.items()}, decided: sure}


def share_bar(
    weights: Mapping[str, float], colours: Mapping[str, str], label: str = "Weights", *, legend: bool = True
) -> str:
    """Weights side by side as one bar, each as wide as its share: what a mix is made of. "" for fewer than one.

    legend: names and weights below the bar.
    """
    used = {name: abs(w) for name, w in weights.items() if w and math.isfinite(w)}
    total = sum(used.values())
    if not total:
        return ""
    order = parts_of(used)
    parts = "".join(
        f'<i style="--c:{colour(colours.get(name))};flex-grow:{used[name] / total:.4f}" title="{escape(name)} '
        f'{percent(weights[name])}"></i>'
        for name in order
    )
    listed = f"<ul>{_legend(weights, order, colours)}</ul>" if legend else ""
    said = escape(f"{label}: " + ", ".join(f"{name} {percent(weights[name])}" for name in order[:6]))
    return f'<div class="ml-shares"><div role="img" aria-label="{said}">{parts}</div>{listed}</div>'


def _legend(weights: Mapping[str, float], order: Sequence[str], colours: Mapping[str, str]) -> str:
    items = "".join(
        f'<li style="--c:{colour(colours.get(name))}"><i></i><span>{escape(short(name, 24))}</span>'
        f"<b>{percent(weights[name])}</b></li>"
        for name in order[:6]
    )
    return items + (f"<li>and {len(order) - 6} more</li>" if len(order) > 6 else "")


def mix_title(weights: Mapping[str, float], colours: Mapping[str, str], most: int = 3) -> str:
    """'python 58 %, maths 42 %' as HTML, each name after a dot of its lobe's colour."""
    order = parts_of(weights)
    named = "".join(
        f'<span style="--c:{colour(colours.get(name))}"><i></i>{escape(short(name, 24))} '
        f"<b>{percent(weights[name])}</b></span>"
        for name in order[:most]
    )
    return named + (f"<small>and {len(order) - most} more</small>" if len(order) > most else "")


def bars(
    shares: Mapping[str, float], colours: Mapping[str, str], chosen: str | None = None, most: int = MOST_BARS
) -> str:
    """A bar for every share from 0 to 1, as long as it is large, best first; what is not a number is left out.

    chosen: whose bar is marked. It and that of NONE are shown however many others there are.
    """
    order = sorted((name for name in shares if math.isfinite(shares[name])), key=lambda name: -shares[name])
    return bars_in_order(shares, order, colours, chosen, most)


def bars_in_order(
    shares: Mapping[str, float], order: Sequence[str], colours: Mapping[str, str], chosen: str | None, most: int
) -> str:
    """`bars` in an order that is given, so that several figures can be compared."""
    named = [name for name in order if name in shares and math.isfinite(shares[name])]
    if not named:
        return ""
    kept = [name for name in dict.fromkeys((chosen, NONE)) if name in named]
    others = [name for name in named if name not in kept][: most - len(kept)]
    shown = [name for name in named if name in kept or name in others]
    rows = "".join(_row(name, shares[name], colours, name == chosen) for name in shown)
    rest = [shares[name] for name in named if name not in shown]
    more = f'<p class="ml-more">and {len(rest)} more, none above {percent(max(rest))}</p>' if rest else ""
    return f'<div class="ml-bars"><ol>{rows}</ol></div>{more}'


def raw_scores(decision: RoutingDecision) -> str:
    """The scores of the router and of its stages, each in its own unit: numbers, never bars. "" without any."""
    stages = {name: decision.evidence[name] for name in STAGES if isinstance(decision.evidence.get(name), Mapping)}
    columns: dict[str, Mapping[str, float]] = {name: scores for name, scores in stages.items() if scores}
    if decision.scores and not any(dict(scores) == dict(decision.scores) for scores in columns.values()):
        columns = {"": decision.scores, **columns}
    if not columns:
        return ""
    names = list(dict.fromkeys(name for scores in columns.values() for name in _ranked(scores)))[:MOST_BARS]
    heads = "".join(
        f'<th scope="col" title="{escape(_unit(name, decision))}">{STAGES.get(name, "score")}</th>' for name in columns
    )
    rows = "".join(
        f'<tr><th scope="row" title="{escape(name)}">{escape(short(name, 22))}</th>'
        + "".join(f"<td>{_number(scores.get(name))}</td>" for scores in columns.values())
        + "</tr>"
        for name in names
    )
    limits = [_limit(name, decision) for name in columns]
    last = "".join(f"<td>{escape(limit)}</td>" for limit in limits)
    foot = f'<tfoot><tr><th scope="row">needed</th>{last}</tr></tfoot>' if any(limits) else ""
    unit = _unit(next(iter(columns)), decision) if len(columns) == 1 else ""
    note = f"<p>{escape(unit)}</p>" if unit else ""
    return (
        '<details class="ml-raw"><summary>Raw scores</summary>'
        f"{note}<table><thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody>{foot}</table></details>"
    )


def _ranked(scores: Mapping[str, float]) -> list[str]:
    """Names of the scores that are numbers, best first."""
    return sorted((name for name in scores if is_number(scores[name])), key=lambda name: -scores[name])


def titled(heading: str, about: str, figure: str) -> str:
    """A figure with its heading; "" without one."""
    small = f" <span>{escape(about)}</span>" if about else ""
    return f"<h4>{escape(heading)}{small}</h4>{figure}" if figure else ""


def _row(name: str, value: float, colours: Mapping[str, str], chosen: bool) -> str:
    kinds = " ".join((["is-none"] if name == NONE else []) + (["is-chosen"] if chosen else []))
    mark = f' class="{kinds}"' if kinds else ""
    mark += ' aria-current="true"' if chosen else ""
    tone = colour(colours.get(name)) if name != NONE else BASE_COLOUR
    said = escape(name) if name != NONE else NONE_TITLE
    about = said if name != NONE else "No lobe fits, and the base model answers"
    return (
        f'<li{mark} style="--c:{tone};--w:{100 * _share(value):.1f}%"><span title="{about}">{said}</span>'
        f"<div><i></i></div><b>{percent(value)}</b></li>"
    )


def _share(value: float) -> float:
    return min(1.0, max(0.0, float(value))) if math.isfinite(value) else 0.0


def _unit(stage: str, decision: RoutingDecision) -> str:
    """What scores of a stage are, where that is known; the stage "" is the router itself."""
    alone = decision.stage if decision.router == decision.stage else ""
    return UNITS.get(stage or alone, "")


def _limit(stage: str, decision: RoutingDecision) -> str:
    """What a score of the stage is held against: '0.35', 'base model −2.50'; "" where there is nothing."""
    key, title = LINES.get(stage or decision.stage, ("", ""))
    if not stage and is_number(decision.threshold):
        return score(decision.threshold)
    value = decision.evidence.get(key)
    return f"{title} {score(value)}" if is_number(value) else ""


def _number(value: object) -> str:
    return score(value) if is_number(value) else "–"
