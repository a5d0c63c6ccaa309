"""Weights worked out token by token: the bank's layer mixes, decoding with a mixer, and both mixers' promises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import AdapterError, ConfigError, LobeError
from multilobe_ui.generation.decode import Request, generate_text, generate_tokens
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.mixers import Mixer, mean_weights, runner
from multilobe_ui.lobes.weights import LayerMix, Mix
from multilobe_ui.routers.arrow.mixer import ArrowMixer
from multilobe_ui.routers.xlora.mixer import HeadShape, ScalingHead, XLoraMixer
from multilobe_ui.settings import SamplingConfig

EXACT = {"atol": 2e-5, "rtol": 1e-4}
GREEDY = SamplingConfig(max_new_tokens=12, do_sample=False)


@pytest.fixture
def bank(backbone: Backbone, adapters: dict[str, Path]) -> LobeBank:
    made = LobeBank(backbone)
    for lobe, path in adapters.items():
        made.register(lobe, path)
    return made


def random_head(bank: LobeBank, lobes: tuple[str, ...], seed: int = 0, **shape: Any) -> ScalingHead:
    torch.manual_seed(seed)
    head = ScalingHead(bank.backbone.hidden_size, len(lobes), len(bank.layers(lobes)), HeadShape(**shape)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 0.5)
    return head


def xlora(bank: LobeBank, top_k: int | None = None, **shape: Any) -> XLoraMixer:
    return XLoraMixer(random_head(bank, bank.lobes, **shape), bank.lobes, top_k)


MIXERS: dict[str, Callable[[LobeBank], Mixer]] = {
    "xlora": xlora,
    "xlora-sparse": lambda bank: xlora(bank, 1),
    "xlora-sequence": lambda bank: xlora(bank, reads="sequence", layerwise=False, depth=2, size=8),
    "xlora-both": lambda bank: xlora(bank, reads="both"),
    "arrow": lambda bank: ArrowMixer.of(bank, bank.lobes, top_k=2),
    "arrow-all": lambda bank: ArrowMixer.of(bank, bank.lobes, top_k=None, temperature=0.3),
}


@pytest.fixture(params=MIXERS)
def mixer(request: pytest.FixtureRequest, bank: LobeBank) -> Mixer:
    return MIXERS[request.param](bank)


# ---- the bank --------------------------------------------------------------------------------------------------------------


def test_layers_are_those_that_the_lobes_adapt_in_the_bases_order(bank: LobeBank) -> None:
    every = bank.layers(bank.lobes)
    assert every == tuple(name for name in bank.features if name != "lm_head")
    assert bank.layers(["attention"]) == tuple(name for name in every if name.endswith(("q_proj", "o_proj")))
    assert bank.layers([]) == ()
    with pytest.raises(LobeError, match="nobody"):
        bank.layers(["nobody"])


@torch.no_grad()
def test_weights_made_in_the_layers_equal_the_same_weights_given(bank: LobeBank) -> None:
    ids = tiny.numbers(2, 9)
    lobes = bank.lobes
    weights = torch.randn(2, 9, len(bank.layers(lobes)), 3, generator=torch.Generator().manual_seed(0))
    places = {name: i for i, name in enumerate(bank.layers(lobes))}
    mix = LayerMix(lobes, lambda name, x: weights[:, :, places[name]])
    given = bank.run(Mix(lobes, weights), input_ids=ids).logits
    assert torch.equal(bank.run(mix, input_ids=ids).logits, given)
    assert bank.run(LayerMix((), lambda name, x: x), input_ids=ids).logits.equal(bank.run(None, input_ids=ids).logits)


@torch.no_grad()
def test_weights_by_layer_are_the_same_for_long_and_short_inputs(bank: LobeBank, backbone: Backbone) -> None:
    """Short inputs stretch the weights of all layers at once."""
    weights = torch.randn(1, 80, len(bank.layers(bank.lobes)), 3, generator=torch.Generator().manual_seed(0))
    ids = tiny.numbers(1, 80)
    long, short = (bank.run(Mix(bank.lobes, weights[:, :n]), input_ids=ids[:, :n]).logits for n in (80, 20))
    torch.testing.assert_close(long[:, :20], short, **EXACT)


def test_what_is_derived_from_a_lobe_is_made_once_and_goes_with_it(bank: LobeBank, adapters: dict[str, Path]) -> None:
    made: list[int] = []

    def count(matrices: object) -> int:
        made.append(1)
        return len(made)

    assert [bank.derived("plain", "count", count) for _ in range(3)] == [1, 1, 1]
    bank.register("plain", adapters["plain"])
    assert bank.derived("plain", "count", count) == 2
    bank.unregister("plain")
    with pytest.raises(LobeError, match="plain"):
        bank.derived("plain", "count", count)


def test_a_layer_that_sees_some_tokens_only_cannot_be_weighed(base_folder: Callable[..., Path], tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(base_folder("qwen2_moe"), device="cpu")
    names = [n for n, m in backbone.model.named_modules() if isinstance(m, torch.nn.Linear) and "shared" in n]
    bank = LobeBank(backbone)
    bank.register("one", tiny.save_adapter(backbone.model, tmp_path / "one", target_modules=names[:1]))
    bank.run(ArrowMixerRun(bank), input_ids=tiny.numbers(2, 5))  # all tokens in one long row: fine
    call = LayerMix(("one",), lambda name, x: x.new_ones(*x.shape[:2], 1))
    layer = bank.model.get_submodule(names[0])
    bank.model.forward = lambda input_ids: layer(
        torch.zeros(3, layer.in_features)
    )  # an expert with three of ten tokens
    with pytest.raises(AdapterError, match="only some tokens"):
        bank.run(call, input_ids=tiny.numbers(2, 5))


def ArrowMixerRun(bank: LobeBank) -> LayerMix:
    return LayerMix(bank.lobes, ArrowMixer.of(bank, bank.lobes).weigh)


# ---- decoding --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def recomputed(bank: LobeBank, mixer: Mixer, ids: list[int], count: int) -> tuple[list[int], list[Tensor]]:
    """Greedy tokens and their weights without any cache: everything anew for every token."""
    tokens, weights = list(ids), []
    for _ in range(count):
        run = mixer.start()
        given = torch.arange(len(tokens))[None] < len(ids)
        logits = run(bank, input_ids=torch.tensor([tokens]), use_cache=False, given=given).logits[0, -1]
        tokens.append(int(logits.argmax()))
        weights.append(run.weights[0, -1])
        if tokens[-1] in bank.backbone.stop_ids:
            return tokens[len(ids) : -1], weights[:-1]
    return tokens[len(ids) :], weights


def test_two_caches_give_the_tokens_of_a_full_recomputation(bank: LobeBank, mixer: Mixer) -> None:
    ids = tiny.numbers(1, 7)[0].tolist()
    expected, expected_weights = recomputed(bank, mixer, ids, 12)
    seen: list[Tensor] = []
    made = [token for (token,) in generate_tokens(bank, [Request(ids, {}, GREEDY, mixer=mixer, watch=seen.append)])]
    assert [token for token in made if token is not None] == expected and len(expected) > 3
    torch.testing.assert_close(torch.stack(seen), torch.stack(expected_weights), **EXACT)


def test_rows_of_different_lengths_get_what_they_get_alone(bank: LobeBank, mixer: Mixer) -> None:
    prompts = [tiny.numbers(1, n, seed=n)[0].tolist() for n in (3, 11, 7)]
    watched: list[list[Tensor]] = [[], [], []]
    requests = [
        Request(ids, {}, GREEDY, mixer=mixer, watch=seen.append) for ids, seen in zip(prompts, watched, strict=True)
    ]
    rows: list[list[int]] = [[], [], []]
    for step in generate_tokens(bank, requests):
        for row, token in zip(rows, step, strict=True):
            if token is not None:
                row.append(token)
    for ids, row, seen in zip(prompts, rows, watched, strict=True):
        expected, weights = recomputed(bank, mixer, ids, 12)
        assert row == expected and len(seen) == len(weights)
        if weights:  # a row may end at once
            torch.testing.assert_close(torch.stack(seen), torch.stack(weights), **EXACT)


@torch.no_grad()
def test_weights_sum_to_one_for_every_token_and_layer(bank: LobeBank, mixer: Mixer) -> None:
    run = mixer.start()
    assert run.weights is None
    run(bank, input_ids=tiny.numbers(2, 9))
    weights = run.weights
    assert weights.shape == (2, 9, len(bank.layers(bank.lobes)), 3) and weights.min() >= 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    torch.testing.assert_close(mean_weights(weights[:1], 2, 5), weights[0, 2:5].mean((0, 1)))


@torch.no_grad()
def test_packed_rows_are_weighed_as_if_alone(bank: LobeBank, mixer: Mixer) -> None:
    one, two = tiny.numbers(1, 6), tiny.numbers(1, 4, seed=1)
    positions = torch.tensor([[*range(6), *range(4)]])
    prompts = torch.tensor([[1, 1, 1, 0, 0, 0]]).bool(), torch.tensor([[1, 1, 1, 1]]).bool()
    run, ids = runner(bank, mixer), torch.cat([one, two], 1)
    for given in (None, prompts):
        whole = None if given is None else torch.cat(given, 1)
        packed = run(input_ids=ids, position_ids=positions, use_cache=False, given=whole).logits
        alone = [
            run(input_ids=ids, use_cache=False, given=None if given is None else given[i]).logits
            for i, ids in enumerate((one, two))
        ]
        torch.testing.assert_close(packed, torch.cat(alone, 1), **EXACT)


def test_threads_with_other_mixers_do_not_disturb_each_other(bank: LobeBank) -> None:
    ids = tiny.numbers(1, 6)[0].tolist()
    requests = [Request(ids, {}, GREEDY, mixer=make(bank)) for make in MIXERS.values()]
    requests += [Request(ids, {}, GREEDY), Request(ids, {"plain": 1.0}, GREEDY)]
    alone = [generate_text(bank, [request]) for request in requests]
    assert len({tuple(text) for text in alone}) > 3
    start, wrong = threading.Barrier(len(requests)), []

    def ask(request: Request, expected: list[str]) -> None:
        start.wait()
        for _ in range(4):
            if generate_text(bank, [request]) != expected:
                wrong.append(request)

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(requests, alone, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_batch_has_one_mixer(bank: LobeBank) -> None:
    ids = tiny.numbers(1, 4)[0].tolist()
    one, two = xlora(bank), xlora(bank)
    for mixers in ((one, two), (one, None), (None, two)):
        with pytest.raises(ConfigError, match="same mixer"):
            next(generate_tokens(bank, [Request(ids, {}, GREEDY, mixer=mixer) for mixer in mixers]))


def test_an_answer_under_a_mixer_can_be_stopped(bank: LobeBank, mixer: Mixer) -> None:
    stop = threading.Event()
    steps = generate_tokens(bank, [Request(tiny.numbers(1, 5)[0].tolist(), {}, GREEDY, stop, mixer)])
    next(steps)
    stop.set()
    assert list(steps) == []


def test_a_lobe_deleted_meanwhile_is_named(bank: LobeBank, mixer: Mixer) -> None:
    bank.unregister("plain")
    with pytest.raises(LobeError, match="plain"):
        generate_text(bank, [Request(tiny.numbers(1, 5)[0].tolist(), {}, GREEDY, mixer=mixer)])
