"""One contract for all routers, on made-up lobes: no model is loaded. Then what is particular to each."""

from __future__ import annotations

import itertools
import json
import math
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.kernel_ridge import KernelRidge

from multilobe_ui.errors import ConfigError, RoutingError
from multilobe_ui.evaluation import routing_report
from multilobe_ui.progress import Progress
from multilobe_ui.routers import ROUTERS, RoutingContext, RoutingRows
from multilobe_ui.routers.gate import GateRouter
from multilobe_ui.routers.hybrid import HybridRouter
from multilobe_ui.routers.keyword.router import KeywordRouter
from multilobe_ui.routers.keyword.terms import distinctive_terms
from multilobe_ui.routers.keyword.units import as_kept, function_words, units_of
from multilobe_ui.routing import regression
from multilobe_ui.routing.calibration import calibration_error, fit_temperature, softmax
from multilobe_ui.routing.decision import Mixing, manual_decision
from multilobe_ui.routing.router import BankContext, Router, State, learn_now
from multilobe_ui.ui.chat.evidence import highlighted

DIMENSIONS = 24


def vector_of(text: str, spread: float = 0.5) -> np.ndarray:
    """Texts are "TOPIC number": a topic has a direction, a text lies near its topic's."""
    topic, _, _ = text.partition(" ")
    centre = np.random.default_rng(hash_of(topic)).normal(size=DIMENSIONS)
    centre /= np.linalg.norm(centre)
    noise = np.random.default_rng(hash_of(text)).normal(size=DIMENSIONS) / np.sqrt(DIMENSIONS)
    mixed = centre + spread * noise
    return (mixed / np.linalg.norm(mixed)).astype(np.float32)


def hash_of(text: str) -> int:
    return zlib.crc32(text.encode())


def embed(texts: Sequence[str]) -> np.ndarray:
    return np.stack([vector_of(text) for text in texts]) if texts else np.zeros((0, DIMENSIONS), np.float32)


def nll(texts: Sequence[str], lobes: Sequence[str]) -> np.ndarray:
    """A language model that likes a lobe's own topic half a nat better than the base does, and others a bit less."""
    rows = []
    for text in texts:
        noise = np.random.default_rng(hash_of(text) + 1).normal(size=len(lobes)) * 0.02
        own = np.array([2.5 if text.split(" ")[0] == lobe else 3.1 for lobe in lobes])
        rows.append([*(own + noise), 3.0])
    return np.array(rows, np.float32).reshape(len(texts), len(lobes) + 1)


def rows_of(lobe: str, train: int = 20, validation: int = 8) -> RoutingRows:
    prompts, held_out = ([f"{lobe} {i}" for i in range(a, b)] for a, b in ((0, train), (train, train + validation)))
    vectors = embed(prompts)
    centre = vectors.mean(0, keepdims=True)
    return RoutingRows(centre / np.linalg.norm(centre), vectors, embed(held_out), prompts, held_out)


def context(count: int, without_rows: int = 0) -> BankContext:
    lobes = [f"lobe{i}" for i in range(count)]
    generic = [f"strange{i} {i}" for i in range(30)]
    rows = {lobe: rows_of(lobe) for lobe in lobes[: count - without_rows]}
    return BankContext(lobes, rows, embed, nll, lambda: embed(generic), generic)


def through_files(state: dict[str, Any]) -> dict[str, Any]:
    """What `fits` keeps of a state: JSON, and arrays of the outermost keys."""
    arrays = {key: value.copy() for key, value in state.items() if isinstance(value, np.ndarray)}
    return json.loads(json.dumps({key: value for key, value in state.items() if key not in arrays})) | arrays


def fitted(name: str, count: int, **options: int) -> Router:
    router = ROUTERS[name](context(count, **options), None)
    with suppress(RoutingError):  # there may be nothing to learn from
        learn_now(router)
    return router


@cache
def ready(name: str, count: int) -> Router:
    """One for all tests that only ask it: 200 lobes take a while to fit."""
    return fitted(name, count)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("count", [0, 1, 2, 200])
class TestContract:
    def test_decisions_are_sound(self, name: str, count: int) -> None:
        router = ready(name, count)
        for prompt in ["lobe0 100", "lobe1 101", "strange99 5", "x"]:
            decision = router.route(prompt)
            assert set(decision.scores) | set(decision.probabilities) | set(decision.weights) <= set(
                router.context.lobes
            )
            assert decision.chosen is None or decision.chosen in router.context.lobes
            assert (decision.chosen is None) == (not decision.weights) == decision.abstained
            assert 0 <= decision.confidence <= 1
            assert decision.elapsed_ms >= 0
            assert decision.reason.endswith(".")
            if decision.probabilities:
                assert sum(decision.probabilities.values()) == pytest.approx(1 - decision.evidence["none"], abs=1e-4)
            json.dumps(decision.to_json())

    def test_the_same_prompt_gets_the_same_decision(self, name: str, count: int) -> None:
        router = ready(name, count)
        first, second = (router.route("lobe1 55").to_json() for _ in range(2))
        assert first.pop("elapsed_ms") >= 0 <= second.pop("elapsed_ms")
        assert first == second

    def test_an_empty_prompt_goes_to_the_base(self, name: str, count: int) -> None:
        for prompt in ("", "  \n "):
            decision = ready(name, count).route(prompt)
            assert decision.abstained and decision.weights == {} and decision.chosen is None

    def test_state_survives_json(self, name: str, count: int) -> None:
        router = ready(name, count)
        other = ROUTERS[name](context(count), None)
        other.adapt(State(through_files(router.state())))
        for i in range(5):
            ours, theirs = router.route(f"lobe{i} 7{i}"), other.route(f"lobe{i} 7{i}")
            assert (ours.chosen, ours.probabilities, ours.threshold) == (
                theirs.chosen,
                theirs.probabilities,
                theirs.threshold,
            )


