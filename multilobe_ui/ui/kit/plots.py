"""Plots of the Routers tab as plotly figures: how a fit goes, and where prompts lie. Pure; names
are escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from .curves import AXIS, INK, PALETTE, Point, Records, decimate, empty_figure, places, smoothed
from .html import Markup, escape, html
from .text import colour, is_number, short

if TYPE_CHECKING:
    from ...routing.map import PromptMap

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
    kinds = [
        kind
        for kind in (LOSS, SHARE)
        if any(kind_of(name, points) == kind for name, points in curves.items())
    ]
    last = max((float(r["step"]) for r in records if is_number(r.get("step"))), default=0.0)
    end = float(steps or last or 1)
    figure = _fit_figure(kinds, end)
    axes = dict(zip(kinds, ("y", "y2"), strict=False))
    for number, (name, points) in enumerate(curves.items()):
        axis = axes[kind_of(name, points)]
        _curve(figure, label(name), points, PALETTE[number % len(PALETTE)], axis, "held_out" in name)
    _phases(figure, records, end)
    return figure


def series(records: Records) -> dict[str, list[Point]]:
    """Points (step, value) of every value, in the order of their first appearance."""
    curves: dict[str, list[Point]] = {}
    for record in records:
        step, values = record.get("step"), record.get("values")
        if not is_number(step) or not isinstance(values, Mapping):
            continue
        for name, value in values.items():
            if is_number(value) and name not in LEFT_OUT:
                curves.setdefault(str(name), []).append((float(step), float(value)))  # type: ignore[arg-type]
    return curves


def kind_of(name: str, points: Sequence[Point]) -> str:
    """Whether a value is drawn with the losses, or with what is a share of one."""
    if "loss" in name or any(not 0 <= y <= 1 for _, y in points):
        return LOSS
    return SHARE


def label(name: str) -> Markup:
    """'held_out_loss' as a person would write it."""
    return escape(short(name.replace("held_out", "held-out").replace("_", " "), 40))


def phases(records: Records) -> list[tuple[str, float, float]]:
    """(name, first step, last step) of each phase, in order."""
    named = [(str(r.get("phase", "")), float(r["step"])) for r in records if is_number(r.get("step"))]
    runs = [(name, [step for _, step in group]) for name, group in groupby(named, key=lambda pair: pair[0])]
    return [(name, steps[0], steps[-1]) for name, steps in runs]


def _curve(
    figure: go.Figure, name: str, points: Sequence[Point], tone: str, axis: str, measured: bool
) -> None:
    """`measured` curves are of few, exact points and drawn as they are; others are noisy and drawn
    smoothed."""
    shown, width = decimate(points), 2
    if measured:
        width = 3
    elif len(points) >= NOISY:
        figure.add_scatter(
            **places(shown), yaxis=axis, mode="lines", line={"color": tone, "width": 1}, opacity=0.3,
            showlegend=False, hoverinfo="skip", name=name,
        )  # fmt: skip
        shown = decimate(smoothed(points))
    mode = "lines"
    if len(shown) < NOISY:
        mode = "lines+markers"
    figure.add_scatter(
        **places(shown), yaxis=axis, mode=mode, name=name, line={"color": tone, "width": width},
        marker={"size": 7, "color": tone},
    )  # fmt: skip


def _phases(figure: go.Figure, records: Records, end: float) -> None:
    """Every other phase shaded: a phase lasts until the next begins; the last, until now."""
    runs = phases(records)
    begins = [first for _, first, _ in runs]
    for number, (name, first, last) in enumerate(runs):
        shaded_to, named_to = last, end
        if number + 1 < len(runs):
            shaded_to = named_to = begins[number + 1]
        if number % 2:
            figure.add_vrect(x0=first, x1=shaded_to, fillcolor=INK, opacity=0.09, line_width=0, layer="below")
        if number:
            figure.add_vline(x=first, line={"color": INK, "dash": "dot", "width": 1})
        columns = max(8, int(105 * (named_to - first) / end))
        figure.add_annotation(
            text=escape(short(name, columns)), hovertext=escape(name), x=first, xanchor="left", xshift=4, y=1,
            yref="paper", yanchor="bottom", showarrow=False, font={"size": 11, "color": INK},
        )  # fmt: skip


def _fit_figure(kinds: Sequence[str], end: float) -> go.Figure:
    """One plot, or where there are two kinds of values two above each other, over the same steps."""
    height, last_axis = 320, "y"
    domains = [[0.0, 1.0]]
    if len(kinds) > 1:
        height, last_axis = 420, "y2"
        domains = [[0.42, 1.0], [0.0, 0.32]]
    figure = empty_figure(
        height,
        margin={"l": 52, "r": 14, "t": 26, "b": 74},
        legend={"y": 0, "yref": "container", "yanchor": "bottom"},
        hovermode="x unified",
        xaxis={
            "title": {"text": "step", "standoff": 4},
            "range": [0, end * 1.015],
            **AXIS,
            "anchor": last_axis,
        },
    )
    for name, kind, domain in zip(("yaxis", "yaxis2"), kinds, domains, strict=False):
        figure.update_layout({name: _y_axis(kind, domain)})
    return figure


def _y_axis(kind: str, domain: list[float]) -> dict[str, Any]:
    axis = {"title": {"text": TITLES[kind], "standoff": 6}, "domain": domain, **AXIS}
    if kind == SHARE:
        return {**axis, "range": [0, 1.04], "tickformat": ".0%"}
    return {**axis, "rangemode": "tozero"}


# ---- the map -------------------------------------------------------------------------------------


def prompt_map_figure(map: PromptMap, colours: Mapping[str, str], prompt: str = "") -> go.Figure:
    """Rows of every lobe as dots, its prototypes as larger rings, the prompt as a star."""
    hidden = {
        "showgrid": False,
        "zeroline": False,
        "showticklabels": False,
        "fixedrange": True,
        "showline": False,
    }
    figure = empty_figure(
        440, margin={"l": 6, "r": 6, "t": 8, "b": 8}, legend={"y": -0.02, "yanchor": "top"}, xaxis=hidden,
        yaxis={**hidden, "scaleanchor": "x"},
    )  # fmt: skip
    for name in map.lobes:
        _lobe_on_the_map(figure, map, name, colour(colours.get(name)))
    if map.prompt is not None and np.isfinite(map.prompt).all():
        _prompt_on_the_map(figure, map.prompt, prompt)
    return figure


def _lobe_on_the_map(figure: go.Figure, map: PromptMap, name: str, tone: str) -> None:
    rows, title = map.lobes[name], escape(short(name, 28))
    every = max(1, math.ceil(len(rows) / MOST_POINTS_OF_A_LOBE))
    texts: list[str] = [escape(short(str(text), 90)) for text in map.texts.get(name, ())]
    texts += [""] * (len(rows) - len(texts))
    figure.add_scatter(
        **_on_the_map(rows[::every]), mode="markers", name=title, legendgroup=title, text=texts[::every],
        showlegend=False, marker={"color": tone, "size": 6, "opacity": 0.45},
        hovertemplate=html("<b>{}</b><br>%{{text}}<extra></extra>", title),
    )  # fmt: skip
    figure.add_scatter(
        **_on_the_map(map.prototypes.get(name, np.zeros((0, 2)))), mode="markers", name=title,
        legendgroup=title,
        marker={"color": tone, "size": 15, "line": {"color": "#ffffff", "width": 2}},
        hovertemplate=html("<b>{}</b><br>prototype<extra></extra>", title),
    )  # fmt: skip


def _prompt_on_the_map(figure: go.Figure, point: Any, prompt: str) -> None:
    place = _on_the_map(point)
    figure.add_scatter(
        **place, mode="markers", name="your prompt",
        marker={"symbol": "star", "size": 26, "color": "#15191d", "line": {"color": "#ffffff", "width": 2}},
        hovertemplate=html("<b>your prompt</b><br>{}<extra></extra>", short(prompt, 90)),
    )  # fmt: skip
    figure.add_annotation(
        x=place["x"][0], y=place["y"][0], text="your prompt", showarrow=False, yshift=26,
        bgcolor="rgba(21, 25, 29, 0.85)",
        borderpad=3, font={"size": 12, "color": "#ffffff"},
    )  # fmt: skip


def _on_the_map(points: Any) -> dict[str, list[float]]:
    array = np.asarray(points, float).reshape(-1, 2)
    array = array[np.isfinite(array).all(1)]
    return {"x": [round(float(x), 4) for x in array[:, 0]], "y": [round(float(y), 4) for y in array[:, 1]]}
