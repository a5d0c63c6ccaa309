"""What is in a file of training data, as HTML: facts, bad rows, first rows, token lengths. Pure.

What people wrote (rows, columns, file names) is escaped.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ..kit import text
from ..kit.table import fact

if TYPE_CHECKING:
    from ...data.dataset import DatasetReport
    from ...data.examples import Example
    from ...data.held_out import HeldOut

LONGEST_CELL = 160


def report_card(seen: DatasetReport, label: str) -> str:
    """What is in the file: facts, bad rows, and the first rows."""
    kinds = {"jsonl": "JSON lines", "json": "JSON list", "csv": "CSV", "parquet": "Parquet"}
    kind = kinds.get(seen.format.kind, seen.format.kind)
    facts = [("Rows", f"{seen.rows:,}", ""), ("Format", kind, seen.format.schema)]
    facts += [("Duplicates", f"{seen.duplicates:,}", "left out" if seen.duplicates else "none")]
    facts += [("Bad rows", f"{seen.bad_rows:,}", "see below" if seen.bad_rows else "none")]
    told = "".join(fact(*one, kind="train-fact warn" if one[0] == "Bad rows" and bool(seen.bad_rows) else "train-fact") for one in facts)
    unit = "line" if seen.format.kind in ("jsonl", "csv") else "row"
    errors = [(error.line, error.reason) for error in seen.errors]
    bad = _bad_rows(errors, seen.bad_rows, unit) if seen.bad_rows else ""
    size = f'<span class="ml-faint">{text.size(seen.bytes)}</span>'
    head = f'<div class="train-file"><b>{text.escape(label)}</b>{size}</div>'
    if not seen.rows:
        bad = f'<p class="train-warn">No row can be used. Fix the file and drop it again.</p>{bad}'
    return f'<div class="ml-box">{head}<div class="train-facts">{told}</div>{bad}{_preview(seen.preview)}</div>'


def plan_line(held_out: HeldOut, share: float | None, keep: str) -> str:
    """What training will do with the rows, and why.

    Args:
        held_out: what is chosen by the rows themselves. share: what a person asks for instead; None leaves it automatic.
        keep: "last" or "best".
    """
    rows = held_out.rows
    count = held_out.count if share is None else round(share * rows)
    told = held_out.sentence
    if share is not None and count:
        told = f"{count:,} of {rows:,} rows are held out to draw the validation curve, as the settings say."
    elif share is not None:
        told = f"All {rows:,} rows are trained, as the settings say."
    if keep == "best":
        told += " The step with the lowest validation loss is kept." if count else " Without held-out rows the last step is kept."
    return f'<p class="train-plan ml-faint">{text.escape(told)}</p>'


def refusal_card(error: DataError, label: str, columns: Sequence[str]) -> str:
    """Why the file cannot be read, and what to do."""
    advice = "Choose below which column holds the prompt and which the answer." if columns else ""
    said = f"{label} has columns we do not know: {', '.join(columns)}." if columns else str(error)
    bad = _bad_rows(error.lines, len(error.lines), "line") if error.lines else ""
    kind = "train-ask" if columns else "train-warn"
    more = f'<p class="{kind}">{text.escape(said)} {advice}</p>{bad}'
    return f'<div class="ml-box"><div class="train-file"><b>{text.escape(label)}</b></div>{more}</div>'


def _bad_rows(errors: Sequence[tuple[int, str]], count: int, unit: str) -> str:
    lines = "".join(f"<li><b>{unit} {line:,}</b> {text.escape(reason)}</li>" for line, reason in errors)
    rest = f'<li class="ml-faint">… and {count - len(errors):,} more</li>' if count > len(errors) else ""
    return (
        f'<details class="train-bad" open><summary>{text.count(count, "bad row")}</summary>'
        f'<ul tabindex="0" aria-label="Bad rows">{lines}{rest}</ul></details>'
    )


def _preview(rows: Sequence[Example]) -> str:
    if not rows:
        return ""
    body = "".join(f"<tr><td>{_cut(row.prompt)}{_turns(row)}</td><td>{_cut(row.answer)}</td></tr>" for row in rows)
    head = '<tr><th scope="col">Prompt</th><th scope="col">Answer</th></tr>'
    return f'<table class="train-preview"><thead>{head}</thead><tbody>{body}</tbody></table>'


def _turns(row: Example) -> str:
    more = len(row.context) - 1
    return f' <span class="ml-faint">after {more} earlier message{"s" * (more > 1)}</span>' if more > 0 else ""


def _cut(words: str) -> str:
    return text.escape(words if len(words) <= LONGEST_CELL else words[: LONGEST_CELL - 1].rstrip() + "…")


def unknown_columns(error: Exception) -> list[str]:
    """The columns of a file whose layout is unknown; [] if something else is wrong with it."""
    columns = getattr(error, "columns", ())
    if columns:
        return [str(column) for column in columns]
    told = re.search(r"has the columns (.*), which is no known layout", str(error), re.DOTALL)
    quoted = re.findall(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", told[1]) if told else []
    return [str(ast.literal_eval(column)) for column in quoted]


def length_histogram(lengths: Sequence[int], limit: Any, rows: int) -> str:
    """Token lengths as a small inline SVG with a sentence beside it, which says the same to a screen reader."""
    if not rows:
        return ""
    if not lengths:
        return '<p class="ml-faint train-lengths">Token lengths appear when the base model has been loaded.</p>'
    limit = int(limit) if isinstance(limit, (int, float)) and limit >= 1 else 10**9
    ordered = sorted(lengths)
    over = sum(length > limit for length in ordered)
    told = f"Rows have {ordered[0]:,} to {ordered[-1]:,} tokens, half of them at most {ordered[len(ordered) // 2]:,}. "
    sampled = f" (in a sample of {len(lengths):,})" if len(lengths) < rows else ""
    cut = f"{over:,} {'row is' if over == 1 else 'rows are'} longer than {limit:,} tokens and will be cut{sampled}."
    told += cut if over else f"None is longer than {limit:,} tokens{sampled}." if limit < 10**9 else ""
    bars = _bars(ordered, limit)
    return f'<div class="train-lengths">{bars}<p class="{"train-ask" if over else "ml-faint"}">{told}</p></div>'


def _bars(ordered: Sequence[int], limit: int) -> str:
    width, height = 240, 56
    top = ordered[min(len(ordered) - 1, int(0.995 * len(ordered)))]  # one endless row must not squeeze the rest
    low, step = ordered[0], max(1, math.ceil((top - ordered[0] + 1) / 24))  # whole tokens a bar, or some bars stay empty
    bins = [0] * max(8, math.ceil((top - low + 1) / step))
    for length in ordered:
        bins[min(len(bins) - 1, (length - low) // step)] += 1
    shapes, room = [], width / len(bins)
    for i, amount in enumerate(bins):
        tall = 0 if not amount else max(2, round(amount / max(bins) * (height - 4)))
        kind = "over" if low + (i + 1) * step - 1 > limit else "bar"
        box = f'x="{i * room:.4g}" y="{height - tall}" width="{room - 1.4:.4g}" height="{tall}"'
        shapes.append(f'<rect class="{kind}" {box} rx="1.5"/>')
    label = "Distribution of token lengths"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(shapes)}</svg>'
