"""HTML blocks that the tabs share, first of all a table whose rows can be picked and ticked: for
runs and for lobes.

gr.HTML sends only "clicked"; the small script says which row. What can be clicked is a real button
or checkbox, so the keyboard and screen readers work too. Ids come back from the browser and must be
checked like any input.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from . import text
from .html import Markup, around, html, joined
from .static import script


def bare(value: str = "", **more: Any) -> gr.HTML:
    """An HTML block without Gradio's own padding, and without a click event unless asked for."""
    return gr.HTML(value, elem_classes="ml-bare", **{"js_on_load": None, **more})


def pickable(**more: Any) -> gr.HTML:
    """A bare block with the events `pick` and `check`, for what has data-row and data-check attributes."""
    return bare(js_on_load=script("table"), **more)


def shown(value: str) -> Any:
    """An update that shows this HTML, or takes the whole block away: an empty one would leave a gap."""
    return gr.update(value=value, visible=bool(value))


def heading(title: str, about: str, kind: str = "train-heading") -> Markup:
    """The title of a part of a tab, and a sentence on it."""
    faint = around('<p class="ml-faint">{}</p>', about)
    return html('<div class="{}"><h2>{}</h2>{}</div>', kind, title, faint)


def fact(title: str, value: str, about: str = "", kind: str = "train-fact") -> Markup:
    """A number with its title above and a remark below. `kind` is "train-fact warn" for one to
    worry about."""
    small = around("<small>{}</small>", about)
    return html('<div class="{}"><span>{}</span><b>{}</b>{}</div>', kind, title, value, small)


@dataclass(frozen=True)
class Column:
    """A heading; `kind` has classes: num (right-aligned), extra (hidden below 1000 px), wide
    (hidden below 640 px)."""

    title: str
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """`name` is the button of the row; `cells` are of every further column, and escaped unless they
    are `Markup`."""

    id: str
    name: str
    colour: str
    cells: Sequence[str]


def table(
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    picked: str = "",
    checked: Collection[str] = (),
    tick: str = "",
) -> Markup:
    """The table. `tick` says what ticking a row does ("Compare"), for screen readers; "" means no
    tick boxes."""
    box = around('<th class="tick" scope="col" aria-label="{}"></th>', tick)
    heads = joined(
        html('<th class="{}" scope="col">{}</th>', column.kind, column.title) for column in columns
    )
    body = joined(_row(columns, row, row.id == picked, row.id in checked, tick) for row in rows)
    return html(
        '<div class="ml-table-wrap"><table class="ml-table"><thead><tr>{}{}</tr></thead><tbody>{}</tbody>'
        "</table></div>",
        box, heads, body,
    )  # fmt: skip


def _row(columns: Sequence[Column], row: Row, picked: bool, checked: bool, tick: str) -> Markup:
    button = html(
        '<button type="button" class="ml-name" aria-pressed="{}">{}<span>{}</span></button>',
        str(picked).lower(), dot(row.colour), row.name,
    )  # fmt: skip
    cells = joined(
        html('<td class="{}">{}</td>', column.kind, cell)
        for column, cell in zip(columns[1:], row.cells, strict=True)
    )
    box = _box(row, checked, tick) if tick else ""
    mark = " class=picked" if picked else ""
    return html('<tr data-row="{}"{}>{}<td>{}</td>{}</tr>', row.id, mark, box, button, cells)


def _box(row: Row, checked: bool, tick: str) -> Markup:
    state = " checked" if checked else ""
    return html(
        '<td class="tick"><label><input type="checkbox" data-check="{}" aria-label="{} {}"{}></label></td>',
        row.id, tick, row.name, state,
    )  # fmt: skip


def dot(colour: str) -> Markup:
    return html('<span class="ml-dot" style="background:{}" aria-hidden="true"></span>', text.colour(colour))
