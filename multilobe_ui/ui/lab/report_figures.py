"""The report card as HTML: all routers in one table, then one router in detail, down to single prompts. Pure.

`result` is the JSON of experiment "report": labels ("" means that no lobe fits), prompts, and for
each router what it decided. What can be clicked carries data-row: "router|name",
"cell|router|wanted|decided" (places in the labels), "prompt|place".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd

from ...evaluation.frames import confusion_frame, report_frame, scores_frame
from ..kit.frames import column_head, element, frame_table, row_head, td
from ..kit.html import Markup, around, html, joined
from ..kit.text import colour, count, css_string, is_number, listed, milliseconds, percent, short, sure
from .parts import BASE, BASE_TONE, Colours, Result, asking, if_stopped, named, remarks, share, took

NumberCell = Callable[[str, str, int, Mapping[str, str]], Markup]
"""(label wanted, label decided, number of prompts, how the cell looks) → the cell."""
Cell = tuple[int, int]
"""(place of the label wanted, place of the label decided)."""

NONE = "none of them"
MOST_PROMPTS = 50
LONGEST_QUOTE = 1500
HEADS = {
    "accuracy": ("Right", "Share of prompts that went where their label says"),
    "ece": ("Calibration error", "ECE: mean gap between confidence and share right, over bins"),
    "strangers": ("Strangers known", "Share of prompts of no lobe that it left to the base model"),
    "ms": ("Per prompt", "Median time of a decision"),
    "precision": ("Precision", "Of the prompts it gave to this lobe, the share that belongs there"),
    "recall": ("Recall", "Of this lobe's prompts, the share that it gave to it"),
    "f1": ("F1", "Harmonic mean of the two"),
}
COLUMNS = ["accuracy", "ece", "strangers", "ms"]
LESS_IS_MORE = ("ece", "ms")


def report_card(result: Result, colours: Colours) -> Markup:
    """The summary, a row for each router."""
    if not result.get("routers") or not result.get("prompts"):
        return asking("No prompt was asked. Give a labelled file, or train a lobe.")
    early = if_stopped(result, "Stopped early: this is what the routers said so far.")
    return html(
        '<div class="rc"><p class="rc-headline">{}</p>{}{}{}</div>',
        headline(result),
        remarks(result),
        early,
        _summary(result),
    )


def headline(result: Result) -> Markup:
    """Which router is right most often, and of how many prompts.

    Where a router could not be asked everything, nobody knows whether it would have been first, and
    that is said.
    """
    asked = [
        own | {"title": _title(result, name)}
        for name, own in result["routers"].items()
        if is_number(own.get("accuracy"))
    ]
    torn = [_title(result, name) for name, own in result["routers"].items() if own.get("unfinished")]
    if not asked and torn:
        return Markup("No router could be asked everything.")
    if not asked:
        return Markup("No router could be asked.")
    best = max(own["accuracy"] for own in asked)
    first = [own for own in asked if own["accuracy"] == best]
    verb = "is right"
    if len(first) > 1:
        verb = "are right"
    if len(asked) > 1:
        verb += " most often"
    answer = html(
        "<b>{}</b> {}: <b>{}</b> of {}.{}", listed(own["title"] for own in first), verb, share(best),
        count(first[0]["of"], "prompt"), took(result, "Measured in"),
    )  # fmt: skip
    if not torn:
        return answer
    return html(
        "{} could not be asked everything, so no router is the best here. Of the others, {}", listed(torn),
        answer
    )


def best_router(result: Result, default: str = "") -> str:
    """The router to show first: the default if it was asked, else the one that is right most often;
    "" if none was."""
    asked = {name: own for name, own in (result.get("routers") or {}).items() if not own.get("error")}
    if default in asked:
        return default
    return max(asked, key=lambda name: asked[name].get("accuracy") or 0.0, default="")


def best_values(routers: Mapping[str, Result]) -> dict[str, float]:
    """The best of each column, where more than one router has a number and they differ."""
    if any(own.get("unfinished") for own in routers.values()):
        return {}  # who was not asked everything might have been better
    asked = {name: own for name, own in routers.items() if not own.get("error")}
    frame = report_frame({"routers": asked})[COLUMNS].astype(float)
    frame = frame.loc[:, frame.nunique() > 1]
    return {column: _best(column, values) for column, values in frame.items()}


def _best(column: Any, values: pd.Series[float]) -> float:
    if column in LESS_IS_MORE:
        return float(values.min())
    return float(values.max())


def _summary(result: Result) -> Markup:
    best = best_values(result["routers"])

    def row(name: str, cells: Markup) -> Markup:
        own, title = result["routers"][name], _title(result, name)
        if own.get("error"):
            return html('<tr class="is-off">{}<td colspan="4">{}</td></tr>', row_head(title), own["error"])
        note = around("<small>{}</small>", own.get("note"))
        head = row_head(html('<button type="button">{}</button>{}', title, note))
        return element("tr", head + cells, data_row=f"router|{name}")

    def cell(name: str, column: str, value: Any) -> Markup:
        content = html("<b>{}</b>", share(value))
        if column == "ms":
            content = html("<b>{}</b>", milliseconds(value))
        if column == "accuracy":
            content = html("{}{} <small>{}</small>", _meter(value), content, _of(result["routers"][name]))
        if column in best and value == best[column]:
            return td(content, kind="is-best", title="the best")
        return td(content)

    corner = column_head("Router", title="Click one for its details")
    return frame_table(
        report_frame(result)[COLUMNS], "rc-table", cell=cell, row=row, head=_head, corner=corner,
        scroll="rc-scroll"
    )


def _head(column: str) -> Markup:
    words, about = HEADS[column]
    return column_head(words, title=about)


def _of(own: Result) -> str:
    return f"{own['right']:,} of {own['of']:,}"


# ---- one router ----------------------------------------------------------------------------------


def router_details(result: Result, colours: Colours, router: str, cell: Cell | None = None) -> Markup:
    """Confusion matrix and scores of each lobe; nothing for a router that was not asked."""
    own = (result.get("routers") or {}).get(router)
    if not own or own.get("error") or not own.get("of"):
        return Markup()
    return html(
        '<div class="rc rc-detail"><style>.rc-table tr[data-row={}] > * {{ background: '
        'var(--color-accent-soft); }}</style><div class="rc-head"><h3>{}</h3><p>{} right. Click a number to '
        'read its prompts; click another line, or a row above, '
        "for another router.</p></div>{}</div>",
        Markup(css_string(f"router|{router}")), _title(result, router), _of(own),
        matrix_and_scores(result, colours, router, partial(_button, result, router, cell)),
    )  # fmt: skip


def all_matrices(result: Result, colours: Colours) -> Markup:
    """Every router's matrix, folded away but for the first: for a page on which nothing can be clicked."""
    first = best_router(result)
    asked = {name: own for name, own in (result.get("routers") or {}).items() if not own.get("error")}
    state = {first: " open"}
    parts = joined(
        html(
            "<details{}><summary>{}: who answered what</summary>{}</details>",
            state.get(name, ""), _title(result, name), matrix_and_scores(result, colours, name, _still),
        )
        for name in asked
    )  # fmt: skip
    return around('<div class="rc"><div class="rc-printed">{}</div></div>', parts)


