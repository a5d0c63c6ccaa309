"""A text as units: words, signs (=, ², √, [], print()), and in scripts without spaces characters.
Terms are runs of them."""

from __future__ import annotations

import re
import runpy
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

PAIR = 2
"""Units in the longest learned term; a term that a person wrote may be longer."""

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
    return frozenset(_INSTRUCTING.split()) | {unit.text for word in words for unit in units_of(word)}


class Unit(NamedTuple):
    """A word, a sign, or a character of a script without spaces: as it is compared, and where it is."""

    text: str
    start: int
    end: int
    character: bool
    sign: bool = False


def units_of(text: str) -> list[Unit]:
    return [_unit(m) for m in _UNIT.finditer(text)]


def _unit(match: re.Match[str]) -> Unit:
    kind, said = match.lastgroup, match[0]
    if kind == "sign":
        return Unit(_SAME_SIGN.get(said, said), match.start(), match.end(), False, True)
    if kind == "raised":
        return Unit(said, match.start(), match.end(), False, True)
    folded = unicodedata.normalize("NFKC", said.casefold())
    return Unit(folded, match.start(), match.end(), kind == "character")


def joined(units: Sequence[Unit]) -> str:
    """A term as it is kept: words with a space between, characters without, and signs as they are usually
    written."""
    text = units[0].text
    for before, unit in pairwise(units):
        together = (before.character and unit.character) or unit.text in _TOUCHING or _is_raised(unit)
        text += unit.text if together else f" {unit.text}"
    return text


def as_kept(term: str) -> str:
    """A term as this version keeps it: earlier ones read "5x" as one word."""
    units = units_of(term)
    return joined(units) if units else term


def _is_raised(unit: Unit) -> bool:
    return unit.sign and unit.text[0].isalnum()


def terms_of(text: str, units: Sequence[Unit], longest: int) -> Iterator[tuple[str, int, int]]:
    """(term, start, end) of every run of up to `longest` neighbouring units; a comma or a full stop parts
    neighbours."""
    for i, first in enumerate(units):
        yield first.text, first.start, first.end
        for j in range(i + 1, min(i + longest, len(units))):
            gap = (units[j - 1].end, units[j].start)
            if first.character != units[j].character or not _BETWEEN_WORDS.fullmatch(text, *gap):
                break
            yield joined(units[i : j + 1]), first.start, units[j].end
