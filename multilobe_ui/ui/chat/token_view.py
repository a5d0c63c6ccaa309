"""An answer token by token: a strip of its text and a map of layers × tokens, coloured by the lobes' weights. Pure.

The map is a small indexed PNG made here: a plotly heat-map of 60 layers × 300 tokens is a megabyte at every update and
takes the page's breath away, this one is some kilobytes and streams with the text.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kit.text import colour, count, escape, shares, short

if TYPE_CHECKING:
    from ...app.views import TokenTrace

MOST_SHOWN = 600
"""Latest tokens that are drawn."""
MOST_LOBES = 15
LEVELS = 16
MOST_CHOICES = 6
OTHERS = "#8a93a0"

Array = np.ndarray[Any, Any]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

# Hovering, or the arrow keys on the strip, says a token's weights below it and marks its column in the map.
SCRIPT = """
const show = (token) => {
  const card = element.querySelector('.ml-token-card');
  if (!card || !token) return;
  element.querySelectorAll('.ml-strip .is-here').forEach((other) => other.classList.remove('is-here'));
  token.classList.add('is-here');
  card.style.setProperty('--x', (Number(token.dataset.i) + 0.5) / Number(card.dataset.n));
  card.classList.add('has-here');
  card.querySelector('.ml-readout').textContent =
    '“' + (token.textContent.trim() || '␣') + '”  ' + token.dataset.w;
};
element.addEventListener('mouseover', (event) => show(event.target.closest('[data-w]')));
element.addEventListener('click', (event) => show(event.target.closest('[data-w]')));
element.addEventListener('keydown', (event) => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!step || !event.target.closest('.ml-strip')) return;
  event.preventDefault();
  const all = [...element.querySelectorAll('.ml-strip [data-w]')];
  const now = all.findIndex((token) => token.classList.contains('is-here'));
  show(all[Math.min(all.length - 1, Math.max(0, now + step))]);
});
"""


def token_card(trace: Sequence[TokenTrace], colours: Mapping[str, str], *, done: bool = True) -> str:
    """Strip, readout and map; "" for an answer whose tokens were not weighed one by one."""
    if not trace:
        return ""
    shown = trace[-MOST_SHOWN:]
    cut = len(trace) - len(shown)
    note = f'<p class="ml-note">The latest {len(shown)} of {len(trace):,} tokens.</p>' if cut else ""
    live = "" if done else " is-live"
    legend = _legend(shown, colours)
    hint = "Point at a word to see who wrote it; or focus the text and use the arrow keys."
    return (
        f'<div class="ml-why ml-token-card{live}" data-n="{len(shown)}"><h4>Token by token <span>'
        f"{count(len(trace), 'token')}, coloured by the heaviest lobe</span></h4>{legend}{strip(shown, colours)}"
        f'<output class="ml-readout" aria-live="polite">{hint}</output>{note}{heat_map(shown, colours, done=done)}</div>'
    )


def strip(trace: Sequence[TokenTrace], colours: Mapping[str, str], *, keys: bool = True) -> str:
    """The text, each token on its heaviest lobe's colour, as strong as its weight beside the greatest of all.

    keys: the arrow keys move in it.
    """
    top = max((max(token.weights.values(), default=0.0) for token in trace), default=0.0) or 1.0
    focus = ' tabindex="0" role="group" aria-label="The answer, token by token. Arrow keys move."' if keys else ""
    return (
        f'<div class="ml-strip"{focus}>'
        + "".join(_token(i, token, colours, top) for i, token in enumerate(trace))
        + "</div>"
    )


def _token(place: int, token: TokenTrace, colours: Mapping[str, str], top: float) -> str:
    if not token.text:
        return ""
    said = escape(shares(token.weights) or "base model")
    best = max(token.weights, key=lambda name: token.weights[name], default=None)
    weight = min(1.0, max(0.0, token.weights[best] / top)) if best else 0.0
    look = f"--c:{colour(colours.get(best or ''), OTHERS)};--a:{75 * weight**1.5:.0f}%"
    return f'<span data-i="{place}" style="{look}" data-w="{said}" title="{said}">{escape(token.text)}</span>'


def mean_weights(trace: Sequence[TokenTrace]) -> dict[str, float]:
    """Each lobe's mean weight over the tokens, heaviest first."""
    total: dict[str, float] = {}
    for token in trace:
        for name, weight in token.weights.items():
            total[name] = total.get(name, 0.0) + float(weight) / len(trace)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _legend(trace: Sequence[TokenTrace], colours: Mapping[str, str]) -> str:
    means = mean_weights(trace)
    items = "".join(
        f'<li style="--c:{colour(colours.get(name), OTHERS)}"><i></i>{escape(short(name, 22))}</li>'
        for name in list(means)[:8]
    )
    return f'<ul class="ml-legend">{items}</ul>'


