"""Training the network of the complexity router (`tiers.TierNetwork`): its losses, phase 1, how well it does.

It knows no language model: rows are vectors, tiers and scores.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...routing.calibration import fit_temperature
from ...training.loop import Best
from .features import TIERS

Array = np.ndarray[Any, Any]
ROWS_PER_STEP = 64
LEAST_GAIN = 1e-5
PATIENCE = 15
"""Passes without a lower validation loss after which phase 1 ends."""
WEIGHT_DECAY = 1e-2
SCORE_WEIGHT = 50.0
"""Of the score's squared error beside the cross-entropy: scores differ by a few tenths, so their
squares are small."""
SHARPNESS = 100.0
"""At the start of training: a hundredth of a point of score away from a threshold is worth one nat."""
LOGIT_SCALE = 10.0
"""`fit_temperature` looks from 0.02 to 1; of logits divided by ten that is T from 0.2 to 10."""


@dataclass(frozen=True)
class TierRows:
    """Prompts as the network sees them: x (n, f + d), tier (n,) as a number, score (n,) from 0 to 1."""

    x: Tensor
    tier: Tensor
    score: Tensor

    @classmethod
    def of(cls, x: Array, tier: Array, score: Array) -> TierRows:
        return cls(
            torch.from_numpy(x), torch.from_numpy(tier.astype(np.int64)), torch.from_numpy(score.astype(np.float32))
        )

    def __len__(self) -> int:
        return len(self.tier)

    def __getitem__(self, rows: Any) -> TierRows:
        return TierRows(self.x[rows], self.tier[rows], self.score[rows])


class RouterMLP(nn.Module):
    """One hidden layer, two heads; `tiers.TierNetwork` says what they compute.

    The cross-entropy does not reach the score through the tiers' head: it would bend the score at
    the thresholds (measured: 2 points of accuracy lost, and ten times the squared error).

    Args:
        inputs: f + d. hidden: units of the hidden layer. low, high: the thresholds. dropout: on the
            hidden units, in training.
    """

    def __init__(self, inputs: int, hidden: int, low: float, high: float, dropout: float = 0.1) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.body = nn.Linear(inputs, hidden)
        self.tiers = nn.Linear(hidden, len(TIERS))
        self.score = nn.Linear(hidden, 1)
        self.sharpness = nn.Parameter(torch.tensor([SHARPNESS]))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(tier logits (n, tiers), score (n,) from 0 to 1) of x (n, inputs)."""
        hidden = self.dropout(torch.relu(self.body(x)))
        score = torch.sigmoid(self.score(hidden)).squeeze(-1)
        s = score.detach()
        margins = torch.stack([self.low - s, torch.minimum(s - self.low, self.high - s), s - self.high], dim=1)
        return self.tiers(hidden) + self.sharpness * margins, score

    def arrays(self) -> dict[str, Array]:
        """All weights, by the names of `state_dict`; copies."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()}


def load_balance_loss(probabilities: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """N · Σ f_i · P_i of N experts: 1 when all get the same, N when one gets all (Fedus et al.
    2021, Switch Transformer, equations 4 to 6). f_i is the share of rows whose largest probability
    is expert i's, P_i the mean probability of i; gradients flow through P.

    Args:
        probabilities: (n, N). row_weights: (n,) how much a row counts in both means; None counts
            all alike. With the inverse of its tier's count the loss asks for balance on balanced
            traffic, and does not pull rows of a frequent tier away.
    """
    count = probabilities.shape[1]
    weights = probabilities.new_ones(len(probabilities)) if row_weights is None else row_weights
    weights = (weights / weights.sum()).to(probabilities)[:, None]
    chosen = nn.functional.one_hot(probabilities.argmax(1), count).to(probabilities)
    return count * ((chosen * weights).sum(0) * (probabilities * weights).sum(0)).sum()


@dataclass(frozen=True)
class RouterLoss:
    """What the router is trained for: total = cross-entropy of the tiers + SCORE_WEIGHT · mse +
    balance_weight · balance."""

    total: Tensor
    cross_entropy: Tensor
    mse: Tensor
    balance: Tensor

    def values(self) -> dict[str, float]:
        """Plain numbers, for a plot."""
        parts = {"cross_entropy": self.cross_entropy, "complexity_mse": self.mse, "balance": self.balance}
        return {name: float(part.detach()) for name, part in parts.items()}


def router_loss(
    logits: Tensor, score: Tensor, rows: TierRows, balance_weight: float, tier_weights: Tensor
) -> RouterLoss:
    """The loss of a batch. tier_weights (tiers,): how much a row of each tier counts in the balance
    (see `load_balance_loss`)."""
    cross_entropy = nn.functional.cross_entropy(logits, rows.tier)
    mse = nn.functional.mse_loss(score, rows.score)
    balance = load_balance_loss(logits.softmax(-1), tier_weights[rows.tier])
    return RouterLoss(cross_entropy + SCORE_WEIGHT * mse + balance_weight * balance, cross_entropy, mse, balance)


def tier_weights(rows: TierRows, tiers: int) -> Tensor:
    """(tiers,) the inverse of each tier's count."""
    return 1 / torch.bincount(rows.tier, minlength=tiers).clamp(min=1).float()


