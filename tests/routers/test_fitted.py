"""The routers of a home: fits that survive, go stale, follow a rename and travel with a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_model import TOPICS, WordEmbedder, rows

from multilobe_ui import MultiLobeModel
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import ConfigError, RoutingError
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.routers import ROUTERS
from multilobe_ui.routing.decision import Mixing
from multilobe_ui.routing.map import prompt_map
from multilobe_ui.routing.scores import MeanHidden, PromptScores, prompt_nll

SETTINGS = {"epochs": 1, "lora_r": 2, "learning_rate": 1e-2, "batch_size": 8, "validation_fraction": 0.1}
PROMPTS = ["cat dog", "one two", "red green", "lion three orange", "something else"]


@pytest.fixture
def make(backbone: Backbone, tmp_path: Path) -> Callable[..., MultiLobeModel]:
    def made(home: str = "home", topics: int = 2) -> MultiLobeModel:
        model = MultiLobeModel(backbone, home=tmp_path / home, embedder=WordEmbedder())
        for topic in list(TOPICS)[len(model.lobes) : topics]:
            model.add_lobe(topic, rows(topic), **SETTINGS)
        return model

    return made


def decisions(model: MultiLobeModel, router: str) -> list[tuple[str | None, dict[str, float]]]:
    found = [model.route(prompt, router) for prompt in PROMPTS]
    return [(d.chosen, dict(d.probabilities)) for d in found]


def test_a_router_that_asks_for_a_fit_says_so_until_it_has_one(make: Callable) -> None:
    model = make()
    decision = model.route("cat dog", "gate")
    assert decision.chosen is None and "fit" in decision.reason.lower()
    records = []
    fit = model.fit_router("gate", progress=records.append)
    assert records and records[-1].step <= records[-1].steps and 0 <= fit.report["accuracy"] <= 1
    assert model.route("cat dog", "gate").chosen == "Animals"
    with pytest.raises(ConfigError, match=r"'nonsense'.*hybrid"):
        model.route("cat dog", "nonsense")
    with pytest.raises(ConfigError, match="settings"):
        model.fit_router("gate", nonsense=1)


def test_a_lobe_that_comes_makes_a_fit_stale_and_a_new_fit_knows_it(make: Callable) -> None:
    model = make()
    model.fit_router("gate")
    assert not model.routers.is_stale("gate")
    before = decisions(model, "gate")
    colours = list(TOPICS)[2]
    model.add_lobe(colours, rows(colours), **SETTINGS)
    assert model.routers.is_stale("gate")
    stale = [model.route(prompt, "gate") for prompt in PROMPTS]
    assert [d.chosen for d in stale] == [chosen for chosen, _ in before]  # it goes on as it was
    assert all(d.chosen != colours for d in stale)
    model.fit_router("gate")
    assert not model.routers.is_stale("gate") and model.route("red green", "gate").chosen == colours


def test_a_lobe_that_goes_is_never_chosen_again(make: Callable) -> None:
    model = make(topics=3)
    model.fit_router("gate")
    model.remove_lobe("Animals")
    assert model.routers.is_stale("gate")
    for name in ("gate", "hybrid", "keyword", "embedding", "logprob"):
        assert all(model.route(prompt, name).chosen != "Animals" for prompt in PROMPTS)
        assert all("Animals" not in model.route(prompt, name, Mixing("soft")).weights for prompt in PROMPTS)


def test_a_renamed_lobe_keeps_what_routers_know_of_it(make: Callable) -> None:
    model = make()
    model.fit_router("gate")
    before = decisions(model, "gate")
    model.rename_lobe("Animals", "Zoo")
    assert not model.routers.is_stale("gate")
    after = decisions(model, "gate")
    assert [c for c, _ in after] == ["Zoo" if c == "Animals" else c for c, _ in before]
    assert [p["Zoo"] for _, p in after] == [p["Animals"] for _, p in before]


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_fits_survive_a_restart_and_a_bundle(name: str, make: Callable, tmp_path: Path) -> None:
    model = make(topics=3)
    model.fit_router("gate")
    model.routers.change("keyword", lambda router: router.set_terms("Animals", {"zebra": 5.0}))  # type: ignore[attr-defined]
    routers = ("gate", "keyword", "embedding")
    before = {router: decisions(model, router) for router in routers}

    again = make(topics=3)
    again.routers.prepare()
    assert {router: decisions(again, router) for router in routers} == before
    assert again.routers.fit_of("gate").report == model.routers.fit_of("gate").report

    model.save(tmp_path / name)
    loaded = make("other", topics=0)
    loaded.load_bundle(tmp_path / name)
    assert not loaded.routers.is_stale("gate")
    assert {router: decisions(loaded, router) for router in routers} == before
    assert loaded.route("a zebra", "keyword").chosen == "Animals"


def test_a_bundle_into_a_home_that_has_lobes_leaves_its_fits_and_marks_them_stale(
    make: Callable, tmp_path: Path
) -> None:
    model, other = make(topics=3), make("other", topics=1)
    model.fit_router("gate")
    model.save(tmp_path / "b")
    other.fit_router("gate")
    other.load_bundle(tmp_path / "b")  # "Animals" is there already: the newcomer gets another name
    assert other.routers.is_stale("gate") and other.routers.fit_of("gate").state["lobes"] == ["Animals"]


def test_a_damaged_fit_is_as_none(make: Callable) -> None:
    model = make()
    model.fit_router("gate")
    (model.routers.folder / "gate" / "arrays.safetensors").write_bytes(b"broken")
    again = make()
    assert again.routers.fit_of("gate") is None and again.route("cat dog", "gate").chosen is None


def test_a_refused_change_changes_nothing(make: Callable) -> None:
    model = make()
    before = model.routers.named("keyword").state()
    with pytest.raises(RoutingError):
        model.routers.change("keyword", lambda router: router.set_terms("nobody", {"a": 1.0}))  # type: ignore[attr-defined]
    assert model.routers.named("keyword").state() == before


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_every_router_decides_in_a_home_without_lobes_and_with_one(name: str, make: Callable) -> None:
    for topics in (0, 1):
        decision = make(topics=topics).route("cat dog", name)
        assert decision.reason and (decision.chosen in (None, "Animals"))
        assert decision.chosen is None or topics


def test_mixing_modes_reach_the_weights(make: Callable) -> None:
    model = make(topics=3)
    soft = model.route("lion three orange", "embedding", Mixing("soft"))
    if soft.chosen:
        assert sum(soft.weights.values()) == pytest.approx(1)
    two = model.answers.decide([{"role": "user", "content": "cat dog"}], router="keyword", mixing=Mixing("top_k", 2))
    assert 1 <= len(two.weights) <= 2 and max(two.weights, key=lambda n: two.weights[n]) == two.chosen == "Animals"


def test_the_map_is_the_principal_plane_of_the_prototypes(make: Callable) -> None:
    model = make(topics=3)
    context = model.routers.context()
    prompt = context.embed(["cat dog"])[0]
    shown = prompt_map(context.rows, prompt)
    assert shown.lobes.keys() == shown.prototypes.keys() == set(TOPICS) and 0 < shown.explained <= 1 + 1e-6
    centre = np.mean([own.prototypes.mean(0) for own in context.rows.values()], axis=0)
    spread = np.concatenate([(own.prototypes - centre) / np.sqrt(len(own.prototypes)) for own in context.rows.values()])
    values, vectors = np.linalg.eigh(spread.T @ spread)  # another way to the same plane
    flat = (prompt - centre) @ vectors[:, ::-1][:, :2]
    assert np.abs(shown.prompt) == pytest.approx(np.abs(flat), abs=1e-3)
    assert shown.explained == pytest.approx(values[-2:].sum() / values.sum(), abs=1e-4)
    near = {name: np.linalg.norm(places - shown.prompt, axis=1).min() for name, places in shown.lobes.items()}
    assert min(near, key=lambda name: near[name]) == "Animals"
    assert all(len(shown.texts[name]) == len(places) for name, places in shown.lobes.items())


def test_a_map_without_lobes_is_empty() -> None:
    assert prompt_map({}, None).lobes == {}


def test_remembered_prompt_scores_are_those_of_a_fresh_count(make: Callable) -> None:
    model = make(topics=3)
    scores, ids = PromptScores(model.bank, 30), [lobe.id for lobe in model.lobes]
    texts = [*PROMPTS, "", "x"]
    expected = prompt_nll(model.bank, texts, ids)
    np.testing.assert_allclose(scores(texts, ids[:2]), expected[:, [0, 1, 3]], atol=1e-5)
    np.testing.assert_allclose(scores(texts, ids), expected, atol=1e-5)  # two columns remembered, one new
    np.testing.assert_allclose(scores(texts[::-1], ids[::-1]), expected[::-1][:, [2, 1, 0, 3]], atol=1e-5)
    last = model.lobes[-1]
    model.remove_lobe(last.name)
    again = model.add_lobe("another", rows("Animals"), **SETTINGS)
    present = [*ids[:2], again.id]
    assert again.id not in ids
    np.testing.assert_allclose(scores(texts, present), prompt_nll(model.bank, texts, present), atol=1e-5)


def test_mean_hidden_states_are_those_of_the_plain_base(make: Callable) -> None:
    import torch

    model = make(topics=1)
    scores = PromptScores(model.bank, 30)
    hidden = MeanHidden(model.bank, scores)
    for text in ("cat dog", "one"):
        opening, words = model.backbone.encode_prompt(text)
        with torch.inference_mode():
            output = model.backbone.model(torch.tensor([opening + words]), output_hidden_states=True)
        mean = output.hidden_states[-1][0, len(opening) :].mean(0)
        for _ in range(2):
            np.testing.assert_allclose(hidden([text])[0], (mean / mean.norm()).numpy(), atol=1e-5)
    assert not hidden([""]).any()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "opt", "gpt_neox", "gemma2"])
def test_prompts_that_are_read_together_are_read_as_alone(base_folder: Callable[..., Path], architecture: str) -> None:
    bank = LobeBank(Backbone.from_pretrained(base_folder(architecture), device="cpu"))
    texts = ["one", "cat dog bird fish cow hen " * 5, "", "red green", "one two three"]
    together, alone = (MeanHidden(bank, PromptScores(bank, 5)) for _ in range(2))
    np.testing.assert_allclose(together(texts), np.concatenate([alone([text]) for text in texts]), atol=1e-5)
    noted = PromptScores(bank, 5)
    MeanHidden(bank, noted)(texts)
    np.testing.assert_allclose(noted(texts, []), prompt_nll(bank, texts, [], 5), atol=1e-5)


def test_reading_a_prompt_with_the_base_gives_its_score_as_well(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(topics=2)
    scores, ids = PromptScores(model.bank, 5), [lobe.id for lobe in model.lobes]
    hidden, texts = MeanHidden(model.bank, scores), ["cat dog bird fish cow hen", "one", ""]
    hidden(texts)
    expected = prompt_nll(model.bank, texts, ids, 5)
    rows: list[int] = []
    run = model.bank.run
    monkeypatch.setattr(model.bank, "run", lambda mix, **how: rows.append(len(how["input_ids"])) or run(mix, **how))
    np.testing.assert_allclose(scores(texts, ids), expected, atol=1e-5)
    assert rows == [2, 2]  # the lobes' rows of two texts that have words, and no row of the base
