"""Hybrid router: nearest rows, a gate and log-prob in one calibrated blend; the language model runs only where it can matter.

With, for every lobe l, s the embedding score over its temperature, k the kernel gate and g the log-prob against its mean over the
shortlist,

    p(l | x) = softmax(a s_l + b k_l + c g_l)

where a, b and c are three coefficients for all lobes, fitted on held-out rows (multinomial logistic regression), so they stay valid
when lobes come and go. The kernel gate is ridge regression of "is it l's row?" on all rows (Rifkin et al. 2003),

    k(x) = Y (K + λ I)⁻¹ k_x,     K_ij = exp(-γ (1 - cos(x_i, x_j)))

None fits when v = u n + w h + o falls below `floor`. n is the mean cosine of the five nearest rows, in a space of three parts:
the sentence's vector; its words' vectors weighed by a / (a + share of prompts that use the word) (Arora et al. 2017, so that
"Explain the term" does not outvote the term); and the base model's mean hidden state, every unit measured against the generic
prompts. h is the best lobe's gain in nats per token over the base, at most GAIN. u, w and o are fitted by leaving each lobe out
in turn: its held-out prompts then are prompts that no lobe knows. `floor` is the quantile of the held-out prompts that
`false_abstention` asks for, from the normal tail below their median (a few dozen prompts have no first percentile of their
own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from .base import (
    Router,
    RoutingContext,
    RoutingDecision,
    ScoringStage,
    Vector,
    base_decision,
    held_out_prompts,
    low_tail,
    softmax,
)

Array = np.ndarray[Any, Any]
SHORTLIST = 3
"""Lobes whose log-prob is asked for at most, the likeliest without it: on eight real domains three route as well as all eight do,
and a prompt then costs the same among a thousand lobes."""
STRANGERS = 8
"""Lobes without rows whose log-prob is asked for at most: nothing else is known of them."""
SURE = 0.97
"""Probability without log-prob from which log-prob is not asked which lobe it is."""
FALSE_ABSTENTION = 0.005
"""Share of held-out rows that may be sent to the base model although a lobe fits."""
WARY = 0.02
"""That share, where the gate finds a prompt more like everyday ones than like any lobe's: two kinds of evidence agree then."""
DEFAULTS = (0.77, 4.0, 5.0)
"""a, b and c until they are fitted."""
WIDTH, RIDGE, KERNEL_ROWS = 2.0, 0.3, 2000
"""γ, λ, and the rows that the kernel gate keeps: its time grows with their cube."""
NEAREST, NEAR_ROWS = 5, 2000
WORD_SMOOTHING = 0.02
"""a in a / (a + share); wider than in the paper, because rows are few."""
GAIN = 0.5
"""Nats per token that count at most: a lobe of one fixed form gains more on all that has the form, and that says little."""
HIDDEN_SHARE = 0.7
"""Weight of the base's hidden state beside the two sentence parts of weight 1."""


