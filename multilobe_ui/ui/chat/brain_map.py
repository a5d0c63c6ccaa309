"""The brain map: the lobes as regions of a drawn brain, lit by the weights that a decision gave them.

Pure: lobes and weights in, one inline SVG out. The drawing is ours: `static/brain.json` has the
outlines, and regions for each number of lobes (Voronoi cells of evenly spread points, their borders
bent by a wave). So where a region lies depends only on how many lobes there are and on a lobe's
place among them, and the picture stays still while its lights change.

Colours of paper and ink are the page's CSS variables with fallbacks, so one picture suits light and dark.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from ..kit.html import Markup, around, html, joined
from ..kit.static import FOLDER
from ..kit.text import colour, count, percent, short, width

MOST_REGIONS = 12
"""Beyond so many lobes the heaviest are drawn, and one grey region stands for the others."""
LABELLED = 8
"""Up to so many regions each carries its name; beyond, a region is smaller than a name, and
hovering tells."""
OTHERS = "#8a93a0"


def brain_map(
    lobes: Sequence[tuple[str, str]],
    weights: Mapping[str, float] | None = None,
    *,
    base: bool = False,
    state: str = "still",
) -> Markup:
    """The brain as SVG.

    Args:
        lobes: (name, "#rrggbb") in the order in which they were made.
        weights: name → weight, 0 to 1; a region glows by it.
        base: the base model answers: outline, cerebellum and stem are lit instead.
        state: "still"; "routing" (regions shimmer in turn) or "live" (what is lit breathes); both
            are animated by the page's stylesheet and keep still for people who want less motion.
    """
    lit = {name: min(1.0, abs(w)) for name, w in (weights or {}).items() if w and math.isfinite(w)}
    shown = _shown(lobes, lit)
    paths, places = _drawing(), _drawing()["regions"][len(shown)]
    regions = [Region(*lobe, **place) for lobe, place in zip(shown, places, strict=True)]
    kind, title = f"is-{state}", "Base model"
    if base:
        kind, title = f"is-{state} is-base", "Base model: answers"
    clip = _id("bm", shown, lit, base, state)
    names = Markup()
    if len(regions) <= LABELLED:
        names = joined(_label(region) for region in regions)
    return html(
        '<svg class="ml-brain {kind}" viewBox="0 0 320 252" role="img" aria-label="{spoken}" '
        'xmlns="http://www.w3.org/2000/svg"><clipPath id="{clip}"><path d="{outline}"/></clipPath>'
        '<g class="ml-brain-base"><title>{title}</title>'
        '<path d="{stem}"/><path d="{cerebellum}"/><path class="ml-brain-line" d="{folia}"/></g>'
        '<path class="ml-brain-ground" d="{outline}"/><g clip-path="url(#{clip})">{cells}</g>{glow}'
        '<path class="ml-brain-line" d="{folds}"/><path class="ml-brain-edge" d="{outline}"/>{names}</svg>',
        **paths, kind=kind, title=title, spoken=_spoken(lobes, lit, base), clip=clip, names=names,
        cells=joined(_cell_of(i, region) for i, region in enumerate(regions)),
        glow=joined(_glow(region, clip) for region in regions if region.name in lit),
    )  # fmt: skip


def brain_mark(colours: Sequence[str] = (), style: str = "") -> Markup:
    """The brain without words, for the header: up to six regions in the lobes' colours.

    style: rules for it, where it has to stand without the page's stylesheet.
    """
    tones = [colour(c) for c in colours[:6]]
    paths, places = _drawing(), _drawing()["regions"][len(tones)]
    cells = joined(
        html('<path fill="{}" d="{}"/>', tone, place["path"])
        for tone, place in zip(tones, places, strict=True)
    )
    return html(
        '<svg class="ml-mark" viewBox="10 0 300 252" aria-hidden="true" '
        'xmlns="http://www.w3.org/2000/svg">{style}'
        '<clipPath id="{clip}"><path d="{outline}"/></clipPath><g class="ml-brain-base"><path d="{stem}"/>'
        '<path d="{cerebellum}"/></g><path class="ml-brain-ground" d="{outline}"/><g '
        'clip-path="url(#{clip})">{cells}</g>'
        '<path class="ml-brain-edge" d="{outline}"/></svg>',
        **paths, style=around("<style>{}</style>", style), clip=_id("bk", tuple(colours)), cells=cells,
    )  # fmt: skip


@dataclass(frozen=True)
class Region:
    """A region of the drawing: whose it is, with what weight it is lit, the path around it and its middle."""

    name: str
    tone: str
    weight: float
    path: str
    centre: tuple[float, float]


@lru_cache(maxsize=1)
def _drawing() -> dict[str, Any]:
    """Paths by name, and "regions": for each number of them, from none on, their paths and centres."""
    drawing: dict[str, Any] = json.loads((FOLDER / "brain.json").read_text("utf-8"))
    return drawing


def _id(kind: str, *drawn: object) -> str:
    """An id for the clip path: two drawings on one page share it only where they are the same."""
    return kind + blake2b(repr(drawn).encode("utf-8", "replace"), digest_size=4).hexdigest()


def _shown(lobes: Sequence[tuple[str, str]], lit: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """(name, colour, weight) of each region; the order is the lobes' own."""
    every = [(name, colour(tone), lit.get(name, 0.0)) for name, tone in lobes]
    if len(every) <= MOST_REGIONS:
        return every
    order = sorted(range(len(every)), key=lambda i: (-every[i][2], i))
    others = [every[i] for i in order[MOST_REGIONS:]]
    heaviest = max(weight for _, _, weight in others)
    return [*(every[i] for i in sorted(order[:MOST_REGIONS])), (f"{len(others)} others", OTHERS, heaviest)]


