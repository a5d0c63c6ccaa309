"""The hybrid router on made-up lobes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from made_up import context, embed, fitted, nll, vector_of

from multilobe_ui.routers import ROUTERS
from multilobe_ui.routers.hybrid import HybridRouter
from multilobe_ui.routing.router import BankContext, learn_now


class TestHybrid:
    def test_what_is_clear_never_reaches_the_language_model(self) -> None:
        asked: list[str] = []

        def counting(texts: Sequence[str], lobes: Sequence[str]) -> np.ndarray:
            asked.extend(texts)
            return nll(texts, lobes)

        plain = context(4)
        router = ROUTERS["hybrid"](BankContext(plain.lobes, plain.rows, embed, counting, plain.generic), None)
        learn_now(router)
        assert not asked  # it calibrates without it
        stages = [router.route(f"lobe{i % 4} {i}").stage for i in range(600, 640)]
        assert stages.count("embedding") > stages.count("logprob")
        assert len(asked) == stages.count("logprob")

    @pytest.mark.parametrize(("gain", "fits"), [(0.9, True), (-0.5, False)])
    def test_the_language_model_settles_whether_any_lobe_fits(self, gain: float, fits: bool) -> None:
        """Prompts that lie between a lobe's rows and nowhere."""
        reads = lambda texts, lobes: np.array([[*([3.0 - gain] * len(lobes)), 3.0] for _ in texts], np.float32)  # noqa: E731
        router = ROUTERS["hybrid"](replace(context(4), nll=reads), None)
        learn_now(router)
        decisions = [router.route(f"lobe{i % 4} {i}") for i in range(600, 1200)]
        doubtful = [d for d in decisions if d.stage == "logprob"]
        assert 10 < len(doubtful) < 150
        assert np.mean([d.abstained != fits for d in doubtful]) > 0.9
        assert all(d.evidence["gains"][next(iter(d.evidence["gains"]))] == pytest.approx(gain) for d in doubtful)

    def test_a_blend_is_shared_by_its_scores(self) -> None:
        router = fitted("hybrid", 8)
        assert isinstance(router, HybridRouter) and router._regression is not None
        own = router.context
        middle = vector_of("lobe0 500") + vector_of("lobe1 500")
        router.context = replace(own, embed=lambda texts: (middle / np.linalg.norm(middle))[None])
        # made-up topics are further apart than any two things that a prompt can ask for
        loose = replace(router._regression.calibration, floor=0.0, low=0.0, high=0.0)
        strict, router._regression.calibration = router._regression.calibration, loose
        decision = router.route("anything")
        router.context, router._regression.calibration = own, strict
        assert set(decision.weights) == {"lobe0", "lobe1"} and min(decision.weights.values()) > 0.3
        scores = {name: max(score, 0.0) for name, score in decision.scores.items()}
        first, second = decision.weights.values()
        assert second / first == pytest.approx(sorted(scores.values())[-2] / max(scores.values()))
        assert decision.chosen == next(iter(decision.weights)) and "lobe0" in decision.reason and "lobe1" in decision.reason
        assert router.route("lobe3 700").weights == {"lobe3": 1.0}

    def test_an_explicit_threshold_is_honoured(self) -> None:
        router = ROUTERS["hybrid"](context(3), 0.95)
        assert router.route("lobe1 3").stage == "logprob"
        assert router.route("lobe1 3").chosen == "lobe1"
        router = ROUTERS["hybrid"](context(3), 0.1)
        decision = router.route("lobe1 3")
        assert (decision.stage, decision.chosen, decision.threshold) == ("embedding", "lobe1", 0.1)
        assert decision.scores["lobe1"] >= 0.1 and "0.10 needed" in decision.reason

    def test_lobes_without_rows_can_win_by_logprob(self) -> None:
        router = fitted("hybrid", 3, without_rows=1)
        decisions = [router.route(f"lobe2 {i}") for i in range(30)]
        assert np.mean([d.chosen == "lobe2" for d in decisions]) > 0.8
        assert {d.stage for d in decisions if d.chosen == "lobe2"} == {"logprob"}

    def test_only_lobes_without_rows(self) -> None:
        assert fitted("hybrid", 2, without_rows=2).route("lobe1 3").chosen == "lobe1"

    def test_a_prompt_without_tokens_does_not_break_stage_two(self) -> None:
        def nothing(texts: Sequence[str], lobes: Sequence[str]) -> np.ndarray:
            return np.full((len(texts), len(lobes) + 1), np.nan, np.float32)

        for without in (1, 3):
            plain = context(3, without_rows=without)
            router = ROUTERS["hybrid"](BankContext(plain.lobes, plain.rows, embed, nothing), None)
            assert router.route("alien 1").chosen in (None, *plain.lobes)

    def test_nothing_of_it_is_kept(self) -> None:
        assert fitted("hybrid", 3).state() == {}
