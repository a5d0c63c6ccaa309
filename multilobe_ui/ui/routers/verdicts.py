"""What all routers make of one prompt, as small cards. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ...routing.decision import RoutingDecision
from ..kit import text
from ..kit.figures import BASE_COLOUR, NONE, bars_in_order, mix_title, probabilities, share_bar
from ..kit.html import Markup, around, html, joined

MOST_ROWS = 8
Names = Mapping[str, str]


def comparison(decisions: Sequence[RoutingDecision], titles: Names, colours: Names) -> Markup:
    """A card for each router, its lobes in one order and one colour, so that the eye compares."""
    if not decisions:
        return Markup('<p class="train-ask">No router can decide yet. Fit one above, or train a lobe first.</p>')
    shares = [_shares(decision) for decision in decisions]
    order = _order(shares)
    cards = joined(
        _card(decision, own, order, titles, colours) for decision, own in zip(decisions, shares, strict=True)
    )
    return html(
        '<p class="compare-sum" role="status">{}</p><div class="compare-grid">{}</div>',
        _agreement(decisions), cards
    )


def _shares(decision: RoutingDecision) -> Mapping[str, float]:
    """What the bars of a card show: probabilities, or weights where every token is weighed anew."""
    if decision.per_token:
        return decision.weights
    return probabilities(decision)


def _order(shares: Sequence[Mapping[str, float]]) -> list[str]:
    """The lobes that matter to any router, heaviest in all first; "no lobe fits" last."""
    total: Counter[str] = Counter()
    for own in shares:
        total.update(own)
    return [*(name for name, _ in total.most_common() if name != NONE), NONE]


def _card(
    decision: RoutingDecision, shares: Mapping[str, float], order: Sequence[str], titles: Names,
    colours: Names
) -> Markup:
    """Who answers, how sure that is or with which weights, the bars, and why."""
    tone = BASE_COLOUR
    if decision.chosen:
        tone = text.colour(colours.get(decision.chosen))
    heading = "Probability"
    if decision.per_token:
        heading = "Mean weight over the prompt"
    figure = bars_in_order(shares, order, colours, decision.chosen or NONE, MOST_ROWS)
    headed = Markup()
    if figure:
        headed = html("<h5>{}</h5>{}", heading, figure)
    return html(
        '<article style="--c:{}"><header><span>{}</span><small>{}</small></header>{}<p '
        'class="compare-sure">{}</p>{}<p>{}</p>'
        "</article>",
        tone, titles.get(decision.router, decision.router), text.milliseconds(decision.elapsed_ms),
        _who(decision, colours), _certainty(decision), headed, decision.reason,
    )  # fmt: skip


def _is_mixed(decision: RoutingDecision) -> bool:
    return not decision.per_token and len(text.parts_of(decision.weights)) > 1


def _who(decision: RoutingDecision, colours: Names) -> Markup:
    """Who answers; of a router that weighs each token, the lobe with most of the weight."""
    if _is_mixed(decision):
        bar = share_bar(decision.weights, colours, "Weights of the lobes", legend=False)
        return html('<h4 class="ml-mixed">{}</h4>{}', mix_title(decision.weights, colours), bar)
    name = text.answerer(decision)
    if decision.per_token and decision.weights:
        name = text.parts_of(decision.weights)[0]
    return html("<h4><i></i>{}</h4>", text.short(name, 34))


def _certainty(decision: RoutingDecision) -> str:
    """How sure the router is, or what the numbers above are."""
    certainty = text.certainty(decision)
    if decision.per_token:
        return f"the greatest weight, {text.percent(max(decision.weights.values(), default=0.0))}"
    if _is_mixed(decision) and certainty:
        return f"weights; {text.percent(decision.confidence)} sure that {decision.chosen} is the right one"
    return certainty or "no estimate"


def _agreement(decisions: Sequence[RoutingDecision]) -> Markup:
    (first, most), *others = Counter(decision.chosen or "the base model" for decision in decisions).most_common()
    rest = around("; {}", text.listed(f"{votes} {name}" for name, votes in others))
    return html("<b>{} of {}</b> choose <b>{}</b>{}.", most, len(decisions), first, rest)
