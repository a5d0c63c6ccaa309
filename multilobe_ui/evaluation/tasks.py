"""Answers that can be marked right or wrong: short ones, compared with the one that is wanted.

Answers are compared as SQuAD does it (Rajpurkar et al. 2016): without case, punctuation, the
articles a, an and the, and with single spaces. Its punctuation is that of ASCII, and so it is here.
"""

from __future__ import annotations

import re
import statistics
import string
import threading
from collections import Counter
from collections.abc import Mapping, Sequence

from ..errors import ConfigError
from ..generation.decode import Request, generate_text
from ..model import MultiLobeModel
from ..routing.decision import manual_decision
from ..settings import SamplingConfig
from .labelled import LabelledRow

SHORT_WORDS = 12
ANSWER_TOKENS = 48
AT_ONCE = 16
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(answer: str) -> list[str]:
    """What of an answer counts, word by word."""
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split()


def exact_match(answer: str, wanted: str) -> bool:
    """Whether two answers have the same words in the same order."""
    return words(answer) == words(wanted)


def token_f1(answer: str, wanted: str) -> float:
    """2 p r / (p + r) of the words that the answers share, each as often as both have it: p is
    their share of `answer`, r of `wanted`. Where one has no words: 1 if neither has, else 0 (as
    SQuAD 2.0, Rajpurkar et al. 2018)."""
    given, asked = words(answer), words(wanted)
    if not given or not asked:
        return float(given == asked)
    shared = sum((Counter(given) & Counter(asked)).values())
    return 2 * shared / (len(given) + len(asked))


def is_short(rows: Sequence[LabelledRow]) -> bool:
    """Whether half of the answers have at most `SHORT_WORDS` words, so that it makes sense to
    compare them word by word."""
    return bool(rows) and statistics.median(len(row.answer.split()) for row in rows) <= SHORT_WORDS


def greedy_answers(
    model: MultiLobeModel, asked: Sequence[tuple[str, Mapping[str, float]]], stop: threading.Event
) -> list[str] | None:
    """The likeliest answer to each (prompt, weights by lobe name), {} being the base; None if it was stopped.

    At most `ANSWER_TOKENS` tokens are written. A prompt that the base cannot read, because it is
    too long, is answered by "".
    """
    sampling = SamplingConfig(do_sample=False, max_new_tokens=ANSWER_TOKENS)
    requests: dict[int, Request] = {}
    for i, (prompt, weights) in enumerate(asked):
        decision = manual_decision(weights, model.lobe_names)
        try:
            requests[i] = model.answers.request([{"role": "user", "content": prompt}], decision, sampling, stop=stop)
        except ConfigError:
            continue
    order = sorted(requests, key=lambda i: len(requests[i].ids))  # alike in length, there is little padding
    answers = [""] * len(asked)
    for start in range(0, len(order), AT_ONCE):
        batch = order[start : start + AT_ONCE]
        texts = generate_text(model.bank, [requests[i] for i in batch])
        if stop.is_set():
            return None
        for i, text in zip(batch, texts, strict=True):
            answers[i] = text
    return answers
