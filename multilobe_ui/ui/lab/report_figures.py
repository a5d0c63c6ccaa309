"""The report card as HTML: all routers in one table, then one router in detail, down to single prompts. Pure; all is escaped.

`result` is the JSON of experiment "report": labels ("" means that no lobe fits), prompts, and for each router what it decided. What
can be clicked carries data-row: "router|name", "cell|router|wanted|decided" (places in the labels), "prompt|place".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..kit.text import (
    colour,
    count,
    css_string,
    duration,
    escape,
    is_number,
    listed,
    milliseconds,
    percent,
    remarks,
    short,
    sure,
)
from .report_curves import abstention_figure, calibration_figure, share

Result = Mapping[str, Any]
Colours = Mapping[str, str]
Cell = tuple[int, int]
"""(place of the label wanted, place of the label decided)."""

NONE = "none of them"
BASE = "base model"
MOST_PROMPTS = 50
LONGEST_QUOTE = 1500
COLUMNS = ("accuracy", "ece", "strangers", "ms")
LESS_IS_MORE = ("ece", "ms")
SCORES = ("precision", "recall", "f1")


def report_card(result: Result, colours: Colours) -> str:
    """The summary, a row for each router. A page that stands by itself shows every router's details below it as well."""
    routers = result.get("routers") or {}
    if not routers or not result.get("prompts"):
        return '<p class="train-ask">No prompt was asked. Give a labelled file, or train a lobe.</p>'
    early = '<p class="train-ask">Stopped early: this is what the routers said so far.</p>' if result.get("stopped") else ""
    best = best_values(routers)
    body = "".join(_summary_row(name, own, best) for name, own in routers.items())
    heads = "".join(
        f'<th scope="col" title="{escape(about)}">{head}</th>'
        for head, about in (
            ("Router", "Click one for its details"),
            ("Right", "Share of prompts that went where their label says"),
            ("Calibration error", "ECE: mean gap between confidence and share right, over bins"),
            ("Strangers known", "Share of prompts of no lobe that it left to the base model"),
            ("Per prompt", "Median time of a decision"),
        )
    )
    table = f'<div class="rc-scroll"><table class="rc-table"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    head = f'<p class="rc-headline">{headline(result)}</p>{remarks(result)}{early}'
    return f'<div class="rc">{head}{table}{_printed(result, colours)}</div>'


def headline(result: Result) -> str:
    """Which router is right most often, and of how many prompts. HTML.

    Where a router could not be asked everything, nobody knows whether it would have been first, and that is said.
    """
    asked = {name: own for name, own in result["routers"].items() if is_number(own.get("accuracy"))}
    torn = [_title(name, own) for name, own in result["routers"].items() if own.get("unfinished")]
    if not asked:
        return "No router could be asked everything." if torn else "No router could be asked."
    best = max(own["accuracy"] for own in asked.values())
    first = [own for own in asked.values() if own["accuracy"] == best]
    who = escape(listed(_title(name, own) for name, own in asked.items() if own["accuracy"] == best))
    verb = "is" if len(first) == 1 else "are"
    most = " most often" if len(asked) > 1 else ""
    took = f" Measured in {duration(result['seconds'])}." if is_number(result.get("seconds")) else ""
    said = f"<b>{who}</b> {verb} right{most}: <b>{share(best)}</b> of {count(first[0]['of'], 'prompt')}.{took}"
    if not torn:
        return said
    return f"{escape(listed(torn))} could not be asked everything, so no router is the best here. Of the others, {said}"


def best_router(result: Result, default: str = "") -> str:
    """The router to show first: the default if it was asked, else the one that is right most often; "" if none was."""
    asked = {name: own for name, own in (result.get("routers") or {}).items() if not own.get("error")}
    if default in asked:
        return default
    return max(asked, key=lambda name: asked[name].get("accuracy") or 0.0, default="")