class HybridRouter(Router):
    """See the module's text.

    Args:
        first: a stage with `decide` and `scores` that needs no language model (the embedding router).
        false_abstention: share of held-out rows that may be sent to the base model although a lobe fits.
    """

    name: ClassVar[str] = "hybrid"
    title: ClassVar[str] = "Hybrid"
    sentence: ClassVar[str] = "Nearest rows, a gate and, where those are in doubt, the language model's log-prob, weighed together."
    needs_model: ClassVar[bool] = True

    def __init__(
        self, context: RoutingContext, first: ScoringStage, false_abstention: float = FALSE_ABSTENTION
    ) -> None:
        super().__init__(context)
        self.first = first
        self.false_abstention = false_abstention
        self.coefficients: tuple[float, ...] = DEFAULTS
        self.quick: tuple[float, ...] = DEFAULTS[:2]
        self._detector: _Detector | None = None
        self._kernel: _Kernel | None = None

    # ---- deciding ---------------------------------------------------------------------------------------------------------

    def decide(self, prompt: str) -> RoutingDecision:
        first = replace(self.first.decide(prompt), router=self.name)
        names = self.first.names
        if len(self.context.lobes) == 1 and names:
            return first  # one lobe: it fits or it does not, and the embedding knows
        if getattr(self.first, "threshold", None) is not None and first.certain:
            return first  # a person's own threshold
        if not names:
            return self._by_logprob(prompt, first)
        vector = self.context.embed([prompt])
        *gate, everyday = self.kernel(vector)[0]
        strange = bool(everyday > max(gate))
        near = self._detector.near([prompt], vector, self.context)[0] if self._detector else None
        scores = np.array([first.scores[name] for name in names], np.float32)
        features = np.stack([scores / np.float32(self.first.temperature), gate])
        quick = softmax(np.asarray(np.array(self.quick) @ features, np.float32))
        known = self._known(first, near, strange)
        evidence = {
            **first.evidence,
            "embedding": dict(first.scores),
            "gate": dict(zip(names, map(float, gate), strict=True)),
            "everyday": float(everyday),
        }
        strangers = [name for name in self.context.lobes if name not in first.scores]
        if known is False and not strangers and near is not None:
            return self._nobody(first, evidence, "embedding", dict(zip(names, map(float, quick), strict=True)), near)
        if known and quick.max() >= SURE:
            by_lobe = dict(zip(names, map(float, quick), strict=True))
            return self._somebody(by_lobe, "embedding", evidence, near, first)
        return self._read(prompt, first, dict(zip(names, features.T, strict=True)), quick, near, known, strange, evidence)

    def _known(self, first: RoutingDecision, near: float | None, strange: bool) -> bool | None:
        """Whether any lobe fits, if that can be told without log-prob; None where log-prob could change it.

        Args:
            strange: the gate finds the prompt more like everyday ones than like any lobe's.
        """
        if self._detector is None or near is None:
            return True if first.chosen else None
        lowest, highest = (self._detector.value(near, gain) for gain in self._detector.gains)
        floor = self._detector.floor_of(strange)
        if near >= self._detector.clear and not strange:
            return True
        return True if lowest >= floor else False if highest < floor else None

    def _read(
        self,
        prompt: str,
        first: RoutingDecision,
        features: Mapping[str, Array],
        quick: Vector,
        near: float | None,
        known: bool | None,
        strange: bool,
        evidence: Mapping[str, Any],
    ) -> RoutingDecision:
        """Ask the language model too; features: (2,) by lobe with rows, the embedding's and the kernel gate's."""
        order = [name for _, name in sorted(zip(-quick, features, strict=True), key=lambda pair: float(pair[0]))]
        strangers = [name for name in self.context.lobes if name not in features][:STRANGERS]
        shortlist = order[:SHORTLIST] + strangers
        logprobs = -self.context.nll([prompt], shortlist)[0]
        if np.isnan(logprobs).any():
            return replace(first, certain=True)
        lobes, base = logprobs[:-1], float(logprobs[-1])
        gain = float(lobes.max()) - base
        if known is None and self._detector is not None and near is not None:
            # what a lobe without rows gains says nothing of those with rows
            with_rows = float(lobes[: len(shortlist) - len(strangers)].max()) - base
            known = self._detector.value(near, with_rows) >= self._detector.floor_of(strange)
        elif known is None:
            known = False
        # what is far from all rows says which lobe is least far away, and that is no evidence; a lobe without rows gets the
        # median, which speaks neither for nor against it
        middle = np.median(np.stack([*features.values()]), axis=0)
        embedding = np.stack([features.get(name, middle) if known else np.zeros(2) for name in shortlist], axis=1)
        relative = lobes - lobes.mean()
        if not known and strangers:
            relative = lobes - base
        probabilities = softmax(
            np.asarray(np.array(self.coefficients) @ np.vstack([embedding, relative]), np.float32)
        )
        by_lobe = dict(zip(shortlist, map(float, probabilities), strict=True))
        evidence = {
            **evidence,
            "logprob": dict(zip(shortlist, map(float, lobes), strict=True)),
            "base_logprob": base,
        }
        fits = known or (bool(strangers) and gain > 0)
        if not fits and (self._detector is not None or gain <= 0):
            return self._nobody(first, evidence, "logprob", by_lobe, near, gain)
        return self._somebody(by_lobe, "logprob", evidence, near, first, gain)

    def _by_logprob(self, prompt: str, first: RoutingDecision) -> RoutingDecision:
        """No lobe has rows: the language model alone knows."""
        shortlist = list(self.context.lobes)[:STRANGERS]
        logprobs = -self.context.nll([prompt], shortlist)[0]
        if np.isnan(logprobs).any():
            return replace(first, certain=True)
        lobes, base = logprobs[:-1], float(logprobs[-1])
        by_lobe = dict(zip(shortlist, map(float, softmax(self.coefficients[2] * (lobes - lobes.mean()))), strict=True))
        evidence = {"logprob": dict(zip(shortlist, map(float, lobes), strict=True)), "base_logprob": base}
        gain = float(lobes.max()) - base
        if gain <= 0:
            return self._nobody(first, evidence, "logprob", by_lobe, None, gain)
        return self._somebody(by_lobe, "logprob", evidence, None, first, gain)

    def _somebody(
        self,
        by_lobe: Mapping[str, float],
        stage: str,
        evidence: Mapping[str, Any],
        near: float | None,
        first: RoutingDecision,
        gain: float | None = None,
    ) -> RoutingDecision:
        best = max(by_lobe, key=lambda name: by_lobe[name])
        if stage == "logprob":
            doubt = f"{first.chosen} was not clear by nearness alone" if first.chosen else "Nothing was near"
            reason = f"{doubt}; with the prompt read under each lobe, {best} fits best ({by_lobe[best]:.0%})."
        else:
            reason = f"Nearest rows and gate agree on {best} ({by_lobe[best]:.0%})."
        return RoutingDecision(
            router=self.name,
            stage=stage,
            scores=by_lobe,
            probabilities=by_lobe,
            weights={best: 1.0},
            chosen=best,
            confidence=by_lobe[best],
            threshold=SURE if stage == "embedding" else None,
            reason=reason,
            evidence={**evidence, **self._shown(near, gain)},
        )

    def _nobody(
        self,
        first: RoutingDecision,
        evidence: Mapping[str, Any],
        stage: str,
        by_lobe: Mapping[str, float],
        near: float | None,
        gain: float | None = None,
    ) -> RoutingDecision:
        shown = self._shown(near, gain)
        closest = max(by_lobe, key=lambda name: by_lobe[name])
        reason = f"No lobe's data is near; {closest} comes closest"
        if gain is not None:
            more = f"{gain:+.2f} nats per token against the base" if gain > 0 else "and finds it no likelier than the base"
            reason += f", {more}"
        return base_decision(
            self.name,
            stage,
            f"{reason}.",
            scores=by_lobe,
            probabilities=by_lobe,
            confidence=float(max(0.5, shown.get("none", 0.5))),
            evidence={**evidence, **shown},
        )

    def _shown(self, near: float | None, gain: float | None) -> dict[str, float]:
        """What the decision shows of the detector; "none" is the probability that no lobe fits, 0.5 at the floor."""
        if self._detector is None or near is None:
            return {}
        value = self._detector.value(near, float(np.mean(self._detector.gains)) if gain is None else gain)
        none = float(1 / (1 + np.exp(np.clip(value - self._detector.floor, -50, 50))))
        return {"none": none, "near": near, "known": value, "floor_known": self._detector.floor}

    def fitness(self, prompt: str) -> float:
        """By how much v of the module's text is above what this prompt must reach, log-prob always asked; NaN unfitted."""
        if self._detector is None:
            return float("nan")
        vector = self.context.embed([prompt])
        near = self._detector.near([prompt], vector, self.context)[0]
        *gate, everyday = self.kernel(vector)[0]
        nll = self.context.nll([prompt], self.first.names)[0]
        gain = float(nll[-1] - nll[:-1].min())
        value = self._detector.value(near, gain if np.isfinite(gain) else 0.0)
        return value - self._detector.floor_of(bool(everyday > max(gate)))

    def kernel(self, vectors: Vector, without: Sequence[str] = ()) -> Vector:
        """(n, lobes with rows + 1): the kernel gate, "everyday" last; `without` leaves out rows of these texts."""
        if without:
            return _Kernel(self.context, self.first.names, set(without))(vectors)
        if self._kernel is None:
            self._kernel = _Kernel(self.context, self.first.names)
        return self._kernel(vectors)

    # ---- calibration ------------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Calibrate stage 1, then the blend and the detector on held-out prompts."""
        self.first.fit()
        names = list(self.first.names)
        if len(names) < 2:
            return
        prompts, owner = held_out_prompts(self.context, names, most=240)
        if len(set(owner)) < 2:
            return
        places = np.array(owner)
        vectors = self.context.embed(prompts)
        scores = self.first.scores(vectors, leave_out_self=True) / np.float32(self.first.temperature)
        gate = self.kernel(vectors, prompts)[:, :-1]
        quick = softmax(np.asarray(np.tensordot(np.array(self.quick), np.stack([scores, gate]), 1), np.float32))
        shortlists = np.argsort(-quick, axis=1)[:, :SHORTLIST]
        gains = np.full(scores.shape, np.nan)  # nats per token over the base; NaN off the shortlist
        for i, (prompt, shortlist) in enumerate(zip(prompts, shortlists, strict=True)):
            nll = self.context.nll([prompt], [names[j] for j in shortlist])[0]
            gains[i, shortlist] = nll[-1] - nll[:-1]
        self.quick = _blend([scores, gate], places, DEFAULTS[:2])
        good = np.isfinite(np.take_along_axis(gains, shortlists, 1)).all(1) & (shortlists == places[:, None]).any(1)
        if good.any():
            three = [np.take_along_axis(part[good], shortlists[good], 1) for part in (scores, gate, gains)]
            three[2] = three[2] - three[2].mean(1, keepdims=True)
            true = (shortlists[good] == places[good, None]).argmax(1)
            self.coefficients = _blend(three, true, DEFAULTS)
        self._detector = _Detector.fitted(self.context, names, prompts, vectors, places, gains, self.false_abstention)

    def refit(self, earlier: Mapping[str, Any]) -> None:
        self.first.fit()
        self._take(earlier)

    def state(self) -> dict[str, Any]:
        detector = self._detector.state() if self._detector else {}
        return {
            "coefficients": list(self.coefficients),
            "quick": list(self.quick),
            "first": self.first.state(),
            "false_abstention": self.false_abstention,
            **detector,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.first.restore(state["first"])
        self._take(state)

    def _take(self, state: Mapping[str, Any]) -> None:
        """Coefficients, and the detector where it knows all lobes that have rows: another would call a newcomer unknown."""
        coefficients, quick = state.get("coefficients", ()), state.get("quick", ())
        if len(coefficients) == len(DEFAULTS) and len(quick) == len(DEFAULTS) - 1:
            self.coefficients, self.quick = tuple(map(float, coefficients)), tuple(map(float, quick))
        self.false_abstention = float(state.get("false_abstention", self.false_abstention))
        self._detector = _Detector.restored(state, self.first.names)


def _blend(parts: Sequence[Array], owner: Array, defaults: tuple[float, ...]) -> tuple[float, ...]:
    """Coefficients (one a part, each (n, lobes)) that make the true owners (n,) likeliest."""
    from scipy.optimize import minimize

    stacked, start = np.stack(parts).astype(np.float64), np.array(defaults)

    def loss(coefficients: Array) -> float:
        z = np.tensordot(coefficients, stacked, axes=1)
        z -= z.max(1, keepdims=True)
        # a weak pull towards the defaults keeps a handful of rows from choosing wild coefficients
        pull = 0.005 * float(((coefficients / start - 1) ** 2).sum())
        return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), owner]).mean()) + pull

    best = minimize(loss, start, bounds=[(0.0, 10 * value) for value in defaults]).x
    return tuple(map(float, best))


