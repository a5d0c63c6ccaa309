"""What one ordinary adapter would have forgotten, as a figure: two losses while it learns one domain and then another, beside
the lobes' own. Pure.

The lines are SVG stretched to the box; all words are HTML at their own size, so that a phone can read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..kit import text

Colours = Mapping[str, str]
Found = Mapping[str, Any]
SIDES = ("first", "second")
WIDE, HIGH = 1000.0, 300.0
LEAST_GAP = 0.075
"""Between two labels at the lines' ends, as a share of the figure's height."""
NOTHING_MUCH = 0.005
NATS = "nats per answer token"


def contrast_section(result: Found, colours: Colours) -> str:
    """Heading, sentence, figure and table; or why there is no contrast."""
    contrast = result.get("contrast")
    if not contrast:
        why = str(result.get("contrast_why") or "")
        return f'<section><h4>One adapter instead of lobes</h4><p class="fg-ask">{text.escape(why)}</p></section>' if why else ""
    lobe: Found = next((lobe for lobe in result.get("lobes") or [] if lobe.get("name") == contrast["first"]), {})
    kept = bool(lobe.get("same")) and bool((result.get("base") or {}).get("same"))
    return (
        f'<section class="fg-contrast"><h4>What you were saved from</h4>{sentence(contrast, kept)}{figure(contrast, colours)}'
        f"{_table(contrast, colours)}</section>"
    )


def sentence(contrast: Found, lobe_kept: bool) -> str:
    """"One adapter would have forgotten 1.42 nats of legal; your lobe kept all of it." """
    first, second = (text.escape(contrast[which]) for which in SIDES)
    lost, kept = contrast["forgotten"], contrast.get("kept")
    ours = "; your lobe kept all of it." if lobe_kept else "."
    if lost <= NOTHING_MUCH:
        head = f"One adapter would have forgotten nothing of <b>{first}</b> here: these two domains get along."
    else:
        head = f"One adapter would have forgotten <b>{lost:.2f} nats</b> of <b>{first}</b>{ours}"
    if kept is None:
        left = f"But it had learned nothing of {first} in so few steps. Choose a lobe with more rows."
    elif lost <= NOTHING_MUCH:
        left = ""
    elif kept <= 0:
        left = f"Of what it had learned of {first} nothing was left: it ended worse than the base that had never seen it."
    else:
        left = f"Of what it had learned of {first}, {text.percent(kept)} was left."
    one, other = contrast["rows"]
    how = f"The same LoRA learned {text.count(one, 'row')} of {first}, then {other:,} of {second}, trained as any lobe is."
    return f'<p class="fg-said">{head}</p><p class="fg-how">{left} {how}</p>'


# ---- the figure ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """Where steps and losses lie in the figure.

    Attributes:
        points: the curve. last: its last step. switch: step at which the second domain begins. top: largest loss shown.
        names, tones: of "first" and "second".
    """

    points: Sequence[Found]
    last: float
    switch: float
    top: float
    names: Mapping[str, str]
    tones: Mapping[str, str]

    @classmethod
    def of(cls, contrast: Found, colours: Colours) -> _Frame:
        points = list(contrast["curve"])
        top = 1.06 * max([p[w] for p in points for w in SIDES if math.isfinite(p[w])] or [1.0])
        names = {w: str(contrast[w]) for w in SIDES}
        tones = {w: text.colour(colours.get(name)) for w, name in names.items()}
        return cls(points, float(points[-1]["step"]) or 1.0, float(contrast["switch"]), top or 1.0, names, tones)

    def x(self, step: float) -> float:
        return round(WIDE * step / self.last, 1)

    def y(self, loss: float) -> float:
        return round(HIGH * self.down(loss), 1)

    def down(self, loss: float) -> float:
        """Share of the height, from above."""
        return 1 - min(max(loss, 0.0), self.top) / self.top

    @property
    def split(self) -> float:
        """Where the second domain begins, in percent."""
        return round(100 * self.switch / self.last, 2)


def figure(contrast: Found, colours: Colours) -> str:
    """Two lines over the steps, the lobes' flat ones, and the shaded loss between them; "" without a curve."""
    if len(contrast.get("curve") or []) < 2:
        return ""
    frame, losses = _Frame.of(contrast, colours), contrast["losses"]
    said = text.escape(_in_words(frame.names, losses["first"]))
    numbers = "".join(f'<span style="top:{100 * frame.down(t):.1f}%">{t:g}</span>' for t in ticks(frame.top))
    steps = f'<span>0</span><span style="left:{frame.split}%">{frame.switch:,.0f}</span><span>{frame.last:,.0f} steps</span>'
    caption = f"Loss, {NATS}, {text.escape(measured_on(contrast))}"
    return (
        f'<figure class="fg-figure" role="img" aria-label="{said}"><figcaption>{caption}</figcaption>'
        f"{_phases(frame)}"
        f'<div class="fg-frame"><div class="fg-ticks">{numbers}</div><div class="fg-plot">{_lines(frame, losses)}</div>'
        f'{_ends(frame, losses)}</div><div class="fg-steps">{steps}</div>{_legend(frame)}</figure>'
    )


