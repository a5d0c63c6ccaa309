"""What lobes take in memory, as HTML. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..kit import text
from ..kit.html import Markup, and_more, html, joined
from ..kit.table import dot

if TYPE_CHECKING:
    from ...app.views import LobeView, MemoryView

MOST_NAMED = 24
MIB = 1 << 20


def memory_card(memory: MemoryView, lobes: Sequence[LobeView]) -> Markup:
    """How much of the budget is used, and which lobes are in memory: the pinned first, then the
    most recently used."""
    by_id = {lobe.id: lobe for lobe in lobes}
    resident = [by_id[id] for id in reversed(memory.lobes) if id in by_id]
    if not resident:
        return html('<div class="ml-box"><p>No lobe is in memory yet.</p>{}</div>', _bar(memory))
    resident.sort(key=lambda lobe: lobe.id not in memory.pinned)
    taken = html("<b>{}</b>", mib(memory.nbytes / MIB))
    if memory.budget_mib is not None:
        taken += f" of {mib(memory.budget_mib)}"
    return html(
        '<div class="ml-box"><p>{:,} of {} in memory, {}.</p>{}{}</div>',
        len(resident), text.count(len(lobes), "lobe"), taken, _bar(memory), _names(resident, memory.pinned),
    )  # fmt: skip


def mib(value: float) -> str:
    """'11.8 MiB'; whole from 100 on."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f} MiB"
    return f"{value:,.1f} MiB"


def _bar(memory: MemoryView) -> Markup:
    """The share of the budget, and why more is in memory than may be, if so."""
    if memory.budget_mib is None:
        return Markup()
    share = memory.nbytes / (memory.budget_mib * MIB)
    if share <= 1:
        return html('<div class="memory-bar" aria-hidden="true"><i style="width:{:.1%}"></i></div>', share)
    stay = "lobes that are answering stay"
    if memory.pinned:
        stay = "pinned lobes and those that are answering stay"
    return html(
        '<div class="memory-bar over" aria-hidden="true"><i style="width:100%"></i></div>'
        '<p class="manage-alert">More than the budget: {}, whatever they take.</p>',
        stay,
    )


def _names(resident: Sequence[LobeView], pinned: frozenset[str]) -> Markup:
    badges = dict.fromkeys(pinned, Markup('<span class="ml-faint">pinned</span>'))
    named = joined(
        html("<li>{}<span>{}</span>{}</li>", dot(lobe.colour), text.short(lobe.name, 32), badges.get(lobe.id, ""))
        for lobe in resident[:MOST_NAMED]
    )
    rest = and_more('<li class="ml-faint">and {:,} more</li>', len(resident) - MOST_NAMED)
    return html('<ul class="memory-lobes">{}{}</ul>', named, rest)
