"""Chain router: stages in the order that a person gave, each with the confidence from which it decides.

    [("keyword", 0.8), ("gate", 0.7), ("logprob", 0.0)]

The first stage that chooses a lobe with at least its threshold decides. A stage that abstains
passes the prompt on, unless it is the last; when none decides, the base model answers. What later
stages would have said is not asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from ..errors import RoutingError
from ..routing.decision import Verdict
from ..routing.router import FitOutcome, Learning, Router, RoutingContext, State, learn_now
from ..routing.strangers import adapts

Builder = Callable[[str], Router]
"""Name → a router over the same context."""
DEFAULT = (("keyword", 0.8), ("gate", 0.7), ("logprob", 0.0))


class ChainRouter(Router):
    """See the module's text.

    Args:
        build: makes a stage's router. known: the names that it can make.
    """

    name: ClassVar[str] = "chain"
    title: ClassVar[str] = "Chain"
    sentence: ClassVar[str] = "Asks several routers in turn, until one is sure enough. You choose the order."
    learns_labels: ClassVar[bool] = False  # its stages do
    needs_model: ClassVar[bool] = True

    def __init__(self, context: RoutingContext, build: Builder, known: Sequence[str]) -> None:
        super().__init__(context)
        self._build, self._known = build, list(known)
        self.stages: list[tuple[str, float]] = list(DEFAULT)
        self._routers: dict[str, Router] = {name: build(name) for name, _ in DEFAULT}

    @property
    def present_settings(self) -> dict[str, Any]:
        return {"stages": [list(stage) for stage in self.stages]}

    def set_stages(self, stages: Sequence[Sequence[Any]]) -> None:
        """The stages in their order, as (router, confidence from which it decides); new ones
        calibrate without the language model.

        Raises:
            RoutingError: no stage, an unknown router, one that comes twice, or a threshold that is
                not from 0 to 1.
        """
        checked = self._checked(stages)
        added = {name: self._build(name) for name, _ in checked if name not in self._routers}
        for router in added.values():
            _calibrate(router, State(exact=False))
        self._routers = {name: added.get(name) or self._routers[name] for name, _ in checked}
        self.stages = checked

    def _checked(self, stages: Sequence[Sequence[Any]]) -> list[tuple[str, float]]:
        if isinstance(stages, str) or not stages:
            raise RoutingError("A chain has at least one stage, such as ('keyword', 0.8).")
        checked: list[tuple[str, float]] = []
        for place, stage in enumerate(stages, 1):
            if isinstance(stage, str) or len(stage) != 2:
                raise RoutingError(
                    f"Stage {place} is {stage!r}; it must be a router's name and a number from 0 to 1."
                )
            name, threshold = stage
            if name not in self._known:
                raise RoutingError(
                    f"Stage {place}: no router {name!r} can be one. There are: {', '.join(self._known)}."
                )
            if name in dict(checked):
                raise RoutingError(f"Stage {place}: {name} is in the chain already; once is enough.")
            if (
                isinstance(threshold, bool)
                or not isinstance(threshold, (int, float))
                or not 0 <= threshold <= 1
            ):
                raise RoutingError(
                    f"Stage {place}: the threshold of {name} is {threshold!r}; it must be from 0 to 1."
                )
            checked.append((name, float(threshold)))
        return checked

    def judge(self, prompt: str) -> Verdict:
        asked: list[dict[str, Any]] = []
        evidence: dict[str, Any] = {}
        last: Verdict | None = None
        for name, threshold in self.stages:
            router = self._routers[name]
            if not router.is_fitted:
                asked.append({"router": name, "threshold": threshold, "chosen": None, "confidence": 0.0, "decided": False,
                              "reason": f"The {name} router has not been fitted yet; fit it under Routers."})  # fmt: skip
                continue
            last = router.judge(prompt)
            decided = last.best is not None and last.confidence >= threshold
            asked.append({"router": name, "threshold": threshold, "chosen": last.best, "confidence": last.confidence,
                          "decided": decided, "reason": last.reason, "probabilities": dict(last.probabilities)})  # fmt: skip
            evidence = {**evidence, **last.evidence}
            if decided:
                return replace(last, stage=name, certain=True, evidence={**evidence, "stages": asked})
        evidence["stages"] = asked
        if last is None:
            reason = "No stage of the chain has been fitted yet; fit them under Routers."
            return Verdict.base("chain", reason, evidence=evidence)
        none = max(0.5, last.none if last.best is None else 1 - last.confidence)
        total = sum(last.probabilities.values()) or 1.0
        return Verdict(
            scores=last.scores,
            probabilities={name: (1 - none) * p / total for name, p in last.probabilities.items()},
            none=none,
            stage=self.stages[-1][0],
            reason=f"No stage of the chain was sure enough. The last: {last.reason}",
            evidence=evidence,
        )

    def learn(self, settings: Mapping[str, Any], stop: threading.Event) -> Learning:
        """Every stage learns but those whose fit a person starts and that run the language model."""
        for router in self._routers.values():
            if not (router.asks_for_fit and router.needs_model):
                yield from router.learn({}, stop)
        return FitOutcome()

    def adapt(self, state: State) -> None:
        stages = self._checked(state.values.get("stages", self.stages))
        self._routers = {name: self._routers.get(name) or self._build(name) for name, _ in stages}
        self.stages = stages
        for name, router in self._routers.items():
            own = State(_own(state.values, name), state.exact)
            if not state.exact:
                _calibrate(router, own)
            elif own.values:
                router.adapt(own)

    @classmethod
    def by_hand(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        stages = [list(stage) for stage in values["stages"]]
        return {"stages": stages} if stages != [list(stage) for stage in DEFAULT] else {}

    def state(self) -> dict[str, Any]:
        flat = {
            f"{name}/{key}": value
            for name, router in self._routers.items()
            for key, value in router.state().items()
        }
        return {"stages": [list(stage) for stage in self.stages], **flat}


def _own(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The part of the chain's state that is the stage's."""
    return {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}


def _calibrate(router: Router, state: State) -> None:
    """As well as it goes without the language model: a stage that a person fits keeps its fit, or
    learns from embeddings alone."""
    if router.asks_for_fit and not router.needs_model:
        learn_now(router)
    elif router.asks_for_fit:
        adapts(router, state)
    else:
        router.adapt(state)