@pytest.mark.parametrize("name", ["hybrid", "embedding", "logprob", "keyword", "gate", "chain"])
@pytest.mark.parametrize("count", [2, 8])
def test_own_prompts_are_routed_home(name: str, count: int) -> None:
    router = fitted(name, count)
    prompts = [(f"lobe{i} {j}", f"lobe{i}") for i in range(count) for j in range(300, 330)]
    report = routing_report(router.route, [p for p, _ in prompts], [label for _, label in prompts])
    assert report.accuracy >= 0.93
    assert sum(report.confusion.values()) == len(prompts)


@pytest.mark.parametrize("name", ["hybrid", "embedding", "keyword"])
def test_strange_prompts_go_to_the_base(name: str) -> None:
    router = fitted(name, 6)
    abstained = [router.route(f"alien{i} {i}").abstained for i in range(60)]
    assert np.mean(abstained) >= 0.9
    assert any(word in router.route("alien1 1").reason for word in ("base", "near", "No word"))


class TestEmbedding:
    def test_scores_equal_a_plain_computation(self) -> None:
        router = fitted("embedding", 5)
        vectors = embed([f"lobe{i} 400" for i in range(5)])
        expected = np.empty((5, 5))
        for i, vector in enumerate(vectors):
            for j in range(5):
                rows = router.context.rows[f"lobe{j}"]
                nearest = sorted(rows.train @ vector)[-3:]
                expected[i, j] = (max(rows.prototypes @ vector) + np.mean(nearest)) / 2
        np.testing.assert_allclose(router.scores(vectors), expected, atol=1e-6)

    def test_lobes_with_one_or_two_rows_score_the_mean_of_what_they_have(self) -> None:
        rows = {"small": rows_of("small", train=2), "large": rows_of("large", train=40)}
        router = ROUTERS["embedding"](BankContext(["small", "large"], rows, embed, nll), None)
        vector = embed(["small 50"])
        expected = (
            float((rows["small"].prototypes @ vector[0]).max()) + float((rows["small"].train @ vector[0]).mean())
        ) / 2
        assert router.scores(vector)[0, 0] == pytest.approx(expected, abs=1e-6)

    def test_an_explicit_threshold_is_honoured(self) -> None:
        strict, lax = (ROUTERS["embedding"](context(3), threshold) for threshold in (0.999, 0.0))
        learn_now(strict), learn_now(lax)
        assert not strict.route("lobe1 9").certain
        assert lax.route("lobe1 9").certain
        assert strict.route("lobe1 9").threshold == 0.999

    def test_nearest_rows_are_the_nearest(self) -> None:
        router = fitted("embedding", 3)
        found = router.route("lobe2 77").evidence["nearest"]
        everything = {
            p: float(vector_of(p) @ vector_of("lobe2 77")) for i in range(3) for p in rows_of(f"lobe{i}").train_prompts
        }
        best = sorted(everything, key=lambda p: -everything[p])[:5]
        assert [row["prompt"] for row in found] == best
        assert all(row["prompt"].startswith(row["lobe"]) for row in found)

    def test_a_calibration_of_other_lobes_is_refused(self) -> None:
        with pytest.raises(RoutingError, match="other lobes"):
            ROUTERS["embedding"](context(3), None).adapt(State(fitted("embedding", 2).state()))

    def test_rows_held_out_are_kept_certain_and_right(self) -> None:
        router = fitted("embedding", 8)
        decided = [(router.route(f"lobe{i} {j}"), f"lobe{i}") for i in range(8) for j in range(500, 520)]
        certain = [(d.chosen, label) for d, label in decided if d.certain and d.chosen]
        assert len(certain) >= 0.6 * len(decided)
        assert np.mean([a == b for a, b in certain]) >= 0.97


