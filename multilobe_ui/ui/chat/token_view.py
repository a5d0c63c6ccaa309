"""An answer token by token: a strip of its text and a map of layers × tokens, coloured by the
lobes' weights. Pure.

The map is a small indexed PNG made here: a plotly heat-map of 60 layers × 300 tokens is a megabyte
at every update and takes the page's breath away, this one is some kilobytes and streams with the
text.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..kit.html import Markup, html, joined
from ..kit.text import colour, count, shares, short

if TYPE_CHECKING:
    from ...app.views import TokenTrace

MOST_SHOWN = 600
"""Latest tokens that are drawn."""
MOST_LOBES = 15
LEVELS = 16
MOST_CHOICES = 6
OTHERS = "#8a93a0"
NO_KEYS = Markup()
KEYS = Markup(' tabindex="0" role="group" aria-label="The answer, token by token. Arrow keys move."')

Array = np.ndarray[Any, Any]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def token_card(trace: Sequence[TokenTrace], colours: Mapping[str, str], *, done: bool = True) -> Markup:
    """Strip, readout and map; empty for an answer whose tokens were not weighed one by one."""
    if not trace:
        return Markup()
    latest, note, kind = trace[-MOST_SHOWN:], Markup(), "is-live"
    if len(latest) < len(trace):
        note = html('<p class="ml-note">The latest {} of {:,} tokens.</p>', len(latest), len(trace))
    if done:
        kind = ""
    return html(
        '<div class="ml-why ml-token-card {}" data-n="{}"><h4>Token by token <span>{}, coloured by the '
        'heaviest lobe</span></h4>{}{}<output class="ml-readout" aria-live="polite">Point at a word to '
        "see who wrote it; or focus the text and use the arrow keys.</output>{}{}</div>",
        kind, len(latest), count(len(trace), "token"), _legend(latest, colours),
        strip(latest, colours, KEYS), note, heat_map(latest, colours, done=done),
    )  # fmt: skip


def strip(trace: Sequence[TokenTrace], colours: Mapping[str, str], attributes: Markup = NO_KEYS) -> Markup:
    """The text, each token on its heaviest lobe's colour, as strong as its weight beside the
    greatest of all."""
    greatest = max((max(token.weights.values(), default=0.0) for token in trace), default=0.0) or 1.0
    tokens = joined(_token(i, token, colours, greatest) for i, token in enumerate(trace) if token.text)
    return html('<div class="ml-strip"{}>{}</div>', attributes, tokens)


def _token(index: int, token: TokenTrace, colours: Mapping[str, str], greatest: float) -> Markup:
    best, weight = max(token.weights.items(), key=lambda item: item[1], default=("", 0.0))
    strength = min(1.0, max(0.0, weight / greatest))
    return html(
        '<span data-i="{}" style="--c:{};--a:{:.0f}%" data-w="{weights}" title="{weights}">{}</span>',
        index, colour(colours.get(best), OTHERS), 75 * strength**1.5, token.text,
        weights=shares(token.weights) or "base model",
    )  # fmt: skip


def mean_weights(trace: Sequence[TokenTrace]) -> dict[str, float]:
    """Each lobe's mean weight over the tokens, heaviest first."""
    total: dict[str, float] = {}
    for token in trace:
        for name, weight in token.weights.items():
            total[name] = total.get(name, 0.0) + float(weight) / len(trace)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _legend(trace: Sequence[TokenTrace], colours: Mapping[str, str]) -> Markup:
    names = list(mean_weights(trace))[:8]
    return html(
        '<ul class="ml-legend">{}</ul>', legend_items([(name, colours.get(name, "")) for name in names], 22)
    )


def legend_items(lobes: Sequence[tuple[str, str]], columns: int) -> Markup:
    """(name, colour) of lobes as list items, each after a dot of its colour."""
    return joined(
        html('<li style="--c:{}"><i></i>{}</li>', colour(tone, OTHERS), short(name, columns))
        for name, tone in lobes
    )


