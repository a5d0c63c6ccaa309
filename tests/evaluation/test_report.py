"""Labelled prompts and the report card: against scikit-learn, naive second implementations, and routing by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.calibration
import sklearn.metrics as sk
import torch
from test_model import TOPICS, WordEmbedder, rows, trained

from multilobe_ui import MultiLobeModel
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import ConfigError, DataError, RoutingError
from multilobe_ui.evaluation import (
    LabelledRow,
    held_out_rows,
    measures,
    own_rows,
    read_labelled,
    report_card,
    routing_report,
)
from multilobe_ui.evaluation.labelled import flattery, load_rows, named_after, write_rows
from multilobe_ui.evaluation.report import ReportSettings, score
from multilobe_ui.evenly import evenly_by
from multilobe_ui.routers import RoutingDecision, RoutingRows
from multilobe_ui.routing import scores as scoring
from multilobe_ui.routing.encoder import Embedder
from multilobe_ui.routing.scores import MeanHidden, PromptScores

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
LOBES = ["medical", "legal", "Numbers v1.0", "色 / colours", "med"]


# ---- labelled prompts -----------------------------------------------------------------------------------------------------


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """As JSONL, JSON, CSV or Parquet, by the name's end."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        columns = list(rows[0])
        cells = [columns, *([str(row.get(c) or "") for c in columns] for row in rows)]
        path.write_text("".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in cells), encoding="utf-8")
    else:
        text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    return path