class TestRegression:
    def test_it_is_kernel_ridge_regression(self) -> None:
        """On unit vectors exp(-4 (1 - cosine)) is the RBF kernel with gamma 2."""
        router = ready("hybrid", 8)
        assert isinstance(router, HybridRouter) and router._regression is not None
        rows = router._regression.rows
        reference = KernelRidge(alpha=0.1, kernel="rbf", gamma=2.0).fit(rows.vectors.astype(np.float64), rows.labels)
        asked = embed(["lobe0 100", "lobe4 7", "strange99 5"])
        np.testing.assert_allclose(router._regression.scores(asked)[0], reference.predict(asked), atol=1e-4)

    @pytest.mark.parametrize("kernel", [lambda c: np.exp(4 * (c - 1)), lambda c: c + 1])
    def test_scores_left_out_are_those_of_a_fit_without_the_row(self, kernel: Any) -> None:
        rows = regression.rows_of(context(3), ["lobe0", "lobe1", "lobe2"])
        gram = kernel(rows.vectors @ rows.vectors.T).astype(np.float32)
        weights, left_out = regression._solved(gram.copy(), rows.labels, 0.1)
        whole = gram.astype(np.float64) + 0.1 * np.eye(len(gram))
        np.testing.assert_allclose(weights, np.linalg.solve(whole, rows.labels), atol=2e-3)
        for i in (0, 30, len(gram) - 1):
            others = np.delete(np.arange(len(gram)), i)
            without = np.linalg.solve(whole[np.ix_(others, others)], rows.labels[others])
            np.testing.assert_allclose(left_out[i], gram[i, others] @ without, atol=2e-3)

    def test_the_floor_turns_away_as_many_as_were_asked_for(self) -> None:
        train, owner = overlapping(6, 1500, 1)
        test, _ = overlapping(6, 6000, 2)
        fitted = regression.Regression(
            regression.Rows(train, np.eye(7, dtype=np.float32)[owner]), lambda c: np.exp(4 * (c - 1)), 0.1, 0.03
        )
        _, values, _ = fitted.scores(test)
        assert 0.015 < (values < fitted.calibration.floor).mean() < 0.05

    def test_a_prompt_of_two_lobes_belongs_to_both(self) -> None:
        plain = context(3)
        both = ["lobe0 1", "lobe0 2"]
        taught = replace(
            plain.rows["lobe1"],
            train=np.concatenate([plain.rows["lobe1"].train, embed(both)]),
            train_prompts=[*plain.rows["lobe1"].train_prompts, *both],
        )
        rows = regression.rows_of(replace(plain, rows={**plain.rows, "lobe1": taught}), plain.lobes)
        assert len(rows.labels) == 3 * 28 + 30 and np.allclose(rows.labels.sum(1), 1)
        assert (rows.labels[:, 0] == 0.5).sum() == (rows.labels[:, 1] == 0.5).sum() == 2

    def test_of_very_many_lobes_prototypes_stand_for_rows(self) -> None:
        plain = context(4)
        rows = regression.rows_of(plain, plain.lobes, most=8)
        assert len(rows.labels) == 4 + 15 and rows.known.sum() == 4


class TestHybrid:
    def test_what_is_clear_never_reaches_the_language_model(self) -> None:
        asked: list[str] = []

        def counting(texts: Sequence[str], lobes: Sequence[str]) -> np.ndarray:
            asked.extend(texts)
            return nll(texts, lobes)

        plain = context(4)
        router = ROUTERS["hybrid"](BankContext(plain.lobes, plain.rows, embed, counting, plain.generic), None)
        learn_now(router)
        assert not asked  # it calibrates without it
        stages = [router.route(f"lobe{i % 4} {i}").stage for i in range(600, 640)]
        assert stages.count("embedding") > stages.count("logprob")
        assert len(asked) == stages.count("logprob")

    @pytest.mark.parametrize(("gain", "fits"), [(0.9, True), (-0.5, False)])
    def test_the_language_model_settles_whether_any_lobe_fits(self, gain: float, fits: bool) -> None:
        """Prompts that lie between a lobe's rows and nowhere."""
        reads = lambda texts, lobes: np.array([[*([3.0 - gain] * len(lobes)), 3.0] for _ in texts], np.float32)  # noqa: E731
        router = ROUTERS["hybrid"](replace(context(4), nll=reads), None)
        learn_now(router)
        decisions = [router.route(f"lobe{i % 4} {i}") for i in range(600, 1200)]
        doubtful = [d for d in decisions if d.stage == "logprob"]
        assert 10 < len(doubtful) < 150
        assert np.mean([d.abstained != fits for d in doubtful]) > 0.9
        assert all(d.evidence["gains"][next(iter(d.evidence["gains"]))] == pytest.approx(gain) for d in doubtful)

    def test_a_blend_is_shared_by_its_scores(self) -> None:
        router = fitted("hybrid", 8)
        assert isinstance(router, HybridRouter) and router._regression is not None
        own = router.context
        middle = vector_of("lobe0 500") + vector_of("lobe1 500")
        router.context = replace(own, embed=lambda texts: (middle / np.linalg.norm(middle))[None])
        # made-up topics are further apart than any two things that a prompt can ask for
        loose = replace(router._regression.calibration, floor=0.0, low=0.0, high=0.0)
        strict, router._regression.calibration = router._regression.calibration, loose
        decision = router.route("anything")
        router.context, router._regression.calibration = own, strict
        assert set(decision.weights) == {"lobe0", "lobe1"} and min(decision.weights.values()) > 0.3
        scores = {name: max(score, 0.0) for name, score in decision.scores.items()}
        first, second = decision.weights.values()
        assert second / first == pytest.approx(sorted(scores.values())[-2] / max(scores.values()))
        assert decision.chosen == next(iter(decision.weights)) and "lobe0" in decision.reason and "lobe1" in decision.reason
        assert router.route("lobe3 700").weights == {"lobe3": 1.0}

    def test_an_explicit_threshold_is_honoured(self) -> None:
        router = ROUTERS["hybrid"](context(3), 0.95)
        assert router.route("lobe1 3").stage == "logprob"
        assert router.route("lobe1 3").chosen == "lobe1"
        router = ROUTERS["hybrid"](context(3), 0.1)
        decision = router.route("lobe1 3")
        assert (decision.stage, decision.chosen, decision.threshold) == ("embedding", "lobe1", 0.1)
        assert decision.scores["lobe1"] >= 0.1 and "0.10 needed" in decision.reason

    def test_lobes_without_rows_can_win_by_logprob(self) -> None:
        router = fitted("hybrid", 3, without_rows=1)
        decisions = [router.route(f"lobe2 {i}") for i in range(30)]
        assert np.mean([d.chosen == "lobe2" for d in decisions]) > 0.8
        assert {d.stage for d in decisions if d.chosen == "lobe2"} == {"logprob"}

    def test_only_lobes_without_rows(self) -> None:
        assert fitted("hybrid", 2, without_rows=2).route("lobe1 3").chosen == "lobe1"

    def test_a_prompt_without_tokens_does_not_break_stage_two(self) -> None:
        def nothing(texts: Sequence[str], lobes: Sequence[str]) -> np.ndarray:
            return np.full((len(texts), len(lobes) + 1), np.nan, np.float32)

        for without in (1, 3):
            plain = context(3, without_rows=without)
            router = ROUTERS["hybrid"](BankContext(plain.lobes, plain.rows, embed, nothing), None)
            assert router.route("alien 1").chosen in (None, *plain.lobes)

    def test_nothing_of_it_is_kept(self) -> None:
        assert fitted("hybrid", 3).state() == {}


