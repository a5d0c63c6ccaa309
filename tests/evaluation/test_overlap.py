"""New data among the lobes: against brute force and scikit-learn, and on duplicates made by hand."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors
from test_model import rows as topic_rows
from test_studio import finish, make_studio, train  # noqa: F401

from multilobe_ui.data import dataset
from multilobe_ui.data.examples import Example
from multilobe_ui.errors import ConfigError, DataError
from multilobe_ui.evaluation import overlap as module
from multilobe_ui.evaluation.near_words import WordIndex, jaccard, words_of
from multilobe_ui.evaluation.overlap import measure, overlap
from multilobe_ui.lobes.rows import RoutingRows

WORDS = [f"w{i}" for i in range(400)]


class WordEmbedder:
    """Counts words, each in a dimension of its own; what is no "w7" is left out."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), len(WORDS)), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().split():
                vector[int(word[1:]) if word[1:].isdigit() else 0] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


NONE = np.zeros((0, 8), np.float32)


def row(prompt: str, answer: str = "a", *before: str, system: str = "") -> Example:
    context = [{"role": "system", "content": system}] if system else []
    for earlier in before:
        context += [{"role": "user", "content": earlier}, {"role": "assistant", "content": "yes"}]
    return Example((*context, {"role": "user", "content": prompt}), answer)


def sentences(count: int, seed: int = 0, words: list[str] = WORDS, length: int = 10) -> list[str]:
    dice = random.Random(seed)
    return [" ".join(dice.sample(words, length)) for _ in range(count)]


def lobe(train: list[str], validation: list[str] = [], embed=WordEmbedder(), texts: bool = True) -> RoutingRows:  # noqa: B006, B008
    vectors = embed(train)
    held = embed(validation) if validation else vectors[:0]
    return RoutingRows(vectors[:1], vectors, held, train if texts else (), validation if texts else ())


class Points:
    """An embedder of texts that name a point, for distributions made to measure."""

    def __init__(self, points: dict[str, np.ndarray]) -> None:
        self.points = points

    def __call__(self, texts):
        return np.stack([self.points[text] for text in texts]).astype(np.float32)


def blob(count: int, centre: int, seed: int, spread: float = 0.35) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, 32)) * spread
    noise[:, centre] += 1.5
    return noise / np.linalg.norm(noise, axis=1, keepdims=True)


def rows_of(vectors: np.ndarray) -> RoutingRows:
    return RoutingRows(vectors[:1], vectors.astype(np.float32), vectors[:0].astype(np.float32))


# ---- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0.6, 0.9, 1.0])
def test_the_index_finds_what_comparing_all_with_all_finds(least):
    dice = random.Random(1)
    texts = sentences(60, words=WORDS[:60], length=8)
    for text in list(texts):  # neighbours at every distance
        words = text.split()
        for swaps in range(4):
            texts.append(" ".join([*words[swaps:], *dice.sample(WORDS, swaps)]))
    sets = [words_of(text) for text in texts]
    index = WordIndex(sets, least)
    for i, words in enumerate(sets):
        wanted = {j: jaccard(words, other) for j, other in enumerate(sets) if jaccard(words, other) >= least}
        assert dict(index.near(words)) == wanted and i in wanted
    strange = words_of("nothing of that kind")
    assert list(index.near(strange)) == []


def test_words_and_jaccard_by_hand():
    assert words_of("What is a Lobe? a LOBE!") == {"what", "is", "a", "lobe"}
    assert jaccard({"a", "b", "c"}, {"b", "c", "d"}) == 0.5
    assert words_of(" ?! ") == {"?!"}  # no word at all is still something that can be the same
    assert words_of("GRÖSSER größer") == {"grösser"} and words_of("中文字 Привет") == {"中文字", "привет"}


# ---- beside a lobe -----------------------------------------------------------------------------------------------------


def test_nearest_rows_and_threshold_are_those_of_scikit_learn():
    embed, new, known = WordEmbedder(), sentences(40, 1, WORDS[:25]), sentences(30, 2, WORDS[:25])
    report = overlap([row(text) for text in new], {"a": lobe(known[:20], known[20:])}, embed)
    (found,) = report.lobes
    near = NearestNeighbors(n_neighbors=1, metric="cosine").fit(embed(known))
    distance, place = near.kneighbors(embed(new))
    expected = sorted(zip(1 - distance[:, 0], new, [known[i] for i in place[:, 0]], strict=True), reverse=True)[:5]
    assert [pair.cosine for pair in found.nearest] == pytest.approx([cosine for cosine, *_ in expected], abs=1e-4)
    embedded = {text: embed([text])[0] for text in (*new, *known)}
    for pair in found.nearest:
        assert embedded[pair.row] @ embedded[pair.other] == pytest.approx(pair.cosine, abs=1e-4)
        assert pair.words == pytest.approx(jaccard(words_of(pair.row), words_of(pair.other)), abs=1e-4)
    own = NearestNeighbors(n_neighbors=2, metric="cosine").fit(embed(known)).kneighbors(embed(known))[0][:, 1]
    assert found.threshold == pytest.approx(np.quantile(1 - own, 0.25), abs=1e-5) and found.threshold > module.FLOOR
    assert found.own == pytest.approx(float((1 - own >= found.threshold - 1e-6).mean()))
    share = float((1 - distance[:, 0] >= found.threshold - 1e-6).mean())
    assert found.overlap == pytest.approx(min(1.0, share / found.own))


