"""Training, held against a plain loop over a PEFT model; resuming, stopping, choosing the best; and what comes out on disk."""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.data.examples import Example
from multilobe_ui.errors import AdapterError, ConfigError, DataError, MultiLobeError
from multilobe_ui.generation.decode import Request, generate_text
from multilobe_ui.lobes.adapter import read_header
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.weights import Mix
from multilobe_ui.settings import SamplingConfig, TrainingConfig, suggested_epochs, suggested_learning_rate
from multilobe_ui.training.batches import TokenRows, make_batch, mean_answer_loss
from multilobe_ui.training.lobe import StepRecord, TrainingResult, train_lobe
from multilobe_ui.training.loop import schedule

BASICS: dict[str, Any] = {
    "epochs": 2,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "learning_rate": 0.01,
    "max_length": 80,
}


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**BASICS | changes)


def finish(run: Generator[StepRecord, None, TrainingResult]) -> tuple[list[StepRecord], TrainingResult]:
    records = []
    while True:
        try:
            records.append(next(run))
        except StopIteration as end:
            return records, end.value


def losses(records: Sequence[StepRecord]) -> list[tuple[int, float | None, float | None, float | None]]:
    return [(r.step, r.loss, r.validation_loss, r.grad_norm) for r in records]


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def equal(one: Path, two: Path) -> bool:
    a, b = tensors(one), tensors(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def loss_of(model: Any, backbone: Backbone, rows: Sequence[Example]) -> float:
    """Mean NLL per answer token, one row at a time, by transformers' own loss."""
    total = count = 0.0
    for row in rows:
        prompt, answer = backbone.encode_chat(row.context), backbone.encode_answer(row.answer)
        labels = torch.tensor([[-100] * len(prompt) + answer])
        total += float(model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss) * len(answer)
        count += len(answer)
    return total / count


# ---- the curve -------------------------------------------------------------------------------------------------------------


def reference(
    backbone: Backbone, rows: Sequence[Example], config: TrainingConfig, start: Path | None = None
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Every row in every step, padded, in a loop as anyone would write it: losses, gradient norms, weights at the end."""
    torch.manual_seed(config.seed)
    lora = LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    plain: Any = copy.deepcopy(backbone.model)
    model = PeftModel.from_pretrained(plain, str(start), is_trainable=True) if start else get_peft_model(plain, lora)
    encoded = [(backbone.encode_chat(row.context), backbone.encode_answer(row.answer)) for row in rows]
    longest = max(len(prompt + answer) for prompt, answer in encoded)
    ids, mask = torch.full((len(rows), longest), 1), torch.zeros(len(rows), longest, dtype=torch.long)
    labels, weights = torch.full((len(rows), longest), -100), torch.zeros(len(rows), longest)
    for i, (prompt, answer) in enumerate(encoded):
        n = len(prompt + answer)
        ids[i, :n], mask[i, :n] = torch.tensor(prompt + answer), 1
        labels[i, len(prompt) : n] = torch.tensor(answer)
        weights[i, : len(prompt)], weights[i, len(prompt) : n] = config.prompt_weight, 1.0
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate or 0, weight_decay=config.weight_decay)
    steps = config.epochs
    warmup = round(steps * config.warmup_fraction)
    factors = [(i + 1) / warmup for i in range(warmup)]
    factors += [(1 + math.cos(math.pi * i / (steps - warmup))) / 2 for i in range(steps - warmup)]
    answer_losses, norms = [], []
    model.train()
    for factor in factors:
        output = model(input_ids=ids, attention_mask=mask, labels=labels)
        loss = output.loss
        answer_losses.append(float(loss))
        if config.prompt_weight:
            every = torch.nn.functional.cross_entropy(
                output.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
            )
            loss = (every * weights[:, 1:]).sum() / weights[:, 1:].sum()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)))
        optimizer.param_groups[0]["lr"] = factor * (config.learning_rate or 0)
        optimizer.step()
        optimizer.zero_grad()
    weights_at_end = {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return answer_losses, norms, weights_at_end


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "falcon", "bloom"])  # row by row, then masked, padded
@pytest.mark.parametrize("prompt_weight", [0.0, 0.3, 1.0])
def test_the_curve_is_that_of_a_plain_loop(
    base_folder: Callable[..., Path], tmp_path: Path, architecture: str, prompt_weight: float
) -> None:
    backbone, rows = Backbone.from_pretrained(base_folder(architecture), device="cpu"), tiny.examples(5)
    for module in backbone.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # GPT-2's own dropout would draw its numbers in another layout
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # and so would OPT's
    config = settings(
        epochs=8,
        batch_size=5,
        prompt_weight=prompt_weight,
        warmup_fraction=0.25,
        weight_decay=0.01,
        max_grad_norm=0.5,
        seed=3,
    )
    expected, norms, weights = reference(backbone, rows, config)
    records, result = finish(train_lobe(backbone, rows, [], config, tmp_path / "lobe"))
    steps = [r for r in records if r.loss is not None]
    assert [r.loss for r in steps] == pytest.approx(expected, abs=1e-4) and expected[0] - expected[-1] > 0.3
    assert [r.grad_norm for r in steps] == pytest.approx(norms, rel=1e-3) and max(norms) > 0.5
    assert result.train_loss == steps[-1].loss and result.steps == result.kept_step == 8
    found = tensors(tmp_path / "lobe")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-3, rtol=0)


class InOrder(Trainer):
    """A Trainer that takes rows as they come, and keeps the loss and the gradient norm of every step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []
        self.norms: list[float] = []

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(float(loss))
        return loss

    def log(self, logs: dict[str, float], *args: Any) -> None:
        self.norms += [logs["grad_norm"]] if "grad_norm" in logs else []


@pytest.mark.parametrize("layout", ["row by row", "packed under a mask", "padded"])
def test_the_curve_is_that_of_transformers_trainer(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Three epochs of ten rows in batches of four, which the Trainer pads to the longest: losses, norms, weights at the end."""
    config = settings(epochs=3, batch_size=4, prompt_weight=0.0, warmup_fraction=0.2, learning_rate=0.003)
    rows, batches = tiny.examples(10), []
    if layout != "row by row":
        monkeypatch.setattr("multilobe_ui.base.fast.attention.attend_by_row", lambda model: 0)
    if layout == "padded":
        monkeypatch.setattr("multilobe_ui.training.lobe.packs_exactly", lambda backbone: False)
    monkeypatch.setattr("multilobe_ui.training.lobe.make_batch", lambda *a: batches.append(make_batch(*a)) or batches[-1])
    records, _ = finish(train_lobe(backbone, rows, [], config, tmp_path / "lobe"))
    assert {(b.packed, b.apart is not None) for b in batches} == {(layout != "padded", layout == "row by row")}

    tokens, seen = TokenRows(backbone, rows, config.max_length), []
    for epoch in range(3):  # the order that `train_lobe` documents: from seed and epoch alone
        for i in np.random.default_rng([config.seed, epoch]).permutation(10):
            ids, prompt = tokens.row(i)
            seen.append({"input_ids": ids.tolist(), "labels": [-100] * prompt + ids[prompt:].tolist()})
    lora = LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(config.seed)
    model = get_peft_model(copy.deepcopy(backbone.model), lora)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=config.weight_decay, foreach=False)
    told = TrainingArguments(
        str(tmp_path / "trainer"), max_steps=3, per_device_train_batch_size=4, logging_steps=1, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    found: list[float] = []
    norms: list[float] = []
    scheduler = LambdaLR(optimizer, lambda step: schedule(step, 9, config.warmup_fraction))
    for epoch in range(3):  # one call an epoch, because an epoch ends with a smaller batch
        trainer = InOrder(
            model, told, DataCollatorForSeq2Seq(backbone.tokenizer), seen[10 * epoch : 10 * epoch + 10],
            optimizers=(optimizer, scheduler),
        )  # fmt: skip
        trainer.train()
        found += trainer.losses
        norms += trainer.norms
    steps = [r for r in records if r.loss is not None]
    assert [r.loss for r in steps] == pytest.approx(found, abs=1e-4) and found[0] - found[-1] > 0.3
    assert [r.grad_norm for r in steps] == pytest.approx(norms, rel=1e-3) and len(steps) == 9
    trained = {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if p.requires_grad}
    assert tensors(tmp_path / "lobe").keys() == trained.keys()
    for name, tensor in trained.items():
        torch.testing.assert_close(tensors(tmp_path / "lobe")[name], tensor, atol=1e-3, rtol=0)


def test_training_goes_on_from_an_adapter_as_a_plain_loop_does(backbone: Backbone, tmp_path: Path) -> None:
    config = settings(epochs=6, batch_size=4, warmup_fraction=0.2)
    finish(train_lobe(backbone, tiny.examples(4), [], config, tmp_path / "first"))
    rows, held_out, seen = tiny.examples(4, 20), tiny.examples(3, 20), []
    expected, _, weights = reference(backbone, rows, config, tmp_path / "first")
    run = train_lobe(
        backbone, rows, held_out, config, tmp_path / "second", start=tmp_path / "first",
        watch=lambda model: seen.append(loss_of(model, backbone, held_out)),
    )  # fmt: skip
    records, result = finish(run)
    assert [r.loss for r in records if r.loss is not None] == pytest.approx(expected, abs=1e-4)
    told = [r.validation_loss for r in records if r.validation_loss is not None]
    assert told == pytest.approx(seen, abs=1e-4) and len(told) == 7  # what `watch` saw was the model as it stood
    first = PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(tmp_path / "first")).eval()
    assert result.base_validation_loss == pytest.approx(loss_of(first, backbone, held_out), abs=1e-4)
    assert result.kept_step == 6
    for name, tensor in weights.items():
        torch.testing.assert_close(tensors(tmp_path / "second")[name], tensor, atol=2e-3, rtol=0)


def test_an_adapter_to_go_on_from_must_fit_the_settings(backbone: Backbone, tmp_path: Path) -> None:
    finish(train_lobe(backbone, tiny.examples(2), [], settings(epochs=1), tmp_path / "first"))
    for wrong in ({"lora_r": 2}, {"lora_alpha": 9}, {"use_rslora": True}, {"target_modules": ("q_proj",)}):
        with pytest.raises(ConfigError, match="first has another rank, scaling or other layers"):
            next(train_lobe(
                backbone, tiny.examples(2), [], settings(**wrong), tmp_path / "lobe", start=tmp_path / "first"
            ))  # fmt: skip
    with pytest.raises(AdapterError, match="not a PEFT adapter"):
        next(train_lobe(backbone, tiny.examples(2), [], settings(), tmp_path / "lobe", start=tmp_path))


def test_a_run_from_an_adapter_is_resumed_to_the_same_curve(backbone: Backbone, tmp_path: Path) -> None:
    rows, config = tiny.examples(6), settings(epochs=2, batch_size=2, lora_dropout=0.2)
    for i, name in enumerate(("one", "other")):
        finish(train_lobe(backbone, tiny.examples(4, 9 * i + 9), [], config, tmp_path / name))
    whole, _ = finish(train_lobe(backbone, rows, rows[:2], config, tmp_path / "whole", start=tmp_path / "one"))
    stop, first = threading.Event(), []
    where = {"checkpoint": tmp_path / "checkpoint", "start": tmp_path / "one"}
    for record in train_lobe(backbone, rows, rows[:2], config, tmp_path / "part", stop=stop, **where):
        first.append(record)
        if record.step == 3:
            stop.set()
    for wrong in ({"start": tmp_path / "other"}, {"start": None}):
        with pytest.raises(ConfigError, match="belongs to other rows"):
            next(train_lobe(backbone, rows, rows[:2], config, tmp_path / "rest", **where | wrong))
    rest, _ = finish(train_lobe(backbone, rows, rows[:2], config, tmp_path / "rest", **where))
    steps = [r for r in [*first, *rest] if r.loss is not None]
    assert losses(steps) == losses([r for r in whole if r.loss is not None]) and len(steps) == 6
    assert equal(tmp_path / "whole", tmp_path / "rest")


def test_accumulated_batches_are_one_larger_batch(backbone: Backbone, tmp_path: Path) -> None:
    rows, found = tiny.examples(10), []
    for size, count in ((4, 1), (2, 2), (1, 4)):
        config = settings(batch_size=size, gradient_accumulation=count, prompt_weight=0.2)
        found.append(finish(train_lobe(backbone, rows, rows[:2], config, tmp_path / str(size)))[0])
    for other in found[1:]:
        assert [r.step for r in other] == [r.step for r in found[0]]
        for mine, theirs in zip(other, found[0], strict=True):
            assert losses([mine])[0] == pytest.approx(losses([theirs])[0], abs=1e-4)
    assert found[0][-1].steps == 6  # three steps an epoch, the last of two rows


def test_an_epoch_sees_every_row_once_in_a_new_order(backbone: Backbone, tmp_path: Path) -> None:
    rows = [
        Example(({"role": "user", "content": "x" * 2**i},), "y") for i in range(5)
    ]  # a sum of lengths says which rows
    length = [TokenRows(backbone, [row], 80).length(0) for row in rows]
    records, _ = finish(
        train_lobe(backbone, rows, [], settings(epochs=3, batch_size=1, learning_rate=1e-9), tmp_path / "lobe")
    )
    seen = [r.tokens for r in records if r.loss is not None]
    steps = [b - a for a, b in zip([0, *seen], seen, strict=False)]
    epochs = [steps[i : i + 5] for i in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(length)] * 3 and len({tuple(epoch) for epoch in epochs}) > 1


def test_seeds_fix_everything(backbone: Backbone, tmp_path: Path) -> None:
    rows, found = tiny.examples(6), []
    for i, seed in enumerate((1, 1, 2)):
        torch.manual_seed(i)
        records, _ = finish(train_lobe(backbone, rows, [], settings(lora_dropout=0.3, seed=seed), tmp_path / str(i)))
        found.append(losses(records))
    assert found[0] == found[1] != found[2] and equal(tmp_path / "0", tmp_path / "1")


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    for steps, warmup in ((1, 0.0), (10, 0.0), (10, 0.3), (7, 1.0), (100, 0.06)):
        factors = [schedule(i, steps, warmup) for i in range(steps)]
        top = factors.index(1.0)
        assert factors[: top + 1] == sorted(factors[: top + 1]) and factors[top:] == sorted(factors[top:], reverse=True)
        assert all(0 < factor <= 1 for factor in factors) and (
            top == steps - 1 or schedule(steps, steps, warmup) < 1e-9
        )


def test_records_say_where_training_stands(backbone: Backbone, tmp_path: Path) -> None:
    config = settings(epochs=2, batch_size=2, evaluations_per_epoch=2, warmup_fraction=0.25)
    records, result = finish(train_lobe(backbone, tiny.examples(8), tiny.examples(2, 8), config, tmp_path / "lobe"))
    assert [(r.step, r.loss is None) for r in records] == [
        *[(0, True), (1, False), (2, False), (2, True), (3, False), (4, False), (4, True)],
        *[(5, False), (6, False), (6, True), (7, False), (8, False), (8, True)],
    ]
    assert all(
        (r.loss is None) != (r.validation_loss is None) and r.steps == 8 and r.epoch == r.step / 4 for r in records
    )
    used = [0.5, 1.0, *((1 + math.cos(math.pi * i / 6)) / 2 for i in range(6))]
    assert [r.learning_rate for r in records if r.loss is not None] == pytest.approx([0.01 * factor for factor in used])
    assert records[0].validation_loss == result.base_validation_loss
    assert result.base_validation_loss == pytest.approx(
        loss_of(backbone.model, backbone, tiny.examples(2, 8)), abs=1e-4
    )
    assert (result.train_rows, result.validation_rows, result.stopped, result.learning_rate) == (8, 2, False, 0.01)
    assert json.loads(json.dumps([r.to_json() for r in records]))[1]["loss"] == records[1].loss and json.dumps(
        result.to_json()
    )


# ---- stop and resume -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("at", [1, 3, 4, 9])
def test_a_stopped_run_resumes_to_the_very_same_curve(
    backbone: Backbone, tmp_path: Path, at: int, validated: bool
) -> None:
    config = settings(epochs=3, batch_size=2, lora_dropout=0.3, evaluations_per_epoch=1, seed=1, patience=2)
    data = tiny.examples(8), tiny.examples(3, 8) if validated else []
    whole, expected = finish(train_lobe(backbone, *data, config, tmp_path / "whole"))
    stop, first = threading.Event(), []
    run = train_lobe(backbone, *data, config, tmp_path / "stopped", checkpoint=tmp_path / "checkpoint", stop=stop)
    for record in (stepping := Recording(run)):
        first.append(record)
        if record.step == at and record.loss is not None:
            stop.set()
    assert stepping.result.stopped and stepping.result.steps == at and read_header(tmp_path / "stopped")
    torch.manual_seed(99)
    second, result = finish(
        train_lobe(backbone, *data, config, tmp_path / "resumed", checkpoint=tmp_path / "checkpoint")
    )
    assert losses([r for r in (*first, *second) if r.loss is not None]) == losses(
        [r for r in whole if r.loss is not None]
    )
    assert [r.validation_loss for r in second if r.loss is None] == [
        r.validation_loss for r in whole if r.loss is None and r.step > at
    ]
    assert equal(tmp_path / "resumed", tmp_path / "whole")
    assert (result.kept_step, result.validation_loss, result.train_loss, result.base_validation_loss) == (
        *(expected.kept_step, expected.validation_loss, expected.train_loss, expected.base_validation_loss),
    )
    assert second[-1].tokens == whole[-1].tokens


class Recording:
    """Iterates over a generator and keeps what it returns."""

    result: Any = None

    def __init__(self, run: Generator[StepRecord, None, TrainingResult]) -> None:
        self.run = run

    def __iter__(self) -> Any:
        self.result = yield from self.run


def test_a_killed_run_resumes_from_its_last_checkpoint(backbone: Backbone, tmp_path: Path) -> None:
    config = settings(epochs=3, batch_size=2, lora_dropout=0.3, evaluations_per_epoch=1)
    data = tiny.examples(8), tiny.examples(3, 8)
    whole, _ = finish(train_lobe(backbone, *data, config, tmp_path / "whole"))
    run = train_lobe(backbone, *data, config, tmp_path / "killed", checkpoint=tmp_path / "checkpoint")
    while next(run).step < 7:  # the last evaluation, and checkpoint, was at step 4
        pass
    run.close()
    assert not (tmp_path / "killed").exists()
    resumed, _ = finish(train_lobe(backbone, *data, config, tmp_path / "resumed", checkpoint=tmp_path / "checkpoint"))
    assert losses(resumed) == losses([r for r in whole if r.step > 4]) and equal(
        tmp_path / "resumed", tmp_path / "whole"
    )


def test_a_finished_run_resumes_to_its_result(backbone: Backbone, tmp_path: Path) -> None:
    data, checkpoint = (tiny.examples(4), tiny.examples(2, 4)), tmp_path / "checkpoint"
    _, first = finish(train_lobe(backbone, *data, settings(), tmp_path / "first", checkpoint=checkpoint))
    records, again = finish(train_lobe(backbone, *data, settings(), tmp_path / "again", checkpoint=checkpoint))
    assert records == [] and equal(tmp_path / "first", tmp_path / "again")
    assert (again.kept_step, again.validation_loss, again.steps) == (
        first.kept_step,
        first.validation_loss,
        first.steps,
    )


def test_a_checkpoint_of_something_else_is_refused(
    base_folder: Callable[..., Path], backbone: Backbone, tmp_path: Path
) -> None:
    rows, held_out = tiny.examples(4), tiny.examples(2, 4)
    finish(
        train_lobe(backbone, rows, held_out, settings(epochs=1), tmp_path / "lobe", checkpoint=tmp_path / "checkpoint")
    )
    other = Backbone.from_pretrained(base_folder("qwen2"), device="cpu")
    swapped = [Example(rows[0].context, rows[1].answer), Example(rows[1].context, rows[0].answer), *rows[2:]]
    for base, train, validation, changes in (
        (backbone, rows[::-1], held_out, {}),
        (backbone, swapped, held_out, {}),
        (backbone, rows, held_out[::-1], {}),
        (backbone, rows, held_out, {"lora_dropout": 0.1}),
        (backbone, rows, held_out, {"target_modules": ("q_proj",)}),
        (other, rows, held_out, {}),
    ):
        with pytest.raises(ConfigError, match="belongs to other rows"):
            run = train_lobe(
                base,
                train,
                validation,
                settings(epochs=1, **changes),
                tmp_path / "x",
                checkpoint=tmp_path / "checkpoint",
            )
            next(run)


def test_stopped_before_the_first_step(backbone: Backbone, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    records, result = finish(
        train_lobe(backbone, tiny.examples(4), tiny.examples(2), settings(), tmp_path / "lobe", stop=stop)
    )
    assert [r.step for r in records] == [0] and (result.steps, result.stopped) == (0, True)


# ---- the best --------------------------------------------------------------------------------------------------------------


OVERFITTING: dict[str, Any] = {
    **{"batch_size": 4, "evaluations_per_epoch": 1, "learning_rate": 0.02},
    "target_modules": ("lm_head", "q_proj", "v_proj", "up_proj", "down_proj"),
}


def overfitting() -> tuple[list[Example], list[Example]]:
    """What is learned from the first rows is ever more wrong on the second."""
    rows = tiny.examples(4)
    return rows, [Example(row.context, "😀中文字") for row in rows]


def test_the_best_adapter_is_kept_where_that_is_asked_for(backbone: Backbone, tmp_path: Path) -> None:
    train, validation = overfitting()
    config = settings(epochs=10, keep="best", **OVERFITTING)
    records, result = finish(train_lobe(backbone, train, validation, config, tmp_path / "lobe"))
    measured = {r.step: r.validation_loss for r in records if r.loss is None and r.step > 0}
    best = min(measured, key=lambda step: measured[step] or 0)
    assert result.kept_step == best < 10 and result.validation_loss == measured[best] < (measured[10] or 0)
    assert (result.kept, result.validation_rows) == ("best", 4)
    loss = loss_of(tiny.with_peft(backbone.model, tmp_path / "lobe"), backbone, validation)
    assert loss == pytest.approx(result.validation_loss, abs=1e-4)


def test_the_last_adapter_is_kept_else_however_the_held_out_rows_fare(backbone: Backbone, tmp_path: Path) -> None:
    train, validation = overfitting()
    config = settings(epochs=10, **OVERFITTING)
    records, result = finish(train_lobe(backbone, train, validation, config, tmp_path / "lobe"))
    measured = [r.validation_loss for r in records if r.validation_loss is not None]
    assert (result.kept, result.kept_step, result.validation_loss) == ("last", 10, measured[-1])
    assert measured[-1] > min(measured)
    loss = loss_of(tiny.with_peft(backbone.model, tmp_path / "lobe"), backbone, validation)
    assert loss == pytest.approx(measured[-1], abs=1e-4)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_without_held_out_rows_the_last_is_kept_and_nothing_is_measured(
    backbone: Backbone, tmp_path: Path, keep: str
) -> None:
    records, result = finish(train_lobe(backbone, tiny.examples(6), [], settings(keep=keep), tmp_path / "lobe"))
    assert [r.step for r in records] == [1, 2, 3, 4] and all(r.loss is not None for r in records)
    assert (result.kept, result.kept_step, result.validation_rows) == ("last", 4, 0)
    assert result.validation_loss is result.base_validation_loss is None and result.train_loss == records[-1].loss


@pytest.mark.parametrize("held_out", [0, 4])
def test_a_stop_keeps_the_newest_step(backbone: Backbone, tmp_path: Path, held_out: int) -> None:
    train, validation = overfitting()
    stop, config = threading.Event(), settings(epochs=10, **OVERFITTING | {"evaluations_per_epoch": 2, "batch_size": 1})
    checkpoint = tmp_path / "checkpoint"
    run = Recording(
        train_lobe(backbone, train, validation[:held_out], config, tmp_path / "lobe", checkpoint=checkpoint, stop=stop)
    )
    for record in run:
        if record.step == 33:
            stop.set()
    assert (run.result.kept, run.result.kept_step, run.result.steps, run.result.stopped) == ("last", 33, 33, True)
    kept, newest = tensors(tmp_path / "lobe"), load_file(checkpoint / "now.safetensors")
    assert kept.keys() == newest.keys() and all(torch.equal(kept[name], newest[name]) for name in kept)
    if held_out:
        loss = loss_of(tiny.with_peft(backbone.model, tmp_path / "lobe"), backbone, validation)
        assert loss == pytest.approx(run.result.validation_loss, abs=1e-4)


def test_epochs_and_rate_are_chosen_where_they_are_left_out(backbone: Backbone, tmp_path: Path) -> None:
    config = TrainingConfig(lora_r=2, max_length=64)
    _, result = finish(train_lobe(backbone, tiny.examples(40), [], config, tmp_path / "lobe"))
    assert result.steps == 10 * suggested_epochs(40)
    assert result.learning_rate == suggested_learning_rate(backbone.hidden_size)


def test_the_evaluation_of_a_stop_leaves_no_trace_in_the_resumed_run(backbone: Backbone, tmp_path: Path) -> None:
    train, validation = overfitting()
    config = settings(epochs=4, **OVERFITTING | {"batch_size": 1}, patience=2, keep="best")
    whole, _ = finish(train_lobe(backbone, train, validation, config, tmp_path / "whole"))
    stop, data = threading.Event(), (backbone, train, validation, config)
    for record in train_lobe(*data, tmp_path / "stopped", checkpoint=tmp_path / "checkpoint", stop=stop):
        if record.step == 3:
            stop.set()
    best = min(r.validation_loss for r in whole if r.validation_loss is not None and r.step > 0)
    assert record.step == 3 and record.validation_loss is not None and record.validation_loss < best
    resumed, _ = finish(train_lobe(*data, tmp_path / "resumed", checkpoint=tmp_path / "checkpoint"))
    assert losses(resumed) == losses([r for r in whole if r.step > 3]) and equal(
        tmp_path / "resumed", tmp_path / "whole"
    )


@pytest.mark.parametrize("patience", [1, 2])
def test_training_ends_after_so_many_evaluations_without_gain(
    backbone: Backbone, tmp_path: Path, patience: int
) -> None:
    train, validation = overfitting()
    whole, expected = finish(
        train_lobe(backbone, train, validation, settings(epochs=12, keep="best", **OVERFITTING), tmp_path / "whole")
    )
    patient = settings(epochs=12, patience=patience, keep="best", **OVERFITTING)
    early, result = finish(train_lobe(backbone, train, validation, patient, tmp_path / "early"))
    assert losses(early) == losses(whole)[: len(early)] and early[-1].step == expected.kept_step + patience < 12
    assert (
        result.kept_step == expected.kept_step and not result.stopped and equal(tmp_path / "early", tmp_path / "whole")
    )
    patient = settings(epochs=12, patience=patience, **OVERFITTING)
    again, last = finish(train_lobe(backbone, train, validation, patient, tmp_path / "last"))
    assert losses(again) == losses(early) and (last.kept, last.kept_step) == ("last", early[-1].step)


def test_when_stopped_between_evaluations_the_newest_may_be_the_best(backbone: Backbone, tmp_path: Path) -> None:
    stop, data = threading.Event(), (tiny.examples(8), tiny.examples(8))
    config = settings(epochs=2, batch_size=1, evaluations_per_epoch=1, keep="best")
    for record in (run := Recording(train_lobe(backbone, *data, config, tmp_path / "lobe", stop=stop))):
        if record.step == 5:
            stop.set()
    assert record.step == 5 and record.validation_loss == run.result.validation_loss and run.result.kept_step == 5
    loss = loss_of(tiny.with_peft(backbone.model, tmp_path / "lobe"), backbone, data[1])
    assert loss == pytest.approx(run.result.validation_loss, abs=1e-4)


# ---- rows ------------------------------------------------------------------------------------------------------------------


def test_the_end_of_turn_is_trained(backbone: Backbone) -> None:
    rows = TokenRows(backbone, tiny.examples(4), 80)
    for may_pack in (True, False):
        batch = make_batch([rows.row(i) for i in range(4)], 0.1, may_pack, backbone)
        answers = [backbone.encode_answer(row.answer) for row in tiny.examples(4)]
        assert batch.targets[batch.is_answer].tolist() == [token for answer in answers for token in answer]
        assert [answer[-1] for answer in answers] == [backbone.end_id] * 4
        assert batch.weights[batch.is_answer].tolist() == [1.0] * sum(map(len, answers))
        assert batch.weights[~batch.is_answer].unique().tolist() == pytest.approx([0.1])
        flat = batch.inputs["input_ids"].flatten()
        assert torch.equal(flat[batch.places + 1], batch.targets)
        assert batch.tokens == len(rows.ids) == len(batch.targets) + 4  # only the first token of a row is no target


def test_a_lobe_learns_its_answers_and_where_they_end(backbone: Backbone, tmp_path: Path) -> None:
    rows = [
        Example(({"role": "user", "content": question},), answer)
        for question, answer in (("Q", "Yes"), ("one", "It is 中."))
    ]
    targets = ("lm_head", "q_proj", "v_proj", "up_proj", "down_proj")
    config = settings(epochs=100, batch_size=3, learning_rate=0.005, lora_r=16, lora_alpha=32, target_modules=targets)
    records, _ = finish(train_lobe(backbone, rows, [], config, tmp_path / "lobe"))
    assert records[-2].loss is not None and records[-2].loss < 0.1
    bank = LobeBank(backbone)
    bank.register("lobe", tmp_path / "lobe")
    greedy = SamplingConfig(max_new_tokens=40, do_sample=False)
    requests = [Request(backbone.encode_chat(row.context), {"lobe": 1.0}, greedy) for row in rows]
    assert generate_text(bank, requests) == [row.answer for row in rows]


@pytest.mark.parametrize(("words", "answers"), [(0, 1), (60, 1), (0, 60), (60, 60), (3, 3), (30, 7), (7, 30)])
def test_long_rows_are_cut_and_keep_the_answer(backbone: Backbone, words: int, answers: int) -> None:
    example = Example(({"role": "user", "content": "x " * words},), "y " * answers)
    prompt, answer = backbone.encode_chat(example.context), backbone.encode_answer(example.answer)
    rows = TokenRows(backbone, [example, *tiny.examples(1)], 40)
    ids, prompt_length = rows.row(0)
    kept_prompt, kept_answer = ids[:prompt_length].tolist(), ids[prompt_length:].tolist()
    assert len(ids) == min(40, len(prompt + answer)) == rows.length(0)
    assert rows.truncated == (len(prompt + answer) > 40)
    assert kept_prompt == prompt[-len(kept_prompt) :] and kept_answer == answer[: len(kept_answer)] and kept_prompt
    assert len(kept_answer) == len(answer) or len(kept_prompt) == min(len(prompt), 20)
    assert rows.row(1)[0].tolist() == [
        *backbone.encode_chat(tiny.examples(1)[0].context),
        *backbone.encode_answer(tiny.examples(1)[0].answer),
    ]


def test_rows_are_never_longer_than_the_context(backbone: Backbone, tmp_path: Path) -> None:
    rows = [Example(({"role": "user", "content": "x " * 300},), "yes")]
    _, result = finish(train_lobe(backbone, rows, rows, settings(max_length=100_000), tmp_path / "lobe"))
    assert result.truncated_rows == 2


def test_the_mean_loss_of_many_rows_is_that_of_each(base_folder: Callable[..., Path], backbone: Backbone) -> None:
    rows = tiny.examples(90)
    for base in (backbone, Backbone.from_pretrained(base_folder("bloom"), device="cpu")):
        with torch.no_grad():
            found = mean_answer_loss(base.model, base, TokenRows(base, rows, 80))
        assert found == pytest.approx(loss_of(base.model, base, rows), abs=1e-5)


def test_few_rows_are_enough(backbone: Backbone, tmp_path: Path) -> None:
    one = [Example(({"role": "user", "content": "Q"},), "")]  # nothing to say but the end of the turn
    for validation in ([], one):
        records, result = finish(train_lobe(backbone, one, validation, settings(epochs=3), tmp_path / "lobe"))
        assert [r.step for r in records if r.loss is not None] == [1, 2, 3] and read_header(tmp_path / "lobe")
        assert (result.validation_loss is None) == (validation == [])
    with pytest.raises(DataError, match="no row"):
        next(train_lobe(backbone, [], one, settings(), tmp_path / "none"))


# ---- trouble ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets",
    [
        ("nope",),
        ("q_proj", "nope"),
        "nope",
        "(",
        r".*embed_tokens",
        ("embed_tokens",),
        ("self_attn",),
        ("norm",),
        ("proj",),
    ],
)
def test_unknown_target_modules_are_answered_with_those_there_are(
    backbone: Backbone, tmp_path: Path, targets: Any
) -> None:
    with pytest.raises(
        ConfigError, match="down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    ) as caught:
        next(train_lobe(backbone, tiny.examples(2), [], settings(target_modules=targets), tmp_path / "lobe"))
    assert repr(targets) in str(caught.value) and not (tmp_path / "lobe").exists()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q_proj", "v_proj"), ("q_proj", "v_proj")),
        (["mlp.up_proj"], ("up_proj",)),
        (r".*\.1\.mlp\.(up|down)_proj", ("down_proj", "up_proj")),
        (("lm_head", "q_proj"), ("lm_head", "q_proj")),
        (None, ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")),
    ],
)
def test_chosen_target_modules_are_trained_and_can_be_run(
    backbone: Backbone, tmp_path: Path, targets: Any, expected: Any
) -> None:
    finish(
        train_lobe(backbone, tiny.examples(2), [], settings(target_modules=targets, use_rslora=True), tmp_path / "lobe")
    )
    bank, ids = LobeBank(backbone), tiny.numbers(1, 8)
    assert bank.register("lobe", tmp_path / "lobe").target_modules == expected
    with torch.no_grad():
        ours = bank.run(Mix.of({"lobe": 1.0}), input_ids=ids).logits
        torch.testing.assert_close(
            ours, tiny.with_peft(backbone.model, tmp_path / "lobe")(ids).logits, atol=1e-5, rtol=1e-5
        )
        assert not torch.equal(ours, backbone.model(ids).logits)


def test_a_loss_that_is_no_number_is_an_error(base_folder: Callable[..., Path], tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(base_folder(), device="cpu")
    backbone.model.get_submodule("model.layers.1.mlp.up_proj").weight.data[0, 0] = float("nan")
    with pytest.raises(MultiLobeError, match=r"no longer a finite number at step 1\. Lower the learning rate"):
        finish(train_lobe(backbone, tiny.examples(2), tiny.examples(1), settings(), tmp_path / "lobe"))
    assert not (tmp_path / "lobe").exists()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_too_little_memory_says_what_to_lower(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def fail(*_: Any) -> Tensor:
        raise error

    monkeypatch.setattr("multilobe_ui.training.lobe.token_losses", fail)
    with pytest.raises(MultiLobeError, match="batch_size=4 and max_length=80"):
        finish(train_lobe(backbone, tiny.examples(2), [], settings(), tmp_path / "lobe"))


def test_other_errors_stay_what_they_are(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multilobe_ui.training.lobe.token_losses", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        finish(train_lobe(backbone, tiny.examples(2), [], settings(), tmp_path / "lobe"))


# ---- disk, base and chat ---------------------------------------------------------------------------------------------------


def test_the_adapter_is_plain_peft_and_says_nothing_of_this_machine(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_the_hub(*_: Any, **__: Any) -> None:
        pytest.fail("PEFT asked the hub about a local folder")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", ask_the_hub)
    finish(
        train_lobe(
            backbone,
            tiny.examples(2),
            tiny.examples(1),
            settings(),
            tmp_path / "lobe",
            checkpoint=tmp_path / "checkpoint",
        )
    )
    assert {p.name for p in (tmp_path / "lobe").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "lobe" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == Path(backbone.name).name and str(tmp_path.parent) not in json.dumps(
        config
    )
    assert config["inference_mode"] and (config["r"], config["lora_alpha"]) == (4, 8)
    assert all(
        ".lora_" in name and tensor.dtype == torch.float32 for name, tensor in tensors(tmp_path / "lobe").items()
    )


def test_a_bf16_base_trains_float32_lobes(base_folder: Callable[..., Path], backbone: Backbone, tmp_path: Path) -> None:
    half = Backbone.from_pretrained(base_folder(), device="cpu", dtype="bfloat16")
    config, found = settings(epochs=6, batch_size=4), []
    for i, base in enumerate((half, backbone)):
        records, _ = finish(train_lobe(base, tiny.examples(4), [], config, tmp_path / str(i)))
        found.append([r.loss for r in records if r.loss is not None])
    assert found[0] == pytest.approx(found[1], abs=0.05) and found[0][0] - found[0][-1] > 0.5
    assert {tensor.dtype for tensor in tensors(tmp_path / "0").values()} == {torch.float32}


def test_chat_goes_on_undisturbed_while_a_lobe_trains(
    backbone: Backbone, adapters: dict[str, Path], tmp_path: Path
) -> None:
    before = {name: p.clone() for name, p in backbone.model.state_dict().items()}
    bank, ids = LobeBank(backbone), tiny.numbers(1, 12)
    bank.register("plain", adapters["plain"])

    def answers() -> list[Tensor]:
        with torch.no_grad():
            return [bank.run(mix, input_ids=ids).logits for mix in (None, Mix.of({"plain": 1.0}))]

    expected, finished = answers(), threading.Event()

    def train() -> None:
        finish(train_lobe(backbone, tiny.examples(6), tiny.examples(2), settings(epochs=4), tmp_path / "lobe"))
        finished.set()

    alone, _ = finish(train_lobe(backbone, tiny.examples(6), tiny.examples(2), settings(epochs=4), tmp_path / "alone"))
    thread = threading.Thread(target=train)
    thread.start()
    asked = 0
    while thread.is_alive():
        assert all(torch.equal(a, b) for a, b in zip(answers(), expected, strict=True))
        asked += 1
    thread.join()
    assert finished.is_set() and asked > 1 and len(alone) > 8
    assert equal(tmp_path / "alone", tmp_path / "lobe")  # and chat does not disturb training
    assert all(torch.equal(p, before[name]) for name, p in backbone.model.state_dict().items())
    assert not backbone.model.training and not any(
        p.requires_grad or p.grad is not None for p in backbone.model.parameters()
    )


@pytest.mark.builtin
def test_the_builtin_base_learns(builtin: Backbone, tmp_path: Path) -> None:
    rows = tiny.examples(12)
    config = TrainingConfig(epochs=2, lora_r=4, max_length=64)
    records, result = finish(train_lobe(builtin, rows[:10], rows[10:], config, tmp_path / "lobe"))
    assert result.validation_loss is not None and result.base_validation_loss is not None
    assert result.validation_loss < 0.7 * result.base_validation_loss and len(records) > 6
    loss = loss_of(tiny.with_peft(builtin.model, tmp_path / "lobe"), builtin, rows[10:])
    assert loss == pytest.approx(result.validation_loss, abs=1e-3)
