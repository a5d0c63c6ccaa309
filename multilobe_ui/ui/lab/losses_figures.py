"""Does each lobe earn its place? Losses of every lobe on every dataset as HTML. Pure.

`result` is the JSON of experiment "losses". Losses are mean NLL per answer token, in nats;
perplexity is exp(loss).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...evaluation.frames import BASE, ORACLE, answers_frame, losses_frame
from ..kit.frames import column_head, frame_table, row_head, td
from ..kit.html import Markup, around, html, joined
from ..kit.text import NOTHING, colour, count, is_number, listed, loss
from .parts import BASE_TONE, Colours, Result, asking, if_stopped, named, remarks, share, signed, took

STRONGEST = 62
"""Percent of a lobe's colour in the cell that gains most over the base."""


def losses_card(result: Result, colours: Colours) -> Markup:
    """Headline, matrix, gains, and scores of the answers where there are any."""
    if not result.get("datasets") or not result.get("losses"):
        return asking("There is nothing to measure. Give files, or train a lobe.")
    left_out = listed(map(str, result.get("left_out") or ()))
    return html(
        '<div class="ll"><p class="ll-headline">{}</p>{}{}{}{}{}'
        '<p class="ll-note">Loss in nats per answer token, less is better; small: perplexity. ★ least of its '
        'column, framed: the lobe\'s own data.{}</p><div class="ll-pair">{}{}</div></div>',
        headline(result), remarks(result),
        if_stopped(result, "Stopped early: empty cells were not measured."),
        around('<p class="train-ask">Left out, for want of answers: {}.</p>', left_out), warning(result),
        matrix(result, colours), took(result, "Measured in"), gains(result, colours),
        answers(result, colours),
    )  # fmt: skip


def headline(result: Result) -> Markup:
    """Who wins its column, and what routing makes of it."""
    first = _winners(_judged(result))
    if not is_number(result.get("share_of_oracle")):
        return first
    of = f"{share(result['share_of_oracle'])} of what the right lobe would gain over the base"
    return html("{} Routed answers get <b>{}</b>.", first, of)


def _winners(judged: Mapping[str, bool]) -> Markup:
    lost = [name for name, won in judged.items() if not won]
    if not judged:
        return Markup("No dataset here is a lobe's own.")
    if not lost and len(judged) == 1:
        return Markup("<b>The lobe wins its column.</b>")
    if not lost:
        return Markup("<b>Every lobe wins its column.</b>")
    won = f"{len(judged) - len(lost)} of {count(len(judged), 'lobe')} win their column"
    if len(lost) <= 3:
        return html("<b>{}</b>, but not {}.", won, listed(lost))
    return html("<b>{}.</b>", won)


def warning(result: Result) -> Markup:
    """Lobes that do not earn their place, why, and what to do; nothing if all do."""
    idle = [str(name) for name in result.get("idle") or ()]
    if not idle:
        return Markup()
    what = "it"
    if len(idle) > 1:
        what = "them"
    return html(
        '<p class="train-warn">{0} Train {1} longer or on more rows, or delete {1} in Manage: then routers '
        'have fewer lobes '
        "to choose from.</p>",
        joined((html("<b>{}</b> {}", name, _why_idle(result, name)) for name in idle), " "), what,
    )  # fmt: skip


def _why_idle(result: Result, name: str) -> str:
    """What is wrong with an idle lobe."""
    gain = (result.get("gain") or {}).get(name)
    if not is_number(gain) or gain <= 0:
        return "adds nothing: on its own rows it is no better than the base model."
    lobes = losses_frame(result).iloc[1 : len(result["losses"])]
    for place, owner in enumerate(result.get("own") or ()):
        column = lobes.iloc[:, place].dropna()
        if owner == name and len(column) and column.idxmin() != name:
            return f"adds nothing of its own: {column.idxmin()} reads its rows better ({loss(column.min())})."
    return "adds nothing."


# ---- the matrix ----------------------------------------------------------------------------------