def _in_words(names: Mapping[str, str], own: Found) -> str:
    return (
        f"Loss of one adapter on {names['first']}: {own['base']:.2f} before, {own['after_first']:.2f} after learning it, "
        f"{own['after_second']:.2f} after learning {names['second']}. The lobes stay where they are."
    )


def _phases(frame: _Frame) -> str:
    """What is learned, above the two halves."""
    halves = "".join(
        f"<span>{what} <b>{text.escape(text.short(frame.names[w], 20))}</b></span>"
        for w, what in zip(SIDES, ("it learns", "then it learns"), strict=True)
    )
    return f'<div class="fg-phases" style="--s:{frame.split}%">{halves}</div>'


def _lines(frame: _Frame, losses: Found) -> str:
    switch = frame.x(frame.switch)
    grid = "".join(_rule("grid", 0, WIDE, frame.y(t)) for t in ticks(frame.top))
    flat = "".join(_rule("lobe", 0, WIDE, frame.y(losses[w]["lobe"]), frame.tones[w]) for w in SIDES)
    ones = "".join(
        f'<polyline class="one" style="--c:{frame.tones[w]}" points="'
        + " ".join(f"{frame.x(p['step'])},{frame.y(p[w])}" for p in frame.points)
        + '"/>'
        for w in SIDES
    )
    lost = _lost(frame, losses["first"]["after_first"])
    divider = f'<line class="switch" x1="{switch}" x2="{switch}" y1="0" y2="{HIGH:g}"/>'
    box = f'viewBox="0 0 {WIDE:g} {HIGH:g}" preserveAspectRatio="none"'
    return f'<svg {box} aria-hidden="true">{grid}{lost}{divider}{flat}{ones}</svg>'


def _rule(kind: str, start: float, end: float, y: float, tone: str = "") -> str:
    style = f' style="--c:{tone}"' if tone else ""
    return f'<line class="{kind}"{style} x1="{start:g}" x2="{end:g}" y1="{y}" y2="{y}"/>'


def _lost(frame: _Frame, reached: float) -> str:
    """The area between what had been reached on the first domain and where it went."""
    after = [p for p in frame.points if p["step"] >= frame.switch]
    if len(after) < 2:
        return ""
    tone, floor = frame.tones["first"], frame.y(reached)
    start, end = frame.x(after[0]["step"]), frame.x(after[-1]["step"])
    edge = " ".join(f"{frame.x(p['step'])},{min(frame.y(p['first']), floor)}" for p in after)
    area = f'<polygon class="lost" style="--c:{tone}" points="{start},{floor} {edge} {end},{floor}"/>'
    return area + _rule("reached", start, end, floor, tone)


