"""What all routers share: the decision they produce, the narrow context they see, and the steps from scores to weights.

A router file holds only what it finds out about a prompt; everything else about routing is here, once. Routers never see the
studio, the page, or each other.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar, Protocol

import numpy as np

from ..errors import RoutingError, some_of
from ..progress import Progress

Vector = np.ndarray[Any, np.dtype[np.float32]]
NEGLIGIBLE = 0.01
"""Weight below which "soft" leaves a lobe out: the bank's time grows with the lobes that it runs."""
MODES = ("auto", "top_1", "top_k", "soft")
STANDS_OUT = 0.6
"""Share of the best lobe's weight that another needs for "auto" to let it answer too."""


@dataclass(frozen=True)
class Mixing:
    """How many lobes answer: "auto" the best and those that stand out beside it, "top_1" the best, "top_k" the `k` best, "soft"
    all that are not negligible. A router that weighs tokens mixes softly under "auto".

    Raises:
        RoutingError: no such mode, or fewer than one lobe.
    """

    mode: str = "auto"
    k: int = 2

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RoutingError(f"There is no mixing mode {self.mode!r}. There are: {', '.join(MODES)}.")
        if self.k < 1:
            raise RoutingError(f"k is {self.k}; at least 1 lobe must answer.")

    def weights(self, shares: Mapping[str, float]) -> dict[str, float]:
        """The shares of the lobes that answer, made to sum to 1; heaviest first."""
        ranked = sorted((name for name in shares if shares[name] > 0), key=lambda name: -shares[name])
        if self.mode == "auto":
            chosen = [name for name in ranked if shares[name] >= STANDS_OUT * shares[ranked[0]]]
        elif self.mode == "soft":
            chosen = [name for name in ranked if shares[name] >= NEGLIGIBLE] or ranked[:1]
        else:
            chosen = ranked[: self.k if self.mode == "top_k" else 1]
        total = sum(shares[name] for name in chosen)
        return {name: shares[name] / total for name in chosen}


AUTO, TOP_1 = Mixing(), Mixing("top_1")


@dataclass(frozen=True)
class RoutingDecision:
    """Which lobes answer a prompt, and why. Lobes go by their names.

    Attributes:
        router: name of the router, "hybrid" for instance; "manual" when a person chose.
        stage: which part of it decided: "embedding", "logprob", "manual", "empty prompt", "no lobes", "only lobe".
        scores: raw score of every lobe in the deciding stage's own unit, higher is better; may lack lobes not looked at.
        probabilities: calibrated; over all lobes they sum to 1, or to less by the share of "none of these".
        weights: what the bank runs; empty is the base model.
        chosen: the heaviest lobe, or None for the base model.
        confidence: probability of what was decided, 0 to 1.
        abstained: True when the router found that no lobe fits.
        threshold: the score that `stage` asks of a lobe, in the unit of `scores`; None where there is none.
        elapsed_ms: wall time of the decision.
        reason: one sentence for a person.
        certain: False when a chain of stages should ask its next stage.
        evidence: what else can be shown: per-stage scores, nearest training rows, the prompt's embedding.
        per_token: True when each token is weighed anew while the answer is written; `weights` are then the prompt's average.
    """

    router: str
    stage: str
    scores: Mapping[str, float]
    probabilities: Mapping[str, float]
    weights: Mapping[str, float]
    chosen: str | None
    confidence: float
    abstained: bool = False
    threshold: float | None = None
    elapsed_ms: float = 0.0
    reason: str = ""
    certain: bool = True
    evidence: Mapping[str, Any] = field(default_factory=dict)
    per_token: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values only; evidence that is not (embeddings) is left out."""
        plain = {k: v for k, v in self.evidence.items() if not isinstance(v, np.ndarray)}
        return {
            "router": self.router,
            "stage": self.stage,
            "scores": dict(self.scores),
            "probabilities": dict(self.probabilities),
            "weights": dict(self.weights),
            "chosen": self.chosen,
            "confidence": self.confidence,
            "abstained": self.abstained,
            "threshold": self.threshold,
            "elapsed_ms": self.elapsed_ms,
            "reason": self.reason,
            "certain": self.certain,
            "per_token": self.per_token,
            "evidence": plain,
        }


@dataclass(frozen=True)
class Verdict:
    """What a router finds out about a prompt; `Router.decide` makes the decision of it.

    Attributes:
        scores: raw, in the router's own unit, higher is better. probabilities: calibrated, that each lobe is the right one; what
            is missing to 1 is `none`. none: probability that no lobe fits; above 0.5 the base answers.
        stage, reason, certain, threshold, evidence: as in `RoutingDecision`.
    """

    scores: Mapping[str, float]
    probabilities: Mapping[str, float]
    none: float = 0.0
    stage: str = ""
    reason: str = ""
    certain: bool = True
    threshold: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RoutingRows:
    """What routing knows of one lobe: embeddings of its rows, unit length.

    Attributes:
        prototypes: (k, d) cluster centres of the training rows. train: (n, d). validation: (m, d), rows held out from training.
        train_prompts, validation_prompts: their texts, same order. train_answers, validation_answers: what was answered; empty
            for a lobe that came from a version that did not keep them.
    """

    prototypes: Vector
    train: Vector
    validation: Vector
    train_prompts: Sequence[str] = ()
    validation_prompts: Sequence[str] = ()
    train_answers: Sequence[str] = ()
    validation_answers: Sequence[str] = ()


class RowsByName(Mapping[str, RoutingRows]):
    """Routing rows by lobe name, which are read when they are asked for. With a thousand lobes that takes seconds."""

    def prototypes(self, name: str) -> Vector:
        """The lobe's prototypes, without the rest of its rows where that saves reading them."""
        return self[name].prototypes


