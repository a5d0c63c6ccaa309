"""The sentence encoder: what is remembered is what the encoder itself says."""

from __future__ import annotations

import numpy as np
import pytest

from multilobe_ui.assets import packaged_minilm
from multilobe_ui.embedding import Embedder

TEXTS = ["hello there", "a much longer text, with 中文 words or two, and a 🦜", "x"]


@pytest.fixture(scope="module")
def reference():  # type: ignore[no-untyped-def]
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(packaged_minilm()))


def test_words_are_the_encoders_own_however_they_are_asked_for(reference) -> None:  # type: ignore[no-untyped-def]
    vectors = reference.encode(TEXTS, output_value="token_embeddings")
    read = reference.tokenizer(TEXTS, truncation=True, return_special_tokens_mask=True)
    embedder = Embedder()
    embedder(TEXTS[:1])  # its words are remembered from this
    for found in (embedder.words(TEXTS), embedder.words(TEXTS[::-1])[::-1]):
        for (ids, words), all_ids, special, rows in zip(
            found, read["input_ids"], read["special_tokens_mask"], vectors, strict=True
        ):
            own = [i for i, other in enumerate(special) if not other]
            assert ids.tolist() == [all_ids[i] for i in own]
            np.testing.assert_allclose(words, rows.numpy()[own], rtol=5e-4, atol=1e-5)  # rounded to half precision


def test_one_text_or_many_have_the_same_vectors(reference) -> None:  # type: ignore[no-untyped-def]
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(Embedder()(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([Embedder()([text]) for text in TEXTS]), expected, atol=1e-6)


def test_a_prompt_and_its_words_are_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder()
    passes: list[int] = []
    encode = embedder.model.encode
    monkeypatch.setattr(
        embedder.model, "encode", lambda texts, **how: passes.append(len(texts)) or encode(texts, **how)
    )
    vector = embedder(["How far is the moon?"])
    embedder.words(["How far is the moon?"])
    assert passes == [1]
    embedder.forget(["How far is the moon?"])
    np.testing.assert_array_equal(embedder(["How far is the moon?"]), vector)
    assert passes == [1, 1]


def test_words_are_remembered_up_to_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder()
    passes: list[list[str]] = []
    encode = embedder.model.encode
    monkeypatch.setattr(
        embedder.model, "encode", lambda texts, **how: passes.append(list(texts)) or encode(texts, **how)
    )
    texts = [f"The number {i} is here." for i in range(60)]
    first = embedder.words(texts)
    again = embedder.words(texts)
    assert passes == [texts]
    for (ids, words), (same_ids, same_words) in zip(first, again, strict=True):
        np.testing.assert_array_equal(ids, same_ids)
        np.testing.assert_array_equal(words, same_words)
    monkeypatch.setattr("multilobe_ui.embedding.WORDS_KEPT", 12 * (first[0][0].nbytes + first[0][1].nbytes))
    embedder.words(texts[:1])  # now the last used
    embedder.words(["One more."])  # too much: those used longest ago leave
    assert passes[1:] == [["One more."]]
    embedder.words([texts[0], texts[-1]])
    assert passes[2:] == []
    embedder.words(texts[1:3])
    assert passes[2:] == [texts[1:3]]
