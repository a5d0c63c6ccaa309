"""One column of a comparison as HTML: who answers, the answer with its differences marked, and what
it cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...evaluation.compare import AUTOMATIC
from ..kit import text
from ..kit.figures import BASE_COLOUR, share_bar
from ..kit.html import Markup, around, escape, html, joined
from .parts import Colours

if TYPE_CHECKING:
    from ...app.feedback import Counts
    from ...evaluation.compare import Agreement, Answer, Comparison

LETTERS = "ABCD"


def cards(comparison: Comparison, colours: Colours, places: Sequence[int], *, ended: bool = False) -> list[Markup]:
    """A card for every column.

    Args:
        places: of each column on the page, 0 for A. ended: nothing more will come, though it is not complete.
    """
    agreement: Sequence[Agreement | None] = comparison.agreement or (None,) * len(comparison.columns)
    first, *others = agreement
    notes = ["", *(_agrees(same, LETTERS[places[0]]) for same in others)]
    done = comparison.done or ended
    return [
        _card(answer, colours, LETTERS[place], note, same, done or answer.done)
        for answer, place, same, note in zip(comparison.columns, places, [first, *others], notes, strict=True)
    ]


def empty_card(place: int, words: str) -> Markup:
    """A column without an answer; `words` say why, or what to do."""
    return html(
        '<article class="lab-compare-card is-empty"><header><span>{}</span></header><p>{}</p></article>',
        LETTERS[place],
        words,
    )


def marked(answer: str, marks: Sequence[tuple[int, int]]) -> Markup:
    """Text as HTML, with these spans in <mark>."""
    parts, place = [], 0
    for start, end in marks:
        parts.append(html("{}<mark>{}</mark>", answer[place:start], answer[start:end]))
        place = end
    return joined(parts) + escape(answer[place:])


def summary(comparison: Comparison, places: Sequence[int], *, ended: bool = False) -> Markup:
    """One line on all columns, below them."""
    small = Markup()
    if comparison.done:
        small = html(' <span class="ml-faint">{}.</span>', ", ".join(_cost(comparison)))
    return html(
        '<p class="lab-compare-sum" role="status">{}{}</p>',
        _difference(comparison, LETTERS[places[0]], ended), small
    )


def _difference(comparison: Comparison, first: str, ended: bool) -> str:
    """What all columns come to, in words."""
    others = len(comparison.columns) - 1
    if not comparison.done and not ended:
        return f"{text.count(others + 1, 'column')} in one go…"
    if not comparison.agreement or comparison.stopped:
        return "Stopped. Let the answers come to their end to see what differs, and to vote."
    if not others:
        return "One column. Choose who answers in another one, and there is something to compare."
    differ = sum(same.leaves is not None for same in comparison.agreement)
    if not differ:
        return "No difference."
    who = f"{differ} of {others} differ"
    if others == 1:
        who = "The other differs"
    elif differ == 1:
        who += "s"
    return f"{who} from {first}; words that {first} does not have are marked. Which answer is best?"


def _cost(comparison: Comparison) -> list[str]:
    facts = [text.count(comparison.prompt_tokens, "prompt token"), text.duration(comparison.seconds)]
    if comparison.seed is None:
        facts.append("always the likeliest token")
    else:
        facts.append(f"seed {comparison.seed}")
    if comparison.dropped_messages:
        facts.append(f"{text.count(comparison.dropped_messages, 'message')} did not fit")
    return facts


def feedback_line(counts: Counts, shared: bool) -> Markup:
    """How much feedback there is, and what is to be known about it."""
    notes = []
    if shared:
        notes.append("It is kept on the server and not handed out, for it holds the words of others.")
    elif not counts.votes + counts.thumbs:
        notes.append("Vote above, or give a thumb to an answer in Chat; then it can be exported.")
    if counts.damaged == 1:
        notes.append("1 line of the file cannot be read and stays aside.")
    elif counts.damaged:
        notes.append(f"{counts.damaged:,} lines of the file cannot be read and stay aside.")
    return html(
        '<p class="lab-compare-feedback">Feedback: <b>{}, {}</b>. <span class="ml-faint">{}</span></p>',
        text.count(counts.votes, "vote"), text.count(counts.thumbs, "thumb"), " ".join(notes),
    )  # fmt: skip


def _agrees(agreement: Agreement | None, first: str) -> str:
    if agreement is None:
        return ""
    if agreement.leaves is None:
        return f"Same as {first}."
    if not agreement.leaves:
        return f"Differs from {first} from its first character."
    return f"Same as {first} for {text.count(agreement.leaves, 'character')}, then it differs."


def _card(answer: Answer, colours: Colours, letter: str, note: str, agreement: Agreement | None, done: bool) -> Markup:
    decision, mixture = answer.decision, Markup()
    tone = BASE_COLOUR
    if decision.chosen:
        tone = text.colour(colours.get(decision.chosen))
    if _is_mixed(answer):
        mixture = share_bar(decision.weights, colours, "Weights of the lobes")
    return html(
        '<article class="lab-compare-card" '
        'style="--c:{}"><header><span>{}</span><i></i><b>{}</b></header>{}{}<p '
        'class="lab-compare-why">{}</p><div class="lab-compare-text">{}</div>{}{}</article>', tone, letter,
        text.answerer(decision), around('<p class="lab-compare-sure">{}</p>', _certainty(answer)), mixture,
        text.decision_sentence(decision), _text(answer, agreement, done),
        around('<p class="lab-compare-note">{}</p>', note), _facts(answer),
    )  # fmt: skip


def _text(answer: Answer, agreement: Agreement | None, done: bool) -> Markup:
    """The answer, and a cursor where more of it will come."""
    words = escape(answer.text)
    if agreement is not None:
        words = marked(answer.text, agreement.marks)
    if not done:
        return words + Markup('<i class="lab-compare-cursor"></i>')
    return words or Markup("<em>No answer</em>")


def _is_mixed(answer: Answer) -> bool:
    return len(text.parts_of(answer.decision.weights)) > 1


def _certainty(answer: Answer) -> str:
    """How sure the router was; a mix has its weights instead, and a person who chose has no certainty."""
    if _is_mixed(answer) and answer.decision.per_token:
        return "Mean weights over the prompt"
    if _is_mixed(answer):
        return "Weights"
    if answer.column.choice != AUTOMATIC:
        return ""
    return text.certainty(answer.decision)


def _facts(answer: Answer) -> Markup:
    decided = "by you"
    if answer.column.choice == AUTOMATIC:
        decided = text.milliseconds(answer.decision.elapsed_ms)
    length, speed = text.count(answer.tokens, "token"), text.rate(answer.tokens_per_second)
    facts = {"Decided": decided, "Length": length, "Speed": speed}
    listed = joined(html("<div><dt>{}</dt><dd>{}</dd></div>", *fact) for fact in facts.items())
    return html('<dl class="lab-compare-facts">{}</dl>', listed)
