"""The merge lab: a new lobe out of several, by every combination that PEFT's `add_weighted_adapter` offers.

    exact   D = sum over lobes l of  w_l * scaling_l * B_l A_l          what the bank runs without any merge
    error   ||merged - D|| / ||D||, Frobenius, over all adapted layers  what a merge loses

Importing it imports nothing heavy, because the page explains the combinations: a public name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .combine import Composition, Parents, combine
    from .cost import DataLosses, losses
    from .kinds import COMBINATIONS, Combination, possible
    from .merge import MergeResult, MergeSettings, keep_merge, merge_lobes
    from .search import Trial, search_weights
    from .weighing import SearchResult, SearchSettings, search_lobes

_HOMES = {
    "combinations": ("COMBINATIONS", "Combination", "possible"),
    "combining": ("Composition", "Parents", "combine"),
    "cost": ("DataLosses", "losses"),
    "merging": ("MergeResult", "MergeSettings", "keep_merge", "merge_lobes"),
    "search": ("Trial", "search_weights"),
    "weighing": ("SearchResult", "SearchSettings", "search_lobes"),
}
__all__ = [
    "COMBINATIONS",
    "Combination",
    "Composition",
    "DataLosses",
    "MergeResult",
    "MergeSettings",
    "Parents",
    "SearchResult",
    "SearchSettings",
    "Trial",
    "combine",
    "keep_merge",
    "losses",
    "merge_lobes",
    "possible",
    "search_lobes",
    "search_weights",
]


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), "")
    if not home:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
