"""Router and experts: the losses against plain formulas, each phase against what it may change, the files against PEFT."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.data.examples import Example
from multilobe_ui.errors import ConfigError, RoutingError
from multilobe_ui.lobes.adapter import read_header
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.weights import Mix
from multilobe_ui.progress import Progress
from multilobe_ui.routers.complexity.experts import EXPERTS, JOINT, ROUTER, ExpertsResult, _Run, train_experts
from multilobe_ui.routers.complexity.features import FEATURES, TIERS, scaled, score, tier_of
from multilobe_ui.routers.complexity.loras import _fitting
from multilobe_ui.routers.complexity.network import ComplexitySettings, Scale, TierNetwork
from multilobe_ui.routers.complexity.training import (
    RouterMLP,
    TierRows,
    load_balance_loss,
    report,
    router_loss,
    tier_weights,
)

BASICS: dict[str, Any] = {
    "lora_r": 4,
    "lora_alpha": 8,
    "hidden": 16,
    "router_epochs": 8,
    "expert_epochs": 2,
    "joint_epochs": 2,
    "expert_learning_rate": 0.01,
    "batch_size": 4,
    "max_length": 80,
}


class FakeAnalyser:
    """Features that grow with the number of words; no parser."""

    def features(self, prompts: Sequence[str]) -> np.ndarray:
        n = np.array([len(prompt.split()) for prompt in prompts], float)
        columns = {"words": 2 * n, "sentences": n / 8, "depth": n / 2, "distance": n / 3, "clauses": n / 4,
                   "entities": 0 * n, "vocabulary": n / 2, "readability": n}  # fmt: skip
        return np.stack([columns[name] for name in FEATURES], 1)


def embed(texts: Sequence[str]) -> np.ndarray:
    vectors = np.stack([np.random.default_rng(len(text)).normal(size=8) for text in texts])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rows(count: int = 36) -> list[Example]:
    """A third of each tier, by the fake analyser."""
    made = []
    for i in range(count):
        prompt = " ".join([f"What is {i}", *["and again"] * ((0, 4, 17)[i % 3] + i % 2)])
        made.append(Example(({"role": "user", "content": prompt},), f"It is {('small', 'middle', 'large')[i % 3]}."))
    return made


def settings(**changes: Any) -> ComplexitySettings:
    return ComplexitySettings(**BASICS | changes)


def run(backbone: Backbone | None, folder: Path, **changes: Any) -> Generator[Progress, None, ExpertsResult]:
    return train_experts(backbone, embed, FakeAnalyser(), rows(), settings(**changes), folder)


def finish(training: Generator[Progress, None, ExpertsResult]) -> tuple[list[Progress], ExpertsResult]:
    records = []
    while True:
        try:
            records.append(next(training))
        except StopIteration as end:
            return records, end.value


@pytest.fixture(scope="module")
def trained(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Progress], ExpertsResult]:
    return finish(run(backbone, tmp_path_factory.mktemp("experts")))


@pytest.fixture
def phases(backbone: Backbone) -> _Run:
    return _Run(backbone, embed, FakeAnalyser(), rows(), settings(), threading.Event(), ())


def copies(phases: _Run) -> tuple[dict[str, np.ndarray], list[Tensor]]:
    assert phases.experts is not None
    return phases.router.arrays(), [p.detach().clone() for p in phases.experts.parameters]


def same_router(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], two[name]) for name in one)


def same_experts(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_fake_rows_fill_all_tiers() -> None:
    values = score(FakeAnalyser().features([row.prompt for row in rows()]))
    assert [tier_of(value) for value in values[:3]] == list(TIERS)


class TestLosses:
    @pytest.mark.parametrize("weighted", [False, True])
    def test_load_balance_equals_a_plain_computation(self, weighted: bool) -> None:
        """Fedus et al. 2021, equations 4 to 6, row by row."""
        rng = np.random.default_rng(0)
        p = rng.dirichlet([1, 2, 3], size=50)
        weights = rng.uniform(0.1, 2, 50) if weighted else np.ones(50)
        f, mean = np.zeros(3), np.zeros(3)
        for row, weight in zip(p, weights, strict=True):
            f[row.argmax()] += weight / weights.sum()
            mean += row * weight / weights.sum()
        expected = 3 * sum(a * b for a, b in zip(f, mean, strict=True))
        found = load_balance_loss(torch.from_numpy(p), torch.from_numpy(weights) if weighted else None)
        assert float(found) == pytest.approx(expected, rel=1e-6)

    def test_load_balance_is_one_when_even_and_n_when_one_gets_all(self) -> None:
        assert float(load_balance_loss(torch.eye(3).repeat(4, 1))) == pytest.approx(1)
        assert float(load_balance_loss(torch.tensor([[1.0, 0, 0]] * 5))) == pytest.approx(3)

    def test_inverse_counts_ask_for_balance_on_balanced_traffic(self) -> None:
        tiers = torch.tensor([0] * 18 + [1] * 5 + [2])
        seen = TierRows(torch.zeros(24, 1), tiers, torch.zeros(24))
        right = torch.nn.functional.one_hot(tiers, 3).float()
        assert float(load_balance_loss(right, tier_weights(seen, 3)[tiers])) == pytest.approx(1)
        assert float(load_balance_loss(right)) > 1.5

    def test_the_parts_sum_up(self) -> None:
        torch.manual_seed(0)
        seen = TierRows(torch.randn(9, 5), torch.arange(9) % 3, torch.rand(9))
        with torch.no_grad():
            logits, estimate = RouterMLP(5, 7, 0.3, 0.7).eval()(seen.x)
        loss = router_loss(logits, estimate, seen, 0.1, torch.ones(3))
        p = torch.softmax(logits, 1)
        entropy = -torch.log(p[torch.arange(9), seen.tier]).mean()
        assert float(loss.cross_entropy) == pytest.approx(float(entropy), rel=1e-5)
        assert float(loss.mse) == pytest.approx(float(((estimate - seen.score) ** 2).mean()), rel=1e-5)
        total = loss.cross_entropy + 50 * loss.mse + 0.1 * load_balance_loss(p)
        assert float(loss.total) == pytest.approx(float(total), rel=1e-5)

    def test_a_report_equals_a_plain_count(self) -> None:
        class Fixed(RouterMLP):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return x[:, :3], x[:, 3]

        chosen, tiers = [0, 0, 0, 1, 2, 1], [0, 0, 0, 0, 1, 1]
        x = torch.cat([torch.eye(3)[chosen], torch.full((6, 1), 0.5)], 1)
        found = report(Fixed(1, 1, 0.3, 0.7), TierRows(x, torch.tensor(tiers), torch.tensor([0.5] * 5 + [0.9])), TIERS)
        assert found["routing_accuracy"] == pytest.approx(4 / 6)
        assert found["complexity_mse"] == pytest.approx(0.16 / 6, rel=1e-5)
        assert found["usage"] == pytest.approx({"simple": 3 / 6, "medium": 2 / 6, "complex": 1 / 6})
        balanced = {"simple": 0.75 / 2, "medium": (0.25 + 0.5) / 2, "complex": 0.5 / 2}
        assert found["balanced_usage"] == pytest.approx(balanced)
        assert found["accuracy_by_tier"] == pytest.approx({"simple": 0.75, "medium": 0.5})


class TestPhases:
    def test_the_first_touches_the_router_alone(self, phases: _Run) -> None:
        router, experts = copies(phases)
        list(phases.router_phase())
        assert not same_router(router, copies(phases)[0]) and same_experts(experts, copies(phases)[1])

    def test_the_second_touches_the_experts_alone(self, phases: _Run) -> None:
        router, experts = copies(phases)
        list(phases.expert_phase())
        after = copies(phases)
        assert same_router(router, after[0])
        assert not any(torch.equal(a, b) for a, b in zip(experts, after[1], strict=True))

    def test_an_expert_learns_from_its_own_tier_alone(self, phases: _Run) -> None:
        live = phases._live
        simple = np.flatnonzero(phases.train.tiers == 0)
        weights = torch.tensor([[1.0, 0, 0]] * len(simple))
        live.losses(phases.train.tokens, simple, weights).mean().backward()
        count = len(live.parameters) // 3
        reached = [bool(p.grad is not None and p.grad.abs().sum() > 0) for p in live.parameters]
        assert any(reached[:count]) and not any(reached[count:])

    def test_in_the_third_the_answers_teach_router_and_experts(self, phases: _Run) -> None:
        """The loss of the answers alone, without the router's own."""
        list(phases.expert_phase())  # with B at zero an expert's weight would not matter
        live = phases._live
        seen = phases.train.seen
        for p in [*live.parameters, *phases.router.parameters()]:
            p.grad = None
        weights = phases.router.eval()(seen.x)[0].softmax(1)
        live.losses(phases.train.tokens, phases.train.answered, weights).mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in live.parameters)
        reached = {name for name, p in phases.router.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert reached == {"body.weight", "body.bias", "tiers.weight", "tiers.bias", "sharpness"}

    def test_the_third_changes_both(self, phases: _Run) -> None:
        list(phases.router_phase()), list(phases.expert_phase())
        before = copies(phases)
        list(phases.joint_phase())
        after = copies(phases)
        assert not same_router(before[0], after[0]) and not same_experts(before[1], after[1])

    def test_weights_of_a_packed_batch_are_those_of_its_rows(self, phases: _Run) -> None:
        list(phases.expert_phase())
        live, tokens = phases._live, phases.train.tokens
        numbers = np.array([0, 1, 2, 3])
        weights = torch.rand(4, 3)
        assert live.packs
        together = live.losses(tokens, numbers, weights)
        alone = [live.losses(tokens, numbers[i : i + 1], weights[i : i + 1]) for i in range(4)]
        live.packs = False
        padded = live.losses(tokens, numbers, weights)
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together, padded, atol=1e-5, rtol=1e-4)

    def test_long_batches_are_run_in_parts(self, phases: _Run, monkeypatch: pytest.MonkeyPatch) -> None:
        list(phases.expert_phase())
        numbers, weights = np.arange(6), torch.rand(6, 3)
        whole = phases._live.losses(phases.train.tokens, numbers, weights)
        monkeypatch.setattr("multilobe_ui.routers.complexity.loras.PACKED_TOKENS", 60)
        torch.testing.assert_close(phases._live.losses(phases.train.tokens, numbers, weights), whole, atol=1e-5, rtol=1e-4)
        assert _fitting([30, 30, 20, 70, 10], 60) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]

    def test_the_base_is_untouched(self, backbone: Backbone, tmp_path: Path) -> None:
        ids = tiny.numbers(2, 9)
        before = backbone.model(input_ids=ids).logits
        finish(run(backbone, tmp_path))
        assert torch.equal(before, backbone.model(input_ids=ids).logits)