@dataclass(frozen=True)
class RoutingContext:
    """All that a router may use; tests pass plain functions.

    Attributes:
        lobes: names of the lobes that can be chosen.
        rows: routing rows by lobe name; a lobe imported without data has none.
        embed: texts → (n, d) unit vectors.
        nll: (texts, lobe names) → (texts, lobes + 1): mean NLL per token of each text's first tokens under every lobe, the
            plain base in the last column; NaN where a text has no token to score.
        generic: embeddings (g, d) of prompts that belong to no specialist; `generic_prompts` their texts.
        hidden: texts → (n, h): mean hidden state of the base's last layer over each text's tokens.
        bank: the LobeBank, for routers that weigh tokens or train through it; None where no model is loaded.
        ids: a lobe's id in the bank, by its name.
        experts: names of the lobes that a router made for itself (see `Router.fitting`), by tier; not among `lobes`.
        labels: prompts (as `same_prompt` gives them) of which a person has said who answers: a lobe's name, or None for no lobe.
    """

    lobes: Sequence[str]
    rows: Mapping[str, RoutingRows]
    embed: Callable[[Sequence[str]], Vector]
    nll: Callable[[Sequence[str], Sequence[str]], Vector]
    generic: Callable[[], Vector] = lambda: np.zeros((0, 0), np.float32)
    generic_prompts: Sequence[str] = ()
    hidden: Callable[[Sequence[str]], Vector] | None = None
    bank: Any = None
    ids: Mapping[str, str] = field(default_factory=dict)
    experts: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str | None] = field(default_factory=dict)

    def prototypes(self, name: str) -> Vector:
        """(k, d), of a lobe that has rows."""
        return self.rows.prototypes(name) if isinstance(self.rows, RowsByName) else self.rows[name].prototypes


@dataclass(frozen=True)
class FitOutcome:
    """What a fit leaves besides the router's state.

    Attributes:
        report: numbers and short texts that a person should see. experts: PEFT adapter folders that the router wants as lobes of
            its own, by tier.
    """

    report: Mapping[str, Any] = field(default_factory=dict)
    experts: Mapping[str, Path] = field(default_factory=dict)


Fitting = Generator[Progress, None, FitOutcome]


