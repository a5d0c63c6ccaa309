"""Two curves of a report card: is a router as sure as it is right, and what does caution buy? Pure.

All routers are thin grey lines and the picked one is strong, in the accent: colour elsewhere says
which lobe. A point carries the id of its router, so that a click on a line picks it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from ...evaluation.frames import abstention_frame, calibration_frame
from ..kit.curves import AXIS, INK, RUN, empty_figure
from ..kit.frames import column_head, frame_table, td
from ..kit.html import Markup, escape, html
from ..kit.text import count, is_number
from .parts import Result, share

Points = Sequence[tuple[float, float]]

HEIGHT = 380
ALMOST_ALWAYS = 0.99
AS_SURE_AS_RIGHT = 0.02
IDEAL = "as sure as right"
OTHERS = "the other routers"
NOTHING_TO_COMPARE = "There is nothing to compare."


@dataclass(frozen=True)
class Curve:
    """A figure with its title, what it says in a sentence, and its numbers under the titles of
    their columns."""

    title: str
    sentence: str
    figure: go.Figure
    numbers: pd.DataFrame
    first_column: str

    def head(self) -> Markup:
        return html('<div class="rc rc-curve"><h4>{}</h4><p>{}</p></div>', self.title, self.sentence)

    def table(self) -> Markup:
        """The numbers, folded away: for whoever cannot see the figure, or wants to quote it."""
        if self.numbers.empty:
            return Markup()
        table = frame_table(
            self.numbers, "rc-numbers", corner=column_head(self.first_column), cell=_number,
            scroll="rc-scroll"
        )
        return html('<div class="rc"><details><summary>The numbers</summary>{}</details></div>', table)


def curves_of(result: Result, picked: str) -> tuple[Curve, Curve]:
    """The reliability diagram and the abstention curve of all routers, with the picked one's numbers."""
    asked = {name: own for name, own in (result.get("routers") or {}).items() if not own.get("error")}
    own = asked.get(picked, {})
    calibration = calibration_frame(own)
    counts = {"count": "Prompts", "confidence": "Mean confidence", "accuracy": "Right"}
    shares = {"answered": "Answered by lobes", "accuracy": "Right, of those"}
    return (
        Curve(
            "Is it as sure as it is right?", calibration_sentence(own),
            _calibration(asked, picked, calibration), calibration[list(counts)].rename(columns=counts),
            "Confidence",
        ),
        Curve(
            "What does caution buy?", abstention_sentence(own), _abstention(asked, picked),
            abstention_frame(own).rename(columns=shares), "Sure from",
        ),
    )  # fmt: skip


def calibration_points(router: Result) -> Points:
    """(mean confidence, share right) of every bin that has prompts."""
    return _pairs(calibration_frame(router)[["confidence", "accuracy"]])


def abstention_points(router: Result) -> Points:
    """(share answered, share right of those), most answered first."""
    pairs = dict(_pairs(abstention_frame(router)))
    return sorted(((answered, right) for answered, right in pairs.items() if answered > 0), reverse=True)


def calibration_sentence(router: Result) -> str:
    """How sure it is on average against how often it is right."""
    confidences, right = [c for c in router.get("confidence") or () if is_number(c)], router.get("accuracy")
    if not confidences or not is_number(right):
        return NOTHING_TO_COMPARE
    mean = math.fsum(confidences) / len(confidences)
    word = "well judged"
    if mean - right > AS_SURE_AS_RIGHT:
        word = "too sure"
    elif right - mean > AS_SURE_AS_RIGHT:
        word = "too modest"
    return f"On average {share(mean)} sure and {share(right)} right: {word}."


def abstention_sentence(router: Result) -> str:
    """How much it may answer and be right almost always."""
    points = abstention_points(router)
    if not points:
        return NOTHING_TO_COMPARE
    answered, right = next((point for point in points if point[1] >= ALMOST_ALWAYS), (0.0, 0.0))
    if not answered:
        most = max(right for _, right in points)
        return f"However few prompts lobes answer, at most {share(most)} of those are right."
    if answered == points[0][0]:
        return f"Lobes answer {share(answered)} of the prompts, and {share(right)} of those are right."
    return f"If lobes answered only the {share(answered)} that it is surest of, {share(right)} of those would be right."


