"""The complexity router: its fit on made-up rows, with and without a model, and what it decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_experts import BASICS, FakeAnalyser, embed, rows

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import ConfigError, RoutingError
from multilobe_ui.lobes.adapter import read_header
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.progress import Progress
from multilobe_ui.routers import ROUTERS, RoutingRows
from multilobe_ui.routers.complexity.features import FEATURES, TIERS, scaled
from multilobe_ui.routers.complexity.router import ComplexityRouter
from multilobe_ui.routing.calibration import softmax
from multilobe_ui.routing.decision import Mixing
from multilobe_ui.routing.router import BankContext, FitOutcome, State
from multilobe_ui.routing.strangers import adapts

EXPERTS = {tier: f"{tier} expert" for tier in TIERS}
FAST: dict[str, Any] = {"hidden": 16, "router_epochs": 60}
SIMPLE, COMPLEX = "What is 7", " ".join(["What is 7", *["and again"] * 18])


def nothing(*_: Any) -> np.ndarray:
    raise AssertionError("the complexity router asked for log-probs")


def context(answers: bool = True, bank: LobeBank | None = None, experts: Mapping[str, str] = {}) -> BankContext:
    """Two lobes with half of the rows each, a fifth of them held out."""
    parts: dict[str, RoutingRows] = {}
    for name, own in (("even", rows(60)[::2]), ("odd", rows(60)[1::2])):
        prompts, replies = [row.prompt for row in own], [row.answer for row in own]
        vectors = embed(prompts)
        held = slice(24, None)
        said = (replies[:24], replies[held]) if answers else ((), ())
        parts[name] = RoutingRows(vectors[:2], vectors[:24], vectors[held], prompts[:24], prompts[held], *said)
    return BankContext([*parts], parts, embed, nothing, bank=bank, experts=experts)


def fit(router: ComplexityRouter, **settings: Any) -> tuple[list[Progress], FitOutcome]:
    fitting, records = router.learn(FAST | settings, threading.Event()), []
    while True:
        try:
            records.append(next(fitting))
        except StopIteration as end:
            return records, end.value


def router(experts: Mapping[str, str] = EXPERTS, **more: Any) -> ComplexityRouter:
    """Fitted without a model, then given experts as the app does."""
    made = ComplexityRouter(context(**more), FakeAnalyser())  # type: ignore[arg-type]
    fit(made)
    made.context = replace(made.context, experts=experts)
    return made


def test_it_has_its_place() -> None:
    made = ROUTERS["complexity"](context(), None)
    assert isinstance(made, ComplexityRouter) and made.asks_for_fit and made.needs_model and not made.is_fitted


def test_the_prompt_s_complexity_decides() -> None:
    fitted = router()
    assert fitted.is_fitted
    for prompt, tier in ((SIMPLE, "simple"), (" ".join([SIMPLE, *["and again"] * 4]), "medium"), (COMPLEX, "complex")):
        decision = fitted.route(prompt)
        assert decision.chosen == EXPERTS[tier] and decision.weights == {EXPERTS[tier]: 1.0}
        assert sum(decision.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert decision.confidence == max(decision.probabilities.values())
        assert tier in decision.reason and f"{decision.evidence['score']:.2f}" in decision.reason
        assert decision.evidence["tier"] == tier


def test_the_evidence_can_be_shown() -> None:
    evidence = json.loads(json.dumps(router().route(COMPLEX).to_json()))["evidence"]
    features = FakeAnalyser().features([COMPLEX])
    assert list(evidence["features"].values()) == pytest.approx(features[0].tolist())
    assert list(evidence["profile"].values()) == pytest.approx(scaled(features)[0].tolist())
    assert set(evidence["tiers"]) == set(evidence["tier_profiles"]) == set(TIERS)
    assert all(list(profile) == list(FEATURES) for profile in evidence["tier_profiles"].values())
    words = [evidence["tier_profiles"][tier]["words"] for tier in TIERS]
    assert words == sorted(words) and abs(evidence["estimated_score"] - evidence["score"]) < 0.2


def test_a_decision_is_the_network_s_formula() -> None:
    fitted = router()
    state, f = fitted.state(), scaled(FakeAnalyser().features([COMPLEX]))[0]
    x = [*((f - state["mean"]) / state["deviation"]), *(0.2 * embed([COMPLEX])[0])]
    h = [max(0.0, sum(w * v for w, v in zip(row, x, strict=True)) + b)
         for row, b in zip(state["body.weight"], state["body.bias"], strict=True)]  # fmt: skip
    s = 1 / (1 + np.exp(-(np.dot(h, state["score.weight"][0]) + state["score.bias"][0])))
    m = np.array([0.3 - s, min(s - 0.3, 0.7 - s), s - 0.7])
    logits = state["tiers.weight"] @ h + state["tiers.bias"] + state["sharpness"] * m
    expected = softmax(np.asarray(logits / state["temperature"], np.float32))
    evidence = fitted.route(COMPLEX).evidence
    assert list(evidence["tiers"].values()) == pytest.approx(expected.tolist(), abs=1e-4)
    assert evidence["estimated_score"] == pytest.approx(s, abs=1e-5)


def test_other_mixing_modes_share_among_the_experts() -> None:
    fitted = router()
    prompts = [" ".join(["What is 7", *["and again"] * i]) for i in range(20)]
    decisions = [fitted.route(prompt, Mixing("top_k", 2)) for prompt in prompts]
    assert max(len(decision.weights) for decision in decisions) == 2  # at a threshold
    for decision in decisions:
        assert set(decision.weights) <= set(EXPERTS.values()) and sum(decision.weights.values()) == pytest.approx(1)


class TestAbstaining:
    def test_before_it_is_fitted(self) -> None:
        decision = ComplexityRouter(context(experts=EXPERTS), FakeAnalyser()).route(SIMPLE)  # type: ignore[arg-type]
        assert decision.abstained and decision.certain and "fit it under Routers" in decision.reason

    def test_without_experts_it_still_says_how_complex_a_prompt_is(self) -> None:
        fitted = router(experts={})
        decision = fitted.route(COMPLEX)
        assert decision.abstained and decision.certain and not fitted.is_fitted
        assert decision.evidence["tier"] == "complex" and "no experts" in decision.reason

    @pytest.mark.parametrize(("prompt", "abstains"), [
        ("今日の天気はどうですか", True), ("Какая сегодня погода?", True), ("Was heißt größer auf Englisch?", False),
        ("What does 天気 mean?", False), ("12 + 30 = ?", False), ("🦜🦜", False),
    ])  # fmt: skip
    def test_on_what_its_analyser_cannot_read(self, prompt: str, abstains: bool) -> None:
        decision = router().route(prompt)
        assert decision.abstained == abstains and ("another script" in decision.reason) == abstains

    def test_an_expert_that_was_deleted_leaves_its_share_to_the_others(self) -> None:
        fitted = router(experts={tier: EXPERTS[tier] for tier in ("medium", "complex")})
        decision = fitted.route(SIMPLE)
        assert decision.chosen == EXPERTS["medium"] and "no expert for simple" in decision.reason
        assert sum(decision.probabilities.values()) == pytest.approx(1, abs=1e-5)


class TestFitting:
    def test_rows_of_the_lobes_are_enough_for_the_router(self) -> None:
        records, outcome = fit(ComplexityRouter(context(answers=False), FakeAnalyser()))  # type: ignore[arg-type]
        assert {record.phase for record in records} == {"Router"} and outcome.experts == {}
        assert outcome.report["held_out_rows"] == 12
        assert outcome.report["phases"]["router"]["routing_accuracy"] >= 0.9

    @pytest.mark.parametrize(("without", "held_out"), [(["even"], 6 + 4), (["even", "odd"], None)])
    def test_all_lobes_are_reported_on(self, without: list[str], held_out: int | None) -> None:
        found = context()
        none = {"validation": np.zeros((0, 1)), "validation_prompts": (), "validation_answers": ()}
        rows = {name: replace(own, **none) if name in without else own for name, own in found.rows.items()}
        made = ComplexityRouter(replace(found, rows=rows), FakeAnalyser())  # type: ignore[arg-type]
        learned, reported = made._own_rows()
        assert len(reported) == (held_out or 0)
        assert not {row.prompt for row in learned} & {row.prompt for row in reported}
        assert fit(made)[1].report["held_out_rows"] == (held_out or 48 // 6)

    def test_with_a_model_it_makes_experts(self, backbone: Backbone) -> None:
        made = ComplexityRouter(context(bank=LobeBank(backbone)), FakeAnalyser())  # type: ignore[arg-type]
        records, outcome = fit(made, **BASICS)
        assert len({record.phase for record in records}) == 3 and list(outcome.experts) == list(TIERS)
        assert all(read_header(path).r == 4 for path in outcome.experts.values())
        json.dumps(outcome.report)

    def test_a_file_s_rows_take_the_place_of_the_lobes(self, backbone: Backbone) -> None:
        given = [{"input": row.prompt, "output": row.answer} for row in rows(30)]
        empty = BankContext([], {}, embed, nothing, bank=LobeBank(backbone))
        _, outcome = fit(ComplexityRouter(empty, FakeAnalyser()), **BASICS, rows=given)  # type: ignore[arg-type]
        report = outcome.report
        assert report["train_rows"] < report["train_rows"] + report["held_out_rows"] <= 30 and len(outcome.experts) == 3

    def test_vectors_that_came_with_the_rows_are_used(self) -> None:
        def refuse(texts: Sequence[str]) -> np.ndarray:
            raise AssertionError(f"embedded {texts}")

        made = ComplexityRouter(replace(context(), embed=refuse), FakeAnalyser())  # type: ignore[arg-type]
        fit(made)
        assert made.network is not None

    def test_nothing_to_learn_from(self) -> None:
        empty = ComplexityRouter(BankContext([], {}, embed, nothing), FakeAnalyser())  # type: ignore[arg-type]
        with pytest.raises(RoutingError, match="no row to learn from"):
            fit(empty)
        assert not empty.is_fitted and empty.state() == {}

    def test_settings_are_checked(self) -> None:
        made = ComplexityRouter(context(), FakeAnalyser())  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="no setting 'colour'"):
            fit(made, colour="red")
        with pytest.raises(ConfigError, match=r"low is 0\.8"):
            fit(made, low=0.8)

    def test_thresholds_are_kept(self) -> None:
        made = ComplexityRouter(context(), FakeAnalyser())  # type: ignore[arg-type]
        fit(made, low=0.05, high=0.1)
        evidence = made.route(COMPLEX).evidence
        assert evidence["thresholds"] == [0.05, 0.1] and evidence["tier"] == "complex"


class TestState:
    def test_it_survives_disk(self, tmp_path: Path) -> None:
        from multilobe_ui.routing.fits import Fit, Key, read_fit, write_fit

        fitted, other = router(), ComplexityRouter(context(experts=EXPERTS), FakeAnalyser())  # type: ignore[arg-type]
        write_fit(tmp_path / "fit", Fit("complexity", Key("encoder"), fitted.state()))
        other.adapt(State(read_fit(tmp_path / "fit").state))
        for prompt in (SIMPLE, COMPLEX, "Tell me a story."):
            ours, theirs = fitted.route(prompt).to_json(), other.route(prompt).to_json()
            assert ours.pop("elapsed_ms") >= 0 <= theirs.pop("elapsed_ms")
            assert ours == theirs

    def test_lobes_that_come_and_go_leave_it_alone(self) -> None:
        fitted, other = router(), ComplexityRouter(context(experts=EXPERTS), FakeAnalyser())  # type: ignore[arg-type]
        assert not adapts(other, State({"coefficients": [1, 2]}, exact=False))  # another router's
        assert not other.is_fitted
        other.adapt(State(fitted.state(), exact=False))
        assert other.route(COMPLEX).probabilities == fitted.route(COMPLEX).probabilities

    def test_damage_is_refused(self) -> None:
        state = router().state()
        with pytest.raises(RoutingError, match="another version"):
            router().adapt(State({**state, "deviation": [1.0]}))