@pytest.mark.parametrize(("like", "expected"), [(0, 0.0), (100, 0.5), (200, 1.0)])
def test_overlap_estimates_the_share_of_data_of_the_lobe_s_own_kind(like, expected):
    own, new = blob(250, 0, 1), np.concatenate([blob(like, 0, 2), blob(200 - like, 9, 3)])
    points = {f"p{i}": point for i, point in enumerate(new)}
    report = overlap([row(text) for text in points], {"a": rows_of(own)}, Points(points), validation_fraction=0)
    assert report.lobes[0].overlap == pytest.approx(expected, abs=0.08)


def test_a_lobe_s_own_rows_lie_inside_it_and_others_do_not():
    a, b = sentences(60, 1, WORDS[:40]), sentences(60, 2, WORDS[200:240])
    report = overlap([row(text) for text in a], {"a": lobe(a), "b": lobe(b)}, WordEmbedder())
    assert [found.overlap for found in report.lobes] == [1.0, 0.0]
    assert (report.lobes[0].exact, report.lobes[0].near) == (60, 0)
    assert (report.lobes[1].exact, report.lobes[1].near, report.lobes[1].duplicates) == (0, 0, ())


def test_duplicates_made_by_hand_are_all_found():
    known = sentences(30, 1, WORDS[:200])
    other = sentences(30, 2, WORDS[200:])
    exact = [f"  {known[0].upper()}\n", known[1].replace(" ", "  "), known[25]]
    near = [f"{known[2]} w399", " ".join(reversed(known[3].split())), f"{known[26]} w398"]
    new = [*other, *exact, *near]
    report = overlap([row(text) for text in new], {"a": lobe(known[:20], known[20:])}, WordEmbedder())
    (found,) = report.lobes
    assert (found.exact, found.near, found.held_out) == (3, 3, 2)
    told = {pair.row: (pair.other, pair.words) for pair in found.duplicates}
    assert [told[one] for one in exact] == [(known[0], 1), (known[1], 1), (known[25], 1)]
    assert [told[one] for one in near] == [(known[2], 0.9091), (known[3], 1), (known[26], 0.9091)]
    assert {pair.row for pair in found.duplicates[:3]} == set(exact)


def test_clearly_different_data_has_nothing_to_report():
    report = overlap(
        [row(text) for text in sentences(200, 5, WORDS[:200])], {"a": lobe(sentences(50, 6, WORDS[200:]))}, WordEmbedder(),
        validation_fraction=0.1,
    )
    assert report.lobes[0].overlap == 0 and not report.lobes[0].duplicates
    assert (report.twins, report.leaking, report.pairs, report.leaks) == (0, 0, (), ())
    assert report.held_out_rows == 20 and report.training_rows == 180


def test_a_lobe_without_texts_is_compared_by_meaning():
    known = sentences(20, 1)
    report = overlap([row(known[0]), row("w1 w2")], {"old": lobe(known, texts=False)}, WordEmbedder())
    (found,) = report.lobes
    assert (found.exact, found.near) == (0, 1) and found.nearest[0].other == "" and found.nearest[0].cosine == 1.0


def test_no_lobes_one_row_and_lobes_without_rows():
    embed = WordEmbedder()
    assert overlap([row("a b c")], {}, embed).lobes == ()
    report = overlap([row("a b c")], {"empty": rows_of(NONE), "none": None, "one": lobe(["a b c"])}, embed)
    empty, none, one = report.lobes
    assert empty.overlap is None and none.overlap is None and (empty.rows, none.rows, one.rows) == (0, 0, 1)
    assert one.overlap == 1.0 and one.exact == 1 and one.threshold == module.NEAR_COSINE
    assert (report.training_rows, report.held_out_rows, report.leaking) == (1, 0, 0)
    nothing = overlap([], {"one": lobe(["a b c"])}, embed)
    assert nothing.lobes[0].overlap is None and nothing.rows == 0
    json.dumps([report.to_json(), nothing.to_json()], allow_nan=False)


def test_a_lobe_of_repeated_rows_does_not_ask_for_the_impossible():
    assert measure(WordEmbedder()(["w1 w2"] * 5)) == (module.NEAR_COSINE, 1.0)


