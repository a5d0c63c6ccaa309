"""Bundles that mean harm, or were made badly: each is refused or harmless, and those who were here notice nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_model import TOPICS, WordEmbedder, rows

from multilobe_ui import MultiLobeModel
from multilobe_ui.app.studio import Studio
from multilobe_ui.assets import demo_bundle
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import BundleError, MultiLobeError
from multilobe_ui.files import folder_size
from multilobe_ui.lobes.rows import MOST_ROWS, RoutingRows, sound_rows, write_routing_rows
from multilobe_ui.lobes.store import LAST_FILE
from multilobe_ui.routers import ROUTERS
from multilobe_ui.routers.gate import GateRouter
from multilobe_ui.routing.fits import Fit, Key, read_fit, write_fit

ANIMALS, NUMBERS, COLOURS = TOPICS
SETTINGS = {"epochs": 1, "lora_r": 2, "learning_rate": 1e-2, "batch_size": 8}
OTHERS = ["cat dog", "one two", "lion dog cat", "seven one two", "cow horse"]
"""Prompts that do not belong to the newcomer."""
STAGES = [["embedding", 0.25], ["logprob", 0.5]]
EMBED = WordEmbedder()


@pytest.fixture(scope="module")
def homes(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a home of two lobes, a bundle of a third that a stranger made)."""
    mine = tmp_path_factory.mktemp("mine")
    model = MultiLobeModel(backbone, home=mine, embedder=EMBED)  # type: ignore[arg-type]
    for topic in (ANIMALS, NUMBERS):
        model.add_lobe(topic, rows(topic), **SETTINGS)
    theirs = MultiLobeModel(backbone, embedder=EMBED)  # type: ignore[arg-type]
    theirs.add_lobe(COLOURS, rows(COLOURS), **SETTINGS)
    return mine, theirs.save(tmp_path_factory.mktemp("theirs") / "bundle")


@pytest.fixture
def model(backbone: Backbone, homes: tuple[Path, Path], tmp_path: Path) -> MultiLobeModel:
    shutil.copytree(homes[0], tmp_path / "home")
    return MultiLobeModel(backbone, home=tmp_path / "home", embedder=EMBED)  # type: ignore[arg-type]


@pytest.fixture
def empty(backbone: Backbone) -> MultiLobeModel:
    return MultiLobeModel(backbone, embedder=EMBED)  # type: ignore[arg-type]


