"""A search for weights in pictures: what it found, and how it goes. Pure functions from plain values to HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..kit.text import colour, count, escape, is_number, loss, short

Colours = Mapping[str, str]
Result = Mapping[str, Any]

WIDEST = 1.5
"""Weight at the ends of a bar."""
WIDE, TALL, LEFT, RIGHT = 640, 168, 46, 10


def search_result(result: Result, colours: Colours) -> str:
    """The weights that a search found, and how it went."""
    trials = [trial for trial in result.get("trials") or () if isinstance(trial, Mapping)]
    weights = {name: weight for name, weight in (result.get("weights") or {}).items() if is_number(weight)}
    rows = "".join(_weight_row(name, weight, colours) for name, weight in weights.items())
    whose = "of your examples" if result.get("given") else "of the lobes' own rows"
    ended = " Stopped early." if result.get("stopped") else ""
    told = (
        f"nats per answer token, base → best weights, on {result.get('rows', 0):,} {whose}; {count(len(trials), 'trial')}.{ended} "
        "These rows chose the weights, so judge them by a merge."
    )
    head = _total(f"Loss {loss(result.get('base'))} → {loss(result.get('loss'))}", told)
    best, points = None, []
    for trial in trials:
        best = trial.get("loss") if trial.get("best") else best
        points.append((trial.get("loss"), best))
    left = f'<div>{head}<ol class="merge-weights">{rows}</ol></div>'
    return f'<div class="merge-card merge-found">{left}{_curve(points, result.get("base"))}</div>'


def search_live(records: Sequence[Result], colours: Colours) -> str:
    """The search while it runs: a dot a trial, and the best so far."""
    values = [record.get("values") or {} for record in records if isinstance(record, Mapping)]
    points = [(own.get("loss"), own.get("best")) for own in values if is_number(own.get("loss"))]
    if not points:
        return ""
    head = _total(f"Best so far {loss(points[-1][1])}", "nats per answer token")
    return f'<div class="merge-card">{head}{_curve(points, points[0][0])}</div>'


def _total(bold: str, faint: str) -> str:
    return f'<p class="merge-total"><b>{escape(bold)}</b> <span class="ml-faint">{escape(faint)}</span></p>'


def _weight_row(name: str, weight: float, colours: Colours) -> str:
    half = 50 * min(1.0, abs(weight) / WIDEST)
    look = f"--c:{colour(colours.get(name))};--w:{half:.1f}%;--x:{50 - half if weight < 0 else 50:.1f}%"
    said = f'<span title="{escape(name)}">{escape(short(name, 24))}</span>'
    return f'<li style="{look}">{said}<div><i></i></div><b>{weight:+.2f}</b></li>'


def _curve(points: Sequence[tuple[Any, Any]], base: Any) -> str:
    """Losses of the trials as dots, the best so far as a line, the base dashed. What is far above lies on the upper edge."""
    pairs = [(value, best) for value, best in points if is_number(value) and is_number(best)]
    if len(pairs) < 2:
        return ""
    low = min(value for value, _ in pairs)
    floor = base if is_number(base) else pairs[0][1]
    high = max(floor, low + 1e-6) + 0.35 * max(floor - low, 0.1)

    def at(i: int, value: float) -> tuple[float, float]:
        share = (min(max(value, low), high) - low) / (high - low)
        return LEFT + (WIDE - LEFT - RIGHT) * i / (len(pairs) - 1), 14 + (TALL - 36) * (1 - share)

    dots = "".join(_trial(*at(i, value), i + 1, value, value > high) for i, (value, _) in enumerate(pairs))
    x, y = at(0, pairs[0][1])
    steps = f"M{x:.1f} {y:.1f}"
    for i, (_, best) in enumerate(pairs[1:], start=1):
        x, y = at(i, best)
        steps += f"H{x:.1f}V{y:.1f}"
    said = f"Search: best loss {loss(low)} after {len(pairs)} trials, base {loss(floor)}"
    line, least = at(0, floor)[1], at(0, low)[1]
    return (
        f'<svg class="merge-curve" viewBox="0 0 {WIDE} {TALL}" role="img" aria-label="{said}">'
        f'<path class="base" d="M{LEFT} {line:.1f}H{WIDE - RIGHT}"/>{dots}<path class="best" d="{steps}"/>'
        f"{_labels(low, floor, least, line, len(pairs))}</svg>"
    )


def _trial(x: float, y: float, number: int, value: float, off: bool) -> str:
    kind = ' class="is-off"' if off else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"{kind}><title>trial {number}: {loss(value)}</title></circle>'


def _labels(low: float, floor: float, least: float, line: float, trials: int) -> str:
    """`least`, `line`: the heights of the lowest loss and of the base's."""
    right = WIDE - RIGHT
    labels = f'<text x="{LEFT - 7}" y="{least + 4:.1f}" class="y">{loss(low)}</text>'
    if least - line > 16:
        labels += f'<text x="{LEFT - 7}" y="{line + 4:.1f}" class="y">{loss(floor)}</text>'
    labels += f'<text x="{right}" y="{line - 5:.1f}" class="x">base</text>'
    return labels + f'<text x="{LEFT}" y="{TALL - 2}">trial 1</text><text x="{right}" y="{TALL - 2}" class="x">{trials}</text>'