def _ends(frame: _Frame, losses: Found) -> str:
    """Labels at the lines' right ends, moved apart where they would cover each other."""
    labels = [(frame.points[-1][w], w, "one adapter") for w in SIDES] + [(losses[w]["lobe"], w, "your lobe") for w in SIDES]
    labels.sort(key=lambda label: -label[0])
    places = spread([frame.down(value) for value, _, _ in labels], LEAST_GAP)
    spans = "".join(
        f'<span class="is-{"one" if who == "one adapter" else "lobe"}" style="top:{100 * place:.1f}%;--c:{frame.tones[w]}"><i></i>'
        f'<b>{value:.2f}</b><em>{who}, {text.escape(text.short(frame.names[w], 16))}</em></span>'
        for place, (value, w, who) in zip(places, labels, strict=True)
    )
    return f'<div class="fg-ends" aria-hidden="true">{spans}</div>'


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places from 0 to 1, moved so that neighbours are `gap` apart: up from the bottom, and down where the top ends."""
    moved = list(places)
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], moved[i + 1] - gap if i + 1 < len(moved) else 1.0)
    for i in range(len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap if i else 0.0)
    return moved


def _legend(frame: _Frame) -> str:
    items = "".join(
        f'<li class="is-{kind}" style="--c:{frame.tones[w]}"><i></i>{who} on {text.escape(text.short(frame.names[w], 24))}</li>'
        for kind, who in (("one", "one adapter"), ("lobe", "your lobe"))
        for w in SIDES
    )
    return f'<ul class="fg-legend">{items}</ul>'


def ticks(top: float) -> list[float]:
    """Round numbers from 0 to `top`, at most six steps of them."""
    raw = top / 6
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * f for f in (1, 2, 5, 10) if size * f >= raw)
    return [round(i * step, 10) for i in range(int(top / step) + 1)]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _table(contrast: Found, colours: Colours) -> str:
    """Every loss that the figure shows."""
    first, second = (text.escape(text.short(contrast[w], 24)) for w in SIDES)
    heads = ("", "the base", f"after {first}", f"after {second}", "your lobe")
    rows = "".join(_row(contrast, which, colours) for which in SIDES)
    head = "".join(f'<th scope="col">{title}</th>' for title in heads)
    held = " and ".join(f"{count:,}" for count in contrast["held_out"])
    return (
        f'<div class="fg-scroll"><table class="fg-losses"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="fg-note">Loss in {NATS}, {text.escape(measured_on(contrast))} ({held}); lower is better. '
        "Your lobes learned from all their rows, for longer.</p>"
    )


def measured_on(contrast: Found) -> str:
    """Which rows the losses are of. Not escaped."""
    trained = [str(name) for name in contrast.get("trained") or ()]
    if not trained:
        return "on rows held out"
    if len(trained) == len(SIDES):
        return "on rows that were trained, as nothing is held out"
    one = text.short(trained[0])
    return f"on rows held out, and of {one} on rows that were trained, as it holds none out"


def _row(contrast: Found, which: str, colours: Colours) -> str:
    name, own = str(contrast[which]), contrast["losses"][which]
    cells = "".join(f"<td>{_change(own, key, which)}</td>" for key in ("base", "after_first", "after_second", "lobe"))
    return (
        f'<tr><th scope="row"><span class="fg-name" style="--c:{text.colour(colours.get(name))}"><i></i>'
        f'<span title="{text.escape(name)}">on {text.escape(name)}</span></span></th>{cells}</tr>'
    )


def _change(own: Found, key: str, which: str) -> str:
    """The loss; what was forgotten is marked."""
    value = f"{own[key]:.3f}"
    lost = own["after_second"] - own["after_first"]
    if which == "first" and key == "after_second" and lost > NOTHING_MUCH:
        return f'<b class="is-lost">{value}</b> <small>+{lost:.2f}</small>'
    return value
