"""Does each lobe earn its place? Losses of every lobe on every dataset as HTML. Pure; all is escaped.

`result` is the JSON of experiment "losses". Losses are mean NLL per answer token, in nats; perplexity is exp(loss).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..kit.text import NOTHING, colour, count, duration, escape, is_number, listed, loss, remarks
from .report_curves import share

Result = Mapping[str, Any]
Colours = Mapping[str, str]

BASE = "base model"
STRONGEST = 62
"""Percent of a lobe's colour in the cell that gains most over the base."""


def losses_card(result: Result, colours: Colours) -> str:
    """Headline, matrix, gains, and scores of the answers where there are any."""
    if not result.get("datasets") or not result.get("losses"):
        return '<p class="train-ask">There is nothing to measure. Give files, or train a lobe.</p>'
    early = '<p class="train-ask">Stopped early: empty cells were not measured.</p>' if result.get("stopped") else ""
    took = f" Measured in {duration(result['seconds'])}." if is_number(result.get("seconds")) else ""
    left = [str(name) for name in result.get("left_out") or ()]
    gone = f'<p class="train-ask">Left out, for want of answers: {escape(listed(left))}.</p>' if left else ""
    return (
        f'<div class="ll"><p class="ll-headline">{headline(result)}</p>{remarks(result)}{early}{gone}'
        f"{warning(result)}{matrix(result, colours)}"
        f'<p class="ll-note">Loss in nats per answer token, less is better; small: perplexity. ★ least of its column, framed: the '
        f"lobe's own data.{took}</p>"
        f'<div class="ll-pair">{gains(result, colours)}{tasks(result, colours)}</div></div>'
    )


def headline(result: Result) -> str:
    """Who wins its column, and what routing makes of it. HTML."""
    judged = _judged(result)
    lost = [name for name, won in judged.items() if not won]
    if not judged:
        first = "No dataset here is a lobe's own."
    elif not lost:
        first = f"<b>{'Every lobe wins its column' if len(judged) > 1 else 'The lobe wins its column'}.</b>"
    elif len(lost) <= 3:
        won = f"{len(judged) - len(lost)} of {count(len(judged), 'lobe')}"
        first = f"<b>{won} win their column</b>, but not {escape(listed(lost))}."
    else:
        first = f"<b>{len(judged) - len(lost)} of {count(len(judged), 'lobe')} win their column.</b>"
    if not is_number(result.get("share_of_oracle")):
        return first
    of = f"{share(result['share_of_oracle'])} of what the right lobe would gain over the base"
    return f"{first} Routed answers get <b>{of}</b>."


def warning(result: Result) -> str:
    """Lobes that do not earn their place, why, and what to do; "" if all do."""
    idle = [str(name) for name in result.get("idle") or ()]
    if not idle:
        return ""
    said = " ".join(f"<b>{escape(name)}</b> {escape(_why_idle(result, name))}" for name in idle)
    what = "it" if len(idle) == 1 else "them"
    return (
        f'<p class="train-warn">{said} Train {what} longer or on more rows, or delete {what} in Manage: then routers have fewer '
        "lobes to choose from.</p>"
    )


def _why_idle(result: Result, name: str) -> str:
    """What is wrong with an idle lobe. Not escaped."""
    gain = (result.get("gain") or {}).get(name)
    if not is_number(gain) or gain <= 0:
        return "adds nothing: on its own rows it is no better than the base model."
    lobes, losses = list(result["lobes"]), result["losses"]
    for j, own in enumerate(result.get("own") or ()):
        least = _least([row[j] for row in losses[1:]])
        better = [lobe for lobe, row in zip(lobes, losses[1:], strict=False) if lobe != name and row[j] == least]
        if own == name and better:
            return f"adds nothing of its own: {better[0]} reads its rows better ({loss(least)})."
    return "adds nothing."


# ---- the matrix ------------------------------------------------------------------------------------------------------


