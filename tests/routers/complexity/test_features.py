"""Complexity: features against sentences parsed by hand, a score against its formula, tiers, and texts that are no English."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multilobe_ui.assets import folder
from multilobe_ui.errors import ConfigError, RoutingError
from multilobe_ui.routers.complexity import features as complexity
from multilobe_ui.routers.complexity.features import (
    EXAMPLES,
    FEATURES,
    HARDEST_GRADE,
    LONGEST_TEXT,
    TIERS,
    Analyser,
    depth_of_tokens,
    entity_count,
    is_clause,
    load_parser,
    measure,
    parser_name,
    readable,
    scaled,
    score,
    spread,
    tier_of,
)

SIMPLE = "What is insulin?"
MEDIUM = "I know that you think that she lied."
COMPLEX = (
    "The old man, who had lived in the house that his father built before the war began, said that he would leave when the snow "
    "melted. Because nobody believed him, he asked his two sons to explain why the roads were closed and who had closed them."
)


@pytest.fixture(scope="module")
def analyser() -> Analyser:
    """On the shipped parser, also where a larger pipeline is installed."""
    import spacy

    return Analyser(spacy.load(folder("assets") / "parser"))


def one(analyser: Analyser, prompt: str) -> dict[str, float]:
    return dict(analyser.analyse([prompt])[0].features)


@pytest.mark.parametrize(
    ("prompt", "words", "sentences", "depth", "clauses", "entities"),
    [
        ("What is insulin?", 3, 1, 1, 1, 0),
        ("Hello!", 1, 1, 0, 0, 0),  # no clause: neither verb nor subject
        ("I know that you think that she lied.", 8, 1, 3, 3, 0),  # know > think > lied > she
        ("She sings and he dances.", 5, 1, 2, 2, 0),
        ("She left because he lied.", 5, 1, 2, 2, 0),  # left > lied > because
        ("If it rains, we will stay at home because the roads are slippery.", 13, 1, 3, 3, 0),
        ("We ate. Then we slept. It rained.", 7, 3, 1, 3, 0),
        ("The dog of the friend of the mayor barked.", 9, 1, 4, 1, 0),  # barked > dog > friend > mayor > of
        ("Marie Curie was born in Warsaw in 1867.", 8, 1, 2, 1, 3),  # Marie Curie, Warsaw, 1867
    ],
)
def test_features_agree_with_a_parse_by_hand(
    analyser: Analyser, prompt: str, words: int, sentences: int, depth: int, clauses: int, entities: int
) -> None:
    found = one(analyser, prompt)
    assert {name: found[name] for name in ("words", "sentences", "depth", "clauses")} == {
        "words": words,
        "sentences": sentences,
        "depth": depth,
        "clauses": clauses,
    }
    assert found["entities"] == entities / words


def test_distance_vocabulary_and_readability_agree_with_their_formulas(analyser: Analyser) -> None:
    found = one(analyser, "What is the best of the best?")
    # What is the best of the best: the heads by hand are 0 (the root), 1, 4, 1, 7, 7, 4, counted from 1
    assert found["distance"] == pytest.approx((1 + 1 + 3 + 2 + 1 + 3) / 6)
    assert found["vocabulary"] == pytest.approx(5 / 7**0.5)  # what is the best of
    long = "International organisations systematically underestimate environmental responsibilities."
    characters, words = len(long), 6  # textstat counts the full stop
    assert one(analyser, long)["readability"] == min(HARDEST_GRADE, 4.71 * characters / words + 0.5 * words - 21.43)
    ten = "The big cats of the old town eat fish today."
    assert one(analyser, ten)["readability"] == pytest.approx(max(0, 4.71 * 35 / 10 + 5 - 21.43), abs=1.0)


@pytest.mark.parametrize("style", ["universal", "clear"])
def test_clauses_in_both_styles_of_labels(analyser: Analyser, style: str) -> None:
    from spacy.tokens import Doc

    words = ["Say", "what", "he", "who", "left", "wants", "to", "do", "and", "go", "happy"]
    pos = ["VERB", "PRON", "PRON", "PRON", "VERB", "VERB", "PART", "VERB", "CCONJ", "VERB", "ADJ"]
    heads = [0, 7, 5, 4, 2, 0, 7, 5, 9, 0, 9]
    relative = "acl:relcl" if style == "universal" else "relcl"
    adjective = "xcomp" if style == "universal" else "acomp"
    deps = ["ROOT", "obj", "nsubj", "nsubj", relative, "ccomp", "mark", "xcomp", "cc", "conj", adjective]
    doc = Doc(analyser.parser.vocab, words=words, pos=pos, heads=heads, deps=deps)
    assert [token.text for token in doc if is_clause(token)] == ["Say", "left", "wants", "do", "go"]


def test_a_root_without_a_verb_is_a_clause_if_it_has_a_copula(analyser: Analyser) -> None:
    from spacy.tokens import Doc

    vocab = analyser.parser.vocab
    good = Doc(
        vocab, words=["It", "is", "good"], pos=["PRON", "AUX", "ADJ"], heads=[2, 2, 2], deps=["nsubj", "cop", "ROOT"]
    )
    title = Doc(vocab, words=["good", "book"], pos=["ADJ", "NOUN"], heads=[1, 1], deps=["amod", "ROOT"])
    assert [is_clause(doc[-1]) for doc in (good, title)] == [True, False]


def test_entities_are_the_pipelines_own_where_it_has_them(analyser: Analyser) -> None:
    from spacy.tokens import Doc, Span

    words, pos = ["Ann", "Lee", "saw", "seven", "Rome"], ["PROPN", "PROPN", "VERB", "NUM", "PROPN"]
    doc = Doc(analyser.parser.vocab, words=words, pos=pos)
    assert entity_count(doc) == 2  # Ann Lee; seven Rome
    doc.ents = [Span(doc, 0, 2, "PERSON"), Span(doc, 3, 4, "CARDINAL"), Span(doc, 4, 5, "GPE")]
    assert entity_count(doc) == 3
    doc.set_ents([], default="outside")
    assert entity_count(doc) == 0


def test_depth_of_a_forest_and_of_a_long_chain() -> None:
    assert depth_of_tokens([1, 1, 1, 2, 3, 5, 5]) == [1, 0, 1, 2, 3, 0, 1]
    assert depth_of_tokens([0, *range(50_000)]) == list(range(50_001))
    assert depth_of_tokens([*range(1, 50_001), 50_000]) == list(range(50_000, -1, -1))
    assert depth_of_tokens([]) == []


def test_score_is_the_documented_formula() -> None:
    rng = np.random.default_rng(0)
    features = rng.gamma(2.0, 5.0, size=(50, len(FEATURES)))
    for row, value in zip(features, score(features), strict=True):
        parts = [f.weight * x**2 / (x**2 + f.half**2) for x, f in zip(row, FEATURES.values(), strict=True)]
        assert value == pytest.approx(sum(parts))
    assert sum(feature.weight for feature in FEATURES.values()) == pytest.approx(1)
    halves = np.array([[feature.half for feature in FEATURES.values()]])
    assert np.allclose(scaled(halves), 0.5) and score(halves)[0] == pytest.approx(0.5)
    assert score(np.zeros((1, len(FEATURES))))[0] == 0 and score(np.zeros((0, len(FEATURES)))).shape == (0,)
    assert 0.99 < score(np.full((1, len(FEATURES)), 1e6))[0] <= 1


@pytest.mark.parametrize("name", FEATURES)
def test_score_rises_with_every_feature(name: str) -> None:
    column, rng = list(FEATURES).index(name), np.random.default_rng(1)
    rows = np.repeat(rng.gamma(2.0, 3.0, size=(1, len(FEATURES))), 40, axis=0)
    rows[:, column] = np.linspace(0, 5 * FEATURES[name].half, 40)
    assert (np.diff(score(rows)) > 0).all()
    assert FEATURES[name].explanation.endswith(".")


def test_tiers_rise_with_the_prompt(analyser: Analyser) -> None:
    found = analyser.analyse([COMPLEX, SIMPLE, MEDIUM])
    assert [analysis.tier for analysis in found] == ["complex", "simple", "medium"]
    assert [analysis.prompt for analysis in found] == [COMPLEX, SIMPLE, MEDIUM]
    assert json.loads(json.dumps(found[0].to_json())) == {
        "prompt": COMPLEX,
        "features": dict(found[0].features),
        "score": found[0].score,
        "tier": "complex",
    }


def test_a_tier_begins_at_its_threshold() -> None:
    assert [tier_of(value, 0.3, 0.7) for value in (0, 0.2999, 0.3, 0.6999, 0.7, 1)] == [
        *("simple", "simple", "medium", "medium", "complex", "complex")
    ]


def test_stratification(analyser: Analyser) -> None:
    prompts = [COMPLEX, SIMPLE, MEDIUM, SIMPLE, "What is a cat?", "Who is she?", "What is love?"]
    found = analyser.stratify(prompts)
    assert found.counts == {"simple": 5, "medium": 1, "complex": 1}
    assert found.indices == {"simple": (1, 3, 4, 5, 6), "medium": (2,), "complex": (0,)}
    assert found.tiers == tuple(analysis.tier for analysis in analyser.analyse(prompts))
    assert found.scores == tuple(score(analyser.features(prompts)))
    assert found.examples["complex"] == (COMPLEX,) and len(set(found.examples["simple"])) == EXAMPLES
    features = analyser.features(prompts)
    for tier, members in found.indices.items():
        assert found.means[tier] == pytest.approx(dict(zip(FEATURES, features[list(members)].mean(0), strict=True)))
        axes = scaled(features)[list(members)].mean(0)
        assert found.profile[tier] == pytest.approx(dict(zip(FEATURES, axes, strict=True)))
    assert json.loads(json.dumps(found.to_json()))["counts"] == found.counts


def test_thresholds_move_prompts(analyser: Analyser) -> None:
    prompts = [SIMPLE, MEDIUM, COMPLEX]
    assert analyser.stratify(prompts, 0.0, 1.0).counts == {"simple": 0, "medium": 3, "complex": 0}
    assert analyser.stratify(prompts, 0.0, 0.01).counts == {"simple": 0, "medium": 0, "complex": 3}
    assert analyser.stratify(prompts, 0.99, 1.0).counts == {"simple": 3, "medium": 0, "complex": 0}


def test_nothing_to_stratify(analyser: Analyser) -> None:
    found = analyser.stratify([])
    assert found.counts == dict.fromkeys(TIERS, 0) and found.scores == () and found.means == {} == found.profile
    assert analyser.features([]).shape == (0, len(FEATURES)) and analyser.analyse([]) == []


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0.7, 0.3, "low is 0.7: it must be below high, which is 0.3."),
        (0.5, 0.5, "low is 0.5: it must be below high"),
        (-0.1, 0.5, "low is -0.1: it must be a number from 0 to 1"),
        (0.3, 1.1, "high is 1.1: it must be a number from 0 to 1"),
        (float("nan"), 0.5, "low is nan: it must be"),
        (0.3, float("inf"), "high is inf: it must be"),
        (None, 0.5, "low is None: it must be"),
        ("0.1", 0.5, "low is '0.1': it must be"),
        (False, 0.5, "low is False: it must be"),
    ],
)
def test_bad_thresholds_are_refused(low: Any, high: Any, message: str) -> None:
    for call in (Analyser().stratify, Analyser().analyse):  # before any parser is loaded
        with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
            call([SIMPLE], low, high)


NO_WORDS = ["", "   \n\t ", "?!... ;; --", "😀🎉👩‍👩‍👧", "(" * 30_000, '"' * 3000, "\u200b\u200d", "="]
ODD = {
    "long": "The cat sat on the mat because it was happy. " * 2300,
    "code": "def f(x):\n    return [i**2 for i in range(x) if i % 3 == 0]\n" * 20,
    "chinese": "请解释量子力学的基本原理。" * 20,
    "arabic": "اشرح مبادئ ميكانيكا الكم",
    "hindi": "क्वांटम यांत्रिकी समझाइए",
    "one word": "a" * 100_000,
    "brackets": "(a" * 20_000,
    "link": "https://example.org/" + "x." * 4000,
    "numbers": "1,234.5 " * 500,
    "half a pair": "\ud83d hello \udc00",
    "control": "a\x00b\x07c\x1b[0m",
    "mixed": "Explain 量子 and its 😀 use in f(x)=x²",
}


def test_texts_without_words_are_nothing(analyser: Analyser) -> None:
    assert not analyser.features(NO_WORDS).any()
    assert {analysis.tier for analysis in analyser.analyse(NO_WORDS)} == {"simple"}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_any_text_has_finite_features(analyser: Analyser, text: str) -> None:
    features = analyser.features([text])
    assert np.isfinite(features).all() and (features >= 0).all() and features[0, 0] > 0
    assert 0 < score(features)[0] < 1


def test_what_lies_beyond_the_limit_is_not_read(analyser: Analyser) -> None:
    sentence = "He said that she left. "
    text = (sentence * 1000)[:LONGEST_TEXT]
    assert len(text) == LONGEST_TEXT
    assert (analyser.features([text]) == analyser.features([text + "Only Anna, who knew why, stayed."])).all()


def test_readable_text() -> None:
    assert readable(" a\n\n b\t") == "a b"
    assert readable("x" * 450) == " ".join(["x" * 200, "x" * 200, "x" * 50])
    assert readable("x" * 200) == "x" * 200
    readable("\ud800").encode("utf-8")


def test_the_answer_depends_on_the_prompt_alone(analyser: Analyser) -> None:
    """Neither on its neighbours in the batch, nor on being asked again, nor on spaces around it."""
    prompts = [SIMPLE, MEDIUM, COMPLEX, *ODD.values(), *NO_WORDS]
    together = Analyser(analyser.parser).features(prompts)
    alone = np.concatenate([Analyser(analyser.parser).features([prompt]) for prompt in prompts])
    assert np.array_equal(together, alone)
    again = Analyser(analyser.parser)
    again.features(prompts)
    assert np.array_equal(again.features(prompts[::-1]), together[::-1])
    assert np.array_equal(analyser.features([f"  {MEDIUM}\n"]), analyser.features([MEDIUM]))


def test_known_texts_are_not_parsed_again_and_old_ones_forgotten(
    analyser: Analyser, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(complexity, "measure", lambda doc: parsed.append(doc.text) or measure(doc))
    monkeypatch.setattr(complexity, "REMEMBERED", 3)
    fresh = Analyser(analyser.parser)
    fresh.features(["one", "two", "two", "one"])
    fresh.features(["two"])
    assert parsed == ["one", "two"]
    fresh.features(["three", "one"])
    fresh.features(["four"])  # "two" was used longest ago
    fresh.features(["one", "three", "two"])
    assert parsed == ["one", "two", "three", "four", "two"]


def test_threads_agree(analyser: Analyser) -> None:
    prompts = [f"{MEDIUM} And number {i} left." for i in range(40)]
    expected = Analyser(analyser.parser).features(prompts)
    shared = Analyser(analyser.parser)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(shared.features, [prompts, prompts[:20], prompts[10:], prompts] * 2):
            assert all(any(np.array_equal(row, other) for other in expected) for row in found)
        assert np.array_equal(shared.features(prompts), expected)


def test_no_network_is_asked_for(analyser: Analyser, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    Analyser(analyser.parser).features(["A sentence nobody has analysed before, on photosynthesis."])


def test_memory_does_not_grow_with_new_words(analyser: Analyser) -> None:
    fresh = Analyser(analyser.parser)
    fresh.features(["warm up"])
    before = len(analyser.parser.vocab.strings)
    fresh.features([f"quux{i} frobs zork{i}" for i in range(200)])
    assert len(analyser.parser.vocab.strings) - before < 50


@pytest.fixture
def fresh_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complexity, "_load_parser", complexity.lru_cache(complexity._load_parser.__wrapped__))


@pytest.mark.usefixtures("fresh_loading")
def test_the_shipped_parser_is_used_where_none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complexity, "INSTALLED", ("no_such_pipeline",))
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_parser(), range(4)))
    assert all(nlp is loaded[0] for nlp in loaded)
    assert parser_name(loaded[0]) == "en_ud_ewt_sm 1.0.0"
    assert Analyser().parser is loaded[0]


@pytest.mark.usefixtures("fresh_loading")
def test_an_installed_pipeline_comes_first_and_a_broken_one_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import spacy

    nlp = spacy.blank("en")
    nlp.meta["name"] = "tiny"
    nlp.to_disk(tmp_path / "data")
    for name, body in {
        "broken_pipeline": "raise ImportError('half installed')",
        "good_pipeline": f"import spacy\ndef load(**options): return spacy.load({str(tmp_path / 'data')!r})",
    }.items():
        (tmp_path / f"{name}.py").write_text(body, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(spacy.util, "is_package", lambda name: name.endswith("_pipeline"))
    monkeypatch.setattr(complexity, "INSTALLED", ("absent_pipeline", "broken_pipeline", "good_pipeline"))
    assert parser_name(load_parser()) == "en_tiny 0.0.0"


@pytest.mark.usefixtures("fresh_loading")
def test_an_incomplete_installation_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(complexity, "INSTALLED", ())
    monkeypatch.setattr(complexity, "folder", lambda _: tmp_path)
    with pytest.raises(RoutingError, match="built-in parser is missing"):
        load_parser()


def test_examples_are_spread() -> None:
    assert spread([]) == () and spread("a") == ("a",) and spread("ab") == ("a", "b")
    assert spread("abcdefg") == ("a", "d", "g") and spread("aaaab") == ("a", "b")
