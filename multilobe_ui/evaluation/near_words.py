"""Sets of words that are nearly equal, found without comparing all with all."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from ..routing.router import same_prompt

Words = AbstractSet[str]


def words_of(text: str) -> frozenset[str]:
    """Its words without case; a text without any is a word of its own."""
    return frozenset(re.findall(r"\w+", text.casefold())) or frozenset([same_prompt(text)])


def jaccard(a: Words, b: Words) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


class WordIndex:
    """Finds the sets of words that are nearly equal to a given one, without comparing it with all.

    Two sets with a Jaccard index of t or more share one of their |a| - ceil(t |a|) + 1 rarest words
    (prefix filtering, Chaudhuri, Ganti and Kaushik 2006), so only those sets are looked at that are
    listed under such a word.
    """

    def __init__(self, sets: Sequence[Words], least: float) -> None:
        self._sets, self._least = sets, least
        self._seen = Counter(word for words in sets for word in words)
        self._listed: dict[str, list[int]] = defaultdict(list)
        for i, words in enumerate(sets):
            for word in self._rarest(words):
                self._listed[word].append(i)

    def near(self, words: Words) -> Iterator[tuple[int, float]]:
        """(place, Jaccard index) of every set that is near, in order of place."""
        shortest, longest = self._least * len(words) - 1e-9, len(words) / self._least + 1e-9
        for i in sorted({i for word in self._rarest(words) for i in self._listed.get(word, ())}):
            if shortest <= len(self._sets[i]) <= longest and (value := jaccard(words, self._sets[i])) >= self._least:
                yield i, value

    def _rarest(self, words: Words) -> list[str]:
        needed = math.ceil(self._least * len(words) - 1e-9)
        return sorted(words, key=lambda word: (self._seen[word], word))[: len(words) - needed + 1]
