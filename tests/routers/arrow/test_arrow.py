"""Arrow: PEFT's maths where PEFT runs, exact singular vectors, and a router that needs no training."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from peft import ArrowConfig, create_arrow_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import ConfigError, RoutingError
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.mixers import runner
from multilobe_ui.routers import RoutingRows
from multilobe_ui.routers.arrow.mixer import ArrowMixer, prototypes
from multilobe_ui.routers.arrow.router import ArrowRouter
from multilobe_ui.routing.decision import Mixing
from multilobe_ui.routing.router import BankContext, FitOutcome, State, learn_now

EXACT = {"atol": 2e-5, "rtol": 1e-4}


def with_a_gap(folder: Path) -> Path:
    """Stretch one direction of every delta: only then do PEFT's 15 power iterations arrive at the singular vector."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor[:, 0] *= 8
    save_file(tensors, file)
    return folder


def lobes(model: nn.Module, folder: Path, count: int = 4, **lora: Any) -> dict[str, Path]:
    return {
        f"lobe{i}": with_a_gap(tiny.save_adapter(model, folder / f"lobe{i}", seed=i, size=0.1, **lora))
        for i in range(count)
    }


@pytest.fixture
def bank(backbone: Backbone, tmp_path: Path) -> LobeBank:
    made = LobeBank(backbone)
    for name, path in lobes(backbone.model, tmp_path).items():
        made.register(name, path)
    return made