@pytest.fixture
def forge(homes: tuple[Path, Path], tmp_path: Path) -> Callable[..., Path]:
    """forge(change of the lobe's folder, fits) → a zip whose manifest agrees with what was changed."""

    def make(change: Callable[[Path], Any] = lambda folder: None, fits: dict[str, Fit] | None = None) -> Path:
        root = Path(shutil.copytree(homes[1], tmp_path / "forged"))
        change(root / "lobes" / "lobe_0001")
        for name, fit in (fits or {}).items():
            write_fit(root / "routers" / name, fit)
        manifest = json.loads((root / "bundle.json").read_text())
        manifest["lobes"][0]["files"] = hashes(root / "lobes" / "lobe_0001")
        places = sorted((root / "routers").iterdir()) if (root / "routers").is_dir() else []
        manifest["routers"] = [{"folder": p.name, "name": p.name, "files": hashes(p)} for p in places]
        (root / "bundle.json").write_text(json.dumps(manifest))
        return Path(shutil.make_archive(str(tmp_path / "forged"), "zip", root))

    return make


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def vectors_as(change: Callable[[np.ndarray], np.ndarray], *kinds: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        arrays = load_file(folder / "routing.safetensors")
        changed = {kind: change(arrays[kind]) for kind in kinds or arrays}
        save_file({kind: np.ascontiguousarray(a) for kind, a in (arrays | changed).items()}, folder / "routing.safetensors")

    return apply


def json_as(file: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        change(values)
        (folder / file).write_text(json.dumps(values))

    return apply


def both(*changes: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda folder: [change(folder) for change in changes] and None


def with_nan(vectors: np.ndarray) -> np.ndarray:
    spoilt = vectors.copy()
    spoilt[:1, 0] = np.nan
    return spoilt


NO_PROMPTS = json_as("prompts.json", lambda p: p.update({kind: [] for kind in p}))
ANOTHER = json_as("card.json", lambda card: card.update(embedding_model="someone/else"))
MENDED = {
    "wrong width": vectors_as(lambda v: v[:, :40]),
    "wrong width of one kind": vectors_as(lambda v: v[:, :40], "train"),
    "length of 30,000": vectors_as(lambda v: v * 30_000),
    "length of 30,000 for prototypes": vectors_as(lambda v: v * 30_000, "prototypes"),
    "not finite": vectors_as(with_nan),
    "infinite": vectors_as(lambda v: np.full_like(v, np.inf)),
    "all zero": vectors_as(np.zeros_like),
    "no vectors": vectors_as(lambda v: v[:0]),
    "three dimensions": vectors_as(lambda v: v[None]),
    "fewer prompts than vectors": json_as("prompts.json", lambda p: p.update(train=p["train"][:-3])),
    "fewer vectors than prompts": vectors_as(lambda v: v[:-3], "train"),
    "another encoder's": both(ANOTHER, vectors_as(lambda v: v[:, :40])),
    "another encoder's of our width": both(ANOTHER, vectors_as(lambda v: v[:, ::-1])),
    "half a character": json_as("prompts.json", lambda p: p.update(train=[*p["train"], "red \ud83d"])),
    "vectors that cannot be read": lambda folder: (folder / "routing.safetensors").write_bytes(b"broken"),
    "no file of vectors": lambda folder: (folder / "routing.safetensors").unlink(),
}
WITHOUT_ROWS = {
    "another encoder's without prompts": both(ANOTHER, NO_PROMPTS),
    "wrong width without prompts": both(vectors_as(lambda v: v[:, :40]), NO_PROMPTS),
    "length of 30,000 without prompts": both(vectors_as(lambda v: v * 30_000), NO_PROMPTS),
    "empty": both(vectors_as(lambda v: v[:0]), NO_PROMPTS),
    "prompts that are numbers": both(
        vectors_as(lambda v: v * 30_000), json_as("prompts.json", lambda p: p.update(train=[1, 2]))
    ),
    "blank prompts": both(ANOTHER, json_as("prompts.json", lambda p: p.update(train=[" "] * 9, validation=["\n"]))),
}
HARMLESS = {"as it was": lambda folder: None, "a little off": vectors_as(lambda v: v * np.float16(1.05))}


def decided(model: MultiLobeModel, prompts: list[str] = OTHERS) -> list[Any]:
    asked = [model.route(prompt, router) for router in (None, "embedding") for prompt in prompts]
    assert all(0 <= d.confidence <= 1 for d in asked)
    assert all(np.isfinite([*d.scores.values(), *d.probabilities.values(), *d.weights.values()]).all() for d in asked)
    return [(d.chosen, dict(d.scores), dict(d.probabilities)) for d in asked]


def chosen(decisions: list[Any]) -> list[str | None]:
    return [name for name, *_ in decisions]


@pytest.mark.parametrize("case", [*MENDED, *WITHOUT_ROWS, *HARMLESS])
def test_those_who_were_here_notice_nothing(case: str, model: MultiLobeModel, forge: Callable[..., Path]) -> None:
    harm = (MENDED | WITHOUT_ROWS | HARMLESS)[case]
    before = decided(model)
    assert chosen(before)[len(OTHERS) :] == [ANIMALS, NUMBERS, ANIMALS, NUMBERS, ANIMALS]
    assert [lobe.name for lobe in model.load_bundle(forge(harm))] == [COLOURS]
    assert chosen(decided(model)) == chosen(before)
    known = model.routers.context().rows
    assert (COLOURS in known) == (case not in WITHOUT_ROWS)
    if COLOURS in known:
        own = known[COLOURS]
        for vectors in (own.prototypes, own.train, own.validation):
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2)
            assert vectors.shape[1] == 64
        np.testing.assert_allclose(own.train, EMBED(own.train_prompts), atol=2e-3)
        assert model.route("red green", "embedding").chosen == COLOURS
    for name in ROUTERS:
        assert model.route("red green", name).reason
    reopened = MultiLobeModel(model.backbone, home=model.home, embedder=EMBED)  # type: ignore[arg-type]
    assert decided(reopened) == decided(model)
    assert (COLOURS in reopened.routers.context().rows) == (COLOURS in known)
    model.remove_lobe(COLOURS)
    assert decided(model) == before


@pytest.mark.parametrize("case", MENDED)
def test_a_lobe_that_was_copied_by_hand_never_stops_routing(case: str, model: MultiLobeModel) -> None:
    before = decided(model)
    MENDED[case](model.lobes.named(NUMBERS).path)
    again = MultiLobeModel(model.backbone, home=model.home, embedder=EMBED)  # type: ignore[arg-type]
    assert [name for name in chosen(decided(again)) if name] == [name for name in chosen(before) if name]
    kept = decided(again)
    assert decided(MultiLobeModel(model.backbone, home=model.home, embedder=EMBED)) == kept  # type: ignore[arg-type]


def test_a_lobe_without_anything_to_go_by_is_left_out(model: MultiLobeModel) -> None:
    both(vectors_as(lambda v: v[:, :40]), NO_PROMPTS)(model.lobes.named(NUMBERS).path)
    again = MultiLobeModel(model.backbone, home=model.home, embedder=EMBED)  # type: ignore[arg-type]
    assert list(again.routers.context().rows) == [ANIMALS]
    assert again.route("cat dog", "embedding").chosen == ANIMALS


def test_of_many_rows_so_many_are_taken_evenly(model: MultiLobeModel, forge: Callable[..., Path]) -> None:
    prompts = [f"red {i}" for i in range(2000)]
    asked: list[str] = []

    def embed(texts: Any) -> np.ndarray:
        asked.extend(texts)
        return EMBED(texts)

    nothing = np.zeros((0, 64), np.float32)
    found = sound_rows(RoutingRows(nothing, nothing, nothing, prompts, prompts, prompts, ["x"]), embed, 64)
    assert found is not None and len(asked) == sum(MOST_ROWS.values()) == 640
    assert len(found.train) == len(found.train_prompts) == len(found.train_answers) == 512 and found.validation_answers == []
    assert found.train_prompts[0] == "red 0" and found.train_prompts[-1] == prompts[511 * 2000 // 512]

    def many(folder: Path) -> None:
        vectors = EMBED(prompts)
        write_routing_rows(folder, RoutingRows(vectors[:200], vectors, vectors, prompts, prompts))

    model.load_bundle(forge(many))
    own = model.routers.context().rows[COLOURS]
    assert (len(own.prototypes), len(own.train), len(own.validation_prompts)) == (64, 512, 128)
    np.testing.assert_allclose(own.train, EMBED(own.train_prompts), atol=1e-3)


# ---- all or none -----------------------------------------------------------------------------------------------------------


def everything(model: MultiLobeModel) -> Any:
    files = {p.relative_to(model.home): p.read_bytes() for p in model.home.rglob("*") if p.is_file() and p.name != LAST_FILE}
    lobes, routers = model.lobes, model.routers
    inside = lobes.names, lobes.pinned, dict(lobes.broken), sorted(routers.fits_of(set())), list(lobes.store.broken)
    return files, inside, list(routers.context().rows), routers.version


@pytest.mark.parametrize("clash", ["rename", "replace"])
@pytest.mark.parametrize("place", ["register", "route", "calibrate", "embed"])
@pytest.mark.parametrize("error", [RuntimeError("by accident"), BundleError("on purpose")])
def test_whatever_fails_all_is_as_before(
    place: str, clash: Any, error: Exception, model: MultiLobeModel, forge: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    model.fit_router("gate")
    model.memory.pin(model.lobes.named(NUMBERS).id)
    before, found = everything(model), decided(model)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    renamed = json_as("card.json", lambda card: card.update(name=NUMBERS))
    path = forge(both(renamed, vectors_as(lambda v: v * 30_000)))
    manifest = path.with_suffix("") / "bundle.json"
    manifest.write_text(manifest.read_text().replace(COLOURS.encode("ascii", "backslashreplace").decode(), NUMBERS))
    path = Path(shutil.make_archive(str(path.with_name("again")), "zip", path.with_suffix("")))
    with monkeypatch.context() as patch:
        if place == "register":
            patch.setattr(model.memory, "registered", fail)
        elif place == "route":
            patch.setattr(model.routers, "take", fail)
        elif place == "calibrate":
            patch.setattr("multilobe_ui.routers.fitted.Routers._made", fail)
        else:
            patch.setattr(WordEmbedder, "__call__", fail)
        with pytest.raises((RuntimeError, MultiLobeError), match=r"by accident|on purpose"):
            model.load_bundle(path, clash)
    assert everything(model) == before and decided(model) == found
    (lobe,) = model.load_bundle(path, clash)
    assert lobe.name == (NUMBERS if clash == "replace" else f"{NUMBERS} (2)")


# ---- fits of strangers -----------------------------------------------------------------------------------------------------


def births(model: MultiLobeModel, *more: tuple[str, str]) -> Key:
    """What a stranger can work out from the list of lobes."""
    listed = [(entry["name"], entry["created"]) for entry in model.list_lobes()]
    return Key("words", "None", (*listed, *more))


def born(bundle: Path) -> tuple[str, str]:
    card = json.loads((bundle / "lobes" / "lobe_0001" / "card.json").read_text())
    return card["name"], card["created"]


def stages(model: MultiLobeModel) -> Any:
    return model.routers.named("chain").present_settings["stages"]


def test_a_stranger_does_not_set_the_chain_or_the_words_of_a_home_with_lobes(
    model: MultiLobeModel, forge: Callable[..., Path], homes: tuple[Path, Path]
) -> None:
    key, before = births(model, born(homes[1])), stages(model)
    words = {"edited": [ANIMALS], "terms": {ANIMALS: {"one": 9.0}}, "lobes": [], "temperature": 1.0, "none": 0.0}
    gate = {"lobes": [COLOURS], "embedding": "sentence", "none": False, "temperature": 1.0, "limit": 1.0,
            "weight": np.ones((1, 64), np.float32), "bias": np.ones(1, np.float32)}  # fmt: skip
    fits = {
        "chain": Fit("chain", key, {"stages": STAGES}),
        "keyword": Fit("keyword", key, words),
        "gate": Fit("gate", key, gate),
    }
    model.load_bundle(forge(fits=fits))
    assert model.routers.key() == key, "the key was worked out right"
    assert stages(model) == before and not model.routers.named("keyword").edited  # type: ignore[attr-defined]
    assert not model.routers.named("gate").is_fitted and not model.routers.folder.exists()


@pytest.mark.parametrize("settings", [True, False])
def test_settings_come_into_a_fresh_home_unless_it_is_shared(
    settings: bool, empty: MultiLobeModel, forge: Callable[..., Path], homes: tuple[Path, Path]
) -> None:
    before = stages(empty)
    path = forge(fits={"chain": Fit("chain", births(empty, born(homes[1])), {"stages": STAGES})})
    empty.load_bundle(path, settings=settings)
    assert stages(empty) == (STAGES if settings else before)


def test_a_persons_chain_stays_whatever_comes(
    empty: MultiLobeModel, forge: Callable[..., Path], homes: tuple[Path, Path]
) -> None:
    mine = [["keyword", 0.125]]
    empty.routers.change("chain", lambda router: router.set_stages(mine))  # type: ignore[attr-defined]
    empty.load_bundle(forge(fits={"chain": Fit("chain", births(empty, born(homes[1])), {"stages": STAGES})}))
    again = MultiLobeModel(empty.backbone, home=empty.home, embedder=EMBED)  # type: ignore[arg-type]
    assert stages(empty) == stages(again) == mine


def gate_state(**changed: Any) -> dict[str, Any]:
    calibration = {"temperature": 1.0, "floor": 0.0, "low": 0.0, "high": 0.0, "spread": 1.0} | changed.pop("calibration", {})
    state = {"lobes": [COLOURS], "embedding": "sentence", "calibration": calibration, "middle": np.zeros(0, np.float32),
             "weight": np.zeros((2, 64), np.float32), "bias": np.zeros(2, np.float32)}  # fmt: skip
    return state | changed


BAD_STATES = {
    "of another width": gate_state(weight=np.ones((1, 40), np.float32)),
    "of one dimension": gate_state(weight=np.ones(64, np.float32)),
    "that overflows": gate_state(weight=np.full((2, 64), 3e38, np.float32), bias=np.full(2, 3e38, np.float32)),
    "not a number": gate_state(calibration={"temperature": "hot"}),
    "NaN in JSON": gate_state(calibration={"temperature": float("nan")}),
    "infinite in JSON": gate_state(more={"a": [float("inf")]}),
    "without its parts": {"weight": np.ones((1, 64), np.float32)},
    "of odd types": gate_state(lobes=7, bias=np.zeros((1, 1, 1), np.float32)),
    "a large number": gate_state(calibration={"temperature": 10**400}),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_state_that_a_router_cannot_use_is_as_none(
    case: str, empty: MultiLobeModel, forge: Callable[..., Path], homes: tuple[Path, Path]
) -> None:
    key = births(empty, born(homes[1]))
    good = forge(fits={"gate": Fit("gate", key, gate_state())})
    write_fit(good.with_suffix("") / "routers" / "gate", Fit("gate", key, BAD_STATES[case]))
    manifest = json.loads((good.with_suffix("") / "bundle.json").read_text())
    manifest["routers"][0]["files"] = hashes(good.with_suffix("") / "routers" / "gate")
    (good.with_suffix("") / "bundle.json").write_text(json.dumps(manifest))
    empty.load_bundle(good.with_suffix(""))
    decision = empty.route("red green", "gate")
    assert decision.chosen is None and "not been fitted" in decision.reason
    assert empty.fit_router("gate") and empty.route("red green", "gate").chosen == COLOURS


def test_a_fit_that_was_made_here_is_never_overwritten(
    empty: MultiLobeModel, forge: Callable[..., Path], homes: tuple[Path, Path]
) -> None:
    key = births(empty, born(homes[1]))
    path = forge(fits={"gate": Fit("gate", key, gate_state(), created="theirs")})
    empty.load_bundle(path)
    assert empty.routers.fit_of("gate").created == "theirs"  # type: ignore[union-attr]
    mine = empty.fit_router("gate")
    empty.load_bundle(path, "replace")
    assert empty.routers.fit_of("gate").created == mine.created != "theirs"  # type: ignore[union-attr]


def test_a_stranger_does_not_become_the_expert_of_a_tier(
    model: MultiLobeModel, forge: Callable[..., Path], tmp_path: Path
) -> None:
    ours = Path(shutil.copytree(model.lobes.named(ANIMALS).path, tmp_path / "expert"))
    expert = json_as("card.json", lambda card: card.update(tier="simple"))
    model.load_bundle(forge(expert))
    assert model.routers.context().experts == {"simple": COLOURS}
    model.lobes.add_expert("simple", ours, "")
    mine = model.routers.context().experts["simple"]
    assert mine == COLOURS and "sha256" not in model.lobes.named(mine).card.adapter  # it takes the place of the stranger's
    shutil.rmtree(tmp_path / "forged")
    model.load_bundle(forge(expert))
    assert model.routers.context().experts == {"simple": mine}
    shutil.rmtree(tmp_path / "forged")
    with pytest.raises(BundleError, match="wrong type"):
        model.load_bundle(forge(json_as("card.json", lambda card: card.update(tier={"a": 1}))))


@pytest.fixture
def shared(base_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    monkeypatch.setattr("multilobe_ui.model.Embedder", lambda *_: WordEmbedder())
    studio = Studio(tmp_path / "shared", str(base_folder()), shared=True)
    studio.start()
    studio.ready(60)
    yield studio
    studio.close()


def test_a_visitor_of_a_shared_server_brings_no_chain(
    shared: Studio, forge: Callable[..., Path], homes: tuple[Path, Path]
) -> None:
    model = shared.ready()
    before = stages(model)
    path = forge(fits={"chain": Fit("chain", births(model, born(homes[1])), {"stages": STAGES})})
    assert shared.desk("visitor").load_bundle(path) == [COLOURS] and stages(model) == before


def test_names_of_lobes_that_are_words_of_a_state_do_not_change_it(model: MultiLobeModel) -> None:
    model.rename_lobe(ANIMALS, "sentence")
    model.rename_lobe(NUMBERS, "keyword")
    model.fit_router("gate")
    model.routers.change("chain", lambda router: router.set_stages([["keyword", 0.5]]))  # type: ignore[attr-defined]
    model.routers.change("keyword", lambda router: router.set_terms("keyword", {"keyword": 5.0}))  # type: ignore[attr-defined]
    before = model.route("one two", "gate")
    model.rename_lobe("sentence", "a")
    model.rename_lobe("keyword", "b")
    assert model.routers.named("gate").is_fitted and stages(model) == [["keyword", 0.5]]
    assert model.route("one two", "gate").scores["b"] == before.scores["keyword"]
    assert model.routers.named("keyword").terms()["b"] == {"keyword": 5.0}  # type: ignore[attr-defined]


# ---- nothing derived is kept -----------------------------------------------------------------------------------------------


def test_what_calibrates_by_itself_is_not_on_disk(model: MultiLobeModel, tmp_path: Path) -> None:
    for name in ROUTERS:
        model.route("cat dog", name)
    assert not model.routers.folder.exists()
    for name in ("logprob", "embedding"):
        fit = model.fit_router(name)
        assert model.routers.fit_of(name) == fit and not model.routers.folder.exists()
    assert json.loads((model.save(tmp_path / "b") / "bundle.json").read_text())["routers"] == []
    model.fit_router("gate")
    model.routers.change("keyword", lambda router: router.set_terms(ANIMALS, {"zebra": 5.0}))  # type: ignore[attr-defined]
    model.routers.change("chain", lambda router: router.set_stages(STAGES))  # type: ignore[attr-defined]
    assert sorted(p.name for p in model.routers.folder.iterdir()) == ["chain", "gate", "keyword"]
    assert read_fit(model.routers.folder / "chain").state == {"stages": STAGES}
    whole = json.loads((model.save(tmp_path / "b") / "bundle.json").read_text())
    assert sorted(entry["name"] for entry in whole["routers"]) == ["chain", "gate", "keyword"]
    part = json.loads((model.save(tmp_path / "part", [ANIMALS]) / "bundle.json").read_text())
    assert part["routers"] == [], "a fit for two lobes says nothing of one"
    model.routers.change("keyword", lambda router: router.set_terms(ANIMALS, None))  # type: ignore[attr-defined]
    assert sorted(p.name for p in model.routers.folder.iterdir()) == ["chain", "gate"]


def test_what_older_versions_kept_is_swept_but_for_what_a_person_said(model: MultiLobeModel) -> None:
    key, place = model.routers.key(), model.routers.folder
    terms = {ANIMALS: {"zebra": 5.0}, NUMBERS: {"learned": 2.0}}
    write_fit(place / "hybrid", Fit("hybrid", key, {"coefficients": [1.0], "detector": np.ones((3, 64))}))
    write_fit(place / "embedding", Fit("embedding", key, {"lobes": [], "margin": 0.1}))
    write_fit(place / "keyword", Fit("keyword", key, {"edited": [ANIMALS], "terms": terms, "lobes": [], "none": 0.0}))
    write_fit(place / "chain", Fit("chain", key, {"stages": [["keyword", 0.8], ["gate", 0.7], ["logprob", 0.0]]}))
    again = MultiLobeModel(model.backbone, home=model.home, embedder=EMBED)  # type: ignore[arg-type]
    assert [p.name for p in place.iterdir()] == ["keyword"]
    assert again.route("a zebra", "keyword").chosen == ANIMALS
    assert again.routers.named("keyword").edited == {ANIMALS}  # type: ignore[attr-defined]


@pytest.mark.builtin
def test_the_demo_comes_with_its_fits_and_one_lobe_of_it_is_small(builtin: Backbone, tmp_path: Path) -> None:
    model = MultiLobeModel(builtin)
    model.load_bundle(demo_bundle())
    for router in ("gate", "xlora"):
        assert not model.routers.is_stale(router) and model.routers.named(router).is_fitted
        assert model.route("What does insulin do?", router).chosen == "medical"
    assert sorted(p.name for p in model.routers.folder.iterdir()) == ["gate", "xlora"]
    one = model.save(tmp_path / "one.zip", ["medical"])
    assert one.stat().st_size <= 1.2 * folder_size(model.lobes.named("medical").path)
    whole = model.save(tmp_path / "whole.zip")
    again = MultiLobeModel(builtin)
    again.load_bundle(whole)
    assert again.route("What does insulin do?", "gate").scores == model.route("What does insulin do?", "gate").scores


# ---- locks -----------------------------------------------------------------------------------------------------------------


def test_experts_that_come_in_while_a_lobe_is_renamed_do_not_deadlock(
    model: MultiLobeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread ends a fit, holding what it holds, and then wants the model; the other has the model and wants the routers."""
    fitted, renaming = threading.Event(), threading.Event()
    rename, fitting = model.lobes.store.rename, GateRouter.learn

    def slow_rename(*names: str) -> Any:
        renaming.set()
        fitted.wait(10)
        return rename(*names)

    def fitting_an_expert(self: GateRouter, settings: Any, stop: Any) -> Any:
        outcome = yield from fitting(self, settings, stop)
        return replace(outcome, experts={"simple": tmp_path / "none" / "expert"})

    def slow_add_expert(*_: Any) -> None:
        renaming.wait(10)
        fitted.set()
        with model.lobes.lock:  # as `Lobes.add` does
            pass

    monkeypatch.setattr(model.lobes.store, "rename", slow_rename)
    monkeypatch.setattr(model.lobes, "add_expert", slow_add_expert)
    monkeypatch.setattr(GateRouter, "learn", fitting_an_expert)
    threads = [
        threading.Thread(target=model.fit_router, args=("gate",), daemon=True),
        threading.Thread(target=model.rename_lobe, args=(ANIMALS, "Zoo"), daemon=True),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "both wait for each other"
    assert set(model.lobe_names) == {"Zoo", NUMBERS}