def test_a_lobe_of_very_different_rows_does_not_swallow_everything():
    known, new = sentences(60, 1), sentences(60, 2)  # the nearest share two or three words of ten
    report = overlap([row(text) for text in new], {"a": lobe(known)}, WordEmbedder())
    assert report.lobes[0].threshold == module.FLOOR and report.lobes[0].own < 0.1 and report.lobes[0].overlap < 0.1


# ---- within the new data -----------------------------------------------------------------------------------------------


def test_leakage_is_what_a_naive_search_finds():
    dice = random.Random(4)
    texts = sentences(150, 3, WORDS[:300])
    for text in texts[:40]:  # near and not so near relatives
        words = text.split()
        dice.shuffle(words)
        texts.append(" ".join([*words[dice.randint(0, 4) :], "w399"]))
    examples = [row(text) for text in texts]
    report = overlap(examples, {}, WordEmbedder(), validation_fraction=0.3, seed=5)
    training, held_out = dataset.split(examples, 0.3, 5)
    vectors = {text: WordEmbedder()([text])[0] for text in texts}

    def near(a: str, b: str) -> bool:
        return bool(vectors[a] @ vectors[b] >= 0.95) or jaccard(words_of(a), words_of(b)) >= 0.9

    leaking = {held.prompt for held in held_out if any(near(held.prompt, other.prompt) for other in training)}
    assert 0 < len(leaking) < len(held_out) and report.leaking == len(leaking)
    assert {pair.row for pair in report.leaks} == leaking
    assert all(near(pair.row, pair.other) and pair.other in {t.prompt for t in training} for pair in report.leaks)
    assert report.twins == len({text for a, b in combinations(texts, 2) if near(a, b) for text in (a, b)})


def test_the_split_is_the_person_s(monkeypatch):
    texts = sentences(40, 3)
    examples = [row(text) for text in [*texts, *(f"{text} w399" for text in texts)]]
    reports = [overlap(examples, {}, WordEmbedder(), validation_fraction=f, seed=s) for f, s in ((0, 0), (0.1, 0), (0.5, 1))]
    assert [report.held_out_rows for report in reports] == [0, 8, 40]
    assert reports[0].leaking == 0 and 0 < reports[1].leaking <= 8 and reports[2].leaking <= 40
    with pytest.raises(ConfigError, match="validation_fraction"):
        overlap(examples, {}, WordEmbedder(), validation_fraction=0.9)


def test_rows_of_one_prompt_stay_together_and_leak_nothing():
    examples = [row(text, answer) for text in sentences(30, 1) for answer in "abc"]
    report = overlap(examples, {}, WordEmbedder(), validation_fraction=0.3)
    assert (report.rows, report.prompts, report.twins, report.leaking) == (90, 30, 0, 0)


def test_the_same_question_under_another_system_message_leaks():
    examples = [row(text, system=f"Be {kind}.") for text in sentences(30, 1) for kind in ("brief", "polite")]
    report = overlap(examples, {}, WordEmbedder(), validation_fraction=0.2)
    held = {held.prompt for held in dataset.split(examples, 0.2)[1]}
    assert 0 < report.leaking <= 12 and {pair.row for pair in report.leaks} <= held
    assert all(pair.row == pair.other for pair in report.leaks)


def test_conversations_that_end_alike_are_no_duplicates():
    examples = [row("and why?", "a", text) for text in sentences(40, 1)]
    report = overlap(examples, {"a": lobe(sentences(9, 2))}, WordEmbedder(), validation_fraction=0.3)
    assert (report.twins, report.leaking) == (0, 0)
    examples += [row("And why?", "b", text.upper()) for text in sentences(3, 1)]  # the same conversations again
    again = [row("and why?", "b", text + " w399") for text in sentences(3, 1)]
    assert overlap([*examples, *again], {}, WordEmbedder()).twins == 6


# ---- large files, and an early end -------------------------------------------------------------------------------------


def test_a_large_file_is_sampled_and_its_twins_are_found_all_the_same():
    texts = sentences(3000, 1)
    examples = [row(text) for text in [*texts, *(f"{text} w399" for text in texts[:50])]]
    asked: list[int] = []

    def embed(batch):
        asked.append(len(batch))
        return WordEmbedder()(batch)

    report = overlap(examples, {"a": lobe(texts[:100])}, embed, validation_fraction=0.1, most=200)
    assert sum(asked) == 200 and report.embedded == 200 and report.prompts == report.compared == 3050
    words = [words_of(one.prompt) for one in examples]
    wanted = {i for a in range(50) for i in (a, 3000 + a) if jaccard(words[a], words[3000 + a]) >= 0.9}
    assert report.twins >= len(wanted) > 40
    assert report.lobes[0].exact == 100
    held = {one.prompt for one in dataset.split(examples)[1]}
    assert len(held & set(report.kept.train_prompts)) == 50  # a quarter of the sample, or leakage could not be seen