def train_router(
    router: RouterMLP,
    train: TierRows,
    validation: TierRows,
    *,
    epochs: int,
    learning_rate: float,
    balance_weight: float,
    seed: int,
) -> Generator[dict[str, float], None, None]:
    """Phase 1: AdamW over `epochs` passes in steps of at most 64 rows, the rate falling by a cosine to zero.

    Yields what each pass measured. However the iteration ends, the weights are those with the
    lowest validation loss.
    """
    optimizer = torch.optim.AdamW(router.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    # decays once an epoch; the first epochs at full rate do most of the work
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    balance = tier_weights(train, router.tiers.out_features)
    judged_on = validation if len(validation) else train
    size = min(ROWS_PER_STEP, max(4, len(train) // 16))  # few rows make small steps, or there would be too few steps
    best = Best(router.arrays)
    try:
        for epoch in range(epochs):
            router.train()
            torch.manual_seed(seed * 1_000_003 + epoch)  # dropout
            order = torch.from_numpy(np.random.default_rng([seed, 1, epoch]).permutation(len(train)))
            total = 0.0
            for start in range(0, len(train), size):
                rows = train[order[start : start + size]]
                logits, score = router(rows.x)
                loss = router_loss(logits, score, rows, balance_weight, balance)
                optimizer.zero_grad()
                loss.total.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.total.detach()) * len(rows) / len(train)
            decay.step()
            judged = judge(router, judged_on, balance_weight, balance)
            best.offer(judged["held_out_loss"], LEAST_GAIN)
            yield {"loss": total, **judged}
            if best.since >= PATIENCE:
                return
    finally:
        load(router, best.state)


@torch.no_grad()
def judge(router: RouterMLP, rows: TierRows, balance_weight: float, balance: Tensor) -> dict[str, float]:
    """held_out_loss, cross_entropy, complexity_mse, balance and routing_accuracy on rows that are
    not trained on."""
    router.eval()
    logits, score = router(rows.x)
    loss = router_loss(logits, score, rows, balance_weight, balance)
    accuracy = float((logits.argmax(1) == rows.tier).float().mean())
    return {"held_out_loss": float(loss.total), **loss.values(), "routing_accuracy": accuracy}


def load(router: RouterMLP, arrays: Mapping[str, Array]) -> None:
    """Take up what `RouterMLP.arrays` gave."""
    router.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


@torch.no_grad()
def calibrated_temperature(router: RouterMLP, rows: TierRows) -> float:
    """T for which softmax(logits / T) is likeliest on these rows (Guo et al. 2017); 1 where there
    are none."""
    if not len(rows):
        return 1.0
    router.eval()
    logits = router(rows.x)[0].cpu().numpy()
    return fit_temperature(logits / LOGIT_SCALE, rows.tier.cpu().numpy()) * LOGIT_SCALE


@torch.no_grad()
def report(router: RouterMLP, rows: TierRows, names: Sequence[str]) -> dict[str, Any]:
    """On rows that nothing was learned from: routing accuracy, by tier too, complexity MSE, and who
    is used how much.

    `usage` is the share of the rows that each expert gets, `balanced_usage` the same where every
    tier comes equally often.
    """
    router.eval()
    logits, score = router(rows.x)
    chosen = nn.functional.one_hot(logits.argmax(1), len(names)).float()
    by_tier = {name: chosen[rows.tier == i].mean(0) for i, name in enumerate(names) if bool((rows.tier == i).any())}
    balanced = torch.stack([*by_tier.values()]).mean(0)
    return {
        "rows": len(rows),
        "routing_accuracy": float((logits.argmax(1) == rows.tier).float().mean()),
        "accuracy_by_tier": {name: float(by_tier[name][i]) for i, name in enumerate(names) if name in by_tier},
        "complexity_mse": float(nn.functional.mse_loss(score, rows.score)),
        "usage": dict(zip(names, chosen.mean(0).tolist(), strict=True)),
        "balanced_usage": dict(zip(names, balanced.tolist(), strict=True)),
    }
