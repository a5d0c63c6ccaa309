"""What lobes save people from: one ordinary adapter that learns a first domain and then a second,
and forgets the first.

The adapter is trained as any lobe is. For the second domain it goes on from what it has learned,
with a new optimizer, which is what fine-tuning a model again amounts to. All losses are mean NLL
per answer token, in nats, on rows held out; for a domain that holds none out, because each of its
rows is a fact, on rows that were trained.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.examples import Example
from ...lobes.adapter import read_header, read_matrices
from ...lobes.bank import LobeBank
from ...lobes.weights import Mix
from ...routers import RoutingRows
from ...settings import TrainingConfig
from ...training.batches import TokenRows, mean_answer_loss
from ...training.lobe import StepRecord, train_lobe

Losses = dict[str, float]


@dataclass(frozen=True)
class Domain:
    """A lobe's rows: to learn from, and to measure on.

    Attributes:
        lobe: its id in the bank.
        held_out: rows held out; with `trained` some of those to learn from, as there are no others.
    """

    name: str
    lobe: str
    train: Sequence[Example]
    held_out: Sequence[Example]
    trained: bool = False


@dataclass(frozen=True)
class Contrast:
    """One adapter that learned `first`, then `second`, beside the two lobes.

    Attributes:
        rows: training rows of each. held_out: rows of each that losses are measured on.
        trained: names of those of which these are training rows, because nothing was held out.
        losses: {"first": …, "second": …}, each {"base", "after_first", "after_second", "lobe"}, in
            nats per answer token.
        forgotten: how much the loss on the first domain rose while the second was learned.
        kept: share of what was learned of the first domain that is left, at most 1; None if nothing
            had been learned.
        curve: losses on both while it was trained: {"step", "first", "second"}. switch: step at
            which the second began.
    """

    first: str
    second: str
    rows: tuple[int, int]
    held_out: tuple[int, int]
    losses: Mapping[str, Losses]
    forgotten: float
    kept: float | None
    curve: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    switch: int = 0
    trained: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        return plain | {name: list(plain[name]) for name in ("rows", "held_out", "curve", "trained")}


class Drift:
    """The sequence, one half at a time.

    Args:
        folder: for its adapters.
    """

    def __init__(self, bank: LobeBank, first: Domain, second: Domain, config: TrainingConfig, folder: Path) -> None:
        self.bank, self.first, self.second, self.config, self.folder = bank, first, second, config, folder
        most = min(config.max_length, bank.backbone.context_length)
        self._rows = [TokenRows(bank.backbone, domain.held_out, most) for domain in (first, second)]
        self.curve: list[dict[str, float]] = []
        self.switch = 0

    def lobe_losses(self) -> tuple[float, float]:
        """Of each lobe on its own rows."""
        first, second = (self._losses(Mix.of({domain.lobe: 1.0})) for domain in (self.first, self.second))
        return first[0], second[1]

    def learn_first(self, **how: Any) -> Generator[StepRecord, None, None]:
        """Train it on the first domain."""
        yield from self._learn(0, "first", None, **how)
        self.switch = int(self.curve[-1]["step"]) if self.curve else 0

    def learn_second(self, **how: Any) -> Generator[StepRecord, None, None]:
        """Train it on, on the second."""
        yield from self._learn(1, "second", self.folder / "first", **how)

    def contrast(self) -> Contrast:
        """What came out, once both halves have been learned."""
        stages = {
            "base": self._losses(None),
            "after_first": self._losses(self.folder / "first"),
            "after_second": self._losses(self.folder / "second"),
        }
        losses = {name: {stage: both[i] for stage, both in stages.items()} for i, name in enumerate(("first", "second"))}
        for own, lobe in zip(losses.values(), self.lobe_losses(), strict=True):
            own["lobe"] = lobe
        learned = losses["first"]["base"] - losses["first"]["after_first"]
        left = losses["first"]["base"] - losses["first"]["after_second"]
        return Contrast(
            first=self.first.name,
            second=self.second.name,
            rows=(len(self.first.train), len(self.second.train)),
            held_out=(len(self.first.held_out), len(self.second.held_out)),
            losses=losses,
            forgotten=losses["first"]["after_second"] - losses["first"]["after_first"],
            kept=min(1.0, left / learned) if learned > 0 else None,
            curve=tuple(self.curve),
            switch=self.switch,
            trained=[domain.name for domain in (self.first, self.second) if domain.trained],
        )

    def _learn(self, which: int, name: str, start: Path | None, **how: Any) -> Generator[StepRecord, None, None]:
        domain, other = (self.first, self.second)[which], self._rows[1 - which]
        seen: list[float] = []

        def watch(model: Callable[..., Any]) -> None:
            seen.append(mean_answer_loss(model, self.bank.backbone, other))

        run = train_lobe(
            self.bank.backbone, domain.train, domain.held_out, self.config, self.folder / name, start=start, watch=watch, **how
        )
        for record in run:
            if record.validation_loss is not None:
                pair = (record.validation_loss, seen[-1])
                first, second = pair if which == 0 else pair[::-1]
                if start and record.step == 0:  # what was kept of the first half: its best step, not always its last
                    self.curve.pop()
                self.curve.append({"step": self.switch + record.step, "first": first, "second": second})
            yield record

    @torch.inference_mode()
    def _losses(self, how: Mix | Path | None) -> tuple[float, float]:
        """On the rows to measure both on, under lobes, an adapter folder or the base."""
        bank = self.bank
        run: Callable[..., Any]
        if isinstance(how, Path):
            device = bank.backbone.device
            with torch.inference_mode(False):
                held = {m: (a.to(device), b.to(device)) for m, (a, b) in read_matrices(read_header(how)).items()}

            def run(**inputs: Any) -> Any:
                return bank.run_live([held], torch.ones(1), **inputs)
        else:

            def run(**inputs: Any) -> Any:
                return bank.run(how, **inputs)

        first, second = (mean_answer_loss(run, bank.backbone, rows) for rows in self._rows)
        return first, second


def farthest(rows: Mapping[str, RoutingRows], given: Sequence[str] = ()) -> tuple[str, str]:
    """The two names whose rows mean the most different things: least cosine between the means of
    their prototypes.

    Args:
        rows: two names or more. given: at most two of them that must be in the pair; two are
            returned as they are.
    """
    if len(given) == 2:
        return given[0], given[1]
    means = {name: _unit(own.prototypes.mean(0)) for name, own in rows.items()}
    pairs = [(one, other) for one in (given or rows) for other in rows if other != one]
    return min(pairs, key=lambda pair: _cosine(means[pair[0]], means[pair[1]]))


def _unit(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def _cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Vectors of different sentence encoders cannot be compared; they count as alike."""
    return float(one @ other) if one.shape == other.shape else 1.0
