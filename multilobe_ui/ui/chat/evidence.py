"""What made a router decide, as sections of the why panel: words, neighbours, complexity, stages. Pure; all text is escaped.

Each section asks for the evidence it draws and is "" without it, so a new router shows what it has and nothing breaks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...app.views import TokenTrace
from ...routing.decision import RoutingDecision
from ..kit.complexity_card import complexity_section
from ..kit.text import colour, escape, is_number, percent, score, short, stage, sure
from .token_view import strip

MOST_MATCHES = 12
MOST_NEIGHBOURS = 3
LONGEST_PROMPT = 600
MOST_TOKENS = 200

Colours = Mapping[str, str]


def evidence_sections(decision: RoutingDecision, colours: Colours, prompt: str = "") -> str:
    """All that `decision.evidence` holds, but for scores, which are bars elsewhere."""
    parts = [
        chain_section(decision.evidence.get("stages", ()), colours),
        keyword_section(decision, colours, prompt),
        complexity_section(decision.evidence, colours.get(decision.chosen or "")),
        tokens_section(decision.evidence.get("tokens", ()), colours, decision.reason if decision.per_token else ""),
        nearest_section(decision.evidence.get("nearest", ()), colours),
    ]
    return "".join(f"<section>{part}</section>" for part in parts if part)


# ---- words -----------------------------------------------------------------------------------------------------------


def keyword_section(decision: RoutingDecision, colours: Colours, prompt: str) -> str:
    """The prompt with the words that spoke for a lobe in its colour; a list of them where the prompt is not at hand."""
    if "matches" not in decision.evidence:
        return ""
    matches: list[Mapping[str, Any]] = [m for m in decision.evidence["matches"] if isinstance(m, Mapping)]
    heading = "<h4>Words that speak for a lobe</h4>"
    text = str(decision.evidence.get("prompt") or prompt)
    if not matches:
        return f'{heading}<p class="ml-reason">None of its words is typical of a lobe.</p>'
    figure = highlighted(text, matches, colours)
    return heading + figure + _terms(matches, colours)


def highlighted(text: str, matches: Sequence[Mapping[str, Any]], colours: Colours) -> str:
    """The text with its matches marked. "" unless every match lies in it: then they are of another text."""
    spans: list[tuple[int, int, Mapping[str, Any]]] = []
    for match in sorted(matches, key=lambda m: (-float(m["weight"]), m["start"])):
        start, end = int(match["start"]), int(match["end"])
        if not 0 <= start < end <= len(text) or _bare(text[start:end]) != _bare(str(match["term"])):
            return ""
        if all(end <= s or start >= e for s, e, _ in spans):  # of words that overlap, the weightiest is marked
            spans.append((start, end, match))
    parts, place = [], 0
    for start, end, match in sorted(spans, key=lambda span: span[0]):
        if end > LONGEST_PROMPT:
            break
        said = f"{match['lobe']}: {float(match['weight']):+.1f}"
        look = f'style="--c:{colour(colours.get(str(match["lobe"])))}" title="{escape(said)}"'
        parts += [escape(text[place:start]), f"<mark {look}>{escape(text[start:end])}</mark>"]
        place = end
    rest = text[place:]
    left = max(0, LONGEST_PROMPT - place)
    parts.append(escape(rest if len(rest) <= left else rest[:left].rstrip() + "…"))
    return f'<p class="ml-marked">{"".join(parts)}</p>'


def _terms(matches: Sequence[Mapping[str, Any]], colours: Colours) -> str:
    """Each word once, with its lobe and weight: what the colours say, for those who do not see them."""
    once = {(str(m["term"]), str(m["lobe"])): float(m["weight"]) for m in matches}
    order = sorted(once, key=lambda key: -once[key])
    items = "".join(
        f'<li style="--c:{colour(colours.get(lobe))}"><i></i>{escape(short(term, 24))} <b>{once[term, lobe]:+.1f}</b>'
        f"<span> {escape(short(lobe, 20))}</span></li>"
        for term, lobe in order[:MOST_MATCHES]
    )
    more = f"<li>and {len(order) - MOST_MATCHES} more</li>" if len(order) > MOST_MATCHES else ""
    return f'<ul class="ml-legend ml-terms">{items}{more}</ul>'


def _bare(text: str) -> str:
    """A text as terms are compared: letters and digits only, in one case."""
    return "".join(c for c in unicodedata.normalize("NFKC", text.casefold()) if c.isalnum())


# ---- neighbours, stages ----------------------------------------------------------------------------------------------


def nearest_section(rows: Sequence[Mapping[str, Any]], colours: Colours) -> str:
    """The training prompts most like this one."""
    items = [_neighbour(row, colours) for row in list(rows)[:MOST_NEIGHBOURS]]
    if not items:
        return ""
    return f'<h4>Nearest training prompts <span>cosine</span></h4><ul class="ml-near">{"".join(items)}</ul>'


def _neighbour(row: Mapping[str, Any], colours: Colours) -> str:
    lobe, value = str(row.get("lobe", "")), row.get("score")
    said = score(float(value)) if isinstance(value, (int, float)) else ""
    words = short(str(row.get("prompt", "")), 90)
    look = f'style="--c:{colour(colours.get(lobe))}" title="{escape(lobe)}"'
    return f"<li {look}><i></i><span>{escape(words)}</span><b>{said}</b></li>"


def tokens_section(tokens: Sequence[Mapping[str, Any]], colours: Colours, reason: str = "") -> str:
    """The message as a router that weighs tokens read it: [{text, weights}], and what it says of that."""
    read = [TokenTrace(str(t.get("text", "")), t.get("weights", {}), np.zeros((0, 0))) for t in list(tokens)[:MOST_TOKENS]]
    said = f'<p class="ml-reason">{escape(reason)}</p>' if reason else ""
    return f"<h4>Your message, token by token</h4>{strip(read, colours, keys=False)}{said}" if read else ""


def chain_section(stages: Sequence[Mapping[str, Any]], colours: Colours) -> str:
    """Who was asked, in order, and whether that was sure enough to end it: [{router, chosen, confidence, threshold}]."""
    if not stages:
        return ""
    items = []
    for asked in stages:
        lobe, confidence = asked.get("chosen"), asked.get("confidence")
        bar = asked.get("threshold")
        estimate = is_number(confidence) and (lobe is not None or confidence > 0)  # an unfitted stage has none
        said = sure(float(confidence), lobe is None) if estimate else ""  # type: ignore[arg-type]
        asks = f", {percent(float(bar))} needed" if is_number(bar) and bar else ""
        look = f"--c:{colour(colours.get(str(lobe)))}" if lobe else "--c:var(--ml-base)"
        items.append(
            f'<li style="{look}"><i></i><span>{escape(stage(str(asked.get("router", ""))))}: '
            f"{escape(lobe or 'base model')}</span><b>{said}{asks}</b></li>"
        )
    return f'<h4>Asked in turn</h4><ol class="ml-near">{"".join(items)}</ol>'
