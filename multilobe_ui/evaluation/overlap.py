"""How new training data sits among the lobes there are, and whether its held-out rows are held out
in earnest. Before training.

    inside   a prompt p lies inside a lobe if  max over its rows r of cos(p, r)  >=  t
    t        the lower quartile, over the lobe's rows, of the cosine to the nearest other row of it, but from FLOOR to NEAR_COSINE
    own      the share of the lobe's rows that lie inside it by the same measure, each left out of the rows it is compared with
    overlap  min(1, share of the prompts inside / max(own, LEAST_OWN))

Not all of a lobe's own rows lie inside it, so the share is divided by theirs: data of the lobe's
own kind overlaps by about 1, and data of which half is of that kind by about 1/2. FLOOR is for
lobes of very different rows, inside of which all would lie else.

Two prompts that are not the same but for case and white space are near duplicates if cos >=
NEAR_COSINE, which finds the same thing said in other words, or if their sets of words have a
Jaccard index |a & b| / |a | b| >= NEAR_WORDS, which needs no embedding and so finds them in all
rows of a large file, of which only a sample is embedded.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..data import dataset
from ..data.examples import Example
from ..lobes.rows import RoutingRows, Vector, prototypes_of
from ..routing.router import same_prompt
from .near_words import WordIndex, jaccard, words_of

QUANTILE = 0.25
FLOOR = 0.45
"""Below it, prompts have little in common: on eight domains, what is of another kind lies at 0.2 to
0.4 from its nearest row."""
LEAST_OWN = 0.25
"""A smaller share, as of a few rows that are all different, is no measure to divide by."""
NEAR_COSINE = 0.95
NEAR_WORDS = 0.9
NEAREST = 5
MOST_PAIRS = 20
"""Pairs that a report lists of one kind."""
MOST_COMPARED = 10_000
"""Prompts of the new data that are compared with each other by their words."""
MOST_ROWS = 100_000
"""Rows of a file that are read for it."""
LONGEST = 300
AT_ONCE = 64
ROUNDING = 1e-6


@dataclass(frozen=True)
class Pair:
    """Two prompts, cut to LONGEST characters.

    Attributes:
        row: of the new data. other: the prompt that it is compared with; "" where a lobe kept no texts.
        cosine: None where they have not been embedded. words: Jaccard index of their sets of words.
    """

    row: str
    other: str
    cosine: float | None
    words: float


@dataclass(frozen=True)
class LobeOverlap:
    """The new prompts beside the rows that one lobe has kept.

    Attributes:
        rows: that the lobe has kept for routing (a sample of its data); 0 if none, then there is
            nothing to compare with.
        overlap: see the module's text, 0 to 1; None where there is nothing to compare. threshold,
            own: see there too.
        exact, near: new prompts that the lobe has too; that have a near duplicate there, and are
            not among the former.
        held_out: of both, those whose likeness is among the rows that the lobe did not train on.
        nearest: the NEAREST prompts, each with the lobe's row nearest to it. duplicates: exact ones
            first, MOST_PAIRS in all.
    """

    lobe: str
    rows: int
    overlap: float | None = None
    threshold: float | None = None
    own: float | None = None
    exact: int = 0
    near: int = 0
    held_out: int = 0
    nearest: tuple[Pair, ...] = ()
    duplicates: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class OverlapReport:
    """What `overlap` found.

    Attributes:
        rows: of the new data. prompts: different ones; those compared by their words; those embedded.
        lobes: in the order given.
        twins: different prompts that have a near duplicate among the others. pairs: each such with
            its nearest, MOST_PAIRS at most.
        training_rows, held_out_rows: as `dataset.split` parts them.
        leaking: held-out rows with a near duplicate among the training rows. leaks: these,
            MOST_PAIRS at most.
        stopped: it was ended early, so that fewer prompts are embedded than could be.
        truncated: only the first rows of a file were read, so its held-out rows are not known.
        kept: the embedded prompts in the shape of a lobe's rows, for a map. Not in the JSON.
    """

    rows: int
    prompts: int
    compared: int
    embedded: int
    lobes: tuple[LobeOverlap, ...]
    twins: int
    pairs: tuple[Pair, ...]
    training_rows: int
    held_out_rows: int
    leaking: int
    leaks: tuple[Pair, ...]
    stopped: bool = False
    truncated: bool = False
    kept: RoutingRows | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name not in ("kept", "lobes", "pairs", "leaks")}
        return values | {name: [asdict(one) for one in getattr(self, name)] for name in ("lobes", "pairs", "leaks")}


def overlap(
    examples: Sequence[Example],
    rows: Mapping[str, RoutingRows | None],
    embed: Callable[[Sequence[str]], Vector],
    *,
    validation_fraction: float | None = None,
    seed: int = 0,
    most: int = 400,
    stop: threading.Event | None = None,
) -> OverlapReport:
    """Compare new data with the rows of every lobe, and its held-out rows with its training rows.

    Args:
        examples: the new data, without exact duplicates, as `dataset.load` gives it.
        rows: what every lobe has kept; None for one that was imported without data.
        embed: texts → (n, d) unit vectors. most: prompts that are embedded at most, evenly spread.
        validation_fraction, seed: as the training would have them; None is what it would choose.
            stop: set it to end early with what there is.

    Raises:
        ConfigError: validation_fraction is out of range.
    """
    training, held_out = dataset.split(examples, validation_fraction, seed)
    asked = _asked(examples, {row.key for row in held_out})
    asked, sampled = _chosen(asked, most)
    vectors = _embedded([asked[i].prompt for i in sampled], embed, stop or threading.Event())
    sampled = sampled[: len(vectors)]
    twins = _Twins(asked, sampled, vectors)
    in_training = np.array([not one.held_out for one in asked], bool)
    leaks = [(i, twins.of(i, in_training)) for i, one in enumerate(asked) if one.held_out]
    found = [(i, j) for i, j in leaks if j is not None]
    pairs = [(i, j) for i in range(len(asked)) if (j := twins.of(i)) is not None]
    sample = [asked[i].prompt for i in sampled]
    return OverlapReport(
        rows=len(examples),
        prompts=len({row.key for row in examples}),
        compared=len(asked),
        embedded=len(sampled),
        lobes=tuple(_beside(name, own, asked, sampled, vectors) for name, own in rows.items()),
        twins=len(pairs),
        pairs=tuple(twins.pair(i, j) for i, j in _once(pairs)[:MOST_PAIRS]),
        training_rows=len(training),
        held_out_rows=len(held_out),
        leaking=sum(asked[i].rows for i, _ in found),
        leaks=tuple(twins.pair(i, j) for i, j in found[:MOST_PAIRS]),
        stopped=stop is not None and stop.is_set(),
        kept=RoutingRows(prototypes_of(vectors, 4), vectors, vectors[:0], sample) if len(vectors) else None,
    )


# ---- the new data ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """One prompt of the new data; `said` is all that the user said, `rows` how many rows ask it."""

    prompt: str
    said: str
    turns: int
    rows: int
    held_out: bool


def _asked(examples: Sequence[Example], held_out: AbstractSet[bytes]) -> list[_Asked]:
    counts = Counter(row.key for row in examples)
    first: dict[bytes, Example] = {}
    for row in examples:
        first.setdefault(row.key, row)
    found = []
    for key, row in first.items():
        turns = [message["content"] for message in row.context if message["role"] == "user"]
        found.append(_Asked(row.prompt, "\n".join(turns), len(turns), counts[key], key in held_out))
    return found


def _chosen(asked: Sequence[_Asked], most: int) -> tuple[list[_Asked], list[int]]:
    """Those that are compared by words, and the places of those among them that are embedded.

    Both hold held-out rows and training rows, so that leakage can be seen; the held-out rows are
    few, so all are compared.
    """
    held_out = [one for one in asked if one.held_out]
    training = [one for one in asked if not one.held_out]
    training = _spread(training, MOST_COMPARED - len(held_out))
    kept = [*training, *held_out]
    places = list(range(len(kept)))
    if len(kept) <= most:
        return kept, places
    few = _spread(places[len(training) :], most // 4)
    return kept, [*_spread(places[: len(training)], most - len(few)), *few]


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).astype(int)] if most > 0 else []


def _embedded(texts: Sequence[str], embed: Callable[[Sequence[str]], Vector], stop: threading.Event) -> Vector:
    """(n, d), n fewer than texts if it was stopped."""
    parts: list[Vector] = []
    for start in range(0, len(texts), AT_ONCE):
        if stop.is_set():
            break
        parts.append(embed(texts[start : start + AT_ONCE]))
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


# ---- near duplicates ---------------------------------------------------------------------------------------------------


class _Twins:
    """Near duplicates among the prompts of the new data.

    Rows of several turns are compared by the words of all that the user said: their last message
    alone may be "and why?".
    """

    def __init__(self, asked: Sequence[_Asked], sampled: Sequence[int], vectors: Vector) -> None:
        self._asked = asked
        self._members: dict[frozenset[str], list[int]] = {}
        for i, one in enumerate(asked):
            self._members.setdefault(words_of(one.said), []).append(i)
        self._sets = list(self._members)
        self._set_of = {i: k for k, words in enumerate(self._sets) for i in self._members[words]}
        self._index = WordIndex(self._sets, NEAR_WORDS)
        self._near: dict[int, list[tuple[int, float]]] = {}
        self._place = {i: k for k, i in enumerate(sampled)}
        self._sampled = np.array(sampled, int)
        self._cosines = vectors @ vectors.T if len(vectors) else np.zeros((0, 0), np.float32)
        many = np.array([asked[i].turns > 1 for i in sampled], bool)
        self._cosines[many] = self._cosines[:, many] = 0.0

    def of(self, i: int, among: np.ndarray[Any, Any] | None = None) -> int | None:
        """The nearest of its near duplicates (of those that `among` is true for), or None."""
        found: list[tuple[float, int]] = []
        for k, value in self._neighbours(self._set_of[i]):
            members = self._members[self._sets[k]]
            twin = next((j for j in members if j != i and (among is None or among[j])), None)
            found += [] if twin is None else [(value, -twin)]
        if i in self._place:
            row = self._cosines[self._place[i]]
            near = [k for k in np.flatnonzero(row >= NEAR_COSINE) if self._sampled[k] != i]
            found += [(float(row[k]), -int(self._sampled[k])) for k in near if among is None or among[self._sampled[k]]]
        return -max(found)[1] if found else None

    def pair(self, i: int, j: int) -> Pair:
        a, b = self._asked[i], self._asked[j]
        both = i in self._place and j in self._place and a.turns == b.turns == 1
        cosine = float(self._cosines[self._place[i], self._place[j]]) if both else None
        return _pair(a.said, b.said, cosine)

    def _neighbours(self, k: int) -> list[tuple[int, float]]:
        if k not in self._near:
            self._near[k] = list(self._index.near(self._sets[k]))
        return self._near[k]


def _once(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Each pair in one direction only."""
    return list({(min(pair), max(pair)): pair for pair in reversed(pairs)}.values())[::-1]


