"""Which rows, if any, are held out from training to draw a validation curve."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .examples import Example, short_hash

HELD_OUT_SHARE = 0.05  # of the rows, where any are held out: enough to draw a curve
MOST_HELD_OUT = 64  # rows; a mean over more is hardly steadier, and every evaluation costs time
FEWEST_TO_SPARE = 100  # rows; a twentieth of fewer is a handful, whose mean loss jumps about and says nothing
# Rows per answer from which short answers are labels. Three wordings of each fact are common in
# files of facts; BANKING77's
# 300 rows have 3.9 per topic, and a file of two or three classes has hundreds.
LABEL_ROWS = 3.5
LABEL_WORDS = 8  # mean words of a label at most; topics have 4 and sentences that state a fact 13, where we counted
# Mean share of an answer's words that its prompt has, from which the answer is made from the
# prompt. Summaries: 0.93; worked
# sums of GSM8K, which repeat their numbers: 0.60; definitions and facts: 0.04 to 0.34.
MADE_FROM_PROMPT = 0.75
LONGER_PROMPT = 1.5  # words of such prompts per word of the answer: less is an echo of the question

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class HeldOut:
    """How many rows an automatic validation_fraction holds out.

    Attributes:
        rows: of all rows, duplicates left out. share: of them that are held out, 0 to
            HELD_OUT_SHARE; for `split`.
        reason: what speaks for it, to follow "because".
    """

    rows: int
    share: float
    reason: str

    @property
    def count(self) -> int:
        """Rows held out, as `split` counts them where every prompt is another."""
        return round(self.share * self.rows)

    @property
    def sentence(self) -> str:
        """The decision and its reason, for a person."""
        every = f"All {self.rows:,} rows are" if self.rows != 1 else "The one row is"
        if not self.count:
            return f"{every} trained, because {self.reason}."
        many = f"{self.count:,} of {self.rows:,} rows are"
        return f"{many} held out to draw the validation curve, because {self.reason}."


def held_out_share(examples: Iterable[Example]) -> HeldOut:
    """How many rows can be held out without losing what they teach.

    A fact that is held out is not learned, so facts are all trained. Where answers are labels, or
    are made from their prompts as summaries are, the other rows teach the same, and a twentieth is
    held out if there are FEWEST_TO_SPARE rows or more.

    Args:
        examples: rows without exact duplicates, as `load` gives them.
    """
    counted = Answers()
    for example in examples:
        counted.add(example)
    return counted.held_out()


class Answers:
    """Counts what `held_out_share` goes by, one row at a time; memory holds a short hash for each answer."""

    def __init__(self) -> None:
        self.rows = self.words = self.prompt_words = 0
        self.from_prompt = 0.0
        self.different: set[bytes] = set()

    def add(self, example: Example) -> None:
        answer, prompt = _words(example.answer), _words(example.prompt)
        there = set(prompt)
        self.rows += 1
        self.words += len(answer)
        self.prompt_words += len(prompt)
        self.from_prompt += sum(word in there for word in answer) / max(1, len(answer))
        self.different.add(short_hash(" ".join(example.answer.casefold().split())))

    def held_out(self) -> HeldOut:
        rows = max(1, self.rows)
        labels = 0 < LABEL_ROWS * len(self.different) <= rows and self.words <= LABEL_WORDS * rows
        longer = self.prompt_words >= LONGER_PROMPT * self.words
        made = longer and self.from_prompt >= MADE_FROM_PROMPT * rows
        if not labels and not made:
            return HeldOut(self.rows, 0.0, f"{self._facts()}: what is held out would not be learned")
        if self.rows < FEWEST_TO_SPARE:
            return HeldOut(self.rows, 0.0, f"a file of fewer than {FEWEST_TO_SPARE} rows has none to spare")
        reason = "answers repeat" if labels else "answers are made from their prompts"
        return HeldOut(self.rows, min(HELD_OUT_SHARE, MOST_HELD_OUT / self.rows), reason)

    def _facts(self) -> str:
        if not self.rows:
            return "there are no rows"
        different = len(self.different) / self.rows
        if different >= 0.9:
            return "nearly every answer is different"
        return "most answers are different" if different > 0.5 else "its answers state facts, each in a few rows"


def _words(text: str) -> list[str]:
    """Runs of letters and digits in lower case; of scripts without spaces, every character is one."""
    return _WORD.findall(text.casefold())