# ---- the map ---------------------------------------------------------------------------------------------------------


def heat_map(trace: Sequence[TokenTrace], colours: Mapping[str, str], *, done: bool = True) -> str:
    """Layers (first at the top) × tokens: in each cell the heaviest lobe's colour, as strong as its weight.

    When the answer is complete, a row of radio buttons shows one lobe's weights alone.
    """
    names = list(trace[0].weights)
    layers = [token.layers for token in trace if _fits(token.layers, trace[0].layers)]
    if not layers or layers[0].shape[1] != len(names):
        return ""
    weights = np.clip(np.nan_to_num(np.stack(layers).astype(np.float32)), 0, 1).transpose(1, 0, 2)  # (layers, tokens, lobes)
    rows, tokens = weights.shape[:2]
    means = weights.mean((0, 1))
    kept = sorted(np.argsort(-means, kind="stable")[:MOST_LOBES].tolist())
    tones = [colour(colours.get(names[i]), OTHERS) for i in kept]
    pictures = [("Heaviest lobe", _heaviest(weights[:, :, kept], tones))]
    if done:
        for i in sorted(kept, key=lambda i: -means[i])[:MOST_CHOICES]:
            pictures.append((names[i], _alone(weights[:, :, i], colour(colours.get(names[i]), OTHERS))))
    group = f"hm{zlib.crc32(pictures[0][1].encode()):08x}"
    chosen = "".join(
        f'<label><input type="radio" name="{group}" value="{i}"{" checked" if i == 0 else ""}>'
        f"<span>{escape(short(name, 18))}</span></label>"
        for i, (name, _) in enumerate(pictures)
    )
    radios = f'<div class="ml-heat-choice" role="radiogroup" aria-label="What the map shows">{chosen}</div>' if done else ""
    images = "".join(
        f'<img alt="{escape(name)}: weights in {rows} layers over {tokens} tokens" src="{source}">'
        for name, source in pictures
    )
    said = f"{count(rows, 'adapted layer')} × {count(tokens, 'token')}"
    return (
        f'<figure class="ml-heat"><figcaption>Layer by layer <span>{said}</span></figcaption>{radios}'
        f'<div class="ml-heat-frame" style="--rows:{rows}"><em>first layer</em><div>{images}<i></i></div><em>last</em></div>'
        "</figure>"
    )


def _fits(layers: Any, first: Any) -> bool:
    return isinstance(layers, np.ndarray) and layers.ndim == 2 and layers.shape == first.shape and layers.size > 0


def _heaviest(weights: Array, tones: Sequence[str]) -> str:
    """(layers, tokens, lobes) → data URI; palette entry = lobe × level."""
    best = weights.argmax(-1)
    level = np.rint(weights.max(-1) * (LEVELS - 1)).astype(int)
    return _png((best * LEVELS + level).astype(np.uint8), _palette(tones))


def _alone(weights: Array, tone: str) -> str:
    return _png(np.rint(weights * (LEVELS - 1)).astype(np.uint8), _palette([tone]))


def _palette(tones: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """LEVELS shades of each colour, from transparent to opaque."""
    rgb = [tuple(int(tone[i : i + 2], 16) for i in (1, 3, 5)) for tone in tones]
    return [(r, g, b, round(255 * k / (LEVELS - 1))) for r, g, b in rgb for k in range(LEVELS)]


def _png(pixels: Pixels, palette: Sequence[tuple[int, int, int, int]]) -> str:
    """An indexed PNG with transparency, as a data URI (RFC 2083: signature, IHDR, PLTE, tRNS, IDAT, IEND)."""
    height, width = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1).tobytes()  # filter 0 before every row
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(v for entry in palette for v in entry[:3])),
        (b"tRNS", bytes(entry[3] for entry in palette)),
        (b"IDAT", zlib.compress(rows, 6)),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()
