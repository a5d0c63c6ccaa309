"""The Merge lab in pictures: ways to combine lobes as cards, and what a merge costs. Pure functions from plain values to HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...merging.kinds import COMBINATIONS
from ..kit.figures import share_bar
from ..kit.table import dot
from ..kit.text import NOTHING, big, colour, count, duration, escape, is_number, loss, score, short, size

Colours = Mapping[str, str]
Result = Mapping[str, Any]

FAMILIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Add them up", "the weighted sum, exact or nearly", ("cat", "svd", "linear")),
    ("Trim and vote", "small numbers go, and signs that disagree", ("magnitude_prune", "magnitude_prune_svd", "ties", "ties_svd")),
    ("Drop by chance", "what is left is enlarged", ("dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd")),
)
BANDS = ((1e-4, "exact"), (0.1, "close"), (0.5, "part is lost"), (1.0, "much is lost"))
"""Upper ends of the error of the delta, in words."""


# ---- before: weights and ways to combine -------------------------------------------------------------------------------


def weight_card(weights: Mapping[str, float], names: Sequence[str], colours: Colours) -> str:
    """The sum of the weights and their shares, and each slider in its lobe's colour."""
    tones = "".join(f"#merge-w{i}{{--slider-color:{colour(colours.get(name))}}}" for i, name in enumerate(names))
    if not names:
        return '<p class="merge-hint">Choose the lobes that the new one is made of: two or more, or one to make it weaker.</p>'
    used = {name: weight for name, weight in weights.items() if weight}
    total = f"Weights add up to {score(math.fsum(used.values()))}" if used else "All weights are zero: move a slider"
    below = "a weight below zero takes a lobe's habits away" if any(weight < 0 for weight in used.values()) else ""
    said = f'<p class="merge-total"><b>{total}</b> <span class="ml-faint">{below}</span></p>'
    return f"<style>{tones}</style>{said}{share_bar(used, colours, 'Weights')}"


def combination_cards(options: Mapping[str, str], picked: str) -> str:
    """Every way to combine as a card that can be clicked; one that cannot be done says why. `options`: name → "" or the reason."""
    known = {name for _, _, names in FAMILIES for name in names}
    rest = tuple(name for name in COMBINATIONS if name not in known)
    families = (*FAMILIES, ("More", "", rest)) if rest else FAMILIES
    blocks = "".join(
        f'<section><h4>{escape(title)} <span>{escape(about)}</span></h4><div>'
        f'{"".join(_card(name, options.get(name, ""), name == picked) for name in names if name in COMBINATIONS)}</div></section>'
        for title, about, names in families
    )
    return f'<div class="merge-types" role="radiogroup" aria-label="How to combine the lobes">{blocks}</div>'


def _card(name: str, reason: str, picked: bool) -> str:
    about = COMBINATIONS[name]
    wants = [word for word, used in (("density", about.prunes), ("rank", about.chooses_rank), ("seed", "dare" in name)) if used]
    mark = f"<em>{escape(', '.join(wants))}</em>" if wants else "<em>exact</em>" if name == "cat" else ""
    body = f"<b>{escape(name)}</b>{mark}<span>{escape(about.says)}</span>"
    if reason:
        off = 'class="merge-type is-off" role="radio" aria-checked="false" aria-disabled="true"'
        return f"<div {off}>{body}<small>{_sentence(reason)}</small></div>"
    return (
        f'<button type="button" class="merge-type" role="radio" aria-checked="{str(picked).lower()}" data-row="{escape(name)}" '
        f'title="{escape(about.source)}">{body}</button>'
    )


def _sentence(words: str) -> str:
    return escape(words[:1].upper() + words[1:] + ("" if words.endswith(".") else "."))


# ---- after: what it costs ----------------------------------------------------------------------------------------------