def best_values(routers: Mapping[str, Result]) -> dict[str, float]:
    """The best of each column, where more than one router has a number and they differ."""
    found: dict[str, float] = {}
    if any(own.get("unfinished") for own in routers.values()):
        return found  # who was not asked everything might have been better
    for key in COLUMNS:
        values = [float(own[key]) for own in routers.values() if is_number(own.get(key)) and not own.get("error")]
        if len(set(values)) > 1:
            found[key] = min(values) if key in LESS_IS_MORE else max(values)
    return found


def _summary_row(name: str, own: Result, best: Mapping[str, float]) -> str:
    title = escape(_title(name, own))
    if own.get("error"):
        return f'<tr class="is-off"><th scope="row">{title}</th><td colspan="4">{escape(own["error"])}</td></tr>'
    said = {
        "accuracy": f"{_meter(own.get('accuracy'))}<b>{share(own.get('accuracy'))}</b> <small>{_of(own)}</small>",
        "ece": f"<b>{share(own.get('ece'))}</b>",
        "strangers": f"<b>{share(own.get('strangers'))}</b>",
        "ms": f"<b>{milliseconds(own.get('ms'))}</b>",
    }
    first = {key for key in best if own.get(key) == best[key]}
    marks = {key: ' class="is-best" title="the best"' if key in first else "" for key in COLUMNS}
    cells = "".join(f"<td{marks[key]}>{said[key]}</td>" for key in COLUMNS)
    row, note = escape(f"router|{name}"), f"<small>{escape(own['note'])}</small>" if own.get("note") else ""
    return f'<tr data-row="{row}"><th scope="row"><button type="button">{title}</button>{note}</th>{cells}</tr>'


def _of(own: Result) -> str:
    return f"{own['right']:,} of {own['of']:,}"


def _printed(result: Result, colours: Colours) -> str:
    """What the page shows on a click, all of it, for the page that is taken away. Style sheets hide it here."""
    first = best_router(result)
    if not first:
        return ""
    curves = f'<div class="rc-curves">{calibration_figure(result, first, False)}{abstention_figure(result, first, False)}</div>'
    parts = "".join(
        f"<details{' open' if name == first else ''}><summary>{escape(_title(name, own))}: who answered what</summary>"
        f"{_matrix_and_scores(result, colours, name, None, False)}</details>"
        for name, own in result["routers"].items()
        if not own.get("error")
    )
    return f'<div class="rc-printed">{curves}{parts}</div>'


# ---- one router ------------------------------------------------------------------------------------------------------


def router_details(result: Result, colours: Colours, router: str, cell: Cell | None = None) -> str:
    """Confusion matrix, scores of each lobe, and the two curves; "" for a router that was not asked."""
    own = (result.get("routers") or {}).get(router)
    if not own or own.get("error") or not own.get("of"):
        return ""
    head = (
        f'<div class="rc-head"><h3>{escape(_title(router, own))}</h3><p>{_of(own)} right. '
        "Click a number to read its prompts; click another line, or a row above, for another router.</p></div>"
    )
    curves = f'<div class="rc-curves">{calibration_figure(result, router)}{abstention_figure(result, router)}</div>'
    row = css_string(f"router|{router}")
    marked = f"<style>.rc-table tr[data-row={row}] > * {{ background: var(--color-accent-soft); }}</style>"
    return f'<div class="rc rc-detail">{marked}{head}{_matrix_and_scores(result, colours, router, cell, True)}{curves}</div>'


def _matrix_and_scores(result: Result, colours: Colours, router: str, cell: Cell | None, live: bool) -> str:
    own = result["routers"][router]
    matrix = confusion_matrix(result["labels"], own["confusion"], colours, router, cell, live)
    return f'<div class="rc-pair">{matrix}{label_scores(result["labels"], own, colours)}</div>'