class ScoringStage(Protocol):
    """What the hybrid router asks of the one that scores by embedding."""

    names: list[str]
    temperature: float

    def scores(self, vectors: Vector, *, leave_out_self: bool = False) -> Vector: ...


class Router:
    """One way to choose lobes.

    A subclass sets `name`, implements `decide`, and if it learns something, `fit` (or `fitting`), `state` and `restore`.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    """What a person calls it."""
    sentence: ClassVar[str] = ""
    """What it does, for a person."""
    settings: ClassVar[type[Any] | None] = None
    """A frozen dataclass of what a person may set for a fit, all with defaults; None if there is nothing to set."""
    per_token: ClassVar[bool] = False
    """Whether its decisions are `per_token`."""
    needs_model: ClassVar[bool] = False
    """Whether `fit` runs the language model, which takes seconds."""
    learns_labels: ClassVar[bool] = True
    """Whether it learns from which lobe a row belongs to, so that corrections of prompts change its fit."""
    asks_for_fit: ClassVar[bool] = False
    """Whether a person starts the fit (and is told when it is stale); the others calibrate by themselves."""

    def __init__(self, context: RoutingContext) -> None:
        self.context = context

    def judge(self, prompt: str) -> Verdict:
        """What is to be known of a prompt that is not empty, with at least one lobe in the context.

        A router defines this, or `decide` itself.
        """
        raise NotImplementedError

    def decide(self, prompt: str) -> RoutingDecision:
        """Decide for a prompt that is not empty, with at least one lobe in the context; top-1 weights."""
        found = self.judge(prompt)
        values: dict[str, Any] = {
            "scores": found.scores,
            "probabilities": found.probabilities,
            "threshold": found.threshold,
            "certain": found.certain,
            "evidence": {**found.evidence, "none": found.none},
        }
        if found.none > 0.5 or not found.probabilities:
            return base_decision(self.name, found.stage, found.reason, **{**values, "confidence": found.none})
        best = max(found.probabilities, key=lambda name: found.probabilities[name])
        return RoutingDecision(
            router=self.name,
            stage=found.stage,
            weights={best: 1.0},
            chosen=best,
            confidence=found.probabilities[best],
            reason=found.reason,
            **values,
        )

    def fit(self) -> None:
        """Learn or calibrate from the context's rows."""
        for _ in self.fitting({}, threading.Event()):
            pass

    def fitting(self, settings: Mapping[str, Any], stop: threading.Event) -> Fitting:
        """`fit` step by step, for a live plot. Set `stop` and it ends early with the best so far.

        Args:
            settings: fields of the router's own settings class; {} for the defaults.
        Raises:
            ConfigError: a setting that is unknown or out of range. RoutingError: there is nothing to learn from.
        """
        if type(self).fit is not Router.fit:
            self.fit()
        return FitOutcome()
        yield

    def shares(self, prompt: str, decision: RoutingDecision) -> Mapping[str, float]:
        """What a mixture of several lobes is made of; their probabilities, unless a router can tell parts of a prompt apart."""
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
        """What `fit` learned: JSON values, and numpy arrays as values of the outermost keys."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up `state()` of an earlier fit. Lobes that came since are not known to it; those that went are dropped.

        Raises:
            RoutingError: it belongs to other lobes or another version.
        """

    def refit(self, earlier: Mapping[str, Any]) -> None:
        """Adjust to lobes that came or went without running the language model; `earlier` is the last router's state."""

    def route(self, prompt: str, mixing: Mixing = AUTO) -> RoutingDecision:
        """Decide, with what every router shares: no lobes, an empty prompt, the mixing mode, and the time it took."""
        start = time.perf_counter()
        if not self.context.lobes and not self.context.experts:
            decision = base_decision(self.name, "no lobes", "There is no lobe yet, so the base model answers.")
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
        evidence = {**decision.evidence, "prompt": prompt}  # what was read: more than the last message, if that said little
        return replace(decision, evidence=evidence, elapsed_ms=(time.perf_counter() - start) * 1000)

    def _as_told(self, lobe: str | None) -> RoutingDecision:
        """A person has said who answers this very prompt."""
        if lobe is None:
            return base_decision(self.name, "corrected", "You have said that no lobe answers this, so the base model does.")
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


