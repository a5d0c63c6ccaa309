"""One contract for all routers, on made-up lobes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_up import context, fitted, ready, through_files

from multilobe_ui.evaluation import routing_report
from multilobe_ui.routers import ROUTERS
from multilobe_ui.routing.router import State


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("count", [0, 1, 2, 200])
class TestContract:
    def test_decisions_are_sound(self, name: str, count: int) -> None:
        router = ready(name, count)
        for prompt in ["lobe0 100", "lobe1 101", "strange99 5", "x"]:
            decision = router.route(prompt)
            assert set(decision.scores) | set(decision.probabilities) | set(decision.weights) <= set(
                router.context.lobes
            )
            assert decision.chosen is None or decision.chosen in router.context.lobes
            assert (decision.chosen is None) == (not decision.weights) == decision.abstained
            assert 0 <= decision.confidence <= 1
            assert decision.elapsed_ms >= 0
            assert decision.reason.endswith(".")
            if decision.probabilities:
                assert sum(decision.probabilities.values()) == pytest.approx(1 - decision.evidence["none"], abs=1e-4)
            json.dumps(decision.to_json())

    def test_the_same_prompt_gets_the_same_decision(self, name: str, count: int) -> None:
        router = ready(name, count)
        first, second = (router.route("lobe1 55").to_json() for _ in range(2))
        assert first.pop("elapsed_ms") >= 0 <= second.pop("elapsed_ms")
        assert first == second

    def test_an_empty_prompt_goes_to_the_base(self, name: str, count: int) -> None:
        for prompt in ("", "  \n "):
            decision = ready(name, count).route(prompt)
            assert decision.abstained and decision.weights == {} and decision.chosen is None

    def test_state_survives_json(self, name: str, count: int) -> None:
        router = ready(name, count)
        other = ROUTERS[name](context(count), None)
        other.adapt(State(through_files(router.state())))
        for i in range(5):
            ours, theirs = router.route(f"lobe{i} 7{i}"), other.route(f"lobe{i} 7{i}")
            assert (ours.chosen, ours.probabilities, ours.threshold) == (
                theirs.chosen,
                theirs.probabilities,
                theirs.threshold,
            )


@pytest.mark.parametrize("name", ["hybrid", "embedding", "logprob", "keyword", "gate", "chain"])
@pytest.mark.parametrize("count", [2, 8])
def test_own_prompts_are_routed_home(name: str, count: int) -> None:
    router = fitted(name, count)
    prompts = [(f"lobe{i} {j}", f"lobe{i}") for i in range(count) for j in range(300, 330)]
    report = routing_report(router.route, [p for p, _ in prompts], [label for _, label in prompts])
    assert report.accuracy >= 0.93
    assert sum(report.confusion.values()) == len(prompts)


@pytest.mark.parametrize("name", ["hybrid", "embedding", "keyword"])
def test_strange_prompts_go_to_the_base(name: str) -> None:
    router = fitted(name, 6)
    abstained = [router.route(f"alien{i} {i}").abstained for i in range(60)]
    assert np.mean(abstained) >= 0.9
    assert any(word in router.route("alien1 1").reason for word in ("base", "near", "No word"))
