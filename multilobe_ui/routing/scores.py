"""Log-probability of prompts under many lobes at once: the bank's batch trick that the log-prob
router lives on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import MultiLobeError
from ..lobes.bank import LobeBank
from ..lobes.deltas import Matrices
from ..lobes.rows import Vector
from ..lobes.weights import Mix

ROWS_AT_ONCE = 64
TOKENS_AT_ONCE = 256
"""Of prompts that are read together with the base, padding among them: longer products are no
quicker a token."""
Scores = dict[str, float]


def _no_scores(_: Matrices) -> Scores:
    return {}


@torch.inference_mode()
def prompt_nll(
    bank: LobeBank, texts: Sequence[str], lobes: Sequence[str], max_tokens: int = 30, *, base: bool = True
) -> Vector:
    """Mean negative log-likelihood per token of each text's first words, under every lobe and the plain base.

    A text is repeated once a lobe and run as one batch in which each row has its own lobe. It
    stands in the prompt format, and only its own words count (the template's are the same for all),
    so even a text of one token has a score.

    Args:
        lobes: ids in the bank. max_tokens: at most this many tokens of each text are read. base:
            whether the base is asked too.
    Returns: (texts, lobes + 1) in nats, the base last; NaN for a text without tokens, and for a
    base that was not asked.
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
    """Token ids of what stands before a text in the prompt format, and of the text; what is
    predicted from nothing is opening."""
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
    nll = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.repeat(rows), reduction="none"
    )
    return np.asarray(nll.view(rows, -1).mean(1).cpu().numpy(), np.float32)


class PromptScores:
    """`prompt_nll` that remembers: calibrating again after a lobe came costs that lobe's column,
    and no other.

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
        """What the base's score of a text is, from somebody who has read it with the base for
        another reason."""
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


@dataclass(frozen=True)
class _Prompt:
    """A text in the prompt format: its ids, where its own words begin, and the places that predict
    those which count."""

    text: str
    ids: list[int]
    first: int
    scored: range


class MeanHidden:
    """Mean hidden state of the plain base's last layer over a text's own tokens, unit length; texts
    are remembered.

    Args:
        scores: told the base's score of each text, which the same pass gives: log-prob then need
            not run the base again.
    """

    def __init__(self, bank: LobeBank, scores: PromptScores, remember: int = 8192) -> None:
        self._bank, self._scores, self._remember = bank, scores, remember
        self._known: dict[str, Vector] = {}
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> Vector:
        """(texts, hidden) float32; zeros for a text without tokens."""
        with self._lock:
            found = {text: self._known[text] for text in texts if text in self._known}
        for batch in self._batches([text for text in dict.fromkeys(texts) if text not in found]):
            read = dict(zip((prompt.text for prompt in batch), self._read(batch), strict=True))
            found.update(read)
            with self._lock:
                self._known.update(read)
                while len(self._known) > self._remember:
                    del self._known[next(iter(self._known))]
        return np.array([found[text] for text in texts], np.float32).reshape(
            len(texts), self._bank.backbone.hidden_size
        )

    def _batches(self, texts: Sequence[str]) -> Iterator[list[_Prompt]]:
        """Prompts of about the same length together: two thirds of the time of one after another."""
        batch: list[_Prompt] = []
        for prompt in sorted(map(self._prompt, texts), key=lambda prompt: len(prompt.ids)):
            if batch and (len(batch) + 1) * len(prompt.ids) > TOKENS_AT_ONCE:
                yield batch
                batch = []
            batch.append(prompt)
        if batch:
            yield batch

    def _prompt(self, text: str) -> _Prompt:
        opening, words = self._bank.backbone.encode_prompt(text)
        ids = (opening + words)[: self._bank.backbone.context_length]
        start = max(len(opening), 1) - 1  # as `_opening_and_words` has it
        return _Prompt(
            text, ids, len(opening), range(start, min(start + self._scores.max_tokens, len(ids) - 1))
        )

    def forget(self, texts: Sequence[str]) -> None:
        """Read these anew when they come next."""
        with self._lock:
            for text in texts:
                self._known.pop(text, None)

    @torch.inference_mode()
    def _read(self, batch: Sequence[_Prompt]) -> Vector:
        """(texts, hidden). Padding stands on the right, where no token of a text sees it."""
        backbone = self._bank.backbone
        result = np.zeros((len(batch), backbone.hidden_size), np.float32)
        if not any(prompt.ids for prompt in batch):
            return result
        scored = [prompt.scored for prompt in batch if prompt.scored]
        first, end = min((p.start for p in scored), default=0), max((p.stop for p in scored), default=1)
        rows = [torch.tensor(prompt.ids, dtype=torch.long) for prompt in batch]
        ids = pad_sequence(rows, batch_first=True, padding_value=backbone.tokenizer.pad_token_id).to(
            backbone.device
        )
        keep = torch.arange(first, end, device=backbone.device)
        output = self._bank.run(
            None, input_ids=ids, use_cache=False, output_hidden_states=True, logits_to_keep=keep
        )
        left_out = first if output.logits.shape[1] == len(keep) else 0  # an architecture may give them all
        for i, prompt in enumerate(batch):
            if prompt.scored:
                logits = output.logits[
                    i : i + 1, prompt.scored.start - left_out : prompt.scored.stop - left_out
                ]
                places = torch.tensor(prompt.scored, device=ids.device)
                self._scores.note_base(prompt.text, float(_mean_nll(logits, ids[i], places)[0]))
            own = output.hidden_states[-1][i, prompt.first : len(prompt.ids)]
            if len(own):
                result[i] = torch.nn.functional.normalize(own.float().mean(0), dim=0).cpu().numpy()
        return result