def same_prompt(prompt: str) -> str:
    """Equal for prompts that differ only in case and white space."""
    return " ".join(prompt.casefold().split())


def base_decision(router: str, stage: str, reason: str, **more: Any) -> RoutingDecision:
    """The base model answers."""
    values: dict[str, Any] = {"scores": {}, "probabilities": {}, "confidence": 1.0, **more}
    return RoutingDecision(router=router, stage=stage, weights={}, chosen=None, abstained=True, reason=reason, **values)


def manual_decision(weights: Mapping[str, float], known: Sequence[str]) -> RoutingDecision:
    """A person chose the weights; {} is the base model.

    Raises:
        RoutingError: a lobe that does not exist, or a weight that is not a finite number.
    """
    for name, weight in weights.items():
        if name not in known:
            raise RoutingError(f"There is no lobe called {name!r}. There are: {some_of(known)}.")
        if not np.isfinite(weight):
            raise RoutingError(f"The weight of {name} is {weight}; it must be a finite number.")
    used = {name: float(weight) for name, weight in weights.items() if weight}
    chosen = max(used, key=lambda name: abs(used[name])) if used else None
    reason = f"You chose {chosen}." if chosen else "You chose the base model."
    return RoutingDecision(
        router="manual",
        stage="manual",
        scores=used,
        probabilities=used,
        weights=used,
        chosen=chosen,
        confidence=1.0,
        reason=reason,
    )


def softmax(values: Vector) -> Vector:
    """Along the last axis; values (..., n)."""
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True), np.float32)


def fit_temperature(scores: Vector, owner: np.ndarray[Any, Any], lowest: float = 0.02) -> float:
    """The temperature that makes softmax(scores / T) likeliest for the true owners (Guo et al. 2017), by a fine grid.

    On rows that are told apart without a mistake the likeliest is zero; `lowest` keeps such a router from being sure of all.
    """
    grid: list[float] = np.geomspace(lowest, 1.0, 60).tolist()
    behind = scores - scores[np.arange(len(owner)), owner, None]
    furthest = behind.max(1)

    def loss(t: float) -> float:
        powers = np.exp((behind - furthest[:, None]) / t)
        return float((furthest / t + np.log(powers.sum(1))).mean())

    # it is convex in 1 / T, so one can see on which side of a point the least one lies
    return grid[bisect_left(range(len(grid) - 1), True, key=lambda i: loss(grid[i]) <= loss(grid[i + 1]))]


def calibration_error(confidence: np.ndarray[Any, Any], right: np.ndarray[Any, Any], bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins, weighted by their size."""
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [
        abs(float(confidence[places == b].mean() - right[places == b].mean())) * (places == b).mean()
        for b in set(places)
    ]
    return float(sum(gaps))


def low_tail(values: np.ndarray[Any, Any], share: float) -> float:
    """The value below which that share of `values` (n,) lies, if what is below the median is half a normal distribution: a few
    dozen values have no first percentile of their own."""
    middle = float(np.median(values))
    below = values[values <= middle]
    spread = float(np.sqrt(np.mean((below - middle) ** 2)))
    return middle + NormalDist().inv_cdf(min(max(share, 1e-4), 0.5)) * spread


def held_out_prompts(context: RoutingContext, names: Sequence[str], most: int = 96) -> tuple[list[str], list[int]]:
    """(prompts, owner): evenly from every lobe, rows held out from training where there are at least five, else training rows."""
    prompts: list[str] = []
    owner: list[int] = []
    for i, name in enumerate(names):
        if name not in context.rows:
            continue
        rows = context.rows[name]
        own = rows.validation_prompts if len(rows.validation_prompts) >= 5 else rows.train_prompts
        chosen = list(own)[: max(4, min(24, most // len(names)))]
        prompts += chosen
        owner += [i] * len(chosen)
    return prompts, owner
