"""What answers cost, as HTML and as files: a row for each router, the latest answers, and the quiet
line under one answer. Pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import text
from .figures import share_bar
from .html import Markup, and_more, around, html, joined
from .table import dot

if TYPE_CHECKING:
    from ...app.ledger import Cost

BASE_NAME = "Base model"
BASE_COLOUR = "#8a93a0"
BY_HAND = "chosen by hand"
MANUAL = "manual"
EMPTY = Markup(
    '<div class="ml-box ledger-empty"><b>No answer yet</b><p>Ask something in Chat: every answer is '
    "entered here with its "
    "time and tokens. What was asked and answered is not kept.</p></div>"
)
NO_FOOT = Markup()
FIELDS = (
    "time", "router", "stage", "lobes", "route_ms", "first_token_ms", "prompt_tokens", "answer_tokens",
    "seconds",
    "tokens_per_second", "resident", "resident_bytes", "stopped",
)  # fmt: skip

Totals = Mapping[str, Mapping[str, Any]]
Names = Mapping[str, str]


def cost_line(cost: Cost) -> str:
    """'routed in 14 ms · 38 + 61 tokens · 92 tokens/s · 3 lobes in memory, 4.2 MB', as plain text."""
    parts = [BY_HAND, f"{cost.prompt_tokens:,} + {cost.answer_tokens:,} tokens"]
    if cost.route_ms is not None:
        parts[0] = f"routed in {text.milliseconds(cost.route_ms)}"
    if cost.tokens_per_second > 0:
        parts.append(text.rate(cost.tokens_per_second))
    if not cost.resident:
        return " · ".join([*parts, "no lobe in memory"])
    memory = text.size(cost.resident_bytes).replace(" MB", "\u00a0MB")
    return " · ".join([*parts, f"{text.count(len(cost.resident), 'lobe')} in memory, {memory}"])


def cost_note(cost: Cost) -> Markup:
    """The line as HTML, with what its parts mean for whoever points at it."""
    resident = around(" In memory: {}.", text.listed(text.short(name, 40) for name in cost.resident))
    return html(
        '<p class="ml-cost" title="Tokens of the prompt + of the answer. Speed: answer tokens a second, '
        'reading the prompt '
        'included.{}">{}</p>',
        resident, cost_line(cost),
    )  # fmt: skip


def ledger_table(totals: Totals, titles: Names, colours: Names) -> Markup:
    """A row for each router, and one for all of them."""
    if not totals:
        return EMPTY
    columns = (
        ("Router", ""), ("Replies", "num"), ("Routing, ms", "num"), ("First token, ms", "num wide"),
        ("Tokens read", "num wide"),
        ("Tokens written", "num"), ("Tokens/s", "num"), ("Answered by", "extra"),
    )  # fmt: skip
    rows = joined(_router_row(name, total, titles, colours) for name, total in totals.items())
    note = Markup(
        '<p class="ledger-note">Milliseconds are medians. Tokens/s: all answer tokens in all seconds of '
        "generation, "
        "reading the prompt included.</p>"
    )
    return _table("Cost of every router", columns, rows, html("<tfoot>{}</tfoot>", _all(totals))) + note


def recent_table(costs: Sequence[Cost], titles: Names, colours: Names) -> Markup:
    """The latest answers, newest first. Empty without any."""
    if not costs:
        return Markup()
    columns = (
        ("When", ""), ("Answered by", ""), ("Router", "wide"), ("Routing, ms", "num"),
        ("First token, ms", "num extra"),
        ("Tokens read + written", "num"), ("Tokens/s", "num"), ("In memory", "num extra"),
    )  # fmt: skip
    return _table("Latest answers", columns, joined(_reply_row(cost, titles, colours) for cost in costs))


def ledger_csv(costs: Sequence[Cost]) -> str:
    """A line for each answer, oldest first. Names that a spreadsheet would take for a formula get
    an apostrophe before them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for cost in reversed(costs):
        values = cost.to_json()
        writer.writerow([_csv_cell(values.get(name)) for name in FIELDS])
    return out.getvalue()


