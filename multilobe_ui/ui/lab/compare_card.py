"""One column of a comparison as HTML: who answers, the answer with its differences marked, and what it cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...evaluation.compare import AUTOMATIC
from ...routing.decision import RoutingDecision
from ..kit import text
from ..kit.figures import BASE_COLOUR, share_bar
from ..kit.text import escape

if TYPE_CHECKING:
    from ...app.feedback import Counts
    from ...evaluation.compare import Agreement, Answer, Comparison

Colours = Mapping[str, str]
LETTERS = "ABCD"


def cards(comparison: Comparison, colours: Colours, places: Sequence[int], *, ended: bool = False) -> list[str]:
    """A card for every column.

    Args:
        places: of each column on the page, 0 for A. ended: nothing more will come, though it is not complete.
    """
    agreement: Sequence[Agreement | None] = comparison.agreement or (None,) * len(comparison.columns)
    first = LETTERS[places[0]]
    return [
        _card(answer, colours, LETTERS[place], _agrees(same, first) if i else "", same, comparison.done or ended)
        for i, (answer, place, same) in enumerate(zip(comparison.columns, places, agreement, strict=True))
    ]


def empty_card(place: int, words: str) -> str:
    """A column without an answer; `words` say why, or what to do."""
    head = f"<header><span>{LETTERS[place]}</span></header>"
    return f'<article class="lab-compare-card is-empty">{head}<p>{escape(words)}</p></article>'


def marked(said: str, marks: Sequence[tuple[int, int]]) -> str:
    """Text as HTML, with these spans in <mark>."""
    parts, place = [], 0
    for start, end in marks:
        parts.append(f"{escape(said[place:start])}<mark>{escape(said[start:end])}</mark>")
        place = end
    return "".join(parts) + escape(said[place:])


def summary(comparison: Comparison, places: Sequence[int], *, ended: bool = False) -> str:
    """One line on all columns, below them."""
    count = len(comparison.columns)
    if not comparison.done and not ended:
        said = f"{text.count(count, 'column')} in one go…"
    elif not comparison.agreement or comparison.stopped:
        said = "Stopped. Let the answers come to their end to see what differs, and to vote."
    elif count == 1:
        said = "One column. Choose who answers in another one, and there is something to compare."
    else:
        differ = sum(same.leaves is not None for same in comparison.agreement)
        first = LETTERS[places[0]]
        others = f"{differ} of {count - 1}" if count > 2 else "The other"
        verb = "differ" if differ != 1 and count > 2 else "differs"
        marks = f"words that {first} does not have are marked. Which answer is best?"
        said = f"{others} {verb} from {first}; {marks}" if differ else "No difference."
    facts = [text.count(comparison.prompt_tokens, "prompt token"), text.duration(comparison.seconds)]
    facts += [f"seed {comparison.seed}"] if comparison.seed is not None else ["always the likeliest token"]
    if comparison.dropped_messages:
        facts.append(f"{text.count(comparison.dropped_messages, 'message')} did not fit")
    small = f' <span class="ml-faint">{escape(", ".join(facts))}.</span>' if comparison.done else ""
    return f'<p class="lab-compare-sum" role="status">{escape(said)}{small}</p>'


def feedback_line(counts: Counts, shared: bool) -> str:
    """How much feedback there is, and what is to be known about it."""
    notes = []
    if shared:
        notes.append("It is kept on the server and not handed out, for it holds the words of others.")
    elif not counts.votes + counts.thumbs:
        notes.append("Vote above, or give a thumb to an answer in Chat; then it can be exported.")
    if counts.damaged:
        notes.append(f"{text.count(counts.damaged, 'line')} of the file cannot be read and {_stay(counts.damaged)} aside.")
    told = f"<b>{text.count(counts.votes, 'vote')}, {text.count(counts.thumbs, 'thumb')}</b>"
    return f'<p class="lab-compare-feedback">Feedback: {told}. <span class="ml-faint">{escape(" ".join(notes))}</span></p>'


def _stay(lines: int) -> str:
    return "stays" if lines == 1 else "stay"


def _agrees(agreement: Agreement | None, first: str) -> str:
    if agreement is None:
        return ""
    if agreement.leaves is None:
        return f"Same as {first}."
    if not agreement.leaves:
        return f"Differs from {first} from its first character."
    return f"Same as {first} for {text.count(agreement.leaves, 'character')}, then it differs."


def _card(answer: Answer, colours: Colours, letter: str, note: str, agreement: Agreement | None, done: bool) -> str:
    decision, done = answer.decision, done or answer.done
    said = marked(answer.text, agreement.marks if agreement else ()) or ("<em>No answer</em>" if done else "")
    cursor = "" if done else '<i class="lab-compare-cursor"></i>'
    told = f'<p class="lab-compare-note">{escape(note)}</p>' if note else ""
    return (
        f'<article class="lab-compare-card" style="--c:{_colour(decision, colours)}"><header><span>{letter}</span><i></i>'
        f"<b>{escape(text.answerer(decision))}</b></header>{_sure(answer)}{_mixture(decision, colours)}"
        f'<p class="lab-compare-why">{escape(text.decision_sentence(decision))}</p>'
        f'<div class="lab-compare-text">{said}{cursor}</div>{told}{_facts(answer)}</article>'
    )


def _colour(decision: RoutingDecision, colours: Colours) -> str:
    return text.colour(colours.get(decision.chosen)) if decision.chosen else BASE_COLOUR


def _sure(answer: Answer) -> str:
    """How sure the router was; a mix has its weights instead, and a person who chose has no certainty."""
    decision = answer.decision
    said = text.certainty(decision) if answer.column.choice == AUTOMATIC else ""
    if len(text.parts_of(decision.weights)) > 1:
        said = "Mean weights over the prompt" if decision.per_token else "Weights"
    return f'<p class="lab-compare-sure">{escape(said)}</p>' if said else ""


def _mixture(decision: RoutingDecision, colours: Colours) -> str:
    mixed = len(text.parts_of(decision.weights)) > 1
    return share_bar(decision.weights, colours, "Weights of the lobes") if mixed else ""


def _facts(answer: Answer) -> str:
    routed = answer.column.choice == AUTOMATIC
    facts = [
        ("Decided", text.milliseconds(answer.decision.elapsed_ms) if routed else "by you"),
        ("Length", text.count(answer.tokens, "token")),
        ("Speed", text.rate(answer.tokens_per_second)),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="lab-compare-facts">{listed}</dl>'