def merge_result(result: Result, colours: Colours) -> str:
    """A merge that was tried: size, error of its delta, losses beside its parents'."""
    parents = _parents(result)
    kept = result.get("kept")
    state = f'<em class="is-kept">kept as {escape(kept)}</em>' if kept else '<em>not kept yet</em>'
    head = f"<header><h4>{escape(result.get('combination', ''))}</h4>{state}</header>"
    mix = share_bar(dict(parents), colours, "Made of")
    stopped = '<p class="merge-note">Stopped before every loss was measured.</p>' if result.get("stopped") else ""
    return (
        f'<div class="merge-card">{head}<p class="ml-faint">{escape(result.get("says", ""))}</p>{mix}{_facts(result)}'
        f'<p class="merge-advice" role="status">{escape(result.get("advice", ""))}</p><div class="merge-pair">'
        f"<div>{_losses(result, parents, colours)}{stopped}</div>"
        f'<div>{_scale(result.get("error"))}{_layers(result.get("layer_errors") or {})}</div></div></div>'
    )


def _facts(result: Result) -> str:
    seed = result.get("seed") if "dare" in str(result.get("combination")) else None
    facts = (
        ("Rank", f"{result.get('rank', 0):,}"),
        ("Size", size(result.get("nbytes"))),
        ("Numbers", big(result.get("parameters") or 0)),
        ("Density", None if result.get("density") is None else f"{result['density']:.2f}"),
        ("Seed", None if seed is None else str(seed)),
        ("Took", duration(result.get("seconds"))),
    )
    told = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts if value is not None)
    return f'<dl class="merge-facts">{told}</dl>'


def _scale(error: Any) -> str:
    """The error of the delta on a scale from exact to lost."""
    if not is_number(error):
        return ""
    here = next((i for i, (end, _) in enumerate(BANDS) if error <= end), len(BANDS) - 1)
    words = "".join(f'<span{" class=is-here" if i == here else ""}>{name}</span>' for i, (_, name) in enumerate(BANDS))
    low = BANDS[here - 1][0] if here else 0.0
    part = (error - low) / (BANDS[here][0] - low) if here != 1 else math.log(error / low) / math.log(BANDS[1][0] / low)
    place = 100 * (here + min(1.0, max(0.0, part))) / len(BANDS)
    said = escape(f"Error of the delta {_small(error)}: {BANDS[here][1]}")
    look = f"--at:{place:.1f}%;--shift:{-min(96.0, max(4.0, place)):.0f}%"
    return (
        "<section><h4>Error of the delta <span>its distance from the exact weighted sum, as a share of that sum: 0 is the sum "
        f'itself, 1 as far off as no lobe at all</span></h4><div class="merge-scale" role="img" aria-label="{said}" '
        f'style="{look}"><div>{words}</div><i></i><b>{_small(error)}</b></div></section>'
    )


def _losses(result: Result, parents: Sequence[tuple[str, float]], colours: Colours) -> str:
    """A row for each parent's data: base, every parent, the exact mixture, the merge; the best is marked."""
    rows = [row for row in result.get("losses") or () if isinstance(row, Mapping)]
    without = result.get("without_rows") or ()
    none = f"No rows of {escape(', '.join(map(str, without)))} are known, so nothing can be measured on them." if without else ""
    note = f'<p class="merge-note">{none}</p>' if none else ""
    if not rows:
        return note
    heads = "".join(f"<th>{_name(name, colours, 14)}<small>{weight:+.2f}</small></th>" for name, weight in parents)
    body = "".join(_loss_row(row, parents, colours) for row in rows)
    told = sum(row.get("rows", 0) for row in rows)
    which = "held-out rows" if all(row.get("held_out") for row in rows) else "rows (some lobes held none out, then trained ones)"
    return (
        f'<section><h4>Loss on the data of each parent <span>nats per answer token, lower is better; {told:,} {which}</span></h4>'
        f'<div class="merge-scroll"><table class="merge-table"><thead><tr><th>data of</th><th>base</th>{heads}<th>exact mix</th>'
        f'<th class="merged">merged</th><th title="share that is left of the parent\'s own gain over the base">gain kept</th>'
        f"</tr></thead><tbody>{body}</tbody></table></div>{note}</section>"
    )


