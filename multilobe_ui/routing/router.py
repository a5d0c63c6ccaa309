"""What all routers share: the decision they produce, the narrow context they see, and the steps
from scores to weights.

A router file holds only what it finds out about a prompt; everything else about routing is here,
once. Routers never see the studio, the page, or each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from ..errors import RoutingError
from ..lobes.rows import RoutingRows, RowsByName, Vector
from ..progress import Progress, finish
from .decision import AUTO, Mixing, RoutingDecision, Verdict, base_decision


@dataclass(frozen=True)
class RoutingContext:
    """All that a router may use; tests pass plain functions.

    Attributes:
        lobes: names of the lobes that can be chosen.
        rows: routing rows by lobe name; a lobe imported without data has none.
        embed: texts → (n, d) unit vectors.
        nll: (texts, lobe names) → (texts, lobes + 1): mean NLL per token of each text's first
            tokens under every lobe, the plain base in the last column; NaN where a text has no
            token to score.
        generic: embeddings (g, d) of prompts that belong to no specialist; `generic_prompts` their texts.
        hidden: texts → (n, h): mean hidden state of the base's last layer over each text's tokens.
        experts: names of the lobes that a router made for itself (see `Router.learn`), by tier; not
            among `lobes`.
        labels: prompts (as `same_prompt` gives them) of which a person has said who answers: a
            lobe's name, or None for no lobe.
    """

    lobes: Sequence[str]
    rows: Mapping[str, RoutingRows]
    embed: Callable[[Sequence[str]], Vector]
    nll: Callable[[Sequence[str], Sequence[str]], Vector]
    generic: Callable[[], Vector] = lambda: np.zeros((0, 0), np.float32)
    generic_prompts: Sequence[str] = ()
    hidden: Callable[[Sequence[str]], Vector] | None = None
    experts: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str | None] = field(default_factory=dict)

    def prototypes(self, name: str) -> Vector:
        """(k, d), of a lobe that has rows."""
        if isinstance(self.rows, RowsByName):
            return self.rows.prototypes(name)
        return self.rows[name].prototypes


@dataclass(frozen=True)
class BankContext(RoutingContext):
    """What routers may use that weigh tokens, or train through the base.

    Attributes:
        bank: the LobeBank; None where no model is loaded. ids: a lobe's id in the bank, by its name.
    """

    bank: Any = None
    ids: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What a router learned earlier, perhaps for other lobes.

    Attributes:
        values: `Router.state()` of that router: JSON values, and numpy arrays as values of the
            outermost keys.
        exact: whether it was learned for the very lobes and corrections that there are now.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True


@dataclass(frozen=True)
class FitOutcome:
    """What learning leaves besides the router's state.

    Attributes:
        report: numbers and short texts that a person should see. experts: PEFT adapter folders that
            the router wants as lobes of its own, by tier.
    """

    report: Mapping[str, Any] = field(default_factory=dict)
    experts: Mapping[str, Path] = field(default_factory=dict)


Learning = Generator[Progress, None, FitOutcome]


class ScoringStage(Protocol):
    """What the hybrid router asks of the one that scores by embedding."""

    names: list[str]
    temperature: float

    def scores(self, vectors: Vector, *, leave_out_self: bool = False) -> Vector: ...


class Router:
    """One way to choose lobes.

    A subclass sets `name` and implements `judge`; if it learns something, also `learn`, `state` and `adapt`.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    """What a person calls it."""
    sentence: ClassVar[str] = ""
    """What it does, for a person."""
    settings: ClassVar[type[Any] | None] = None
    """A frozen dataclass of what a person may set for a fit, all with defaults; None if there is
    nothing to set."""
    per_token: ClassVar[bool] = False
    """Whether its decisions are `per_token`."""
    needs_model: ClassVar[bool] = False
    """Whether `learn` runs the language model, which takes seconds."""
    learns_labels: ClassVar[bool] = True
    """Whether it learns from which lobe a row belongs to, so that corrections of prompts change its fit."""
    asks_for_fit: ClassVar[bool] = False
    """Whether a person starts the fit (and is told when it is stale); the others calibrate by themselves."""

    def __init__(self, context: RoutingContext) -> None:
        self.context = context

    def judge(self, prompt: str) -> Verdict:
        """What is to be known of a prompt that is not empty, with at least one lobe in the context:
        all that a router defines."""
        raise NotImplementedError

    def decide(self, prompt: str) -> RoutingDecision:
        """The decision that follows from `judge`: the likeliest lobe, or the base."""
        found = self.judge(prompt)
        best = found.best
        values: dict[str, Any] = {
            "scores": found.scores,
            "probabilities": found.probabilities,
            "threshold": found.threshold,
            "certain": found.certain,
            "evidence": {**found.evidence, "none": found.none},
            "confidence": found.confidence,
        }
        if best is None:
            return base_decision(self.name, found.stage, found.reason, **values)
        return RoutingDecision(
            router=self.name,
            stage=found.stage,
            weights=found.weights or {best: 1.0},
            chosen=best,
            reason=found.reason,
            per_token=self.per_token,
            **values,
        )

    def learn(self, settings: Mapping[str, Any], stop: threading.Event) -> Learning:
        """Learn or calibrate from the context's rows, step by step, for a live plot. Set `stop` and
        it ends early with the best so far. A router that does not need the language model for it
        only defines `adapt`.

        Args:
            settings: fields of the router's own settings class; {} for the defaults.
        Raises:
            ConfigError: a setting that is unknown or out of range. RoutingError: there is nothing
                to learn from.
        """
        self.adapt(State(exact=False))
        return FitOutcome()
        yield

    def adapt(self, state: State) -> None:
        """Get ready for the present lobes without running the language model, with what still holds
        of an earlier state: all of it if it is exact, else what does not depend on lobes that came
        or went.

        Raises:
            RoutingError: it is said to be exact, and belongs to other lobes or another version.
        """

    def shares(self, prompt: str, decision: RoutingDecision) -> Mapping[str, float]:
        """What a mixture of several lobes is made of; their probabilities, unless a router can tell
        parts of a prompt apart."""
        return decision.probabilities

    def mixer(self, mixing: Mixing) -> Any:
        """The `mixing.Mixer` that weighs each token, where decisions are `per_token`.

        Raises:
            RoutingError: this router weighs whole prompts.
        """
        raise RoutingError(f"The router {self.name!r} weighs whole prompts, not tokens.")

    @property
    def present_settings(self) -> dict[str, Any]:
        """What may be set, by name, as it is now or by default."""
        return asdict(self.settings()) if self.settings else {}

    @property
    def is_fitted(self) -> bool:
        """Whether `decide` can choose a lobe; False while a person has yet to start the fit."""
        return True

    def state(self) -> dict[str, Any]:
        """What `learn` learned: JSON values, and numpy arrays as values of the outermost keys."""
        return {}

    @classmethod
    def by_hand(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a state that a person set by hand, so that nothing else can find it again; {}
        if that is nothing."""
        return {}

    def route(self, prompt: str, mixing: Mixing = AUTO) -> RoutingDecision:
        """Decide, with what every router shares: no lobes, an empty prompt, the mixing mode, and
        the time it took."""
        start = time.perf_counter()
        if not self.context.lobes and not self.context.experts:
            decision = base_decision(
                self.name, "no lobes", "There is no lobe yet, so the base model answers."
            )
        elif not prompt.strip():
            decision = base_decision(
                self.name, "empty prompt", "An empty prompt says nothing, so the base model answers."
            )
        elif (key := same_prompt(prompt)) in self.context.labels:
            decision = self._as_told(self.context.labels[key])
        else:
            decision = self.decide(prompt)
        if decision.chosen and mixing.mode != "top_1" and not decision.per_token:
            decision = replace(decision, weights=mixing.weights(self.shares(prompt, decision)))
        evidence = {
            **decision.evidence,
            "prompt": prompt,
        }  # what was read: more than the last message, if that said little
        return replace(decision, evidence=evidence, elapsed_ms=(time.perf_counter() - start) * 1000)

    def _as_told(self, lobe: str | None) -> RoutingDecision:
        """A person has said who answers this very prompt."""
        if lobe is None:
            return base_decision(
                self.name, "corrected", "You have said that no lobe answers this, so the base model does."
            )
        sure = {name: float(name == lobe) for name in self.context.lobes}
        return RoutingDecision(
            router=self.name,
            stage="corrected",
            scores=sure,
            probabilities=sure,
            weights={lobe: 1.0},
            chosen=lobe,
            confidence=1.0,
            reason=f"You have said that {lobe} answers this.",
        )


def learn_now(router: Router) -> FitOutcome:
    """`learn` with the default settings, at once."""
    return finish(router.learn({}, threading.Event()))


def same_prompt(prompt: str) -> str:
    """Equal for prompts that differ only in case and white space."""
    return " ".join(prompt.casefold().split())