def confusion_matrix(
    labels: Sequence[str],
    confusion: Sequence[Sequence[int]],
    colours: Colours,
    router: str,
    cell: Cell | None,
    live: bool = True,
) -> str:
    """Rows: the label wanted. Columns: who was chosen. What is right has its lobe's colour, what is wrong is red.

    Labels that no prompt has and no decision names are left out.
    """
    rows = [i for i, row in enumerate(confusion) if sum(row)]
    columns = [j for j in range(len(labels)) if j in rows or any(row[j] for row in confusion)]
    heads = "".join(f'<th scope="col">{_name(_decided(labels[j]), colours)}</th>' for j in columns)
    body = "".join(
        f'<tr><th scope="row">{_name(_wanted(labels[i]), colours)}</th>'
        + "".join(_cell(labels, confusion[i], i, j, colours, router, cell, live) for j in columns)
        + f'<td class="of">{sum(confusion[i]):,}</td></tr>'
        for i in rows
    )
    return (
        '<div class="rc-scroll"><table class="rc-matrix"><caption>Who should answer, and who was chosen</caption>'
        f'<thead><tr><td>wanted <span>chosen</span></td>{heads}<th class="of" scope="col">of</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(
    labels: Sequence[str], row: Sequence[int], i: int, j: int, colours: Colours, router: str, picked: Cell | None, live: bool
) -> str:
    number = row[j]
    kind = "right" if i == j else "wrong"
    if not number:
        return f'<td class="{"is-zero on" if i == j else "is-zero"}"></td>'
    tone = colour(colours.get(labels[i]), "var(--ml-base)") if i == j else "var(--ml-bad)"
    look = f'class="{kind}" style="--c:{tone};--a:{14 + 46 * number / sum(row):.0f}%"'
    if not live:
        return f"<td {look}><span>{number:,}</span></td>"
    said = escape(f"{count(number, 'prompt')} of {_wanted(labels[i])}, answered by {_decided(labels[j])}")
    id = escape(f"cell|{router}|{i}|{j}")
    pressed = str(picked == (i, j)).lower()
    about = f'data-row="{id}" aria-pressed="{pressed}" aria-label="{said}" title="{said}"'
    return f'<td {look}><button type="button" {about}>{number:,}</button></td>'


