"""What lobes take in memory, as HTML. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..kit import text
from ..kit.table import dot

if TYPE_CHECKING:
    from ...app.studio import LobeView, MemoryView

MOST_NAMED = 24
MIB = 1 << 20


def memory_card(memory: MemoryView, lobes: Sequence[LobeView]) -> str:
    """How much of the budget is used, and which lobes are in memory: the pinned first, then the most recently used."""
    by_id = {lobe.id: lobe for lobe in lobes}
    resident = [by_id[id] for id in reversed(memory.lobes) if id in by_id]
    resident.sort(key=lambda lobe: lobe.id not in memory.pinned)
    over = memory.budget_mib is not None and memory.nbytes > memory.budget_mib * MIB
    taken = f"<b>{mib(memory.nbytes / MIB)}</b>"
    if memory.budget_mib is not None:
        taken += f" of {mib(memory.budget_mib)}"
    count = f"{len(resident):,} of {text.count(len(lobes), 'lobe')} in memory, {taken}" if resident else "No lobe is in memory yet"
    return f'<div class="ml-box"><p>{count}.</p>{_bar(memory, over)}{_over(memory, over)}{_names(resident, memory.pinned)}</div>'


def mib(value: float) -> str:
    """'11.8 MiB'; whole from 100 on."""
    return f"{value:,.0f} MiB" if value >= 100 or value == int(value) else f"{value:,.1f} MiB"


def _bar(memory: MemoryView, over: bool) -> str:
    if memory.budget_mib is None:
        return ""
    share = min(1.0, memory.nbytes / (memory.budget_mib * MIB))
    return f'<div class="memory-bar{" over" if over else ""}" aria-hidden="true"><i style="width:{share:.1%}"></i></div>'


def _over(memory: MemoryView, over: bool) -> str:
    """Why more is in memory than may be, if so."""
    if not over:
        return ""
    stay = "pinned lobes and those that are answering stay" if memory.pinned else "lobes that are answering stay"
    return f'<p class="manage-alert">More than the budget: {stay}, whatever they take.</p>'


def _names(resident: Sequence[LobeView], pinned: frozenset[str]) -> str:
    named = "".join(
        f"<li>{dot(lobe.colour)}<span>{text.escape(text.short(lobe.name, 32))}</span>{BADGES[lobe.id in pinned]}</li>"
        for lobe in resident[:MOST_NAMED]
    )
    more = len(resident) - MOST_NAMED
    rest = f'<li class="ml-faint">and {more:,} more</li>' if more > 0 else ""
    return f'<ul class="memory-lobes">{named}{rest}</ul>' if resident else ""


BADGES: Mapping[bool, str] = {False: "", True: '<span class="ml-faint">pinned</span>'}
