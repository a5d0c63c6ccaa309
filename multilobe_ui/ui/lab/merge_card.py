"""The Merge lab in pictures: ways to combine lobes as cards, and what a merge costs. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluation.frames import merge_frame
from ...merging.kinds import COMBINATIONS
from ..kit.figures import share_bar
from ..kit.frames import element, frame_table, row_head, td
from ..kit.html import Markup, around, html, joined
from ..kit.table import dot
from ..kit.text import NOTHING, big, colour, count, duration, is_number, loss, score, short, size
from .parts import Colours, Result

FAMILIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Add them up", "the weighted sum, exact or nearly", ("cat", "svd", "linear")),
    (
        "Trim and vote",
        "small numbers go, and signs that disagree",
        ("magnitude_prune", "magnitude_prune_svd", "ties", "ties_svd"),
    ),
    ("Drop by chance", "what is left is enlarged", ("dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd")),
)
BANDS = ((1e-4, "exact"), (0.1, "close"), (0.5, "part is lost"), (1.0, "much is lost"))
"""Upper ends of the error of the delta, in words."""


# ---- before: weights and ways to combine ---------------------------------------------------------


def weight_card(weights: Mapping[str, float], names: Sequence[str], colours: Colours) -> Markup:
    """The sum of the weights and their shares, and each slider in its lobe's colour."""
    if not names:
        return Markup(
            '<p class="merge-hint">Choose the lobes that the new one is made of: two or more, or one to make '
            'it weaker.</p>'
        )
    used = {name: weight for name, weight in weights.items() if weight}
    total, below = "All weights are zero: move a slider", ""
    if used:
        total = f"Weights add up to {score(math.fsum(used.values()))}"
    if any(weight < 0 for weight in used.values()):
        below = "a weight below zero takes a lobe's habits away"
    tones = joined(
        html("#merge-w{}{{--slider-color:{}}}", i, colour(colours.get(name))) for i, name in enumerate(names)
    )
    return html(
        '<style>{}</style><p class="merge-total"><b>{}</b> <span class="ml-faint">{}</span></p>{}',
        tones, total, below, share_bar(used, colours),
    )  # fmt: skip


def combination_cards(options: Mapping[str, str], picked: str) -> Markup:
    """Every way to combine as a card that can be clicked; one that cannot be done says why.
    `options`: name → "" or the reason."""
    shown = {name for _, _, names in FAMILIES for name in names}
    families = [*FAMILIES, ("More", "", tuple(name for name in COMBINATIONS if name not in shown))]
    blocks = joined(
        html(
            "<section><h4>{} <span>{}</span></h4><div>{}</div></section>",
            title, about, joined(_card(name, options.get(name, ""), name == picked) for name in names if name in COMBINATIONS),
        )
        for title, about, names in families
        if names
    )  # fmt: skip
    return html('<div class="merge-types" role="radiogroup" aria-label="How to combine the lobes">{}</div>', blocks)


def _card(name: str, reason: str, picked: bool) -> Markup:
    about = COMBINATIONS[name]
    asks = {"exact": name == "cat", "density": about.prunes, "rank": about.chooses_rank, "seed": "dare" in name}
    mark = around("<em>{}</em>", ", ".join(word for word, used in asks.items() if used))
    body = html("<b>{}</b>{}<span>{}</span>", name, mark, about.says)
    if reason:
        why = reason[:1].upper() + reason[1:].removesuffix(".") + "."
        return html(
            '<div class="merge-type is-off" role="radio" aria-checked="false" '
            'aria-disabled="true">{}<small>{}</small></div>', body, why,
        )  # fmt: skip
    return html(
        '<button type="button" class="merge-type" role="radio" aria-checked="{}" data-row="{}" '
        'title="{}">{}</button>', str(picked).lower(), name, about.source, body,
    )  # fmt: skip


# ---- after: what it costs ------------------------------------------------------------------------


def merge_result(result: Result, colours: Colours) -> Markup:
    """A merge that was tried: size, error of its delta, losses beside its parents'."""
    result = {**result, "parents": _parents(result)}
    state, stopped = Markup("<em>not kept yet</em>"), Markup()
    if result.get("kept"):
        state = html('<em class="is-kept">kept as {}</em>', result["kept"])
    if result.get("stopped"):
        stopped = Markup('<p class="merge-note">Stopped before every loss was measured.</p>')
    return html(
        '<div class="merge-card"><header><h4>{}</h4>{}</header><p class="ml-faint">{}</p>{}{}'
        '<p class="merge-advice" role="status">{}</p><div '
        'class="merge-pair"><div>{}{}</div><div>{}{}</div></div></div>', result.get("combination", ""), state,
        result.get("says", ""), share_bar(dict(result["parents"]), colours, "Made of"), _facts(result),
        result.get("advice", ""), _losses(result, colours), stopped, _scale(result.get("error")),
        _layers(result.get("layer_errors") or {}),
    )  # fmt: skip


def _facts(result: Result) -> Markup:
    facts = {
        "Rank": f"{result.get('rank', 0):,}",
        "Size": size(result.get("nbytes")),
        "Numbers": big(result.get("parameters") or 0),
    }
    if result.get("density") is not None:
        facts["Density"] = f"{result['density']:.2f}"
    if "dare" in str(result.get("combination")):
        facts["Seed"] = str(result.get("seed"))
    facts["Took"] = duration(result.get("seconds"))
    listed = joined(html("<div><dt>{}</dt><dd>{}</dd></div>", *fact) for fact in facts.items())
    return html('<dl class="merge-facts">{}</dl>', listed)


