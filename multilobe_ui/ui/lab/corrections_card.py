"""What people corrected, and what a trial refit makes of it, as HTML. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluation.frames import refit_frame
from ..kit.frames import column_head, frame_table, row_head, td
from ..kit.html import Markup, around, html, joined
from ..kit.text import count, duration, is_number, listed, short, when
from .parts import BASE, Colours, Result, asking, if_stopped, named, remarks, signed, took

MOST_SHOWN = 100
HEADS = {"before": "Right without corrections", "after": "Right with them", "change": "Change", "seconds": "Fit"}
EMPTY = Markup(
    '<p class="rc-empty">No corrections yet. Click a number of a matrix above, then a prompt, and say who '
    'should answer it. '
    "The routers can then be fitted again with what you said, and you see what changes before it counts.</p>"
)


def corrections_list(corrections: Sequence[Mapping[str, Any]], colours: Colours) -> Markup:
    """Every correction, newest first, with a button (data-row="forget|id") that takes it back."""
    if not corrections:
        return EMPTY
    items = joined(_correction(one, colours) for one in list(corrections)[::-1][:MOST_SHOWN])
    more = Markup()
    if len(corrections) > MOST_SHOWN:
        more = html("<p>and {}</p>", count(len(corrections) - MOST_SHOWN, "earlier one", "earlier ones"))
    return html('<div class="rc rc-told"><ol>{}</ol>{}</div>', items, more)


def _correction(one: Mapping[str, Any], colours: Colours) -> Markup:
    words, state = str(one["prompt"]), "waits for a refit"
    if one.get("kept"):
        state = "in force"
    made = ", ".join([*(when(time) for time in [one.get("created")] if time), state])
    return html(
        '<li><p title="{}">{}</p><p class="rc-move">{}<small>{}</small><button type="button" '
        'data-row="forget|{}" aria-label="Remove the correction of: {}">Remove</button></p></li>',
        words[:500], short(words, 180), _from_to(one.get("was"), one.get("lobe"), colours), made, one["id"],
        short(words, 60),
    )  # fmt: skip


def refit_card(result: Result, colours: Colours) -> Markup:
    """What a refit with the corrections would change: each router's score, the corrected prompts,
    and all others that move."""
    routers = result.get("routers") or {}
    if not routers:
        return asking("No router was fitted again.")
    kept = Markup()
    if result.get("kept"):
        kept = Markup('<p class="train-good">Kept: the routers answer like this now.</p>')
    corrections = [{**one, "wanted": one["lobe"]} for one in result.get("corrections") or ()]
    learned = sum(same(one["after"], one["wanted"]) for one in corrections)
    notes = joined(around("<p>{}</p>", since_the_fit(own)) for own in routers.values())
    return html(
        '<div class="rc rc-trial">{}<p class="rc-headline"><b>{} of {}</b> answered as you said after the '
        'refit.{}</p>'
        "{}{}{}{}{}{}</div>",
        kept, learned, count(len(corrections), "correction"), took(result, "In"), remarks(result),
        if_stopped(result, "Stopped early: this is what there was."), _table(result),
        around('<div class="rc-since">{}</div>', notes),
        _moves("Your corrections", corrections, colours, " open"),
        _moves(_changed_title(result), result.get("changed") or (), colours),
    )  # fmt: skip


def _table(result: Result) -> Markup:
    frame = refit_frame(result)
    frame = frame.assign(change=frame["after"] - frame["before"])

    def row(name: str, cells: Markup) -> Markup:
        own = result["routers"][name]
        head = row_head(own.get("title") or name)
        if own.get("error"):
            return html('<tr class="is-off">{}<td colspan="4">{}</td></tr>', head, own["error"])
        return html("<tr>{}{}</tr>", head, cells)

    def cell(name: str, column: str, value: Any) -> Markup:
        if not is_number(value):
            return td("–")
        if column == "change":
            return _change(round(value))
        if column == "seconds":
            return td(duration(value))
        of = result["routers"][name]["of"]
        if column == "after":
            return td(html("<b>{:,.0f}</b> of {:,}", value, of))
        return td(f"{value:,.0f} of {of:,}")

    return frame_table(
        frame[list(HEADS)], "rc-table rc-refit", cell=cell, row=row,
        head=lambda column: column_head(HEADS[column]), corner=column_head("Router"), scroll="rc-scroll",
    )  # fmt: skip


def _change(value: int) -> Markup:
    if not value:
        return td("none", kind="is-same")
    if value > 0:
        return td(signed(value), kind="is-up")
    return td(signed(value), kind="is-down")


def since_the_fit(own: Result) -> str:
    """What differs between the router that serves and the one before the corrections: lobes that
    came or went since it was fitted, and what a fit to the present lobes alone changes. "" if
    nothing does."""
    if own.get("error") or "now" not in own:
        return ""
    title = own.get("title") or "the router"
    changes = [
        f"{_lobes_were([short(name, 30) for name in names])} {what} since {title} was fitted."
        for names, what in ((own.get("added"), "added"), (own.get("gone"), "deleted or trained again"))
        if names
    ]
    if changes:
        changes.append("The refit knows the lobes that there are now.")
    if changes or own["now"] != own["before"]:
        changes.append(
            f"As it serves now, {title} has {own['now']:,} of {own['of']:,} right; fitted anew to the "
            f"present lobes, without your corrections, {own['before']:,}; with them {own['after']:,}."
        )
    return " ".join(changes)


def _lobes_were(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"Lobe {names[0]} was"
    return f"Lobes {listed(names)} were"


def _changed_title(result: Result) -> str:
    changed = result.get("changed") or ()
    if not changed:
        return "No other prompt of the report changes its lobe by the corrections"
    better = sum(same(move["after"], move["wanted"]) for move in changed)
    worse = sum(same(move["before"], move["wanted"]) for move in changed)
    ends = [f"{better} right now", f"{worse} wrong now"]
    if len(changed) > better + worse:
        ends.append(f"{len(changed) - better - worse} still wrong")
    return f"{count(len(changed), 'prompt')} of the report would change by the corrections: {', '.join(ends)}"


def _moves(title: str, moves: Sequence[Mapping[str, Any]], colours: Colours, state: str = "") -> Markup:
    """Prompts with who answered before, and who would after. `state` is " open" for a list that is
    unfolded."""
    if not moves:
        return html('<p class="rc-none">{}.</p>', title)
    items = joined(
        html(
            '<li class="is-{}"><p>{}</p><p class="rc-move">{}<small>{}</small></p></li>', *_verdict(move)[:1],
            short(str(move["prompt"]), 180), _from_to(move["before"], move["after"], colours),
            *_verdict(move)[1:],
        )
        for move in moves
    )  # fmt: skip
    return html("<details{}><summary>{}</summary><ol>{}</ol></details>", state, title, items)


def _verdict(move: Mapping[str, Any]) -> tuple[str, str]:
    """("right" or "wrong", the same in words)."""
    if same(move["after"], move["wanted"]):
        return "right", "✓ as wanted"
    return "wrong", f"✗ wanted: {short(move['wanted'] or BASE, 24)}"


def same(one: str | None, other: str | None) -> bool:
    """Whether both are the same lobe; None and "" both mean the base model."""
    return (one or "") == (other or "")


def _from_to(before: str | None, after: str | None, colours: Colours) -> Markup:
    arrow = Markup('{} <i aria-label="to">→</i> {}')
    return arrow.format(named(before or BASE, colours), named(after or BASE, colours))
