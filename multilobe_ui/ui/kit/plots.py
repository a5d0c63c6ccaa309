"""Plots of the Routers tab as plotly figures: how a fit goes, and where prompts lie. Pure; names are escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from .curves import FONT, GRID, INK, decimate, smoothed
from .text import colour, is_number, short

if TYPE_CHECKING:
    from ...routing.map import PromptMap

Records = Sequence[Mapping[str, Any]]
Point = tuple[float, float]

TONES = ("#5b76f5", "#e0802f", "#1f9d6b", "#b06ae0", "#e5566d", "#17a2b8", "#b3941b", "#8a6d5a")
LOSS, SHARE = "loss", "share"
TITLES = {LOSS: "loss (nats)", SHARE: "share"}
NOISY = 25
"""Points from which a curve is drawn smoothed, with what was measured faint behind it."""
LEFT_OUT = ("perplexity",)  # says what the loss says, on a scale that flattens all else
MOST_POINTS_OF_A_LOBE = 80


def fit_curves(records: Records, steps: int | None = None) -> go.Figure:
    """A curve for every value that a fit measures: losses above, what lies between 0 and 1 (accuracy) below.

    Phases are shaded in turn and named at the top. `steps` is where the x axis ends.
    """
    curves = series(records)
    kinds = [kind for kind in (LOSS, SHARE) if any(kind_of(name, points) == kind for name, points in curves.items())]
    figure = go.Figure(layout={"template": "none"})
    for number, (name, points) in enumerate(curves.items()):
        axis = "y" if kind_of(name, points) == kinds[0] else "y2"
        _curve(figure, label(name), points, TONES[number % len(TONES)], axis, "held_out" in name)
    last = max((float(r["step"]) for r in records if is_number(r.get("step"))), default=0.0)
    end = float(steps or last or 1)
    _phases(figure, records, end)
    _frame(figure, kinds, end, 320 if len(kinds) < 2 else 420)
    return figure


def series(records: Records) -> dict[str, list[Point]]:
    """Points (step, value) of every value, in the order of their first appearance."""
    found: dict[str, list[Point]] = {}
    for record in records:
        step, values = record.get("step"), record.get("values")
        if not is_number(step) or not isinstance(values, Mapping):
            continue
        for name, value in values.items():
            if is_number(value) and name not in LEFT_OUT:
                found.setdefault(str(name), []).append((float(step), float(value)))  # type: ignore[arg-type]
    return found


def kind_of(name: str, points: Sequence[Point]) -> str:
    """Whether a value is drawn with the losses, or with what is a share of one."""
    return LOSS if "loss" in name or any(not 0 <= y <= 1 for _, y in points) else SHARE


def label(name: str) -> str:
    """'held_out_loss' as a person would write it."""
    return html.escape(short(name.replace("held_out", "held-out").replace("_", " "), 40))


def phases(records: Records) -> list[tuple[str, float, float]]:
    """(name, first step, last step) of each phase, in order."""
    named = [(str(r.get("phase", "")), float(r["step"])) for r in records if is_number(r.get("step"))]
    runs = [(name, [step for _, step in group]) for name, group in groupby(named, key=lambda pair: pair[0])]
    return [(name, steps[0], steps[-1]) for name, steps in runs]


def _curve(figure: go.Figure, name: str, points: Sequence[Point], tone: str, axis: str, measured: bool) -> None:
    noisy = len(points) >= NOISY and not measured
    raw = decimate(points)
    if noisy:
        figure.add_scatter(
            x=_xs(raw), y=_ys(raw), yaxis=axis, mode="lines", line={"color": tone, "width": 1}, opacity=0.3, showlegend=False,
            hoverinfo="skip", name=name,
        )  # fmt: skip
    shown = decimate(smoothed(points)) if noisy else raw
    few = len(shown) < NOISY
    figure.add_scatter(
        x=_xs(shown), y=_ys(shown), yaxis=axis, mode="lines+markers" if few else "lines", name=name,
        line={"color": tone, "width": 3 if measured else 2}, marker={"size": 7, "color": tone},
    )  # fmt: skip


def _phases(figure: go.Figure, records: Records, end: float) -> None:
    found = phases(records)
    for number, (name, first, last) in enumerate(found):
        # a phase lasts until the next begins; the last, until now
        right = found[number + 1][1] if number + 1 < len(found) else last
        if number % 2:
            figure.add_vrect(x0=first, x1=right, fillcolor=INK, opacity=0.09, line_width=0, layer="below")
        if number:
            figure.add_vline(x=first, line={"color": INK, "dash": "dot", "width": 1})
        wide = max(8, int(105 * ((end if number + 1 == len(found) else right) - first) / end))
        figure.add_annotation(
            text=html.escape(short(name, wide)), hovertext=html.escape(name), x=first, xanchor="left", xshift=4, y=1,
            yref="paper", yanchor="bottom", showarrow=False, font={"size": 11, "color": INK},
        )  # fmt: skip


def _frame(figure: go.Figure, kinds: Sequence[str], end: float, height: int) -> None:
    axis: dict[str, Any] = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "fixedrange": True}
    two = len(kinds) > 1
    figure.update_layout(
        height=height,
        margin={"l": 52, "r": 14, "t": 26, "b": 74},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12, "family": FONT},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
        hovermode="x unified",
        hoverlabel={"bgcolor": "#23262d", "font": {"color": "#f2f3f5"}},
        dragmode=False,
        xaxis={"title": {"text": "step", "standoff": 4}, "range": [0, end * 1.015], **axis, "anchor": "y2" if two else "y"},
    )
    if kinds:
        figure.update_layout(yaxis=_y_axis(kinds[0], [0.42, 1.0] if two else [0.0, 1.0], axis))
    if two:
        figure.update_layout(yaxis2=_y_axis(kinds[1], [0.0, 0.32], axis))


def _y_axis(kind: str, domain: list[float], axis: Mapping[str, Any]) -> dict[str, Any]:
    more: dict[str, Any] = {"range": [0, 1.04], "tickformat": ".0%"} if kind == SHARE else {"rangemode": "tozero"}
    return {"title": {"text": TITLES[kind], "standoff": 6}, "domain": domain, **more, **axis}


# ---- the map ---------------------------------------------------------------------------------------------------------


def prompt_map_figure(found: PromptMap, colours: Mapping[str, str], prompt: str = "") -> go.Figure:
    """Rows of every lobe as dots, its prototypes as larger rings, the prompt as a star."""
    figure = go.Figure(layout={"template": "none"})
    for name, rows in found.lobes.items():
        tone, title = colour(colours.get(name)), html.escape(short(name, 28))
        every = max(1, math.ceil(len(rows) / MOST_POINTS_OF_A_LOBE))
        texts = [html.escape(short(str(text), 90)) for text in list(found.texts.get(name, ()))]
        texts = [*texts, *[""] * (len(rows) - len(texts))][::every]
        figure.add_scatter(
            **_places(rows[::every]), mode="markers", name=title, legendgroup=title, text=texts, showlegend=False,
            marker={"color": tone, "size": 6, "opacity": 0.45}, hovertemplate=f"<b>{title}</b><br>%{{text}}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            **_places(found.prototypes.get(name, np.zeros((0, 2)))), mode="markers", name=title, legendgroup=title,
            marker={"color": tone, "size": 15, "line": {"color": "#ffffff", "width": 2}},
            hovertemplate=f"<b>{title}</b><br>prototype<extra></extra>",
        )  # fmt: skip
    if found.prompt is not None and np.isfinite(found.prompt).all():
        said = html.escape(short(prompt, 90))
        figure.add_scatter(
            **_places(np.asarray(found.prompt, float).reshape(1, 2)), mode="markers", name="your prompt",
            marker={"symbol": "star", "size": 26, "color": "#15191d", "line": {"color": "#ffffff", "width": 2}},
            hovertemplate=f"<b>your prompt</b><br>{said}<extra></extra>",
        )  # fmt: skip
        place = figure.data[-1]
        figure.add_annotation(
            x=place.x[0], y=place.y[0], text="your prompt", showarrow=False, yshift=26, bgcolor="rgba(21, 25, 29, 0.85)",
            borderpad=3, font={"size": 12, "color": "#ffffff"},
        )  # fmt: skip
    hidden = {"showgrid": False, "zeroline": False, "showticklabels": False, "fixedrange": True, "showline": False}
    figure.update_layout(
        height=440,
        margin={"l": 6, "r": 6, "t": 8, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12, "family": FONT},
        legend={"orientation": "h", "x": 0, "y": -0.02, "yanchor": "top", "bgcolor": "rgba(0,0,0,0)"},
        hoverlabel={"bgcolor": "#23262d", "font": {"color": "#f2f3f5"}},
        dragmode=False,
        xaxis=hidden,
        yaxis={**hidden, "scaleanchor": "x"},
    )
    return figure


def _places(points: Any) -> dict[str, list[float]]:
    array = np.asarray(points, float).reshape(-1, 2)
    array = array[np.isfinite(array).all(1)]
    return {"x": [round(float(x), 4) for x in array[:, 0]], "y": [round(float(y), 4) for y in array[:, 1]]}


def _xs(points: Sequence[Point]) -> list[int]:
    return [int(x) for x, _ in points]


def _ys(points: Sequence[Point]) -> list[float]:
    return [round(y, 4) for _, y in points]
