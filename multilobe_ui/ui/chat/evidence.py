"""What made a router decide, as sections of the why panel: words, neighbours, complexity, stages. Pure.

Each section asks for the evidence it draws and is empty without it, so a new router shows what it
has and nothing breaks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...app.views import TokenTrace
from ...routing.decision import RoutingDecision
from ..kit.complexity_card import complexity_section
from ..kit.figures import BASE_COLOUR
from ..kit.html import Markup, and_more, around, html, joined
from ..kit.text import colour, cut, is_number, percent, score, short, stage, sure
from .token_view import strip

MOST_MATCHES = 12
MOST_NEIGHBOURS = 3
LONGEST_PROMPT = 600
MOST_TOKENS = 200

Colours = Mapping[str, str]


def evidence_sections(decision: RoutingDecision, colours: Colours, prompt: str = "") -> Markup:
    """All that `decision.evidence` holds, but for scores, which are bars elsewhere."""
    evidence = decision.evidence
    parts = [
        chain_section(evidence.get("stages", ()), colours),
        keyword_section(decision, colours, prompt),
        complexity_section(evidence, colours.get(decision.chosen or "")),
        tokens_section(decision, colours),
        nearest_section(evidence.get("nearest", ()), colours),
    ]
    return joined(around("<section>{}</section>", part) for part in parts)


# ---- words ---------------------------------------------------------------------------------------


def keyword_section(decision: RoutingDecision, colours: Colours, prompt: str) -> Markup:
    """The prompt with the words that spoke for a lobe in its colour; a list of them where the
    prompt is not at hand."""
    if "matches" not in decision.evidence:
        return Markup()
    matches = [match for match in decision.evidence["matches"] if isinstance(match, Mapping)]
    figure = Markup('<p class="ml-reason">None of its words is typical of a lobe.</p>')
    if matches:
        text = str(decision.evidence.get("prompt") or prompt)
        figure = highlighted(text, matches, colours) + _terms(matches, colours)
    return Markup("<h4>Words that speak for a lobe</h4>") + figure


def highlighted(text: str, matches: Sequence[Mapping[str, Any]], colours: Colours) -> Markup:
    """The text with its matches marked. Empty unless every match lies in it: then they are of
    another text."""
    spans: list[tuple[int, int, Mapping[str, Any]]] = []
    for match in sorted(matches, key=lambda m: (-float(m["weight"]), m["start"])):
        start, end = int(match["start"]), int(match["end"])
        if not 0 <= start < end <= len(text) or _bare(text[start:end]) != _bare(str(match["term"])):
            return Markup()
        if all(
            end <= s or start >= e for s, e, _ in spans
        ):  # of words that overlap, the weightiest is marked
            spans.append((start, end, match))
    parts: list[str] = []
    position = 0
    for start, end, match in sorted(spans, key=lambda span: span[0]):
        if end > LONGEST_PROMPT:
            break
        mark = html(
            '<mark style="--c:{}" title="{}: {:+.1f}">{}</mark>',
            colour(colours.get(str(match["lobe"]))), match["lobe"], float(match["weight"]), text[start:end],
        )  # fmt: skip
        parts += [text[position:start], mark]
        position = end
    parts.append(cut(text[position:], LONGEST_PROMPT - position + 1))
    return html('<p class="ml-marked">{}</p>', joined(parts))


def _terms(matches: Sequence[Mapping[str, Any]], colours: Colours) -> Markup:
    """Each word once, with its lobe and weight: what the colours say, for those who do not see them."""
    once = {(str(m["term"]), str(m["lobe"])): float(m["weight"]) for m in matches}
    order = sorted(once, key=lambda key: -once[key])
    items = joined(
        html(
            '<li style="--c:{}"><i></i>{} <b>{:+.1f}</b><span> {}</span></li>',
            colour(colours.get(lobe)), short(term, 24), once[term, lobe], short(lobe, 20),
        )
        for term, lobe in order[:MOST_MATCHES]
    )  # fmt: skip
    more = and_more("<li>and {} more</li>", len(order) - MOST_MATCHES)
    return html('<ul class="ml-legend ml-terms">{}{}</ul>', items, more)


def _bare(text: str) -> str:
    """A text as terms are compared: letters and digits only, in one case."""
    return "".join(c for c in unicodedata.normalize("NFKC", text.casefold()) if c.isalnum())


# ---- neighbours, stages --------------------------------------------------------------------------


def nearest_section(rows: Sequence[Mapping[str, Any]], colours: Colours) -> Markup:
    """The training prompts most like this one."""
    return around(
        '<h4>Nearest training prompts <span>cosine</span></h4><ul class="ml-near">{}</ul>',
        joined(_neighbour(row, colours) for row in list(rows)[:MOST_NEIGHBOURS]),
    )


def _neighbour(row: Mapping[str, Any], colours: Colours) -> Markup:
    lobe, cosine, number = str(row.get("lobe", "")), row.get("score"), ""
    if isinstance(cosine, (int, float)):
        number = score(float(cosine))
    return html(
        '<li style="--c:{}" title="{}"><i></i><span>{}</span><b>{}</b></li>',
        colour(colours.get(lobe)), lobe, short(str(row.get("prompt", "")), 90), number,
    )  # fmt: skip


def tokens_section(decision: RoutingDecision, colours: Colours) -> Markup:
    """The message as a router that weighs tokens read it: [{text, weights}], and what it says of that."""
    tokens = [
        TokenTrace(str(token.get("text", "")), token.get("weights", {}), np.zeros((0, 0)))
        for token in list(decision.evidence.get("tokens", ()))[:MOST_TOKENS]
    ]
    if not tokens:
        return Markup()
    reason = Markup()
    if decision.per_token:
        reason = around('<p class="ml-reason">{}</p>', decision.reason)
    return html("<h4>Your message, token by token</h4>{}{}", strip(tokens, colours), reason)


def chain_section(stages: Sequence[Mapping[str, Any]], colours: Colours) -> Markup:
    """The routers of a chain in order, and whether each was sure enough to end it: [{router,
    chosen, confidence, threshold}]."""
    return around(
        '<h4>Asked in turn</h4><ol class="ml-near">{}</ol>',
        joined(_stage(verdict, colours) for verdict in stages),
    )


def _stage(verdict: Mapping[str, Any], colours: Colours) -> Markup:
    lobe, confidence, threshold = verdict.get("chosen"), verdict.get("confidence"), verdict.get("threshold")
    tone, certainty, needed = BASE_COLOUR, "", ""
    if lobe:
        tone = colour(colours.get(str(lobe)))
    if is_number(confidence) and (lobe is not None or confidence > 0):  # a stage that is not fitted has none
        certainty = sure(float(confidence), lobe is None)
    if is_number(threshold) and threshold:
        needed = f", {percent(float(threshold))} needed"
    return html(
        '<li style="--c:{}"><i></i><span>{}: {}</span><b>{}{}</b></li>',
        tone, stage(str(verdict.get("router", ""))), lobe or "base model", certainty, needed,
    )  # fmt: skip
