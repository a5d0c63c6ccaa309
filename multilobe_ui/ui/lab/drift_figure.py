"""What one ordinary adapter would have forgotten: two losses while it learns one domain and then
another, beside the lobes' own. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from ...evaluation.frames import contrast_frame
from ..kit.curves import AXIS, INK, empty_figure
from ..kit.frames import column_head, frame_table, row_head, td
from ..kit.html import Markup, around, escape, html
from ..kit.text import colour, count, percent, short
from .parts import Colours, Result, named

SIDES = ("first", "second")
HEIGHT = 400
LEAST_GAP = 0.065
"""Between two numbers at the lines' ends, as a share of the figure's height."""
NOTHING_MUCH = 0.005
NATS = "nats per answer token"


def contrast_head(result: Result) -> Markup:
    """What stands above the figure: its heading and what it shows in a sentence; or why there is no
    contrast."""
    contrast = result.get("contrast")
    if not contrast:
        return around(
            '<section><h4>One adapter instead of lobes</h4><p class="fg-ask">{}</p></section>',
            result.get("contrast_why"),
        )
    lobe: Result = next((lobe for lobe in result.get("lobes") or () if lobe.get("name") == contrast["first"]), {})
    kept = bool(lobe.get("same")) and bool((result.get("base") or {}).get("same"))
    return html('<section class="fg-contrast"><h4>What you were saved from</h4>{}</section>', sentence(contrast, kept))


def sentence(contrast: Result, lobe_kept: bool) -> Markup:
    """ "One adapter would have forgotten 1.42 nats of legal; your lobe kept all of it." """
    first, second = (contrast[which] for which in SIDES)
    one, other = contrast["rows"]
    how = f"The same LoRA learned {count(one, 'row')} of {first}, then {other:,} of {second}, trained as any lobe is."
    return html(
        '<p class="fg-said">{}</p><p class="fg-how">{} {}</p>', _lost(contrast, lobe_kept), _left(contrast),
        how
    )


def _lost(contrast: Result, lobe_kept: bool) -> Markup:
    first, lost = contrast["first"], contrast["forgotten"]
    if lost <= NOTHING_MUCH:
        return html("One adapter would have forgotten nothing of <b>{}</b> here: these two domains get along.", first)
    ours = ""
    if lobe_kept:
        ours = "; your lobe kept all of it"
    return html("One adapter would have forgotten <b>{:.2f} nats</b> of <b>{}</b>{}.", lost, first, ours)


def _left(contrast: Result) -> str:
    first, kept = contrast["first"], contrast.get("kept")
    if kept is None:
        return f"But it had learned nothing of {first} in so few steps. Choose a lobe with more rows."
    if contrast["forgotten"] <= NOTHING_MUCH:
        return ""
    if kept <= 0:
        return (
            f"Of what it had learned of {first} nothing was left: it ended worse than the base that had "
            f"never seen it."
        )
    return f"Of what it had learned of {first}, {percent(kept)} was left."


# ---- the figure ----------------------------------------------------------------------------------


def drift_figure(result: Result, colours: Colours) -> go.Figure | None:
    """Two lines over the steps, the lobes' flat ones, and the shaded loss between them; None
    without a curve."""
    contrast = result.get("contrast") or {}
    points = list(contrast.get("curve") or ())
    if len(points) < 2:
        return None
    last = points[-1]["step"]
    top = 1.06 * max(point[which] for point in points for which in SIDES)
    figure = _frame(contrast, last, top)
    tones = {which: colour(colours.get(contrast[which])) for which in SIDES}
    _shade(figure, contrast, tones["first"])
    for which in SIDES:
        name = escape(short(contrast[which], 24))
        line = {"color": tones[which], "width": 3}
        steps, losses = [point["step"] for point in points], [point[which] for point in points]
        figure.add_scatter(x=steps, y=losses, mode="lines", name=f"one adapter on {name}", line=line)
        flat = [contrast["losses"][which]["lobe"]] * 2
        line = {"color": tones[which], "width": 2, "dash": "dash"}
        figure.add_scatter(x=[0, last], y=flat, mode="lines", name=f"your lobe on {name}", line=line)
    _number_ends(figure, last, top)
    return figure


def _frame(contrast: Result, last: float, top: float) -> go.Figure:
    """Axes, and what is learned above the two halves."""
    switch = contrast["switch"]
    figure = empty_figure(
        HEIGHT, margin={"l": 52, "r": 46, "t": 30, "b": 118}, hovermode="x unified",
        legend={"y": 0, "yref": "container", "yanchor": "bottom", "font": {"size": 11}},
    )  # fmt: skip
    figure.update_xaxes(title={"text": "step", "standoff": 4}, range=[0, last], **AXIS)
    figure.update_yaxes(
        title={"text": "loss (nats)", "standoff": 6}, range=[0, top], tickformat=".3~g", hoverformat=".3f",
        **AXIS
    )
    figure.add_vline(x=switch, line={"color": INK, "dash": "dot", "width": 1.5})
    for start, which, what in ((0, "first", "it learns"), (switch, "second", "then it learns")):
        figure.add_annotation(
            text=html("{} <b>{}</b>", what, short(contrast[which], 14)), x=start, xanchor="left", xshift=4,
            y=1, yref="paper", yanchor="bottom", showarrow=False, font={"size": 11.5},
        )  # fmt: skip
    return figure


def _shade(figure: go.Figure, contrast: Result, tone: str) -> None:
    """The area between what had been reached on the first domain and where it went."""
    reached = contrast["losses"]["first"]["after_first"]
    after = [point for point in contrast["curve"] if point["step"] >= contrast["switch"]]
    steps = [point["step"] for point in after]
    figure.add_scatter(
        x=[*steps, *steps[::-1]], y=[*(max(point["first"], reached) for point in after), *[reached] * len(after)],
        fill="toself", fillcolor=tone, opacity=0.16, mode="none", name="forgotten", showlegend=False,
        hoverinfo="skip",
    )  # fmt: skip
    line = {"color": tone, "width": 1.5, "dash": "dot"}
    figure.add_scatter(x=steps, y=[reached] * len(steps), mode="lines", line=line, showlegend=False, hoverinfo="skip")


def _number_ends(figure: go.Figure, last: float, top: float) -> None:
    """The last value of every line at its right end, moved apart where numbers would cover each other."""
    ends = sorted(((trace.y[-1], trace.line.color) for trace in figure.data if trace.showlegend is None), reverse=True)
    places = spread([1 - value / top for value, _ in ends], LEAST_GAP)
    for place, (value, tone) in zip(places, ends, strict=True):
        figure.add_annotation(
            text=f"{value:.2f}", x=last, xanchor="left", xshift=4, y=top * (1 - place), yanchor="middle",
            showarrow=False, font={"size": 12, "color": tone},
        )  # fmt: skip


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places from 0 to 1, moved so that neighbours are `gap` apart: up from the bottom,
    and down where the top ends."""
    moved, limit = list(places), 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    limit = 0.0
    for i, place in enumerate(moved):
        moved[i] = max(place, limit)
        limit = moved[i] + gap
    return moved