def _csv_cell(value: object) -> object:
    if isinstance(value, (list, tuple)):
        value = ", ".join(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")):
        return f"'{value}"
    return value


def ledger_json(totals: Totals, costs: Sequence[Cost]) -> str:
    """Totals and answers, oldest first."""
    return json.dumps(
        {"routers": totals, "answers": [cost.to_json() for cost in reversed(costs)]},
        ensure_ascii=False,
        indent=1,
    )


def _table(label: str, columns: Sequence[tuple[str, str]], rows: Markup, foot: Markup = NO_FOOT) -> Markup:
    return html(
        '<div class="ml-table-wrap" tabindex="0" role="region" aria-label="{}"><table class="ml-table '
        'ledger-table">'
        "<thead><tr>{}</tr></thead><tbody>{}</tbody>{}</table></div>",
        label, joined(html('<th class="{}" scope="col">{}</th>', kind, title) for title, kind in columns),
        rows, foot,
    )  # fmt: skip


def _router_row(name: str, total: Mapping[str, Any], titles: Names, colours: Names) -> Markup:
    replies = {lobe or BASE_NAME: number for lobe, number in total["by_lobe"].items()}
    tones = {**colours, BASE_NAME: BASE_COLOUR}
    shares = share_bar(
        {lobe: number / sum(replies.values()) for lobe, number in replies.items()}, tones, "Answered by"
    )
    return html(
        "<tr><td><b>{}</b></td>{}{}{}{}{}{}{}</tr>",
        _title(name, titles),
        _cell(f"{total['replies']:,}", _stopped(total["stopped"])),
        _routing_cell(name, total),
        _cell(text.decimal(total["first_token_ms"]), kind="num wide"),
        _cell(f"{total['prompt_tokens']:,}", kind="num wide"),
        _cell(f"{total['answer_tokens']:,}", _in(total["seconds"])),
        _cell(text.decimal(total["tokens_per_second"])),
        _cell(shares, kind="extra"),
    )


def _routing_cell(name: str, total: Mapping[str, Any]) -> Markup:
    if total["route_ms_mean"] is not None:
        return _cell(text.decimal(total["route_ms"]), f"mean {text.decimal(total['route_ms_mean'])}")
    if name == MANUAL:
        return _cell(Markup('<span class="ml-faint">by hand</span>'))
    return _cell(text.NOTHING)


def _all(totals: Totals) -> Markup:
    """The sums, where there is more than one router."""
    if len(totals) < 2:
        return Markup()
    replies, stopped, read, written, seconds = (
        sum(total[key] for total in totals.values())
        for key in ("replies", "stopped", "prompt_tokens", "answer_tokens", "seconds")
    )
    speed = None
    if seconds > 0:
        speed = written / seconds
    return html(
        "<tr><td><b>All</b></td>{}{}{}{}{}{}{}</tr>",
        _cell(f"{replies:,}", _stopped(stopped)),
        _cell(""),
        _cell("", kind="num wide"),
        _cell(f"{read:,}", kind="num wide"),
        _cell(f"{written:,}", _in(seconds)),
        _cell(text.decimal(speed)),
        _cell("", kind="extra"),
    )


def _reply_row(cost: Cost, titles: Names, colours: Names) -> Markup:
    routing, memory = _cell("by hand"), _cell(text.NOTHING, kind="num extra")
    if cost.route_ms is not None:
        routing = _cell(text.decimal(cost.route_ms))
    if cost.resident:
        memory = _cell(text.count(len(cost.resident), "lobe"), text.size(cost.resident_bytes), "num extra")
    return html(
        '<tr><td class="ledger-when">{}</td><td><div class="ledger-who">{}</div></td>{}{}{}{}{}{}</tr>',
        text.when(cost.time),
        _who(cost, colours),
        _cell(_router(cost, titles), kind="wide"),
        routing,
        _cell(text.decimal(cost.first_token_ms), kind="num extra"),
        _cell(f"{cost.prompt_tokens:,} + {cost.answer_tokens:,}"),
        _cell(text.decimal(cost.tokens_per_second or None)),
        memory,
    )


def _who(cost: Cost, colours: Names) -> Markup:
    answered_by = [(name, colours.get(name, "")) for name in cost.lobes] or [(BASE_NAME, BASE_COLOUR)]
    names = joined(
        html("<span>{}{}</span>", dot(tone), text.short(name, 28)) for name, tone in answered_by[:3]
    )
    names += and_more("<span>and {} more</span>", len(answered_by) - 3)
    if cost.stopped:
        names += Markup('<span class="ml-faint">stopped</span>')
    return names


def _router(cost: Cost, titles: Names) -> str:
    """The router, and the stage of it that decided."""
    title = _title(cost.router, titles)
    if cost.router in (cost.stage, MANUAL):
        return title
    return f"{title}, {text.stage(cost.stage)}"


def _cell(value: object, small: str = "", kind: str = "num") -> Markup:
    return html('<td class="{}">{}{}</td>', kind, value, around("<small>{}</small>", small))


def _title(router: str, titles: Names) -> str:
    if router == MANUAL:
        return "By hand"
    return titles.get(router, router)


def _stopped(number: int) -> str:
    if not number:
        return ""
    return f"{number:,} stopped"


def _in(seconds: float) -> str:
    if seconds <= 0:
        return ""
    return f"in {text.duration(seconds)}"
