"""Least squares, against scikit-learn and by leaving rows out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_up import context, embed, overlapping, ready
from sklearn.kernel_ridge import KernelRidge

from multilobe_ui.routers.hybrid import HybridRouter
from multilobe_ui.routing import regression


class TestRegression:
    def test_it_is_kernel_ridge_regression(self) -> None:
        """On unit vectors exp(-4 (1 - cosine)) is the RBF kernel with gamma 2."""
        router = ready("hybrid", 8)
        assert isinstance(router, HybridRouter) and router._regression is not None
        rows = router._regression.rows
        reference = KernelRidge(alpha=0.1, kernel="rbf", gamma=2.0).fit(rows.vectors.astype(np.float64), rows.labels)
        asked = embed(["lobe0 100", "lobe4 7", "strange99 5"])
        np.testing.assert_allclose(router._regression.scores(asked)[0], reference.predict(asked), atol=1e-4)

    @pytest.mark.parametrize("kernel", [lambda c: np.exp(4 * (c - 1)), lambda c: c + 1])
    def test_scores_left_out_are_those_of_a_fit_without_the_row(self, kernel: Any) -> None:
        rows = regression.rows_of(context(3), ["lobe0", "lobe1", "lobe2"])
        gram = kernel(rows.vectors @ rows.vectors.T).astype(np.float32)
        weights, left_out = regression._solved(gram.copy(), rows.labels, 0.1)
        whole = gram.astype(np.float64) + 0.1 * np.eye(len(gram))
        np.testing.assert_allclose(weights, np.linalg.solve(whole, rows.labels), atol=2e-3)
        for i in (0, 30, len(gram) - 1):
            others = np.delete(np.arange(len(gram)), i)
            without = np.linalg.solve(whole[np.ix_(others, others)], rows.labels[others])
            np.testing.assert_allclose(left_out[i], gram[i, others] @ without, atol=2e-3)

    def test_the_floor_turns_away_as_many_as_were_asked_for(self) -> None:
        train, owner = overlapping(6, 1500, 1)
        test, _ = overlapping(6, 6000, 2)
        fitted = regression.Regression(
            regression.Rows(train, np.eye(7, dtype=np.float32)[owner]), lambda c: np.exp(4 * (c - 1)), 0.1, 0.03
        )
        _, values, _ = fitted.scores(test)
        assert 0.015 < (values < fitted.calibration.floor).mean() < 0.05

    def test_a_prompt_of_two_lobes_belongs_to_both(self) -> None:
        plain = context(3)
        both = ["lobe0 1", "lobe0 2"]
        taught = replace(
            plain.rows["lobe1"],
            train=np.concatenate([plain.rows["lobe1"].train, embed(both)]),
            train_prompts=[*plain.rows["lobe1"].train_prompts, *both],
        )
        rows = regression.rows_of(replace(plain, rows={**plain.rows, "lobe1": taught}), plain.lobes)
        assert len(rows.labels) == 3 * 28 + 30 and np.allclose(rows.labels.sum(1), 1)
        assert (rows.labels[:, 0] == 0.5).sum() == (rows.labels[:, 1] == 0.5).sum() == 2

    def test_of_very_many_lobes_prototypes_stand_for_rows(self) -> None:
        plain = context(4)
        rows = regression.rows_of(plain, plain.lobes, most=8)
        assert len(rows.labels) == 4 + 15 and rows.known.sum() == 4
