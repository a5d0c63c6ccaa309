"""What answers cost, as HTML and as files: a row for each router, the latest answers, and the quiet line under one answer. Pure.

Names of lobes are people's words, and routers' names come out of a file: both are escaped.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import text
from .figures import share_bar
from .table import dot

if TYPE_CHECKING:
    from ...app.ledger import Cost

BASE_NAME = "Base model"
BASE_COLOUR = "#8a93a0"
BY_HAND = "chosen by hand"
MANUAL = "manual"
EMPTY = (
    '<div class="ml-box ledger-empty"><b>No answer yet</b><p>Ask something in Chat: every answer is entered here with its time and '
    "tokens. What was asked and answered is not kept.</p></div>"
)
FIELDS = (
    "time", "router", "stage", "lobes", "route_ms", "first_token_ms", "prompt_tokens", "answer_tokens", "seconds",
    "tokens_per_second", "resident", "resident_bytes", "stopped",
)  # fmt: skip

Totals = Mapping[str, Mapping[str, Any]]
Names = Mapping[str, str]


def cost_line(cost: Cost) -> str:
    """'routed in 14 ms · 38 + 61 tokens · 92 tokens/s · 3 lobes in memory, 4.2 MB', as plain text."""
    routed = BY_HAND if cost.route_ms is None else f"routed in {text.milliseconds(cost.route_ms)}"
    parts = [routed, f"{cost.prompt_tokens:,} + {cost.answer_tokens:,} tokens"]
    parts += [text.rate(cost.tokens_per_second)] if cost.tokens_per_second > 0 else []
    held = f"{text.count(len(cost.resident), 'lobe')} in memory, {text.size(cost.resident_bytes)}".replace(" MB", "\u00a0MB")
    return " · ".join([*parts, held if cost.resident else "no lobe in memory"])


def cost_note(cost: Cost) -> str:
    """The line as HTML, with what its parts mean for whoever points at it."""
    held = f" In memory: {text.listed(text.short(name, 40) for name in cost.resident)}." if cost.resident else ""
    said = f"Tokens of the prompt + of the answer. Speed: answer tokens a second, reading the prompt included.{held}"
    return f'<p class="ml-cost" title="{text.escape(said)}">{text.escape(cost_line(cost))}</p>'


def ledger_table(totals: Totals, titles: Names, colours: Names) -> str:
    """A row for each router, and one for all of them."""
    if not totals:
        return EMPTY
    heads = (
        ("Router", ""), ("Replies", "num"), ("Routing, ms", "num"), ("First token, ms", "num wide"), ("Tokens read", "num wide"),
        ("Tokens written", "num"), ("Tokens/s", "num"), ("Answered by", "extra"),
    )  # fmt: skip
    rows = "".join(_router_row(name, total, titles, colours) for name, total in totals.items())
    return (
        '<div class="ml-table-wrap" tabindex="0" role="region" aria-label="Cost of every router">'
        f'<table class="ml-table ledger-table">'
        f"<thead><tr>{_heads(heads)}</tr></thead><tbody>{rows}</tbody><tfoot>{_all(totals)}</tfoot></table></div>"
        '<p class="ledger-note">Milliseconds are medians. Tokens/s: all answer tokens in all seconds of generation, reading the '
        "prompt included.</p>"
    )


def recent_table(costs: Sequence[Cost], titles: Names, colours: Names) -> str:
    """The latest answers, newest first. "" without any."""
    if not costs:
        return ""
    heads = (
        ("When", ""), ("Answered by", ""), ("Router", "wide"), ("Routing, ms", "num"), ("First token, ms", "num extra"),
        ("Tokens read + written", "num"), ("Tokens/s", "num"), ("In memory", "num extra"),
    )  # fmt: skip
    rows = "".join(_reply_row(cost, titles, colours) for cost in costs)
    return (
        '<div class="ml-table-wrap" tabindex="0" role="region" aria-label="Latest answers"><table class="ml-table ledger-table">'
        f"<thead><tr>{_heads(heads)}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def ledger_csv(costs: Sequence[Cost]) -> str:
    """A line for each answer, oldest first. Names that a spreadsheet would take for a formula get an apostrophe before them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for cost in reversed(costs):
        values = cost.to_json()
        cells = (", ".join(value) if isinstance(value, (list, tuple)) else value for value in map(values.get, FIELDS))
        writer.writerow(
            [f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t")) else cell for cell in cells]
        )
    return out.getvalue()


def ledger_json(totals: Totals, costs: Sequence[Cost]) -> str:
    """Totals and answers, oldest first."""
    return json.dumps({"routers": totals, "answers": [cost.to_json() for cost in reversed(costs)]}, ensure_ascii=False, indent=1)


def _router_row(name: str, total: Mapping[str, Any], titles: Names, colours: Names) -> str:
    lobes = {lobe or BASE_NAME: replies for lobe, replies in total["by_lobe"].items()}
    tones = {**colours, BASE_NAME: BASE_COLOUR}
    mean = total["route_ms_mean"]
    by_hand = '<span class="ml-faint">by hand</span>'
    routing = f"{_ms(total['route_ms'])}<small>mean {_ms(mean)}</small>" if mean is not None else by_hand if name == MANUAL else "–"
    shares = share_bar({lobe: replies / sum(lobes.values()) for lobe, replies in lobes.items()}, tones, "Answered by")
    return (
        f"<tr><td><b>{text.escape(_title(name, titles))}</b></td>{_num(total['replies'], _stopped(total['stopped']))}"
        f'<td class="num">{routing}</td><td class="num wide">{_ms(total["first_token_ms"])}</td>'
        f'{_num(total["prompt_tokens"], kind="num wide")}{_num(total["answer_tokens"], _in(total["seconds"]))}'
        f'<td class="num">{_speed(total["tokens_per_second"])}</td><td class="extra">{shares}</td></tr>'
    )


def _all(totals: Totals) -> str:
    if len(totals) < 2:
        return ""
    sums = {
        name: sum(total[name] for total in totals.values())
        for name in ("replies", "stopped", "prompt_tokens", "answer_tokens", "seconds")
    }
    speed = sums["answer_tokens"] / sums["seconds"] if sums["seconds"] > 0 else None
    return (
        f"<tr><td><b>All</b></td>{_num(sums['replies'], _stopped(sums['stopped']))}"
        f'<td class="num"></td><td class="num wide"></td>{_num(sums["prompt_tokens"], kind="num wide")}'
        f'{_num(sums["answer_tokens"], _in(sums["seconds"]))}<td class="num">{_speed(speed)}</td><td class="extra"></td></tr>'
    )


def _reply_row(cost: Cost, titles: Names, colours: Names) -> str:
    who = "".join(
        f"<span>{dot(colours.get(name, ''))}{text.escape(text.short(name, 28))}</span>" for name in cost.lobes[:3]
    )
    who = who or f"<span>{dot(BASE_COLOUR)}{BASE_NAME}</span>"
    more = f"<span>and {len(cost.lobes) - 3} more</span>" if len(cost.lobes) > 3 else ""
    cut = '<span class="ml-faint">stopped</span>' if cost.stopped else ""
    router = _title(cost.router, titles)
    stage = text.stage(cost.stage)
    by = router if cost.router in (cost.stage, MANUAL) else f"{router}, {stage}"
    held = f"{text.count(len(cost.resident), 'lobe')}<small>{text.size(cost.resident_bytes)}</small>" if cost.resident else "–"
    return (
        f'<tr><td class="ledger-when">{text.escape(text.when(cost.time))}</td>'
        f'<td><div class="ledger-who">{who}{more}{cut}</div></td>'
        f'<td class="wide">{text.escape(by)}</td><td class="num">{"by hand" if cost.route_ms is None else _ms(cost.route_ms)}</td>'
        f'<td class="num extra">{_ms(cost.first_token_ms)}</td><td class="num">{cost.prompt_tokens:,} + {cost.answer_tokens:,}</td>'
        f'<td class="num">{_speed(cost.tokens_per_second or None)}</td><td class="num extra">{held}</td></tr>'
    )


def _heads(heads: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<th class="{kind}" scope="col">{title}</th>' for title, kind in heads)


def _num(value: float, small: str = "", kind: str = "num") -> str:
    return f'<td class="{kind}">{value:,.0f}{f"<small>{small}</small>" if small else ""}</td>'


def _title(router: str, titles: Names) -> str:
    return "By hand" if router == MANUAL else titles.get(router, router)


def _stopped(count: int) -> str:
    return f"{count:,} stopped" if count else ""


def _in(seconds: float) -> str:
    return f"in {text.duration(seconds)}" if seconds > 0 else ""


def _ms(value: float | None) -> str:
    if value is None:
        return text.NOTHING
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def _speed(value: float | None) -> str:
    return text.NOTHING if value is None else f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"
