"""How complex is a prompt? Language features from a dependency parse, one score from 0 to 1, three tiers.

    x_f       = the features of FEATURES, all at least 0 and bounded for a text of at most LONGEST_TEXT characters
    u_f       = x_f² / (x_f² + h_f²)              0 at 0, one half at the feature's `half` h_f, towards 1 without end
    score(x)  = sum over f of weight_f · u_f      the weights sum to 1

So the score rises with every feature, no single one can carry a prompt to the top, and an empty
text has 0. Nothing is learned: `half` and `weight` are constants, set by hand so that everyday
instructions and questions fill all three tiers.

The parser is English. What other languages, code or emoji get is finite and repeatable, but no
measure of their complexity. This room knows no model, no lobes and no page; spaCy and textstat are
imported when the first prompt is analysed.
"""

from __future__ import annotations

import importlib.util
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ...assets import folder
from ...errors import RoutingError
from ...recent import Recent
from ...settings import check

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Token

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Tier: TypeAlias = Literal["simple", "medium", "complex"]
TIERS: tuple[Tier, ...] = ("simple", "medium", "complex")
LOW, HIGH = 0.3, 0.7
"""Default thresholds: below LOW is simple, from HIGH on is complex."""

LONGEST_TEXT = 10_000
"""Characters of a prompt that are read; about 2,000 words, where every feature of length is long
since near its end."""
LONGEST_CHUNK = 200
"""Characters without a space between them; a space is put after so many. spaCy's tokenizer takes
time by the square of the chunk: 20 seconds for ten thousand brackets, which nobody may cost a
shared server."""
REMEMBERED = 2048
"""Analyses kept by text, the latest used."""
BATCH = 64
"""Prompts parsed at a time; between batches another caller may have the parser."""
EXAMPLES = 3
"""Prompts shown for each tier."""

# The trained pipelines of spaCy that may be installed, best first, but the transformer last: it is
# slow on a CPU.
INSTALLED = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm", "en_core_web_trf")

# Relations whose dependent is a clause of its own: Universal Dependencies (subtypes cut off) and,
# after them, what spaCy's English
# pipelines say instead (CLEAR style). An xcomp or pcomp may also be a mere adjective or noun, so
# there a verb is asked for.
CLAUSES = frozenset({"csubj", "ccomp", "advcl", "acl", "parataxis", "csubjpass", "relcl"})
VERBAL_CLAUSES = frozenset({"xcomp", "conj", "pcomp"})
SUBJECTS = frozenset({"nsubj", "csubj", "expl", "cop", "nsubjpass", "csubjpass"})
NAMES_AND_NUMBERS = frozenset({"PROPN", "NUM"})

_LOADING = threading.Lock()
_PARSING = threading.Lock()


class Feature(NamedTuple):
    """One axis of complexity."""

    explanation: str
    half: float
    """Value that counts one half; in the feature's own unit."""
    weight: float
    """Share in the score."""


FEATURES: Mapping[str, Feature] = {
    "words": Feature("Length: words and numbers in the prompt.", 15.0, 0.25),
    "sentences": Feature("Sentences that hold at least one word.", 2.0, 0.05),
    "depth": Feature("Syntactic depth: steps from the main verb down to the deepest word.", 3.5, 0.2),
    "distance": Feature("Mean distance, in words, between a word and the word it depends on.", 2.5, 0.05),
    "clauses": Feature("Clauses: main, subordinate, relative and coordinated.", 2.0, 0.25),
    "entities": Feature("Names and numbers per word.", 0.1, 0.05),
    "vocabulary": Feature("Different words, over the square root of all words.", 3.5, 0.1),
    "readability": Feature("School grade needed to read it (Automated Readability Index).", 8.0, 0.05),
}
HARDEST_GRADE = 30.0
"""Readability is cut here; beyond are texts that have no words or no sentences, such as code, links
and unspaced scripts."""


