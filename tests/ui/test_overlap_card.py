"""The card "Among your lobes": sentences and HTML as data, the handler as plain calls, wiring beside the Train tab."""

from __future__ import annotations

from types import SimpleNamespace

import gradio as gr
import pytest
from fake_lab import FakeLab, overlap_result
from fake_studio import FakeStudio

from multilobe_ui.errors import BackboneError, DataError
from multilobe_ui.ui.train.overlap import OverlapCard
from multilobe_ui.ui.train.overlap_card import MOST_BARS, new_name, overlap_card, overlap_figure, remarks, verdicts
from multilobe_ui.ui.train.tab import TrainTab

SKIP = gr.skip()
EVIL = "<img src=x onerror=alert(1)>"
COLOURS = {"medical": "#e5484d", "legal": "#c9880b"}


@pytest.fixture
def studio():
    studio = FakeStudio(3)
    FakeLab(studio)
    return studio


def source(studio, **more):
    path = studio.sample_files()["legal"]
    return {"path": str(path), "label": path.name, "rows": 282, "mapping": None, **more}


def look(studio, source, fraction=0.1, seed=0, seen=""):
    steps = list(OverlapCard(studio).look(source, fraction, seed, seen))
    return [SimpleNamespace(**dict(zip(("card", "fold", "map", "seen"), step, strict=True))) for step in steps]


def lobe(overlap=0.0, name="medical", **more):
    known = {"rows": 100, "threshold": 0.5, "own": 0.75, "exact": 0, "near": 0, "held_out": 0, "nearest": [], "duplicates": []}
    return {"lobe": name, "overlap": overlap, **known, **more}


def told(*lobes, **more):
    plain = {"leaking": 0, "leaks": [], "twins": 0, "pairs": []}
    return {**overlap_result([]), "lobes": list(lobes), **plain, **more}


# ---- sentences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "kind", "said"),
    [
        (0.62, "ask", "62 % of these rows lie inside medical: consider adding them to that lobe's data instead."),
        (0.3, "ask", "30 % of these rows lie inside medical: the router will have to choose between the two for such prompts."),
        (0.04, "good", "Mostly new: 4 % lies inside medical."),
        (0.001, "good", "New: none of it lies inside a lobe."),
        (0.0, "good", "New: none of it lies inside a lobe."),
    ],
)
def test_how_new_the_data_is(share, kind, said):
    assert verdicts(told(lobe(0.0, "legal"), lobe(share)))[0] == (kind, said)


def test_leakage_is_a_warning_and_none_is_said_too():
    several, one = told(leaking=12, held_out_rows=25), told(leaking=1, held_out_rows=25)
    twins = "12 of 25 held-out rows have a near twin among the training rows"
    assert verdicts(several) == [("warn", f"{twins}: the validation loss will look better than it is.")]
    assert "1 of 25 held-out rows has a near twin" in verdicts(one)[0][1]
    assert verdicts(told(held_out_rows=25)) == [("good", "None of the 25 held-out rows has a near twin among the training rows.")]
    assert verdicts(told(held_out_rows=0)) == []


@pytest.mark.parametrize(
    ("exact", "near", "said"),
    [(1, 0, "1 prompt of this file is in medical already, word for word."),
     (0, 2, "2 prompts of this file are in medical already, in nearly the same words."),
     (3, 2, "5 prompts of this file are in medical already, 2 of them in nearly the same words.")],
)  # fmt: skip
def test_rows_that_a_lobe_has(exact, near, said):
    found = verdicts(told(lobe(exact=exact, near=near, held_out=1), held_out_rows=0))
    assert found[1] == ("ask", said)
    assert found[2][0] == "warn" and "1 of them is among the rows that medical held out" in found[2][1]


def test_many_lobes_that_have_rows_do_not_fill_the_page():
    report = told(*(lobe(name=f"lobe {i}", exact=i, held_out=i == 1) for i in range(9)), held_out_rows=0)
    said = [words for _, words in verdicts(report)]
    assert len(said) == 4 and "lobe 1" in said[1] and "lobe 8" in said[3]


def test_remarks_say_what_was_not_compared():
    assert remarks(told()) == ["There is no lobe yet to compare with."]
    assert remarks(told(lobe(), lobe(None, "old", rows=0))) == ["old has kept no rows to compare with."]
    large = told(lobe(), prompts=12_000, compared=10_000, embedded=400)
    assert remarks(large) == [
        "Of 12,000 different prompts, 400 evenly spread ones were compared by meaning, by their words for 10,000."
    ]
    assert "Only the first 100,000 rows were read" in remarks(told(lobe(), rows=100_000, truncated=True))[0]
    assert remarks(told(lobe(), held_out_rows=0)) == ["No row is held out, so there is no validation loss."]


# ---- HTML ------------------------------------------------------------------------------------------------------------


def test_bars_are_of_a_whole_and_the_largest_comes_first():
    page = overlap_card(overlap_result(["legal", "medical"]), "a.jsonl", COLOURS)
    assert page.index(">legal<") < page.index(">medical<")
    assert "--c:#c9880b;--w:62.0%" in page and "--c:#e5484d;--w:4.0%" in page and "<b>62 %</b>" in page
    many = overlap_card(told(*(lobe(0.5, f"lobe {i}") for i in range(15))), "a.jsonl", {})
    assert many.count("<li style=") == MOST_BARS and "and 3 more, none above 50 %" in many
    assert "ml-bars" not in overlap_card(told(), "a.jsonl", {})


