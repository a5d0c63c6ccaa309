"""The merge lab's experiments: every merge through to an ordinary lobe in plain PEFT and here, and the search for weights."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_combining import bank_logits, distance, exact
from test_model import TOPICS, WordEmbedder, rows
from test_studio import finish as wait
from test_studio import make_studio

from multilobe_ui import MultiLobeModel
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.data.examples import Example
from multilobe_ui.errors import AdapterError, ConfigError, DataError, JobError, LobeError
from multilobe_ui.lobes.card import read_card
from multilobe_ui.lobes.weights import Mix
from multilobe_ui.merging import COMBINATIONS, MergeSettings, SearchSettings, keep_merge, merge_lobes, search_lobes
from multilobe_ui.merging.merge import advice, mixed_rows
from multilobe_ui.routers import RoutingRows
from multilobe_ui.training.batches import TokenRows, mean_answer_loss

__all__ = ["make_studio"]
ANIMALS, NUMBERS, COLOURS = TOPICS
WEIGHTS = {ANIMALS: 0.7, NUMBERS: -0.4, COLOURS: 0.5}


@pytest.fixture(scope="module")
def family(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of one rank, with scalings that PEFT must not see; "wide" has another."""
    folder, model = tmp_path_factory.mktemp("family"), backbone.model
    return {
        ANIMALS: tiny.save_adapter(model, folder / "0", seed=1, r=4, lora_alpha=6, use_rslora=True),
        NUMBERS: tiny.save_adapter(model, folder / "1", seed=2, r=4, lora_alpha=4),
        COLOURS: tiny.save_adapter(model, folder / "2", seed=3, r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]),
        "wide": tiny.save_adapter(model, folder / "3", seed=4, r=6, lora_alpha=6),
    }


@pytest.fixture
def model(backbone: Backbone, family: Mapping[str, Path], tmp_path: Path) -> MultiLobeModel:
    made = MultiLobeModel(backbone, home=tmp_path / "home", embedder=WordEmbedder())
    for name, folder in family.items():
        made.import_adapter(name, folder, rows(name) if name in TOPICS else None)
    return made


# ---- a merge becomes a lobe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_built_kept_saved_and_loaded_in_plain_peft_and_here(
    model: MultiLobeModel, backbone: Backbone, family: Mapping[str, Path], combination: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made = tmp_path / "made"
    result = merge_lobes(model, WEIGHTS, made, combination=combination, density=0.6, most_rows=3)
    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    sum_of_all = exact(backbone, [(family[name], weight) for name, weight in WEIGHTS.items()])
    dense = tiny.deltas(backbone.model, made / "adapter")
    assert value["error"] == pytest.approx(distance(dense, sum_of_all), rel=1e-4, abs=1e-6)
    for module, error in value["layer_errors"].items():
        assert error == pytest.approx(distance({module: dense[module]}, {module: sum_of_all[module]}), rel=1e-4, abs=1e-6)
    if combination == "cat":
        assert value["error"] < 1e-5
        for module, delta in sum_of_all.items():
            torch.testing.assert_close(dense[module], delta, atol=1e-5, rtol=1e-5)

    lobe = keep_merge(model, made, value, "All of it", owner="me")
    assert not made.exists() and lobe.card.origin == "merged" and lobe.card.owner == "me"
    assert lobe.card.composition["parents"] == [[name, weight] for name, weight in WEIGHTS.items()]
    assert lobe.card.composition["combination"] == combination and read_card(lobe.path) == lobe.card
    ids = tiny.numbers(2, 12)
    with torch.no_grad():
        peft = tiny.with_peft(backbone.model, lobe.path)(input_ids=ids).logits
        ours = model.bank.run(Mix.of({lobe.id: 1.0}), input_ids=ids).logits
    torch.testing.assert_close(ours, peft, atol=1e-4, rtol=1e-4)

    bundle = model.save(tmp_path / "all.zip", ["All of it"])
    monkeypatch.setattr("multilobe_ui.model.Embedder", lambda *a: WordEmbedder())
    again = MultiLobeModel.load(bundle, device="cpu", model_name=backbone.name)
    assert again.lobe_names == ["All of it"]
    (loaded,) = again.lobes
    assert loaded.card.composition == lobe.card.composition
    with torch.no_grad():
        torch.testing.assert_close(again.bank.run(Mix.of({loaded.id: 1.0}), input_ids=ids).logits, ours, atol=1e-6, rtol=1e-6)
    with zipfile.ZipFile(bundle) as file:
        file.extractall(tmp_path / "plain")
    (config,) = (tmp_path / "plain").rglob("adapter_config.json")
    with torch.no_grad():
        torch.testing.assert_close(tiny.with_peft(backbone.model, config.parent)(input_ids=ids).logits, peft)
    torch.testing.assert_close(bank_logits(backbone, config.parent, ids), peft, atol=1e-4, rtol=1e-4)