def _scale(error: Any) -> Markup:
    """The error of the delta on a scale from exact to lost."""
    if not is_number(error):
        return Markup()
    here = next((i for i, (end, _) in enumerate(BANDS) if error <= end), len(BANDS) - 1)
    kinds = {here: "is-here"}
    words = joined(element("span", name, kind=kinds.get(i)) for i, (_, name) in enumerate(BANDS))
    low, high = [0.0, *(end for end, _ in BANDS)][here : here + 2]
    part = (error - low) / (high - low)
    if here == 1:
        part = math.log(error / low) / math.log(high / low)
    place = 100 * (here + min(1.0, max(0.0, part))) / len(BANDS)
    return html(
        "<section><h4>Error of the delta <span>its distance from the exact weighted sum, as a share of that "
        "sum: 0 is the sum "
        'itself, 1 as far off as no lobe at all</span></h4><div class="merge-scale" role="img" '
        'aria-label="Error of the delta {0}: {1}" '
        'style="--at:{2:.1f}%;--shift:{3:.0f}%"><div>{4}</div><i></i><b>{0}</b></div></section>',
        _small(error), BANDS[here][1], place, -min(96.0, max(4.0, place)), words,
    )  # fmt: skip


def _losses(result: Result, colours: Colours) -> Markup:
    """A row for each parent's data: base, every parent, the exact mixture, the merge; the best is marked."""
    note = around(
        '<p class="merge-note">No rows of {} are known, so nothing can be measured on them.</p>',
        ", ".join(map(str, result.get("without_rows") or ())),
    )
    rows = [row for row in result.get("losses") or () if isinstance(row, Mapping)]
    if not rows:
        return note
    parents = dict(result["parents"])
    about = {"gain kept": "share that is left of the parent's own gain over the base"}
    frame = merge_frame({**result, "losses": rows})
    least = frame.drop(columns="gain kept").astype(float).round(3).min(axis=1)

    def cell(dataset: str, column: str, value: Any) -> Markup:
        kind = {"exact mix": "mixture", "gain kept": "gain", "base": "base", "merged": "merged"}.get(column, "parent")
        if kind == "gain":
            return td(_percent(value), kind=kind)
        if is_number(value) and round(value, 3) == least[dataset]:
            kind += " is-best"
        return td(loss(value), kind=kind)

    def head(column: str) -> Markup:
        if column in parents:
            return element("th", html("{}<small>{:+.2f}</small>", _name(column, colours, 14), parents[column]))
        if column == "merged":
            return element("th", column, kind="merged")
        return element("th", column, title=about.get(column))

    table = frame_table(
        frame, "merge-table", cell=cell, head=head, corner=element("th", "data of"), scroll="merge-scroll",
        row=lambda name, cells: html("<tr>{}{}</tr>", row_head(_name(name, colours, 20)), cells),
    )  # fmt: skip
    which = "held-out rows"
    if not all(row.get("held_out") for row in rows):
        which = "rows (some lobes held none out, then trained ones)"
    return html(
        "<section><h4>Loss on the data of each parent <span>nats per answer token, lower is better; {:,} "
        "{}</span></h4>{}{}</section>",
        sum(row.get("rows", 0) for row in rows), which, table, note,
    )  # fmt: skip


def _percent(gain: float | None) -> str:
    if gain is None:
        return NOTHING
    return f"{100 * gain:.0f} %"


def _layers(errors: Mapping[str, Any]) -> Markup:
    """A strip of the error in every layer: a line for each kind of layer, from the first to the last."""
    measured = {module: error for module, error in errors.items() if is_number(error)}
    lost = [module for module, error in errors.items() if error is None]
    worst = max(measured, key=lambda module: measured[module], default=None)
    if worst is None or (measured[worst] <= BANDS[0][0] and not lost):
        return Markup()
    kinds: dict[str, dict[int, tuple[float, str]]] = {}
    for i, module in enumerate(errors):
        if module in measured or module in lost:
            line = kinds.setdefault(module.rsplit(".", 1)[-1], {})
            place = next((int(number) for number in re.findall(r"\.(\d+)(?=\.)", f".{module}")), i)
            line[place] = max(line.get(place, (0.0, "")), (measured.get(module, math.inf), module))
    lines = joined(
        html("<span>{}</span><div>{}</div>", kind, joined(_strip_cell(*line[place]) for place in sorted(line)))
        for kind, line in kinds.items()
    )
    more = ""
    if lost:
        more = f"; {count(len(lost), 'layer')} where the sum is zero and the merge is not"
    return html(
        "<section><h4>Error by layer <span>first to last; worst {} in {}{}</span></h4>"
        '<div class="merge-layers">{}</div></section>',
        _small(measured[worst]), worst, more, lines,
    )  # fmt: skip


def _strip_cell(error: float, module: str) -> Markup:
    words = "the sum is zero here"
    if math.isfinite(error):
        words = _small(error)
    return html('<i style="--a:{:.0f}%" title="{}: {}"></i>', 100 * min(1.0, error), module, words)


# ---- small things --------------------------------------------------------------------------------


def _parents(result: Result) -> list[tuple[str, float]]:
    pairs = [pair for pair in result.get("parents") or () if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return [(str(name), float(weight)) for name, weight in pairs if is_number(weight)]


def _name(name: str, colours: Colours, columns: int) -> Markup:
    return html(
        '<span class="merge-name" title="{}">{}{}</span>', name, dot(colours.get(name, "")),
        short(name, columns)
    )


def _small(value: float) -> str:
    """'0', '0.0004', '0.31', '2.4'."""
    if value < 5e-6:
        return "0"
    if value < 0.001:
        return f"{value:.1g}"
    if value < 0.1:
        return f"{value:.3f}"
    return score(value)
