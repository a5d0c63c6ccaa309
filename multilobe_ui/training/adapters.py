"""The trainable LoRA on the frozen base: a second module tree over the same weights, made and saved
by PEFT."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from ..base.backbone import Backbone
from ..errors import ConfigError
from ..lobes.adapter import WEIGHTS_FILE, linear_features, read_header
from ..settings import TrainingConfig


def lora_twin(backbone: Backbone, config: TrainingConfig) -> PeftModel:
    """A twin of the base with a fresh LoRA, reproducible from the seed.

    Raises:
        ConfigError: target_modules names no linear layer of the base.
    """
    targets: Any = config.target_modules
    if targets is None:
        targets = "all-linear"
    elif not isinstance(targets, str):
        targets = list(targets)
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        use_rslora=config.use_rslora,
        task_type="CAUSAL_LM",
    )
    layers = linear_features(backbone.model)
    named: Sequence[str] = ()
    if isinstance(targets, list):
        named = targets
    try:
        model = get_peft_model(backbone.twin(), lora)  # type: ignore[arg-type]
        fits = all(any(layer == t or layer.endswith(f".{t}") for layer in layers) for t in named)
        wrapped: Any = model.base_model.targeted_module_names  # a pattern may have matched an embedding
        fits = fits and set(wrapped) <= layers.keys()
    except (ValueError, re.error):
        fits = False
    if not fits:
        there = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))
        raise ConfigError(f"target_modules is {config.target_modules!r}; the linear layers of this base are {there}.")
    return model  # type: ignore[return-value]


def begin_from(model: PeftModel, adapter: Path) -> None:
    """Put an adapter's matrices in the place of a fresh LoRA's.

    Raises:
        AdapterError: it cannot be read. ConfigError: its rank, scaling or layers are not those of
            the fresh one.
    """
    header = read_header(adapter)
    tensors, fresh = load_file(adapter / WEIGHTS_FILE), adapter_tensors(model)
    layers: Any = model.base_model.model
    alike = {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in fresh.items()} and all(
        math.isclose(layers.get_submodule(name).scaling["default"], own) for name, own in header.scalings.items()
    )
    if not alike:
        raise ConfigError(
            f"{adapter.name} has another rank, scaling or other layers than the settings ask for. Train it with its own settings."
        )
    set_peft_model_state_dict(model, tensors)


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The LoRA matrices alone. Left to itself, PEFT asks the hub whether the base's vocabulary has grown."""
    tensors: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return tensors


def save_adapter(model: PeftModel, folder: Path, base_name: str) -> None:
    """Write a plain PEFT adapter; the base is named without this machine's folders."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = Path(base_name).name if os.path.isdir(base_name) else base_name
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; ours is card.json
    shutil.rmtree(folder / "runs", ignore_errors=True)


def as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