SPOKEN = {
    "stars": ["Which star is the brightest?", "How does a telescope see a star?", "Why is the dark sky full of stars?"]
    * 4,
    "law": ["May a tenant end the lease?", "Is the contract of the tenant valid?", "Who signs the lease?"] * 4,
    "空": ["天気予報はどうですか", "明日の天気は晴れですか", "天気図の読み方"] * 4,
    "खाना": ["रोटी कैसे बनाते हैं?", "अच्छी रोटी का आटा", "रोटी और दाल"] * 4,
}


def nothing_but_words(prompts: dict[str, list[str]], generic: Sequence[str] = ()) -> KeywordRouter:
    def forbidden(*_: object) -> np.ndarray:
        raise AssertionError("the keyword router asked a model")

    none = np.zeros((0, 0), np.float32)
    rows = {name: RoutingRows(none, none, none, own) for name, own in prompts.items()}
    router = KeywordRouter(RoutingContext(list(prompts), rows, forbidden, forbidden, lambda: forbidden(), generic))
    learn_now(router)
    return router


class TestKeyword:
    def test_weights_equal_a_plain_computation(self) -> None:
        """Monroe, Colaresi and Quinn 2008, equations 15 to 22, a term at a time."""
        rng = np.random.default_rng(0)
        lobes = {name: [" ".join(f"{name}{i}" if rng.uniform() < 0.3 else f"word{i}" for i in rng.integers(0, 9, 5))
                        for _ in range(30)] for name in "ab"}  # fmt: skip
        generic = [" ".join(f"word{i}" for i in rng.integers(0, 9, 5)) for _ in range(30)]

        def uses(prompts: list[str], term: str) -> int:
            return sum(f" {term} " in f" {prompt} " for prompt in prompts)

        groups = [*lobes.values(), generic]
        vocabulary = set()
        for prompt in itertools.chain(*groups):
            words = prompt.split()
            vocabulary |= {*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))}
        n = [sum(uses(group, term) for term in vocabulary) for group in groups]
        strength = min(500, sum(n) / 4)
        expected = {}
        for term in vocabulary:
            y = [uses(group, term) for group in groups]
            prior = strength * sum(y) / sum(n)
            odds_own = (y[0] + prior) / (n[0] + strength - y[0] - prior)
            rest = y[1] + y[2] + 0.3
            odds_rest = (rest + prior) / (n[1] + n[2] + strength - rest - prior)
            delta = math.log(odds_own) - math.log(odds_rest)
            z = delta / math.sqrt(1 / (y[0] + prior) + 1 / (rest + prior))
            if (y[0] >= 3 or sum(y[1:]) == 0) and z >= 0.5 and delta >= 1:
                expected[term] = (z, delta)
        best = sorted(expected, key=lambda term: -expected[term][0])
        found = distinctive_terms(lobes, generic, most=1000)["a"]
        assert len(found) > 5 and found == pytest.approx({t: expected[t][1] for t in best}, abs=1e-3)
        assert sorted(found) == sorted(best)
        kept = list(distinctive_terms(lobes, generic, most=5)["a"])
        assert [expected[t][0] for t in kept] == pytest.approx([expected[t][0] for t in best[:5]])

    @pytest.mark.parametrize(
        ("prompt", "lobe", "spoken"),
        [
            ("A TELESCOPE, please!", "stars", "TELESCOPE"),
            ("¿tenant?", "law", "tenant"),
            ("今日の天気", "空", "天気"),
            ("मुझे रोटी चाहिए", "खाना", "रोटी"),
        ],
    )
    def test_any_script_is_read_and_its_words_are_found_in_place(self, prompt: str, lobe: str, spoken: str) -> None:
        decision = nothing_but_words(SPOKEN, ["What shall I cook?", "Is it cold?"] * 5).route(prompt)
        assert decision.chosen == lobe
        spans = {prompt[m["start"] : m["end"]]: m for m in decision.evidence["matches"]}
        assert spans[spoken]["lobe"] == lobe and spans[spoken]["term"] == spoken.casefold()
        assert sum(decision.evidence["shares"].values()) == pytest.approx(100)

    def test_a_term_counts_once_and_every_place_is_shown(self) -> None:
        router = nothing_but_words(SPOKEN)
        router.set_terms("stars", {"Red  Giant": 4.0, "giant": 1.0})
        prompt = "giant, red giant; GIANT"
        decision = router.route(prompt)
        assert decision.scores["stars"] == pytest.approx(5 / math.sqrt(4))
        assert [(m["term"], prompt[m["start"] : m["end"]]) for m in decision.evidence["matches"]] == [
            ("giant", "giant"), ("red giant", "red giant"), ("giant", "giant"), ("giant", "GIANT")]  # fmt: skip

    def test_commas_part_neighbours(self) -> None:
        router = nothing_but_words(SPOKEN)
        router.set_terms("law", {"null and void": 3.0, "天気予報": 2.0})
        assert router.route("null, and void").chosen is None
        assert router.route("it is NULL AND VOID").chosen == "law"
        assert router.scores(["天気予報"])[0, router.names.index("law")] == pytest.approx(1.0)

    def test_nothing_distinctive_goes_to_the_base(self) -> None:
        for generic in ([], ["What shall I cook?", "Is it cold?"] * 5):
            decision = nothing_but_words(SPOKEN, generic).route("zzz qqq 🙂")
            assert decision.abstained and decision.evidence["matches"] == [] and not decision.certain

    def test_edited_terms_outlive_state_and_refit(self) -> None:
        router = nothing_but_words(SPOKEN)
        router.set_terms("law", {"Straße": 7.0, "lease": -2.0})
        assert router.edited == {"law"} and router.terms()["law"] == {"strasse": 7.0, "lease": -2.0}
        state = json.loads(json.dumps(router.state()))
        restored, refitted = (KeywordRouter(router.context) for _ in range(2))
        restored.adapt(State(state))
        refitted.adapt(State(state, exact=False))
        for other in (restored, refitted):
            learn_now(other)
            assert other.edited == {"law"} and other.terms() == router.terms()
            assert other.route("Welche STRASSE?").chosen == "law"
        restored.set_terms("law", None)
        learn_now(restored)
        assert not restored.edited and "tenant" in restored.terms()["law"]

    def test_refits_drop_edits_of_lobes_that_went(self) -> None:
        router = nothing_but_words(SPOKEN)
        router.set_terms("law", {"x": 1.0})
        other = nothing_but_words({"stars": SPOKEN["stars"]}, ["Good morning!"])
        other.adapt(State(router.state(), exact=False))
        assert set(other.terms()) == {"stars"} and not other.edited
        other.adapt(State({"coefficients": [1, 2]}, exact=False))  # another router's state

    def test_a_lobe_without_rows_can_be_given_words(self) -> None:
        router = fitted("keyword", 3, without_rows=1)
        assert router.route("lobe2 5").chosen is None and router.route("lobe1 5").probabilities["lobe2"] == 0
        router.set_terms("lobe2", {"lobe2": 5.0})
        assert router.route("lobe2 5").chosen == "lobe2"

    @pytest.mark.parametrize(
        ("lobe", "terms", "match"),
        [
            ("z", {"a": 1.0}, "no lobe called 'z'"),
            ("law", {"a": math.inf}, "finite"),
            ("law", {"?!": 1.0}, "no letter"),
        ],
    )
    def test_refusals(self, lobe: str, terms: dict[str, float], match: str) -> None:
        with pytest.raises(RoutingError, match=match):
            nothing_but_words(SPOKEN).set_terms(lobe, terms)

    @pytest.mark.parametrize(
        ("text", "units"),
        [
            ("Solve x² + 5x = 0", ["solve", "x", "²", "+", "5", "x", "=", "0"]),
            ("a - b, 5−3, well-known - or not", ["a", "−", "b", "5", "−", "3", "well", "known", "or", "not"]),
            ("√144 ∫ 2x dx 25%", ["√", "144", "∫", "2", "x", "dx", "25", "%"]),
            ("1/x d/dx and/or", ["1", "/", "x", "d", "/", "dx", "and", "or"]),
            ("print(x[::-1]) == {}", ["print", "()", "x", "[]", "::", "1", "==", "{}"]),
            ("Hello, “you” (there): it's 2024-05-31!", ["hello", "you", "there", "it", "s", "2024-05-31"]),
            ("e^x log₁₀(9)", ["e", "^", "x", "log", "₁₀", "()", "9"]),
        ],
    )
    def test_notation_is_read_and_punctuation_is_not(self, text: str, units: list[str]) -> None:
        assert [unit.text for unit in units_of(text)] == units

    def test_a_person_can_write_signs_and_they_are_marked_in_place(self) -> None:
        router = nothing_but_words(SPOKEN)
        router.set_terms("stars", {"=": 2.0, "x²": 3.0, "print(": 1.0, "-1": 1.0})
        assert router.terms()["stars"] == {"x²": 3.0, "=": 2.0, "print()": 1.0, "1": 1.0}
        router.set_terms("stars", router.terms()["stars"])
        prompt = "print(2x²=8)"
        matches = router.route(prompt).evidence["matches"]
        assert [(m["term"], prompt[m["start"] : m["end"]]) for m in matches] == [
            ("print()", "print("), ("x²", "x²"), ("=", "=")]  # fmt: skip
        page = highlighted(prompt, matches, {"stars": "#123456"})
        assert page.count("<mark") == 3 and ">x²</mark>" in page and ">=</mark>" in page

    def test_a_rows_words_count_for_both_lobes_that_have_it(self) -> None:
        both = [f"code for the sum {i}" for i in range(12)]
        lobes = {"maths": both + [f"angle {i}" for i in range(12)], "python": both + [f"loop {i}" for i in range(12)]}
        terms = distinctive_terms(lobes, [f"garden {i}" for i in range(40)])
        assert {"code", "sum"} <= terms["maths"].keys() & terms["python"].keys()
        assert "the sum" not in terms["maths"] and "7" not in terms["maths"]

    def test_words_that_few_rows_share_with_others_are_no_terms(self) -> None:
        own = [f"verdict {i}" for i in range(80)] + ["he was hit by ice"] * 4
        terms = distinctive_terms({"law": own, "other": ["it was hit"] + ["apple pie"] * 80})
        assert "verdict" in terms["law"] and "ice" in terms["law"] and "hit" not in terms["law"]

    def test_function_words_come_without_spacy(self) -> None:
        assert {"who", "is", "it", "a", "him", "please", "give", "tell"} <= function_words()
        assert not {"python", "code", "solve", "law", "x", "doctor"} & function_words()

    def test_words_of_other_lobes_are_refused(self) -> None:
        with pytest.raises(RoutingError, match="other lobes"):
            KeywordRouter(context(3)).adapt(State(fitted("keyword", 2).state()))