def matrix_and_scores(result: Result, colours: Colours, router: str, number: NumberCell) -> Markup:
    return html(
        '<div class="rc-pair">{}{}</div>',
        confusion_matrix(confusion_frame(result, router), colours, number),
        label_scores(result, colours, router),
    )  # fmt: skip


def confusion_matrix(confusion: pd.DataFrame, colours: Colours, number: NumberCell) -> Markup:
    """Rows: the label wanted. Columns: who was chosen. What is right has its lobe's colour, what is
    wrong is red.

    Labels that no prompt has and no decision names are left out. `number` draws the cells that are not 0.
    """
    rows = confusion.index[confusion.any(axis=1)]
    columns = [label for label in confusion if label in rows or confusion[label].any()]
    totals = confusion.sum(axis=1)

    def row(wanted: str, cells: Markup) -> Markup:
        return html(
            '<tr>{}{}<td class="of">{:,}</td></tr>', row_head(named(wanted or NONE, colours)), cells,
            totals[wanted]
        )

    def cell(wanted: str, decided: str, prompts: int) -> Markup:
        kind, none, tone = "wrong", "is-zero", "var(--ml-bad)"
        if wanted == decided:
            kind, none, tone = "right", "is-zero on", colour(colours.get(wanted), BASE_TONE)
        if not prompts:
            return td("", kind=none)
        look = f"--c:{tone};--a:{14 + 46 * prompts / totals[wanted]:.0f}%"
        return number(wanted, decided, prompts, {"kind": kind, "style": look})

    frame = confusion.loc[rows, columns]
    heads = joined(column_head(named(label or BASE, colours)) for label in columns) + column_head("of", kind="of")
    return frame_table(
        frame, "rc-matrix", cell=cell, row=row, head=lambda _: Markup(), scroll="rc-scroll",
        corner=Markup("<td>wanted <span>chosen</span></td>") + heads,
        caption="Who should answer, and who was chosen",
    )  # fmt: skip


