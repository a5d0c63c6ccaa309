"""Decisions that a person made."""

from __future__ import annotations

import pytest

from multilobe_ui.errors import RoutingError
from multilobe_ui.routing.decision import manual_decision


class TestManual:
    def test_weights(self) -> None:
        decision = manual_decision({"a": 0.3, "b": 0.7, "c": 0.0}, ["a", "b", "c"])
        assert decision.chosen == "b" and decision.weights == {"a": 0.3, "b": 0.7}

    def test_base(self) -> None:
        assert manual_decision({}, ["a"]).chosen is None

    @pytest.mark.parametrize(
        ("weights", "match"), [({"z": 1.0}, "no lobe called 'z'"), ({"a": float("nan")}, "finite")]
    )
    def test_refusals(self, weights: dict[str, float], match: str) -> None:
        with pytest.raises(RoutingError, match=match):
            manual_decision(weights, ["a"])