SAMPLES = ("legal", "maths", "medical", "python", "sentiment", "summarisation")


def inputs(path: Path) -> list[str]:
    return [json.loads(line)["input"] for line in path.read_text("utf-8").splitlines() if line.strip()]


@cache
def sample_prompts() -> tuple[dict[str, list[str]], list[str]]:
    root = Path(__file__).parents[2]
    lobes = {name: inputs(root / "sample_data" / f"{name}.jsonl") for name in SAMPLES}
    return lobes, inputs(root / "assets" / "generic_prompts.jsonl")


@cache
def on_samples() -> KeywordRouter:
    return nothing_but_words(*sample_prompts())


class TestKeywordOnSamples:
    def test_no_function_words_are_learned(self) -> None:
        for terms in on_samples().terms().values():
            assert not {"who is", "it a", "hit", "him", "is it", "of a", "why", "this", "was"} & terms.keys()
            for term in terms:
                units = units_of(term)
                assert any(u.sign for u in units) or not function_words() & {u.text for u in units}

    def test_learned_terms_can_be_given_back(self) -> None:
        for terms in on_samples().terms().values():
            assert all(as_kept(term) == term for term in terms)

    def test_symbols_speak_for_maths(self) -> None:
        decision = on_samples().route("Solve x² + 5x + 6 = 0")
        assert decision.chosen == "maths" and decision.confidence >= 0.8 and decision.probabilities["maths"] >= 0.8

    def test_code_for_a_sum_is_of_two_lobes(self) -> None:
        decision = on_samples().route("Write Python code to solve quadratic equations")
        assert list(decision.weights) == ["python", "maths"] and decision.weights["maths"] >= 0.25
        shares = decision.evidence["shares"]
        assert decision.weights["maths"] == pytest.approx(shares["maths"] / (shares["python"] + shares["maths"]), abs=1e-4)

    def test_held_out_rows_are_found_and_confidence_is_calibrated(self) -> None:
        lobes, generic = sample_prompts()
        held = {prompt for rows in (*lobes.values(), generic) for prompt in rows[4::5]}
        router = nothing_but_words(
            {name: [p for p in rows if p not in held] for name, rows in lobes.items()},
            [p for p in generic if p not in held],
        )
        right, confidence, of_lobe = [], [], []
        for prompt in sorted(held):
            owners = {name for name, rows in lobes.items() if prompt in rows}
            decision = router.route(prompt)
            right.append(decision.chosen in (owners or {None}))
            confidence.append(decision.confidence)
            of_lobe.append(bool(owners))
        assert np.mean(np.array(right)[of_lobe]) > 0.82
        assert calibration_error(np.array(confidence), np.array(right)) < 0.08