def test_words_of_people_are_escaped():
    pair = {"row": EVIL, "other": EVIL, "cosine": 0.97, "words": 0.9}
    found = {"leaking": 1, "leaks": [pair], "pairs": [pair], "twins": 2}
    report = told(lobe(0.4, EVIL, exact=1, nearest=[pair], duplicates=[pair]), lobe(None, EVIL, rows=0), **found)
    page = overlap_card(report, EVIL, {EVIL: "red;}</style>"})
    assert "<img" not in page and "&lt;img" in page and "</style>" not in page


def test_pairs_are_listed_with_their_reasons():
    page = overlap_card(overlap_result(["medical", "legal"]), "a.jsonl", COLOURS)
    assert page.count("<details") == 4 and "Held-out rows with a twin in training (12)" in page
    assert "cosine 0.83, 40 % of words shared" in page and "<small>held out</small>" in page
    unknown = {"row": "a", "other": "", "cosine": 0.99996, "words": 0.0}
    silent = overlap_card(told(lobe(0.1, nearest=[unknown])), "a", {})
    assert "a row whose text it did not keep" in silent and "words shared" not in silent
    by_words = {"row": "a", "other": "b", "cosine": None, "words": 0.91}
    assert "<em>91 % of words shared</em>" in overlap_card(told(pairs=[by_words], twins=2), "a", {})


def test_the_map_has_the_new_rows_as_diamonds(studio):
    name = new_name(["your rows"])
    assert name != "your rows"
    figure = overlap_figure(studio.lab.overlap_map(None, name), COLOURS, name)
    own = [trace for trace in figure.data if trace.name == name]
    assert len(own) == 2 and all(trace.marker.symbol == "diamond" for trace in own)
    assert [trace.marker.symbol for trace in figure.data if trace.name == "medical"] == [None, None]
    assert {trace.marker.color for trace in figure.data if trace.name == "medical"} == {"#e5484d"}


# ---- handler ---------------------------------------------------------------------------------------------------------


def test_a_hint_comes_first_and_then_the_card_and_the_map(studio):
    hint, done = look(studio, source(studio), 0.2, 3)
    assert "Comparing them" in hint.card["value"] and hint.fold["visible"] is False
    assert "62 %" in done.card["value"] and done.fold["visible"] is True and done.map.data
    (call,) = [arguments for verb, arguments in studio.calls if verb == "lab.overlap"]
    assert call[1:] == (None, 0.2, 3)
    (again,) = look(studio, source(studio), 0.2, 3, done.seen)
    assert again.card == SKIP and len([verb for verb, _ in studio.calls if verb == "lab.overlap"]) == 1
    assert len(look(studio, source(studio), 0.3, 3, done.seen)) == 2  # another split, another comparison


def test_no_data_no_card(studio):
    for nothing in ({}, {"path": "x", "label": "x", "rows": 0}, None):
        (seen,) = look(studio, nothing)
        assert seen.card == gr.update(visible=False) and seen.seen == ""


def test_while_the_base_loads_it_says_so_and_comes_by_itself():
    studio = FakeStudio(2, state="loading")
    FakeLab(studio)
    steps = OverlapCard(studio).look(source(studio), 0.1, 0, "")
    assert "still loading" in next(steps)[0]["value"]
    studio.become_ready()
    assert "62 %" in next(steps)[0]["value"]


@pytest.mark.parametrize("error", [DataError("No row can be used."), BackboneError("No encoder & no way."), ValueError(EVIL)])
def test_failures_stay_in_the_card(studio, error):
    studio.lab.fail_next = error
    _, seen = look(studio, source(studio))
    assert "Training is not affected" in seen.card["value"] and EVIL not in seen.card["value"] and seen.seen == ""


@pytest.mark.parametrize(("fraction", "seed"), [(0.9, 0), ("x", 0), ([], 0), (0.1, 1.5), (0.1, -1), (0.1, [1])])
def test_settings_that_are_none_are_named(studio, fraction, seed):
    _, seen = look(studio, source(studio), fraction, seed)
    assert "must be" in seen.card["value"] and not [verb for verb, _ in studio.calls if verb == "lab.overlap"]


def test_without_lobes_there_is_no_map():
    studio = FakeStudio(0)
    FakeLab(studio)
    _, seen = look(studio, source(studio))
    assert "no lobe yet" in seen.card["value"] and seen.fold["visible"] is False


def test_it_is_part_of_the_train_tab_and_delays_nothing(studio):
    with gr.Blocks() as page:
        TrainTab(studio).build()
    looks = [fn for fn in page.fns.values() if fn.name == "look" and len(fn.outputs) == 4]
    assert len(looks) == 5 and all(fn.concurrency_limit is None and fn.api_visibility == "private" for fn in looks)
    start = next(b for b in page.blocks.values() if getattr(b, "elem_id", "") == "train-start")
    assert start not in [output for fn in looks for output in fn.outputs]