# ---- beside a lobe -----------------------------------------------------------------------------------------------------


def measure(vectors: Vector) -> tuple[float, float]:
    """t and own of a lobe with these rows (n, d). A single row has no other to be near to, so only
    its duplicates are inside."""
    if len(vectors) < 2:
        return NEAR_COSINE, 1.0
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)
    nearest = cosines.max(1)
    limit = min(max(float(np.quantile(nearest, QUANTILE)), FLOOR), NEAR_COSINE)
    return limit, float((nearest >= limit - ROUNDING).mean())


def _beside(
    name: str, rows: RoutingRows | None, asked: Sequence[_Asked], sampled: Sequence[int], vectors: Vector
) -> LobeOverlap:
    if rows is None or not len(rows.train) + len(rows.validation):
        return LobeOverlap(name, 0)
    own = np.concatenate([part for part in (rows.train, rows.validation) if len(part)])
    texts = [*_texts(rows.train_prompts, len(rows.train)), *_texts(rows.validation_prompts, len(rows.validation))]
    if not len(vectors):
        return LobeOverlap(name, len(own))
    cosines = vectors @ own.T
    nearest, (limit, inside) = cosines.argmax(1), measure(own)
    best = cosines[np.arange(len(vectors)), nearest]
    share = float((best >= limit - ROUNDING).mean())
    order = np.argsort(-best, kind="stable")[:NEAREST]
    found = _duplicates(asked, sampled, cosines, texts, len(rows.train))
    exact = [i for i, (_, same) in found.items() if same]
    return LobeOverlap(
        lobe=name,
        rows=len(own),
        overlap=min(1.0, share / max(inside, LEAST_OWN)),
        threshold=limit,
        own=inside,
        exact=len(exact),
        near=len(found) - len(exact),
        held_out=sum(j >= len(rows.train) for j, _ in found.values()),
        nearest=tuple(_pair(asked[sampled[i]].prompt, texts[nearest[i]], float(best[i])) for i in order),
        duplicates=tuple(
            _pair(asked[i].prompt, texts[j], _at(cosines, sampled, i, j))
            for i, (j, _) in sorted(found.items(), key=lambda item: not item[1][1])[:MOST_PAIRS]
        ),
    )