class TestResult:
    def test_records_count_up_through_three_phases(self, trained: tuple[list[Progress], ExpertsResult]) -> None:
        records, _ = trained
        assert list(dict.fromkeys(record.phase for record in records)) == [ROUTER, EXPERTS, JOINT]
        steps = [record.step for record in records]
        assert steps == sorted(steps) and steps[-1] == records[-1].steps and len({r.steps for r in records}) == 1
        assert all(np.isfinite(list(record.values.values())).all() for record in records)
        assert {"routing_accuracy", "complexity_mse", "balance", "held_out_loss"} <= records[0].values.keys()
        assert {"loss", "cross_entropy", "usage_simple", "held_out_loss", "perplexity"} <= records[-1].values.keys()

    def test_the_report(self, trained: tuple[list[Progress], ExpertsResult]) -> None:
        found = trained[1].report
        assert list(found["phases"]) == ["router", "experts", "joint"]
        losses = [found["phases"][phase]["test_loss"] for phase in found["phases"]]
        assert losses[0] > losses[1] > 0 and losses[0] > losses[2]
        for phase in found["phases"].values():
            assert phase["perplexity"] == pytest.approx(np.exp(phase["test_loss"]))
            assert sum(phase["usage"].values()) == pytest.approx(1) == sum(phase["balanced_usage"].values())
        assert sum(found["counts"].values()) == found["train_rows"] and not found["stopped"]

    def test_the_base_loss_is_the_base_model_s(self, backbone: Backbone, phases: _Run) -> None:
        from multilobe_ui.training.batches import mean_answer_loss

        loss = phases._loss(phases.held_out, 1000, base=True)
        assert loss == pytest.approx(mean_answer_loss(backbone.model, backbone, phases.held_out.tokens), rel=1e-5)

    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_files_are_plain_peft_and_say_what_was_trained(
        self, architecture: str, base_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        base = Backbone.from_pretrained(base_folder(architecture), device="cpu")
        targets = ("c_attn", "c_proj") if architecture == "gpt2" else None
        training = _Run(base, embed, FakeAnalyser(), rows(), settings(target_modules=targets), threading.Event(), ())
        list(training.expert_phase()), list(training.joint_phase())
        result = training.result(tmp_path)
        assert set(result.experts) == set(TIERS)
        ids, bank, live = tiny.numbers(1, 12), LobeBank(base), training._live
        assert live.bank is not bank
        for i, tier in enumerate(TIERS):
            header = read_header(result.experts[tier])
            assert header.r == 4 and set(header.scalings.values()) == {2.0}
            if targets:
                assert header.target_modules == targets
            bank.register(tier, result.experts[tier])
            from multilobe_ui.routers.complexity.loras import _matrices

            matrices = [_matrices(model) for model in live.models]
            expected = live.bank.run_live(matrices, torch.eye(3)[i : i + 1], input_ids=ids).logits
            peft = tiny.with_peft(base.model, result.experts[tier])(input_ids=ids).logits
            served = bank.run(Mix.of({tier: 1.0}), input_ids=ids).logits
            torch.testing.assert_close(peft, expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(served, expected, atol=1e-5, rtol=1e-4)
            assert not torch.allclose(peft, base.model(input_ids=ids).logits, atol=1e-4)

    def test_the_same_seed_gives_the_same_files(
        self, backbone: Backbone, trained: tuple[list[Progress], ExpertsResult], tmp_path: Path
    ) -> None:
        torch.manual_seed(77)
        _, again = finish(run(backbone, tmp_path / "a"))
        _, other = finish(run(backbone, tmp_path / "b", seed=1))
        first = trained[1]

        def contents(result: ExpertsResult) -> list[bytes]:
            return [(path / "adapter_model.safetensors").read_bytes() for path in result.experts.values()]

        assert contents(again) == contents(first) != contents(other)
        assert same_router(dict(again.router.arrays), dict(first.router.arrays))

    def test_numpy_and_torch_agree(self, trained: tuple[list[Progress], ExpertsResult], phases: _Run) -> None:
        network = trained[1].router
        module = RouterMLP(phases.train.seen.x.shape[1], 16, 0.3, 0.7).eval()
        module.load_state_dict({name: torch.from_numpy(array) for name, array in network.arrays.items()})
        prompts = [row.prompt for row in rows()]
        features = scaled(FakeAnalyser().features(prompts))
        probabilities, estimate = network(features, embed(prompts))
        logits, wanted = module(torch.from_numpy(network.scale(features, embed(prompts))))
        np.testing.assert_allclose(probabilities, (logits / network.temperature).softmax(1).detach(), atol=1e-5)
        np.testing.assert_allclose(estimate, wanted.detach(), atol=1e-5)


class TestEdges:
    @pytest.mark.parametrize(("after", "experts"), [(ROUTER, 0), (EXPERTS, 3), (JOINT, 3)])
    def test_a_stop_ends_the_phase_and_keeps_what_is_there(
        self, backbone: Backbone, tmp_path: Path, after: str, experts: int
    ) -> None:
        stop = threading.Event()
        training = train_experts(backbone, embed, FakeAnalyser(), rows(), settings(), tmp_path, stop)
        records = []
        while True:
            try:
                records.append(next(training))
                if records[-1].phase == after and records[-1].values.get("loss"):
                    stop.set()
            except StopIteration as end:
                result: ExpertsResult = end.value
                break
        assert records[-1].phase == after and len([r for r in records if r.phase == after]) <= 3
        assert result.report["stopped"] and len(result.experts) == experts
        assert all(read_header(path) for path in result.experts.values())

    def test_without_a_base_or_answers_there_is_a_router_and_no_expert(self, backbone: Backbone, tmp_path: Path) -> None:
        silent = [Example(row.context, "") for row in rows()]
        for base, data in ((None, rows()), (backbone, silent)):
            records, result = finish(train_experts(base, embed, FakeAnalyser(), data, settings(), tmp_path))
            assert {record.phase for record in records} == {ROUTER}
            assert result.experts == {} and list(result.report["phases"]) == ["router"]
            assert isinstance(result.router, TierNetwork)

    def test_a_tier_without_rows_gets_no_expert(self, backbone: Backbone, tmp_path: Path) -> None:
        short = [row for i, row in enumerate(rows(60)) if i % 3 != 2]
        _, result = finish(train_experts(backbone, embed, FakeAnalyser(), short, settings(), tmp_path))
        assert set(result.experts) == {"simple", "medium"} and result.report["counts"]["complex"] == 0

    @pytest.mark.parametrize("count", [1, 2, 7])
    def test_a_handful_of_rows(self, backbone: Backbone, tmp_path: Path, count: int) -> None:
        _, result = finish(train_experts(backbone, embed, FakeAnalyser(), rows(count), settings(), tmp_path))
        assert result.experts and result.report["train_rows"] >= 1

    def test_phases_can_be_left_out(self, backbone: Backbone, tmp_path: Path) -> None:
        records, result = finish(run(backbone, tmp_path, expert_epochs=0, joint_epochs=1))
        assert {record.phase for record in records} == {ROUTER, JOINT} and len(result.experts) == 3

    def test_refusals(self, backbone: Backbone, tmp_path: Path) -> None:
        with pytest.raises(RoutingError, match="no row to learn from"):
            finish(train_experts(backbone, embed, FakeAnalyser(), [], settings(), tmp_path))
        with pytest.raises(ConfigError, match="linear layers of this base"):
            finish(run(backbone, tmp_path, target_modules=("nothing",)))

    @pytest.mark.parametrize(
        ("name", "value"),
        [("low", 0.9), ("high", 2), ("lora_r", 0), ("lora_alpha", 0), ("hidden", 0), ("router_learning_rate", 0),
         ("expert_learning_rate", 1), ("balance_weight", -1), ("router_epochs", 0), ("expert_epochs", -1),
         ("joint_epochs", 1.5), ("batch_size", 0), ("max_length", 1), ("max_rows", 1), ("seed", -1)],
    )  # fmt: skip
    def test_settings_out_of_range(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=f"{name} is {value}"):
            ComplexitySettings(**{name: value})

    def test_the_defaults_are_those_of_the_request(self) -> None:
        chosen = ComplexitySettings()
        assert (chosen.low, chosen.high, chosen.lora_r, chosen.lora_alpha, chosen.hidden) == (0.3, 0.7, 16, 32, 256)
        assert (chosen.balance_weight, chosen.router_learning_rate) == (0.1, 1e-3)


class TestNetwork:
    def test_scale_standardises(self) -> None:
        features = np.random.default_rng(0).uniform(size=(50, 3)) * [1, 1, 0] + [0, 0, 0.5]
        x = Scale.of(features)(features, np.ones((50, 2)))
        np.testing.assert_allclose(x[:, :2].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(x[:, :3].std(0), [1, 1, 0], atol=1e-5)
        np.testing.assert_allclose(x[:, 3:], 0.2)

    def test_a_state_of_other_shapes_is_refused(self, trained: tuple[list[Progress], ExpertsResult]) -> None:
        state = trained[1].router.state()
        assert TierNetwork.from_state(state).state().keys() == state.keys()
        for broken in ({**state, "mean": state["mean"][1:]}, {k: v for k, v in state.items() if k != "tiers.bias"}):
            with pytest.raises(RoutingError, match="another version"):
                TierNetwork.from_state(broken)
