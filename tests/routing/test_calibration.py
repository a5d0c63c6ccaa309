"""From scores to probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from multilobe_ui.routing.calibration import calibration_error, fit_temperature, softmax


def test_softmax_equals_scipy() -> None:
    from scipy.special import softmax as reference

    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32) * 30
    np.testing.assert_allclose(softmax(values), reference(values, axis=-1), atol=1e-6)


def test_temperature_recovers_the_one_that_made_the_labels() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(4000, 5)).astype(np.float32) * 0.2
    owner = np.array([rng.choice(5, p=row / row.sum()) for row in softmax(scores / 0.1).astype(np.float64)])
    assert fit_temperature(scores, owner) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.1, 0.5, 3.0])
def test_no_temperature_of_the_grid_is_likelier(spread: float) -> None:
    rng = np.random.default_rng(4)
    owner = rng.integers(7, size=300)
    scores = (rng.normal(size=(300, 7)) * spread + 0.3 * np.eye(7)[owner]).astype(np.float32)
    grid = np.geomspace(0.02, 1.0, 60)
    losses = [-log_softmax(scores.astype(np.float64) / t, axis=1)[np.arange(300), owner].mean() for t in grid]
    found = fit_temperature(scores, owner)
    assert found in grid and losses[grid.tolist().index(found)] == pytest.approx(min(losses), abs=1e-6)


def test_calibration_error_against_a_plain_computation() -> None:
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0, 1, 500)
    right = rng.uniform(0, 1, 500) < confidence**2
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert calibration_error(confidence, right) == pytest.approx(expected, abs=1e-9)
