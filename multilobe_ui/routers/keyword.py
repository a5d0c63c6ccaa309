"""Keyword router: which lobe's distinctive words does the prompt use? No model runs, and a person can edit
the words.

A term w of lobe l is scored by the log-odds ratio against all that is not l, with an informative Dirichlet
prior (Monroe, Colaresi and Quinn 2008, "Fightin' Words", equations 16, 20 and 22). With y the number of
prompts that use w, n the sum of y over all terms, r the rows of other lobes and the generic prompts (y_r is
ELSEWHERE larger than what is counted), and the prior a_w = a_0 times w's share of the whole:

    delta = log (y_l + a_w) / (n_l + a_0 - y_l - a_w)  -  log (y_r + a_w) / (n_r + a_0 - y_r - a_w)
    z     = delta / sqrt(1 / (y_l + a_w) + 1 / (y_r + a_w))

The lobe keeps the TERMS terms of highest z; delta is their weight. A prompt that stands in the rows of two
lobes counts for both: for neither is it among the rows r. Terms of function words or numbers are not
learned.

    score(l, x) = sum of the weights of l's terms in x, each once, / sqrt(units in x)
    p(l | x)    = softmax over the lobes and "none" of (score / T), less S for a lobe of which x says nothing;
                  "none" has one score for all prompts

T, S and the score of "none" are fitted on held-out prompts (temperature scaling, Guo et al. 2017, with the
two more). Units are words and signs (=, ², √, [], print()); in scripts that put no spaces between words
they are characters. Terms are single units and pairs of neighbours. A prompt that uses no lobe's terms goes
to the base model.
"""

from __future__ import annotations

import math
import re
import runpy
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..errors import RoutingError
from ..lobes.rows import Vector
from ..routing.calibration import softmax
from ..routing.decision import RoutingDecision, Verdict
from ..routing.router import Router, RoutingContext, State

TERMS = 300
"""Terms that a lobe keeps."""
PRIOR = 500.0
"""a_0: how many uses of terms the prior counts for; a quarter of all uses where there are few."""
LOWEST_Z = 0.5
LOWEST_DELTA = 1.0
"""Terms below either are no evidence: they are not sure, or say little. The bar of z is low, because a term
that no other row uses has an uncertain delta, however telling it is."""
BESIDE = 8
"""Rows that must use a term that others use too, or a tenth of the rows where those are few; of what no
other row uses, one is enough."""
ELSEWHERE = 0.3
"""Uses added to a term's uses among the rows r: without it, what no other row happens to use weighs as much
after one use as after thirty."""
FOLDS = (4, 9, 2)
"""Where the held-out parts begin that calibrate."""
PAIR = 2
"""Units in the longest learned term; a term that a person wrote may be longer."""

LONGEST_TEXT = 4000
"""Characters of a training prompt that are read."""
MOST_PROMPTS = 1000
"""Prompts of a lobe that terms are learned from."""
MOST_HELD = 2000
"""Held-out prompts of all lobes that calibrate."""

