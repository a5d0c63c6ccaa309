"""The merge lab: a new lobe out of several, by every combination that PEFT's `add_weighted_adapter` offers.

    exact   D = sum over lobes l of  w_l * scaling_l * B_l A_l          what the bank runs without any merge
    error   ||merged - D|| / ||D||, Frobenius, over all adapted layers  what a merge loses

Importing it imports nothing heavy, because the page explains the combinations: a public name is
loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazily import loader

if TYPE_CHECKING:
    from .combining import Composition, Parents, combine
    from .cost import DataLosses, losses
    from .kinds import COMBINATIONS, Combination, possible
    from .merge import MergeResult, keep_merge, merge_lobes
    from .search import Trial, search_weights
    from .settings import MergeSettings, SearchSettings
    from .weighing import SearchResult, search_lobes

__getattr__ = loader(
    __name__,
    {
        "kinds": ("COMBINATIONS", "Combination", "possible"),
        "combining": ("Composition", "Parents", "combine"),
        "cost": ("DataLosses", "losses"),
        "merge": ("MergeResult", "keep_merge", "merge_lobes"),
        "search": ("Trial", "search_weights"),
        "settings": ("MergeSettings", "SearchSettings"),
        "weighing": ("SearchResult", "search_lobes"),
    },
)
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