def matrix(result: Result, colours: Colours) -> str:
    """Rows: the base, every lobe, the router's choice, the right lobe. Columns: datasets."""
    losses, datasets = result["losses"], result["datasets"]
    best = [_least([row[j] for row in losses]) for j in range(len(datasets))]
    heads = "".join(_head(result, j, colours) for j in range(len(datasets)))
    names = [BASE, *result["lobes"]]
    most = max((_gained(row[j], losses[0][j]) for row in losses for j in range(len(datasets))), default=0.0)
    body = "".join(_row(result, i, names[i], best, most, colours) for i in range(min(len(names), len(losses))))
    router = str(result.get("router") or "")
    last = [("routed", f"routed{f' by {router}' if router else ''}"), ("oracle", "the right lobe")]
    ends = "".join(_end(result, key, title, number == 0) for number, (key, title) in enumerate(last) if result.get(key))
    return (
        '<div class="ll-scroll"><table class="ll-matrix"><caption class="ll-hidden">Loss of every lobe on every dataset</caption>'
        f'<thead><tr><td></td>{heads}</tr></thead><tbody>{body}{ends}</tbody></table></div>'
    )


def _head(result: Result, j: int, colours: Colours) -> str:
    rows, tokens = _at(result.get("rows"), j), _at(result.get("tokens"), j)
    about = ", ".join(filter(None, [count(rows, "row") if rows else "", count(tokens, "answer token") if tokens else ""]))
    small = f"<small>{count(rows, 'row')}</small>" if rows else ""
    name, own = str(result["datasets"][j]), _at(result.get("own"), j)
    return f'<th scope="col" title="{escape(about)}">{_name(name, colours.get(own or ""))}{small}</th>'


def _row(result: Result, i: int, name: str, best: Sequence[float | None], most: float, colours: Colours) -> str:
    cells = "".join(_cell(result, i, j, name, best[j], most) for j in range(len(result["datasets"])))
    tone = colours.get(name) if i else None
    kind = ' class="is-base"' if not i else ""
    return f'<tr{kind} style="--c:{colour(tone, "var(--ml-base)")}"><th scope="row">{_name(name, tone)}</th>{cells}</tr>'


def _cell(result: Result, i: int, j: int, name: str, best: float | None, most: float) -> str:
    value, base = result["losses"][i][j], result["losses"][0][j]
    own = i > 0 and _at(result.get("own"), j) == name
    first = is_number(value) and value == best
    kinds = " ".join(filter(None, ["is-own" if own else "", "is-best" if first else "", _worse(value, base, i)]))
    depth = _gained(value, base) / most if most > 0 else 0.0
    star = '<i aria-label="least of its column">★</i>' if first else ""
    look = f' class="{kinds}"' if kinds else ""
    return f'<td{look} style="--a:{STRONGEST * depth:.0f}%">{_both(value, star)}</td>'


def _both(value: Any, star: str = "") -> str:
    """Loss, and perplexity below."""
    return f"<b>{loss(_number(value))}{star}</b><small>{perplexity(value)}</small>"


def _end(result: Result, key: str, title: str, first: bool) -> str:
    values = result[key]
    cells = "".join(f"<td>{_both(_at(values, j))}</td>" for j in range(len(result["datasets"])))
    name = f'<span class="ll-name"><span>{escape(title)}</span></span>'
    return f'<tr class="is-end{" is-first" if first else ""}"><th scope="row">{name}</th>{cells}</tr>'


def perplexity(value: Any) -> str:
    """exp(loss) with three digits that count, or all before the point."""
    if not is_number(value):
        return NOTHING
    found = math.exp(min(value, 50.0))
    return f"{found:.3g}" if found < 999.5 else f"{found:,.0f}" if found < 1e6 else f"{found:.1e}"


# ---- gains, scores ---------------------------------------------------------------------------------------------------