# Thai to Tibetan, Myanmar, Khmer, kana, Han with its extensions: no spaces between words
_UNSPACED = (
    r"\u0e00-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
# what \w leaves out although it belongs to a word: accents, Hebrew and Arabic points, the vowel signs of
# Indic scripts, joiners
_MARKS = r"\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u200c\u200d"
# ², ³, ¹, ⁰ to ₜ: \w has them, but they are notation
_RAISED = r"\u00b2\u00b3\u00b9\u2070-\u209c"
# ASCII; ° ± · × ÷, currency, arrows and operators (√ ∫ ∑ ≤), shapes, emoji; "-", "/", "(" only count in
# place, see _SIGNS
_SYMBOLS = (
    r"+*=<>|~^%&@#$\\`\u00a2-\u00a5\u00b0\u00b1\u00b7\u00d7\u00f7\u20a0-\u20cf\u2190-\u23ff\u25a0-\u2bff"
    r"\U0001f000-\U0001faff"
)
_LETTER = rf"(?![{_UNSPACED}{_RAISED}])[^\W\d_]"
_OPERAND_BEFORE = r"(?:(?<=[\d)\]])|(?<=\b[^\W\d_])|(?<=[\d)\]]\s)|(?<=\b[^\W\d_]\s))"
_OPERAND_AFTER = r"(?=\s?(?:[\d(]|[^\W\d_]\b))"
_DATE = r"\d+-\d+-\d+"
_SIGNS = "|".join(
    (
        r"[=!<>]=|[-=]>|[-+*/]=|\*\*|\+\+|&&|\|\||<<|>>|::|:=|\.\.\.(?=\])",
        r"(?<=\w)\(|\(\)|\[|\{",  # a bracket after a space is ordinary: "(as here)"
        r"(?<![^\W\d_][^\W\d_])(?<![:/])//?",  # 1/x and d/dx, not and/or
        rf"{_OPERAND_BEFORE}-{_OPERAND_AFTER}|\u2212",
        rf"[{_SYMBOLS}]",
    )
)
_UNIT = re.compile(
    rf"(?P<character>(?=\w)[{_UNSPACED}](?:(?!\w)[\u0e31-\u17d3])*)"
    rf"|(?P<raised>[{_RAISED}]+)"
    rf"|{_DATE}"
    rf"|\d+(?={_LETTER}(?:[{_RAISED}]|(?![\w{_MARKS}])))"  # 5x and 5x² are a number and a letter
    rf"|(?:(?![{_UNSPACED}{_RAISED}])\w[{_MARKS}]*)+"
    rf"|(?P<sign>{_SIGNS})"
)
_SAME_SIGN = {"(": "()", "[": "[]", "{": "{}", "-": "\u2212"}
"""Brackets are read where they open."""
_TOUCHING = ("()", "[]")
"""Signs that follow a word without a space: print(), x[]."""
_BETWEEN_WORDS = re.compile(r"[\s'’-]*")

_INSTRUCTING = """
    ask asked asking bring brought come came comes explain explained explains explanation describe described
    describes tell told tells help helps let lets like likes need needs needed want wants wanted know knows
    known think thinks thought means meaning try tries tried find finds found look looks looking write
    writes written given gives giving gave got gets getting goes going gone went says said saying shown
    shows showing see seen saw takes taking took taken use uses makes making made kept keeps keeping happen
    happens happened work works turn turns remind wonder wondering hello hi hey thanks thank yes ok okay
    please kindly answer question example examples simple simply word words thing things something kind
    kinds sort sorts way ways bit lot lots definition define defined exactly s t d m ll re ve don doesn didn
    isn aren wasn weren won couldn wouldn shouldn hasn haven cannot cant dont im ive id vs via etc eg ie us
    him her hers his himself herself there here oh
"""
"""Words of instructions to anybody, beside the stop words of spaCy."""


@cache
def function_words() -> frozenset[str]:
    """Articles, pronouns, auxiliaries, prepositions, question words, conjunctions: spaCy's English stop
    words, and what instructions share. The file of words is read alone, for importing spaCy takes more than
    a second."""
    package = find_spec("spacy")
    if package is None or package.origin is None:
        return frozenset(_INSTRUCTING.split())
    words = runpy.run_path(str(Path(package.origin).parent / "lang" / "en" / "stop_words.py"))["STOP_WORDS"]
    return frozenset(_INSTRUCTING.split()) | {unit.text for word in words for unit in _units(word)}


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
            found = _units(term)
            if not found:
                raise RoutingError(f"The term {term!r} has no letter, digit or sign; write a word.")
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
            row += self._scores({term for term, _, _ in _terms_of(prompt, units, self._longest)}, len(units))
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
        return self._matches(prompt, _units(prompt))

    def _matches(self, prompt: str, units: Sequence[_Unit]) -> list[dict[str, Any]]:
        found = [
            {"term": term, "lobe": self.names[lobe], "weight": weight, "start": start, "end": end}
            for term, start, end in _terms_of(prompt, units, self._longest)
            for lobe, weight in self._index.get(term, ())
        ]
        return sorted(found, key=lambda match: (match["start"], -match["end"], -match["weight"]))

    def judge(self, prompt: str) -> Verdict:
        if not self.names:
            return Verdict.base("keyword", "No lobe has words of its own to look for.", certain=False)
        units = _units(prompt)
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
        self._use({name: {_kept(t): float(w) for t, w in own.items()} for name, own in values["terms"].items()})
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



def distinctive_terms(
    prompts: Mapping[str, Sequence[str]], generic: Sequence[str] = (), most: int = TERMS
) -> dict[str, dict[str, float]]:
    """Every lobe's terms of highest z, at most `most`, the highest first; see the module's text."""
    used = {name: _uses(own) for name, own in prompts.items()}
    whole = _uses(generic)
    for own in used.values():
        whole.update(own)
    result = {}
    for name, own in used.items():
        mine = set(prompts[name])
        shared = _uses(row for other, rows in prompts.items() if other != name for row in rows if row in mine)
        beside = min(BESIDE, len(prompts[name]) // 10)
        terms = [
            term
            for term, count in own.items()
            if (count >= beside or whole[term] - shared[term] == count) and _tells(term)
        ]
        y = np.array([own[term] for term in terms], np.float64)
        total = np.array([whole[term] - shared[term] for term in terms], np.float64)
        delta, z = log_odds(y, own.total(), total, whole.total() - shared.total())
        telling = set(np.flatnonzero((z >= LOWEST_Z) & (delta >= LOWEST_DELTA)).tolist())
        order = [i for i in np.argsort(-z, kind="stable").tolist() if i in telling][:most]
        result[name] = {terms[i]: round(float(delta[i]), 3) for i in order}
    return result


def _tells(term: str) -> bool:
    """False for a term that could be of any prompt: a number, or one with a function word in it."""
    units = _units(term)
    return any(unit.sign for unit in units) or not any(
        u.text in function_words() or u.text.isdecimal() for u in units
    )


def log_odds(y: Array, n: int, total: Array, size: int) -> tuple[Array, Array]:
    """(delta, z) of terms that one lobe uses y times among its n uses, and all together `total` times among
    `size`."""
    strength = min(PRIOR, size / 4)
    prior = strength * total / max(1, size)
    own, rest = y + prior, total - y + prior + ELSEWHERE
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
    """A word, a sign, or a character of a script without spaces: as it is compared, and where it is."""

    text: str
    start: int
    end: int
    character: bool
    sign: bool = False


def _units(text: str) -> list[_Unit]:
    return [_unit(m) for m in _UNIT.finditer(text)]


def _unit(match: re.Match[str]) -> _Unit:
    kind, said = match.lastgroup, match[0]
    if kind == "sign":
        return _Unit(_SAME_SIGN.get(said, said), match.start(), match.end(), False, True)
    if kind == "raised":
        return _Unit(said, match.start(), match.end(), False, True)
    folded = unicodedata.normalize("NFKC", said.casefold())
    return _Unit(folded, match.start(), match.end(), kind == "character")


def _joined(units: Sequence[_Unit]) -> str:
    """A term as it is kept: words with a space between, characters without, and signs as they are usually
    written."""
    text = units[0].text
    for before, unit in pairwise(units):
        together = (before.character and unit.character) or unit.text in _TOUCHING or _is_raised(unit)
        text += unit.text if together else f" {unit.text}"
    return text


def _kept(term: str) -> str:
    """A term as this version keeps it: earlier ones read "5x" as one word."""
    units = _units(term)
    return _joined(units) if units else term


def _is_raised(unit: _Unit) -> bool:
    return unit.sign and unit.text[0].isalnum()


def _terms_of(text: str, units: Sequence[_Unit], longest: int) -> Iterator[tuple[str, int, int]]:
    """(term, start, end) of every run of up to `longest` neighbouring units; a comma or a full stop parts
    neighbours."""
    for i, first in enumerate(units):
        yield first.text, first.start, first.end
        for j in range(i + 1, min(i + longest, len(units))):
            gap = (units[j - 1].end, units[j].start)
            if first.character != units[j].character or not _BETWEEN_WORDS.fullmatch(text, *gap):
                break
            yield _joined(units[i : j + 1]), first.start, units[j].end


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