def test_losses_are_those_of_plain_peft_on_rows_that_were_held_out(
    model: MultiLobeModel, backbone: Backbone, family: Mapping[str, Path], tmp_path: Path
) -> None:
    made = tmp_path / "made"
    seen: list[Any] = []
    result = merge_lobes(model, {ANIMALS: 0.5, "wide": 0.5}, made, combination="svd", rank=2, most_rows=2, progress=seen.append)
    (row,) = result.losses
    assert (row["dataset"], row["rows"], row["held_out"]) == (ANIMALS, 2, True) and result.without_rows == ("wide",)
    kept = model.lobes.named(ANIMALS).routing_rows()
    assert kept is not None
    places = [i * len(kept.validation_prompts) // 2 for i in range(2)]
    pairs = [(kept.validation_prompts[i], kept.validation_answers[i]) for i in places]
    tokens = TokenRows(backbone, [Example(({"role": "user", "content": p},), a) for p, a in pairs], 512)
    with torch.no_grad():
        others = [tiny.with_peft(backbone.model, f) for f in (family[ANIMALS], family["wide"], made / "adapter")]
        mixed = tiny.merged(backbone.model, [(exact(backbone, [(family[ANIMALS], 0.5), (family["wide"], 0.5)]), 1.0)])
        slow = [mean_answer_loss(m, backbone, tokens) for m in (backbone.model, *others, mixed)]
    assert [row["base"], *row["parents"], row["merged"], row["mixture"]] == pytest.approx(slow, abs=1e-4)
    assert [(p.step, p.steps) for p in seen] == [(0, 2), (1, 2), (2, 2)] and seen[1].values == {"error": result.error}
    assert result.error > 0.1 and result.rank == 2


def test_one_lobe_is_scaled(model: MultiLobeModel, backbone: Backbone, family: Mapping[str, Path], tmp_path: Path) -> None:
    result = merge_lobes(model, {"wide": -0.5}, tmp_path / "made")
    assert result.error < 1e-5 and result.losses == () and not result.stopped
    lobe = keep_merge(model, tmp_path / "made", result.to_json(), "Less", routed=True)
    assert lobe.routing_rows() is None  # its only parent has none
    assert distance(tiny.deltas(backbone.model, lobe.path), exact(backbone, [(family["wide"], -0.5)])) < 1e-5


def test_stopped_before_anything_was_measured(model: MultiLobeModel, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    result = merge_lobes(model, WEIGHTS, tmp_path / "made", stop=stop)
    assert result.stopped and result.losses == () and result.error < 1e-5
    assert keep_merge(model, tmp_path / "made", result.to_json(), "Unmeasured").name == "Unmeasured"


@pytest.mark.parametrize(
    ("lobes", "settings", "problem", "message"),
    [
        ({}, {}, ConfigError, "lobes is 0: it must be 1 to 32; choose at least one"),
        ({ANIMALS: 0.0}, {}, ConfigError, "weight of Animals is 0.0"),
        ({ANIMALS: float("nan")}, {}, ConfigError, "weight of Animals is nan"),
        ({ANIMALS: "much"}, {}, ConfigError, "must be names with weights"),
        ({ANIMALS: 1, "animals": 1}, {}, ConfigError, "named once"),
        ({ANIMALS: 1}, {"combination": "soup"}, ConfigError, "combination is 'soup'"),
        ({ANIMALS: 1}, {"density": 0.0}, ConfigError, "density is 0.0"),
        ({ANIMALS: 1}, {"rank": 0}, ConfigError, "rank is 0"),
        ({ANIMALS: 1, "Nobody": 1}, {}, LobeError, "Nobody"),
        ({ANIMALS: 1, "wide": 1}, {"combination": "linear"}, AdapterError, "Animals has rank 4 where wide has 6"),
        ({ANIMALS: 1}, {"combination": "ties"}, AdapterError, "choose at least two"),
        ({ANIMALS: 1, NUMBERS: 1}, {"rank": 3}, ConfigError, "only the svd forms can"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    model: MultiLobeModel, lobes: dict[str, Any], settings: dict[str, Any], problem: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(problem, match=message):
        merge_lobes(model, lobes, tmp_path / "made", **settings)
    assert not (tmp_path / "made").exists()


def test_settings_survive_json() -> None:
    asked = MergeSettings({"a": 0.5, "b": -1}, "svd", rank=3)  # type: ignore[arg-type]
    again = MergeSettings(**json.loads(json.dumps({"lobes": asked.lobes, "combination": "svd", "rank": 3})))
    assert again == asked and asked.lobes == (("a", 0.5), ("b", -1.0))
    assert SearchSettings(**json.loads(json.dumps({"lobes": ("a", "b")}))) == SearchSettings(("a", "b"))
    for wrong in ({"lobes": ()}, {"lobes": "ab"}, {"lobes": ("a", "A")}, {"lobes": ("a",), "budget": 1}, {"lobes": (1,)}):
        with pytest.raises(ConfigError):
            SearchSettings(**wrong)  # type: ignore[arg-type]


# ---- keeping ---------------------------------------------------------------------------------------------------------------


def test_a_refused_name_loses_nothing(model: MultiLobeModel, tmp_path: Path) -> None:
    made = tmp_path / "made"
    result = merge_lobes(model, WEIGHTS, made).to_json()
    before = sorted(str(path) for path in (*made.rglob("*"), *model.home.rglob("*")))
    for name, message in (("animals", "exists already"), ("", "no name")):
        with pytest.raises(LobeError, match=message):
            keep_merge(model, made, result, name)
    with pytest.raises(AdapterError, match="made for the base model 'other'"):
        keep_merge(model, made, {**result, "base": {"name": "other", "fingerprint": "x"}}, "New")
    assert sorted(str(path) for path in (*made.rglob("*"), *model.home.rglob("*"))) == before
    assert keep_merge(model, made, result, " New  one ").name == "New one"
    with pytest.raises(LobeError, match="no longer there"):
        keep_merge(model, made, result, "Again")
    assert not list(model.home.glob(".merging-*"))


def test_a_parent_may_go_before_the_merge_is_kept(model: MultiLobeModel, backbone: Backbone, tmp_path: Path) -> None:
    result = merge_lobes(model, WEIGHTS, tmp_path / "made")
    wanted = bank_logits(backbone, tmp_path / "made" / "adapter", tiny.numbers(1, 8))
    for name in WEIGHTS:
        model.remove_lobe(name)
    lobe = keep_merge(model, tmp_path / "made", result.to_json(), "Orphan")
    with torch.no_grad():
        torch.testing.assert_close(model.bank.run(Mix.of({lobe.id: 1.0}), input_ids=tiny.numbers(1, 8)).logits, wanted)
    assert model.route("cat dog", "embedding").chosen == "Orphan"


def test_routers_may_choose_it_by_its_parents_rows_or_not_at_all(model: MultiLobeModel, tmp_path: Path) -> None:
    asked = {"combination": "svd"}
    first = merge_lobes(model, {ANIMALS: 0.5, NUMBERS: 0.5}, tmp_path / "a", **asked)
    lobe = keep_merge(model, tmp_path / "a", first.to_json(), "Routed")
    own = lobe.routing_rows()
    assert own is not None
    for topic in (ANIMALS, NUMBERS):
        words = set(TOPICS[topic].split())
        share = np.mean([set(prompt.split()) <= words for prompt in own.train_prompts])
        assert share == pytest.approx(0.5, abs=0.05)
    parents = [model.lobes.named(name).routing_rows() for name in (ANIMALS, NUMBERS)]
    vectors = {p: v for rows in parents if rows for p, v in zip(rows.train_prompts, rows.train, strict=True)}
    np.testing.assert_allclose(own.train, [vectors[p] for p in own.train_prompts], atol=1e-3)
    assert len(own.train_answers) == len(own.train_prompts) and own.validation_prompts
    for name in (ANIMALS, NUMBERS):
        model.remove_lobe(name)
    assert model.route("cat dog", "embedding").chosen == "Routed" == model.route("one two", "embedding").chosen

    second = merge_lobes(model, {COLOURS: 1.0, "Routed": 0.5}, tmp_path / "b", **asked)
    hidden = keep_merge(model, tmp_path / "b", second.to_json(), "By hand", routed=False)
    assert hidden.routing_rows() is None and "By hand" not in model.routers.context().rows
    assert model.generate("cat", lobe="By hand", max_new_tokens=3, do_sample=False) is not None


def test_rows_are_shared_evenly_and_none_comes_twice() -> None:
    def lobe(prompts: list[str], prototypes: int = 1) -> RoutingRows:
        vectors = np.eye(8, dtype=np.float32)[[i % 8 for i in range(len(prompts))]]
        return RoutingRows(np.eye(8, dtype=np.float32)[:prototypes], vectors, vectors[:0], prompts, [], [], [])

    large, small = lobe([f"l{i}" for i in range(1000)]), lobe([f"s{i}" for i in range(10)] + ["l0"])
    mixed = mixed_rows([large, small])
    assert sum(p.startswith("l") for p in mixed.train_prompts) == 256 and sum(p.startswith("s") for p in mixed.train_prompts) == 10
    assert len(set(mixed.train_prompts)) == len(mixed.train) == len(mixed.train_answers) == 266
    alone = mixed_rows([lobe([], prototypes=2)])  # a lobe of which only prototypes are known
    assert alone.train_prompts == [] and len(alone.prototypes) >= 1


def test_advice() -> None:
    def row(base: float | None, merged: float | None) -> dict[str, Any]:
        return {"dataset": "law", "base": base, "merged": merged}

    assert "exactly the weighted sum, at rank 12" in advice("cat", 12, 1e-8, [row(2.0, 1.0)])
    assert advice("cat", 12, 1e-8, [row(2.0, 2.1)]).startswith("On the data of law it does worse than the base")
    assert "other seeds" in advice("dare_linear", 4, 0.4, []) and "Much of the weighted sum" in advice("dare_linear", 4, 0.6, [])
    assert "judge it by the losses" in advice("dare_ties_svd", 4, 0.9, [row(None, 1.0)])
    assert "A part of" in advice("linear", 4, 0.3, []) and "close to" in advice("svd", 4, 0.05, [])
    for combination in COMBINATIONS:
        for error in (0.0, 0.05, 0.3, 0.9, 3.0):
            said = advice(combination, 4, error, [])
            assert said.endswith(".") and said.count(". ") == 0


def test_what_is_subtracted_may_become_worse(model: MultiLobeModel, tmp_path: Path) -> None:
    worse = merge_lobes(model, {ANIMALS: 1.0, NUMBERS: -1.0}, tmp_path / "made")
    (animals, numbers) = worse.losses
    assert numbers["merged"] > numbers["base"]
    assert ("worse" in worse.advice) == (animals["merged"] > animals["base"])
    assert NUMBERS not in worse.advice


# ---- the search ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def learned(backbone: Backbone, family: Mapping[str, Path], tmp_path: Path) -> MultiLobeModel:
    """A lobe that has learned its rows, and one of noise."""
    made = MultiLobeModel(backbone, home=tmp_path / "home", embedder=WordEmbedder())
    made.add_lobe(ANIMALS, rows(ANIMALS), epochs=3, lora_r=4, learning_rate=1e-2, batch_size=8, validation_fraction=0.1)
    made.import_adapter("noise", family["wide"])
    return made


def loss_of(model: MultiLobeModel, weights: Mapping[str, float], examples: list[tuple[str, str]]) -> float:
    folders = {lobe.name: lobe.path for lobe in model.lobes}
    dense = [(tiny.deltas(model.backbone.model, folders[name]), weight) for name, weight in weights.items()]
    tokens = TokenRows(model.backbone, [Example(({"role": "user", "content": p},), a) for p, a in examples], 512)
    with torch.no_grad():
        return mean_answer_loss(tiny.merged(model.backbone.model, dense), model.backbone, tokens)


def test_search_finds_better_weights_than_equal_ones(learned: MultiLobeModel) -> None:
    examples = [(row["input"], row["output"]) for row in rows(ANIMALS)[:5]]
    seen: list[Any] = []
    found = search_lobes(learned, [ANIMALS, "noise"], examples, budget=14, penalty=0.0, progress=seen.append)
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    uniform = loss_of(learned, {ANIMALS: 0.5, "noise": 0.5}, examples)
    assert value["loss"] == pytest.approx(loss_of(learned, value["weights"], examples), abs=1e-4)
    assert value["base"] == pytest.approx(loss_of(learned, {}, examples), abs=1e-4)
    assert value["loss"] < uniform - 0.5 and value["loss"] < value["base"] - 0.5
    assert abs(value["weights"]["noise"]) < value["weights"][ANIMALS] / 2
    assert (value["rows"], value["given"], value["stopped"], len(value["trials"])) == (5, True, False, 14)
    assert [t["number"] for t in value["trials"]] == list(range(1, 15))
    lowest = np.minimum.accumulate([t["loss"] for t in value["trials"]])
    assert [p.values["best"] for p in seen[1:]] == pytest.approx(lowest.tolist())
    assert [(p.step, p.steps) for p in seen] == [(i, 14) for i in range(15)]
    assert not list(learned.home.glob(".search*"))


def test_search_takes_the_lobes_own_rows_and_stops_with_what_it_has(learned: MultiLobeModel) -> None:
    stop = threading.Event()
    found = search_lobes(learned, [ANIMALS, "noise"], budget=30, rows=None, stop=stop,
                         progress=lambda p: stop.set() if p.step == 3 else None)  # fmt: skip
    assert (found.stopped, found.given, len(found.trials)) == (True, False, 3)
    assert found.rows == 2 or found.rows == 3  # a tenth of 27 rows is held out
    with pytest.raises(DataError, match="Upload a few examples"):
        search_lobes(learned, ["noise"])
    with pytest.raises(DataError, match="have no answers"):
        search_lobes(learned, ["noise"], [("what?", "")])
    with pytest.raises(LobeError, match="Nobody"):
        search_lobes(learned, ["Nobody"])


# ---- as jobs of the studio -------------------------------------------------------------------------------------------------


def test_in_the_lab(make_studio: Callable[..., Any], family: Mapping[str, Path], tmp_path: Path) -> None:
    studio = make_studio()
    for name, folder in family.items():
        studio.loading.model.import_adapter(name, folder, rows(name) if name in TOPICS else None)
    lab, desk = studio.lab, studio.desk()
    options = lab.merge_options([ANIMALS, "wide"])
    assert set(options) == set(COMBINATIONS) and options["cat"] == options["svd"] == ""
    assert "Animals has rank 4 where wide has 6" in options["ties"]
    assert set(lab.merge_options([]).values()) == {"choose at least one lobe"}
    with pytest.raises(LobeError, match="Nobody"):
        lab.merge_options(["Nobody"])
    with pytest.raises(ConfigError, match="at least one"):
        desk.lab.start("merge", {"lobes": []})

    job = desk.lab.start("merge", {"lobes": list(WEIGHTS.items()), "combination": "ties", "most_rows": 2})
    wait(studio, job.id)
    assert desk.job(job.id).state == "finished", desk.job(job.id).error
    result = lab.result(job.id)
    assert [row["dataset"] for row in result["losses"]] == list(WEIGHTS) and result["kept"] == ""
    with pytest.raises(LobeError, match="exists already"):
        desk.lab.keep_merge(job.id, NUMBERS)
    assert desk.lab.keep_merge(job.id, "Both") == "Both" and lab.result(job.id)["kept"] == "Both"
    with pytest.raises(JobError, match="kept already, as 'Both'"):
        desk.lab.keep_merge(job.id, "Both again")
    assert [lobe.origin for lobe in desk.lobes() if lobe.name == "Both"] == ["merged"]
    assert list(studio.chat([{"role": "user", "content": "cat"}], "lobe:Both"))[-1].done

    given = tmp_path / "new.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows(ANIMALS)[:3]), encoding="utf-8")
    search = desk.lab.start("search", {"lobes": [ANIMALS, "wide"], "budget": 4}, [("new.jsonl", given)])
    wait(studio, search.id)
    found = lab.result(search.id)
    assert found and set(found["weights"]) == {ANIMALS, "wide"} and found["rows"] == 3 and len(found["trials"]) == 4
    assert studio.metrics(search.id)[-1]["values"].keys() == {"loss", "best"}
    with pytest.raises(JobError, match="made no lobe"):
        desk.lab.keep_merge(search.id, "No")

    failed = desk.lab.start("merge", {"lobes": [[ANIMALS, 1], ["wide", 1]], "combination": "linear"})
    wait(studio, failed.id)
    assert desk.job(failed.id).state == "failed" and "svd or cat" in desk.job(failed.id).error


def test_a_shared_server_makes_no_lobes_of_lobes(make_studio: Callable[..., Any]) -> None:
    studio = make_studio(shared=True)
    with pytest.raises(ConfigError, match="does not run: Merge lobes"):
        studio.desk().lab.start("merge", {"lobes": [["a", 1.0]]})