def gains(result: Result, colours: Colours) -> str:
    """What each lobe takes off the base's loss on its own rows, as bars."""
    gain = {str(name): value for name, value in (result.get("gain") or {}).items() if is_number(value)}
    if not gain:
        return ""
    most = max([*gain.values(), 1e-9])
    order = sorted(gain, key=lambda name: -gain[name])
    idle = set(result.get("idle") or ())
    rows = "".join(
        f'<li class="{"is-idle" if name in idle else "is-chosen"}" style="--c:{colour(colours.get(name))};'
        f'--w:{100 * max(0.0, gain[name]) / most:.1f}%"><span title="{escape(name)}">{escape(name)}</span><div><i></i></div>'
        f"<b>{_signed(gain[name])}</b></li>"
        for name in order
    )
    return (
        "<section><h4>What each lobe gains on its own data <span>nats per answer token, over the base</span></h4>"
        f'<div class="ml-bars"><ol>{rows}</ol></div></section>'
    )


def tasks(result: Result, colours: Colours) -> str:
    """Exact match and F1 of short answers: base, routed, and the right lobe."""
    found = result.get("task") or {}
    if not found:
        return ""
    heads = "".join(f'<th scope="col" colspan="2">{title}</th>' for title in (BASE, "routed", "the right lobe"))
    kinds = '<th scope="col">exact</th><th scope="col">F1</th>' * 3
    body = "".join(_task(str(name), own, colours.get(name)) for name, own in found.items())
    said = ""
    if is_number(result.get("task_share")):
        of = f"<b>{share(result['task_share'])} of oracle</b>"
        said = f'<p class="ll-said">Routed = {of}, by exact matches: the oracle always asks the right lobe.</p>'
    return (
        "<section><h4>Short answers, written out <span>share of rows</span></h4>"
        f'<div class="ll-scroll"><table class="ll-tasks"><thead><tr><td rowspan="2"></td>{heads}</tr><tr>{kinds}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{said}</section>"
    )


def _task(name: str, own: Result, tone: str | None) -> str:
    cells = "".join(
        f"<td>{share(_at_key(own, who, kind))}</td>" for who in ("base", "routed", "oracle") for kind in ("exact", "f1")
    )
    rows = f"<small>{count(own['rows'], 'row')}</small>" if own.get("rows") else ""
    return f'<tr><th scope="row">{_name(name, tone)}{rows}</th>{cells}</tr>'


# ---- inside ----------------------------------------------------------------------------------------------------------


def _judged(result: Result) -> dict[str, bool]:
    """For every lobe with data of its own: whether no other and not the base has less loss on it."""
    judged: dict[str, bool] = {}
    for j, own in enumerate(result.get("own") or ()):
        if own not in result["lobes"]:
            continue
        value = result["losses"][result["lobes"].index(own) + 1][j]
        least = _least([row[j] for row in result["losses"]])
        if is_number(value) and least is not None:
            judged[str(own)] = judged.get(str(own), True) and value == least
    return judged


def _least(values: Sequence[Any]) -> float | None:
    return min((float(value) for value in values if is_number(value)), default=None)


def _gained(value: Any, base: Any) -> float:
    """Nats that a lobe takes off the base's loss; 0 where it is worse, or not measured."""
    return max(0.0, float(base - value)) if is_number(value) and is_number(base) else 0.0


def _worse(value: Any, base: Any, i: int) -> str:
    return "is-worse" if i and is_number(value) and is_number(base) and value > base else ""


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _at(values: Any, place: int) -> Any:
    return values[place] if values and place < len(values) else None


def _at_key(own: Result, who: str, kind: str) -> Any:
    return (own.get(who) or {}).get(kind)


def _name(name: str, tone: str | None) -> str:
    """A lobe or dataset with its dot."""
    dot = f'<i style="--c:{colour(tone, "var(--ml-base)")}"></i>'
    return f'<span class="ll-name" title="{escape(name)}">{dot}<span>{escape(name)}</span></span>'
