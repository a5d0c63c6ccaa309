"""Every combination that PEFT's `add_weighted_adapter` offers: what it does, what it asks of the
lobes, and whether it can be done.

Nothing heavy is imported, so that the page can explain them before the model is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..lobes.adapter import AdapterHeader


@dataclass(frozen=True)
class Combination:
    """One way to make one adapter of several.

    Attributes:
        says: what it does, for a person. source: where it comes from.
        equal_ranks: it works on A and B apart, so they must have the same shapes in every layer
            that two lobes share.
        prunes: it reads `density`. chooses_rank: it ends in an SVD, so its rank can be chosen.
    """

    says: str
    source: str
    equal_ranks: bool = False
    prunes: bool = False
    chooses_rank: bool = False


# PEFT lets every lobe vote with its unweighted numbers, so a lobe that is subtracted votes as if it
# were added.
_TIES = "Yadav et al. 2023 (TIES-Merging), arXiv:2306.01708"
_DARE = "Yu et al. 2023 (DARE), arXiv:2311.03099"
_PRUNE = "Han et al. 2015 (magnitude pruning), arXiv:1506.02626"
COMBINATIONS: Mapping[str, Combination] = {
    "cat": Combination(
        "Lays the lobes' matrices side by side: exactly the weighted sum, at the price of a rank that is the sum of all ranks.",
        "Prabhakar et al. 2024 (LoRA Soups), arXiv:2410.13025",
    ),
    "svd": Combination(
        "Adds the lobes' deltas and keeps the largest singular values: the closest there is to the weighted sum at that rank.",
        "Eckart and Young 1936, Psychometrika 1:211; deltas added as in Ilharco et al. 2022, arXiv:2212.04089",
        chooses_rank=True,
    ),
    "linear": Combination(
        "Adds the A matrices and the B matrices apart: small and quick, but every lobe's A also meets every other lobe's B.",
        "Huang et al. 2023 (LoraHub), arXiv:2307.13269",
        equal_ranks=True,
    ),
    "ties": Combination(
        "In A and in B, drops the small numbers, lets the lobes vote on each sign, and averages those that agree.",
        _TIES,
        equal_ranks=True,
        prunes=True,
    ),
    "ties_svd": Combination(
        "Drops small numbers of the deltas, votes on each sign, averages those that agree, and shrinks the result by SVD.",
        _TIES,
        prunes=True,
        chooses_rank=True,
    ),
    "dare_linear": Combination(
        "In A and in B, drops numbers at random, enlarges the rest to make up for them, and adds what is left.",
        _DARE,
        equal_ranks=True,
        prunes=True,
    ),
    "dare_linear_svd": Combination(
        "Drops numbers of the deltas at random, enlarges the rest to make up for them, adds, and shrinks the result by SVD.",
        _DARE,
        prunes=True,
        chooses_rank=True,
    ),
    "dare_ties": Combination(
        "In A and in B, drops numbers at random and enlarges the rest; then the lobes vote on each sign as in ties.",
        f"{_DARE}; {_TIES}",
        equal_ranks=True,
        prunes=True,
    ),
    "dare_ties_svd": Combination(
        "Drops numbers of the deltas at random, enlarges the rest, votes on each sign as in ties, and shrinks the result by SVD.",
        f"{_DARE}; {_TIES}",
        prunes=True,
        chooses_rank=True,
    ),
    "magnitude_prune": Combination(
        "In A and in B, drops the small numbers and adds what is left.",
        _PRUNE,
        equal_ranks=True,
        prunes=True,
    ),
    "magnitude_prune_svd": Combination(
        "Drops the small numbers of the deltas, adds what is left, and shrinks the result by SVD.",
        _PRUNE,
        prunes=True,
        chooses_rank=True,
    ),
}


def possible(headers: Sequence[AdapterHeader], names: Sequence[str] | None = None) -> dict[str, str]:
    """For every combination "" if these lobes can be combined by it, else why not.

    Args:
        names: what to call the lobes in a reason; their folder names if None.
    """
    called = list(names) if names is not None else [header.path.name for header in headers]
    everywhere = "choose at least one lobe" if not headers else _other_sizes(headers, called)
    ranks = _other_ranks(headers, called)
    reasons = {}
    for name, combination in COMBINATIONS.items():
        reasons[name] = everywhere
        if not everywhere and len(headers) == 1 and name not in ("cat", "linear"):
            reasons[name] = "with a single lobe PEFT would scale it and do nothing else; choose at least two"
        elif not everywhere and combination.equal_ranks and ranks:
            instead = f"{name}_svd" if f"{name}_svd" in COMBINATIONS else "svd or cat"
            reasons[name] = f"it needs one rank for all lobes, and {ranks}; use {instead}"
    return reasons


def _other_sizes(headers: Sequence[AdapterHeader], names: Sequence[str]) -> str:
    """Which two lobes disagree about a layer's features, or ""."""
    seen: dict[str, tuple[str, tuple[int, int]]] = {}
    for name, header in zip(names, headers, strict=True):
        for module, (_, *features) in header.shapes.items():
            first, theirs = seen.setdefault(module, (name, (features[0], features[1])))
            if theirs != tuple(features):
                sizes = "{}→{} in {} and {}→{} in {}".format(*theirs, first, *features, name)
                return f"the lobes belong to different base models: {module} is {sizes}"
    return ""


def _other_ranks(headers: Sequence[AdapterHeader], names: Sequence[str]) -> str:
    """Which two lobes have different ranks in a layer that both adapt, or ""."""
    seen: dict[str, tuple[str, int]] = {}
    for name, header in zip(names, headers, strict=True):
        for module, (rank, *_) in header.shapes.items():
            first, theirs = seen.setdefault(module, (name, rank))
            if theirs != rank:
                return f"{first} has rank {theirs} where {name} has {rank} ({module})"
    return ""
