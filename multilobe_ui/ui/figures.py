"""Figures that explain a decision: pure functions from a decision to HTML.

HTML and not plotly, because bars made of text stay readable at any width, can be read aloud, follow the colour scheme and
are there at once (plotly's first figure loads 4.6 MB of script).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..routers.base import RoutingDecision
from .text import colour, escape, percent, score, short

MOST_BARS = 12

UNITS = {
    "embedding": "nearness to its training prompts",
    "logprob": "log-probability of the prompt, nats per token",
    "combined": "all stages together",
    "keyword": "weight of its words in the prompt",
    "xlora": "mean over tokens and layers",
    "arrow": "mean over tokens and layers",
}
NONE = "none of these"
STAGES = {"embedding": "embedding", "gate": "gate", "logprob": "log-prob"}


def score_bars(decision: RoutingDecision, colours: Mapping[str, str]) -> str:
    """Every lobe's score as a bar, best first, the winner highlighted, the threshold as a line through all of them.

    When a second stage decided, the scores of each stage follow, folded away. "" if the decision has no scores.
    """
    if not decision.scores or (decision.stage == "manual" and len(decision.scores) < 2):
        return ""
    stages = {name: decision.evidence[name] for name in STAGES if isinstance(decision.evidence.get(name), Mapping)}
    kind = "combined" if len(stages) > 1 else decision.stage
    heading = "Weight of every lobe" if kind == "manual" or decision.per_token else "Score of every lobe"
    limit, limit_label = decision.threshold, "base model" if kind == "logprob" else "threshold"
    scores = decision.scores
    if kind in ("gate", "complexity"):
        # raw outputs of a network say little; what they come to, "none" included, says all
        heading, limit, scores = "Probability of every lobe", None, probabilities(decision, NONE)
    elif decision.per_token:
        scores, limit = decision.weights or decision.scores, None
    limit = limit if limit is not None else decision.evidence.get("base_logprob") if kind == "logprob" else None
    unit = kind if decision.per_token or kind not in ("xlora", "arrow") else ""
    parts = [_titled(heading, unit, bars(scores, colours, limit, limit_label, decision.chosen))]
    if len(stages) > 1:
        lines = {
            "embedding": (decision.evidence.get("floor"), "floor"),
            "logprob": (decision.evidence.get("base_logprob"), "base model"),
        }
        folded = "".join(
            _titled(f"Stage {i}: {STAGES[name]}", name, bars(stages[name], colours, *lines.get(name, (None, "")), None))
            for i, name in enumerate(stages, start=1)
        )
        # when the base answers, the lines that no lobe reached are the reason
        unfolded = " open" if decision.abstained else ""
        parts.append(f"<details{unfolded}><summary>Stage by stage</summary>{folded}</details>")
    return "".join(parts)


def probabilities(decision: RoutingDecision, none: str) -> dict[str, float]:
    """Every lobe's share of one, and that of "none of them" under the name `none` where the router knows it.

    Routers give probabilities among lobes, and that of none beside them; here they come to one, so that routers compare.
    """
    found = {name: p for name, p in (decision.probabilities or decision.weights).items() if math.isfinite(p)}
    rest = decision.evidence.get("none")
    if not isinstance(rest, (int, float)) or not math.isfinite(rest):
        if not decision.abstained:
            return found
        rest = decision.confidence
    total, rest = sum(found.values()), min(1.0, max(0.0, float(rest)))
    scale = (1 - rest) / total if total + rest > 1.02 else 1.0
    return {**{name: scale * p for name, p in found.items()}, none: rest}


def share_bar(weights: Mapping[str, float], colours: Mapping[str, str], label: str = "Weights") -> str:
    """Weights side by side as one bar, each as wide as its share: what a mix is made of. "" for fewer than one."""
    used = {name: abs(w) for name, w in weights.items() if w and math.isfinite(w)}
    total = sum(used.values())
    if not total:
        return ""
    order = sorted(used, key=lambda name: -used[name])
    parts = "".join(
        f'<i style="--c:{colour(colours.get(name))};flex-grow:{used[name] / total:.4f}" title="{escape(name)} '
        f'{percent(weights[name])}"></i>'
        for name in order
    )
    legend = "".join(
        f'<li style="--c:{colour(colours.get(name))}"><i></i><span>{escape(short(name, 24))}</span>'
        f"<b>{percent(weights[name])}</b></li>"
        for name in order[:6]
    )
    more = f"<li>and {len(order) - 6} more</li>" if len(order) > 6 else ""
    said = escape(f"{label}: " + ", ".join(f"{name} {percent(weights[name])}" for name in order[:6]))
    return f'<div class="ml-shares"><div role="img" aria-label="{said}">{parts}</div><ul>{legend}{more}</ul></div>'


def bars(
    scores: Mapping[str, float],
    colours: Mapping[str, str],
    threshold: float | None = None,
    threshold_label: str = "threshold",
    chosen: str | None = None,
) -> str:
    """One bar chart. Scores may be of any sign and size; what is not a number is left out."""
    order = sorted((name for name in scores if math.isfinite(scores[name])), key=lambda name: -scores[name])
    if not order:
        return ""
    shown = order[:MOST_BARS]
    if chosen in order and chosen not in shown:
        shown[-1] = chosen
    limit = threshold if threshold is not None and math.isfinite(threshold) else None
    low, high = _axis([scores[name] for name in shown], limit)
    rows = "".join(
        _row(name, scores[name], (scores[name] - low) / (high - low), colours, name == chosen) for name in shown
    )
    line = _threshold(limit, (limit - low) / (high - low), threshold_label) if limit is not None else ""
    rest = [name for name in order if name not in shown]
    more = f'<p class="ml-more">and {len(rest)} more, none above {score(scores[rest[0]])}</p>' if rest else ""
    return f'<div class="ml-bars{" has-threshold" if line else ""}"><ol>{rows}</ol>{line}</div>{more}'


def _titled(heading: str, kind: str, figure: str) -> str:
    unit = f" <span>{escape(UNITS[kind])}</span>" if kind in UNITS else ""
    return f"<h4>{escape(heading)}{unit}</h4>{figure}" if figure else ""


def _row(name: str, value: float, share: float, colours: Mapping[str, str], chosen: bool) -> str:
    mark = ' class="is-chosen" aria-current="true"' if chosen else ""
    look = f"--c:{colour(colours.get(name))};--w:{100 * min(1.0, max(0.0, share)):.1f}%"
    return (
        f'<li{mark} style="{look}"><span title="{escape(name)}">{escape(name)}</span>'
        f"<div><i></i></div><b>{score(value)}</b></li>"
    )


def _threshold(value: float, share: float, label: str) -> str:
    place = min(1.0, max(0.0, share))
    shift = "0" if place < 0.2 else "-100%" if place > 0.8 else "-50%"
    return f'<div class="ml-threshold" style="--t:{place:.4f};--shift:{shift}"><em>{escape(label)} {score(value)}</em></div>'


def _axis(values: list[float], limit: float | None) -> tuple[float, float]:
    """Ends of the axis: from 0 where nothing is negative; else a little below the least, so that its bar can be seen."""
    every = [*values, limit] if limit is not None else values
    low, high = min(every), max(every)
    if low >= 0:
        return 0.0, max(high, 1e-9) * (1.0 if high >= 0.999 else 1.04)
    span = max(high - low, 1e-9)
    return low - 0.12 * span, high + 0.04 * span