def test_more_prompts_than_are_compared_are_thinned_out(monkeypatch):
    monkeypatch.setattr(module, "MOST_COMPARED", 100)
    report = overlap([row(text) for text in sentences(500, 1)], {}, WordEmbedder(), validation_fraction=0.1)
    assert (report.prompts, report.compared, report.embedded, report.held_out_rows) == (500, 100, 100, 50)


def test_it_can_be_stopped():
    stop = threading.Event()

    def embed(batch):
        stop.set()
        return WordEmbedder()(batch)

    texts, others = sentences(300, 1, WORDS[:200]), sentences(9, 2, WORDS[200:])
    report = overlap([row(text) for text in texts], {"a": lobe(others)}, embed, stop=stop)
    assert report.stopped and report.embedded == module.AT_ONCE and report.lobes[0].overlap == 0
    stopped = threading.Event()
    stopped.set()
    none = overlap([row("a b")], {"a": lobe(["a b"])}, WordEmbedder(), stop=stopped)
    assert none.embedded == 0 and none.lobes[0].overlap is None and none.kept is None


def test_the_report_is_json_and_long_prompts_are_cut():
    text = "w1 " * 500
    report = overlap([row(text), row(text + "w2")], {"a": lobe([text])}, WordEmbedder(), validation_fraction=0.5)
    told = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert "kept" not in told and len(told["lobes"][0]["nearest"][0]["row"]) == module.LONGEST
    assert set(told) == {
        "rows", "prompts", "compared", "embedded", "lobes", "twins", "pairs", "training_rows", "held_out_rows", "leaking",
        "leaks", "stopped", "truncated",
    }  # fmt: skip


# ---- in the studio -----------------------------------------------------------------------------------------------------


def test_a_file_among_the_lobes_of_a_studio(make_studio, tmp_path, monkeypatch):  # noqa: F811
    studio = make_studio()
    finish(studio, train(studio, tmp_path, "Animals"))
    path = tmp_path / "new.jsonl"
    known = [pair["input"] for pair in topic_rows("Animals")][:10]
    lines = [{"input": text.upper(), "output": "x"} for text in known]
    lines += [{"input": f"quarks {i} of the kind {i * 7}", "output": "x"} for i in range(10)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{bad\n", encoding="utf-8")
    report = studio.lab.overlap(path, None, 0.2, 3)
    (found,) = report.lobes
    assert (report.rows, found.lobe, found.exact, report.held_out_rows) == (20, "Animals", 10, 4)
    assert {pair.row for pair in found.duplicates} >= {text.upper() for text in known}
    assert 0.3 < found.overlap < 0.8
    placed = studio.lab.overlap_map(report, "new")
    assert set(placed.lobes) == {"Animals", "new"} and len(placed.lobes["new"]) == 20
    with pytest.raises(DataError, match="bad row"):
        studio.lab.overlap(path, skip_bad=False)
    mapped = tmp_path / "mapped.csv"
    mapped.write_text("Frage,Antwort\n" + "".join(f"{text},x\n" for text in known), encoding="utf-8")
    assert studio.lab.overlap(mapped, {"prompt": "Frage", "answer": "Antwort"}).lobes[0].exact == 10
    monkeypatch.setattr(module, "MOST_ROWS", 12)
    cut = studio.lab.overlap(path)
    assert (cut.rows, cut.truncated, cut.held_out_rows, cut.leaking) == (12, True, 0, 0)


@pytest.mark.builtin
def test_the_sample_data_lies_inside_its_own_demo_lobe_only(tmp_path):
    """With the real sentence encoder: rows that a lobe has not seen, beside the rows of six domains."""
    from multilobe_ui.assets import sample_files
    from multilobe_ui.routing.encoder import Embedder

    embed, lobes, new = Embedder(device="cpu"), {}, {}
    for name, path in sample_files().items():
        rows = dataset.load(path)[:240]
        vectors = embed([one.prompt for one in rows[::2]])
        lobes[name] = RoutingRows(vectors[:1], vectors, vectors[:0], [one.prompt for one in rows[::2]])
        new[name] = rows[1::2]
    for name, rows in new.items():
        shares = {found.lobe: found.overlap for found in overlap(rows, lobes, embed).lobes}
        assert shares.pop(name) > 0.7, name
        for other, share in shares.items():
            # Reviews are among the passages to summarise on purpose, so rows of sentiment lie near those (0.36 of them here;
            # the 72 rows that stand in both files come after the first 240).
            most = 0.45 if (name, other) == ("sentiment", "summarisation") else 0.15
            assert share < most, (name, other, share)
