"""Figures that explain a decision: pure functions from a decision to HTML.

HTML and not plotly, because bars made of text stay readable at any width, can be read aloud, follow the colour scheme and
are there at once (plotly's first figure loads 4.6 MB of script).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..routers.base import RoutingDecision
from .text import colour, escape, score

MOST_BARS = 12

UNITS = {
    "embedding": "nearness to its training prompts",
    "logprob": "log-probability of the prompt, nats per token",
    "combined": "both stages together",
    "manual": "weight",
}


def score_bars(decision: RoutingDecision, colours: Mapping[str, str]) -> str:
    """Every lobe's score as a bar, best first, the winner highlighted, the threshold as a line through all of them.

    When a second stage decided, the scores of each stage follow, folded away. "" if the decision has no scores.
    """
    if not decision.scores or (decision.stage == "manual" and len(decision.scores) < 2):
        return ""
    stages = {name: decision.evidence[name] for name in ("embedding", "logprob") if name in decision.evidence}
    kind = "combined" if len(stages) == 2 else decision.stage
    heading = "Weight of every lobe" if kind == "manual" else "Score of every lobe"
    limit, limit_label = decision.threshold, "base model" if kind == "logprob" else "threshold"
    parts = [_titled(heading, kind, bars(decision.scores, colours, limit, limit_label, decision.chosen))]
    if len(stages) == 2:
        first = bars(stages["embedding"], colours, decision.evidence.get("floor"), "floor", None)
        second = bars(stages["logprob"], colours, decision.evidence.get("base_logprob"), "base model", None)
        folded = _titled("Stage 1: embedding", "embedding", first) + _titled("Stage 2: log-prob", "logprob", second)
        # when the base answers, the lines that no lobe reached are the reason
        unfolded = " open" if decision.abstained else ""
        parts.append(f"<details{unfolded}><summary>Stage by stage</summary>{folded}</details>")
    return "".join(parts)


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
