"""A lobe trained: from rows in memory to an adapter on disk, beside transformers' Trainer on a PEFT model, and beside the peer.

All three run the same rows in batches of four under the same peak learning rate, LoRA of rank 16 on every linear layer, losses on
answers alone. Loading the base is nobody's time. The Trainer pads every batch to its longest row and gets its rows in our chat
format; the peer has a format of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contest import Result, race
from peer import Peer
from peft import LoraConfig, PeftModel, get_peft_model
from settings import Settings
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from world import BUILTIN, LARGE, World, read_rows

from multilobe_ui.assets import packaged_minilm
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.data.examples import Example
from multilobe_ui.settings import TrainingConfig, suggested_learning_rate
from multilobe_ui.training.batches import TokenRows, mean_answer_loss
from multilobe_ui.training.lobe import train_lobe

ROWS, EPOCHS = 300, 3
FEW_ROWS = 28
"""In the fast subset: 21 steps in three epochs."""
PEER_ROWS = 8
"""Of the peer's in the fast subset: its steps all cost the same, because it pads every row to 512 tokens. On the large base, where
a step of it takes half a minute to minutes, it does one step, once."""
LARGE_ROUNDS = 2


def results(world: World, settings: Settings) -> Iterator[Result]:
    yield from trained(world, settings, BUILTIN, ROWS if settings.full else FEW_ROWS, EPOCHS, whole_peer=settings.full)
    if settings.large:
        fewer = replace(settings, rounds=min(settings.rounds, LARGE_ROUNDS))
        yield from trained(world, fewer, LARGE, 32, 1, whole_peer=False)


def trained(
    world: World, settings: Settings, base: str, rows: int, epochs: int, *, whole_peer: bool
) -> Iterator[Result]:
    """whole_peer: the peer trains on all rows as well, once; else on a few, and its time is scaled to as many steps."""
    backbone, file = world.backbone(base), world.data(rows)
    examples = [Example(({"role": "user", "content": row["input"]},), row["output"]) for row in read_rows(file)]
    rate = suggested_learning_rate(backbone.hidden_size)
    config = TrainingConfig(epochs=epochs, learning_rate=rate, prompt_weight=0.0)
    steps = -(-rows // config.batch_size) * epochs
    work = f"training, {rows} rows × {epochs}" if epochs > 1 else f"training, {rows} rows once"
    adapters: dict[str, list[Path]] = {"ours": [], "trainer": []}
    curve: list[float] = []  # of our last run

    def place(name: str) -> tuple[Path, TrainingConfig]:
        """Where the next adapter goes, and the settings with the next seed: the draw of order and dropout moves the loss at the
        end by a tenth of a nat, so one seed compares nothing."""
        seed = len(adapters[name])
        folder = world.scratch / "trained" / f"{base.replace(' ', '-')}-{rows}-{name}-{seed}"
        adapters[name].append(folder)
        return folder, replace(config, seed=seed)

    def ours() -> None:
        folder, seeded = place("ours")
        records = train_lobe(backbone, examples, [], seeded, folder)
        curve[:] = [record.loss for record in records if record.loss is not None]

    def trainer() -> None:
        folder, seeded = place("trainer")
        train_with_trainer(world.plain(base), examples, seeded, folder)

    runs: dict[str, Callable[[], float | None]] = {"ours": ours, "trainer": trainer}
    peer = settings.peer
    few = PEER_ROWS if base == BUILTIN else config.batch_size

    def peer_steps() -> float:
        assert peer is not None
        return train_peer(peer, world, base, settings.threads, world.data(few), 1, rate)["stepping"]

    if peer is not None and not whole_peer and base == BUILTIN:
        runs["peer"] = peer_steps
    times = race(settings.rounds, runs)
    reached = [[loss_with(backbone, folder, examples, config) for folder in made] for made in adapters.values()]
    ends = [f"{sum(losses) / len(losses):.3f} ({min(losses):.3f}–{max(losses):.3f})" for losses in reached]
    note = f"{steps} steps on {base}, {len(reached[0])} seeds; loss on the rows at the end {ends[0]}, Trainer {ends[1]} nats."
    goals = (1.6, 14) if base == BUILTIN else (None, None)
    yield Result(work, base, "transformers.Trainer + PEFT", times["ours"], times["trainer"], "s", goals[0], note=note)
    if peer is None:
        return
    if whole_peer:  # minutes, so once, between two of ours
        told: dict[str, float] = {}

        def train_all() -> float:
            told.update(train_peer(peer, world, base, settings.threads, file, epochs, rate))
            return told["seconds"]

        both = race(1, {"before": ours, "peer": train_all, "after": ours}, warm_up=0)
        last = curve[-(steps // epochs) :]
        mean = sum(last) / len(last)
        note = f"mean loss over the last epoch {mean:.3f}, the peer {told['loss']:.3f} nats, each in its own format."
        yield Result(
            work, base, "multilobe 0.1.0", both["before"] + both["after"], both["peer"], "s", goals[1], note=note
        )
        needed = steps_to(told["loss"], curve, steps // epochs)
        if needed is not None:
            sooner = [seconds * needed / steps for seconds in both["before"] + both["after"]]
            note = f"{needed} of {steps} steps: until the mean over an epoch's worth of them is the peer's last."
            yield Result(
                f"{work}, to the peer's loss", base, "multilobe 0.1.0", sooner, both["peer"], "s", goals[1], note=note
            )
    else:
        taken = times.get("peer") or race(1, {"peer": peer_steps}, warm_up=0)["peer"]
        theirs = [seconds * steps / (few // config.batch_size) for seconds in taken]
        note = f"the peer's time on {base} is that of its steps on {few} rows, scaled to {steps} steps"
        note += "." if "peer" in times else f", measured once; {settings.rounds} rounds of ours."
        yield Result(work, base, "multilobe 0.1.0", times["ours"], theirs, "s", goals[1], note=note)


def steps_to(loss: float, curve: Sequence[float], window: int) -> int | None:
    """Steps until the mean of the last `window` losses was as low as `loss`; None if it never was."""
    means = (sum(curve[i - window : i]) / window for i in range(window, len(curve) + 1))
    return next((window + i for i, mean in enumerate(means) if mean <= loss), None)


def train_peer(
    peer: Peer, world: World, base: str, threads: int, file: Path, epochs: int, rate: float
) -> dict[str, float]:
    """What the worker says of the peer's `add_lobe`: seconds, those of its steps alone, mean loss of the last epoch."""
    peer.ask("prepare", base=str(world.base_folder(base)), encoder=str(packaged_minilm()), threads=threads)
    done: dict[str, float] = peer.ask("train", data=str(file), epochs=epochs, name="lobe", learning_rate=rate)
    return done


