"""A table of answer losses: for every row, under the base and under every lobe, and what can be
looked up in it.

A router's loss is what is found where it points, the oracle's what is found under the row's own
lobe: nothing is run for them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Choice = str | None
"""Name of a lobe, or None for the base."""


@dataclass
class LossTable:
    """As much of the table as has been measured.

    Attributes:
        lobes: names. own: each dataset's own lobe, None where no lobe fits or none is known.
        nll: by (lobe or None, place of the dataset), NLL of each row's answer in nats, summed over
            its tokens, (rows,).
        tokens: by place of the dataset, tokens of each row's answer, (rows,).
        choices: by place of the dataset, what a router chose for each row.
    """

    lobes: list[str]
    own: Sequence[Choice]
    nll: dict[tuple[Choice, int], Array] = field(default_factory=dict)
    tokens: dict[int, Array] = field(default_factory=dict)
    choices: dict[int, Sequence[Choice]] = field(default_factory=dict)

    def mean(self, j: int, nll: Array | None) -> float | None:
        """Per answer token of dataset j; None for what has not been measured, or is no number."""
        value = float(nll.sum() / max(self.tokens[j].sum(), 1)) if nll is not None else np.nan
        return value if np.isfinite(value) else None

    def without(self, lobes: Collection[str]) -> LossTable:
        """The same without these lobes and without their own datasets."""
        kept = [j for j, own in enumerate(self.own) if own not in lobes]
        return LossTable(
            lobes=[name for name in self.lobes if name not in lobes],
            own=[self.own[j] for j in kept],
            nll={
                (name, place): self.nll[name, j]
                for place, j in enumerate(kept)
                for name in (None, *self.lobes)
                if (name, j) in self.nll and name not in lobes
            },
            tokens={place: self.tokens[j] for place, j in enumerate(kept) if j in self.tokens},
            choices={place: self.choices[j] for place, j in enumerate(kept) if j in self.choices},
        )

    def losses(self) -> list[list[float | None]]:
        """(lobes + 1, datasets), the base first."""
        return [[self.mean(j, self.nll.get((name, j))) for j in range(len(self.own))] for name in (None, *self.lobes)]

    def oracle(self) -> list[float | None]:
        """Of each dataset under its own lobe; None where it has none."""
        return [self.mean(j, self.nll.get((name, j))) if name else None for j, name in enumerate(self.own)]

    def routed(self, j: int) -> Array | None:
        """NLL of each row of dataset j under what the router chose for it; None if some of these
        have not been measured."""
        chosen = self.choices.get(j)
        if chosen is None or any((choice, j) not in self.nll for choice in chosen):
            return None
        return np.array([self.nll[choice, j][i] for i, choice in enumerate(chosen)])

    def gain(self) -> dict[str, float]:
        """By lobe, the base's loss minus its own on its dataset."""
        pairs = zip(self.own, self.losses()[0], self.oracle(), strict=True)
        return {name: base - own for name, base, own in pairs if name and base is not None and own is not None}

    def idle(self) -> list[str]:
        """Lobes that gain nothing on their dataset, or whose dataset another lobe reads better."""
        gain, best = self.gain(), {}
        for j, name in enumerate(self.own):
            column = {lobe: loss for lobe, row in zip(self.lobes, self.losses()[1:], strict=True) if (loss := row[j]) is not None}
            if name in gain:
                best[name] = column[name] <= min(column.values())
        return [name for name in gain if gain[name] <= 0 or not best[name]]

    def share_of_oracle(self) -> float | None:
        """(base - routed) / (base - oracle), each summed over the answers of all datasets that have
        a lobe of their own; None if nothing is measured yet, or their lobes gain nothing."""
        base = oracle = routed = 0.0
        for j, name in enumerate(self.own):
            ours = self.routed(j)
            if name and ours is not None and (name, j) in self.nll and (None, j) in self.nll:
                base += float(self.nll[None, j].sum())
                oracle += float(self.nll[name, j].sum())
                routed += float(ours.sum())
        share = (base - routed) / (base - oracle) if base > oracle else np.nan
        return float(share) if np.isfinite(share) else None


def share_of_exact(marks: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Exact matches of a router's choices / of the own lobes, over all rows of datasets that have
    one; None if those have none."""
    known = [each for each in marks.values() if each["oracle"]["exact"] is not None]
    ours, best = (sum(each[way]["exact"] * each["rows"] for each in known) for way in ("routed", "oracle"))
    return float(ours / best) if best else None
