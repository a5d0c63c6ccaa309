"""The gate on made-up lobes and on overlapping clouds."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from made_up import DIMENSIONS, context, embed, fitted, nll, overlapping, rows_of, through_files, vector_of

from multilobe_ui.errors import ConfigError, RoutingError
from multilobe_ui.progress import Progress
from multilobe_ui.routers import RoutingContext, RoutingRows
from multilobe_ui.routers.gate import GateRouter
from multilobe_ui.routing.calibration import calibration_error
from multilobe_ui.routing.decision import Mixing
from multilobe_ui.routing.router import State, learn_now


def gate_on(vectors: np.ndarray, owner: np.ndarray, count: int) -> GateRouter:
    """A gate over lobes "0", "1", ... that own these rows; its prompts are places in `vectors`."""
    none = np.zeros((0, DIMENSIONS), np.float32)
    rows = {str(i): RoutingRows(none, vectors[owner == i], none) for i in range(count)}
    router = GateRouter(RoutingContext([*rows], rows, lambda texts: vectors[[int(text) for text in texts]], nll))
    learn_now(router)
    return router


class TestGate:
    def test_as_good_as_ridge_classification_and_calibrated(self) -> None:
        from sklearn.linear_model import RidgeClassifier

        train, owner = overlapping(6, 1500, 1)
        test, true = overlapping(6, 6000, 2)
        router = gate_on(train, owner, 6)
        reference = RidgeClassifier(alpha=1.0).fit(train, owner).score(test, true)
        probabilities = np.stack([router._calibration.probabilities(row) for row in router.scores(test)])
        right = probabilities.argmax(1) == true
        assert 0.6 < reference < 0.97
        assert right.mean() >= reference - 0.01
        assert calibration_error(probabilities.max(1), right) <= 0.03

    def test_a_decision_is_the_softmax_of_its_state(self) -> None:
        router = fitted("gate", 4)
        state, vector = router.state(), vector_of("lobe2 91").astype(np.float64)
        z = [sum(w * v for w, v in zip(row, vector, strict=True)) for row in state["weight"]]
        powers = [math.exp((a + b) / state["calibration"]["temperature"]) for a, b in zip(z, state["bias"], strict=True)][:-1]
        decision = router.route("lobe2 91")
        none = decision.evidence["none"]
        among = [(1 - none) * power / sum(powers) for power in powers]
        assert list(decision.probabilities.values()) == pytest.approx(among, abs=1e-4)
        assert decision.confidence == pytest.approx(max(among), abs=1e-4)

    def test_what_no_lobe_knows_goes_to_the_base(self) -> None:
        router = fitted("gate", 6)
        decisions = [router.route(f"alien{i} {i}") for i in range(100)]
        assert np.mean([d.abstained for d in decisions]) >= 0.8
        for decision in decisions:
            assert not decision.abstained or decision.confidence == decision.evidence["none"] > 0.5

    def test_soft_weights_are_the_shares_of_the_scores(self) -> None:
        train, owner = overlapping(6, 300, 1)
        router = gate_on(train, owner, 6)
        positive = {name: score for name, score in router.route("7").scores.items() if score > 0}
        shared = router.route("7", Mixing("soft")).weights
        expected = {name: score / sum(positive.values()) for name, score in positive.items()}
        assert shared == pytest.approx({name: w for name, w in expected.items() if w >= 0.01}, abs=0.05)
        assert sum(shared.values()) == pytest.approx(1)

    def test_a_fit_reports_what_leaving_out_says(self) -> None:
        router, stop = GateRouter(context(3)), threading.Event()
        assert not router.is_fitted
        run = router.learn({}, stop)
        records: list[Progress] = []
        with pytest.raises(StopIteration) as end:
            while True:
                records.append(next(run))
        assert router.is_fitted and {"accuracy", "ece"} <= set(records[-1].values)
        assert {"accuracy", "ece", "rows", "seconds"} <= set(end.value.value.report)
        with pytest.raises(ConfigError, match="embedding"):
            next(router.learn({"embedding": "x"}, stop))
        with pytest.raises(ConfigError, match="ridge"):
            next(router.learn({"ridge": 0}, stop))
        with pytest.raises(ConfigError, match="settings"):
            next(router.learn({"nonsense": 1}, stop))

    def test_it_can_read_the_base_models_hidden_states(self) -> None:
        seen: list[str] = []

        def hidden(texts: Sequence[str]) -> np.ndarray:
            seen.extend(texts)
            return embed(texts)[:, ::-1]

        router = GateRouter(replace(context(3), hidden=hidden))
        list(router.learn({"embedding": "base"}, threading.Event()))
        assert router.route("lobe1 77").chosen == "lobe1" and "lobe1 77" in seen
        other = GateRouter(context(3))
        other.adapt(State(through_files(router.state())))
        with pytest.raises(RoutingError, match="no base model"):
            other.route("lobe1 77")

    def test_a_fit_of_other_lobes_serves_those_it_knows(self) -> None:
        state = through_files(fitted("gate", 4).state())
        fewer, more = GateRouter(context(3)), GateRouter(context(5))
        fewer.adapt(State(state))
        more.adapt(State(state))
        assert set(fewer.route("lobe3 5").probabilities) == {"lobe0", "lobe1", "lobe2"}
        decision = more.route("lobe1 5")
        assert decision.chosen == "lobe1" and decision.probabilities["lobe4"] == 0 and "lobe4" in decision.reason

    def test_the_same_rows_give_the_same_gate_whatever_was_drawn_before(self) -> None:
        import torch

        first = fitted("gate", 3).state()
        torch.manual_seed(5)
        before = torch.get_rng_state()
        again = fitted("gate", 3).state()
        assert all(np.array_equal(again[key], value) for key, value in first.items())
        assert torch.equal(torch.get_rng_state(), before)

    def test_lobes_without_rows_get_nothing_and_the_reason_says_so(self) -> None:
        router = fitted("gate", 3, without_rows=1)
        for prompt in ("lobe0 44", "alien 3"):
            decision = router.route(prompt)
            assert decision.probabilities["lobe2"] == 0 and "lobe2 had no rows" in decision.reason
        assert not router.route("alien 3").certain
        assert fitted("gate", 2, without_rows=2).route("lobe1 3").abstained

    def test_a_lobe_with_one_row(self) -> None:
        rows = {"small": rows_of("small", train=1, validation=0), "large": rows_of("large", train=200)}
        router = GateRouter(RoutingContext([*rows], rows, embed, nll))
        learn_now(router)
        small, large = router.scores(embed(["small 7", "large 700"]))
        assert small[0] > small[1] and large[1] > large[0]
        assert router.route("large 700").chosen == "large"

    def test_without_generic_prompts_the_floor_is_that_of_the_rows(self) -> None:
        for count in (1, 3):
            plain = context(count)
            router = GateRouter(RoutingContext(plain.lobes, plain.rows, embed, nll))
            learn_now(router)
            own = [router.route(f"lobe0 {i}") for i in range(100, 200)]
            assert np.mean([d.chosen == "lobe0" for d in own]) > 0.75
            assert router.route("alien 1").abstained

    def test_without_a_fit_the_base_answers_and_says_so(self) -> None:
        router = GateRouter(context(2))
        decision = router.route("lobe0 1")
        assert decision.abstained and "fit it under Routers" in decision.reason and not router.is_fitted
        router.adapt(State(through_files(router.state())))
        assert not router.is_fitted

    def test_weights_that_do_not_fit_are_refused(self) -> None:
        state = fitted("gate", 2).state()
        with pytest.raises(RoutingError, match="do not fit"):
            GateRouter(context(2)).adapt(State({**state, "bias": np.zeros(1)}))
