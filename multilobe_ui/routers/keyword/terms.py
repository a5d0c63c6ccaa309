"""The terms that tell a lobe's prompts from all others, and how much each says.

A term w of lobe l is scored by the log-odds ratio against all that is not l, with an informative
Dirichlet prior (Monroe, Colaresi and Quinn 2008, "Fightin' Words", equations 16, 20 and 22). With y
the number of prompts that use w, n the sum of y over all terms, r the rows of other lobes and the
generic prompts (y_r is ELSEWHERE larger than what is counted), and the prior a_w = a_0 times w's
share of the whole:

    delta = log (y_l + a_w) / (n_l + a_0 - y_l - a_w)  -  log (y_r + a_w) / (n_r + a_0 - y_r - a_w)
    z     = delta / sqrt(1 / (y_l + a_w) + 1 / (y_r + a_w))

The lobe keeps the TERMS terms of highest z; delta is their weight. A prompt that stands in the rows
of two lobes counts for both: for neither is it among the rows r. Terms of function words or numbers
are not learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .units import PAIR, function_words, terms_of, units_of

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
LONGEST_TEXT = 4000
"""Characters of a training prompt that are read."""

Array = np.ndarray[Any, Any]


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
    units = units_of(term)
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
        counts.update({term for term, _, _ in terms_of(text, units_of(text), PAIR)})
    return counts
