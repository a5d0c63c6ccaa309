"""Tables of numbers (pandas) on the page and as CSV. Pure.

A table's words come from callbacks that draw a head, a row or a cell, so that one function makes
every table of results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from .html import Markup, around, html, joined

FORMULA = ("=", "+", "-", "@", "\t")
"""A spreadsheet takes a cell that begins so for a formula."""
ATTRIBUTES = {"kind": "class", "data_row": "data-row", "aria_label": "aria-label"}


def element(tag: str, content: object, **attributes: object) -> Markup:
    """An element; attributes without a value are left out. `kind` is its class."""
    given = joined(html(' {}="{}"', ATTRIBUTES.get(name, name), value) for name, value in attributes.items() if value)
    return html("<{}{}>{}</{}>", tag, given, content, tag)


def td(content: object, **attributes: object) -> Markup:
    return element("td", content, **attributes)


def column_head(content: object, **attributes: object) -> Markup:
    return element("th", content, scope="col", **attributes)


def row_head(content: object, **attributes: object) -> Markup:
    return element("th", content, scope="row", **attributes)


def plain_cell(row: Any, column: Any, value: Any) -> Markup:
    return td(value)


def plain_row(row: Any, cells: Markup) -> Markup:
    return html("<tr>{}{}</tr>", row_head(row), cells)


def frame_table(
    frame: pd.DataFrame,
    kind: str,
    *,
    cell: Callable[[Any, Any, Any], Markup] = plain_cell,
    row: Callable[[Any, Markup], Markup] = plain_row,
    head: Callable[[Any], Markup] = column_head,
    corner: object = Markup("<td></td>"),
    caption: object = "",
    foot: object = "",
    scroll: str = "ml-scroll",
    label: str = "",
) -> Markup:
    """The table, in a box that scrolls when it is too wide. What is not known reaches `cell` as None.

    Args:
        kind: the table's class. cell: (row's label, column's label, value) → its `td`.
        row: (label, cells) → its `tr`. head: a column's label → its `th`. corner: the head above
            the rows' heads.
        foot: rows at its end. scroll: class of the box. label: what the box is called, for those
            who scroll it by keyboard.
    """
    known = frame.astype(object).where(frame.notna(), None)
    body = joined(
        row(label, joined(cell(label, column, value) for column, value in zip(frame.columns, values, strict=True)))
        for label, *values in known.itertuples(name=None)
    )
    table = html(
        '<table class="{}">{}<thead><tr>{}{}</tr></thead><tbody>{}</tbody>{}</table>',
        kind, around("<caption>{}</caption>", caption), corner, joined(map(head, frame.columns)), body,
        around("<tfoot>{}</tfoot>", foot),
    )  # fmt: skip
    if not label:
        return element("div", table, kind=scroll)
    return element("div", table, kind=scroll, tabindex="0", role="region", aria_label=label)


def frame_csv(frame: pd.DataFrame, *, index: bool = True) -> str:
    """As CSV. Names that a spreadsheet would take for a formula get an apostrophe before them."""
    safe = frame.map(_no_formula).rename(index=_no_formula, columns=_no_formula)
    return str(safe.to_csv(index=index, lineterminator="\n"))


def _no_formula(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value
