"""The bank, the decode loop and training, held against PEFT and transformers on every kind of architecture that there is:
separate, fused and grouped attention, GPT-2's Conv1D, sliding windows, soft caps, learned, rotary and ALiBi positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from multilobe_ui.base.backbone import Backbone, pad_left
from multilobe_ui.generation.decode import Request, generate_tokens
from multilobe_ui.lobes.adapter import linear_features
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.weights import Mix
from multilobe_ui.settings import SamplingConfig, TrainingConfig
from multilobe_ui.training.batches import TokenRows, make_batch, packs_exactly, token_losses
from multilobe_ui.training.lobe import train_lobe

LOBES = ("plain", "some", "patterns")
EXACT = {"atol": 1e-5, "rtol": 1e-5}


@dataclass
class World:
    backbone: Backbone
    bank: LobeBank
    adapters: dict[str, Path]
    deltas: dict[str, dict[str, Tensor]]

    def base(self, ids: Tensor, **inputs: Tensor) -> Tensor:
        return self.backbone.model(input_ids=ids, **inputs).logits

    def run(self, mix: Mix | None, ids: Tensor, **inputs: Tensor) -> Tensor:
        return self.bank.run(mix, input_ids=ids, **inputs).logits


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def world(
    request: pytest.FixtureRequest, base_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    backbone = Backbone.from_pretrained(base_folder(request.param), device="cpu")
    folder, model, bank = tmp_path_factory.mktemp("adapters"), backbone.model, LobeBank(backbone)
    leaves = sorted({name.rsplit(".", 1)[-1] for name in linear_features(model)} - {"lm_head", "embed_out"})
    adapters = {
        "plain": tiny.save_adapter(model, folder / "plain", seed=1, r=4, lora_alpha=8),
        "some": tiny.save_adapter(
            model,
            folder / "some",
            seed=2,
            r=3,
            lora_alpha=5,
            use_rslora=True,
            target_modules=leaves[: len(leaves) // 2],
        ),
        "patterns": tiny.save_adapter(
            model,
            folder / "patterns",
            seed=3,
            r=2,
            lora_alpha=3,
            rank_pattern={leaves[0]: 6},
            alpha_pattern={leaves[-1]: 9},
        ),
    }
    for lobe, path in adapters.items():
        bank.register(lobe, path)
    yield World(backbone, bank, adapters, {lobe: tiny.deltas(model, path) for lobe, path in adapters.items()})


@pytest.mark.parametrize("lobe", LOBES)
@torch.no_grad()
def test_one_lobe_is_peft(world: World, lobe: str) -> None:
    ids = tiny.numbers(2, 20)
    ours, theirs = (
        world.run(Mix.of({lobe: 1.0}), ids),
        tiny.with_peft(world.backbone.model, world.adapters[lobe])(ids).logits,
    )
    torch.testing.assert_close(ours, theirs, **EXACT)
    assert (ours - world.base(ids)).abs().max() > 1e-2


@torch.no_grad()
def test_no_weight_is_the_base_bit_for_bit(world: World) -> None:
    ids = tiny.numbers(2, 20)
    base = world.base(ids)
    nothing = [None, Mix.of({}), Mix.of({"plain": 0.0, "some": 0.0}), Mix.rows([{}, {"some": 0.0}])]
    nothing += [Mix(LOBES, torch.zeros(2, 20, 3)), Mix(LOBES, torch.zeros(2, 20, 99, 3))]
    for mix in nothing:
        assert torch.equal(world.run(mix, ids), base)
    world.run(Mix.of({"plain": 1.0}), ids)
    assert torch.equal(world.run(None, ids), base)


@torch.no_grad()
def test_a_mixture_is_the_sum_of_the_deltas(world: World) -> None:
    ids = tiny.numbers(2, 20)
    weights = {"plain": 0.6, "some": -0.3, "patterns": 1.2}
    reference = tiny.merged(world.backbone.model, [(world.deltas[lobe], w) for lobe, w in weights.items()])
    torch.testing.assert_close(world.run(Mix.of(weights), ids), reference(ids).logits, **EXACT)


@pytest.mark.parametrize(
    "rows",
    [
        [{"patterns": 1.0}, {}, {"plain": 1.0}, {"some": 0.5}],
        [{"plain": 1.0}, {"some": 1.0}, {"patterns": 1.0}, {"plain": -1.0}],
        [{"plain": 0.5, "some": 0.5}, {}, {"patterns": 1.0}, {"plain": 0.2, "patterns": 0.7}],
        [{"some": 1.0}, {}, {"some": 0.3}, {}],
    ],
)
@torch.no_grad()
def test_each_row_of_a_padded_batch_is_as_alone(world: World, rows: list[dict[str, float]]) -> None:
    prompts = [tiny.numbers(1, n, seed=n)[0].tolist() for n in (19, 5, 12, 1)]
    ids, mask = pad_left(prompts, 1, world.backbone.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    together = world.run(Mix.rows(rows), ids, attention_mask=mask, position_ids=positions)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        alone = tiny.merged(world.backbone.model, [(world.deltas[lobe], w) for lobe, w in row.items()])
        torch.testing.assert_close(together[i, -len(prompt) :], alone(torch.tensor([prompt])).logits[0], **EXACT)


@pytest.mark.parametrize("by_layer", [False, True])
@torch.no_grad()
def test_a_weight_for_each_token_and_layer(world: World, by_layer: bool) -> None:
    ids = tiny.numbers(2, 11)
    layers = len({name for lobe in LOBES for name in world.deltas[lobe]})
    shape = (2, 11, layers, 3) if by_layer else (2, 11, 3)
    weights = 0.4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weights[1] = 0
    reference = tiny.steered(world.backbone.model, [world.deltas[lobe] for lobe in LOBES], weights)
    torch.testing.assert_close(world.run(Mix(LOBES, weights), ids), reference(ids).logits, **EXACT)
    weights[..., [0, 2]] = 0  # only "some", which has fewer layers, has weight anywhere
    reference = tiny.steered(world.backbone.model, [world.deltas[lobe] for lobe in LOBES], weights)
    torch.testing.assert_close(world.run(Mix(LOBES, weights), ids), reference(ids).logits, **EXACT)


def test_greedy_decoding_is_transformers(world: World) -> None:
    greedy = SamplingConfig(max_new_tokens=16, do_sample=False)
    backbone, prompts = world.backbone, [tiny.numbers(1, n, seed=n)[0].tolist() for n in (12, 3, 24)]
    weights: list[dict[str, float]] = [{}, {"plain": 1.0}, {"patterns": 1.0}]
    models = [backbone.model, *(tiny.with_peft(backbone.model, world.adapters[lobe]) for lobe in ("plain", "patterns"))]
    expected = []
    for model, prompt in zip(models, prompts, strict=True):
        ids = torch.tensor([prompt])
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=sorted(backbone.stop_ids),
            pad_token_id=1,
        )
        expected.append([token for token in made[0, len(prompt) :].tolist() if token not in backbone.stop_ids])
    requests = [Request(prompt, w, greedy) for prompt, w in zip(prompts, weights, strict=True)]
    assert [decode(world.bank, [request])[0] for request in requests] == expected
    assert decode(world.bank, requests) == expected


def decode(bank: LobeBank, requests: list[Request]) -> list[list[int]]:
    steps = list(generate_tokens(bank, requests))
    return [[step[i] for step in steps if step[i] is not None] for i in range(len(requests))]


def test_a_trained_lobe_runs_in_peft_and_in_the_bank_alike(world: World, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in world.backbone.model.named_parameters()}
    config = TrainingConfig(epochs=1, batch_size=2, lora_r=2, learning_rate=0.05, max_length=64)
    records = list(train_lobe(world.backbone, tiny.examples(4), [], config, tmp_path / "lobe"))
    assert [r.step for r in records if r.loss is not None] == [1, 2]
    ids = tiny.numbers(1, 9)
    with torch.no_grad():
        theirs = tiny.with_peft(world.backbone.model, tmp_path / "lobe")(ids).logits
        world.bank.register("trained", tmp_path / "lobe")
        ours = world.run(Mix.of({"trained": 1.0}), ids)
        torch.testing.assert_close(ours, theirs, **EXACT)
        assert (ours - world.base(ids)).abs().max() > 1e-3
    world.bank.unregister("trained")
    assert all(torch.equal(p, before[name]) for name, p in world.backbone.model.named_parameters())


@torch.no_grad()
def test_packed_and_padded_rows_have_the_losses_of_the_rows_alone(world: World) -> None:
    backbone = world.backbone
    token_rows = TokenRows(backbone, tiny.examples(4), 80)
    rows = [token_rows.row(i) for i in range(4)]
    alone = []
    for ids, prompt_length in rows:
        long = torch.from_numpy(ids).long()
        logits = world.base(long[None])[0, prompt_length - 1 : -1]
        alone.append(torch.nn.functional.cross_entropy(logits, long[prompt_length:], reduction="none"))
    for may_pack in {False, packs_exactly(backbone)}:
        batch = make_batch(rows, 0.0, may_pack, backbone)
        assert batch.packed == may_pack
        torch.testing.assert_close(token_losses(backbone.model, backbone, batch), torch.cat(alone), **EXACT)


def test_which_architectures_pack(world: World, request: pytest.FixtureRequest) -> None:
    """Those with positions or masks of their own do not; a change here is a change of training speed."""
    name = request.node.callspec.params["world"]
    if not name.startswith("falcon"):  # it does since transformers 5.24, and did not before
        assert packs_exactly(world.backbone) != (name in ("opt", "bloom"))
