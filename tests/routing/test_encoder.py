"""The sentence encoder: what is remembered is what the encoder itself says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multilobe_ui.assets import packaged_minilm
from multilobe_ui.routing.encoder import Embedder, generic_prompts, generic_vectors

TEXTS = ["hello there", "a much longer text, with 中文 words or two, and a 🦜", "x"]


@pytest.fixture(scope="module")
def reference():  # type: ignore[no-untyped-def]
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(packaged_minilm()))


def test_a_vector_is_the_sentence_beside_the_middle_layer(reference) -> None:  # type: ignore[no-untyped-def]
    sentence = reference.encode(TEXTS, normalize_embeddings=True)
    layers = reference[0].auto_model
    expected = []
    for text, last in zip(TEXTS, sentence, strict=True):
        read = reference.tokenizer([text], return_tensors="pt", truncation=True)
        with torch.inference_mode():
            hidden = layers(**read, output_hidden_states=True).hidden_states
        middle = hidden[len(hidden) // 2][0].mean(0).numpy()
        expected.append(np.concatenate([last, middle / np.linalg.norm(middle)]) / 2**0.5)
    np.testing.assert_allclose(Embedder(device="cpu")(TEXTS), expected, atol=1e-6)


def test_one_text_or_many_have_the_same_vectors() -> None:
    embedder = Embedder(device="cpu")
    together = embedder(TEXTS)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-6)
    embedder.forget(TEXTS)
    np.testing.assert_allclose(np.concatenate([embedder([text]) for text in TEXTS]), together, atol=1e-6)


def test_texts_are_remembered_until_they_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(device="cpu", remember=2)
    passes: list[list[str]] = []
    encode = embedder.model.encode
    monkeypatch.setattr(embedder.model, "encode", lambda texts, **how: passes.append(list(texts)) or encode(texts, **how))
    embedder(TEXTS[:2])
    embedder(TEXTS[:2])
    embedder.forget(TEXTS[:1])
    embedder(TEXTS)
    embedder(TEXTS[2:])
    assert passes == [TEXTS[:2], [TEXTS[0], TEXTS[2]]]


def test_the_shipped_vectors_are_those_of_the_shipped_prompts() -> None:
    prompts, embedder = generic_prompts(), Embedder(device="cpu")
    shipped = generic_vectors(embedder, prompts)
    assert shipped.shape == (len(prompts), 768)
    places = range(0, len(prompts), 60)
    np.testing.assert_allclose(shipped[places], embedder([prompts[i] for i in places]), atol=2e-4)
    other = generic_vectors(embedder, TEXTS)  # not those that are shipped: read now
    np.testing.assert_array_equal(other, embedder(TEXTS))