def train_with_trainer(backbone: Backbone, examples: Sequence[Example], config: TrainingConfig, folder: Path) -> None:
    """As transformers' and PEFT's documentation train a LoRA, with the settings of `config`."""
    rows = TokenRows(backbone, examples, config.max_length)
    data = []
    for i in range(len(rows)):
        ids, prompt = rows.row(i)
        data.append({"input_ids": ids.tolist(), "labels": [-100] * prompt + ids[prompt:].tolist()})
    lora = LoraConfig(
        r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    torch.manual_seed(config.seed)
    model = get_peft_model(backbone.twin(), lora)  # type: ignore[arg-type]
    steps = -(-len(data) // config.batch_size) * config.epochs
    told = TrainingArguments(
        str(folder), num_train_epochs=config.epochs, per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate, lr_scheduler_type="cosine", warmup_steps=round(steps * config.warmup_fraction),
        weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm, use_cpu=True, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=config.seed,
    )  # fmt: skip
    Trainer(model, told, DataCollatorForSeq2Seq(backbone.tokenizer), data).train()
    model.save_pretrained(str(folder), save_embedding_layers=False)


@torch.no_grad()
def loss_with(backbone: Backbone, adapter: Path, examples: Sequence[Example], config: TrainingConfig) -> float:
    """Mean NLL per answer token of the rows under an adapter, by PEFT's own layers, in nats."""
    model: Any = PeftModel.from_pretrained(backbone.twin(), str(adapter)).eval()  # type: ignore[arg-type]
    return mean_answer_loss(model, backbone, TokenRows(backbone, examples, config.max_length))