def read(path: Path, lobes: Sequence[str] = LOBES, **options: Any) -> list[tuple[str, str, str | None]]:
    return [(r.prompt, r.answer, r.lobe) for r in read_labelled([(path.name, path)], lobes, **options)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("column", ["lobe", "Label", "domain"])
@pytest.mark.parametrize("answers", [True, False])
def test_labels_come_from_a_column_in_every_kind_of_file(tmp_path: Path, kind: str, column: str, answers: bool) -> None:
    rows = [
        {"input": "Why cough?", "output": "A cold.", column: "Medical"},
        {"input": "How old is he?", "output": "", column: None},
        {"input": "May I sue?", "output": "Yes.", column: " legal "},
    ]
    if not answers:
        rows = [{k: v for k, v in row.items() if k != "output"} for row in rows]
    found = read(write(tmp_path / f"some.{kind}", rows))
    assert found == [(r["input"], r.get("output", ""), lobe) for r, lobe in zip(rows, ["medical", None, "legal"], strict=True)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "a"},
        {"question": "p", "answer": "a"},
        {"instruction": "p", "output": "a"},
        {"instruction": "x", "input": "p", "response": "a"},
        {"messages": [{"role": "user", "content": "first"}, {"role": "assistant", "content": "b"},
                      {"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "a"}]},
    ],
)  # fmt: skip
def test_every_layout_that_training_takes(tmp_path: Path, row: dict[str, Any]) -> None:
    asked = "x\n\np" if "input" in row else "p"
    assert read(write(tmp_path / "legal.jsonl", [row])) == [(asked, "a", "legal")]


@pytest.mark.parametrize("row", [{"input": "p"}, {"prompt": "p"}, {"question": "p"}, {"text": "p"}, {"instruction": "p"}])
def test_prompts_alone_are_enough(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(write(tmp_path / "legal_test.csv", [row])) == [("p", "", "legal")]


def test_an_instruction_without_answer_keeps_its_input(tmp_path: Path) -> None:
    rows = [{"instruction": "Sum up", "input": "a text"}, {"instruction": "Sum up", "input": ""}]
    assert [prompt for prompt, _, _ in read(write(tmp_path / "legal.json", rows))] == ["Sum up\n\na text", "Sum up"]


@pytest.mark.parametrize(
    ("name", "lobe"),
    [
        ("medical.jsonl", "medical"),
        ("Medical_test.csv", "medical"),
        ("medical.test.jsonl", "medical"),
        ("medical-2.json", "medical"),
        ("medical (1).jsonl", "medical"),
        ("med_test.jsonl", "med"),
        ("numbers_v1.0_test.jsonl", "Numbers v1.0"),
        ("medicals.jsonl", None),
        ("test_medical.jsonl", None),
        ("colours.jsonl", None),
    ],
)
def test_files_named_after_a_lobe(name: str, lobe: str | None) -> None:
    assert named_after(name, LOBES) == lobe


def test_the_longest_of_several_names_counts() -> None:
    assert named_after("law_uk_test.jsonl", ["law", "law uk"]) == "law uk"
    assert named_after("a b.jsonl", ["a-b", "a b"]) == "a b" and named_after("a-b.jsonl", ["a-b", "a b"]) == "a-b"


def test_the_sample_of_routing_tests() -> None:
    rows = read(SAMPLES / "routing_test.jsonl", ["legal", "maths", "medical", "python", "sentiment", "summarisation"])
    assert len(rows) == 200 and sum(lobe is None for _, _, lobe in rows) == 40


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("x.jsonl", '{"input": "a", "lobe": null}\n{"input": "b", "lobe": "medcal"}\n', "x.jsonl, line 2: .*'medcal'.*: medical"),
        ("x.csv", "input,lobe\na,medical\nb,7\n", "x.csv, line 3: the label is '7'"),
        ("x.jsonl", '{"input": "a", "output": "b"}\n', 'x.jsonl does not say.*column "lobe".*after its lobe: medical'),
        ("legal.jsonl", '{"input": "a"}\n{"input": ""}\nno\n', "2 bad rows, the first in line 2: column 'input' is empty"),
        ("legal.jsonl", '{"foo": "a"}\n', "columns 'foo'.*Rename"),
        ("legal.jsonl", "", "empty"),
        ("legal.csv", "input\n", "no rows"),
        ("legal.jsonl", '{"input": "a", "lobe": ["legal"]}\n', "line 1: column 'lobe' holds a list"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_refused_with_a_way_out(tmp_path: Path, name: str, text: str, match: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=match):
        read(path)


def test_a_labelled_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"asked\.csv cannot be opened \(No such file"):
        read_labelled([("asked.csv", tmp_path / "asked.csv")], ["law"])


def test_labels_may_be_missing_where_nobody_needs_them(tmp_path: Path) -> None:
    path = write(tmp_path / "any.jsonl", [{"input": "a", "output": "b"}])
    assert read(path, need_label=False) == [("a", "b", None)]


def test_rows_survive_the_file_they_are_queued_in(tmp_path: Path) -> None:
    rows = [LabelledRow("line\u2028one\x85two\nthree\r", "a\x0b", None, "f"), LabelledRow("ü", "", "色 / colours")]
    write_rows(tmp_path / "rows", rows)
    assert load_rows(tmp_path / "rows") == rows


# ---- measures -------------------------------------------------------------------------------------------------------------

LABELS = ["a", "b", "c", "never wanted", "never decided", "neither", ""]


@pytest.fixture(params=range(4))
def drawn(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(wanted, decided, confidence) of 300 random decisions, with confidences on the bins' edges."""
    dice = np.random.default_rng(request.param)
    wanted = dice.choice([0, 1, 2, 4, 6], 300, p=[0.4, 0.3, 0.1, 0.05, 0.15])
    decided = np.where(dice.random(300) < 0.7, wanted, dice.choice([0, 1, 2, 3, 6], 300))
    decided[decided == 4] = 0
    return wanted, decided, dice.choice([*dice.random(80), 0.0, 0.1, 0.3, 0.5, 0.7, 1.0], 300)


def decision(chosen: str, confidence: float, ms: float = 1.0) -> RoutingDecision:
    return RoutingDecision("hybrid", "embedding", {}, {}, {}, chosen or None, confidence, elapsed_ms=ms)


def scored(wanted: np.ndarray, decided: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
    rows = [LabelledRow("p", "", LABELS[i] or None) for i in wanted]
    found = score("hybrid", LABELS, rows, [decision(LABELS[i], c) for i, c in zip(decided, confidence, strict=True)])
    return json.loads(json.dumps(found.to_json(), allow_nan=False))  # plain JSON without NaN


def test_counts_and_shares_are_those_of_sklearn(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    wanted, decided, confidence = drawn
    found = scored(wanted, decided, confidence)
    places = range(len(LABELS))
    assert found["confusion"] == sk.confusion_matrix(wanted, decided, labels=places).tolist()
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(wanted, decided), abs=1e-12)
    assert (found["right"], found["of"]) == (sk.accuracy_score(wanted, decided, normalize=False), 300)
    expected = sk.precision_recall_fscore_support(wanted, decided, labels=places, zero_division=np.nan)[:3]
    for name, theirs in zip(("precision", "recall", "f1"), expected, strict=True):
        ours = [np.nan if found[name][label] is None else found[name][label] for label in LABELS]
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert found["precision"]["never decided"] is None and found["recall"]["never wanted"] is None
    assert found["f1"]["neither"] is None and found["f1"]["never wanted"] == found["f1"]["never decided"] == 0
    assert found["strangers"] == pytest.approx(found["recall"][""], abs=1e-12)
    assert found["decided"] == decided.tolist() and found["confidence"] == confidence.tolist()


def test_calibration_is_that_of_sklearn(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    wanted, decided, confidence = drawn
    found = scored(wanted, decided, confidence)
    right = wanted == decided
    accuracy, mean = sklearn.calibration.calibration_curve(right, confidence, n_bins=10)
    np.testing.assert_allclose([b["accuracy"] for b in found["calibration"]], accuracy, atol=1e-12)
    np.testing.assert_allclose([b["confidence"] for b in found["calibration"]], mean, atol=1e-12)
    for b in found["calibration"]:
        inside = [c for c in confidence if b["low"] < c <= b["high"] or (b["low"] == c == 0)]
        assert b["count"] == len(inside)
    gap = 0.0  # 15 bins, one decision at a time
    for low in range(15):
        inside = [i for i, c in enumerate(confidence) if low < c * 15 <= low + 1 or (low == 0 and c == 0)]
        gap += abs(sum(confidence[inside]) - sum(right[inside])) / 300
    assert found["ece"] == pytest.approx(gap, abs=1e-9)


def test_abstention_is_what_a_bar_would_do(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    wanted, decided, confidence = drawn
    points = scored(wanted, decided, confidence)["abstention"]
    assert 2 < len(points) <= 60 and points[0]["threshold"] == 0
    assert [p["threshold"] for p in points] == sorted(p["threshold"] for p in points)
    assert points[-1]["threshold"] == max(c for c, d in zip(confidence, decided, strict=True) if LABELS[d])
    for point in points:
        answered = [
            w == d for w, d, c in zip(wanted, decided, confidence, strict=True) if LABELS[d] and c >= point["threshold"]
        ]
        assert point["answered"] == pytest.approx(len(answered) / 300, abs=1e-12)
        assert point["accuracy"] == pytest.approx(sum(answered) / len(answered), abs=1e-12)


def test_few_confidences_are_all_points() -> None:
    points = measures.abstention(np.array([0.9, 0.5, 0.9, 0.2]), np.array([1, 0, 0, 1], bool), np.array([1, 1, 1, 0], bool))
    assert points == [
        {"threshold": 0.0, "answered": 0.75, "accuracy": pytest.approx(1 / 3)},
        {"threshold": 0.5, "answered": 0.75, "accuracy": pytest.approx(1 / 3)},
        {"threshold": 0.9, "answered": 0.5, "accuracy": 0.5},
    ]


def test_a_router_that_sends_all_to_the_base() -> None:
    found = scored(np.array([0, 6]), np.array([6, 6]), np.array([1.0, 1.0]))
    assert found["abstention"] == [{"threshold": 0.0, "answered": 0.0, "accuracy": None}]
    assert (found["accuracy"], found["strangers"], found["precision"]["a"]) == (0.5, 1.0, None)


def test_confidences_that_are_no_numbers_become_null() -> None:
    found = scored(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([np.nan, np.inf, 0.5]))
    assert found["confidence"] == [None, None, 0.5]
    assert found["accuracy"] == pytest.approx(2 / 3) and sum(b["count"] for b in found["calibration"]) == 1
    assert found["abstention"][-1] == {"threshold": 0.5, "answered": pytest.approx(1 / 3), "accuracy": 1.0}
    assert scored(np.array([0]), np.array([0]), np.array([np.nan]))["ece"] is None


def test_nothing_asked_is_nothing_measured() -> None:
    empty = np.zeros(0, int)
    found = scored(empty, empty, np.zeros(0))
    assert (found["accuracy"], found["ms"], found["strangers"], found["ece"]) == (None, None, None, None)
    assert found["abstention"] == found["calibration"] == [] and set(found["f1"].values()) == {None}


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [((5, 5, 5), 6, [2, 2, 2]), ((1, 9, 9), 9, [1, 4, 4]), ((3, 3), 100, [3, 3]), ((4, 4, 4), 2, [0, 1, 1])],
)
def test_a_cap_is_even_over_labels(sizes: tuple[int, ...], most: int, expected: list[int]) -> None:
    rows = [(label, i) for label, size in enumerate(sizes) for i in range(size)]
    kept = evenly_by(lambda row: row[0], rows, most)
    assert kept == sorted(kept)
    assert sorted(sum(label == each for label, _ in kept) for each in range(len(sizes))) == sorted(expected)


def test_a_cap_spreads_over_a_label() -> None:
    assert evenly_by(lambda _: 0, range(100), 4) == [0, 25, 50, 75]


def test_routing_report_measures_any_function() -> None:
    def route(prompt: str) -> RoutingDecision:
        return decision({"x": "a", "y": "b"}.get(prompt, ""), 0.8, ms=len(prompt))

    found = routing_report(route, ["x", "y", "zz", "x"], ["a", "a", None, "c"])
    assert found.accuracy == 0.5 and found.by_label == {"a": 0.5, "c": 0.0, "": 1.0}
    assert found.confusion == {("a", "a"): 1, ("a", "b"): 1, ("", ""): 1, ("c", "a"): 1}
    assert (found.milliseconds, found.stages, len(found.decisions)) == (1.0, {"embedding": 1.0}, 4)
    assert found.ece == pytest.approx(0.3)


# ---- the report card ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(backbone: Backbone) -> MultiLobeModel:
    return trained(backbone)


def labelled(strangers: int = 3) -> list[LabelledRow]:
    pairs = [(topic, a, b) for topic, w in TOPICS.items() for a, b in zip(w.split(), w.split()[3:], strict=False)]
    rows = [LabelledRow(f"{a} {b}", "", topic, "f") for topic, a, b in pairs]
    return rows + [LabelledRow(f"strange{i} thing", "", None, "f") for i in range(strangers)]


def test_the_card_is_what_routing_by_hand_gives(model: MultiLobeModel) -> None:
    rows = labelled()
    card = report_card(model, ["hybrid", "embedding", "keyword", "logprob"], rows)
    shown = json.loads(json.dumps(card.to_json(), allow_nan=False))
    assert shown["labels"] == [*TOPICS, ""] and not shown["stopped"]
    assert shown["prompts"] == [{"prompt": r.prompt, "lobe": r.lobe or "", "source": "f"} for r in rows]
    for name, found in shown["routers"].items():
        by_hand = [model.route(row.prompt, name) for row in rows]
        assert [shown["labels"][i] or None for i in found["decided"]] == [d.chosen for d in by_hand]
        np.testing.assert_allclose(found["confidence"], [d.confidence for d in by_hand], atol=1e-6)
        assert found["right"] == sum(d.chosen == row.lobe for d, row in zip(by_hand, rows, strict=True))
        assert (found["error"], found["note"], found["title"]) == ("", "", model.routers.named(name).title)
        assert found["ms"] > 0


def test_without_rows_held_out_rows_are_asked_of_all_that_can_be_used(model: MultiLobeModel) -> None:
    card = report_card(model)
    assert list(card.prompts) == held_out_rows(model) and {row.lobe for row in card.prompts} == set(TOPICS)
    assert own_rows(model) == held_out_rows(model) and card.notes == [] == card.to_json()["notes"]
    usable = [name for name in model.routers.names if model.routers.named(name).is_fitted]
    assert list(card.routers) == usable and "gate" not in usable and "hybrid" in usable
    assert all(each.of == len(card.prompts) and not each.error for each in card.routers.values())


def some_without_held_out_rows(backbone: Backbone) -> MultiLobeModel:
    """Lobes A and B, which held nothing out, and C, which did."""
    model = MultiLobeModel(backbone, embedder=WordEmbedder())
    for name, topic in zip("ABC", TOPICS, strict=True):
        share = 0.1 if name == "C" else 0.0
        model.add_lobe(name, rows(topic), epochs=1, lora_r=2, learning_rate=1e-2, validation_fraction=share)
    return model


def test_lobes_that_held_nothing_out_are_asked_about_trained_rows_which_is_said(backbone: Backbone) -> None:
    mixed = some_without_held_out_rows(backbone)
    card = report_card(mixed, ["keyword"])
    shown = json.loads(json.dumps(card.to_json(), allow_nan=False))
    assert shown["notes"] == [
        "2 of 3 lobes held nothing out: their prompts are training rows, so these numbers flatter; "
        "give a file of labelled prompts for a fair test."
    ]
    sources = {row["lobe"]: row["source"] for row in shown["prompts"]}
    assert sources == {"A": "A: training rows", "B": "B: training rows", "C": "C"}
    known = {row["input"] for row in rows("Animals")}
    assert {row.prompt for row in card.prompts if row.lobe == "A"} == known
    assert report_card(mixed, ["keyword"], [LabelledRow("cat dog", "", "A", "f")]).notes == []


def test_trained_rows_are_an_even_sample_with_answers_where_these_are_asked_for(
    model: MultiLobeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = np.zeros((0, 4), np.float32)
    prompts = [f"prompt {i}" for i in range(200)]
    answers = ["" if i % 2 else "yes" for i in range(200)]
    known = {
        "long": RoutingRows(none, none, none, prompts, (), answers),
        "unanswered": RoutingRows(none, none, none, prompts[:9], prompts[9:12]),
        "empty": RoutingRows(none, none, none),
    }
    labels = {"prompt 4": "unanswered"}  # a person has corrected it
    monkeypatch.setattr(model.routers, "context", lambda: SimpleNamespace(rows=known, labels=labels))
    found = own_rows(model)
    sample = [row.prompt for row in found if row.lobe == "long"]
    rest = [prompt for prompt in prompts if prompt != "prompt 4"]
    assert sample == [rest[i * 199 // 64] for i in range(64)]
    assert [row.prompt for row in found if row.lobe == "unanswered"] == prompts[9:12]
    assert {row.source for row in found} == {"long: training rows", "unanswered"}
    answered = own_rows(model, answered=True)
    assert len(answered) == 64 and {(row.lobe, row.answer) for row in answered} == {("long", "yes")}


@pytest.mark.parametrize(
    ("trained_on", "held", "said"),
    [
        (0, 3, ""),
        (1, 0, "The lobe held nothing out: its prompts are training rows"),
        (3, 0, "All 3 lobes held nothing out: their prompts are training rows"),
        (1, 2, "1 of 3 lobes held nothing out: its prompts are training rows"),
        (5, 1, "5 of 6 lobes held nothing out: their prompts are training rows"),
    ],
)
def test_the_sentence_counts_lobes(trained_on: int, held: int, said: str) -> None:
    seen = [LabelledRow("p", "", name, f"{name}: training rows") for name in "abcdef"[:trained_on] * 2]
    kept = [LabelledRow("q", "", name, name) for name in "uvwxyz"[:held]]
    end = ", so these numbers flatter; give a file of labelled prompts for a fair test."
    assert flattery([*seen, *kept]) == (said + end if said else "")


def test_a_router_that_fails_does_not_take_the_others_with_it(model: MultiLobeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(prompt: str) -> RoutingDecision:
        raise RoutingError("It cannot.")

    monkeypatch.setattr(model.routers.named("keyword"), "decide", broken)
    card = report_card(model, ["keyword", "gate", "embedding"], labelled())
    assert card.routers["keyword"].error == "It cannot." and card.routers["keyword"].accuracy is None
    assert "has not been fitted" in card.routers["gate"].error
    assert card.routers["embedding"].of == len(labelled())


@pytest.mark.parametrize("deleted", [[], ["Animals"], ["Animals", "色 / colours"]])
def test_a_report_runs_on_the_lobes_that_were_there_when_it_began(backbone: Backbone, deleted: list[str]) -> None:
    """U8: lobes are deleted, another is renamed and one is added, while the first router is asked."""
    model, rows = trained(backbone), labelled()
    asked = ["keyword", "embedding", "logprob"]
    expected = report_card(model, asked, rows)

    def meddle(p: Any) -> None:
        if p.step == 10:
            for name in deleted:
                model.remove_lobe(name)
            model.rename_lobe("Numbers v1.0", "Counting")
            model.add_lobe("New", [{"input": "cat dog", "output": "x"}] * 8, epochs=1, lora_r=2)

    card = report_card(model, asked, rows, progress=meddle)
    assert card.labels == expected.labels and list(card.routers) == asked
    for name in asked[:2] if deleted else asked:  # these remember all that they need, and know lobes by their old names
        assert card.routers[name].decided == expected.routers[name].decided and not card.routers[name].error
    if deleted:
        torn = card.routers["logprob"]
        who = "The lobe Animals was" if len(deleted) == 1 else "The lobes Animals, 色 / colours were"
        assert torn.error.startswith(f"{who} deleted while the report ran") and "0 of" in torn.error
        assert torn.unfinished and torn.accuracy is None


def test_a_card_that_is_stopped_keeps_the_routers_that_are_complete(model: MultiLobeModel) -> None:
    rows, stop = labelled(), threading.Event()
    card = report_card(
        model, ["keyword", "embedding"], rows, stop=stop, progress=lambda p: stop.set() if p.step > len(rows) + 5 else None
    )
    assert card.stopped and list(card.routers) == ["keyword"] and len(card.prompts) == len(rows)


def test_a_first_router_that_is_stopped_shows_all_labels_it_was_asked(model: MultiLobeModel) -> None:
    rows, stop = labelled(), threading.Event()
    card = report_card(model, ["keyword"], rows, stop=stop, progress=lambda p: stop.set() if p.step == 10 else None)
    assert card.stopped and len(card.prompts) == card.routers["keyword"].of == 10
    assert [sum(row.lobe == label for row in card.prompts) for label in (*TOPICS, None)] == [3, 3, 2, 2]
    order = [rows.index(row) for row in card.prompts]
    assert order == sorted(order)
    labels = list(card.labels)
    for row, place in zip(card.prompts, card.routers["keyword"].decided, strict=True):
        assert (model.route(row.prompt, "keyword").chosen or "") == labels[place]


def test_progress_reaches_its_end(model: MultiLobeModel) -> None:
    seen: list[Any] = []
    report_card(model, ["keyword", "embedding"], labelled(), progress=seen.append)
    assert [p.step for p in seen] == sorted(p.step for p in seen) and seen[-1].step == seen[-1].steps == 2 * len(labelled())
    assert {p.phase for p in seen} == {f"Asking {model.routers.named(name).title}" for name in ("keyword", "embedding")}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"routers": ["nobody"]}, r"routers is \['nobody'\]: it must be a list of hybrid"),
        ({"routers": "hybrid"}, "routers is 'hybrid'"),
        ({"routers": [["hybrid"]]}, "routers is"),
        ({"routers": None}, "routers is None"),
        ({"most": 0}, "most is 0"),
        ({"most": 2.5}, "most is 2.5"),
        ({"most": "many"}, "most is 'many'"),
        ({"most": True}, "most is True"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ReportSettings(**settings)


def test_without_any_row_the_way_out_is_named(backbone: Backbone) -> None:
    empty = MultiLobeModel(backbone, embedder=WordEmbedder())
    with pytest.raises(DataError, match=r'no labelled prompts.*Give a file with the columns "input" and "lobe"'):
        report_card(empty)
    assert report_card(empty, rows=[LabelledRow("x", "", None)]).routers["hybrid"].strangers == 1.0


# ---- time is measured cold ------------------------------------------------------------------------------------------------


class CountingEncoder:
    def __init__(self) -> None:
        self.read: list[str] = []

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 2), np.float32)

    def encode(self, texts: Sequence[str], output_value: str | None = "sentence_embedding", **_: Any) -> Any:
        """As sentence-transformers' own: vectors, or with output_value None all that there is of each text."""
        self.read += texts
        vectors = self.vectors(texts)
        return vectors if output_value else [{"sentence_embedding": torch.from_numpy(vector)} for vector in vectors]


def test_forgotten_texts_are_read_again(backbone: Backbone, model: MultiLobeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder()
    embedder._model = CountingEncoder()
    embedder(["a", "b"]), embedder.forget(["a", "never"]), embedder(["a", "b"])
    assert embedder._model.read == ["a", "b", "a"]

    counts: list[str] = []
    plain: Callable[..., Any] = scoring.prompt_nll
    monkeypatch.setattr(
        scoring, "prompt_nll", lambda bank, texts, *rest, **how: counts.extend(texts) or plain(bank, texts, *rest, **how)
    )
    scores, lobes = PromptScores(model.bank), [lobe.id for lobe in model.lobes]
    before = scores(["red cat x", "one y"], lobes)
    scores.forget(["red cat x"])
    np.testing.assert_array_equal(scores(["red cat x", "one y"], lobes), before)
    assert counts == ["red cat x", "one y", "red cat x"]

    hidden = MeanHidden(model.bank, scores)
    first = hidden(["red cat"])
    hidden.forget(["red cat"])
    assert not hidden._known
    np.testing.assert_array_equal(hidden(["red cat"]), first)


def test_no_router_profits_from_what_another_has_read(backbone: Backbone) -> None:
    """The card asks every router about prompts that the encoder has forgotten."""

    class Words(CountingEncoder):
        def vectors(self, texts: Sequence[str]) -> np.ndarray:
            return WordEmbedder()(texts)

    embedder = Embedder("words")
    embedder._model = Words()
    cold = MultiLobeModel(backbone, embedder=embedder)
    for topic in list(TOPICS)[:2]:
        cold.add_lobe(topic, [{"input": f"{w} now", "output": "x"} for w in TOPICS[topic].split()], epochs=1, lora_r=2)
    embedder._model.read.clear()
    report_card(cold, ["embedding", "hybrid"], [LabelledRow("cat again", "", "Animals")])
    assert embedder._model.read.count("cat again") == 2
