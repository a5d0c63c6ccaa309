"""Complexity as pictures: a score on its scale, a radar of language features, and how prompts fall into tiers. Pure.

Inline SVG: it is there at once, follows the colour scheme, and its labels are text. Tiers are shades of ink with dashes of
their own, because colour says which lobe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .text import colour, count, escape, percent, score, short

TIERS = ("simple", "medium", "complex")
LABELS = {
    "words": "length", "sentences": "sentences", "depth": "syntax depth", "distance": "word distance",
    "clauses": "clauses", "entities": "names, numbers", "vocabulary": "vocabulary", "readability": "school grade",
}  # fmt: skip

Profile = Mapping[str, float]


def complexity_section(evidence: Mapping[str, Any], tone: str | None = None) -> str:
    """Score and radar of one prompt beside the means of the tiers; "" if the evidence is none of complexity."""
    value, profile = evidence.get("score"), evidence.get("profile")
    if not isinstance(value, (int, float)) or not isinstance(profile, Mapping):
        return ""
    low, high = _thresholds(evidence.get("thresholds"))
    figure = radar(profile, evidence.get("tier_profiles") or {}, tone)
    values = evidence.get("features") or {}
    listed = "".join(
        f"<tr><th scope='row'>{escape(LABELS.get(name, name))}</th><td>{escape(_plain(number))}</td></tr>"
        for name, number in values.items()
    )
    table = f'<details><summary>The numbers</summary><table class="ml-plain">{listed}</table></details>' if listed else ""
    return f"<h4>Complexity of the prompt <span>0 to 1</span></h4>{meter(float(value), low, high)}{figure}{table}"


def meter(value: float, low: float, high: float) -> str:
    """A scale from 0 to 1 in three zones, with a mark where the prompt is."""
    value = min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0
    tier = TIERS[(value >= low) + (value >= high)]
    widths = (low, high - low, 1 - high)
    zones = "".join(
        f'<span class="{"is-here" if name == tier else ""}" style="flex-grow:{max(width, 0.001):.3f}">{name}</span>'
        for name, width in zip(TIERS, widths, strict=True)
    )
    return (
        f'<div class="ml-meter" role="img" aria-label="Complexity {score(value)}: {tier}"><div>{zones}</div>'
        f'<i style="left:{100 * value:.1f}%"><b>{score(value)}</b></i></div>'
    )


def radar(profile: Profile, tiers: Mapping[str, Profile] | None = None, tone: str | None = None) -> str:
    """Features scaled to 0..1 as a polygon, over the tiers' mean polygons. `profile` may be empty: then tiers alone."""
    axes = list(profile or next(iter((tiers or {}).values()), {}))
    if len(axes) < 3:
        return ""
    shown = {tier: tiers[tier] for tier in TIERS if tiers and tier in tiers}
    rings = "".join(f'<path class="ring" d="{_ring(len(axes), share)}"/>' for share in (0.25, 0.5, 0.75, 1.0))
    spokes = "".join(f'<path class="ring" d="M{_at(i, len(axes), 0)}L{_at(i, len(axes), 1)}"/>' for i in range(len(axes)))
    areas = "".join(f'<path class="tier is-{tier}" d="{_polygon(axes, own)}"><title>{tier}</title></path>'
                    for tier, own in shown.items())  # fmt: skip
    look = f' style="--c:{colour(tone)}"' if tone else ""
    own = f'<path class="own"{look} d="{_polygon(axes, profile)}"><title>this prompt</title></path>' if profile else ""
    names = "".join(_axis_label(i, len(axes), LABELS.get(name, name)) for i, name in enumerate(axes))
    spoken = "; ".join(f"{LABELS.get(name, name)} {score(float(value))}" for name, value in (profile or {}).items())
    label = escape(f"Radar of language features, each from 0 to 1. {spoken}")
    legend = "".join(f'<li class="is-{tier}"><i></i>mean of {tier}</li>' for tier in shown)
    mine = f'<li class="is-own"{look}><i></i>this prompt</li>' if profile else ""
    return (
        f'<figure class="ml-radar"><svg viewBox="-170 -124 340 248" role="img" aria-label="{label}">{rings}{spokes}{areas}{own}'
        f"{names}</svg><ul>{mine}{legend}</ul></figure>"
    )