def _still(wanted: str, decided: str, prompts: int, look: Mapping[str, str]) -> Markup:
    """A number that is only read."""
    return td(html("<span>{:,}</span>", prompts), **look)


def _button(
    result: Result, router: str, picked: Cell | None, wanted: str, decided: str, prompts: int,
    look: Mapping[str, str]
) -> Markup:
    """A number that shows its prompts."""
    labels = list(result["labels"])
    place = labels.index(wanted), labels.index(decided)
    words = f"{count(prompts, 'prompt')} of {wanted or NONE}, answered by {decided or BASE}"
    button = html(
        '<button type="button" data-row="cell|{}|{}|{}" aria-pressed="{}" aria-label="{}" '
        'title="{}">{:,}</button>', router, *place, str(picked == place).lower(), words, words, prompts,
    )  # fmt: skip
    return td(button, **look)


def label_scores(result: Result, colours: Colours, router: str) -> Markup:
    """Precision, recall and F1 of every label that prompts or decisions have."""

    def row(label: str, cells: Markup) -> Markup:
        tone = colour(colours.get(label), BASE_TONE)
        return html('<tr style="--c:{}">{}{}</tr>', tone, row_head(named(label or NONE, colours)), cells)

    def cell(label: str, column: str, value: Any) -> Markup:
        if column == "f1":
            return td(_meter(value) + share(value))
        return td(share(value))

    return frame_table(
        scores_frame(result, router), "rc-scores", cell=cell, row=row, head=_head, corner=Markup("<th></th>"),
        caption="Every lobe by itself", scroll="rc-scroll",
    )  # fmt: skip


# ---- prompts of a cell ---------------------------------------------------------------------------


def prompts_of(result: Result, router: str, cell: Cell) -> list[int]:
    """Places of the prompts in a cell: the surest first where the router was wrong, the least sure
    first where it was right."""
    own, labels = result["routers"][router], result["labels"]
    wanted, decided = cell
    places = [
        place
        for place, (prompt, choice) in enumerate(zip(result["prompts"], own["decided"], strict=False))
        if choice == decided and (prompt["lobe"] or "") == labels[wanted]
    ]
    return sorted(places, key=lambda place: own["confidence"][place] or 0.0, reverse=wanted != decided)


