"""Log-probability of prompts under many lobes at once: the bank's batch trick that the log-prob router lives on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bank import LobeBank
from .delta import Matrices
from .errors import MultiLobeError
from .mix import Mix
from .routers.base import Vector

ROWS_AT_ONCE = 64
Scores = dict[str, float]


def _no_scores(_: Matrices) -> Scores:
    return {}


@torch.inference_mode()
def prompt_nll(
    bank: LobeBank, texts: Sequence[str], lobes: Sequence[str], max_tokens: int = 30, *, base: bool = True
) -> Vector:
    """Mean negative log-likelihood per token of each text's first words, under every lobe and the plain base.

    A text is repeated once a lobe and run as one batch in which each row has its own lobe. It stands in the prompt format, and
    only its own words count (the template's are the same for all), so even a text of one token has a score.

    Args:
        lobes: ids in the bank. max_tokens: at most this many tokens of each text are read. base: whether the base is asked too.
    Returns: (texts, lobes + 1) in nats, the base last; NaN for a text without tokens, and for a base that was not asked.
    """
    result = np.full((len(texts), len(lobes) + 1), np.nan, np.float32)
    owners: list[dict[str, float]] = [*({lobe: 1.0} for lobe in lobes), *([{}] if base else [])]
    for i, text in enumerate(texts):
        opening, words = _opening_and_words(bank, text)
        words = words[:max_tokens]
        if not words:
            continue
        ids = torch.tensor([opening + words], device=bank.backbone.device)
        places = _places(opening, words, ids.device)
        for start in range(0, len(owners), ROWS_AT_ONCE):
            rows = owners[start : start + ROWS_AT_ONCE]
            output = bank.run(
                Mix.rows(rows), input_ids=ids.expand(len(rows), -1), logits_to_keep=places, use_cache=False
            )
            result[i, start : start + len(rows)] = _mean_nll(output.logits, ids[0], places)
    return result


def _opening_and_words(bank: LobeBank, text: str) -> tuple[list[int], list[int]]:
    """Token ids of what stands before a text in the prompt format, and of the text; what is predicted from nothing is opening."""
    opening, words = bank.backbone.encode_prompt(text)
    return (opening, words) if opening else (words[:1], words[1:])


def _places(opening: Sequence[int], words: Sequence[int], device: torch.device) -> Tensor:
    """Where the words are predicted; elsewhere the output head, a base's dearest layer, need not run."""
    return torch.arange(len(opening) - 1, len(opening) + len(words) - 1, device=device)


def _mean_nll(logits: Tensor, ids: Tensor, places: Tensor) -> Vector:
    """(rows,) from logits (rows, tokens or places, vocabulary) of one text's ids (tokens,)."""
    if logits.shape[1] != len(places):  # an architecture that gives them all
        logits = logits[:, places]
    rows, targets = len(logits), ids[places + 1]
    nll = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.repeat(rows), reduction="none")
    return np.asarray(nll.view(rows, -1).mean(1).cpu().numpy(), np.float32)


class PromptScores:
    """`prompt_nll` that remembers: calibrating again after a lobe came costs that lobe's column, and no other.

    A lobe's scores are kept beside its matrices in the bank, and so leave with them.

    Args:
        remember: texts whose scores are kept for each lobe; the oldest leave first.
    """

    def __init__(self, bank: LobeBank, max_tokens: int = 30, remember: int = 4096) -> None:
        self.max_tokens = max_tokens
        self._bank, self._remember = bank, remember
        self._base: Scores = {}
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str], lobes: Sequence[str]) -> Vector:
        """(texts, lobes + 1), as `prompt_nll`."""
        kept: list[Scores] = [self._bank.derived(lobe, "prompt scores", _no_scores) for lobe in lobes]
        columns = [*zip(lobes, kept, strict=True), ("", self._base)]
        result = np.full((len(texts), len(columns)), np.nan, np.float32)
        for i, text in enumerate(texts):
            missing = [lobe for lobe, scores in columns if text not in scores]
            if missing:
                unknown = [lobe for lobe in missing if lobe]
                found = prompt_nll(self._bank, [text], unknown, self.max_tokens, base="" in missing)[0]
                values = dict(zip([*unknown, ""], map(float, found), strict=True))
                with self._lock:
                    for lobe, scores in columns:
                        if lobe in missing:
                            scores[text] = values[lobe]
                        while len(scores) > self._remember:
                            del scores[next(iter(scores))]
            result[i] = [scores.get(text, np.nan) for _, scores in columns]
        return result

    def note_base(self, text: str, nll: float) -> None:
        """What the base's score of a text is, from somebody who has read it with the base for another reason."""
        with self._lock:
            self._base[text] = nll

    def forget(self, texts: Sequence[str]) -> None:
        """Score these anew when they come next."""
        with self._lock:
            kept = [self._base]
            for lobe in self._bank.lobes:
                with suppress(MultiLobeError):  # one that leaves just now
                    kept.append(self._bank.derived(lobe, "prompt scores", _no_scores))
            for scores in kept:
                for text in texts:
                    scores.pop(text, None)


class MeanHidden:
    """Mean hidden state of the plain base's last layer over a text's own tokens, unit length; texts are remembered.

    Args:
        scores: told the base's score of each text, which the same pass gives: log-prob then need not run the base again.
    """

    def __init__(self, bank: LobeBank, scores: PromptScores, remember: int = 8192) -> None:
        self._bank, self._scores, self._remember = bank, scores, remember
        self._known: dict[str, Vector] = {}
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> Vector:
        """(texts, hidden) float32; zeros for a text without tokens."""
        rows = np.zeros((len(texts), self._bank.backbone.hidden_size), np.float32)
        for i, text in enumerate(texts):
            found = self._known.get(text)
            rows[i] = found = self._read(text) if found is None else found
            with self._lock:
                self._known[text] = found
                while len(self._known) > self._remember:
                    del self._known[next(iter(self._known))]
        return rows

    def forget(self, texts: Sequence[str]) -> None:
        """Read these anew when they come next."""
        with self._lock:
            for text in texts:
                self._known.pop(text, None)

    @torch.inference_mode()
    def _read(self, text: str) -> Vector:
        backbone = self._bank.backbone
        opening, words = backbone.encode_prompt(text)
        words = words[: backbone.context_length - len(opening)]
        if not words:
            return np.zeros(backbone.hidden_size, np.float32)
        ids = torch.tensor([opening + words], device=backbone.device)
        before, scored = _opening_and_words(self._bank, text)
        places = _places(before, scored[: self._scores.max_tokens], ids.device)
        keep: Any = places if len(places) else 1
        output = self._bank.run(None, input_ids=ids, use_cache=False, output_hidden_states=True, logits_to_keep=keep)
        if len(places):
            self._scores.note_base(text, float(_mean_nll(output.logits, ids[0], places)[0]))
        mean = output.hidden_states[-1][0, len(opening) :].float().mean(0)
        return np.asarray(torch.nn.functional.normalize(mean, dim=0).cpu().numpy(), np.float32)
