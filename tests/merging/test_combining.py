"""The merge lab: every combination against plain PEFT and plain matrices, what is refused and why, and the search for weights."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import AdapterError, ConfigError, LobeError
from multilobe_ui.lobes.adapter import AdapterHeader, read_header, read_matrices
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.weights import Mix
from multilobe_ui.merging import COMBINATIONS, Trial, combine, losses, possible, search_weights
from multilobe_ui.training.batches import TokenRows, make_batch, mean_answer_loss, token_losses

ELEMENTWISE = {"linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"}


@pytest.fixture(scope="module")
def equals(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of one rank; the first and last have scalings that PEFT must not see."""
    folder, model = tmp_path_factory.mktemp("equals"), backbone.model
    return [
        tiny.save_adapter(model, folder / "stable", seed=1, r=4, lora_alpha=6, use_rslora=True),
        tiny.save_adapter(model, folder / "usual", seed=2, r=4, lora_alpha=4),
        tiny.save_adapter(model, folder / "partial", seed=3, r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]),
    ]


def exact(backbone: Backbone, lobes: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """Per module the weighted sum of PEFT's own deltas."""
    total: dict[str, Tensor] = {}
    for folder, weight in lobes:
        for name, delta in tiny.deltas(backbone.model, folder).items():
            total[name] = total.get(name, 0) + weight * delta
    return total


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Dense relative Frobenius norm of one - other, over other."""
    off = sum(float((one[name] - other[name]).double().square().sum()) for name in other)
    return float((off / sum(float(d.double().square().sum()) for d in other.values())) ** 0.5)


@torch.no_grad()
def bank_logits(backbone: Backbone, folder: Path, ids: Tensor) -> Tensor:
    bank = LobeBank(backbone)
    bank.register("made", folder)
    return bank.run(Mix.of({"made": 1.0}), input_ids=ids).logits


# ---- every combination -----------------------------------------------------------------------------------------------------


def test_every_combination_that_peft_offers_is_explained() -> None:
    offered = get_args(get_type_hints(LoraModel.add_weighted_adapter)["combination_type"])
    assert set(COMBINATIONS) == set(offered)
    assert {name for name, c in COMBINATIONS.items() if c.equal_ranks} == ELEMENTWISE
    assert {name for name, c in COMBINATIONS.items() if c.chooses_rank} == {n for n in offered if n.endswith("svd")}
    for combination in COMBINATIONS.values():
        assert combination.says.endswith(".") and len(combination.says) < 140
        assert any(year in combination.source for year in ("1936", "20"))


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_loads_in_peft_and_in_the_bank_with_the_same_logits(
    backbone: Backbone, equals: list[Path], combination: str, tmp_path: Path
) -> None:
    lobes = [(equals[0], 0.7), (equals[1], -0.4), (equals[2], 0.5)]
    made = combine(backbone, lobes, combination, tmp_path / "made", density=0.6)
    ids = tiny.numbers(2, 12)
    with torch.no_grad():
        peft = tiny.with_peft(backbone.model, made.path)(input_ids=ids).logits
    torch.testing.assert_close(bank_logits(backbone, made.path, ids), peft, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(peft, backbone.model(input_ids=ids).logits, atol=1e-2)
    dense, sum_of_all = tiny.deltas(backbone.model, made.path), exact(backbone, lobes)
    assert made.error == pytest.approx(distance(dense, sum_of_all), rel=1e-4, abs=1e-6)
    for name, error in made.layer_errors.items():
        alone = distance({name: dense[name]}, {name: sum_of_all[name]})
        assert error == pytest.approx(alone, rel=1e-4, abs=1e-6)
    header = read_header(made.path)
    assert set(header.scalings.values()) == {1.0}
    assert made.nbytes == header.nbytes == 4 * made.parameters
    assert made.rank == max(shape[0] for shape in header.shapes.values()) == (12 if combination == "cat" else 4)
    assert made.parents == (("stable", 0.7), ("usual", -0.4), ("partial", 0.5))
    assert json.loads(json.dumps(made.to_json()))["density"] == (0.6 if COMBINATIONS[combination].prunes else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_is_what_peft_makes_on_the_base_itself(backbone: Backbone, combination: str, tmp_path: Path) -> None:
    """Where PEFT is right (scalings of 1, one rank, no rsLoRA) the bare tree must change nothing, down to what DARE drops."""
    folders = [tiny.save_adapter(backbone.model, tmp_path / f"{i}", seed=i, r=4, lora_alpha=4) for i in (1, 2)]
    model = PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(folders[0]), adapter_name="one")
    model.load_adapter(str(folders[1]), adapter_name="two")
    torch.manual_seed(5)
    model.base_model.add_weighted_adapter(["one", "two"], [0.8, -0.3], "both", combination, svd_rank=None, density=0.5)
    layers = {n: m for n, m in model.base_model.model.named_modules() if isinstance(m, LoraLayer)}
    theirs = {name: layer.get_delta_weight("both").detach() for name, layer in layers.items()}
    made = combine(
        backbone, [(folders[0], 0.8), (folders[1], -0.3)], combination, tmp_path / "made", density=0.5, seed=5
    )
    assert distance(tiny.deltas(backbone.model, made.path), theirs) < 1e-5


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1.4, -0.9, 0.6), (-1.0, -0.2, -0.1)])
def test_cat_is_the_weighted_sum_with_any_ranks_targets_and_scalings(
    backbone: Backbone, adapters: dict[str, Path], weights: tuple[float, ...], tmp_path: Path
) -> None:
    """With the rsLoRA adapter first, whose flag PEFT would pass on."""
    lobes = list(zip((adapters[name] for name in ("attention", "patterns", "plain")), weights, strict=True))
    made = combine(backbone, lobes, "cat", tmp_path / "made")
    dense, wanted = tiny.deltas(backbone.model, made.path), exact(backbone, lobes)
    assert dense.keys() == wanted.keys()
    for name, delta in wanted.items():
        torch.testing.assert_close(dense[name], delta, atol=1e-5, rtol=1e-5)
    assert made.error < 1e-6
    ids, bank = tiny.numbers(2, 10), LobeBank(backbone)
    for name, path in adapters.items():
        bank.register(name, path)
    mix = Mix.of({path.name: weight for path, weight in lobes})
    with torch.no_grad():
        mixed = bank.run(mix, input_ids=ids).logits
    torch.testing.assert_close(bank_logits(backbone, made.path, ids), mixed, atol=1e-4, rtol=1e-4)
    shapes = read_header(made.path).shapes  # no layer is wider than its own lobes ask for
    for module, (rank, *_) in shapes.items():
        assert rank == sum(read_header(path).shapes.get(module, (0,))[0] for path in adapters.values())


def test_svd_is_the_best_that_its_rank_allows(backbone: Backbone, adapters: dict[str, Path], tmp_path: Path) -> None:
    lobes = [(adapters["attention"], 0.8), (adapters["plain"], -0.6), (adapters["patterns"], 0.4)]
    wanted, before = exact(backbone, lobes), 1.0
    for rank in (1, 3, 6):
        made = combine(backbone, lobes, "svd", tmp_path / "made", rank=rank)
        best = sum(float(torch.linalg.svdvals(d.double())[rank:].square().sum()) for d in wanted.values())
        whole = sum(float(d.double().square().sum()) for d in wanted.values())
        assert made.error == pytest.approx((best / whole) ** 0.5, rel=1e-3)
        assert made.rank == rank and made.error < before
        before = made.error
    made = combine(backbone, lobes, "svd", tmp_path / "made", rank=500)  # PEFT alone writes what it cannot load again
    assert made.error < 1e-5 and made.rank == 4 + 3 + 5
    ids = tiny.numbers(1, 8)
    with torch.no_grad():
        peft = tiny.with_peft(backbone.model, made.path)(input_ids=ids).logits
    torch.testing.assert_close(bank_logits(backbone, made.path, ids), peft, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("combination", ["linear", "magnitude_prune", "ties_svd"])
def test_layers_may_differ_in_rank_if_the_lobes_agree(backbone: Backbone, combination: str, tmp_path: Path) -> None:
    """PEFT alone forgets the rank_pattern and cannot load what it saved."""
    shape: dict[str, Any] = {"r": 2, "rank_pattern": {"up_proj": 5}}
    folders = [tiny.save_adapter(backbone.model, tmp_path / f"{i}", seed=i, **shape) for i in (1, 2)]
    made = combine(backbone, [(folders[0], 1.0), (folders[1], 0.5)], combination, tmp_path / "made")
    ids = tiny.numbers(1, 8)
    with torch.no_grad():
        peft = tiny.with_peft(backbone.model, made.path)(input_ids=ids).logits
    torch.testing.assert_close(bank_logits(backbone, made.path, ids), peft, atol=1e-4, rtol=1e-4)
    assert made.rank == 5 and set(read_header(made.path).scalings.values()) == {1.0}


@pytest.mark.parametrize("combination", ["cat", "svd", "linear", "ties_svd"])
def test_conv1d(base_folder: Callable[..., Path], combination: str, tmp_path: Path) -> None:
    base = Backbone.from_pretrained(base_folder("gpt2"), device="cpu")
    lobes = [
        (tiny.save_adapter(base.model, tmp_path / "one", seed=1, r=3, lora_alpha=5, use_rslora=True), 0.9),
        (tiny.save_adapter(base.model, tmp_path / "two", seed=2, r=3, target_modules=["c_attn"]), -0.5),
    ]
    made = combine(base, lobes, combination, tmp_path / "made")
    ids = tiny.numbers(1, 8)
    with torch.no_grad():
        peft = tiny.with_peft(base.model, made.path)(input_ids=ids).logits
    torch.testing.assert_close(bank_logits(base, made.path, ids), peft, atol=1e-4, rtol=1e-4)
    dense = tiny.deltas(base.model, made.path)
    assert made.error == pytest.approx(distance(dense, exact(base, lobes)), rel=1e-4, abs=1e-6)


def test_a_base_in_half_precision_costs_nothing(
    backbone: Backbone, base_folder: Callable[..., Path], equals: list[Path], tmp_path: Path
) -> None:
    half = Backbone.from_pretrained(base_folder(), device="cpu", dtype="bfloat16")
    lobes = [(equals[0], 0.7), (equals[1], -0.4)]
    assert combine(half, lobes, "cat", tmp_path / "made").error < 1e-6
    assert distance(tiny.deltas(backbone.model, tmp_path / "made"), exact(backbone, lobes)) < 1e-6


def test_nothing_else_changes(backbone: Backbone, equals: list[Path], tmp_path: Path) -> None:
    ids, bank = tiny.numbers(1, 8), LobeBank(backbone)
    bank.register("a", equals[0])
    with torch.no_grad():
        before = bank.run(None, input_ids=ids).logits, bank.run(Mix.of({"a": 1.0}), input_ids=ids).logits
    state = torch.random.get_rng_state()
    lobes = [(equals[0], 0.7), (equals[1], 0.4)]
    first, again, other = (
        combine(backbone, lobes, "dare_linear", tmp_path / f"{i}", seed=seed) for i, seed in enumerate((3, 3, 4))
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    files = [(made.path / "adapter_model.safetensors").read_bytes() for made in (first, again, other)]
    assert files[0] == files[1] != files[2]
    with torch.no_grad():
        after = bank.run(None, input_ids=ids).logits, bank.run(Mix.of({"a": 1.0}), input_ids=ids).logits
    assert all(map(torch.equal, before, after))
    assert not [n for n, m in backbone.model.named_modules() if isinstance(m, LoraLayer)]


# ---- what is refused -------------------------------------------------------------------------------------------------------


def headers(*folders: Path) -> list[AdapterHeader]:
    return [read_header(folder) for folder in folders]


def test_what_is_possible(backbone: Backbone, equals: list[Path], adapters: dict[str, Path], tmp_path: Path) -> None:
    assert set(possible(headers(*equals)).values()) == {""}  # other targets and scalings are no obstacle
    mixed = possible(headers(adapters["plain"], adapters["attention"]), ["code", "math"])
    assert {name for name, reason in mixed.items() if reason} == ELEMENTWISE
    assert mixed["ties"].startswith(
        "it needs one rank for all lobes, and code has rank 4 where math has 3 (model.layers.0."
    )
    assert mixed["ties"].endswith("use ties_svd")
    assert mixed["linear"].endswith("use svd or cat")
    apart = [
        tiny.save_adapter(backbone.model, tmp_path / "q", seed=1, r=2, target_modules=["q_proj"]),
        tiny.save_adapter(backbone.model, tmp_path / "v", seed=2, r=7, target_modules=["v_proj"]),
    ]
    assert set(possible(headers(*apart)).values()) == {""}  # no layer in common: nothing to disagree about
    made = combine(backbone, [(apart[0], 2.0), (apart[1], -1.0)], "linear", tmp_path / "made")
    assert made.error < 1e-6
    alone = possible(headers(equals[0]))
    assert {name for name, reason in alone.items() if not reason} == {"cat", "linear"}
    assert "at least two" in alone["svd"]
    assert set(possible([]).values()) == {"choose at least one lobe"}


def test_lobes_of_other_bases_are_refused(
    backbone: Backbone, base_folder: Callable[..., Path], equals: list[Path], tmp_path: Path
) -> None:
    model = copy.deepcopy(backbone.model)
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(32, 50, bias=False)
    stranger = tiny.save_adapter(model, tmp_path / "stranger", r=4, target_modules=["up_proj"])
    reasons = set(possible(headers(equals[0], stranger)).values())
    assert reasons == {
        "the lobes belong to different base models: model.layers.0.mlp.up_proj is 32→48 in stable and 32→50 in stranger"
    }
    with pytest.raises(AdapterError, match="cat cannot combine these lobes: the lobes belong to different base models"):
        combine(backbone, [(equals[0], 1.0), (stranger, 1.0)], "cat", tmp_path / "made")
    with pytest.raises(AdapterError, match=r"stranger does not fit .*up_proj is 32→50 there and 32→48 here"):
        combine(backbone, [(stranger, 1.0)], "cat", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"combination": "soup"}, "combination is 'soup': it must be one of cat, svd, linear"),
        ({"weights": (0.5, 0.0)}, "weight of usual is 0.0: it must be a finite number other than 0"),
        ({"weights": (float("nan"), 1.0)}, "weight of stable is nan"),
        ({"combination": "linear", "rank": 4}, "rank is 4: it must be None for linear"),
        ({"combination": "svd", "rank": 0}, "rank is 0: it must be at least 1"),
        ({"combination": "ties", "density": 0.0}, "density is 0.0: it must be above 0 and at most 1"),
        ({"combination": "ties", "density": 1.5}, "density is 1.5"),
    ],
)
def test_settings_out_of_range(
    backbone: Backbone, equals: list[Path], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"combination": "cat", "weights": (0.5, 0.5)} | changes
    lobes = list(zip(equals[:2], asked.pop("weights"), strict=True))
    with pytest.raises(ConfigError, match=message):
        combine(backbone, lobes, asked.pop("combination"), tmp_path / "made", **asked)
    assert list(tmp_path.iterdir()) == []


def test_combining_what_cannot_be_combined(backbone: Backbone, adapters: dict[str, Path], tmp_path: Path) -> None:
    lobes = [(adapters["plain"], 1.0), (adapters["attention"], 1.0)]
    with pytest.raises(AdapterError, match=r"ties cannot combine these lobes: it needs one rank .* use ties_svd"):
        combine(backbone, lobes, "ties", tmp_path / "made")
    with pytest.raises(AdapterError, match="cancel out: their weighted sum is zero"):
        combine(backbone, [(adapters["plain"], 0.5), (adapters["plain"], -0.5)], "cat", tmp_path / "made")
    with pytest.raises(AdapterError, match="svd cannot combine these lobes: with a single lobe"):
        combine(backbone, [(adapters["plain"], 0.5)], "svd", tmp_path / "made")
    with pytest.raises(AdapterError, match="cat cannot combine these lobes: choose at least one"):
        combine(backbone, [], "cat", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("combination", ["cat", "linear"])
def test_a_single_lobe_is_scaled(
    backbone: Backbone, adapters: dict[str, Path], combination: str, tmp_path: Path
) -> None:
    made = combine(backbone, [(adapters["attention"], -0.5)], combination, tmp_path / "made")
    assert made.error < 1e-6
    assert distance(tiny.deltas(backbone.model, made.path), exact(backbone, [(adapters["attention"], -0.5)])) < 1e-6


# ---- losses ----------------------------------------------------------------------------------------------------------------


def test_losses_of_parents_mixture_and_merge(backbone: Backbone, adapters: dict[str, Path], tmp_path: Path) -> None:
    lobes = [(adapters["attention"], 0.6), (adapters["plain"], 0.4)]
    data = {"one": tiny.examples(4), "two": tiny.examples(3, start=20)}
    kept = combine(backbone, lobes, "cat", tmp_path / "cat")
    table = list(losses(backbone, kept.path, lobes, data))
    assert [row.dataset for row in table] == ["one", "two"]
    with torch.no_grad():
        for row, rows in zip(table, data.values(), strict=True):
            tokens = TokenRows(backbone, rows, 512)
            models = [backbone.model, *(tiny.with_peft(backbone.model, folder) for folder, _ in lobes)]
            slow = [mean_answer_loss(model, backbone, tokens) for model in models]
            assert [row.base, *row.parents] == pytest.approx(slow, abs=1e-4)
            assert row.merged == pytest.approx(row.mixture, abs=1e-4)  # cat is the mixture
    lost = combine(backbone, lobes, "svd", tmp_path / "svd", rank=1)
    crude = next(losses(backbone, lost.path, lobes, data))
    assert crude.mixture == pytest.approx(table[0].mixture, abs=1e-6) and crude.merged != pytest.approx(crude.mixture)

    with pytest.raises(ConfigError, match="rows of none is 0: it must be at least one"):
        next(losses(backbone, lost.path, lobes, data | {"none": []}))


# ---- the search for weights ------------------------------------------------------------------------------------------------


def finish(search: Any) -> tuple[list[Trial], dict[str, float]]:
    trials = []
    while True:
        try:
            trials.append(next(search))
        except StopIteration as end:
            return trials, end.value


@pytest.fixture(scope="module")
def planted(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[LobeBank, list[Any], float]:
    """Two bad lobes that are a good one together: (good + noise) / 0.7 and (good - noise) / 0.7, so 0.7 / 2 of each is `good`."""
    folder, rows = tmp_path_factory.mktemp("planted"), tiny.examples(6)
    torch.manual_seed(0)
    wanted = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(backbone.model), wanted)
    tokens = TokenRows(backbone, rows, 512)
    batch = make_batch([tokens.row(i) for i in range(len(rows))], 0.0, False, backbone)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        token_losses(model, backbone, batch).mean().backward()
        optimizer.step()
    model.save_pretrained(str(folder / "good"), save_embedding_layers=False)
    noise = tiny.save_adapter(backbone.model, folder / "noise", seed=9, size=0.1)
    bank, w = LobeBank(backbone), 1 / 0.7
    for lobe, sign in (("plus", w), ("minus", -w)):
        combine(backbone, [(folder / "good", w), (noise, sign)], "cat", folder / lobe)
        bank.register(lobe, folder / lobe)
    bank.register("good", folder / "good")
    with torch.inference_mode():
        loss = mean_answer_loss(lambda **i: bank.run(Mix.of({"good": 1.0}), **i), backbone, tokens)
    return bank, rows, loss


def test_search_finds_a_planted_optimum(planted: tuple[LobeBank, list[Any], float]) -> None:
    bank, rows, loss = planted
    trials, weights = finish(search_weights(bank, ["plus", "minus"], rows, budget=25, penalty=0.0))
    assert [t.number for t in trials] == list(range(1, 26))
    alone = min(t.loss for t in trials if sorted(t.weights.values()) == [0.0, 1.0])
    best = min(trials, key=lambda t: t.objective)
    assert weights == dict(best.weights) and best.best
    assert best.loss < loss + 0.01 < alone - 1
    assert list(weights.values()) == pytest.approx([0.35, 0.35], abs=0.05)
    assert [t.best for t in trials] == [
        t.objective < min([u.objective for u in trials[:i]] or [9e9]) for i, t in enumerate(trials)
    ]


def test_search_repeats_itself_stops_and_keeps_to_its_bounds(planted: tuple[LobeBank, list[Any], float]) -> None:
    bank, rows, _ = planted
    lobes = ["plus", "minus", "good"]
    runs = [finish(search_weights(bank, lobes, rows, budget=9, bounds=(-0.2, 0.8), seed=s)) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert all(-0.2 <= w <= 0.8 for trials, _ in runs for t in trials for w in t.weights.values())
    for trial in runs[0][0]:
        assert trial.penalty == pytest.approx(0.05 * np.mean(np.abs(list(trial.weights.values()))))
    opening = [tuple(t.weights.values()) for t in runs[0][0][:3]]
    assert opening == [(0, 0, 0), pytest.approx((1 / 3,) * 3), (0.8, 0, 0)]
    stop, seen = threading.Event(), []
    search = search_weights(bank, lobes, rows, budget=50, stop=stop)
    for trial in search:
        seen.append(trial)
        if len(seen) == 4:
            stop.set()
    assert len(seen) == 4
    stopped, weights = finish(
        search_weights(bank, lobes, rows, stop=stop)
    )  # stopped before it began: the base at least
    assert len(stopped) == 1 and weights == dict.fromkeys(lobes, 0.0)


def test_a_heavy_penalty_leaves_lobes_out(planted: tuple[LobeBank, list[Any], float]) -> None:
    bank, rows, _ = planted
    _, weights = finish(search_weights(bank, ["plus", "minus"], rows, budget=10, penalty=1000.0))
    assert weights == {"plus": 0.0, "minus": 0.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bounds": (0.5, 1.0)}, "bounds is .* 0 between them"),
        ({"budget": 0}, "budget is 0: it must be at least 1 trial"),
        ({"penalty": -1.0}, "penalty is -1.0"),
        ({"lobes": []}, "needs at least one, each once"),
        ({"lobes": ["good", "good"]}, "each once"),
        ({"rows": []}, "has no examples"),
    ],
)
def test_a_search_that_cannot_begin(
    planted: tuple[LobeBank, list[Any], float], changes: dict[str, Any], message: str
) -> None:
    bank, rows, _ = planted
    asked: dict[str, Any] = {"lobes": ["good"], "rows": rows} | changes
    with pytest.raises(ConfigError, match=message):
        next(search_weights(bank, asked.pop("lobes"), asked.pop("rows"), **asked))
    with pytest.raises(LobeError, match="no lobe 'gone'"):
        next(search_weights(bank, ["gone"], rows))


def test_the_matrices_that_were_measured_are_those_on_disk(
    backbone: Backbone, equals: list[Path], tmp_path: Path
) -> None:
    made = combine(backbone, [(equals[0], 1.0), (equals[1], 1.0)], "svd", tmp_path / "made", rank=2)
    matrices = read_matrices(read_header(made.path))
    assert made.parameters == sum(a.numel() + b.numel() for a, b in matrices.values())
    assert all(a.shape[0] == 2 for a, _ in matrices.values())