def _loss_row(row: Result, parents: Sequence[tuple[str, float]], colours: Colours) -> str:
    values = [row.get("base"), *(row.get("parents") or ()), row.get("mixture"), row.get("merged")]
    known = [round(v, 3) for v in values if is_number(v)]
    best = min(known, default=None)
    kinds = ["base", *("parent" for _ in parents), "mixture", "merged"]
    cells = "".join(
        f'<td class="{kind}{" is-best" if is_number(value) and round(value, 3) == best else ""}">{loss(value)}</td>'
        for kind, value in zip(kinds, values, strict=False)
    )
    name = str(row.get("dataset", ""))
    return f'<tr><th scope="row">{_name(name, colours, 20)}</th>{cells}<td class="gain">{_gain(row, name, parents)}</td></tr>'


def _gain(row: Result, name: str, parents: Sequence[tuple[str, float]]) -> str:
    """How much of the parent's own gain over the base is left; nothing to say of one that is taken away."""
    place = next((i for i, (parent, weight) in enumerate(parents) if parent == name and weight > 0), None)
    own = row.get("parents") or ()
    if place is None or place >= len(own) or not all(map(is_number, (row.get("base"), row.get("merged"), own[place]))):
        return NOTHING
    gain = row["base"] - own[place]
    return f"{(row['base'] - row['merged']) / gain:.0%}".replace("%", " %") if gain > 0.01 else NOTHING


def _layers(errors: Mapping[str, Any]) -> str:
    """A strip of the error in every layer: a line for each kind of layer, from the first to the last."""
    known = {module: math.inf if error is None else error for module, error in errors.items() if error is None or is_number(error)}
    measured = {module: error for module, error in known.items() if math.isfinite(error)}
    worst = max(measured, key=lambda module: measured[module], default=None)
    lost = [module for module in known if module not in measured]
    if worst is None or (measured[worst] <= BANDS[0][0] and not lost):
        return ""
    kinds: dict[str, dict[int, tuple[str, float]]] = {}
    for i, (module, error) in enumerate(known.items()):
        number = re.search(r"\.(\d+)\.", f".{module}")
        line = kinds.setdefault(module.rsplit(".", 1)[-1], {})
        place = int(number[1]) if number else i
        if place not in line or line[place][1] < error:
            line[place] = module, error
    cells = {kind: "".join(_cell(*line[place]) for place in sorted(line)) for kind, line in kinds.items()}
    lines = "".join(f"<span>{escape(kind)}</span><div>{own}</div>" for kind, own in cells.items())
    more = f"; {count(len(lost), 'layer')} where the sum is zero and the merge is not" if lost else ""
    return (
        f'<section><h4>Error by layer <span>first to last; worst {_small(measured[worst])} in {escape(worst)}{more}</span></h4>'
        f'<div class="merge-layers">{lines}</div></section>'
    )


def _cell(module: str, error: float) -> str:
    said = f"{module}: {_small(error) if math.isfinite(error) else 'the sum is zero here'}"
    return f'<i style="--a:{100 * min(1.0, error):.0f}%" title="{escape(said)}"></i>'


# ---- small things ------------------------------------------------------------------------------------------------------


def _parents(result: Result) -> list[tuple[str, float]]:
    pairs = [pair for pair in result.get("parents") or () if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return [(str(name), float(weight)) for name, weight in pairs if is_number(weight)]


def _name(name: str, colours: Colours, columns: int) -> str:
    tone = colours.get(name, "")
    return f'<span class="merge-name" title="{escape(name)}">{dot(tone)}{escape(short(name, columns))}</span>'


def _small(value: float) -> str:
    """'0', '0.0004', '0.31', '2.4'."""
    return "0" if value < 5e-6 else f"{value:.1g}" if value < 0.001 else f"{value:.3f}" if value < 0.1 else score(value)

