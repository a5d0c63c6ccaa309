"""The keyword router: its units, its terms, and what it makes of the sample data."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from made_up import context, fitted

from multilobe_ui.errors import RoutingError
from multilobe_ui.routers import RoutingContext, RoutingRows
from multilobe_ui.routers.keyword.router import KeywordRouter
from multilobe_ui.routers.keyword.terms import distinctive_terms
from multilobe_ui.routers.keyword.units import as_kept, function_words, units_of
from multilobe_ui.routing.calibration import calibration_error
from multilobe_ui.routing.router import State, learn_now
from multilobe_ui.ui.chat.evidence import highlighted

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
    root = Path(__file__).parents[3]
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