@dataclass(frozen=True)
class Analysis:
    """What one prompt is like."""

    prompt: str
    features: Mapping[str, float]
    score: float
    tier: Tier

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Stratification:
    """Prompts sorted into tiers. Mappings by tier hold every tier, but `means` and `profile` only
    those that have a prompt."""

    low: float
    high: float
    scores: tuple[float, ...]
    """One for each prompt, in the order given."""
    indices: Mapping[Tier, tuple[int, ...]]
    """Positions of a tier's prompts, rising."""
    examples: Mapping[Tier, tuple[str, ...]]
    """At most EXAMPLES different prompts of a tier, spread from its lowest score to its highest."""
    means: Mapping[Tier, Mapping[str, float]]
    """Mean of every feature in its own unit."""
    profile: Mapping[Tier, Mapping[str, float]]
    """Mean of every feature scaled to 0..1 (`u` in the module's text): the axes of a radar chart."""

    @property
    def counts(self) -> dict[Tier, int]:
        return {tier: len(self.indices[tier]) for tier in TIERS}

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tier of each prompt, in the order given."""
        return tuple(tier_of(score, self.low, self.high) for score in self.scores)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"counts": self.counts}


def load_parser() -> Language:
    """The English pipeline: the best of INSTALLED that loads, else the one shipped with the app.
    Loaded once, by any thread.

    Raises:
        RoutingError: the installation is incomplete.
    """
    with _LOADING:
        return _load_parser()


@lru_cache
def _load_parser() -> Language:
    import spacy

    for name in INSTALLED:
        if importlib.util.find_spec(name):
            try:
                return spacy.load(name, exclude=["lemmatizer"])
            except (OSError, ValueError, ImportError):  # made for another spaCy, or half installed: the next may do
                continue
    path = folder("assets") / "parser"
    if not (path / "config.cfg").is_file():
        raise RoutingError(f"The built-in parser is missing from {path}. Install multilobe-ui again.")
    return spacy.load(path)


def parser_name(nlp: Language) -> str:
    """Such as "en_core_web_sm 3.8.0"."""
    return f"{nlp.meta['lang']}_{nlp.meta['name']} {nlp.meta['version']}"


def scaled(features: Array) -> Array:
    """Features (n, f) in their own units -> (n, f) from 0 to 1: `u` in the module's text."""
    squares = np.square(np.maximum(features, 0.0))
    result: Array = squares / (squares + np.square([feature.half for feature in FEATURES.values()]))
    return result


def score(features: Array) -> Array:
    """Features (n, f), columns in the order of FEATURES -> complexity (n,) from 0 to 1."""
    weighted: Array = scaled(features) @ np.array([feature.weight for feature in FEATURES.values()])
    return weighted


