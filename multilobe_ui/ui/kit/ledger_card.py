"""The quiet line under an answer: what it cost. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import text
from .html import Markup, around, html

if TYPE_CHECKING:
    from ...app.ledger import Cost

BY_HAND = "chosen by hand"


def cost_line(cost: Cost) -> str:
    """'routed in 14 ms · 38 + 61 tokens · 92 tokens/s · 3 lobes in memory, 4.2 MB', as plain text."""
    parts = [BY_HAND, f"{cost.prompt_tokens:,} + {cost.answer_tokens:,} tokens"]
    if cost.route_ms is not None:
        parts[0] = f"routed in {text.milliseconds(cost.route_ms)}"
    if cost.tokens_per_second > 0:
        parts.append(text.rate(cost.tokens_per_second))
    if not cost.resident:
        return " · ".join([*parts, "no lobe in memory"])
    memory = text.size(cost.resident_bytes).replace(" MB", "\u00a0MB")
    return " · ".join([*parts, f"{text.count(len(cost.resident), 'lobe')} in memory, {memory}"])


def cost_note(cost: Cost) -> Markup:
    """The line as HTML, with what its parts mean for whoever points at it."""
    resident = around(" In memory: {}.", text.listed(text.short(name, 40) for name in cost.resident))
    return html(
        '<p class="ml-cost" title="Tokens of the prompt + of the answer. Speed: answer tokens a second, '
        'reading the prompt included.{}">{}</p>',
        resident, cost_line(cost),
    )  # fmt: skip
