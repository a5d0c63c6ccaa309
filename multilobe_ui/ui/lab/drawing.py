"""How the result of an experiment looks: on the page, where a figure is a component of its own, and
as a page that is taken away. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import plotly.graph_objects as go

from ..kit.html import Markup, html, joined
from ..kit.static import FOR_ITSELF, stylesheets
from .parts import Colours, Result

Part: TypeAlias = "Markup | go.Figure | None"


def no_figure(*_: Any) -> None:
    return None


def no_html(*_: Any) -> Markup:
    return Markup()


@dataclass(frozen=True)
class Drawing:
    """Functions of (result, colours), and of the records of a run at work (a list of `Progress.to_json`).

    Attributes:
        card: the result. figure, below: what follows it. live: something to see while it runs, and
            `live_figure` a figure.
        taken_away: what only the page that is taken away has, since nothing can be clicked there.
    """

    card: Callable[[Result, Colours], Markup]
    figure: Callable[[Result, Colours], go.Figure | None] = no_figure
    below: Callable[[Result, Colours], Markup] = no_html
    live: Callable[[Sequence[Result], Colours], Markup] = no_html
    live_figure: Callable[[Sequence[Result]], go.Figure | None] = no_figure
    taken_away: Callable[[Result, Colours], Sequence[Part]] = no_html

    def page(self, title: str, created: str, result: Result, colours: Colours) -> str:
        """The result as a page that stands by itself."""
        parts = [self.card(result, colours), self.figure(result, colours), self.below(result, colours)]
        return report_page(title, created, [*parts, *self.taken_away(result, colours)])


def report_page(title: str, created: str, parts: Sequence[Part]) -> str:
    """A page that opens without the app, and without a network: the first figure brings all of
    plotly's script."""
    body, script = [], True
    for part in parts:
        if isinstance(part, go.Figure):
            body.append(
                Markup(part.to_html(full_html=False, include_plotlyjs=script, config={"displayModeBar": False}))
            )
            script = False
        elif part:
            body.append(part)
    return html(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{0}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><style>{1}</style></head>'
        "<body><main><h1>{0}</h1><p>{2} UTC</p>{3}</main></body></html>",
        title, Markup(stylesheets(FOR_ITSELF)), created[:16].replace("T", " "), joined(body),
    )  # fmt: skip
