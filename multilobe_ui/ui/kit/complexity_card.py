"""Complexity as pictures: a score on its scale, a radar of language features, and how prompts fall
into tiers. Pure.

Inline SVG: it is there at once, follows the colour scheme, and its labels are text. Tiers are
shades of ink with dashes of their own, because colour says which lobe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .html import Markup, around, html, joined
from .text import colour, count, is_number, percent, score, short

TIERS = ("simple", "medium", "complex")
LABELS = {
    "words": "length", "sentences": "sentences", "depth": "syntax depth", "distance": "word distance",
    "clauses": "clauses", "entities": "names, numbers", "vocabulary": "vocabulary",
    "readability": "school grade",
}  # fmt: skip

Profile = Mapping[str, float]


def complexity_section(evidence: Mapping[str, Any], tone: str | None = None) -> Markup:
    """Score and radar of one prompt beside the means of the tiers; empty if the evidence is none of
    complexity."""
    value, profile = evidence.get("score"), evidence.get("profile")
    if not isinstance(value, (int, float)) or not isinstance(profile, Mapping):
        return Markup()
    low, high = _thresholds(evidence.get("thresholds"))
    rows = joined(
        html('<tr><th scope="row">{}</th><td>{}</td></tr>', LABELS.get(name, name), _plain(number))
        for name, number in (evidence.get("features") or {}).items()
    )
    return html(
        "<h4>Complexity of the prompt <span>0 to 1</span></h4>{}{}{}",
        meter(float(value), low, high),
        radar(profile, evidence.get("tier_profiles") or {}, tone),
        around('<details><summary>The numbers</summary><table class="ml-plain">{}</table></details>', rows),
    )


def meter(value: float, low: float, high: float) -> Markup:
    """A scale from 0 to 1 in three zones, with a mark where the prompt is."""
    value = _share(value)
    here = TIERS[(value >= low) + (value >= high)]
    classes = dict.fromkeys(TIERS, "") | {here: "is-here"}
    zones = joined(
        html('<span class="{}" style="flex-grow:{:.3f}">{}</span>', classes[tier], max(width, 0.001), tier)
        for tier, width in zip(TIERS, (low, high - low, 1 - high), strict=True)
    )
    return html(
        '<div class="ml-meter" role="img" aria-label="Complexity {said}: {here}"><div>{zones}</div>'
        '<i style="left:{left:.1f}%"><b>{said}</b></i></div>',
        said=score(value), here=here, zones=zones, left=100 * value,
    )  # fmt: skip


def radar(profile: Profile, tiers: Mapping[str, Profile] | None = None, tone: str | None = None) -> Markup:
    """Features scaled to 0..1 as a polygon, over the tiers' mean polygons. `profile` may be empty:
    then tiers alone."""
    shown = {tier: tiers[tier] for tier in TIERS if tiers and tier in tiers}
    axes = list(profile or next(iter(shown.values()), {}))
    if len(axes) < 3:
        return Markup()
    rings = joined(
        html('<path class="ring" d="{}"/>', _ring(len(axes), share)) for share in (0.25, 0.5, 0.75, 1.0)
    )
    spokes = joined(
        html('<path class="ring" d="M{}L{}"/>', _at(i, len(axes), 0), _at(i, len(axes), 1))
        for i in range(len(axes))
    )
    areas = joined(
        html('<path class="tier is-{0}" d="{1}"><title>{0}</title></path>', tier, _polygon(axes, means))
        for tier, means in shown.items()
    )
    legend = joined(html('<li class="is-{0}"><i></i>mean of {0}</li>', tier) for tier in shown)
    if profile:
        look = Markup()
        if tone:
            look = html(' style="--c:{}"', colour(tone))
        areas += html(
            '<path class="own"{} d="{}"><title>this prompt</title></path>', look, _polygon(axes, profile)
        )
        legend = html('<li class="is-own"{}><i></i>this prompt</li>{}', look, legend)
    names = joined(_axis_label(i, len(axes), LABELS.get(name, name)) for i, name in enumerate(axes))
    spoken = "; ".join(f"{LABELS.get(name, name)} {score(float(value))}" for name, value in profile.items())
    return html(
        '<figure class="ml-radar"><svg viewBox="-170 -124 340 248" role="img" '
        'aria-label="Radar of language features, each from 0 to 1. {}">{}{}{}{}</svg><ul>{}</ul></figure>',
        spoken, rings, spokes, areas, names, legend,
    )  # fmt: skip


def stratification_card(preview: Mapping[str, Any]) -> Markup:
    """How rows fall into tiers at two thresholds: counts as one bar, examples of each tier, a radar
    of their means."""
    counts = {tier: int(preview.get("counts", {}).get(tier, 0)) for tier in TIERS}
    total = sum(counts.values())
    if not total:
        return Markup('<div class="ml-box"><p class="ml-faint">There is no row to sort yet.</p></div>')
    zones = joined(
        html('<div class="is-{}" style="flex-grow:{:.4f}"></div>', tier, max(counts[tier] / total, 0.001))
        for tier in TIERS
    )
    spoken = ", ".join(f"{tier} {counts[tier]:,}" for tier in TIERS)
    columns = joined(
        _tier(tier, counts[tier], total, preview.get("examples", {}).get(tier, ())) for tier in TIERS
    )
    alert = around(
        '<p class="train-ask">No row is {}, so there would be no expert for it. Move the thresholds.</p>',
        " or ".join(tier for tier in TIERS if not counts[tier]),
    )
    return html(
        '<div class="ml-box"><div class="train-file"><b>{} sorted by complexity</b></div>'
        '<div class="tier-bar" role="img" aria-label="{}">{}</div><div '
        'class="tier-columns">{}</div>{}{}</div>',
        count(total, "row"), spoken, zones, columns, alert,
        radar({}, preview.get("profile") or _scaled(preview.get("means") or {})),
    )  # fmt: skip


def _tier(tier: str, number: int, total: int, examples: Sequence[str]) -> Markup:
    quotes = joined(html("<li>{}</li>", short(example, 130)) for example in list(examples)[:3])
    return html(
        '<div class="is-{0}"><h4><i></i>{0}</h4><b>{1:,}</b><small>{2}</small><ul>{3}</ul></div>',
        tier, number, percent(number / total), quotes,
    )  # fmt: skip


def _scaled(means: Mapping[str, Profile]) -> dict[str, dict[str, float]]:
    """Means in their own units as shares of the greatest of each feature."""
    most: dict[str, float] = {}
    for profile in means.values():
        for name, value in profile.items():
            most[name] = max(most.get(name, 0.0), float(value))
    return {
        tier: {name: float(value) / (most[name] or 1) for name, value in profile.items()}
        for tier, profile in means.items()
    }


def _thresholds(values: Any) -> tuple[float, float]:
    try:
        low, high = map(float, values)
    except (TypeError, ValueError):
        return 0.3, 0.7
    return low, high


def _plain(value: Any) -> str:
    if not is_number(value):
        return str(value)
    return f"{value:.3g}"


def _share(value: float) -> float:
    if not math.isfinite(value):
        return 0.0
    return min(1.0, max(0.0, value))


def _at(place: int, axes: int, share: float, radius: float = 84) -> str:
    angle = 2 * math.pi * place / axes - math.pi / 2
    return f"{radius * share * math.cos(angle):.1f} {radius * share * math.sin(angle):.1f}"


def _ring(axes: int, share: float) -> str:
    return "M" + "L".join(_at(i, axes, share) for i in range(axes)) + "Z"


def _polygon(axes: Sequence[str], profile: Profile) -> str:
    shares = [_share(float(profile.get(name, 0.0))) for name in axes]
    return "M" + "L".join(_at(i, len(axes), share) for i, share in enumerate(shares)) + "Z"


def _axis_label(place: int, axes: int, words: str) -> Markup:
    """A name outside its axis, written away from the figure."""
    angle = 2 * math.pi * place / axes - math.pi / 2
    x, y = 96 * math.cos(angle), 96 * math.sin(angle)
    anchor = "middle"
    if x >= 12:
        anchor = "start"
    elif x <= -12:
        anchor = "end"
    return html('<text x="{:.0f}" y="{:.0f}" text-anchor="{}">{}</text>', x, y + 4, anchor, words)