def stratification_card(preview: Mapping[str, Any]) -> str:
    """How rows fall into tiers at two thresholds: counts as one bar, examples of each tier, a radar of their means."""
    counts = {tier: int(preview.get("counts", {}).get(tier, 0)) for tier in TIERS}
    total = sum(counts.values())
    if not total:
        return '<div class="ml-box"><p class="ml-faint">There is no row to sort yet.</p></div>'
    zones = "".join(
        f'<div class="is-{tier}" style="flex-grow:{max(counts[tier] / total, 0.001):.4f}"></div>' for tier in TIERS
    )
    said = ", ".join(f"{tier} {counts[tier]:,}" for tier in TIERS)
    bar = f'<div class="tier-bar" role="img" aria-label="{said}">{zones}</div>'
    columns = "".join(_tier(tier, counts[tier], total, preview.get("examples", {}).get(tier, ())) for tier in TIERS)
    profiles = preview.get("profile") or _scaled(preview.get("means") or {})
    empty = [tier for tier in TIERS if not counts[tier]]
    alert = (
        f'<p class="train-ask">No row is {escape(" or ".join(empty))}, so there would be no expert for it. '
        "Move the thresholds.</p>"
        if empty
        else ""
    )
    head = f'<div class="train-file"><b>{count(total, "row")} sorted by complexity</b></div>'
    return f'<div class="ml-box">{head}{bar}<div class="tier-columns">{columns}</div>{alert}{radar({}, profiles)}</div>'


def _tier(tier: str, number: int, total: int, examples: Sequence[str]) -> str:
    quotes = "".join(f"<li>{escape(short(example, 130))}</li>" for example in list(examples)[:3])
    return (
        f'<div class="is-{tier}"><h4><i></i>{tier}</h4><b>{number:,}</b><small>{percent(number / total)}</small>'
        f"<ul>{quotes}</ul></div>"
    )


def _scaled(means: Mapping[str, Profile]) -> dict[str, dict[str, float]]:
    """Means in their own units as shares of the greatest of each feature."""
    most: dict[str, float] = {}
    for own in means.values():
        for name, value in own.items():
            most[name] = max(most.get(name, 0.0), float(value))
    return {tier: {name: float(value) / (most[name] or 1) for name, value in own.items()} for tier, own in means.items()}


def _thresholds(values: Any) -> tuple[float, float]:
    try:
        low, high = map(float, values)
    except (TypeError, ValueError):
        return 0.3, 0.7
    return low, high


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) and math.isfinite(value) else str(value)


def _at(place: int, axes: int, share: float, radius: float = 84) -> str:
    angle = 2 * math.pi * place / axes - math.pi / 2
    return f"{radius * share * math.cos(angle):.1f} {radius * share * math.sin(angle):.1f}"


def _ring(axes: int, share: float) -> str:
    return "M" + "L".join(_at(i, axes, share) for i in range(axes)) + "Z"


def _polygon(axes: Sequence[str], profile: Profile) -> str:
    shares = [float(profile.get(name, 0.0)) for name in axes]
    shares = [min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0 for share in shares]
    return "M" + "L".join(_at(i, len(axes), share) for i, share in enumerate(shares)) + "Z"


def _axis_label(place: int, axes: int, words: str) -> str:
    angle = 2 * math.pi * place / axes - math.pi / 2
    x, y = 96 * math.cos(angle), 96 * math.sin(angle)
    anchor = "middle" if abs(x) < 12 else "start" if x > 0 else "end"
    return f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="{anchor}">{escape(words)}</text>'
