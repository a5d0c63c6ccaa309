"""Two curves of a report card as inline SVG: is a router as sure as it is right, and what does caution buy? Pure.

All routers are thin lines of ink and the picked one is strong, in the accent: colour elsewhere says which lobe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..kit.text import NOTHING, count, escape, is_number

Result = Mapping[str, Any]
Points = Sequence[tuple[float, float]]

WIDTH, LEFT, TOP, PLOT = 380, 34, 26, 206
STRIP = 32
"""Height of the bars that say how many prompts there are; all in units of the view box."""
ALMOST_ALWAYS = 0.99
AS_SURE_AS_RIGHT = 0.02
IDEAL = "as sure as right"


def share(value: Any) -> str:
    """'97.2 %'; '–' for what is not known."""
    return f"{100 * value:.1f} %" if is_number(value) else NOTHING


def calibration_figure(result: Result, picked: str, live: bool = True) -> str:
    """Reliability diagram: share right over confidence, a point for each bin; bars count the picked router's prompts.

    Args:
        live: whether lines can be clicked.
    """
    own = _asked(result).get(picked, {})
    bins = [b for b in own.get("calibration", ()) if b.get("count")]
    lines = _lines(result, picked, calibration_points, lambda x, y: (_x(x), _y(y, 0.0)), live)
    ends = f"M{_x(0):.1f} {_y(0, 0):.1f}L{_x(1):.1f} {_y(1, 0):.1f}"
    diagonal = f'<path class="ideal" d="{ends}"><title>{IDEAL}</title></path>'
    dots = "".join(_calibration_dot(b) for b in bins if is_number(b["confidence"]) and is_number(b["accuracy"]))
    said = f"Calibration of {_title(own, picked)}: {calibration_sentence(own)}"
    picture = _frame(said, 0.0, "confidence", "right", _counts(own.get("calibration", ())) + diagonal + lines + dots)
    rows = [
        (f"{100 * b['low']:.0f} to {100 * b['high']:.0f} %", f"{b['count']:,}", share(b["confidence"]), share(b["accuracy"]))
        for b in bins
    ]
    table = _numbers(("Confidence", "Prompts", "Mean confidence", "Right"), rows)
    legend = _legend(result, picked, IDEAL)
    return _figure("Is it as sure as it is right?", calibration_sentence(own), picture, legend, table)


def abstention_figure(result: Result, picked: str, live: bool = True) -> str:
    """Share right of the prompts that lobes answer, over how many they answer: the base gets those the router is least sure of."""
    asked = _asked(result)
    own = asked.get(picked, {})
    found = [y for one in asked.values() for _, y in abstention_points(one)]
    low = math.floor(min(found, default=0.0) * 10 + 1e-9) / 10 if found else 0.0
    low = min(max(low, 0.0), 0.9)
    lines = _lines(result, picked, abstention_points, lambda x, y: (_x(x), _y(y, low)), live)
    dots = "".join(_abstention_dot(p, low) for p in own.get("abstention", ()) if _is_point(p))
    said = f"Abstention of {_title(own, picked)}: {abstention_sentence(own)}"
    picture = _frame(said, low, "share of prompts that lobes answer", "right, of those", lines + dots)
    rows = [
        (f"{100 * p['threshold']:.0f} %", share(p["answered"]), share(p["accuracy"])) for p in own.get("abstention", ())
    ]
    table = _numbers(("Sure from", "Answered by lobes", "Right, of those"), rows)
    return _figure("What does caution buy?", abstention_sentence(own), picture, _legend(result, picked), table)


def calibration_points(router: Result) -> Points:
    """(mean confidence, share right) of every bin that has prompts."""
    return [
        (float(b["confidence"]), float(b["accuracy"]))
        for b in router.get("calibration", ())
        if b.get("count") and is_number(b["confidence"]) and is_number(b["accuracy"])
    ]


def abstention_points(router: Result) -> Points:
    """(share answered, share right of those), most answered first."""
    found = {float(p["answered"]): float(p["accuracy"]) for p in router.get("abstention", ()) if _is_point(p)}
    return sorted(found.items(), reverse=True)


def calibration_sentence(router: Result) -> str:
    """How sure it is on average against how often it is right. Not escaped."""
    sure, right = [c for c in router.get("confidence") or () if is_number(c)], router.get("accuracy")
    if not sure or not is_number(right):
        return "There is nothing to compare."
    mean = math.fsum(sure) / len(sure)
    word = "well judged" if abs(mean - right) <= AS_SURE_AS_RIGHT else "too sure" if mean > right else "too modest"
    return f"On average {share(mean)} sure and {share(right)} right: {word}."


def abstention_sentence(router: Result) -> str:
    """How much it may answer and be right almost always. Not escaped."""
    points = abstention_points(router)
    if not points:
        return "There is nothing to compare."
    answered, right = points[0]
    if right >= ALMOST_ALWAYS:
        return f"Lobes answer {share(answered)} of the prompts, and {share(right)} of those are right."
    enough = [(answered, right) for answered, right in points if right >= ALMOST_ALWAYS and answered > 0]
    if not enough:
        answered, right = max(points, key=lambda p: p[1])
        return f"However few prompts lobes answer, at most {share(right)} of those are right."
    answered, right = enough[0]
    return f"If lobes answered only the {share(answered)} that it is surest of, {share(right)} of those would be right."


# ---- parts -----------------------------------------------------------------------------------------------------------


def _asked(result: Result) -> dict[str, Result]:
    return {name: own for name, own in (result.get("routers") or {}).items() if not own.get("error")}


def _lines(
    result: Result,
    picked: str,
    points: Callable[[Result], Points],
    place: Callable[[float, float], tuple[float, float]],
    live: bool,
) -> str:
    """A line for every router, the picked one last so that it lies on top; wide unseen lines below catch the pointer."""
    thin, strong, hits = [], "", []
    for name, own in _asked(result).items():
        path = "M" + "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in points(own)) if points(own) else ""
        if not path:
            continue
        said = f"<title>{escape(_title(own, name))}</title>"
        if name == picked:
            strong = f'<path class="picked" d="{path}">{said}</path>'
            continue
        thin.append(f'<path class="thin" d="{path}">{said}</path>')
        if live:
            hits.append(f'<path class="hit" data-row="{escape(f"router|{name}")}" d="{path}">{said}</path>')
    return "".join([*thin, *hits, strong])


def _calibration_dot(b: Result) -> str:
    said = f"{count(b['count'], 'prompt')}: {share(b['confidence'])} sure, {share(b['accuracy'])} right"
    return _dot(_x(b["confidence"]), _y(b["accuracy"], 0.0), said)


def _abstention_dot(p: Result, low: float) -> str:
    said = f"From {100 * p['threshold']:.0f} % sure: lobes answer {share(p['answered'])}, {share(p['accuracy'])} of those right"
    return _dot(_x(p["answered"]), _y(p["accuracy"], low), said, small=True)


def _dot(x: float, y: float, said: str, small: bool = False) -> str:
    kind, radius = ("dot is-small", 2.2) if small else ("dot", 3.4)
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(said)}</title></circle>'


def _is_point(p: Result) -> bool:
    return is_number(p.get("answered")) and is_number(p.get("accuracy")) and p["answered"] > 0


def _counts(bins: Sequence[Result]) -> str:
    """A bar for each bin below the diagram, as high as it has prompts."""
    most = max((b.get("count", 0) for b in bins), default=0)
    floor = TOP + PLOT + STRIP + 6
    made = []
    for b in bins:
        if not b.get("count"):
            continue
        left, right, high = _x(b["low"]) + 1, _x(b["high"]) - 1, max(1.5, STRIP * b["count"] / most)
        said = f"{count(b['count'], 'prompt')} at {100 * b['low']:.0f} to {100 * b['high']:.0f} % confidence"
        made.append(
            f'<rect class="count" x="{left:.1f}" y="{floor - high:.1f}" width="{max(1, right - left):.1f}" height="{high:.1f}">'
            f"<title>{escape(said)}</title></rect>"
        )
    return "".join(made)


def _frame(said: str, low: float, below: str, beside: str, drawing: str) -> str:
    """Axes in percent around a drawing; `low` is where the upright axis begins."""
    strip = STRIP + 6 if 'class="count"' in drawing else 0
    bottom = TOP + PLOT + strip
    steps = [low + (1 - low) * i / 4 for i in range(5)]
    grid = "".join(
        f'<path class="grid" d="M{LEFT} {_y(v, low):.1f}H{WIDTH - 12}"/>'
        f'<text x="{LEFT - 6}" y="{_y(v, low) + 4:.1f}" text-anchor="end">{_tick(v)}</text>'
        for v in steps
    )
    ticks = "".join(
        f'<text x="{_x(v):.1f}" y="{bottom + 15}" text-anchor="middle">{_tick(v)}</text>' for v in (0, 0.25, 0.5, 0.75, 1)
    )
    names = (
        f'<text x="{_x(0.5):.1f}" y="{bottom + 31}" text-anchor="middle">{escape(below)}, %</text>'
        f'<text x="0" y="11">{escape(beside)}, %</text>'
    )
    height = bottom + 38
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(said)}">{grid}{ticks}{drawing}{names}</svg>'
    )


def _legend(result: Result, picked: str, ideal: str = "") -> str:
    asked = _asked(result)
    others = "<li><i></i>the other routers</li>" if len(asked) > 1 else ""
    last = f'<li class="is-ideal"><i></i>{escape(ideal)}</li><li class="is-bars"><i></i>how many prompts</li>' if ideal else ""
    return f'<ul><li class="is-picked"><i></i>{escape(_title(asked.get(picked, {}), picked))}</li>{others}{last}</ul>'


def _numbers(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The figure as a table, folded away: for whoever cannot see it, or wants to quote it."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f'<table class="rc-numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<details><summary>The numbers</summary><div class="rc-scroll">{table}</div></details>'


def _figure(title: str, said: str, picture: str, legend: str, table: str) -> str:
    return f'<figure class="rc-curve"><h4>{escape(title)}</h4><p>{escape(said)}</p>{picture}{legend}{table}</figure>'


def _title(own: Result, name: str) -> str:
    return str(own.get("title") or name)


def _tick(value: float) -> str:
    return f"{100 * value:.3g}"


def _x(value: float) -> float:
    return LEFT + (WIDTH - 12 - LEFT) * min(1.0, max(0.0, float(value)))


def _y(value: float, low: float) -> float:
    return TOP + PLOT * (1 - min(1.0, max(0.0, (float(value) - low) / (1 - low))))
