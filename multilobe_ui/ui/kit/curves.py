"""Loss curves as plotly figures: pure functions from step records to a figure that reads well on
light and dark pages.

A curve never has more than about 500 points, however long the run: plotly redraws all of it on every update.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from .html import Markup, escape
from .text import is_number

MOST_POINTS = 500
TRAIN = "#7f8b96"
RUN = "#5b76f5"
INK = "#7d888e"
GRID = "rgba(125, 136, 142, 0.22)"
PALETTE = ("#5b76f5", "#e0802f", "#1f9d6b", "#b06ae0", "#e5566d", "#17a2b8", "#b3941b", "#8a6d5a")
HEIGHT = 320
NO_CURVE = Markup("No rows are held out,<br>so there is no validation curve.")
FONT = "IBM Plex Sans, system-ui, sans-serif"

AXIS: dict[str, Any] = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "fixedrange": True}

Point = tuple[float, float]
Records = Sequence[Mapping[str, Any]]


def empty_figure(height: int, **layout: Any) -> go.Figure:
    """A figure with the page's look and nothing in it: no ground of its own, no zoom, its legend in
    one line."""
    legend = {"orientation": "h", "x": 0, "bgcolor": "rgba(0,0,0,0)", **layout.pop("legend")}
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": INK, "size": 12, "family": FONT},
            "hoverlabel": {"bgcolor": "#23262d", "font": {"color": "#f2f3f5"}},
            "dragmode": False,
            "legend": legend,
            **layout,
        }
    )


def loss_curves(
    records: Records, base_loss: float | None = None, steps: int | None = None, colour: str = RUN
) -> go.Figure:
    """The live plot of one run: train loss (raw and smoothed), validation loss, and the base as the
    line to beat. Without held-out rows the last two are missing, and the plot says why.

    Args:
        records: StepRecord dictionaries in order; evaluations have `validation_loss` set, and their
            `loss` may be None.
        base_loss: validation loss of the plain base; taken from the record of step 0 if not given.
        steps: where the x axis ends, so that the curve grows into its frame instead of rescaling at
            every step.
        colour: that of the lobe, for the validation loss; train loss is grey, since colour says which lobe.
    """
    train, validation = train_points(records), validation_points(records)
    figure = _loss_figure()
    mode = "markers"
    if len(train) > 1:
        mode = "lines"
        figure.add_scatter(
            **places(decimate(train)), mode="lines", name="every step", line={"color": TRAIN, "width": 1},
            opacity=0.35, showlegend=False,
        )  # fmt: skip
    if train:
        line = {"color": TRAIN, "width": 2}
        figure.add_scatter(**places(decimate(smoothed(train))), mode=mode, name="train loss", line=line)
    if validation:
        figure.add_scatter(
            **places(decimate(validation)), mode="lines+markers", name="validation loss",
            line={"color": colour, "width": 3}, marker={"size": 8, "color": colour},
        )  # fmt: skip
    if base_loss is None:
        base_loss = _base_of(validation)
    if base_loss is not None:
        figure.add_hline(y=base_loss, line={"color": INK, "dash": "dot", "width": 1.5})
        figure.add_annotation(
            text="base model", x=1, xref="paper", y=base_loss, xanchor="right", yanchor="bottom",
            showarrow=False, font={"size": 11, "color": INK},
        )  # fmt: skip
    if train and not validation:
        figure.add_annotation(
            text=NO_CURVE, x=1, xref="paper", y=1, yref="paper", xanchor="right", yanchor="top",
            align="right", showarrow=False, font={"size": 11, "color": INK},
        )  # fmt: skip
    if steps:
        figure.update_xaxes(range=[0, steps * 1.015])  # room for half of the last marker
    return _up_to_the_highest(figure, [train, validation], base_loss)


def compare_curves(runs: Mapping[str, Records], colours: Mapping[str, str] | None = None) -> go.Figure:
    """Several runs overlaid, one colour each: validation with markers, smoothed train loss faint behind it.

    Names are escaped, because plotly reads tags and links in them.
    """
    figure = _loss_figure()
    curves = []
    for number, (name, records) in enumerate(runs.items()):
        colour = (colours or {}).get(name) or PALETTE[number % len(PALETTE)]
        train, validation = train_points(records), validation_points(records)
        curves += [train, validation]
        shared = {"name": escape(name), "legendgroup": str(number)}
        if train:
            figure.add_scatter(
                **places(decimate(smoothed(train))), **shared, mode="lines", showlegend=not validation,
                line={"color": colour, "width": 1.5}, opacity=1 - 0.6 * bool(validation),
            )  # fmt: skip
        if validation:
            figure.add_scatter(
                **places(decimate(validation)), **shared, mode="lines+markers",
                line={"color": colour, "width": 2}, marker={"size": 6, "color": colour},
            )  # fmt: skip
    return _up_to_the_highest(figure, curves)


def train_points(records: Records) -> list[Point]:
    return _points(records, "loss")


def validation_points(records: Records) -> list[Point]:
    return _points(records, "validation_loss")


def smoothed(points: Sequence[Point], window: int | None = None) -> list[Point]:
    """Exponential moving average over about `window` steps (a twentieth of the run), unbiased from
    the first on."""
    keep = 1 - 1 / max(1.0, window or len(points) / 20)
    average = weight = 0.0
    line = []
    for x, y in points:
        average, weight = keep * average + (1 - keep) * y, keep * weight + (1 - keep)
        line.append((x, average / weight))
    return line


def decimate(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: the first, the last, and each bucket's lowest and highest, so that
    spikes stay visible."""
    if len(points) <= most:
        return list(points)
    inner = points[1:-1]
    buckets = max(1, (most - 2) // 2)
    kept = [points[0]]
    for i in range(buckets):
        bucket = inner[i * len(inner) // buckets : (i + 1) * len(inner) // buckets]
        low = min(range(len(bucket)), key=lambda k: bucket[k][1])
        high = max(range(len(bucket)), key=lambda k: bucket[k][1])
        kept += [bucket[k] for k in sorted({low, high})]
    return [*kept, points[-1]]


def _points(records: Records, key: str) -> list[Point]:
    """(step, value), without what is missing or not finite: a lost value must not tear down the page."""
    pairs = ((record.get("step"), record.get(key)) for record in records)
    return [(float(x), float(y)) for x, y in pairs if is_number(x) and is_number(y)]


def _base_of(validation: Sequence[Point]) -> float | None:
    """The loss before the first step: nothing was trained yet, so it is that of the base."""
    if not validation or validation[0][0] != 0:
        return None
    return validation[0][1]


def places(points: Iterable[Point]) -> dict[str, list[float]]:
    """Points as plotly's x and y, at no more digits than can be seen."""
    pairs = list(points)
    return {"x": [int(x) for x, _ in pairs], "y": [round(y, 4) for _, y in pairs]}


def _loss_figure() -> go.Figure:
    figure = empty_figure(
        HEIGHT,
        margin={"l": 44, "r": 14, "t": 30, "b": 40},
        legend={"y": 1.02, "yanchor": "bottom"},
        hovermode="x unified",
    )
    figure.update_xaxes(title={"text": "step", "standoff": 6}, rangemode="tozero", **AXIS)
    figure.update_yaxes(title={"text": "loss (nats per token)", "standoff": 4}, tickformat=".3~g", **AXIS)
    return figure


def _up_to_the_highest(
    figure: go.Figure, curves: Iterable[Sequence[Point]], *losses: float | None
) -> go.Figure:
    """End the y axis a little above all but the wildest train steps, which would flatten everything else."""
    tops = [loss for loss in losses if loss is not None]
    for curve in filter(None, curves):
        ordered = sorted(y for _, y in curve)
        tops.append(ordered[min(len(ordered) - 1, math.ceil(0.98 * len(ordered)))])
    if tops:
        figure.update_yaxes(range=[0, 1.1 * max(tops)])
    return figure
