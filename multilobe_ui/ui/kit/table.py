"""HTML blocks that the tabs share, first of all a table whose rows can be picked and ticked: for runs and for lobes.

gr.HTML sends only "clicked"; the small script says which row. What can be clicked is a real button or checkbox, so the
keyboard and screen readers work too. Ids come back from the browser and must be checked like any input.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from . import text
from .html import Markup, around, html, joined

# Events of gr.HTML(js_on_load=SCRIPT): .pick with {"id"}, .check with {"id", "on"}. A redraw keeps DOM nodes, and with
# them ticks that are no longer true, so they are set again from the attribute.
SCRIPT = """
element.addEventListener('click', (event) => {
  if (event.target.closest('input, label, a')) return;
  const row = event.target.closest('[data-row]');
  if (row) trigger('pick', {id: row.dataset.row});
});
element.addEventListener('change', (event) => {
  const box = event.target.closest('[data-check]');
  if (box) trigger('check', {id: box.dataset.check, on: box.checked});
});
watch('value', () => element.querySelectorAll('[data-check]').forEach(
  (box) => { box.checked = box.hasAttribute('checked'); }));
"""

# No comma inside :is() here: Gradio splits selectors at every comma when it prefixes them.
CSS = """
.ml-bare .html-container { padding: 0 !important; }
.ml-bare table, .ml-bare tr, .ml-bare th, .ml-bare td { border: 0 !important; margin: 0; }
.ml-bare tbody td { border-top: 1px solid var(--border-color-primary) !important; }
.ml-bare p { margin: 0; }
.ml-table-wrap { overflow-x: auto; border: 1px solid var(--border-color-primary); border-radius: 10px; }
.ml-table { width: 100%; border-collapse: collapse; font-size: .875rem; line-height: 1.35; }
.ml-table th { text-align: left; font-weight: 400; font-size: .75rem; color: var(--body-text-color-subdued);
  padding: .5rem .6rem; white-space: nowrap; background: var(--background-fill-secondary); }
.ml-table td { padding: .5rem .6rem; vertical-align: middle; }
@media (min-width: 641px) { .ml-table td:has(> .ml-name) { min-width: 9rem; } }
.ml-table tr[data-row] { cursor: pointer; }
.ml-table tr[data-row]:hover td { background: var(--background-fill-secondary); }
.ml-table tr.picked td, .ml-table tr.picked:hover td { background: var(--color-accent-soft); }
.ml-table .num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.ml-table .tick { width: 1%; padding-right: 0; }
.ml-table .tick input { width: 1.05rem; height: 1.05rem; cursor: pointer; accent-color: var(--color-accent);
  display: block; }
.ml-table .tick label { display: block; padding: .35rem; margin: -.35rem; }
.ml-name { display: inline-flex; align-items: center; gap: .5rem; background: none; border: 0; padding: 0; margin: 0;
  font: inherit; font-weight: 700; color: inherit; text-align: left; cursor: pointer; overflow-wrap: anywhere; }
.ml-name:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 3px; border-radius: 3px; }
.ml-dot { flex: none; width: .7rem; height: .7rem; border-radius: 50%; display: inline-block; }
.ml-faint { color: var(--body-text-color-subdued); }
@media (max-width: 1000px) { .ml-table .extra { display: none; } }
@media (max-width: 640px) { .ml-table .wide { display: none; } .ml-table td, .ml-table th { padding: .5rem .4rem; } }
"""


def bare(value: str = "", **more: Any) -> gr.HTML:
    """An HTML block without Gradio's own padding, and without a click event unless asked for."""
    return gr.HTML(value, elem_classes="ml-bare", **{"js_on_load": None, **more})


def shown(value: str) -> Any:
    """An update that shows this HTML, or takes the whole block away: an empty one would leave a gap."""
    return gr.update(value=value, visible=bool(value))


def heading(title: str, about: str, kind: str = "train-heading") -> Markup:
    """The title of a part of a tab, and a sentence on it."""
    faint = around('<p class="ml-faint">{}</p>', about)
    return html('<div class="{}"><h2>{}</h2>{}</div>', kind, title, faint)


def fact(title: str, value: str, about: str = "", kind: str = "train-fact") -> Markup:
    """A number with its title above and a remark below. `kind` is "train-fact warn" for one to worry about."""
    small = around("<small>{}</small>", about)
    return html('<div class="{}"><span>{}</span><b>{}</b>{}</div>', kind, title, value, small)


@dataclass(frozen=True)
class Column:
    """A heading; `kind` has classes: num (right-aligned), extra (hidden below 1000 px), wide (hidden below 640 px)."""

    title: str
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """`name` is the button of the row; `cells` are of every further column, and escaped unless they are `Markup`."""

    id: str
    name: str
    colour: str
    cells: Sequence[str]


def table(
    columns: Sequence[Column], rows: Sequence[Row], *, picked: str = "", checked: Collection[str] = (), tick: str = ""
) -> Markup:
    """The table. `tick` says what ticking a row does ("Compare"), for screen readers; "" means no tick boxes."""
    box = around('<th class="tick" scope="col" aria-label="{}"></th>', tick)
    heads = joined(html('<th class="{}" scope="col">{}</th>', column.kind, column.title) for column in columns)
    body = joined(_row(columns, row, row.id == picked, row.id in checked, tick) for row in rows)
    return html(
        '<div class="ml-table-wrap"><table class="ml-table"><thead><tr>{}{}</tr></thead><tbody>{}</tbody></table></div>',
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
