"""What answers cost, as tables on the page and as files: a row for each router, and the latest
answers. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ...evaluation.frames import costs_frame, ledger_frame
from ..kit import text
from ..kit.figures import share_bar
from ..kit.frames import column_head, frame_csv, frame_table, td
from ..kit.html import Markup, and_more, around, html, joined
from ..kit.table import dot

if TYPE_CHECKING:
    from ...app.ledger import Cost

BASE_NAME = "Base model"
BASE_COLOUR = "#8a93a0"
MANUAL = "manual"
EMPTY = Markup(
    '<div class="ml-box ledger-empty"><b>No answer yet</b><p>Ask something in Chat: every answer is entered '
    'here with its '
    "time and tokens. What was asked and answered is not kept.</p></div>"
)
ROUTERS = {
    "replies": ("Replies", "num"), "route_ms": ("Routing, ms", "num"),
    "first_token_ms": ("First token, ms", "num wide"),
    "prompt_tokens": ("Tokens read", "num wide"), "answer_tokens": ("Tokens written", "num"),
    "tokens_per_second": ("Tokens/s", "num"), "by_lobe": ("Answered by", "extra"),
}  # fmt: skip
LATEST = {
    "who": ("Answered by", ""), "router": ("Router", "wide"), "route_ms": ("Routing, ms", "num"),
    "first_token_ms": ("First token, ms", "num extra"), "tokens": ("Tokens read + written", "num"),
    "tokens_per_second": ("Tokens/s", "num"), "memory": ("In memory", "num extra"),
}  # fmt: skip
"""Column → its title and class."""

Totals = Mapping[str, Mapping[str, Any]]
Names = Mapping[str, str]


def ledger_table(totals: Totals, titles: Names, colours: Names) -> Markup:
    """A row for each router, and one for all of them."""
    if not totals:
        return EMPTY
    frame = ledger_frame(totals)
    sums, foot = frame.sum(numeric_only=True), Markup()
    if len(frame) > 1:
        sums["tokens_per_second"] = sums["answer_tokens"] / max(sums["seconds"], 1e-9)
        foot = html("<tr><td><b>All</b></td>{}</tr>", joined(_sum(sums, column) for column in ROUTERS))
    table = frame_table(
        frame[list(ROUTERS)], "ml-table ledger-table", head=lambda column: _head(*ROUTERS[column]), foot=foot,
        corner=_head("Router", ""), label="Cost of every router", scroll="ml-table-wrap",
        row=lambda name, cells: html("<tr><td><b>{}</b></td>{}</tr>", _title(name, titles), cells),
        cell=lambda name, column, value: _total(name, column, value, frame.loc[name], colours),
    )  # fmt: skip
    note = Markup(
        '<p class="ledger-note">Milliseconds are medians. Tokens/s: all answer tokens in all seconds of '
        'generation, '
        "reading the prompt included.</p>"
    )
    return table + note


def _total(name: str, column: str, value: Any, total: pd.Series[Any], colours: Names) -> Markup:
    kind = ROUTERS[column][1]
    if column == "by_lobe":
        return td(_shares(value, colours), kind=kind)
    if column == "route_ms" and pd.notna(total["route_ms_mean"]):
        return _cell(text.decimal(value), f"mean {text.decimal(total['route_ms_mean'])}", kind)
    if column == "route_ms" and name == MANUAL:
        return td(Markup('<span class="ml-faint">by hand</span>'), kind=kind)
    if column in ("replies", "prompt_tokens", "answer_tokens"):
        return _cell(f"{value:,.0f}", _remark(column, total), kind)
    return td(text.decimal(value), kind=kind)


def _sum(sums: pd.Series[Any], column: str) -> Markup:
    kind = ROUTERS[column][1]
    if column == "tokens_per_second":
        return td(text.decimal(sums[column]), kind=kind)
    if column in ("replies", "prompt_tokens", "answer_tokens"):
        return _cell(f"{sums[column]:,.0f}", _remark(column, sums), kind)
    return td("", kind=kind)


def _remark(column: str, total: pd.Series[Any]) -> str:
    """What is said below a number: how many replies were stopped, how long the writing took."""
    if column == "replies" and total["stopped"]:
        return f"{total['stopped']:,.0f} stopped"
    if column == "answer_tokens" and total["seconds"] > 0:
        return f"in {text.duration(total['seconds'])}"
    return ""


def _shares(by_lobe: Mapping[str, int], colours: Names) -> Markup:
    replies = {lobe or BASE_NAME: number for lobe, number in by_lobe.items()}
    shares = {lobe: number / sum(replies.values()) for lobe, number in replies.items()}
    return share_bar(shares, {**colours, BASE_NAME: BASE_COLOUR}, "Answered by")


# ---- single answers ------------------------------------------------------------------------------


def recent_table(costs: Sequence[Cost], titles: Names, colours: Names) -> Markup:
    """The latest answers, newest first. Nothing without any."""
    if not costs:
        return Markup()
    frame = costs_frame([cost.to_json() for cost in costs]).assign(who="", tokens="", memory="")
    return frame_table(
        frame[list(LATEST)], "ml-table ledger-table", head=lambda column: _head(*LATEST[column]),
        corner=_head("When", ""), label="Latest answers", scroll="ml-table-wrap",
        row=lambda i, cells: html('<tr><td class="ledger-when">{}</td>{}</tr>', text.when(costs[i].time), cells),
        cell=lambda i, column, value: _reply(costs[i], column, value, titles, colours),
    )  # fmt: skip


def _reply(cost: Cost, column: str, value: Any, titles: Names, colours: Names) -> Markup:
    kind = LATEST[column][1]
    if column == "who":
        return td(html('<div class="ledger-who">{}</div>', _who(cost, colours)))
    if column == "router":
        return td(_router(cost, titles), kind=kind)
    if column == "tokens":
        return td(f"{cost.prompt_tokens:,} + {cost.answer_tokens:,}", kind=kind)
    if column == "memory" and cost.resident:
        return _cell(text.count(len(cost.resident), "lobe"), text.size(cost.resident_bytes), kind)
    if column == "route_ms" and value is None:
        return td("by hand", kind=kind)
    return td(text.decimal(value or None), kind=kind)


def _who(cost: Cost, colours: Names) -> Markup:
    answered_by = [(name, colours.get(name, "")) for name in cost.lobes] or [(BASE_NAME, BASE_COLOUR)]
    names = joined(html("<span>{}{}</span>", dot(tone), text.short(name, 28)) for name, tone in answered_by[:3])
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


def _title(router: str, titles: Names) -> str:
    return {**titles, MANUAL: "By hand"}.get(router, router)


def _head(title: str, kind: str) -> Markup:
    return column_head(title, kind=kind)


def _cell(value: str, small: str, kind: str) -> Markup:
    return td(html("{}{}", value, around("<small>{}</small>", small)), kind=kind)


# ---- files ---------------------------------------------------------------------------------------


def ledger_csv(costs: Sequence[Cost]) -> str:
    """A line for each answer, oldest first."""
    return frame_csv(costs_frame([cost.to_json() for cost in reversed(costs)]), index=False)


def ledger_json(totals: Totals, costs: Sequence[Cost]) -> str:
    """Totals and answers, oldest first."""
    answers = [cost.to_json() for cost in reversed(costs)]
    return json.dumps({"routers": totals, "answers": answers}, ensure_ascii=False, indent=1)
