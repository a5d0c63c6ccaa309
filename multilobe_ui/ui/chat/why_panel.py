"""The panel beside the conversation: which lobe answered, why, how sure the router was, and how fast it all went. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...routing.decision import NEGLIGIBLE, RoutingDecision
from ..kit.figures import BASE_COLOUR, mix_title, score_bars, share_bar
from ..kit.ledger_card import cost_note
from ..kit.text import (
    answerer,
    certainty,
    colour,
    count,
    css_string,
    decision_sentence,
    escape,
    estimated,
    milliseconds,
    parts_of,
    percent,
    rate,
    shares,
    short,
    stage,
)
from .brain_map import brain_map
from .evidence import evidence_sections
from .token_view import mean_weights

if TYPE_CHECKING:
    from ...app.ledger import Cost
    from ...app.views import TokenTrace

MOST_LABELS = 200
ROUTER_STAGES = ("keyword", "gate", "embedding", "logprob", "complexity")


@dataclass(frozen=True)
class Reply:
    """What is remembered of one answer, for as long as the conversation is open.

    Attributes:
        decision: what the router said. lobes: (name, colour) of all lobes at that moment, so that an old reply still shows
            the brain that gave it.
        done, stopped: it is complete; it was cut short by a person.
        tokens, tokens_per_second, first_token_ms, dropped: of the answer; `dropped` messages no longer fitted the context.
        prompt: the message that was answered. answer: its whole text so far.
        trace: how each token was weighed, where a router weighs tokens. cost: of a complete answer.
    """

    decision: RoutingDecision
    lobes: tuple[tuple[str, str], ...] = ()
    done: bool = False
    stopped: bool = False
    tokens: int = 0
    tokens_per_second: float = 0.0
    first_token_ms: float | None = None
    dropped: int = 0
    prompt: str = ""
    answer: str = ""
    trace: Sequence[TokenTrace] = ()
    cost: Cost | None = None
    colours: Mapping[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "colours", dict(self.lobes))

    @property
    def weights(self) -> Mapping[str, float]:
        """What ran: of a complete answer whose tokens were weighed one by one, their mean; else what was decided."""
        return mean_weights(self.trace) if self.done and self.trace else self.decision.weights

    @property
    def parts(self) -> Sequence[str]:
        """The lobes that ran, heaviest first, without those of negligible weight; none for the base model."""
        found = parts_of(self.weights)
        return [name for name in found if abs(self.weights[name]) >= NEGLIGIBLE] or found[:1]

    @property
    def mix(self) -> Mapping[str, float]:
        """The weights of `parts`."""
        return {name: self.weights[name] for name in self.parts}

    @property
    def colour(self) -> str:
        """Of the heaviest lobe; the base model's own where none ran."""
        return colour(self.colours.get(self.parts[0])) if self.parts else BASE_COLOUR


def why_panel(reply: Reply) -> str:
    """The whole panel for one reply, under way or complete."""
    decision = reply.decision
    picture = brain_map(reply.lobes, reply.weights, base=not reply.parts, state="still" if reply.done else "live")
    figure = _figure(reply) if decision.stage != "manual" else ""
    parts = [
        picture, _verdict(reply), f"<section>{figure}</section>" if figure else "",
        evidence_sections(decision, reply.colours, reply.prompt), _facts(reply),
    ]  # fmt: skip
    return _panel("".join(parts), reply.colour)


def idle_panel(lobes: Sequence[tuple[str, str]], loading: bool = False) -> str:
    """Before the first question."""
    if not lobes and loading:
        words = "The lobes are shown here once the model is loaded."
    elif not lobes:
        words = "There is no lobe yet, so the base model answers everything. Train one in the Train tab."
    else:
        words = "Send a message: the region that lights up is the lobe that answers, and the scores say why."
    legend = "".join(
        f'<li style="--c:{colour(tone)}"><i></i>{escape(short(name, 28))}</li>' for name, tone in lobes[:12]
    )
    more = f"<li>and {len(lobes) - 12} more</li>" if len(lobes) > 12 else ""
    listed = (
        f'<section><h4>{count(len(lobes), "lobe")}</h4><ul class="ml-legend">{legend}{more}</ul></section>'
        if lobes
        else ""
    )
    title = '<div class="ml-verdict"><h3>Who will answer?</h3></div>'
    return _panel(f'{brain_map(lobes)}{title}<p class="ml-reason">{words}</p>{listed}')


def waiting_panel(lobes: Sequence[tuple[str, str]], title: str, words: str) -> str:
    """While the base model loads, or the router thinks."""
    heading = f'<div class="ml-verdict" aria-live="polite"><h3>{escape(title)}</h3></div>'
    return _panel(f'{brain_map(lobes, state="routing")}{heading}<p class="ml-reason">{escape(words)}</p>')


def labels(replies: Sequence[Reply], shown: int | None = None) -> str:
    """A stylesheet that names, above each answer in the conversation, the lobe that gave it.

    The messages themselves stay pure text, so that copying, editing and retrying never meet a label.
    """
    first = max(0, len(replies) - MOST_LABELS)
    rules = [_label(i + 1, reply) for i, reply in enumerate(replies) if i >= first]
    if shown is not None and 0 <= shown < len(replies) and len(replies) > 1:
        mark = f"border-left-color:{replies[shown].colour} !important"
        rules.append(f"#chat .bot-row:nth-child({shown + 1} of .bot-row) .bot.message{{{mark}}}")
    return f'<div class="ml-labels"><style>{"".join(rules)}</style></div>'