# ---- numbers -------------------------------------------------------------------------------------


def contrast_table(result: Result, colours: Colours) -> Markup:
    """Every loss that the figure shows; what was forgotten is marked."""
    contrast = result.get("contrast")
    if not contrast:
        return Markup()
    first, second = (short(contrast[which], 24) for which in SIDES)
    titles = {
        "base": "the base",
        "after_first": f"after {first}",
        "after_second": f"after {second}",
        "lobe": "your lobe",
    }
    lost = contrast["losses"]["first"]["after_second"] - contrast["losses"]["first"]["after_first"]

    def row(name: str, cells: Markup) -> Markup:
        return html(
            "<tr>{}{}</tr>", row_head(named(f"on {name}", {f"on {name}": colours.get(name, "")}, "fg-name")),
            cells
        )

    def cell(name: str, column: str, value: Any) -> Markup:
        if (name, column) == (contrast["first"], "after_second") and lost > NOTHING_MUCH:
            return td(html('<b class="is-lost">{:.3f}</b> <small>+{:.2f}</small>', value, lost))
        return td(f"{value:.3f}")

    table = frame_table(
        contrast_frame(contrast), "fg-losses", cell=cell, row=row,
        head=lambda column: column_head(titles[column]), corner=column_head(""), scroll="fg-scroll",
    )  # fmt: skip
    return html(
        '{}<p class="fg-note">Loss in {}, {} ({}); lower is better. Your lobes learned from all their rows, '
        'for longer.</p>', table, NATS, measured_on(contrast),
        " and ".join(f"{rows:,}" for rows in contrast["held_out"]),
    )  # fmt: skip


def measured_on(contrast: Result) -> str:
    """Which rows the losses are of."""
    trained = [str(name) for name in contrast.get("trained") or ()]
    if not trained:
        return "on rows held out"
    if len(trained) == len(SIDES):
        return "on rows that were trained, as nothing is held out"
    return f"on rows held out, and of {short(trained[0])} on rows that were trained, as it holds none out"
