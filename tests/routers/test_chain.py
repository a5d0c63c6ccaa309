"""The chain of routers on made-up lobes."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import context, fitted, through_files

from multilobe_ui.errors import RoutingError
from multilobe_ui.routers import ROUTERS
from multilobe_ui.routing.router import State


class TestChain:
    def test_the_first_sure_stage_decides_and_each_that_was_asked_is_shown(self) -> None:
        router = fitted("chain", 4)
        router.set_stages([("keyword", 1.0), ("gate", 0.0), ("logprob", 0.0)])  # type: ignore[attr-defined]
        decision = router.route("lobe2 44")
        assert (decision.router, decision.stage, decision.chosen) == ("chain", "gate", "lobe2")
        assert [(s["router"], s["decided"]) for s in decision.evidence["stages"]] == [("keyword", False), ("gate", True)]

    def test_the_base_answers_where_no_stage_is_sure(self) -> None:
        router = fitted("chain", 4)
        router.set_stages([("keyword", 1.0)])  # type: ignore[attr-defined]
        decision = router.route("lobe2 44")
        assert decision.abstained and "No stage" in decision.reason

    def test_the_order_survives(self) -> None:
        router = fitted("chain", 3)
        stages = [("logprob", 0.3), ("keyword", 0.5)]
        router.set_stages(stages)  # type: ignore[attr-defined]
        restored, refitted = ROUTERS["chain"](context(3), None), ROUTERS["chain"](context(4), None)
        restored.adapt(State(through_files(router.state())))
        refitted.adapt(State(through_files(router.state()), exact=False))
        assert restored.stages == refitted.stages == stages  # type: ignore[attr-defined]
        assert refitted.route("lobe3 7").chosen == "lobe3"

    @pytest.mark.parametrize(
        ("stages", "match"),
        [
            ([], "at least one"),
            (["gate"], "must be a router's name"),
            ([("chain", 0.5)], "no router 'chain'"),
            ([("gate", 0.5), ("gate", 0.1)], "already"),
            ([("gate", 1.5)], "from 0 to 1"),
            ([("gate", "high")], "from 0 to 1"),
        ],
    )
    def test_refusals(self, stages: list[Any], match: str) -> None:
        router = fitted("chain", 2)
        before = router.stages  # type: ignore[attr-defined]
        with pytest.raises(RoutingError, match=match):
            router.set_stages(stages)  # type: ignore[attr-defined]
        assert router.stages == before  # type: ignore[attr-defined]
