"""A person's word on a prompt: kept, learned from, shown before it counts, and taken back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_model import TOPICS, WordEmbedder, trained
from test_report import some_without_held_out_rows

from multilobe_ui import MultiLobeModel
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import ConfigError, RoutingError
from multilobe_ui.evaluation import own_rows
from multilobe_ui.evaluation.labelled import LabelledRow, write_rows
from multilobe_ui.evaluation.refit import Refit, RefitSettings, keep_refit, refitting
from multilobe_ui.lobes.rows import RoutingRows
from multilobe_ui.progress import finish
from multilobe_ui.routers import ROUTERS
from multilobe_ui.routing.corrections import COPIES, Corrections, corrected
from multilobe_ui.routing.router import RoutingContext, learn_now

ANIMALS, NUMBERS, COLOURS = TOPICS
PROMPT = "cat dog"


@pytest.fixture
def model(backbone: Backbone, tmp_path: Path) -> MultiLobeModel:
    made = trained(backbone, tmp_path / "home")
    made.routers.prepare()
    return made


def correct(model: MultiLobeModel, prompt: str, lobe: str | None) -> None:
    model.routers.corrections.add(prompt, model.lobes.named(lobe).id if lobe else "", "")


def refit(model: MultiLobeModel, made: Path, *routers: str, data: Path | None = None) -> Refit:
    return finish(refitting(model, RefitSettings(routers), data=data, made=made, stop=threading.Event()))


# ---- the file --------------------------------------------------------------------------------------------------------------


def test_a_later_word_replaces_the_earlier_and_all_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "corrections.json"
    corrections = Corrections(path)
    corrections.add("Was ist  Größe?", "lobe_0001", "base")
    corrections.add("another", "")
    again = corrections.add("was ist größe?", "lobe_0002")
    corrections.keep([again.id])
    found = Corrections(path)
    assert [(c.prompt, c.lobe, c.kept) for c in found.all()] == [("another", "", False), ("was ist größe?", "lobe_0002", True)]
    assert [c.id for c in found.kept()] == [again.id]
    assert found.forget([again.id]) == [again] or found.all()[0].prompt == "another"
    assert [c.prompt for c in Corrections(path).all()] == ["another"]


@pytest.mark.parametrize("text", ["", "{", "[3]", '[{"prompt": 1}]', "null", '{"a": 1}'])
def test_a_damaged_file_is_as_none_and_is_kept(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    corrections = Corrections(tmp_path / "c.json")
    assert corrections.all() == []
    corrections.add("what is due?", "lobe_0001")
    (kept,) = tmp_path.glob("c.json.damaged-*")
    assert kept.read_text() == text and len(Corrections(tmp_path / "c.json").all()) == 1


def test_what_another_process_noted_meanwhile_stays(tmp_path: Path) -> None:
    one, other = Corrections(tmp_path / "c.json"), Corrections(tmp_path / "c.json")
    for i in range(5):
        one.add(f"mine {i}", "lobe_0001")
        other.add(f"theirs {i}", "lobe_0002")
    other.keep([other.all()[0].id])
    found = Corrections(tmp_path / "c.json").all()
    assert len(found) == 10 and found[0].kept and {c.lobe for c in found} == {"lobe_0001", "lobe_0002"}


@pytest.mark.parametrize("prompt", ["", "  \n", "x" * 20_001])
def test_a_prompt_that_is_none_is_refused(prompt: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"has {len(prompt):,} characters"):
        Corrections(tmp_path / "c.json").add(prompt, "")


# ---- what routers see of it ------------------------------------------------------------------------------------------------


def context() -> RoutingContext:
    embed = WordEmbedder()
    prompts = {"a": ["cat dog", "cow sheep"], "b": ["one two"]}
    rows = {
        name: RoutingRows(embed(texts), embed(texts), embed(texts[:1]), texts, texts[:1], ["x"] * len(texts), ["y"])
        for name, texts in prompts.items()
    }
    return RoutingContext(["a", "b"], rows, embed, lambda *_: np.zeros((0, 0)), lambda: embed(["hello"]), ["hello"])


def test_a_corrected_prompt_leaves_the_other_lobes_and_becomes_rows_of_its_own() -> None:
    seen = corrected(context(), {"Cat  DOG": "b", "hello you": None, "lost": "no such lobe"})
    a, b, embed = seen.rows["a"], seen.rows["b"], WordEmbedder()
    assert list(a.train_prompts) == ["cow sheep"] and list(a.validation_prompts) == [] and len(a.validation) == 0
    assert list(a.train_answers) == ["x"]
    np.testing.assert_array_equal(a.train, embed(["cow sheep"]))
    assert list(b.train_prompts) == ["one two", *["Cat  DOG"] * COPIES] and len(b.train_answers) == len(b.train) == 1 + COPIES
    np.testing.assert_array_equal(b.train[1:], embed(["cat dog"] * COPIES))
    np.testing.assert_array_equal(b.prototypes, embed(["one two", "cat dog"]))
    np.testing.assert_array_equal(a.prototypes, embed(["cat dog", "cow sheep"]))
    np.testing.assert_array_equal(seen.generic(), embed(["hello", *["hello you"] * COPIES]))
    assert seen.generic_prompts == ["hello", *["hello you"] * COPIES]
    assert seen.labels == {"cat dog": "b", "hello you": None}


def test_without_corrections_the_context_is_the_same_object() -> None:
    plain = context()
    assert corrected(plain, {}) is plain and corrected(plain, {"x": "gone"}) is plain


# ---- trial, keep, undo -----------------------------------------------------------------------------------------------------


def test_a_trial_on_rows_that_lobes_were_trained_on_says_so(backbone: Backbone, tmp_path: Path) -> None:
    model = some_without_held_out_rows(backbone)
    correct(model, PROMPT, "B")
    found = refit(model, tmp_path / "made", "keyword").to_json()
    assert found["notes"][0].startswith("2 of 3 lobes held nothing out: their prompts are training rows")
    assert found["routers"]["keyword"]["of"] > 27
    model.routers.keep_corrections(found["ids"], {})
    asked = [row.prompt for row in own_rows(model)]
    assert PROMPT not in asked and len(set(asked)) == len(asked) > 27


def test_a_correction_is_shown_before_it_counts_then_decides_and_can_be_undone(model: MultiLobeModel, tmp_path: Path) -> None:
    before = model.route(PROMPT)
    bystander = model.route("red green")
    assert before.chosen == ANIMALS
    correct(model, PROMPT, NUMBERS)
    assert model.route(PROMPT).chosen == ANIMALS, "not kept yet"
    trial = refit(model, tmp_path / "made", "hybrid")
    assert [(c["lobe"], c["before"], c["after"]) for c in trial.corrections] == [(NUMBERS, ANIMALS, NUMBERS)]
    assert model.route(PROMPT).chosen == ANIMALS, "a trial changes nothing"
    keep_refit(model, trial.ids, tmp_path / "made")
    told = model.route("Cat   dog")
    assert (told.chosen, told.stage, told.confidence) == (NUMBERS, "corrected", 1.0) and told.weights == {NUMBERS: 1.0}
    reopened = MultiLobeModel(model.backbone, home=model.home, embedder=WordEmbedder())  # type: ignore[arg-type]
    assert reopened.route(PROMPT).chosen == NUMBERS
    model.routers.forget_corrections()
    after = model.route(PROMPT)
    assert (after.chosen, after.stage) == (before.chosen, before.stage) and after.scores == pytest.approx(before.scores)
    assert model.route("red green").scores == pytest.approx(bystander.scores)


def test_no_lobe_is_a_word_too(model: MultiLobeModel, tmp_path: Path) -> None:
    correct(model, PROMPT, None)
    trial = refit(model, tmp_path / "made", "embedding", "hybrid")
    keep_refit(model, trial.ids, tmp_path / "made")
    decision = model.route(PROMPT)
    assert decision.chosen is None and decision.abstained and decision.weights == {}


def test_a_router_learns_from_it_for_prompts_that_are_alike(model: MultiLobeModel, tmp_path: Path) -> None:
    correct(model, "zebra okapi", COLOURS)  # words that no lobe has
    trial = refit(model, tmp_path / "made", "embedding")
    keep_refit(model, trial.ids, tmp_path / "made")
    like = model.route("okapi zebra zebra", "embedding")
    assert like.stage != "corrected" and like.chosen == COLOURS
    model.routers.forget_corrections()
    assert model.route("okapi zebra zebra", "embedding").chosen != COLOURS


def test_the_trial_counts_as_a_plain_count_does(model: MultiLobeModel, tmp_path: Path) -> None:
    rows = [LabelledRow("cat cow", "", ANIMALS), LabelledRow("one two", "", COLOURS), LabelledRow(PROMPT, "", ANIMALS)]
    write_rows(tmp_path / "rows.jsonl", rows)
    correct(model, PROMPT, NUMBERS)
    trial = refit(model, tmp_path / "made", "embedding", "keyword", data=tmp_path / "rows.jsonl")
    for name in ("embedding", "keyword"):
        router = ROUTERS[name](model.routers.context(model.routers.corrections.all()), None)
        learn_now(router)
        plain = ROUTERS[name](model.routers.context(), None)
        learn_now(plain)
        found = trial.routers[name]
        assert (found["added"], found["gone"]) == ([], [])
        assert found["of"] == 2, "the corrected prompt itself is not counted"
        assert found["now"] == sum(model.route(row.prompt, name).chosen == row.lobe for row in rows[:2])
        assert found["before"] == sum(plain.route(row.prompt).chosen == row.lobe for row in rows[:2])
        assert found["after"] == sum(router.route(row.prompt).chosen == row.lobe for row in rows[:2])
    assert json.dumps(trial.to_json())


def test_what_new_lobes_change_is_told_apart_from_what_corrections_change(model: MultiLobeModel, tmp_path: Path) -> None:
    """U15: a gate that does not know a lobe is compared with one that does, before and after the corrections."""
    model.fit_router("gate")
    words = ["tin", "iron", "zinc", "lead", "gold", "silver", "copper", "nickel"]
    rows = [{"input": f"{a} {b}", "output": "metal"} for a in words for b in words]
    model.add_lobe("Metals", rows, epochs=1, lora_r=2)
    asked = [LabelledRow(f"{a} tin", "", "Metals") for a in words] + [LabelledRow("cat cow", "", ANIMALS)]
    write_rows(tmp_path / "rows.jsonl", asked)
    correct(model, PROMPT, NUMBERS)
    found = refit(model, tmp_path / "made", "gate", data=tmp_path / "rows.jsonl").routers["gate"]
    assert (found["added"], found["gone"]) == (["Metals"], [])
    assert found["now"] <= 1, "the gate that serves has never heard of metals"
    plain, told = ROUTERS["gate"](model.routers.context(), None), ROUTERS["gate"](
        model.routers.context(model.routers.corrections.all()), None
    )
    for router, count in ((plain, found["before"]), (told, found["after"])):
        learn_now(router)
        assert count == sum(router.route(row.prompt).chosen == row.lobe for row in asked)
    assert found["before"] >= 8, "most of the change is due to the new lobe, and it is not put down to the correction"
    model.fit_router("gate")
    again = refit(model, tmp_path / "again", "gate", data=tmp_path / "rows.jsonl").routers["gate"]
    assert (again["added"], again["gone"]) == ([], []) and again["now"] == again["before"] == found["before"]


def test_a_deleted_lobe_takes_its_corrections_out_of_force(model: MultiLobeModel, tmp_path: Path) -> None:
    correct(model, PROMPT, NUMBERS)
    keep_refit(model, refit(model, tmp_path / "made", "embedding").ids, tmp_path / "made")
    model.rename_lobe(NUMBERS, "Counting")
    assert model.route(PROMPT).chosen == "Counting", "a correction follows its lobe's name"
    model.remove_lobe("Counting")
    assert model.route(PROMPT).stage != "corrected"


def test_what_was_shown_is_what_is_kept_or_nothing(model: MultiLobeModel, tmp_path: Path) -> None:
    with pytest.raises(RoutingError, match="no correction"):
        refit(model, tmp_path / "made")
    correct(model, PROMPT, NUMBERS)
    trial = refit(model, tmp_path / "made", "embedding")
    correct(model, "cow", NUMBERS)
    with pytest.raises(RoutingError, match="since this trial"):
        keep_refit(model, trial.ids, tmp_path / "made")
    trial = refit(model, tmp_path / "again", "embedding")
    model.remove_lobe(COLOURS)
    with pytest.raises(RoutingError, match="since this trial"):
        keep_refit(model, trial.ids, tmp_path / "again")
    assert model.route(PROMPT).stage != "corrected"


def test_only_fits_that_learn_from_labels_grow_stale(model: MultiLobeModel, tmp_path: Path) -> None:
    model.fit_router("gate")
    correct(model, PROMPT, NUMBERS)
    keep_refit(model, refit(model, tmp_path / "made", "embedding").ids, tmp_path / "made")
    assert model.routers.is_stale("gate")
    model.fit_router("gate")
    assert not model.routers.is_stale("gate") and model.route(PROMPT, "gate").chosen == NUMBERS
    assert {name for name, make in ROUTERS.items() if not make(context(), None).learns_labels} == {
        "complexity", "xlora", "arrow", "logprob", "chain"
    }  # fmt: skip


def test_a_stopped_trial_says_so(model: MultiLobeModel, tmp_path: Path) -> None:
    correct(model, PROMPT, NUMBERS)
    stop = threading.Event()
    work: Callable = refitting(model, RefitSettings(("embedding", "keyword")), data=None, made=tmp_path / "m", stop=stop).__next__
    work()
    stop.set()
    with pytest.raises(StopIteration) as end:
        while True:
            work()
    assert end.value.value.stopped
