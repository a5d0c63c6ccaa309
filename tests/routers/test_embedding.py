"""The embedding router on made-up lobes."""

from __future__ import annotations

import numpy as np
import pytest
from made_up import context, embed, fitted, nll, rows_of, vector_of

from multilobe_ui.errors import RoutingError
from multilobe_ui.routers import ROUTERS
from multilobe_ui.routing.router import BankContext, State, learn_now


class TestEmbedding:
    def test_scores_equal_a_plain_computation(self) -> None:
        router = fitted("embedding", 5)
        vectors = embed([f"lobe{i} 400" for i in range(5)])
        expected = np.empty((5, 5))
        for i, vector in enumerate(vectors):
            for j in range(5):
                rows = router.context.rows[f"lobe{j}"]
                nearest = sorted(rows.train @ vector)[-3:]
                expected[i, j] = (max(rows.prototypes @ vector) + np.mean(nearest)) / 2
        np.testing.assert_allclose(router.scores(vectors), expected, atol=1e-6)

    def test_lobes_with_one_or_two_rows_score_the_mean_of_what_they_have(self) -> None:
        rows = {"small": rows_of("small", train=2), "large": rows_of("large", train=40)}
        router = ROUTERS["embedding"](BankContext(["small", "large"], rows, embed, nll), None)
        vector = embed(["small 50"])
        expected = (
            float((rows["small"].prototypes @ vector[0]).max()) + float((rows["small"].train @ vector[0]).mean())
        ) / 2
        assert router.scores(vector)[0, 0] == pytest.approx(expected, abs=1e-6)

    def test_an_explicit_threshold_is_honoured(self) -> None:
        strict, lax = (ROUTERS["embedding"](context(3), threshold) for threshold in (0.999, 0.0))
        learn_now(strict), learn_now(lax)
        assert not strict.route("lobe1 9").certain
        assert lax.route("lobe1 9").certain
        assert strict.route("lobe1 9").threshold == 0.999

    def test_nearest_rows_are_the_nearest(self) -> None:
        router = fitted("embedding", 3)
        found = router.route("lobe2 77").evidence["nearest"]
        everything = {
            p: float(vector_of(p) @ vector_of("lobe2 77")) for i in range(3) for p in rows_of(f"lobe{i}").train_prompts
        }
        best = sorted(everything, key=lambda p: -everything[p])[:5]
        assert [row["prompt"] for row in found] == best
        assert all(row["prompt"].startswith(row["lobe"]) for row in found)

    def test_a_calibration_of_other_lobes_is_refused(self) -> None:
        with pytest.raises(RoutingError, match="other lobes"):
            ROUTERS["embedding"](context(3), None).adapt(State(fitted("embedding", 2).state()))

    def test_rows_held_out_are_kept_certain_and_right(self) -> None:
        router = fitted("embedding", 8)
        decided = [(router.route(f"lobe{i} {j}"), f"lobe{i}") for i in range(8) for j in range(500, 520)]
        certain = [(d.chosen, label) for d, label in decided if d.certain and d.chosen]
        assert len(certain) >= 0.6 * len(decided)
        assert np.mean([a == b for a, b in certain]) >= 0.97
