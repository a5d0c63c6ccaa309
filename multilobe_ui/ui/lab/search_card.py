"""A search for weights in pictures: what it found, and how it goes. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from ..kit.curves import AXIS, INK, RUN, empty_figure
from ..kit.html import Markup, html, joined
from ..kit.text import colour, count, is_number, loss, short
from .parts import Colours, Result

WIDEST = 1.5
"""Weight at the ends of a bar."""
HEIGHT = 260

Points = Sequence[tuple[Any, Any]]
"""(loss of a trial, best loss so far) of every trial."""


def search_result(result: Result, colours: Colours) -> Markup:
    """The weights that a search found, and what for."""
    weights = {name: weight for name, weight in (result.get("weights") or {}).items() if is_number(weight)}
    whose = "of the lobes' own rows"
    if result.get("given"):
        whose = "of your examples"
    ended = ""
    if result.get("stopped"):
        ended = " Stopped early."
    about = (
        f"nats per answer token, base → best weights, on {result.get('rows', 0):,} {whose}; "
        f"{count(len(_trials(result)), 'trial')}.{ended} These rows chose the weights, so judge them by a "
        f"merge."
    )
    return html(
        '<div class="merge-card">{}<ol class="merge-weights">{}</ol></div>',
        _total(f"Loss {loss(result.get('base'))} → {loss(result.get('loss'))}", about),
        joined(_weight_row(name, weight, colours) for name, weight in weights.items()),
    )  # fmt: skip


def search_curve(result: Result, colours: Colours) -> go.Figure | None:
    """How the search went; None for fewer than two trials."""
    best, points = None, []
    for trial in _trials(result):
        if trial.get("best"):
            best = trial.get("loss")
        points.append((trial.get("loss"), best))
    return curve(points, result.get("base"))


def search_live(records: Sequence[Result], colours: Colours) -> Markup:
    """What the search has found so far."""
    points = _live_points(records)
    if not points:
        return Markup()
    return html(
        '<div class="merge-card">{}</div>',
        _total(f"Best so far {loss(points[-1][1])}", "nats per answer token")
    )


def live_curve(records: Sequence[Result]) -> go.Figure | None:
    """The search while it runs; its first trial is the base."""
    points = _live_points(records)
    if not points:
        return None
    return curve(points, points[0][0])


def _live_points(records: Sequence[Result]) -> list[tuple[Any, Any]]:
    values = [record.get("values") or {} for record in records]
    return [(own.get("loss"), own.get("best")) for own in values if is_number(own.get("loss"))]


def _trials(result: Result) -> list[Result]:
    return [trial for trial in result.get("trials") or () if isinstance(trial, dict)]


def _total(bold: str, faint: str) -> Markup:
    return html('<p class="merge-total"><b>{}</b> <span class="ml-faint">{}</span></p>', bold, faint)


def _weight_row(name: str, weight: float, colours: Colours) -> Markup:
    half = 50 * min(1.0, abs(weight) / WIDEST)
    start = 50.0 + min(0.0, half * math.copysign(1, weight))
    return html(
        '<li style="--c:{};--w:{:.1f}%;--x:{:.1f}%"><span '
        'title="{}">{}</span><div><i></i></div><b>{:+.2f}</b></li>', colour(colours.get(name)), half, start,
        name, short(name, 24), weight,
    )  # fmt: skip


def curve(points: Points, base: Any) -> go.Figure | None:
    """Losses of the trials as dots, the best so far as a line, the base dashed. What is far above
    lies on the upper edge."""
    pairs = [(value, best) for value, best in points if is_number(value) and is_number(best)]
    if len(pairs) < 2:
        return None
    losses, bests = zip(*pairs, strict=True)
    if not is_number(base):
        base = bests[0]
    low, high = min(losses), max(base, min(losses) + 1e-6)
    high += 0.35 * max(base - low, 0.1)
    numbers = list(range(1, len(pairs) + 1))
    figure = empty_figure(
        HEIGHT, margin={"l": 56, "r": 14, "t": 12, "b": 74}, hovermode="closest",
        legend={"y": 0, "yref": "container", "yanchor": "bottom"},
    )  # fmt: skip
    figure.add_scatter(
        x=numbers, y=[min(value, high) for value in losses], customdata=losses, mode="markers", name="trials",
        marker={"color": INK, "size": 7, "opacity": 0.6},
        hovertemplate=html("trial %{{x}}: %{{customdata:.3f}}<extra></extra>"),
    )  # fmt: skip
    figure.add_scatter(
        x=numbers, y=bests, mode="lines", name="best so far",
        line={"color": RUN, "width": 2.5, "shape": "hv"},
        hovertemplate=html("best after %{{x}}: %{{y:.3f}}<extra></extra>"),
    )  # fmt: skip
    figure.add_hline(y=base, line={"color": INK, "dash": "dash", "width": 1.5})
    figure.add_annotation(
        text="base", x=1, xref="paper", xanchor="right", y=base, yanchor="bottom", showarrow=False,
        font={"size": 11}
    )
    room = 0.04 * (high - low)
    figure.update_xaxes(title={"text": "trial", "standoff": 4}, range=[0.5, len(pairs) + 0.5], **AXIS)
    figure.update_yaxes(
        title={"text": "loss (nats)", "standoff": 6}, range=[low - room, high + room], tickformat=".3~g",
        **AXIS
    )
    return figure