def overlapping(classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in clusters that overlap, and their clusters."""
    centres = np.random.default_rng(0).normal(size=(classes, DIMENSIONS))
    rng = np.random.default_rng(seed)
    owner = np.arange(count) % classes
    vectors = centres[owner] + 1.6 * rng.normal(size=(count, DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), owner


def gate_on(vectors: np.ndarray, owner: np.ndarray, count: int) -> GateRouter:
    """A gate over lobes "0", "1", ... that own these rows; its prompts are places in `vectors`."""
    none = np.zeros((0, DIMENSIONS), np.float32)
    rows = {str(i): RoutingRows(none, vectors[owner == i], none) for i in range(count)}
    router = GateRouter(RoutingContext([*rows], rows, lambda texts: vectors[[int(text) for text in texts]], nll))
    learn_now(router)
    return router


class TestGate:
    def test_as_good_as_ridge_classification_and_calibrated(self) -> None:
        from sklearn.linear_model import RidgeClassifier

        train, owner = overlapping(6, 1500, 1)
        test, true = overlapping(6, 6000, 2)
        router = gate_on(train, owner, 6)
        reference = RidgeClassifier(alpha=1.0).fit(train, owner).score(test, true)
        probabilities = np.stack([router._calibration.probabilities(row) for row in router.scores(test)])
        right = probabilities.argmax(1) == true
        assert 0.6 < reference < 0.97
        assert right.mean() >= reference - 0.01
        assert calibration_error(probabilities.max(1), right) <= 0.03

    def test_a_decision_is_the_softmax_of_its_state(self) -> None:
        router = fitted("gate", 4)
        state, vector = router.state(), vector_of("lobe2 91").astype(np.float64)
        z = [sum(w * v for w, v in zip(row, vector, strict=True)) for row in state["weight"]]
        powers = [math.exp((a + b) / state["calibration"]["temperature"]) for a, b in zip(z, state["bias"], strict=True)][:-1]
        decision = router.route("lobe2 91")
        none = decision.evidence["none"]
        among = [(1 - none) * power / sum(powers) for power in powers]
        assert list(decision.probabilities.values()) == pytest.approx(among, abs=1e-4)
        assert decision.confidence == pytest.approx(max(among), abs=1e-4)

    def test_what_no_lobe_knows_goes_to_the_base(self) -> None:
        router = fitted("gate", 6)
        decisions = [router.route(f"alien{i} {i}") for i in range(100)]
        assert np.mean([d.abstained for d in decisions]) >= 0.8
        for decision in decisions:
            assert not decision.abstained or decision.confidence == decision.evidence["none"] > 0.5

    def test_soft_weights_are_the_shares_of_the_scores(self) -> None:
        train, owner = overlapping(6, 300, 1)
        router = gate_on(train, owner, 6)
        positive = {name: score for name, score in router.route("7").scores.items() if score > 0}
        shared = router.route("7", Mixing("soft")).weights
        expected = {name: score / sum(positive.values()) for name, score in positive.items()}
        assert shared == pytest.approx({name: w for name, w in expected.items() if w >= 0.01}, abs=0.05)
        assert sum(shared.values()) == pytest.approx(1)

    def test_a_fit_reports_what_leaving_out_says(self) -> None:
        router, stop = GateRouter(context(3)), threading.Event()
        assert not router.is_fitted
        run = router.learn({}, stop)
        records: list[Progress] = []
        with pytest.raises(StopIteration) as end:
            while True:
                records.append(next(run))
        assert router.is_fitted and {"accuracy", "ece"} <= set(records[-1].values)
        assert {"accuracy", "ece", "rows", "seconds"} <= set(end.value.value.report)
        with pytest.raises(ConfigError, match="embedding"):
            next(router.learn({"embedding": "x"}, stop))
        with pytest.raises(ConfigError, match="ridge"):
            next(router.learn({"ridge": 0}, stop))
        with pytest.raises(ConfigError, match="settings"):
            next(router.learn({"nonsense": 1}, stop))

    def test_it_can_read_the_base_models_hidden_states(self) -> None:
        seen: list[str] = []

        def hidden(texts: Sequence[str]) -> np.ndarray:
            seen.extend(texts)
            return embed(texts)[:, ::-1]

        router = GateRouter(replace(context(3), hidden=hidden))
        list(router.learn({"embedding": "base"}, threading.Event()))
        assert router.route("lobe1 77").chosen == "lobe1" and "lobe1 77" in seen
        other = GateRouter(context(3))
        other.adapt(State(through_files(router.state())))
        with pytest.raises(RoutingError, match="no base model"):
            other.route("lobe1 77")

    def test_a_fit_of_other_lobes_serves_those_it_knows(self) -> None:
        state = through_files(fitted("gate", 4).state())
        fewer, more = GateRouter(context(3)), GateRouter(context(5))
        fewer.adapt(State(state))
        more.adapt(State(state))
        assert set(fewer.route("lobe3 5").probabilities) == {"lobe0", "lobe1", "lobe2"}
        decision = more.route("lobe1 5")
        assert decision.chosen == "lobe1" and decision.probabilities["lobe4"] == 0 and "lobe4" in decision.reason

    def test_the_same_rows_give_the_same_gate_whatever_was_drawn_before(self) -> None:
        import torch

        first = fitted("gate", 3).state()
        torch.manual_seed(5)
        before = torch.get_rng_state()
        again = fitted("gate", 3).state()
        assert all(np.array_equal(again[key], value) for key, value in first.items())
        assert torch.equal(torch.get_rng_state(), before)

    def test_lobes_without_rows_get_nothing_and_the_reason_says_so(self) -> None:
        router = fitted("gate", 3, without_rows=1)
        for prompt in ("lobe0 44", "alien 3"):
            decision = router.route(prompt)
            assert decision.probabilities["lobe2"] == 0 and "lobe2 had no rows" in decision.reason
        assert not router.route("alien 3").certain
        assert fitted("gate", 2, without_rows=2).route("lobe1 3").abstained

    def test_a_lobe_with_one_row(self) -> None:
        rows = {"small": rows_of("small", train=1, validation=0), "large": rows_of("large", train=200)}
        router = GateRouter(RoutingContext([*rows], rows, embed, nll))
        learn_now(router)
        small, large = router.scores(embed(["small 7", "large 700"]))
        assert small[0] > small[1] and large[1] > large[0]
        assert router.route("large 700").chosen == "large"

    def test_without_generic_prompts_the_floor_is_that_of_the_rows(self) -> None:
        for count in (1, 3):
            plain = context(count)
            router = GateRouter(RoutingContext(plain.lobes, plain.rows, embed, nll))
            learn_now(router)
            own = [router.route(f"lobe0 {i}") for i in range(100, 200)]
            assert np.mean([d.chosen == "lobe0" for d in own]) > 0.75
            assert router.route("alien 1").abstained

    def test_without_a_fit_the_base_answers_and_says_so(self) -> None:
        router = GateRouter(context(2))
        decision = router.route("lobe0 1")
        assert decision.abstained and "fit it under Routers" in decision.reason and not router.is_fitted
        router.adapt(State(through_files(router.state())))
        assert not router.is_fitted

    def test_weights_that_do_not_fit_are_refused(self) -> None:
        state = fitted("gate", 2).state()
        with pytest.raises(RoutingError, match="do not fit"):
            GateRouter(context(2)).adapt(State({**state, "bias": np.zeros(1)}))


class TestChain:
    def test_the_first_sure_stage_decides_and_each_that_was_asked_is_shown(self) -> None:
        router = fitted("chain", 4)
        router.set_stages([("keyword", 1.0), ("gate", 0.0), ("logprob", 0.0)])  # type: ignore[attr-defined]
        decision = router.route("lobe2 44")
        assert (decision.router, decision.stage, decision.chosen) == ("chain", "gate", "lobe2")
        assert [(s["router"], s["decided"]) for s in decision.evidence["stages"]] == [("keyword", False), ("gate", True)]

    def test_the_base_answers_where_no_stage_is_sure(self) -> None:
        router = fitted("chain", 4)
        router.set_stages([("keyword", 1.0)])  # type: ignore[attr-defined]
        decision = router.route("lobe2 44")
        assert decision.abstained and "No stage" in decision.reason

    def test_the_order_survives(self) -> None:
        router = fitted("chain", 3)
        stages = [("logprob", 0.3), ("keyword", 0.5)]
        router.set_stages(stages)  # type: ignore[attr-defined]
        restored, refitted = ROUTERS["chain"](context(3), None), ROUTERS["chain"](context(4), None)
        restored.adapt(State(through_files(router.state())))
        refitted.adapt(State(through_files(router.state()), exact=False))
        assert restored.stages == refitted.stages == stages  # type: ignore[attr-defined]
        assert refitted.route("lobe3 7").chosen == "lobe3"

    @pytest.mark.parametrize(
        ("stages", "match"),
        [
            ([], "at least one"),
            (["gate"], "must be a router's name"),
            ([("chain", 0.5)], "no router 'chain'"),
            ([("gate", 0.5), ("gate", 0.1)], "already"),
            ([("gate", 1.5)], "from 0 to 1"),
            ([("gate", "high")], "from 0 to 1"),
        ],
    )
    def test_refusals(self, stages: list[Any], match: str) -> None:
        router = fitted("chain", 2)
        before = router.stages  # type: ignore[attr-defined]
        with pytest.raises(RoutingError, match=match):
            router.set_stages(stages)  # type: ignore[attr-defined]
        assert router.stages == before  # type: ignore[attr-defined]


class TestManual:
    def test_weights(self) -> None:
        decision = manual_decision({"a": 0.3, "b": 0.7, "c": 0.0}, ["a", "b", "c"])
        assert decision.chosen == "b" and decision.weights == {"a": 0.3, "b": 0.7}

    def test_base(self) -> None:
        assert manual_decision({}, ["a"]).chosen is None

    @pytest.mark.parametrize(
        ("weights", "match"), [({"z": 1.0}, "no lobe called 'z'"), ({"a": float("nan")}, "finite")]
    )
    def test_refusals(self, weights: dict[str, float], match: str) -> None:
        with pytest.raises(RoutingError, match=match):
            manual_decision(weights, ["a"])


def test_softmax_equals_scipy() -> None:
    from scipy.special import softmax as reference

    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32) * 30
    np.testing.assert_allclose(softmax(values), reference(values, axis=-1), atol=1e-6)


def test_temperature_recovers_the_one_that_made_the_labels() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(4000, 5)).astype(np.float32) * 0.2
    owner = np.array([rng.choice(5, p=row / row.sum()) for row in softmax(scores / 0.1).astype(np.float64)])
    assert fit_temperature(scores, owner) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.1, 0.5, 3.0])
def test_no_temperature_of_the_grid_is_likelier(spread: float) -> None:
    rng = np.random.default_rng(4)
    owner = rng.integers(7, size=300)
    scores = (rng.normal(size=(300, 7)) * spread + 0.3 * np.eye(7)[owner]).astype(np.float32)
    grid = np.geomspace(0.02, 1.0, 60)
    losses = [-log_softmax(scores.astype(np.float64) / t, axis=1)[np.arange(300), owner].mean() for t in grid]
    found = fit_temperature(scores, owner)
    assert found in grid and losses[grid.tolist().index(found)] == pytest.approx(min(losses), abs=1e-6)


def test_calibration_error_against_a_plain_computation() -> None:
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0, 1, 500)
    right = rng.uniform(0, 1, 500) < confidence**2
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert calibration_error(confidence, right) == pytest.approx(expected, abs=1e-9)
