"""Keyword router: which lobe's distinctive words does the prompt use? No model runs, and a person can edit the words.

A term w of lobe l is scored by the log-odds ratio against all that is not l, with an informative Dirichlet prior (Monroe, Colaresi
and Quinn 2008, "Fightin' Words", equations 16, 20 and 22). With y the number of prompts that use w, n the sum of y over all
terms, r the other lobes and the generic prompts, and the prior a_w = a_0 times w's share of the whole:

    delta = log (y_l + a_w) / (n_l + a_0 - y_l - a_w)  -  log (y_r + a_w) / (n_r + a_0 - y_r - a_w)
    z     = delta / sqrt(1 / (y_l + a_w) + 1 / (y_r + a_w))

The lobe keeps the TERMS terms of highest z, because those are sure; delta is their weight, because that is what they tell. (With z
for a weight "what" and "define" outvote "telescope": on prompts of eight domains that was right 5 points less often.)

    score(l, x) = sum of the weights of l's terms in x, each once, / sqrt(units in x)
    p(l | x)    = softmax over the lobes and "none" of (score / T), where "none" has one score for all prompts

T and the score of "none" are fitted on held-out prompts. Units are words; in scripts that put no spaces between words they are
characters. Terms are single units and pairs of neighbours. A prompt that uses no lobe's terms goes to the base model.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..errors import RoutingError
from .base import Router, RoutingContext, RoutingDecision, Vector, base_decision, softmax

TERMS = 60
"""Terms that a lobe keeps."""
PRIOR = 500.0
"""a_0: how many uses of terms the prior counts for; a quarter of all uses where there are few."""
LOWEST_Z = 1.0
LOWEST_DELTA = 1.5
"""Terms below either are no evidence: they are not sure, or say little (e to the 1.5 is 4.5 times the odds)."""
PAIR = 2
"""Units in the longest learned term; a term that a person wrote may be longer."""

LONGEST_TEXT = 4000
"""Characters of a training prompt that are read."""
MOST_PROMPTS = 400
"""Prompts of a lobe that terms are learned from, and of all lobes that calibrate."""

# Thai to Tibetan, Myanmar, Khmer, kana, Han with its extensions: no spaces between words
_UNSPACED = (
    r"\u0e00-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# what \w leaves out although it belongs to a word: accents, Hebrew and Arabic points, the vowel signs of Indic scripts, joiners
_MARKS = r"\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u200c\u200d"
_UNIT = re.compile(rf"(?P<character>(?=\w)[{_UNSPACED}](?:(?!\w)[\u0e31-\u17d3])*)|(?:(?![{_UNSPACED}])\w[{_MARKS}]*)+")
_BETWEEN_WORDS = re.compile(r"[\s'’-]*")


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
        self._edited: set[str] = set()
        self._terms: dict[str, dict[str, float]] = {}
        self._use({})

    @property
    def edited(self) -> frozenset[str]:
        """Lobes whose terms a person wrote; `fit` leaves them as they are."""
        return frozenset(self._edited)

    def terms(self) -> dict[str, dict[str, float]]:
        """Weights by lobe and term, the weightiest first."""
        return {name: dict(sorted(own.items(), key=lambda item: -item[1])) for name, own in self._terms.items()}

    def set_terms(self, lobe: str, terms: Mapping[str, float] | None) -> None:
        """A person's terms for a lobe, read as prompts are; a negative weight speaks against it. They hold until None drops
        them, and then the next fit learns the lobe's terms again.

        Raises:
            RoutingError: no such lobe, a term without a letter or digit, or a weight that is not a finite number.
        """
        if lobe not in self.context.lobes:
            raise RoutingError(
                f"There is no lobe called {lobe!r}. There are: {', '.join(self.context.lobes) or 'none yet'}."
            )
        own: dict[str, float] = {}
        for term, weight in (terms or {}).items():
            if not math.isfinite(weight):
                raise RoutingError(f"The weight of {term!r} is {weight}; it must be a finite number.")
            found = _units(term)
            if not found:
                raise RoutingError(f"The term {term!r} has no letter or digit; write a word.")
            own[_joined(found)] = float(weight)
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
        self._longest = max((len(_units(term)) for term in self._index), default=PAIR)

    def scores(self, prompts: Sequence[str]) -> Vector:
        """(n, lobes with terms)."""
        rows = np.zeros((len(prompts), len(self.names)), np.float32)
        for row, prompt in zip(rows, prompts, strict=True):
            units = _units(prompt)
            for term in {term for term, _, _ in _terms_of(prompt, units, self._longest)} & self._index.keys():
                for lobe, weight in self._index[term]:
                    row[lobe] += weight
            row /= math.sqrt(max(1, len(units)))
        return rows

    def matches(self, prompt: str) -> list[dict[str, Any]]:
        """Where the prompt uses a term: {term, lobe, weight, start, end}, in reading order, longer first. A term that comes
        twice is listed twice, and counts once."""
        found = [
            {"term": term, "lobe": self.names[lobe], "weight": weight, "start": start, "end": end}
            for term, start, end in _terms_of(prompt, _units(prompt), self._longest)
            for lobe, weight in self._index.get(term, ())
        ]
        return sorted(found, key=lambda match: (match["start"], -match["end"], -match["weight"]))

    def decide(self, prompt: str) -> RoutingDecision:
        if not self.names:
            return base_decision(self.name, "keyword", "No lobe has words of its own to look for.", certain=False)
        scores = self.scores([prompt])[0]
        matches = self.matches(prompt)
        classes = softmax(np.array([*scores, self.none], np.float32) / np.float32(self.temperature))
        among = dict(zip(self.names, map(float, softmax(scores / np.float32(self.temperature))), strict=True))
        positive = np.maximum(scores, 0)
        shares = 100 * positive / (positive.sum() or 1)
        values: dict[str, Any] = {
            "scores": dict(zip(self.names, map(float, scores), strict=True)),
            "probabilities": {name: among.get(name, 0.0) for name in self.context.lobes},
            "threshold": self.none,
            "evidence": {
                "matches": matches,
                "shares": dict(zip(self.names, map(float, shares), strict=True)),
                "none": float(classes[-1]),
            },
        }
        place = int(scores.argmax())
        best = self.names[place]
        said = _listed({m["term"]: m["weight"] for m in matches if m["lobe"] == best and m["weight"] > 0})
        if scores[place] <= max(self.none, 0.0):
            reason = (
                f"Only {said} would speak for {best}, which is too little."
                if said
                else "No word of the prompt is typical of a lobe."
            )
            # silence is no evidence against a lobe: a later stage may know
            return base_decision(
                self.name, "keyword", reason, **{**values, "confidence": float(classes[-1]), "certain": False}
            )
        return RoutingDecision(
            router=self.name,
            stage="keyword",
            weights={best: 1.0},
            chosen=best,
            confidence=float(classes[place]),
            reason=f"The prompt says {said}, which is typical of {best} ({classes[place]:.0%}).",
            **values,
        )

    def fit(self) -> None:
        """Calibrate on prompts that the terms were not learned from, then learn the terms from all."""
        own = {name: rows.train_prompts for name, rows in self.context.rows.items() if name in self.context.lobes}
        held = {name: self.context.rows[name].validation_prompts for name in own}
        kept = {name: prompts if len(held[name]) >= 5 else _fifths(prompts)[0] for name, prompts in own.items()}
        held = {name: held[name] if len(held[name]) >= 5 else _fifths(own[name])[1] for name in own}
        everyday, strange = _fifths(self.context.generic_prompts)
        self._learn(kept, everyday)
        self._calibrate(held, strange)
        self._learn(own, self.context.generic_prompts)

    def _learn(self, prompts: Mapping[str, Sequence[str]], generic: Sequence[str]) -> None:
        learned = distinctive_terms({name: own[:MOST_PROMPTS] for name, own in prompts.items()}, generic)
        self._use({**learned, **{name: self._terms[name] for name in self._edited}})

    def _calibrate(self, held: Mapping[str, Sequence[str]], strange: Sequence[str]) -> None:
        """The temperature and the score of "none" that make the held-out prompts' owners likeliest, all classes of equal weight."""
        most = max(4, MOST_PROMPTS // max(1, len(self.names)))
        parts = [list(held.get(name, ()))[:most] for name in self.names] + [list(strange)]
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self.temperature, self.none = 1.0, 0.0
        if len(set(owner.tolist())) < 2:
            return
        from scipy.optimize import minimize

        scores = self.scores([prompt for part in parts for prompt in part])
        share = 1 / np.bincount(owner, minlength=len(parts))[owner]
        share /= share.sum()

        def loss(values: Array) -> float:
            temperature, none = np.exp(values[0]), values[1]
            logits: Array = np.append(scores, np.full((len(scores), 1), none), axis=1) / temperature
            # prompts that are told apart without a mistake fit many values: a weak pull prefers to be less sure, and a low bar
            pull = 0.005 * values[0] ** 2 + 0.02 * none**2
            return float(-share @ np.log(softmax(logits)[np.arange(len(owner)), owner] + 1e-9) + pull)

        bounds = [(-3.0, 3.0), (0.0, 10.0 if len(strange) else 1e-9)]
        best = minimize(loss, np.zeros(2), method="Powell", bounds=bounds).x
        self.temperature, self.none = float(np.exp(best[0])), float(best[1])

    def refit(self, earlier: Mapping[str, Any]) -> None:
        for name in earlier.get("edited", ()):
            if name in self.context.lobes:
                self.set_terms(name, earlier["terms"][name])
        self.fit()  # no language model, so nothing to spare

    def state(self) -> dict[str, Any]:
        return {
            "lobes": list(self.context.lobes),
            "terms": {name: dict(own) for name, own in self._terms.items()},
            "edited": sorted(self._edited),
            "temperature": self.temperature,
            "none": self.none,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if list(state.get("lobes", ())) != list(self.context.lobes):
            raise RoutingError("The words are of other lobes.")
        self._edited = set(state["edited"])
        self._use({name: {t: float(w) for t, w in own.items()} for name, own in state["terms"].items()})
        self.temperature, self.none = float(state["temperature"]), float(state["none"])


def distinctive_terms(
    prompts: Mapping[str, Sequence[str]], generic: Sequence[str] = (), most: int = TERMS
) -> dict[str, dict[str, float]]:
    """Every lobe's terms of highest z, at most `most`, the highest first; see the module's text."""
    used = {name: _uses(own) for name, own in prompts.items()}
    whole = _uses(generic)
    for own in used.values():
        whole.update(own)
    size = whole.total()
    result = {}
    for name, own in used.items():
        least = 2 if len(prompts[name]) >= 10 else 1
        terms = [term for term, count in own.items() if count >= least]
        y = np.array([own[term] for term in terms], np.float64)
        total = np.array([whole[term] for term in terms], np.float64)
        delta, z = log_odds(y, own.total(), total, size)
        telling = set(np.flatnonzero((z >= LOWEST_Z) & (delta >= LOWEST_DELTA)).tolist())
        order = [i for i in np.argsort(-z, kind="stable").tolist() if i in telling][:most]
        result[name] = {terms[i]: round(float(delta[i]), 3) for i in order}
    return result


def log_odds(y: Array, n: int, total: Array, size: int) -> tuple[Array, Array]:
    """(delta, z) of terms that one lobe uses y times among its n uses, and all together `total` times among `size`."""
    strength = min(PRIOR, size / 4)
    prior = strength * total / max(1, size)
    own, rest = y + prior, total - y + prior
    delta = np.log(own / (n + strength - own)) - np.log(rest / (size - n + strength - rest))
    return delta, delta / np.sqrt(1 / own + 1 / rest)


def _uses(prompts: Iterable[str]) -> Counter[str]:
    """How many prompts use each term."""
    counts: Counter[str] = Counter()
    for prompt in prompts:
        text = prompt[:LONGEST_TEXT]
        counts.update({term for term, _, _ in _terms_of(text, _units(text), PAIR)})
    return counts


class _Unit(NamedTuple):
    """A word, or a character of a script without spaces: as it is compared, and where it is."""

    text: str
    start: int
    end: int
    character: bool


def _units(text: str) -> list[_Unit]:
    return [
        _Unit(unicodedata.normalize("NFKC", m[0].casefold()), m.start(), m.end(), m["character"] is not None)
        for m in _UNIT.finditer(text)
    ]


def _joined(units: Sequence[_Unit]) -> str:
    """A term as it is kept: words with a space between, characters without."""
    text = units[0].text
    for before, unit in pairwise(units):
        text += unit.text if before.character and unit.character else f" {unit.text}"
    return text


def _terms_of(text: str, units: Sequence[_Unit], longest: int) -> Iterator[tuple[str, int, int]]:
    """(term, start, end) of every run of up to `longest` neighbouring units; a comma or a full stop parts neighbours."""
    for i, first in enumerate(units):
        yield first.text, first.start, first.end
        for j in range(i + 1, min(i + longest, len(units))):
            gap = (units[j - 1].end, units[j].start)
            if first.character != units[j].character or not _BETWEEN_WORDS.fullmatch(text, *gap):
                break
            yield _joined(units[i : j + 1]), first.start, units[j].end


def _fifths(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(four fifths, every fifth)."""
    return [p for i, p in enumerate(prompts) if i % 5 != 4], list(prompts[4::5])


def _listed(terms: Mapping[str, float]) -> str:
    """The three weightiest as a person would list them."""
    best = [f"“{term}”" for term in sorted(terms, key=lambda term: -terms[term])[:3]]
    return " and ".join(filter(None, (", ".join(best[:-1]), best[-1]))) if best else ""
