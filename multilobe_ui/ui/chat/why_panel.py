"""The panel beside the conversation: which lobe answered, why, how sure the router was, and how
fast it all went. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...routing.decision import RoutingDecision
from ..kit.figures import BASE_COLOUR, mix_title, score_bars, share_bar
from ..kit.html import Markup, and_more, around, html, joined
from ..kit.ledger_card import cost_note
from ..kit.text import (
    answerer,
    certainty,
    colour,
    count,
    css_string,
    decision_sentence,
    estimated,
    milliseconds,
    percent,
    rate,
    shares,
    short,
    stage,
)
from .brain_map import brain_map
from .evidence import evidence_sections
from .reply import Reply
from .token_view import legend_items

if TYPE_CHECKING:
    pass

MOST_LABELS = 200
ROUTER_STAGES = ("keyword", "gate", "embedding", "logprob", "complexity")


def why_panel(reply: Reply) -> Markup:
    """The whole panel for one reply, under way or complete."""
    decision, state, figure = reply.decision, "live", Markup()
    if reply.done:
        state = "still"
    if decision.stage != "manual":
        figure = around("<section>{}</section>", _figure(reply))
    parts = [
        brain_map(reply.lobes, reply.weights, base=not reply.parts, state=state), _verdict(reply), figure,
        evidence_sections(decision, reply.colours, reply.prompt), _facts(reply),
    ]  # fmt: skip
    return _panel(joined(parts), reply.colour)


def idle_panel(lobes: Sequence[tuple[str, str]], loading: bool = False) -> Markup:
    """Before the first question."""
    legend = Markup()
    if lobes:
        words = "Send a message: the region that lights up is the lobe that answers, and the scores say why."
        legend = html(
            '<section><h4>{}</h4><ul class="ml-legend">{}{}</ul></section>', count(len(lobes), "lobe"),
            legend_items(lobes[:12], 28), and_more("<li>and {} more</li>", len(lobes) - 12),
        )  # fmt: skip
    elif loading:
        words = "The lobes are shown here once the model is loaded."
    else:
        words = "There is no lobe yet, so the base model answers everything. Train one in the Train tab."
    title = Markup('<div class="ml-verdict"><h3>Who will answer?</h3></div>')
    return _panel(html('{}{}<p class="ml-reason">{}</p>{}', brain_map(lobes), title, words, legend))


def waiting_panel(lobes: Sequence[tuple[str, str]], title: str, words: str) -> Markup:
    """While the base model loads, or the router thinks."""
    return _panel(
        html(
            '{}<div class="ml-verdict" aria-live="polite"><h3>{}</h3></div><p class="ml-reason">{}</p>',
            brain_map(lobes, state="routing"), title, words,
        )
    )  # fmt: skip


def labels(replies: Sequence[Reply], shown: int | None = None) -> Markup:
    """A stylesheet that names, above each answer in the conversation, the lobe that gave it.

    The messages themselves stay pure text, so that copying, editing and retrying never meet a label.
    """
    first = max(0, len(replies) - MOST_LABELS)
    rules = [_label(i + 1, reply) for i, reply in enumerate(replies) if i >= first]
    if shown is not None and 0 <= shown < len(replies) and len(replies) > 1:
        mark = f"border-left-color:{replies[shown].colour} !important"
        rules.append(f"#chat .bot-row:nth-child({shown + 1} of .bot-row) .bot.message{{{mark}}}")
    # Not escaped: a style element knows no entities, and css_string lets no word out of its quotes.
    return html('<div class="ml-labels"><style>{}</style></div>', Markup("".join(rules)))


def _label(number: int, reply: Reply) -> str:
    """A rule: who answered and how sure the router was of that; of a mix its weights, with a small
    bar of them."""
    bar = ""
    if len(reply.parts) > 1:
        words = f"Weights: {shares(reply.mix)}"
        bar = f"padding-left:46px !important;background:{_stripes(reply)} !important"
    else:
        words = " · ".join(filter(None, [short(_who(reply), 40), certainty(reply.decision)]))
    if reply.stopped:
        words += "  stopped"
    place = f'#chat .bot-row:nth-child({number} of .bot-row) [data-testid="bot"]'
    return f"{place}{{--c:{reply.colour}}}{place}::before{{content:{css_string(words)};{bar}}}"


def _stripes(reply: Reply) -> str:
    """A CSS background: the weights of a mix side by side in their lobes' colours, on the label's
    own ground."""
    total = sum(abs(reply.weights[name]) for name in reply.parts)
    stops, start = [], 0.0
    for name in reply.parts:
        end = start + 100 * abs(reply.weights[name]) / total
        stops.append(f"{colour(reply.colours.get(name))} {start:.1f}% {end:.1f}%")
        start = end
    bar = f"linear-gradient(90deg,{','.join(stops)}) 10px 50%/28px 9px no-repeat"
    return f"{bar},color-mix(in srgb,var(--c) 14%,transparent)"


def _panel(inside: Markup, tone: str = BASE_COLOUR) -> Markup:
    return html('<div class="ml-why" style="--c:{}">{}</div>', tone, inside)


def _verdict(reply: Reply) -> Markup:
    """Who answers, with the certainty of one choice or the weights of a mix, and why."""
    doing, who = "Answering now", _one(reply)
    if reply.done:
        doing = "Answered by"
    if len(reply.parts) > 1:
        who = _mix(reply)
    return html('<p class="ml-eyebrow">{}</p>{}<p class="ml-reason">{}</p>', doing, who, _why(reply))


def _one(reply: Reply) -> Markup:
    percentage, _, words = certainty(reply.decision).rpartition(" % ")
    beside = Markup()
    if percentage:
        beside = html('<div class="ml-sure"><b>{} %</b>{}</div>', percentage, words)
    return html('<div class="ml-verdict"><h3><i></i><span>{}</span></h3>{}</div>', _who(reply), beside)


def _mix(reply: Reply) -> Markup:
    bar = Markup()
    if not reply.decision.per_token:
        bar = share_bar(reply.mix, reply.colours, "Weights of the lobes", legend=len(reply.parts) > 3)
    return html(
        '<div class="ml-verdict"><h3 class="ml-mixed">{}</h3><div class="ml-sure">{}</div></div>{}',
        mix_title(reply.mix, reply.colours), _kind_of_weights(reply.decision), bar,
    )  # fmt: skip


def _who(reply: Reply) -> str:
    """The one that answers: the lobe that is left of a mix of which all else is negligible, or as decided."""
    if reply.parts:
        return reply.parts[0]
    return answerer(reply.decision)


def _kind_of_weights(decision: RoutingDecision) -> str:
    if decision.per_token:
        return "mean weights"
    if decision.stage == "manual":
        return "your weights"
    return "weights"


def _why(reply: Reply) -> str:
    """The router's sentence. Of tokens weighed one by one it is about the prompt, so the answer's
    own weights come first."""
    decision = reply.decision
    if not decision.per_token or not reply.parts:
        return decision_sentence(decision)
    best = reply.parts[0]
    weight = f"{best} has the greatest weight: {percent(reply.weights[best])}, the mean over {_over(reply)}."
    if decision.evidence.get("tokens"):
        return weight
    return f"{weight} {decision_sentence(decision)}"


def _over(reply: Reply) -> str:
    """What the weights on display are the mean of."""
    if reply.done and reply.trace:
        return f"the answer's {count(len(reply.trace), 'token')} and all layers"
    return "the prompt's tokens and all layers"


def _figure(reply: Reply) -> Markup:
    """What the router made of every lobe. Beside the weights of a mix it also says how sure the
    router is of its choice."""
    decision = reply.decision
    if decision.per_token:
        measured = replace(decision, weights=reply.weights, chosen=next(iter(reply.parts), None))
        if reply.done and reply.trace:
            return score_bars(measured, reply.colours, over="the answer")
        return score_bars(measured, reply.colours)
    if len(reply.parts) > 1 and estimated(decision):
        note = f"The router is {percent(decision.confidence)} sure that {decision.chosen} is the right one."
        return score_bars(decision, reply.colours, note=note)
    return score_bars(decision, reply.colours)


def _facts(reply: Reply) -> Markup:
    decision, routing_ms, cost = reply.decision, None, Markup()
    if decision.router != "manual":
        routing_ms = decision.elapsed_ms
    facts = [("Decided by", _decider(decision)), ("Routing took", milliseconds(routing_ms))]
    if reply.done:
        facts += [
            ("First token", milliseconds(reply.first_token_ms)),
            ("Speed", rate(reply.tokens_per_second)),
        ]
    if reply.cost:
        cost = cost_note(reply.cost)
    notes = []
    if reply.stopped:
        notes.append(f"Stopped after {count(reply.tokens, 'token')}.")
    if reply.dropped:
        notes.append(f"The oldest {count(reply.dropped, 'message')} no longer fitted the context.")
    return html(
        '<section><dl class="ml-facts">{}</dl>{}{}</section>',
        joined(html("<div><dt>{}</dt><dd>{}</dd></div>", name, value) for name, value in facts), cost,
        around('<p class="ml-note">{}</p>', " ".join(notes)),
    )  # fmt: skip


def _decider(decision: RoutingDecision) -> str:
    """The stage, and the chain it is part of."""
    last = stage(decision.stage)
    if decision.router == "chain" and decision.stage in ROUTER_STAGES:
        return f"chain, {last}"
    return last
