"""What is in a file of training data, as HTML: facts, bad rows, first rows, token lengths. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ..kit import text
from ..kit.html import Markup, and_more, around, html, joined
from ..kit.table import fact

if TYPE_CHECKING:
    from ...data.dataset import DatasetReport
    from ...data.examples import Example
    from ...data.held_out import HeldOut

LONGEST_CELL = 160
NO_LIMIT = 10**9
KINDS = {"jsonl": "JSON lines", "json": "JSON list", "csv": "CSV", "parquet": "Parquet"}
UNITS = {"jsonl": "line", "csv": "line"}


def report_card(seen: DatasetReport, label: str) -> Markup:
    """What is in the file: facts, bad rows, and the first rows."""
    kind = seen.format.kind
    facts = [fact("Rows", f"{seen.rows:,}"), fact("Format", KINDS.get(kind, kind), seen.format.schema)]
    facts += [_none_or("Duplicates", seen.duplicates, "left out")]
    bad = Markup()
    if seen.bad_rows:
        errors = [(error.line, error.reason) for error in seen.errors]
        bad = _bad_rows(errors, seen.bad_rows, UNITS.get(kind, "row"))
    facts += [_none_or("Bad rows", seen.bad_rows, "see below", "train-fact warn")]
    if not seen.rows:
        bad = html('<p class="train-warn">No row can be used. Fix the file and drop it again.</p>{}', bad)
    return html(
        '<div class="ml-box"><div class="train-file"><b>{}</b><span class="ml-faint">{}</span></div><div '
        'class="train-facts">{}</div>{}{}</div>',
        label, text.size(seen.bytes), joined(facts), bad, _preview(seen.preview),
    )  # fmt: skip


def _none_or(title: str, number: int, about: str, kind: str = "train-fact") -> Markup:
    """How many there are, with a remark if there are any."""
    if not number:
        return fact(title, "0", "none")
    return fact(title, f"{number:,}", about, kind)


def plan_line(held_out: HeldOut, share: float | None, keep: str) -> Markup:
    """What training will do with the rows, and why.

    Args:
        held_out: what is chosen by the rows themselves. share: what a person asks for instead; None
            leaves it automatic.
        keep: "last" or "best".
    """
    rows, count, plan = held_out.rows, held_out.count, held_out.sentence
    if share is not None:
        count = round(share * rows)
        plan = f"All {rows:,} rows are trained, as the settings say."
        if count:
            plan = (
                f"{count:,} of {rows:,} rows are held out to draw the validation curve, as the settings say."
            )
    if keep == "best" and count:
        plan += " The step with the lowest validation loss is kept."
    elif keep == "best":
        plan += " Without held-out rows the last step is kept."
    return html('<p class="train-plan ml-faint">{}</p>', plan)


def refusal_card(error: DataError, label: str) -> Markup:
    """Why the file cannot be read, and what to do."""
    why = html('<p class="train-warn">{}</p>', error)
    if error.columns:
        why = html(
            '<p class="train-ask">{} has columns we do not know: {}. Choose below which column holds the '
            "prompt and which the answer.</p>",
            label, text.cut(", ".join(error.columns), 500),
        )  # fmt: skip
    bad = Markup()
    if error.lines:
        bad = _bad_rows(error.lines, len(error.lines), "line")
    return html('<div class="ml-box"><div class="train-file"><b>{}</b></div>{}{}</div>', label, why, bad)


def _bad_rows(errors: Sequence[tuple[int, str]], count: int, unit: str) -> Markup:
    lines = joined(html("<li><b>{} {:,}</b> {}</li>", unit, line, reason) for line, reason in errors)
    return html(
        '<details class="train-bad" open><summary>{}</summary><ul tabindex="0" aria-label="Bad '
        'rows">{}{}</ul></details>',
        text.count(count, "bad row"), lines, and_more('<li class="ml-faint">… and {:,} more</li>', count - len(errors)),
    )  # fmt: skip


def _preview(rows: Sequence[Example]) -> Markup:
    body = joined(
        html("<tr><td>{}{}</td><td>{}</td></tr>", _cut(row.prompt), _turns(row), _cut(row.answer))
        for row in rows
    )
    return around(
        '<table class="train-preview"><thead><tr><th scope="col">Prompt</th><th scope="col">Answer</th>'
        "</tr></thead><tbody>{}</tbody></table>",
        body,
    )


def _turns(row: Example) -> Markup:
    more = len(row.context) - 1
    if more < 1:
        return Markup()
    return html(' <span class="ml-faint">after {}</span>', text.count(more, "earlier message"))


def _cut(words: str) -> str:
    return text.cut(words, LONGEST_CELL)


def length_histogram(lengths: Sequence[int], limit: Any, rows: int) -> Markup:
    """Token lengths as a small inline SVG with a sentence beside it, which says the same to a
    screen reader."""
    if not rows:
        return Markup()
    if not lengths:
        return Markup(
            '<p class="ml-faint train-lengths">Token lengths appear when the base model has been loaded.</p>'
        )
    ordered = sorted(lengths)
    if not isinstance(limit, (int, float)) or limit < 1:
        limit = NO_LIMIT
    longer = sum(length > limit for length in ordered)
    kind = "train-ask"
    if not longer:
        kind = "ml-faint"
    return html(
        '<div class="train-lengths">{}<p class="{}">Rows have {:,} to {:,} tokens, half of them at most '
        "{:,}. {}</p></div>",
        _bars(ordered, int(limit)), kind, ordered[0], ordered[-1], ordered[len(ordered) // 2],
        _cut_off(longer, int(limit), len(lengths), rows),
    )  # fmt: skip


def _cut_off(longer: int, limit: int, sample: int, rows: int) -> str:
    """How many rows are longer than the limit, of all rows or of a sample of them; "" where nobody
    set a limit."""
    if limit == NO_LIMIT:
        return ""
    sampled = ""
    if sample < rows:
        sampled = f" (in a sample of {sample:,})"
    if not longer:
        return f"None is longer than {limit:,} tokens{sampled}."
    return (
        f"{text.count(longer, 'row is', 'rows are')} longer than {limit:,} tokens and will be cut{sampled}."
    )


def _bars(ordered: Sequence[int], limit: int) -> Markup:
    """Bars of equal width for equal ranges of tokens; those beyond the limit have a colour of their own."""
    width, height = 240, 56
    top = ordered[
        min(len(ordered) - 1, int(0.995 * len(ordered)))
    ]  # one endless row must not squeeze the rest
    low, step = (
        ordered[0],
        max(1, math.ceil((top - ordered[0] + 1) / 24)),
    )  # whole tokens a bar, or some bars stay empty
    bins = [0] * max(8, math.ceil((top - low + 1) / step))
    for length in ordered:
        bins[min(len(bins) - 1, (length - low) // step)] += 1
    shapes, room = [], width / len(bins)
    for i, amount in enumerate(bins):
        tall, kind = 0, "bar"
        if amount:
            tall = max(2, round(amount / max(bins) * (height - 4)))
        if low + (i + 1) * step - 1 > limit:
            kind = "over"
        shapes.append(
            html(
                '<rect class="{}" x="{:.4g}" y="{}" width="{:.4g}" height="{}" rx="1.5"/>',
                kind, i * room, height - tall, room - 1.4, tall,
            )
        )  # fmt: skip
    return html(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="Distribution of token lengths">{}</svg>',
        width, height, joined(shapes),
    )  # fmt: skip