def label_scores(labels: Sequence[str], own: Result, colours: Colours) -> str:
    """Precision, recall and F1 of every label that prompts or decisions have."""
    confusion = own["confusion"]
    known = [i for i in range(len(labels)) if sum(confusion[i]) or any(row[i] for row in confusion)]
    body = "".join(
        f'<tr style="--c:{colour(colours.get(labels[i]), "var(--ml-base)")}">'
        f'<th scope="row">{_name(_wanted(labels[i]), colours)}</th>'
        + "".join(f"<td>{share(own[key].get(labels[i]))}</td>" for key in SCORES[:-1])
        + f"<td>{_meter(own['f1'].get(labels[i]))}{share(own['f1'].get(labels[i]))}</td></tr>"
        for i in known
    )
    heads = "".join(
        f'<th scope="col" title="{escape(about)}">{head}</th>'
        for head, about in (
            ("Precision", "Of the prompts it gave to this lobe, the share that belongs there"),
            ("Recall", "Of this lobe's prompts, the share that it gave to it"),
            ("F1", "Harmonic mean of the two"),
        )
    )
    return (
        '<div class="rc-scroll"><table class="rc-scores"><caption>Every lobe by itself</caption>'
        f"<thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


# ---- prompts of a cell -----------------------------------------------------------------------------------------------


def prompts_of(result: Result, router: str, cell: Cell) -> list[int]:
    """Places of the prompts in a cell: the surest first where the router was wrong, the least sure first where it was right."""
    own, labels = result["routers"][router], result["labels"]
    wanted, decided = cell
    found = [
        i
        for i, (prompt, choice) in enumerate(zip(result["prompts"], own["decided"], strict=False))
        if choice == decided and (prompt["lobe"] or "") == labels[wanted]
    ]
    sign = 1 if wanted == decided else -1
    return sorted(found, key=lambda i: sign * (own["confidence"][i] or 0.0))


def cell_prompts(
    result: Result,
    colours: Colours,
    router: str,
    cell: Cell,
    picked: int | None = None,
    corrected: Mapping[str, str | None] | None = None,
) -> str:
    """The prompts in a cell, at most `MOST_PROMPTS`. `corrected`: prompt → the lobe (None: base) a person gave it to."""
    own, labels = result["routers"][router], result["labels"]
    found = prompts_of(result, router, cell)
    wanted, decided = labels[cell[0]], labels[cell[1]]
    order = "least sure first" if cell[0] == cell[1] else "surest first"
    more = f", {MOST_PROMPTS} of them shown" if len(found) > MOST_PROMPTS else ""
    went = "answered by" if cell[0] == cell[1] else "but went to"
    items = "".join(_prompt(result, own, i, i == picked, corrected or {}) for i in found[:MOST_PROMPTS])
    heading = f"{_name(_wanted(wanted), colours)} <span>{went}</span> {_name(_decided(decided), colours)}"
    return (
        f'<div class="rc rc-list"><h4>{heading}</h4>'
        f"<p>{count(len(found), 'prompt')} by {escape(_title(router, own))}, {order}{more}; numbers say how sure "
        f"it was of its choice. Click one to say who should answer it.</p><ol>{items}</ol></div>"
    )


def _prompt(result: Result, own: Result, i: int, picked: bool, corrected: Mapping[str, str | None]) -> str:
    prompt = result["prompts"][i]
    words = str(prompt["prompt"])
    mark = f"<em>corrected: {escape(short(corrected[words] or BASE, 24))}</em>" if words in corrected else ""
    source = f"<small>{escape(short(str(prompt['source']), 32))}</small>" if prompt.get("source") else ""
    return (
        f'<li><button type="button" data-row="prompt|{i}" aria-pressed="{str(picked).lower()}">'
        f"{_sure(result, own, i)}<span>{escape(short(words, 220))}</span>{mark}{source}</button></li>"
    )


def prompt_card(result: Result, colours: Colours, router: str, place: int) -> str:
    """One prompt in full, its label, and what every router made of it."""
    prompt, labels = result["prompts"][place], result["labels"]
    words = str(prompt["prompt"])
    cut = "…" if len(words) > LONGEST_QUOTE else ""
    asked = {name: own for name, own in result["routers"].items() if not own.get("error") and place < len(own["decided"])}
    order = sorted(asked, key=lambda name: name != router)
    chips = "".join(_chip(_title(name, asked[name]), asked[name], labels, prompt, place, colours) for name in order)
    return (
        f'<div class="rc rc-ask"><h4>Who should answer this?</h4><blockquote>{escape(words[:LONGEST_QUOTE])}{cut}</blockquote>'
        f"<p>Labelled {_name(_wanted(prompt['lobe'] or ''), colours)}</p><ul>{chips}</ul></div>"
    )


def _chip(title: str, own: Result, labels: Sequence[str], prompt: Result, place: int, colours: Colours) -> str:
    decided = labels[own["decided"][place]]
    right = decided == (prompt["lobe"] or "")
    word = "right" if right else "wrong"
    return (
        f'<li class="is-{word}"><span>{escape(title)}</span>{_name(_decided(decided), colours)}'
        f'{_sure({"labels": labels}, own, place)}<i role="img" aria-label="{word}">{"✓" if right else "✗"}</i></li>'
    )


def _sure(result: Result, own: Result, place: int) -> str:
    """How sure a router was of what it decided on a prompt; in full when pointed at."""
    abstained = result["labels"][own["decided"][place]] == ""
    confidence = own["confidence"][place]
    return f'<b title="{escape(sure(confidence, abstained))}">{percent(confidence)}</b>'


# ---- names -----------------------------------------------------------------------------------------------------------


def _title(name: str, own: Result) -> str:
    return str(own.get("title") or name)


def _wanted(label: str) -> str:
    return label or NONE


def _decided(label: str) -> str:
    return label or BASE


def _name(name: str, colours: Colours) -> str:
    """A lobe with its dot."""
    tone, said = colour(colours.get(name), "var(--ml-base)"), escape(name)
    return f'<span class="rc-name" title="{said}"><i style="--c:{tone}"></i><span>{said}</span></span>'


def _meter(value: Any) -> str:
    """A bar as long as a share; empty where there is none."""
    width = 100 * min(1.0, max(0.0, float(value))) if is_number(value) and math.isfinite(value) else 0.0
    return f'<i class="rc-meter" aria-hidden="true"><i style="width:{width:.1f}%"></i></i>'
