"""The brain map: the lobes as regions of a drawn brain, lit by the weights that a decision gave them.

Pure: lobes and weights in, one inline SVG out. Where a region lies depends only on how many lobes
there are and on a lobe's place among them, so the picture stays still while its lights change. The
outline is ours; the regions are the Voronoi cells of evenly spread points, their borders bent by a
fixed wave so that they look grown rather than cut.

Colours of paper and ink are the page's CSS variables with fallbacks, so one picture suits light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from ..kit.html import Markup, around, html, joined
from ..kit.text import colour, count, percent, short, width

Point = tuple[float, float]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

MOST_REGIONS = 12
"""Beyond so many lobes the heaviest are drawn, and one grey region stands for the others."""
LABELLED = 8
"""Up to so many regions each carries its name; beyond, a region is smaller than a name, and
hovering tells."""
OTHERS = "#8a93a0"

# Side view, facing left: front pole at the left, crown at the top, back of the head at the right,
# temporal pole below.
OUTLINE = (
    "M27 122C25 96 38 68 62 51C80 34 108 19 140 15C172 9 208 14 234 29C262 40 284 64 291 94C299 114 298 "
    "138 285 151"
    "C274 164 254 166 236 165C226 181 200 193 170 195C140 200 106 191 95 173C91 166 86 160 76 160C50 160 "
    "31 146 27 122Z"
)
CEREBELLUM = "M219 178C232 167 262 164 279 162C291 171 285 192 268 202C250 212 228 211 219 202C211 195 211 185 219 178Z"
FOLIA = "M222 186Q250 176 284 174M220 194Q250 186 281 184M226 202Q250 196 273 195"
STEM = "M183 194C192 208 197 222 196 240Q207 245 219 240C218 226 219 214 225 206C215 202 211 192 215 182Z"
FOLDS = (
    "M91 168C118 156 146 152 170 141C186 134 204 129 216 116M166 14C158 38 174 54 161 78C155 92 163 104 "
    "152 118"
    "M42 92C60 86 70 96 88 88M58 128C76 120 88 130 104 118M98 34C104 50 94 62 108 74M128 184C150 172 176 "
    "178 200 164"
    "M206 42C214 58 206 70 222 84M250 56C244 74 258 86 250 104M244 150C252 138 268 138 278 124"
    "M128 106C120 92 132 80 124 66M196 92C186 100 190 112 178 118"
)
PATHS = {"OUTLINE": OUTLINE, "CEREBELLUM": CEREBELLUM, "FOLIA": FOLIA, "STEM": STEM, "FOLDS": FOLDS}


def brain_map(
    lobes: Sequence[tuple[str, str]],
    weights: Mapping[str, float] | None = None,
    *,
    base: bool = False,
    state: str = "still",
    labels: bool = True,
) -> Markup:
    """The brain as SVG.

    Args:
        lobes: (name, "#rrggbb") in the order in which they were made.
        weights: name → weight, 0 to 1; a region glows by it.
        base: the base model answers: outline, cerebellum and stem are lit instead.
        state: "still"; "routing" (regions shimmer in turn) or "live" (what is lit breathes); both
            are animated by the page's stylesheet and keep still for people who want less motion.
        labels: write names into regions, if there is room.
    """
    lit = {name: min(1.0, abs(w)) for name, w in (weights or {}).items() if w and math.isfinite(w)}
    shown = _shown(lobes, lit)
    regions = [Region(*drawn, *place) for drawn, place in zip(shown, _regions(len(shown)), strict=True)]
    kind, title = f"is-{state}", "Base model"
    if base:
        kind, title = f"is-{state} is-base", "Base model: answers"
    clip = _id("bm", shown, lit, base, state)
    names = Markup()
    if labels and len(regions) <= LABELLED:
        names = joined(_label(region) for region in regions)
    return html(
        '<svg class="ml-brain {kind}" viewBox="0 0 320 252" role="img" aria-label="{spoken}" '
        'xmlns="http://www.w3.org/2000/svg"><clipPath id="{clip}"><path d="{OUTLINE}"/></clipPath>'
        '<g class="ml-brain-base"><title>{title}</title>'
        '<path d="{STEM}"/><path d="{CEREBELLUM}"/><path class="ml-brain-line" d="{FOLIA}"/></g>'
        '<path class="ml-brain-ground" d="{OUTLINE}"/><g clip-path="url(#{clip})">{cells}</g>{glow}'
        '<path class="ml-brain-line" d="{FOLDS}"/><path class="ml-brain-edge" d="{OUTLINE}"/>{names}</svg>',
        **PATHS, kind=kind, title=title, spoken=_spoken(lobes, lit, base), clip=clip, names=names,
        cells=joined(_cell_of(i, region) for i, region in enumerate(regions)),
        glow=joined(_glow(region, clip) for region in regions if region.name in lit),
    )  # fmt: skip


def brain_mark(colours: Sequence[str] = (), style: str = "") -> Markup:
    """The brain without words, for the header: up to six regions in the lobes' colours.

    style: rules for it, where it has to stand without the page's stylesheet.
    """
    tones = [colour(c) for c in colours[:6]]
    paths = [path for path, _ in _regions(len(tones))]
    cells = joined(
        html('<path fill="{}" d="{}"/>', tone, path) for tone, path in zip(tones, paths, strict=True)
    )
    return html(
        '<svg class="ml-mark" viewBox="10 0 300 252" aria-hidden="true" '
        'xmlns="http://www.w3.org/2000/svg">{style}'
        '<clipPath id="{clip}"><path d="{OUTLINE}"/></clipPath><g class="ml-brain-base"><path d="{STEM}"/>'
        '<path d="{CEREBELLUM}"/></g><path class="ml-brain-ground" d="{OUTLINE}"/><g '
        'clip-path="url(#{clip})">{cells}</g>'
        '<path class="ml-brain-edge" d="{OUTLINE}"/></svg>',
        **PATHS, style=around("<style>{}</style>", style), clip=_id("bk", tuple(colours)), cells=cells,
    )  # fmt: skip


# ---- what is drawn -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """A region of the drawing: whose it is, with what weight it is lit, the path around it and its middle."""

    name: str
    tone: str
    weight: float
    path: str
    centre: Point


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


# ---- where regions lie ---------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _regions(n: int) -> tuple[tuple[str, Point], ...]:
    """(path, centre) of n regions that fill the outline; front to back, so a new lobe moves its
    neighbours little."""
    if n == 0:
        return ()
    if n == 1:
        return (("M0 0H320V252H0Z", (160.0, 100.0)),)
    seeds = _spread(n)
    return tuple((_path(_cell(i, seeds)), seed) for i, seed in enumerate(seeds))


@lru_cache(maxsize=1)
def _inside() -> FloatArray:
    """(points, 2): a grid of points inside the outline, by the even-odd rule."""
    grid = np.stack(np.meshgrid(np.arange(24, 300, 5), np.arange(8, 202, 5), indexing="ij"), axis=-1).reshape(
        -1, 2
    )
    x, y = grid[:, :1], grid[:, 1:]
    corners = np.array(_polyline()).T
    (ax, ay), (bx, by) = corners, np.roll(corners, -1, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # of level edges, which no ray crosses
        crossed = ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    inside: FloatArray = grid[crossed.sum(axis=1) % 2 == 1].astype(np.float64)
    return inside


def _spread(n: int) -> list[Point]:
    """n points, evenly spread over the brain: Lloyd's algorithm from a sunflower, so equal n gives
    equal points.

    In numpy, because the page is served only when six of them are found: in plain Python that takes
    ten times as long.
    """
    points, i = _inside(), np.arange(n)
    radius, angle = np.sqrt((i + 0.5) / n), 2.39996 * i + 2.6
    seeds = np.stack([158 + 112 * radius * np.cos(angle), 104 + 74 * radius * np.sin(angle)], axis=1)
    for _ in range(14):
        nearest = ((points[:, None] - seeds) ** 2).sum(axis=-1).argmin(axis=1)
        sizes = np.bincount(nearest, minlength=n)[:, None]
        sums = np.stack([np.bincount(nearest, along, minlength=n) for along in points.T], axis=1)
        seeds = np.where(sizes > 0, sums / np.maximum(sizes, 1), seeds)
    return sorted(((float(x), float(y)) for x, y in seeds), key=lambda p: (round(p[0] / 60), p[1]))


def _cell(i: int, seeds: Sequence[Point]) -> list[Point]:
    """The part of the page nearer to seed i than to any other."""
    polygon: list[Point] = [(-20.0, -20.0), (340.0, -20.0), (340.0, 272.0), (-20.0, 272.0)]
    ax, ay = seeds[i]
    for j, (bx, by) in enumerate(seeds):
        if j != i:
            nx, ny = bx - ax, by - ay
            limit = (bx * bx + by * by - ax * ax - ay * ay) / 2
            polygon = _cut(polygon, nx, ny, limit)
    return polygon


def _cut(polygon: list[Point], nx: float, ny: float, limit: float) -> list[Point]:
    """What of a convex polygon lies where nx * x + ny * y <= limit."""
    kept: list[Point] = []
    for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        dp, dq = nx * p[0] + ny * p[1] - limit, nx * q[0] + ny * q[1] - limit
        if dp <= 0:
            kept.append(p)
        if (dp < 0) != (dq < 0) and dp != dq:
            t = dp / (dp - dq)
            kept.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
    return kept


def _path(polygon: Sequence[Point]) -> str:
    """Edges divided and bent by a wave that depends on the place alone (so neighbours bend alike),
    corners rounded."""
    points: list[Point] = []
    for p, q in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        pieces = min(6, max(1, round(math.dist(p, q) / 26)))
        points += [
            _bend((p[0] + (q[0] - p[0]) * k / pieces, p[1] + (q[1] - p[1]) * k / pieces))
            for k in range(pieces)
        ]
    middles = [
        ((p[0] + q[0]) / 2, (p[1] + q[1]) / 2) for p, q in zip(points, points[1:] + points[:1], strict=True)
    ]
    start = middles[-1]
    curves = (f"Q{p[0]:.0f} {p[1]:.0f} {m[0]:.0f} {m[1]:.0f}" for p, m in zip(points, middles, strict=True))
    return f"M{start[0]:.0f} {start[1]:.0f}{''.join(curves)}Z"


def _bend(p: Point) -> Point:
    x, y = p
    return x + 7 * math.sin(y / 13 + 1.3) + 2 * math.sin(x / 7), y + 6 * math.sin(
        x / 15 + 0.4
    ) + 2 * math.sin(y / 8)


def _polyline() -> list[Point]:
    """OUTLINE as points: its cubic curves, sampled."""
    numbers = [float(v) for v in OUTLINE.replace("M", " ").replace("C", " ").replace("Z", " ").split()]
    anchors = list(zip(numbers[::2], numbers[1::2], strict=True))
    line: list[Point] = []
    for k in range(0, len(anchors) - 3, 3):
        a, b, c, d = anchors[k : k + 4]
        for step in range(12):
            t = step / 12
            u = 1 - t
            w = (u * u * u, 3 * u * u * t, 3 * u * t * t, t * t * t)
            x, y = (sum(wi * p[axis] for wi, p in zip(w, (a, b, c, d), strict=True)) for axis in (0, 1))
            line.append((x, y))
    return line
