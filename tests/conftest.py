"""What all tests share. The environment is set before anything imports torch or transformers."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from multilobe_ui.base.backbone import Backbone

torch.set_num_threads(1)  # tiny matrices: threads only wait for each other


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """base_folder(architecture, template) -> folder of a tiny random base model, made once."""
    made: dict[object, Path] = {}

    def make(architecture: str = "llama", template: str | None = tiny.CHATML) -> Path:
        key = architecture, template
        if key not in made:
            made[key] = tiny.save_base(tmp_path_factory.mktemp(architecture), architecture, template)
        return made[key]

    return make


@pytest.fixture(scope="session")
def backbone(base_folder: Callable[..., Path]) -> Backbone:
    """A tiny random Llama that speaks ChatML; nobody may change it."""
    return Backbone.from_pretrained(base_folder(), device="cpu")


@pytest.fixture(scope="session")
def adapters(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters for `backbone`: other ranks, targets and scalings."""
    folder, model = tmp_path_factory.mktemp("adapters"), backbone.model
    return {
        "plain": tiny.save_adapter(model, folder / "plain", seed=1, r=4, lora_alpha=8),
        "attention": tiny.save_adapter(
            model, folder / "attention", seed=2, r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "o_proj"]
        ),
        "patterns": tiny.save_adapter(
            model,
            folder / "patterns",
            seed=3,
            r=2,
            lora_alpha=3,
            rank_pattern={"up_proj": 6, "^model.layers.1.self_attn.q_proj": 5},
            alpha_pattern={"layers.0.mlp.down_proj": 9, "o_proj": 1},
        ),
    }


@pytest.fixture(scope="session")
def builtin() -> Backbone:
    """The real built-in base model, for tests marked `builtin`; nobody may change it."""
    return Backbone.from_pretrained("builtin", device="cpu")