def _cell_of(index: int, region: Region) -> Markup:
    title, kind = region.name, "ml-brain-cell"
    if region.weight:
        title, kind = f"{region.name}: {_lights(region.weight)}", "ml-brain-cell is-lit"
    return html(
        '<path class="{}" style="--i:{}" fill="{}" fill-opacity="{:.2f}" d="{}"><title>{}</title></path>',
        kind, index, region.tone, 0.24 + 0.7 * region.weight, region.path, title,
    )  # fmt: skip


def _glow(region: Region, clip: str) -> Markup:
    """A second drawing of a lit region, outside the clip of the others, so that its light spills
    over the edge."""
    return html(
        '<g class="ml-brain-glow" style="filter:drop-shadow(0 0 {:.0f}px {tone})"><g clip-path="url(#{})">'
        '<path fill="{tone}" fill-opacity="{:.2f}" d="{}"><title>{}: {}</title></path></g></g>',
        3 + 7 * region.weight, clip, region.weight, region.path, region.name, _lights(region.weight),
        tone=region.tone,
    )  # fmt: skip


def _lights(weight: float) -> str:
    """What a lit region says when pointed at: its light is a weight, and no certainty."""
    if weight >= 1:
        return "answers"
    return f"weight {percent(weight)}"


def _label(region: Region) -> Markup:
    words, (x, y) = short(region.name, 15), region.centre
    size = max(8.0, min(11.5, 110 / max(1, width(words))))
    half = width(words) * size * 0.29
    kind, bright = "ml-brain-label", Markup()
    if region.weight:
        kind = "ml-brain-label is-lit"
    if region.weight > 0.5:
        bright = html(' style="fill:{};stroke:{}"', _on(region.tone), region.tone)
    return html(
        '<text class="{}" x="{:.0f}" y="{:.0f}" font-size="{:.1f}"{}>{}</text>',
        kind, min(max(x, 12 + half), 308 - half), y + size / 3, size, bright, words,
    )  # fmt: skip


def _spoken(lobes: Sequence[tuple[str, str]], lit: Mapping[str, float], base: bool) -> str:
    if not lobes:
        return "A brain without lobes. The base model answers."
    about = f"A brain with {count(len(lobes), 'lobe')}."
    if base:
        return f"{about} The base model is lit."
    if not lit:
        return f"{about} None is lit."
    heaviest = sorted(lit, key=lambda name: -lit[name])[:3]
    if len(heaviest) == 1 and lit[heaviest[0]] >= 1:
        return f"{about} Lit: {heaviest[0]}."
    return f"{about} Lit by weight: {', '.join(f'{name} {percent(lit[name])}' for name in heaviest)}."


def _on(tone: str) -> str:
    """Black or white, whichever is easier to read on the colour (relative luminance after WCAG)."""
    red, green, blue = (_linear(int(tone[i : i + 2], 16) / 255) for i in (1, 3, 5))
    if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.3:
        return "#fff"
    return "#101318"


def _linear(value: float) -> float:
    """An sRGB value from 0 to 1 as light."""
    if value <= 0.04045:
        return value / 12.92
    return math.pow((value + 0.055) / 1.055, 2.4)