# ---- the maths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(("top_k", "temperature"), [(3, 1.0), (1, 1.0), (2, 0.2), (4, 2.0)])
@torch.no_grad()
def test_logits_are_those_of_peft(
    base_folder: Callable[..., Path], tmp_path: Path, architecture: str, top_k: int, temperature: float
) -> None:
    backbone = Backbone.from_pretrained(base_folder(architecture), device="cpu")
    targets = {"llama": ["q_proj", "o_proj", "up_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}[architecture]
    folders = lobes(backbone.model, tmp_path, target_modules=targets, lora_alpha=6)
    bank = LobeBank(backbone)
    for name, path in folders.items():
        bank.register(name, path)
    config = ArrowConfig(top_k=top_k, router_temperature=temperature, rng_seed=0)
    theirs = create_arrow_model(copy.deepcopy(backbone.model), [str(path) for path in folders.values()], config).eval()
    ids = tiny.numbers(2, 9)
    expected = theirs(input_ids=ids).logits
    ours = runner(bank, ArrowMixer.of(bank, bank.lobes, top_k, temperature))(input_ids=ids, use_cache=False).logits
    assert (expected - backbone.model(input_ids=ids).logits).abs().max() > 0.05
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


def test_prototypes_are_first_right_singular_vectors(backbone: Backbone, adapters: dict[str, Path]) -> None:
    bank = LobeBank(backbone)
    for name, path in adapters.items():
        bank.register(name, path)
        for module, vector in bank.derived(name, "arrow", prototypes).items():
            a, b = bank.memory.matrices(name)[module]
            exact = torch.linalg.svd(b @ a).Vh[0]
            assert abs(float(vector @ exact)) == pytest.approx(1, abs=1e-4)
            assert float(vector.norm()) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_lobes_on_other_layers_have_no_weight_there(backbone: Backbone, adapters: dict[str, Path]) -> None:
    """What PEFT refuses: other ranks and targets. The reference adds each delta by a hook, the weights by a plain formula."""
    bank = LobeBank(backbone)
    for name, path in adapters.items():
        bank.register(name, path)
    ids = tiny.numbers(2, 9)
    run = ArrowMixer.of(bank, bank.lobes, top_k=2, temperature=0.5).start()
    ours = run(bank, input_ids=ids, use_cache=False).logits
    weights = run.weights
    deltas = [tiny.deltas(backbone.model, path) for path in adapters.values()]
    reference = tiny.steered(backbone.model, deltas, weights)
    inputs: dict[str, Tensor] = {}
    for name in bank.layers(bank.lobes):
        reference.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: inputs.__setitem__(name, args[0])
        )
    torch.testing.assert_close(ours, reference(ids).logits, **EXACT)
    for layer, module in enumerate(bank.layers(bank.lobes)):
        present = [i for i, lobe in enumerate(deltas) if module in lobe]
        scores = torch.full((2, 9, 3), -torch.inf)
        for i in present:
            scores[..., i] = (inputs[module] @ torch.linalg.svd(deltas[i][module]).Vh[0]).abs()
        best = scores.topk(2, dim=-1)
        expected = torch.full_like(scores, -torch.inf).scatter(-1, best.indices, best.values).div(0.5).softmax(-1)
        torch.testing.assert_close(weights[:, :, layer], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("values", [{"top_k": 0}, {"temperature": 0.0}])
def test_options_out_of_range_are_named(bank: LobeBank, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        ArrowMixer.of(bank, bank.lobes, **values)


@torch.no_grad()
def test_a_lobe_on_the_output_head_is_weighed_too(base_folder: Callable[..., Path], tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(base_folder("llama"), device="cpu")
    bank = LobeBank(backbone)
    for i in range(2):
        bank.register(
            f"{i}", tiny.save_adapter(backbone.model, tmp_path / f"{i}", seed=i, target_modules=["q_proj", "lm_head"])
        )
    run = ArrowMixer.of(bank, bank.lobes).start()
    ids = tiny.numbers(2, 7)
    whole, last = run(bank, input_ids=ids).logits, run(bank, input_ids=ids, logits_to_keep=1).logits
    torch.testing.assert_close(last, whole[:, -1:], **EXACT)
    assert run.weights.shape == (2, 7, 2, 2)  # without the head, which saw one token


# ---- the router ------------------------------------------------------------------------------------------------------------


def context(bank: LobeBank | None, names: Sequence[str], generic: int = 0) -> BankContext:
    none = np.zeros((0, 0), np.float32)
    known = {
        name: RoutingRows(none, none, none, [f"What is {i} and {j}?" for j in range(8)]) for i, name in enumerate(names)
    }
    return BankContext(
        list(names),
        known,
        embed=lambda texts: none,
        nll=lambda texts, lobes: none,
        generic_prompts=[f"zzz {i}" for i in range(generic)],
        bank=bank,
        ids={name: name for name in names},
    )


def fit(router: ArrowRouter, **settings: Any) -> FitOutcome:
    run = router.learn(settings, threading.Event())
    with pytest.raises(StopIteration) as end:
        while True:
            next(run)
    outcome: FitOutcome = end.value.value
    return outcome


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_decisions_are_sound_and_survive_json(bank: LobeBank, count: int, calibrated: bool) -> None:
    names = bank.lobes[:count]
    router = ArrowRouter(context(bank, names))
    if calibrated:
        learn_now(router)
    other = ArrowRouter(context(bank, names))
    other.adapt(State(json.loads(json.dumps(router.state()))))
    for prompt in ("What is 1 and 99?", "x", "The quick brown fox"):
        decision, again = router.route(prompt), other.route(prompt)
        assert {**decision.to_json(), "elapsed_ms": 0} == {**again.to_json(), "elapsed_ms": 0}
        assert decision.per_token and decision.chosen in names and decision.reason.endswith(".")
        assert set(decision.weights) == set(names)
        assert sum(decision.weights.values()) == pytest.approx(1, abs=1e-5)
        assert sum(decision.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert decision.probabilities[decision.chosen] == max(decision.probabilities.values())
        assert "".join(t["text"] for t in decision.evidence["tokens"]) == prompt


def test_the_decision_is_the_mean_of_what_the_answer_is_written_with(bank: LobeBank) -> None:
    router = ArrowRouter(context(bank, bank.lobes))
    run, prompt = router.mixer(Mixing("soft")).start(), "The quick brown fox"
    run(bank, input_ids=torch.tensor([bank.backbone.encode_chat([{"role": "user", "content": prompt}])]))
    opening, words = bank.backbone.encode_prompt(prompt)
    mean = run.weights[0, len(opening) : len(opening) + len(words)].mean((0, 1)).numpy()
    np.testing.assert_allclose([router.decide(prompt).weights[name] for name in bank.lobes], mean, atol=1e-5)
    assert router.mixer(Mixing("top_1")).top_k == 1 and router.mixer(Mixing()).top_k is None
    assert router.mixer(Mixing("top_k", 3)).top_k == 3


def test_calibration_is_measured_and_lets_few_prompts_go(bank: LobeBank) -> None:
    router = ArrowRouter(context(bank, bank.lobes, generic=30))
    report = fit(router, temperature=0.5).report
    assert router.mixer(Mixing()).temperature == 0.5 and router.threshold is not None
    assert 0 <= report["accuracy"] <= 1 and report["false_abstention"] <= 0.05 and report["held_out_rows"] == 32
    router.threshold = 1e6
    decision = router.route("anything")
    assert decision.abstained and decision.weights == {} and not decision.per_token


def test_a_calibration_of_other_lobes_is_refused(bank: LobeBank) -> None:
    router = ArrowRouter(context(bank, bank.lobes))
    fit(router, temperature=0.5)
    other = ArrowRouter(context(bank, bank.lobes[:2]))
    with pytest.raises(RoutingError, match="other lobes"):
        other.adapt(State(router.state()))
    other.adapt(State(router.state(), exact=False))
    assert other.mixer(Mixing()).temperature == 0.5 and other.route("fine").chosen in bank.lobes[:2]


def test_a_calibration_that_is_stopped_is_none(bank: LobeBank) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(RoutingError, match="stopped"):
        list(ArrowRouter(context(bank, bank.lobes)).learn({}, stop))
    with pytest.raises(ConfigError, match="heat"):
        list(ArrowRouter(context(bank, bank.lobes)).learn({"heat": 1}, stop))


@pytest.mark.parametrize("names", [(), ("lobe0",), ("lobe0", "lobe1")])
def test_without_a_model_the_base_answers(names: tuple[str, ...]) -> None:
    router = ArrowRouter(context(None, names))
    learn_now(router)
    assert not router.is_fitted and router.route("What?").abstained
    with pytest.raises(RoutingError, match="needs lobes"):
        router.mixer(Mixing())


def test_two_hundred_lobes(backbone: Backbone, adapters: dict[str, Path]) -> None:
    bank = LobeBank(backbone)
    names = [f"lobe{i}" for i in range(200)]
    for name in names:
        bank.register(name, adapters["attention"])
    decision = ArrowRouter(context(bank, names)).route("What is 7?")
    assert len(decision.weights) == 200 and sum(decision.weights.values()) == pytest.approx(1, abs=1e-4)