def matrix(result: Result, colours: Colours) -> Markup:
    """Rows: the base, every lobe, the router's choice, the right lobe. Columns: datasets."""
    frame = losses_frame(result)
    owners = dict(zip(frame.columns, result.get("own") or (), strict=False))
    measured = frame.iloc[: len(result["losses"])]
    least, base = measured.min(), measured.iloc[0]
    most = float((base - measured).max().max())
    ends = list(frame.index[len(measured) :])

    def head(dataset: str) -> Markup:
        about = _sizes(result).get(dataset, ())
        rows = joined(html("<small>{}</small>", words) for words in about[:1])
        name = named(dataset, {dataset: colours.get(owners.get(dataset) or "", "")}, "ll-name")
        return column_head(name + rows, title=", ".join(about))

    def row(name: str, cells: Markup) -> Markup:
        if name in ends:
            title = html('<span class="ll-name"><span>{}</span></span>', name)
            return html('<tr class="is-end">{}{}</tr>', row_head(title), cells)
        title = row_head(named(name, colours, "ll-name"))
        if name == BASE:
            return html('<tr class="is-base">{}{}</tr>', title, cells)
        return html('<tr style="--c:{}">{}{}</tr>', colour(colours.get(name), BASE_TONE), title, cells)

    def cell(name: str, dataset: str, value: Any) -> Markup:
        if name in ends or value is None:
            return td(_loss_and_perplexity(value))
        star, kinds = "", []
        if owners.get(dataset) == name:
            kinds.append("is-own")
        if value == least[dataset]:
            kinds.append("is-best")
            star = Markup('<i aria-label="least of its column">★</i>')
        if value > base[dataset]:
            kinds.append("is-worse")
        depth = max(0.0, base[dataset] - value) / max(most, 1e-9)
        look = f"--a:{STRONGEST * depth:.0f}%"
        return td(_loss_and_perplexity(value, star), kind=" ".join(kinds), style=look)

    caption = html('<span class="ll-hidden">{}</span>', "Loss of every lobe on every dataset")
    return frame_table(frame, "ll-matrix", cell=cell, row=row, head=head, caption=caption, scroll="ll-scroll")


def _sizes(result: Result) -> dict[str, list[str]]:
    """How many rows and answer tokens each dataset has, in words."""
    sizes: dict[str, list[str]] = {}
    for key, what in (("rows", "row"), ("tokens", "answer token")):
        for dataset, number in zip(result["datasets"], result.get(key) or (), strict=False):
            sizes.setdefault(dataset, []).append(count(number, what))
    return sizes


def _loss_and_perplexity(value: Any, star: object = "") -> Markup:
    return html("<b>{}{}</b><small>{}</small>", loss(value), star, perplexity(value))


def perplexity(value: Any) -> str:
    """exp(loss) with three digits that count, or all before the point."""
    if not is_number(value):
        return NOTHING
    found = math.exp(min(value, 50.0))
    if found < 999.5:
        return f"{found:.3g}"
    if found < 1e6:
        return f"{found:,.0f}"
    return f"{found:.1e}"


# ---- gains, scores -------------------------------------------------------------------------------


def gains(result: Result, colours: Colours) -> Markup:
    """What each lobe takes off the base's loss on its own rows, as bars."""
    gain = {str(name): value for name, value in (result.get("gain") or {}).items() if is_number(value)}
    if not gain:
        return Markup()
    most = max([*gain.values(), 1e-9])
    kinds = dict.fromkeys(result.get("idle") or (), "is-idle")
    rows = joined(
        html(
            '<li class="{0}" style="--c:{1};--w:{2:.1f}%"><span '
            'title="{3}">{3}</span><div><i></i></div><b>{4}</b></li>', kinds.get(name, "is-chosen"),
            colour(colours.get(name)), 100 * max(0.0, gain[name]) / most, name, signed(gain[name], "+.3f"),
        )
        for name in sorted(gain, key=lambda name: -gain[name])
    )  # fmt: skip
    return html(
        "<section><h4>What each lobe gains on its own data <span>nats per answer token, over the "
        "base</span></h4>"
        '<div class="ml-bars"><ol>{}</ol></div></section>',
        rows,
    )


def answers(result: Result, colours: Colours) -> Markup:
    """Exact match and F1 of short answers: base, routed, and the right lobe."""
    frame = answers_frame(result)
    if frame.empty:
        return Markup()

    def row(name: str, cells: Markup) -> Markup:
        rows = joined(html("<small>{}</small>", count(n, "row")) for n in [result["task"][name].get("rows")] if n)
        return html("<tr>{}{}</tr>", row_head(named(name, colours, "ll-name") + rows), cells)

    whose = joined(html('<th scope="col" colspan="2">{}</th>', title) for title in (BASE, "routed", ORACLE))
    table = frame_table(
        frame, "ll-tasks", cell=lambda _row, _column, value: td(share(value)), row=row, scroll="ll-scroll",
        head=lambda column: column_head({"exact": "exact", "f1": "F1"}[column[1]]),
        corner=html('<td rowspan="2"></td>{}</tr><tr>', whose),
    )  # fmt: skip
    below = Markup()
    if is_number(result.get("task_share")):
        below = html(
            '<p class="ll-said">Routed = <b>{} of oracle</b>, by exact matches: the oracle always asks the '
            'right lobe.</p>', share(result["task_share"]),
        )
    return html("<section><h4>Short answers, written out <span>share of rows</span></h4>{}{}</section>", table, below)


def _judged(result: Result) -> dict[str, bool]:
    """For every lobe with data of its own: whether no other and not the base has less loss on it."""
    judged: dict[str, bool] = {}
    measured = losses_frame(result).iloc[: len(result["losses"])]
    for place, owner in enumerate(result.get("own") or ()):
        if owner not in result["lobes"]:
            continue
        column = measured.iloc[:, place]
        own = column.iloc[list(result["lobes"]).index(owner) + 1]
        if is_number(own):
            judged[str(owner)] = judged.get(str(owner), True) and own == column.min()
    return judged
