"""What is made faster can be left out: the outcome is the same, and the forward is that of transformers and PEFT."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from peft.tuners.lora import Linear
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.base.fast import for_training
from multilobe_ui.base.fast.cache import new_cache
from multilobe_ui.base.fast.report import TURNED_OFF
from multilobe_ui.generation.decode import Request, stream_tokens
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.weights import Mix
from multilobe_ui.settings import SamplingConfig, TrainingConfig
from multilobe_ui.training.adapters import lora_twin
from multilobe_ui.training.lobe import train_lobe


@torch.no_grad()
def test_a_plain_base_gives_the_same_answers_by_transformers_own_forward(
    base_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    banks, losses = [], []
    for plain in ("", "1"):
        monkeypatch.setenv("MULTILOBE_PLAIN", plain)
        bank = LobeBank(Backbone.from_pretrained(base_folder(), device="cpu"))
        bank.register("lobe", tiny.save_adapter(bank.backbone.model, tmp_path / f"lobe{plain}", seed=3, r=4))
        config = TrainingConfig(epochs=1, batch_size=4, lora_r=4, lora_dropout=0.0, validation_fraction=0.0)
        with torch.enable_grad():
            run = train_lobe(bank.backbone, tiny.examples(8), [], config, tmp_path / f"trained{plain}")
            losses.append([record.loss for record in run if record.loss is not None])
        banks.append(bank)
    fast, plain_bank = banks
    for weights in ({}, {"lobe": 0.7}):
        request = Request([5, 6, 7, 8], weights, SamplingConfig(max_new_tokens=8, do_sample=False))
        ours, theirs = (
            bank.run(Mix.of(weights), input_ids=tiny.numbers(3, 9)).logits for bank in (fast, plain_bank)
        )
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        assert list(stream_tokens(fast, request)) == list(stream_tokens(plain_bank, request))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) == 2

    assert {type(layer) for layer in new_cache(plain_bank.backbone.config).layers} == {DynamicLayer}
    assert type(new_cache(plain_bank.backbone.config)) is DynamicCache
    for model in (plain_bank.backbone.model, plain_bank.model):
        for name, module in model.named_modules():
            listens = model is plain_bank.model and name in plain_bank.features
            assert ("forward" in vars(module)) == listens and type(module).__module__.split(".")[0] != "multilobe_ui"
            assert type(module).__call__ is torch.nn.Module.__call__
    assert {trick.reason for trick in plain_bank.fast.tricks} == {TURNED_OFF}
    assert {trick.reason for trick in fast.fast.tricks if trick.changed} == {""} and fast.fast != plain_bank.fast


def test_the_report_says_what_was_done_and_why_not(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    report = for_training(lora_twin(backbone, TrainingConfig()).eval())
    assert all((trick.changed > 0) != bool(trick.reason) for trick in report.tricks) and report.longest_row > 1000
    assert {trick.name: trick.changed for trick in report.tricks}["LoRA layers in one function"] == 14
    half = Backbone("half", copy.deepcopy(backbone.model).bfloat16(), backbone.tokenizer)
    other = for_training(lora_twin(half, TrainingConfig()).eval())
    assert {trick.name: trick.reason[:9] for trick in other.tricks}["norms in one function"] == "no frozen"
    monkeypatch.setenv("MULTILOBE_PLAIN", "1")
    model = lora_twin(backbone, TrainingConfig()).eval()
    assert for_training(model).longest_row == 0
    assert {type(m) for m in model.modules() if isinstance(m, Linear)} == {Linear}