class _Kernel:
    """The kernel gate over the lobes' training rows, at most KERNEL_ROWS of them, evenly from every lobe, and over the everyday
    prompts, which are a class of their own: (n, lobes + 1), that class last, zeros where there are none."""

    def __init__(self, context: RoutingContext, names: Sequence[str], without: set[str] | None = None) -> None:
        from scipy.linalg import solve  # not imported by the page

        rows, owner = [], []
        most = max(4, KERNEL_ROWS // max(1, len(names)))
        for i, name in enumerate(names):
            own = context.rows[name]
            vectors = own.train if len(own.train) else own.prototypes
            keep = [j for j in range(len(vectors)) if not (without and j < len(own.train_prompts)
                    and own.train_prompts[j] in without)]  # fmt: skip
            keep = keep[:: max(1, -(-len(keep) // most))]
            rows.append(vectors[keep])
            owner += [i] * len(keep)
        everyday = context.generic()
        if len(everyday):
            rows.append(everyday)
            owner += [len(names)] * len(everyday)
        self._rows = np.concatenate(rows)
        labels = np.eye(len(names) + 1, dtype=np.float32)[owner]
        gram = np.exp(WIDTH * (self._rows @ self._rows.T - 1))
        gram[np.diag_indices_from(gram)] += RIDGE
        self._weights = solve(gram, labels, assume_a="pos", overwrite_a=True, overwrite_b=True, check_finite=False)

    def __call__(self, vectors: Vector) -> Vector:
        return np.asarray(np.exp(WIDTH * (vectors @ self._rows.T - 1)) @ self._weights, np.float32)


class _Detector:
    """Does any lobe fit? See the module's text; `rows` (n, d) of the three-part space and `owner` (n,) index `lobes`."""

    def __init__(self, lobes: Sequence[str], words: tuple[Array, Array], hidden: Array, rows: Array, owner: Array) -> None:
        self.lobes, self._words, self._hidden, self._rows, self._owner = list(lobes), words, hidden, rows, owner
        self._shares = dict(zip(words[0].tolist(), words[1].tolist(), strict=True))
        self._bias = (1.0, 0.0, 0.0)
        self.floor = self.wary = -np.inf
        """What v must reach, and what it must reach for a prompt that is more like everyday ones than like any lobe's."""
        self.gains = (0.0, 0.0)
        """The range of gains that held-out prompts have: what log-prob can add or take."""
        self.clear = np.inf
        """Nearness of most held-out prompts that only one in a hundred of a left-out lobe reaches: log-prob is not asked then."""

    def floor_of(self, strange: bool) -> float:
        return self.wary if strange else self.floor

    def value(self, near: float, gain: float) -> float:
        u, w, o = self._bias
        return u * near + w * min(gain, GAIN) + o

    def near(self, texts: Sequence[str], vectors: Vector, context: RoutingContext) -> list[float]:
        similar = self._space(texts, vectors, context) @ self._rows.T
        return [float(v) for v in _five(similar)]

    def _space(self, texts: Sequence[str], vectors: Vector, context: RoutingContext) -> Array:
        """(n, d) unit vectors of the three parts side by side."""
        parts: list[Array] = [vectors]
        if len(self._words[0]) and context.words is not None:
            found = []
            for (ids, words), whole in zip(context.words(texts), vectors, strict=True):
                weights = np.array([WORD_SMOOTHING / (WORD_SMOOTHING + self._shares.get(int(i), 0.0)) for i in ids])
                found.append(np.asarray(weights @ words if len(ids) else whole, np.float32))
            parts.append(_unit(np.stack(found)))
        if len(self._hidden) and context.hidden is not None:
            parts.append(HIDDEN_SHARE * _unit((context.hidden(texts) - self._hidden[0]) / self._hidden[1]))
        return _unit(np.concatenate(parts, axis=1)).astype(np.float32)

    @classmethod
    def fitted(
        cls,
        context: RoutingContext,
        names: Sequence[str],
        prompts: Sequence[str],
        vectors: Vector,
        places: Array,
        gains: Array,
        false_abstention: float,
    ) -> _Detector | None:
        """Learned from held-out prompts with their lobes' places; gains (n, lobes), NaN where not asked."""
        texts, rows, owner = [], [], []
        most = max(NEAREST, NEAR_ROWS // len(names))
        for i, name in enumerate(names):
            own = context.rows[name]
            if len(own.train_prompts) != len(own.train) or not len(own.train):
                return None  # a lobe without texts: its rows have no place in the space
            keep = range(0, len(own.train), max(1, -(-len(own.train) // most)))
            texts += [own.train_prompts[j] for j in keep]
            rows += [own.train[j] for j in keep]
            owner += [i] * len(keep)
        words: tuple[Array, Array] = (np.zeros(0, np.int64), np.zeros(0, np.float32))
        if context.words is not None:
            words = _shares(context.words(texts), np.array(owner), len(names))
        hidden = np.zeros((0, 0), np.float32)
        if context.hidden is not None:
            # against prompts of all kinds: measured against the lobes' own rows, what they share would vanish
            everyday = list(context.generic_prompts)
            states = context.hidden(everyday if len(everyday) >= 30 else texts)
            hidden = np.stack([states.mean(0), states.std(0) + 1e-6]).astype(np.float32)
        made = cls(names, words, hidden, np.zeros((0, 0)), np.array(owner))
        made._rows = made._space(texts, np.stack(rows), context)
        similar = made._space(prompts, vectors, context) @ made._rows.T
        similar[similar > 0.9999] = -1.0  # rows that are the prompt itself
        gains = np.minimum(gains, GAIN)
        inside = np.stack([_five(similar), np.nanmax(gains, 1)], 1)
        outside = []
        for lobe in range(min(24, len(names))):
            of = places == lobe
            others = np.delete(gains[of], lobe, 1)
            if of.any():
                outside.append(np.stack([_five(similar[of][:, made._owner != lobe]), np.nanmax(others, 1)], 1))
        good = np.isfinite(inside).all(1)
        strange = np.concatenate(outside)
        strange = strange[np.isfinite(strange).all(1)]
        if not good.any() or not len(strange):
            return None
        inside = inside[good]
        made._bias = _logistic(np.concatenate([inside, strange]), np.arange(len(inside) + len(strange)) < len(inside))
        values = inside @ np.array(made._bias[:2]) + made._bias[2]
        made.floor, made.wary = low_tail(values, false_abstention), low_tail(values, max(WARY, false_abstention))
        both = np.concatenate([inside, strange])[:, 1]
        # few lobes are far apart from each other, and from that nothing follows for what is strange to all
        made.clear = float(max(np.quantile(strange[:, 0], 0.99), np.quantile(inside[:, 0], 0.05)))
        made.gains = (float(np.quantile(both, 0.02)), float(np.quantile(both, 0.98)))
        return made

    def state(self) -> dict[str, Any]:
        numbers: dict[str, Any] = {"bias": list(self._bias), "floor": self.floor, "gains": list(self.gains), "clear": self.clear}
        numbers["wary"] = self.wary
        return {
            "detector": {"lobes": self.lobes, **numbers},
            "word_ids": self._words[0],
            "word_shares": self._words[1],
            "hidden": self._hidden,
            "rows": self._rows,
            "owner": self._owner,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any], names: Sequence[str]) -> _Detector | None:
        saved = state.get("detector")
        if not saved or not set(names) <= set(saved["lobes"]):
            return None
        owner = np.asarray(state["owner"], np.int64)
        kept = np.isin(owner, [i for i, name in enumerate(saved["lobes"]) if name in names])
        if not kept.any():
            return None
        place = {i: names.index(name) for i, name in enumerate(saved["lobes"]) if name in names}
        made = cls(
            names,
            (np.asarray(state["word_ids"], np.int64), np.asarray(state["word_shares"], np.float32)),
            np.asarray(state["hidden"], np.float32),
            np.asarray(state["rows"], np.float32)[kept],
            np.array([place[int(i)] for i in owner[kept]]),
        )
        u, w, o = map(float, saved["bias"])
        low, high = map(float, saved["gains"])
        made._bias, made.gains = (u, w, o), (low, high)
        made.floor, made.wary, made.clear = (float(saved[name]) for name in ("floor", "wary", "clear"))
        return made


def _five(similar: Array) -> Array:
    """Mean of each row's NEAREST largest values."""
    k = min(NEAREST, similar.shape[1])
    return np.asarray(np.partition(similar, similar.shape[1] - k, axis=1)[:, -k:].mean(1))


def _unit(values: Array) -> Array:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9))


def _shares(words: Sequence[tuple[Array, Array]], owner: Array, lobes: int) -> tuple[Array, Array]:
    """(ids, shares): the share of prompts that use a word, every lobe counting the same."""
    shares: dict[int, float] = {}
    sizes = np.bincount(owner, minlength=lobes) * lobes
    for (ids, _), lobe in zip(words, owner, strict=True):
        for i in set(np.asarray(ids).tolist()):
            shares[i] = shares.get(i, 0.0) + 1 / sizes[lobe]
    return np.array([*shares], np.int64), np.array([*shares.values()], np.float32)


def _logistic(features: Array, known: Array) -> tuple[float, float, float]:
    """(u, w, o) of logistic regression (n, 2) → known (n,) on standardised features, with a weak L2 penalty, by Newton's method."""
    middle, spread = features.mean(0), features.std(0) + 1e-9
    x = np.c_[(features - middle) / spread, np.ones(len(features))]
    b, penalty = np.zeros(3), np.diag([1e-2, 1e-2, 1e-6])
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ b, -50, 50)))
        gradient = x.T @ (p - known) / len(x) + penalty @ b
        b = b - np.linalg.solve((x.T * (p * (1 - p))) @ x / len(x) + penalty, gradient)
    u, w = b[:2] / spread
    return float(u), float(w), float(b[2] - (b[:2] * middle / spread).sum())
