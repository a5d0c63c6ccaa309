"""What people corrected, and what a trial refit makes of it, as HTML. Pure; all is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..kit.text import colour, count, duration, escape, listed, remarks, short, when

Colours = Mapping[str, str]
BASE = "base model"
MOST_SHOWN = 100

EMPTY = (
    '<p class="rc-empty">No corrections yet. Click a number of a matrix above, then a prompt, and say who should answer it. '
    "The routers can then be fitted again with what you said, and you see what changes before it counts.</p>"
)


def corrections_list(corrections: Sequence[Mapping[str, Any]], colours: Colours) -> str:
    """Every correction, newest first, with a button (data-row="forget|id") that takes it back."""
    if not corrections:
        return EMPTY
    newest = list(corrections)[::-1]
    items = "".join(_correction(one, colours) for one in newest[:MOST_SHOWN])
    rest = len(newest) - MOST_SHOWN
    more = f"<p>and {count(rest, 'earlier one', 'earlier ones')}</p>" if rest > 0 else ""
    return f'<div class="rc rc-told"><ol>{items}</ol>{more}</div>'


def _correction(one: Mapping[str, Any], colours: Colours) -> str:
    words = str(one["prompt"])
    state = "in force" if one.get("kept") else "waits for a refit"
    made = f'{when(one.get("created"))}, {state}' if one.get("created") else state
    id, said = escape(f"forget|{one['id']}"), escape(f"Remove the correction of: {short(words, 60)}")
    return (
        f'<li><p title="{escape(words[:500])}">{escape(short(words, 180))}</p>'
        f'<p class="rc-move">{name(one.get("was"), colours)} <i aria-label="to">→</i> {name(one.get("lobe"), colours)}'
        f'<small>{escape(made)}</small><button type="button" data-row="{id}" aria-label="{said}">Remove</button></p></li>'
    )


def refit_card(result: Mapping[str, Any], colours: Colours) -> str:
    """What a refit with the corrections would change: each router's score, the corrected prompts, and all others that move."""
    routers = result.get("routers") or {}
    if not routers:
        return '<p class="train-ask">No router was fitted again.</p>'
    kept = '<p class="train-good">Kept: the routers answer like this now.</p>' if result.get("kept") else ""
    early = '<p class="train-ask">Stopped early: this is what there was.</p>' if result.get("stopped") else ""
    took = f" In {duration(result['seconds'])}." if isinstance(result.get("seconds"), (int, float)) else ""
    learned = [c for c in result.get("corrections") or () if same(c["after"], c["lobe"])]
    told = len(result.get("corrections") or ())
    said = f"<b>{len(learned)} of {count(told, 'correction')}</b> answered as you said after the refit.{took}"
    rows = "".join(_router(name, own) for name, own in routers.items())
    titles = ("Router", "Right without corrections", "Right with them", "Change", "Fit")
    heads = "".join(f'<th scope="col">{head}</th>' for head in titles)
    table = (
        f'<div class="rc-scroll"><table class="rc-table rc-refit"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    notes = "".join(f"<p>{escape(since)}</p>" for own in routers.values() if (since := since_the_fit(own)))
    notes = f'<div class="rc-since">{notes}</div>' if notes else ""
    corrected = _moves("Your corrections", [{**c, "wanted": c["lobe"]} for c in result.get("corrections") or ()], colours, True)
    return (
        f'<div class="rc rc-trial">{kept}<p class="rc-headline">{said}</p>{remarks(result)}{early}{table}'
        f"{notes}{corrected}"
        f"{_moves(_changed_title(result), result.get('changed') or (), colours, False)}</div>"
    )


def _router(name: str, own: Mapping[str, Any]) -> str:
    title = escape(str(own.get("title") or name))
    if own.get("error"):
        return f'<tr class="is-off"><th scope="row">{title}</th><td colspan="4">{escape(own["error"])}</td></tr>'
    change, of = own["after"] - own["before"], f"of {own['of']:,}"
    kind = "up" if change > 0 else "down" if change < 0 else "same"
    said = f"{change:+,}".replace("-", "−") if change else "none"
    took = duration(own["seconds"]) if isinstance(own.get("seconds"), (int, float)) else "–"
    return (
        f'<tr><th scope="row">{title}</th><td>{own["before"]:,} {of}</td><td><b>{own["after"]:,}</b> {of}</td>'
        f'<td class="is-{kind}">{said}</td><td>{took}</td></tr>'
    )


def since_the_fit(own: Mapping[str, Any]) -> str:
    """What differs between the router that serves and the one before the corrections, in plain text: lobes that came or went since
    it was fitted, and what a fit to the present lobes alone changes. "" if nothing does."""
    if own.get("error") or "now" not in own:
        return ""
    title, said = own.get("title") or "the router", []
    for names, was in ((own.get("added") or (), "added"), (own.get("gone") or (), "deleted or trained again")):
        if names:
            many = "Lobe" if len(names) == 1 else "Lobes"
            verb = "was" if len(names) == 1 else "were"
            said.append(f"{many} {listed(short(name, 30) for name in names)} {verb} {was} since {title} was fitted.")
    if said:
        said.append("The refit knows the lobes that there are now.")
    if said or own["now"] != own["before"]:
        said.append(
            f"As it serves now, {title} has {own['now']:,} of {own['of']:,} right; fitted anew to the present lobes, without your "
            f"corrections, {own['before']:,}; with them {own['after']:,}."
        )
    return " ".join(said)


def _changed_title(result: Mapping[str, Any]) -> str:
    changed = result.get("changed") or ()
    better = sum(same(c["after"], c["wanted"]) for c in changed)
    worse = sum(same(c["before"], c["wanted"]) for c in changed)
    if not changed:
        return "No other prompt of the report changes its lobe by the corrections"
    rest = len(changed) - better - worse
    said = [f"{better} right now", f"{worse} wrong now", *([f"{rest} still wrong"] if rest else [])]
    return f"{count(len(changed), 'prompt')} of the report would change by the corrections: {', '.join(said)}"


def _moves(title: str, moves: Sequence[Mapping[str, Any]], colours: Colours, open: bool) -> str:
    """Prompts with who answered before, and who would after."""
    if not moves:
        return f'<p class="rc-none">{escape(title)}.</p>'
    items = "".join(
        f'<li class="is-{"right" if same(m["after"], m["wanted"]) else "wrong"}"><p>{escape(short(str(m["prompt"]), 180))}</p>'
        f'<p class="rc-move">{name(m["before"], colours)} <i aria-label="to">→</i> {name(m["after"], colours)}'
        f"{_verdict(m)}</p></li>"
        for m in moves
    )
    return f"<details{' open' if open else ''}><summary>{escape(title)}</summary><ol>{items}</ol></details>"


def _verdict(move: Mapping[str, Any]) -> str:
    if same(move["after"], move["wanted"]):
        return "<small>✓ as wanted</small>"
    return f"<small>✗ wanted: {escape(short(move['wanted'] or BASE, 24))}</small>"


def same(one: str | None, other: str | None) -> bool:
    """Whether both are the same lobe; None and "" both mean the base model."""
    return (one or "") == (other or "")


def name(lobe: str | None, colours: Colours) -> str:
    """A lobe, or the base model, with its dot."""
    said = lobe or BASE
    tone = colour(colours.get(said), "var(--ml-base)")
    return f'<span class="rc-name"><i style="--c:{tone}"></i><span>{escape(said)}</span></span>'