# ---- the map -------------------------------------------------------------------------------------


def heat_map(trace: Sequence[TokenTrace], colours: Mapping[str, str], *, done: bool = True) -> Markup:
    """Layers (first at the top) × tokens: in each cell the heaviest lobe's colour, as strong as its weight.

    When the answer is complete, a row of radio buttons shows one lobe's weights alone.
    """
    names = list(trace[0].weights)
    layers = [token.layers for token in trace if _fits(token.layers, trace[0].layers)]
    if not layers or layers[0].shape[1] != len(names):
        return Markup()
    weights = np.clip(np.nan_to_num(np.stack(layers).astype(np.float32)), 0, 1).transpose(
        1, 0, 2
    )  # (layers, tokens, lobes)
    rows, tokens = weights.shape[:2]
    tones = [colour(colours.get(name), OTHERS) for name in names]
    by_weight = np.argsort(-weights.mean((0, 1)), kind="stable").tolist()
    drawn = sorted(by_weight[:MOST_LOBES])
    pictures = [("Heaviest lobe", _heaviest(weights[:, :, drawn], [tones[i] for i in drawn]))]
    radios = Markup()
    if done:
        pictures += [(names[i], _alone(weights[:, :, i], tones[i])) for i in by_weight[:MOST_CHOICES]]
        radios = _radios([name for name, _ in pictures], f"hm{zlib.crc32(pictures[0][1].encode()):08x}")
    images = joined(
        html('<img alt="{}: weights in {} layers over {} tokens" src="{}">', name, rows, tokens, source)
        for name, source in pictures
    )
    return html(
        '<figure class="ml-heat"><figcaption>Layer by layer <span>{} × {}</span></figcaption>{}<div '
        'class="ml-heat-frame" style="--rows:{}"><em>first layer</em><div>{}<i></i></div><em>last</em>'
        "</div></figure>",
        count(rows, "adapted layer"), count(tokens, "token"), radios, rows, images,
    )  # fmt: skip


def _radios(names: Sequence[str], group: str) -> Markup:
    """Which of the pictures is shown; the first one at the beginning."""
    checked = [" checked", *[""] * len(names)]
    choices = joined(
        html(
            '<label><input type="radio" name="{}" value="{}"{}><span>{}</span></label>',
            group,
            i,
            checked[i],
            short(name, 18),
        )
        for i, name in enumerate(names)
    )
    return html(
        '<div class="ml-heat-choice" role="radiogroup" aria-label="What the map shows">{}</div>', choices
    )


def _fits(layers: Any, first: Any) -> bool:
    return (
        isinstance(layers, np.ndarray)
        and layers.ndim == 2
        and layers.shape == first.shape
        and layers.size > 0
    )


def _heaviest(weights: Array, tones: Sequence[str]) -> str:
    """(layers, tokens, lobes) → data URI; palette entry = lobe × level."""
    best = weights.argmax(-1)
    level = np.rint(weights.max(-1) * (LEVELS - 1)).astype(int)
    return _png((best * LEVELS + level).astype(np.uint8), _palette(tones))


def _alone(weights: Array, tone: str) -> str:
    return _png(np.rint(weights * (LEVELS - 1)).astype(np.uint8), _palette([tone]))


def _palette(tones: Sequence[str]) -> Pixels:
    """(colours × LEVELS, RGBA): LEVELS shades of each colour, from transparent to opaque."""
    shades = [
        (*bytes.fromhex(tone[1:]), round(255 * k / (LEVELS - 1))) for tone in tones for k in range(LEVELS)
    ]
    return np.array(shades, np.uint8)


def _png(pixels: Pixels, palette: Pixels) -> str:
    """An indexed PNG with transparency, as a data URI."""
    picture = Image.fromarray(pixels, "L")
    picture.putpalette(palette[:, :3].tobytes())
    file = BytesIO()
    picture.save(file, "PNG", transparency=palette[:, 3].tobytes())
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