def _label(number: int, reply: Reply) -> str:
    """A rule: who answered and how sure the router was of that; of a mix its weights, with a small bar of them."""
    decision, look = reply.decision, f"--c:{reply.colour}"
    mixed = len(reply.parts) > 1
    words = f"Weights: {shares(reply.mix)}" if mixed else short(_who(reply), 40)
    said = certainty(decision)
    words += f" · {said}" if said and not mixed else ""
    words += "  stopped" if reply.stopped else ""
    place = f'#chat .bot-row:nth-child({number} of .bot-row) [data-testid="bot"]'
    bar = f"padding-left:46px !important;background:{_stripes(reply)} !important" if mixed else ""
    return f"{place}{{{look}}}{place}::before{{content:{css_string(words)};{bar}}}"


def _stripes(reply: Reply) -> str:
    """A CSS background: the weights of a mix side by side in their lobes' colours, on the label's own ground."""
    total = sum(abs(reply.weights[name]) for name in reply.parts)
    stops, place = [], 0.0
    for name in reply.parts:
        end = place + 100 * abs(reply.weights[name]) / total
        stops.append(f"{colour(reply.colours.get(name))} {place:.1f}% {end:.1f}%")
        place = end
    bar = f"linear-gradient(90deg,{','.join(stops)}) 10px 50%/28px 9px no-repeat"
    return f"{bar},color-mix(in srgb,var(--c) 14%,transparent)"


def _panel(inside: str, tone: str = BASE_COLOUR) -> str:
    return f'<div class="ml-why" style="--c:{tone}">{inside}</div>'


def _verdict(reply: Reply) -> str:
    """Who answers, with the certainty of one choice or the weights of a mix, and why."""
    decision = reply.decision
    doing = "Answered by" if reply.done else "Answering now"
    bar = ""
    if len(reply.parts) > 1:
        who = f'<h3 class="ml-mixed">{mix_title(reply.mix, reply.colours)}</h3>'
        beside = f'<div class="ml-sure">{_kind_of_weights(decision)}</div>'
        many = len(reply.parts) > 3
        bar = share_bar(reply.mix, reply.colours, "Weights of the lobes", legend=many) if not decision.per_token else ""
    else:
        who = f"<h3><i></i><span>{escape(_who(reply))}</span></h3>"
        number, _, words = certainty(decision).rpartition(" % ")
        beside = f'<div class="ml-sure"><b>{escape(number)} %</b>{escape(words)}</div>' if number else ""
    return (
        f'<p class="ml-eyebrow">{doing}</p><div class="ml-verdict">{who}{beside}</div>{bar}'
        f'<p class="ml-reason">{escape(_why(reply))}</p>'
    )


def _who(reply: Reply) -> str:
    """The one that answers: the lobe that is left of a mix of which all else is negligible, or as decided."""
    return reply.parts[0] if reply.parts else answerer(reply.decision)


def _kind_of_weights(decision: RoutingDecision) -> str:
    if decision.per_token:
        return "mean weights"
    return "your weights" if decision.stage == "manual" else "weights"


def _why(reply: Reply) -> str:
    """The router's sentence. Of tokens weighed one by one it is about the prompt, so the answer's own weights come first."""
    decision = reply.decision
    if not (decision.per_token and reply.parts):
        return decision_sentence(decision)
    best = reply.parts[0]
    said = f"{best} has the greatest weight: {percent(reply.weights[best])}, the mean over {_over(reply)}."
    return said if decision.evidence.get("tokens") else f"{said} {decision_sentence(decision)}"


def _over(reply: Reply) -> str:
    """What the weights on display are the mean of."""
    if reply.done and reply.trace:
        return f"the answer's {count(len(reply.trace), 'token')} and all layers"
    return "the prompt's tokens and all layers"


def _figure(reply: Reply) -> str:
    """What the router made of every lobe. Beside the weights of a mix it also says how sure the router is of its choice."""
    decision = reply.decision
    if decision.per_token:
        told = replace(decision, weights=reply.weights, chosen=reply.parts[0] if reply.parts else None)
        return score_bars(told, reply.colours, over="the answer" if reply.done and reply.trace else "the prompt")
    mixed = len(reply.parts) > 1 and estimated(decision)
    sure = f"The router is {percent(decision.confidence)} sure that {decision.chosen} is the right one."
    return score_bars(decision, reply.colours, note=sure if mixed else "")


def _facts(reply: Reply) -> str:
    decision = reply.decision
    routing = milliseconds(decision.elapsed_ms if decision.router != "manual" else None)
    facts = [("Decided by", _decider(decision)), ("Routing took", routing)]
    if reply.done:
        facts += [("First token", milliseconds(reply.first_token_ms)), ("Speed", rate(reply.tokens_per_second))]
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    notes = []
    if reply.stopped:
        notes.append(f"Stopped after {count(reply.tokens, 'token')}.")
    if reply.dropped:
        notes.append(f"The oldest {count(reply.dropped, 'message')} no longer fitted the context.")
    note = f'<p class="ml-note">{" ".join(notes)}</p>' if notes else ""
    cost = cost_note(reply.cost) if reply.cost else ""
    return f'<section><dl class="ml-facts">{listed}</dl>{cost}{note}</section>'


def _decider(decision: RoutingDecision) -> str:
    """The stage, and the chain it is part of."""
    last = stage(decision.stage)
    return f"chain, {last}" if decision.router == "chain" and decision.stage in ROUTER_STAGES else last