def cell_prompts(
    result: Result,
    colours: Colours,
    router: str,
    cell: Cell,
    picked: int | None = None,
    corrected: Mapping[str, str | None] | None = None,
) -> Markup:
    """The prompts in a cell, at most `MOST_PROMPTS`. `corrected`: prompt → the lobe (None: base) a
    person gave it to."""
    places = prompts_of(result, router, cell)
    wanted, decided = (result["labels"][place] for place in cell)
    went, order = "but went to", "surest first"
    if wanted == decided:
        went, order = "answered by", "least sure first"
    if len(places) > MOST_PROMPTS:
        order += f", {MOST_PROMPTS} of them shown"
    items = joined(_prompt(result, router, place, place == picked, corrected or {}) for place in places[:MOST_PROMPTS])
    return html(
        '<div class="rc rc-list"><h4>{} <span>{}</span> {}</h4><p>{} by {}, {}; numbers say how sure it was '
        'of its choice. '
        "Click one to say who should answer it.</p><ol>{}</ol></div>",
        named(wanted or NONE, colours), went, named(decided or BASE, colours), count(len(places), "prompt"),
        _title(result, router), order, items,
    )  # fmt: skip


def _prompt(result: Result, router: str, place: int, picked: bool, corrected: Mapping[str, str | None]) -> Markup:
    prompt = result["prompts"][place]
    words = str(prompt["prompt"])
    marks = joined(
        html("<em>corrected: {}</em>", short(corrected[key] or BASE, 24)) for key in [words] if key in corrected
    )
    return html(
        '<li><button type="button" data-row="prompt|{}" '
        'aria-pressed="{}">{}<span>{}</span>{}{}</button></li>', place, str(picked).lower(),
        _sure(result, router, place), short(words, 220), marks,
        around("<small>{}</small>", short(str(prompt.get("source") or ""), 32)),
    )  # fmt: skip


def prompt_card(result: Result, colours: Colours, router: str, place: int) -> Markup:
    """One prompt in full, its label, and what every router made of it."""
    prompt = result["prompts"][place]
    words = str(prompt["prompt"])
    asked = [name for name, own in result["routers"].items() if not own.get("error") and place < len(own["decided"])]
    chips = joined(_chip(result, name, place, colours) for name in sorted(asked, key=lambda name: name != router))
    return html(
        '<div class="rc rc-ask"><h4>Who should answer this?</h4><blockquote>{}</blockquote><p>Labelled '
        '{}</p><ul>{}</ul></div>', _cut(words), named(prompt["lobe"] or NONE, colours), chips,
    )  # fmt: skip


def _cut(words: str) -> str:
    if len(words) <= LONGEST_QUOTE:
        return words
    return words[:LONGEST_QUOTE] + "…"


def _chip(result: Result, router: str, place: int, colours: Colours) -> Markup:
    decided = result["labels"][result["routers"][router]["decided"][place]]
    word, mark = "wrong", "✗"
    if decided == (result["prompts"][place]["lobe"] or ""):
        word, mark = "right", "✓"
    return html(
        '<li class="is-{0}"><span>{1}</span>{2}{3}<i role="img" aria-label="{0}">{4}</i></li>',
        word, _title(result, router), named(decided or BASE, colours), _sure(result, router, place), mark,
    )  # fmt: skip


def _sure(result: Result, router: str, place: int) -> Markup:
    """How sure a router was of what it decided on a prompt; in full when pointed at."""
    own = result["routers"][router]
    confidence, abstained = own["confidence"][place], result["labels"][own["decided"][place]] == ""
    return html('<b title="{}">{}</b>', sure(confidence, abstained), percent(confidence))


def _title(result: Result, router: str) -> str:
    return str(result["routers"][router].get("title") or router)


def _meter(value: Any) -> Markup:
    """A bar as long as a share; empty where there is none."""
    width = 0.0
    if is_number(value):
        width = 100 * min(1.0, max(0.0, float(value)))
    return html('<i class="rc-meter" aria-hidden="true"><i style="width:{:.1f}%"></i></i>', width)
