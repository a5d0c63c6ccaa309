"""Keyword router: which lobe's distinctive words does the prompt use? No model runs, and a person
can edit the words.

    score(l, x) = sum of the weights of l's terms in x, each once, / sqrt(units in x)
    p(l | x)    = softmax over the lobes and "none" of (score / T), less S for a lobe of which x says nothing; "none" has one
                  score for all prompts

Weights of terms are learned by `.terms`. T, S and the score of "none" are fitted on held-out
prompts (temperature scaling, Guo et al. 2017, with the two more). Terms are single units and pairs
of neighbours (`.units`). A prompt that uses no lobe's terms goes to the base model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ...errors import RoutingError
from ...lobes.rows import Vector
from ...routing.calibration import softmax
from ...routing.decision import RoutingDecision, Verdict
from ...routing.router import Router, RoutingContext, State
from .terms import distinctive_terms
from .units import PAIR, Unit, as_kept, joined, terms_of, units_of

FOLDS = (4, 9, 2)
"""Where the held-out parts begin that calibrate."""
MOST_PROMPTS = 1000
"""Prompts of a lobe that terms are learned from."""
MOST_HELD = 2000
"""Held-out prompts of all lobes that calibrate."""

Array = np.ndarray[Any, Any]


class KeywordRouter(Router):
    """See the module's text."""

    name: ClassVar[str] = "keyword"
    title: ClassVar[str] = "Keywords"
    sentence: ClassVar[str] = "The lobe whose typical words the prompt uses. You can edit the words."

    def __init__(self, context: RoutingContext) -> None:
        super().__init__(context)
        self.temperature = 1.0
        self.none = 0.0
        self.silent = 0.0
        self._edited: set[str] = set()
        self._terms: dict[str, dict[str, float]] = {}
        self._use({})

    @property
    def edited(self) -> frozenset[str]:
        """Lobes whose terms a person wrote; `learn` leaves them as they are."""
        return frozenset(self._edited)

    def terms(self) -> dict[str, dict[str, float]]:
        """Weights by lobe and term, the weightiest first."""
        return {
            name: dict(sorted(own.items(), key=lambda item: -item[1])) for name, own in self._terms.items()
        }

    def set_terms(self, lobe: str, terms: Mapping[str, float] | None) -> None:
        """A person's terms for a lobe, read as prompts are; a negative weight speaks against it. They hold
        until None drops them, and then the next fit learns the lobe's terms again.

        Raises:
            RoutingError: no such lobe, a term without a letter, digit or sign, or a weight that is not a
            finite number.
        """
        if lobe not in self.context.lobes:
            raise RoutingError(
                f"There is no lobe called {lobe!r}. There are: {', '.join(self.context.lobes) or 'none yet'}."
            )
        own: dict[str, float] = {}
        for term, weight in (terms or {}).items():
            if not math.isfinite(weight):
                raise RoutingError(f"The weight of {term!r} is {weight}; it must be a finite number.")
            found = units_of(term)
            if not found:
                raise RoutingError(f"The term {term!r} has no letter, digit or sign; write a word.")
            own[joined(found)] = float(weight)
        self._edited = self._edited - {lobe} if terms is None else self._edited | {lobe}
        self._use({**self._terms, lobe: own})

    def _use(self, terms: Mapping[str, Mapping[str, float]]) -> None:
        """Take up terms: `names` are the lobes that have any, the index finds a term's lobes."""
        self._terms = {name: dict(terms.get(name, {})) for name in self.context.lobes}
        self.names = [name for name, own in self._terms.items() if own]
        self._index: dict[str, list[tuple[int, float]]] = {}
        for i, name in enumerate(self.names):
            for term, weight in self._terms[name].items():
                self._index.setdefault(term, []).append((i, weight))
        self._longest = max((len(units_of(term)) for term in self._index), default=PAIR)

    def scores(self, prompts: Sequence[str]) -> Vector:
        """(n, lobes with terms)."""
        rows = np.zeros((len(prompts), len(self.names)), np.float32)
        for row, prompt in zip(rows, prompts, strict=True):
            units = units_of(prompt)
            row += self._scores({term for term, _, _ in terms_of(prompt, units, self._longest)}, len(units))
        return rows

    def _scores(self, terms: Iterable[str], units: int) -> Vector:
        """Scores of a prompt of so many units that uses these terms."""
        sums = [0.0] * len(self.names)
        for term in sorted(self._index.keys() & terms):
            for lobe, weight in self._index[term]:
                sums[lobe] += weight
        return np.array(sums, np.float32) / np.float32(math.sqrt(max(1, units)))

    def matches(self, prompt: str) -> list[dict[str, Any]]:
        """Where the prompt uses a term: {term, lobe, weight, start, end}, in reading order, longer first. A
        term that comes twice is listed twice, and counts once."""
        return self._matches(prompt, units_of(prompt))

    def _matches(self, prompt: str, units: Sequence[Unit]) -> list[dict[str, Any]]:
        found = [
            {"term": term, "lobe": self.names[lobe], "weight": weight, "start": start, "end": end}
            for term, start, end in terms_of(prompt, units, self._longest)
            for lobe, weight in self._index.get(term, ())
        ]
        return sorted(found, key=lambda match: (match["start"], -match["end"], -match["weight"]))

    def judge(self, prompt: str) -> Verdict:
        if not self.names:
            return Verdict.base("keyword", "No lobe has words of its own to look for.", certain=False)
        units = units_of(prompt)
        matches = self._matches(prompt, units)
        scores = self._scores({match["term"] for match in matches}, len(units))
        classes = _classes(scores[None], self.temperature, self.none, self.silent)[0]
        place, none = int(scores.argmax()), float(classes[-1])
        if scores[place] <= 0:  # silence speaks for nobody
            none = max(0.5, none)
        likely = (1 - none) * classes[:-1] / classes[:-1].sum()
        by_lobe = dict(zip(self.names, map(float, likely), strict=True))
        best = self.names[place]
        said = _listed({m["term"]: m["weight"] for m in matches if m["lobe"] == best and m["weight"] > 0})
        reason = f"The prompt says {said}, which is typical of {best}."
        if none >= 0.5:
            reason = "No word of the prompt is typical of a lobe."
            if said:
                reason = f"Only {said} would speak for {best}, which is too little."
        positive = np.maximum(scores, 0)
        shares = 100 * positive / (positive.sum() or 1)
        return Verdict(
            scores=dict(zip(self.names, map(float, scores), strict=True)),
            probabilities={name: by_lobe.get(name, 0.0) for name in self.context.lobes},
            none=none,
            stage="keyword",
            reason=reason,
            certain=none < 0.5,  # silence is no evidence against a lobe: a later stage may know
            threshold=self.none,
            evidence={"matches": matches, "shares": dict(zip(self.names, map(float, shares), strict=True))},
        )

    def shares(self, prompt: str, decision: RoutingDecision) -> Mapping[str, float]:
        """The lobes' shares of the evidence: the softmax of scores would leave the second lobe of two out."""
        found = decision.evidence.get("shares")
        return {name: share / 100 for name, share in found.items()} if found else decision.probabilities

    def adapt(self, state: State) -> None:
        values = state.values
        if not state.exact:
            for name in values.get("edited", ()):
                if name in self.context.lobes:
                    self.set_terms(name, values["terms"][name])
            self._fit()  # no language model, so nothing to spare
            return
        if list(values.get("lobes", ())) != list(self.context.lobes):
            raise RoutingError("The words are of other lobes.")
        self._edited = set(values["edited"])
        self._use(
            {name: {as_kept(t): float(w) for t, w in own.items()} for name, own in values["terms"].items()}
        )
        self.temperature, self.none = float(values["temperature"]), float(values["none"])
        self.silent = float(values.get("silent", 0.0))

    @classmethod
    def by_hand(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        terms = {lobe: dict(values["terms"][lobe]) for lobe in values["edited"]}
        return {"edited": list(terms), "terms": terms} if terms else {}

    def _fit(self) -> None:
        """Calibrate on prompts that the terms were not learned from, then learn the terms from all."""
        own = {
            name: rows.train_prompts for name, rows in self.context.rows.items() if name in self.context.lobes
        }
        apart = {name: self.context.rows[name].validation_prompts for name in own}
        apart = {name: prompts for name, prompts in apart.items() if len(prompts) >= 5}
        held: list[tuple[str, Vector]] = []
        for place in FOLDS:
            parts = {name: _parted(prompts, place) for name, prompts in own.items() if name not in apart}
            parts |= {name: (list(own[name]), list(prompts)) for name, prompts in apart.items()}
            everyday, strange = _parted(self.context.generic_prompts, place)
            self._learn(_without_held(parts), everyday)
            asked = dict.fromkeys(prompt for _, kept_out in parts.values() for prompt in kept_out)
            held += self._scored([*asked, *strange])
            if own and len(apart) == len(own):
                break  # they would be asked the same again
        self._calibrate(held[:: math.ceil(len(held) / MOST_HELD) or 1])
        self._learn(own, self.context.generic_prompts)

    def _learn(self, prompts: Mapping[str, Sequence[str]], generic: Sequence[str]) -> None:
        learned = distinctive_terms({name: own[:MOST_PROMPTS] for name, own in prompts.items()}, generic)
        self._use({**learned, **{name: self._terms[name] for name in self._edited}})

    def _scored(self, prompts: Sequence[str]) -> list[tuple[str, Vector]]:
        """Each prompt with the scores of all lobes of the context; those without terms have none."""
        scores = np.zeros((len(prompts), len(self.context.lobes)), np.float32)
        places = [list(self.context.lobes).index(name) for name in self.names]
        scores[:, places] = self.scores(prompts)
        return list(zip(prompts, scores, strict=True))

    def _calibrate(self, held: Sequence[tuple[str, Vector]]) -> None:
        """The temperature, and the scores of "none" and of silence, that make the held-out prompts' owners
        likeliest.

        A prompt that stands in two lobes' rows is right with either. Everyday prompts count as much as all
        lobes' prompts at most.
        """
        self.temperature, self.none, self.silent = 1.0, 0.0, 0.0
        rows = self.context.rows
        mine = [
            {*rows[name].train_prompts, *rows[name].validation_prompts} if name in rows else set()
            for name in self.context.lobes
        ]
        owned = np.array([[prompt in own for own in mine] for prompt, _ in held], bool).reshape(
            len(held), len(mine)
        )
        strange = ~owned.any(1)
        owned = np.column_stack([owned, strange])
        if owned.any(0).sum() < 2:
            return
        from scipy.optimize import minimize

        scores = np.stack([found for _, found in held])
        most = (~strange).sum() / max(1, strange.sum())
        weight = np.where(strange, min(1.0, most), 1.0)
        weight /= weight.sum()

        def loss(values: Array) -> float:
            log_temperature, none, silent = values
            right = (_classes(scores, np.exp(log_temperature), none, silent) * owned).sum(1)
            # prompts that are told apart without a mistake fit many values: a weak pull prefers to be less
            # sure, and a low bar
            pull = 0.005 * log_temperature**2 + 0.02 * none**2 + 0.005 * silent**2
            return float(-weight @ np.log(right + 1e-9) + pull)

        bounds = [(-3.0, 3.0), (0.0, 10.0 if strange.any() else 1e-9), (0.0, 8.0)]
        best = minimize(loss, np.zeros(3), method="Powell", bounds=bounds).x
        self.temperature, self.none, self.silent = float(np.exp(best[0])), float(best[1]), float(best[2])

    def state(self) -> dict[str, Any]:
        return {
            "lobes": list(self.context.lobes),
            "terms": {name: dict(own) for name, own in self._terms.items()},
            "edited": sorted(self._edited),
            "temperature": self.temperature,
            "none": self.none,
            "silent": self.silent,
        }


def _classes(scores: Vector, temperature: float, none: float, silent: float) -> Vector:
    """p (n, lobes + 1) of scores (n, lobes): the lobes', and last that of "none"."""
    logits = np.where(scores > 0, scores / temperature, scores / temperature - silent)
    return softmax(
        np.append(logits, np.full((len(scores), 1), none / temperature), axis=1).astype(np.float32)
    )


def _parted(prompts: Sequence[str], place: int) -> tuple[list[str], list[str]]:
    """(the others, every tenth from `place` on); of few prompts, every fifth."""
    every = 10 if len(prompts) >= 40 else 5
    held = place % every
    return [p for i, p in enumerate(prompts) if i % every != held], list(prompts[held::every])


def _without_held(parts: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, list[str]]:
    """What each lobe keeps, without the rows that another lobe holds out."""
    holders: dict[str, set[str]] = {}
    for name, (_, held) in parts.items():
        for prompt in held:
            holders.setdefault(prompt, set()).add(name)
    return {name: [p for p in kept if holders.get(p, set()) <= {name}] for name, (kept, _) in parts.items()}


def _listed(terms: Mapping[str, float]) -> str:
    """The three weightiest as a person would list them."""
    best = [f"“{term}”" for term in sorted(terms, key=lambda term: -terms[term])[:3]]
    return " and ".join(filter(None, (", ".join(best[:-1]), best[-1]))) if best else ""