# ---- figures -------------------------------------------------------------------------------------


def _calibration(asked: Mapping[str, Result], picked: str, bins: pd.DataFrame) -> go.Figure:
    """Share right over confidence, a point for each bin; bars below count the picked router's prompts."""
    figure = _figure("confidence", "right", 0.0)
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name=IDEAL,
        line={"color": INK, "dash": "dash", "width": 1.5},
        hoverinfo="skip",
    )
    _add_lines(figure, asked, picked, calibration_points, "%{x:.1%} sure, %{y:.1%} right")
    width = bins["high"] - bins["low"]
    figure.add_bar(
        x=list(bins["low"] + width / 2), width=list(0.9 * width), y=list(bins["count"]),
        yaxis="y2", name="how many prompts", marker={"color": RUN, "opacity": 0.3},
        hovertext=[f"{count(n, 'prompt')} at {bin} confidence" for bin, n in bins["count"].items()],
        hoverinfo="text",
    )  # fmt: skip
    hidden = {"showgrid": False, "showticklabels": False, "zeroline": False, "fixedrange": True}
    figure.update_layout(yaxis={"domain": [0.17, 1]}, yaxis2={"domain": [0, 0.13], **hidden}, xaxis={"anchor": "y2"})
    return figure


def _abstention(asked: Mapping[str, Result], picked: str) -> go.Figure:
    """Share right of the prompts that lobes answer, over how many they answer: the base gets those
    the router is least sure of."""
    rights = [right for own in asked.values() for _, right in abstention_points(own)]
    low = math.floor(min(rights, default=0.0) * 10 + 1e-9) / 10
    figure = _figure("share of prompts that lobes answer", "right, of those", min(low, 0.9))
    _add_lines(figure, asked, picked, abstention_points, "Lobes answer %{x:.1%}, %{y:.1%} of those right")
    return figure


def _add_lines(
    figure: go.Figure, asked: Mapping[str, Result], picked: str, points: Callable[[Result], Points],
    words: str
) -> None:
    """A line for every router, the picked one last so that it lies on top."""
    for name in sorted(asked, key=lambda name: name == picked):
        title = str(asked[name].get("title") or name)
        look: dict[str, object] = {
            "name": OTHERS, "line": {"color": INK, "width": 1.5}, "opacity": 0.55, "mode": "lines",
            "legendgroup": OTHERS,
            "showlegend": not any(trace.name == OTHERS for trace in figure.data),
        }  # fmt: skip
        if name == picked:
            look = {
                "name": escape(title),
                "line": {"color": RUN, "width": 3},
                "marker": {"size": 7},
                "mode": "lines+markers",
            }
        own = points(asked[name])
        figure.add_scatter(
            x=[x for x, _ in own], y=[y for _, y in own], customdata=[f"router|{name}"] * len(own),
            hovertemplate=html("<b>{}</b><br>{}<extra></extra>", title, words), cliponaxis=False, **look,
        )  # fmt: skip


def _figure(below: str, beside: str, low: float) -> go.Figure:
    """Both axes are shares; `low` is where the upright one begins."""
    figure = empty_figure(
        HEIGHT, margin={"l": 52, "r": 12, "t": 10, "b": 98}, hovermode="closest",
        legend={"y": 0, "yref": "container", "yanchor": "bottom", "font": {"size": 11}},
    )  # fmt: skip
    room = 0.02 * (1 - low)
    figure.update_xaxes(title={"text": below, "standoff": 6}, range=[0, 1.01], tickformat=".0%", **AXIS)
    figure.update_yaxes(title={"text": beside, "standoff": 6}, range=[low - room, 1 + room], tickformat=".0%", **AXIS)
    return figure


def _pairs(frame: pd.DataFrame) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in frame.dropna().itertuples(index=False, name=None)]


def _number(row: str, column: str, value: float | None) -> Markup:
    if column == "Prompts":
        return td(f"{value:,}")
    return td(share(value))
