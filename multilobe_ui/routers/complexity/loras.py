"""A LoRA for each tier, made, named and saved by PEFT and run by the bank, with the formula that
serves it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import set_peft_model_state_dict
from torch import Tensor

from ...base.backbone import Backbone
from ...files import new_folder
from ...lobes.bank import LobeBank
from ...lobes.deltas import Matrices
from ...settings import TrainingConfig
from ...training.adapters import adapter_tensors, lora_twin, save_adapter
from ...training.batches import PACKED_TOKENS, TokenRows, make_batch, packs_exactly, token_losses
from .network import ComplexitySettings

Array = np.ndarray[Any, Any]


class TierLoras:
    """A LoRA for each tier, made, named and saved by PEFT and run by the bank."""

    def __init__(self, backbone: Backbone, tiers: Sequence[str], settings: ComplexitySettings) -> None:
        self.backbone, self.tiers = backbone, tuple(tiers)
        self.bank = LobeBank(backbone)
        self.models = []
        for i, _ in enumerate(self.tiers):
            config = TrainingConfig(
                lora_r=settings.lora_r,
                lora_alpha=settings.lora_alpha,
                lora_dropout=0.0,  # the bank's formula has none
                target_modules=settings.target_modules,
                seed=(settings.seed + i) % 2**32,
            )
            self.models.append(lora_twin(backbone, config))
        self.parameters = [p for model in self.models for p in model.parameters() if p.requires_grad]
        self.packs = packs_exactly(backbone)

    def losses(self, tokens: TokenRows, numbers: Array, weights: Tensor) -> Tensor:
        """NLL (labels,) of every answer token of the rows `numbers` under weights (rows, tiers),
        with gradients."""
        live = [_matrices(model) for model in self.models]
        lengths = [tokens.length(int(i)) for i in numbers]
        parts = _fitting(lengths, PACKED_TOKENS) if self.packs else [slice(None)]  # short sequences need no padding
        losses = []
        for part in parts:
            batch = make_batch([tokens.row(int(i)) for i in numbers[part]], 0.0, self.packs, self.backbone)
            by_row = weights[part].to(self.backbone.device)
            if batch.packed:  # rows in one sequence: a row begins where the position ids do
                by_row = by_row[(batch.inputs["position_ids"] == 0).cumsum(1) - 1]
            run = partial(self.bank.run_live, live, by_row)
            losses.append(token_losses(run, self.backbone, batch))
        return torch.cat(losses)

    @torch.no_grad()
    def mean_loss(self, tokens: TokenRows, numbers: Array, weights: Tensor) -> float:
        """Mean NLL per answer token, in nats, of the rows `numbers` under weights (rows, tiers);
        zeros are the base."""
        order = np.argsort(
            [tokens.length(int(i)) for i in numbers], kind="stable"
        )  # rows of a length make an even batch
        groups = [order[i : i + 8] for i in range(0, len(order), 8)]
        parts = [self.losses(tokens, numbers[group], weights[torch.from_numpy(group)]) for group in groups]
        return float(torch.cat(parts).mean())

    def snapshot(self) -> list[dict[str, Tensor]]:
        return [{k: v.detach().clone() for k, v in adapter_tensors(model).items()} for model in self.models]

    def restore(self, snapshot: Sequence[dict[str, Tensor]]) -> None:
        for model, tensors in zip(self.models, snapshot, strict=True):
            set_peft_model_state_dict(model, tensors)

    def save(self, folder: Path, tiers: Sequence[str]) -> dict[str, Path]:
        """Write plain PEFT adapters; returns their folders."""
        for tier, model in zip(self.tiers, self.models, strict=True):
            if tier in tiers:
                with new_folder(folder / tier) as temporary:
                    save_adapter(model, temporary, self.backbone.name)
        return {tier: folder / tier for tier in tiers}


def _matrices(model: Any) -> Matrices:
    """A PEFT model's live LoRA matrices as the bank wants them: by the base's module name, B with
    the scaling folded in."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            a: Any = module.lora_A["default"].weight
            b: Any = module.lora_B["default"].weight
            found[name] = (a, b * module.scaling["default"])
    return found


def _fitting(lengths: Sequence[int], most: int) -> list[slice]:
    """Neighbours side by side, in parts of at most `most` tokens (or of one row that is longer)."""
    starts, size = [0], 0
    for i, length in enumerate(lengths):
        if i > starts[-1] and size + length > most:
            starts.append(i)
            size = 0
        size += length
    return [slice(a, b) for a, b in pairwise([*starts, len(lengths)])]