def _texts(texts: Sequence[str], count: int) -> Sequence[str]:
    """A lobe of the older kind has vectors without texts."""
    return texts if len(texts) == count else [""] * count


def _duplicates(
    asked: Sequence[_Asked], sampled: Sequence[int], cosines: Vector, texts: Sequence[str], trained: int
) -> dict[int, tuple[int, bool]]:
    """place of a different prompt → (place of its likeness in the lobe, whether it is the same).

    Of several, a row that the lobe held out goes first (these come after the `trained` ones), for
    that is the graver likeness.
    """
    last = {same_prompt(text): j for j, text in enumerate(texts) if text}
    sets = [words_of(text) if text else frozenset() for text in texts]
    index, row_of = WordIndex(sets, NEAR_WORDS), {i: k for k, i in enumerate(sampled)}
    first: dict[str, int] = {}
    for i, one in enumerate(asked):
        first.setdefault(same_prompt(one.prompt), i)
    found: dict[int, tuple[int, bool]] = {}
    for key, i in first.items():
        if (same := last.get(key)) is not None:
            found[i] = same, True
            continue
        near = dict(index.near(words_of(asked[i].prompt)))
        for j in np.flatnonzero(cosines[row_of[i]] >= NEAR_COSINE) if i in row_of else ():
            near[int(j)] = max(near.get(int(j), 0.0), float(cosines[row_of[i], j]))
        if near:
            found[i] = max(near, key=lambda j: (j >= trained, near[j])), False
    return found


def _at(cosines: Vector, sampled: Sequence[int], i: int, j: int) -> float | None:
    return float(cosines[sampled.index(i), j]) if i in sampled else None


def _pair(row: str, other: str, cosine: float | None) -> Pair:
    words = jaccard(words_of(row), words_of(other)) if other else 0.0
    # of unit vectors in float32, a product may come out a little above 1
    return Pair(_cut(row), _cut(other), None if cosine is None else round(min(1.0, cosine), 4), round(words, 4))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