def check_thresholds(low: float, high: float) -> None:
    """Raise ConfigError unless 0 <= low < high <= 1."""
    for name, value in (("low", low), ("high", high)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        check(number and 0 <= value <= 1, name, value, "a number from 0 to 1")
    check(low < high, "low", low, f"below high, which is {high!r}")


def tier_of(value: float, low: float = LOW, high: float = HIGH) -> Tier:
    """The tier of a score."""
    if value < low:
        return "simple"
    if value < high:
        return "medium"
    return "complex"


class Analyser:
    """Analyses prompts with one parser and remembers the latest. May be used by several threads."""

    def __init__(self, parser: Language | None = None) -> None:
        self._parser = parser
        self._known: Recent[str, tuple[float, ...]] = Recent(REMEMBERED)

    @property
    def parser(self) -> Language:
        """Loaded when first asked for, which takes seconds."""
        if self._parser is None:
            self._parser = load_parser()
        return self._parser

    def features(self, prompts: Sequence[str]) -> Array:
        """(n, f): a row for each prompt, a column for each of FEATURES; finite and at least 0."""
        texts = [readable(prompt) for prompt in prompts]
        found: dict[str, tuple[float, ...]] = {}
        with _PARSING:
            for text in dict.fromkeys(texts):
                if text in self._known:
                    found[text] = self._known[text]
        new = [text for text in dict.fromkeys(texts) if text not in found]
        new.sort(key=len)  # texts of a length make an even batch
        for start in range(0, len(new), BATCH):
            with _PARSING:
                found |= self._analyse_batch(new[start : start + BATCH])
        return np.array([found[text] for text in texts], dtype=np.float64).reshape(len(texts), len(FEATURES))

    def _analyse_batch(self, texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
        nlp = self.parser
        # a server sees new words without end; those learned in the zone are forgotten after it
        with nlp.memory_zone():
            rows = {doc.text: measure(doc) for doc in nlp.pipe(texts)}
        for text, row in rows.items():
            self._known[text] = row
        return rows

    def analyse(self, prompts: Sequence[str], low: float = LOW, high: float = HIGH) -> list[Analysis]:
        """An Analysis for each prompt.

        Raises:
            ConfigError: the thresholds are out of order.
        """
        check_thresholds(low, high)
        features = self.features(prompts)
        return [
            Analysis(prompt, dict(zip(FEATURES, row, strict=True)), value, tier_of(value, low, high))
            for prompt, row, value in zip(prompts, features.tolist(), score(features).tolist(), strict=True)
        ]

    def stratify(self, prompts: Sequence[str], low: float = LOW, high: float = HIGH) -> Stratification:
        """Sort prompts into the tiers.

        Raises:
            ConfigError: the thresholds are out of order.
        """
        check_thresholds(low, high)
        features = self.features(prompts)
        scores, axes = score(features).tolist(), scaled(features)
        tiers = [tier_of(value, low, high) for value in scores]
        indices = {tier: tuple(i for i, other in enumerate(tiers) if other == tier) for tier in TIERS}
        filled = {tier: list(members) for tier, members in indices.items() if members}
        return Stratification(
            low=low,
            high=high,
            scores=tuple(scores),
            indices=indices,
            examples={
                tier: spread([prompts[i] for i in sorted(members, key=scores.__getitem__)])
                for tier, members in indices.items()
            },
            means={tier: _named(features[members].mean(axis=0)) for tier, members in filled.items()},
            profile={tier: _named(axes[members].mean(axis=0)) for tier, members in filled.items()},
        )


def _named(row: Array) -> dict[str, float]:
    return dict(zip(FEATURES, row.tolist(), strict=True))


def spread(ordered: Sequence[str]) -> tuple[str, ...]:
    """At most EXAMPLES different items of a list, evenly from its first to its last."""
    different = list(dict.fromkeys(ordered))
    count = min(EXAMPLES, len(different))
    return tuple(different[round(i * (len(different) - 1) / max(1, count - 1))] for i in range(count))


def readable(prompt: str) -> str:
    """What is analysed of a prompt: its first LONGEST_TEXT characters, with single spaces (the
    treebank has no others), and without halves of surrogate pairs, which spaCy refuses.
    LONGEST_CHUNK says why a space may be added."""
    text = " ".join(prompt[:LONGEST_TEXT].encode("utf-8", "replace").decode("utf-8").split())
    return re.sub(rf"\S{{{LONGEST_CHUNK}}}(?=\S)", r"\g<0> ", text)


def measure(doc: Doc) -> tuple[float, ...]:
    """The features of a parsed text, in the order of FEATURES.

    A text without words has zeros only. Sources: mean dependency distance is Liu 2008, "Dependency
    distance as a metric of language comprehension difficulty"; vocabulary is the root type-token
    ratio (Guiraud 1954), which depends on length less than the plain ratio does, yet in prompts of
    few words, all different, still rises with it; readability is Smith and Senter 1967 (see `grade`).
    """
    words = [token for token in doc if any(c.isalnum() for c in token.text)]
    if not words:
        return (0.0,) * len(FEATURES)
    depths = depth_of_tokens([token.head.i for token in doc])
    arcs = [abs(token.i - token.head.i) for token in words if token.head.i != token.i]
    return (
        float(len(words)),
        float(len({token.sent.start for token in words})),
        float(max(depths[token.i] for token in words)),
        sum(arcs) / len(arcs) if arcs else 0.0,
        float(sum(map(is_clause, words))),
        entity_count(doc) / len(words),
        len({token.lower for token in words}) / math.sqrt(len(words)),
        grade(doc.text),
    )


def depth_of_tokens(heads: Sequence[int]) -> list[int]:
    """Steps from each token up to its root, whose head is itself. Loops, because a chain may be
    thousands long.

    heads: (tokens,) position of every token's head; a forest.
    """
    depths = [-1] * len(heads)
    for token in range(len(heads)):
        path = []
        while depths[token] < 0 and heads[token] != token:
            path.append(token)
            token = heads[token]
        depth = max(depths[token], 0)
        depths[token] = depth
        for step, below in enumerate(reversed(path), start=1):
            depths[below] = depth + step
    return depths


def is_clause(token: Token) -> bool:
    """Whether a token heads a clause; a root does if it is a verb or has a subject or a copula
    ("Hello" is no clause)."""
    relation = token.dep_.partition(":")[0]
    if relation in CLAUSES:
        return True
    verb = token.pos_ in ("VERB", "AUX")
    if relation == "ROOT":
        return verb or any(child.dep_.partition(":")[0] in SUBJECTS for child in token.children)
    return verb and relation in VERBAL_CLAUSES


def entity_count(doc: Doc) -> int:
    """Named entities where the pipeline finds them; else, standing in for them, unbroken runs of
    proper nouns and numbers."""
    if doc.has_annotation("ENT_IOB"):
        return len(doc.ents)
    return sum(1 for _ in _runs(token.pos_ in NAMES_AND_NUMBERS for token in doc))


def _runs(marks: Iterator[bool]) -> Iterator[None]:
    before = False
    for mark in marks:
        if mark and not before:
            yield None
        before = mark


def grade(text: str) -> float:
    """School grade (US) by the Automated Readability Index, 4.71 characters/words + 0.5
    words/sentences - 21.43, from 0 to HARDEST_GRADE. Of textstat's indices it is taken because it
    counts no syllables: for those textstat downloads a dictionary."""
    import textstat

    return min(max(float(textstat.automated_readability_index(text)), 0.0), HARDEST_GRADE)
