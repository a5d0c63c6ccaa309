"""Bundles: what is saved comes back byte for byte; what is bad is refused and leaves the lobes as they were."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from multilobe_ui.bundles import save as saving
from multilobe_ui.bundles.load import Base, loading_bundle, open_bundle, verify_bundle
from multilobe_ui.bundles.peer import prepare_adapter
from multilobe_ui.bundles.save import save_bundle
from multilobe_ui.errors import BundleError
from multilobe_ui.lobes.adapter import linear_features
from multilobe_ui.lobes.card import Card
from multilobe_ui.lobes.rows import RoutingRows, write_routing_rows
from multilobe_ui.lobes.store import LAST_FILE, Lobe, LobeStore
from multilobe_ui.routing.fits import Fit, Key

BASE = {"name": "tiny", "fingerprint": "0123456789abcdef", "architecture": "LlamaForCausalLM", "device": "cuda:0"}
FINGERPRINT = BASE["fingerprint"]
GATE = {"lobes": ["Law / EU", "Médecine"], "temperature": 0.07, "weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
FITS = {
    "gate": Fit(
        "gate", Key("minilm", "None", (("Law / EU", "2025"), ("Médecine", "2025"))), GATE, {}, {"ece": 0.1}, "now"
    ),
    "hybrid": Fit("hybrid", Key("minilm", "None"), {"thresholds": {"Law / EU": 0.4}}),
}
NAMES = ["Law / EU", "Médecine", "../code"]


@pytest.fixture(scope="module")
def features() -> dict[str, tuple[int, int]]:
    shape = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=1))
    return linear_features(model)


def write_adapter(folder: Path, seed: int = 0, width: int = 8, module: str = "q_proj", value: float = 1.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [module], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    numbers = np.random.default_rng(seed)
    key = f"base_model.model.model.layers.0.self_attn.{module}.lora_"
    matrices = {"A": numbers.normal(size=(2, width)) * value, "B": numbers.normal(size=(width, 2))}
    tensors = {f"{key}{side}.weight": m.astype(np.float32) for side, m in matrices.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def a_card(name: str, **changed: Any) -> Card:
    base = {"name": "tiny", "fingerprint": FINGERPRINT}
    return Card(
        **{"name": name, "created": "2025-01-01", "origin": "trained here", "base": base, "owner": "me"} | changed
    )


def some_rows(seed: int = 0) -> RoutingRows:
    vectors = np.random.default_rng(seed).normal(size=(6, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return RoutingRows(vectors[:2], vectors[:4], vectors[4:], ["a", "b", "c", "d"], ["e", "f"])


def add(store: LobeStore, name: str, seed: int = 0, rows: bool = True, **card: Any) -> Lobe:
    folder = write_adapter(store.folder.parent / f"new{seed}", seed)
    if rows:
        write_routing_rows(folder, some_rows(seed))
    (folder / "optimizer.pt").write_bytes(b"\x80\x04.")  # stays at home
    return store.add(folder, a_card(name, **card))


@pytest.fixture
def store(tmp_path: Path) -> LobeStore:
    """Three lobes, the last without routing rows."""
    made = LobeStore(tmp_path / "home" / "lobes")
    for i, name in enumerate(NAMES):
        add(made, name, i, rows=i < 2, origin=["trained here", "imported adapter", "trained here"][i])
    return made


@pytest.fixture
def other(tmp_path: Path) -> LobeStore:
    made = LobeStore(tmp_path / "other" / "lobes")
    add(made, "médecine", 7)
    return made


def contents(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != LAST_FILE)
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def snapshot(store: LobeStore) -> tuple[Any, Any]:
    assert [l.card for l in LobeStore(store.folder).all()] == [l.card for l in store.all()]
    return [(l.id, l.card) for l in store.all()], contents(store.folder)


def save(path: Path, store: LobeStore) -> Path:
    return save_bundle(path, store.all(), BASE, "minilm", FITS)


def load_bundle(
    path: Path, target: LobeStore, features: Mapping[str, tuple[int, int]], on_clash: Any = "rename", owner: str = ""
) -> tuple[list[Lobe], dict[str, Fit]]:
    with loading_bundle(path, target, Base("tiny", FINGERPRINT, features), on_clash, owner) as loaded:
        return loaded.lobes, loaded.fits


def assert_same_fits(found: Mapping[str, Fit], wanted: Mapping[str, Fit]) -> None:
    assert found.keys() == wanted.keys()
    for name, fit in wanted.items():
        there = found[name]
        assert (there.router, there.key, there.settings, there.report) == (
            fit.router,
            fit.key,
            fit.settings,
            fit.report,
        )
        assert there.state.keys() == fit.state.keys()
        assert all(np.array_equal(there.state[key], value) for key, value in fit.state.items())


# ---- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.zip", "folder"])
def test_round_trip(name: str, tmp_path: Path, store: LobeStore, features: Mapping[str, tuple[int, int]]) -> None:
    path = save(tmp_path / name, store)
    assert path.is_dir() == (name == "folder")
    assert verify_bundle(path) == []
    before = contents(path) if path.is_dir() else path.read_bytes()
    target = LobeStore(tmp_path / "target")
    lobes, fits = load_bundle(path, target, features, owner="you")
    assert_same_fits(fits, FITS)
    assert [l.name for l in lobes] == NAMES == [l.name for l in target.all()]
    for old, new in zip(store.all(), lobes, strict=True):
        theirs, ours = contents(old.path), contents(new.path)
        assert theirs.pop("optimizer.pt")
        assert theirs.pop("card.json") != ours.pop("card.json")
        assert theirs == ours
        assert new.card.owner == "you" and new.card.created == old.card.created
        assert new.card.origin == ("bundle" if old.card.origin == "trained here" else "imported adapter")
    assert (contents(path) if path.is_dir() else path.read_bytes()) == before
    again = save_bundle(tmp_path / "again", lobes, BASE, "minilm", fits)
    assert verify_bundle(again) == []


def test_manifest_and_privacy(tmp_path: Path, store: LobeStore) -> None:
    path = save(tmp_path / "b", store)
    manifest = json.loads((path / "bundle.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["generator"].startswith("multilobe-ui")
    assert manifest["base"] == {key: BASE[key] for key in ("name", "fingerprint", "architecture")}
    assert [e["name"] for e in manifest["lobes"]] == NAMES
    assert set(manifest["lobes"][2]["files"]) == {"adapter_config.json", "adapter_model.safetensors", "card.json"}
    assert json.loads((path / "lobes/lobe_0001/card.json").read_text())["owner"] == ""
    with open_bundle(path) as bundle:
        assert [(f.name, c.name) for f, c in bundle.lobe_folders[:1]] == [("lobe_0001", NAMES[0])]


def test_a_zip_with_its_folder_and_mac_junk(
    tmp_path: Path, store: LobeStore, other: LobeStore, features: Mapping[str, tuple[int, int]]
) -> None:
    save(tmp_path / "in" / "mine", store)
    (tmp_path / "in" / "__MACOSX").mkdir()
    (tmp_path / "in" / "__MACOSX" / "._mine").write_text("x")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "in")
    assert verify_bundle(tmp_path / "packed.zip") == []
    with open_bundle(tmp_path / "packed.zip") as bundle:
        root = bundle.root
    assert not root.exists()
    load_bundle(tmp_path / "packed.zip", other, features)
    assert [l.name for l in other.all()] == ["médecine", "Law / EU", "Médecine (2)", "../code"]


# ---- saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.zip", "folder"])
def test_a_failed_save_leaves_the_older_bundle(
    name: str, tmp_path: Path, store: LobeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "out" / name, store)
    before = contents(path.parent)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for place in ("write_card", "write_json"):
        with monkeypatch.context() as patch, pytest.raises(BundleError, match="No space left"):
            patch.setattr(saving, place, full)
            save_bundle(path, store.all()[:1], BASE, "minilm", {})
        assert contents(path.parent) == before
    save_bundle(path, store.all()[:1], BASE, "minilm", {})
    assert verify_bundle(path) == [] and len(list(path.parent.iterdir())) == 1
    with open_bundle(path) as bundle:
        assert len(bundle.manifest.lobes) == 1


def test_refused_saves(tmp_path: Path, store: LobeStore) -> None:
    with pytest.raises(BundleError, match="no lobe to save"):
        save_bundle(tmp_path / "a", [], BASE, "minilm", {})
    with pytest.raises(BundleError, match="for another base"):
        save_bundle(tmp_path / "a", store.all(), {**BASE, "fingerprint": "f" * 16}, "minilm", {})
    (tmp_path / "photos").mkdir()
    save(tmp_path / "photos", store)  # an empty folder is free
    (tmp_path / "photos" / "me.png").write_text("x")
    with pytest.raises(BundleError, match=r"not just a bundle \(me.png\)"):
        save(tmp_path / "photos", store)
    (tmp_path / "photos" / "bundle.json").unlink()
    with pytest.raises(BundleError, match=r"not just a bundle \(no bundle\.json, me.png\)"):
        save(tmp_path / "photos", store)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("me.png", "x")
    with pytest.raises(BundleError, match=r"not just a bundle \(no bundle\.json\)"):
        save(tmp_path / "a.zip", store)
    for damage in (lambda f: f.unlink(), lambda f: f.write_bytes(b"1234567890")):
        damage(store.all()[0].path / "adapter_model.safetensors")
        with pytest.raises(BundleError, match=r"was not saved.*adapter_model.safetensors"):
            save(tmp_path / "new", store)
    assert not (tmp_path / "new").exists()


def test_unreadable_routing_rows_are_left_out(tmp_path: Path, store: LobeStore) -> None:
    (store.all()[0].path / "routing.safetensors").write_bytes(b"broken")
    path = save(tmp_path / "b", store)
    assert verify_bundle(path) == []
    assert "routing.safetensors" not in contents(path / "lobes" / "lobe_0001")


# ---- bad bundles ----------------------------------------------------------------------------------------------------

LOBE = "lobes/lobe_0002"


def manifest_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        values = json.loads((root / "bundle.json").read_text())
        change(values)
        (root / "bundle.json").write_text(json.dumps(values))

    return apply


def file_with(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Change a file of the second lobe, and the manifest with it, as a forger would."""

    def apply(root: Path) -> None:
        make(root / LOBE / name)
        digest = hashlib.sha256((root / LOBE / name).read_bytes()).hexdigest()
        manifest_with(lambda m: m["lobes"][1]["files"].update({name: digest}))(root)

    return apply


def card_with(**values: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return file_with("card.json", make)


def config_with(**values: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return file_with("adapter_config.json", make)


def twins(root: Path) -> None:
    card_with(name="LAW / eu")(root)
    manifest_with(lambda m: m["lobes"][1].update(name="LAW / eu"))(root)


def another_module(root: Path) -> None:
    write_adapter(root / LOBE, 1, module="wq")
    for name in (CONFIG, WEIGHTS):
        file_with(name, lambda path: None)(root)


def hostile_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DEEP = "[" * 200_000
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "newer version": (manifest_with(lambda m: m.update(format_version=2)), "format version 2; this multilobe-ui reads"),
    "odd version": (manifest_with(lambda m: m.update(format_version="1")), "format_version is '1'"),
    "no lobes": (manifest_with(lambda m: m.update(lobes=[])), "lists no lobes"),
    "lobes of the wrong type": (manifest_with(lambda m: m.update(lobes=[1])), "does not describe a bundle"),
    "no lobes at all": (manifest_with(lambda m: m.pop("lobes")), "does not describe a bundle"),
    "no base": (manifest_with(lambda m: m.pop("base")), "does not describe a bundle"),
    "base of the wrong type": (manifest_with(lambda m: m.update(base=3)), "does not describe a bundle"),
    "routers of the wrong type": (manifest_with(lambda m: m.update(routers=[1])), "does not describe a bundle"),
    "router climbs": (manifest_with(lambda m: m["routers"][0].update(folder="../gate")), "router .* is misnamed"),
    "router with other files": (
        manifest_with(lambda m: m["routers"][0]["files"].update({"x.py": "0"})),
        "other files than a router",
    ),
    "changed fit": (lambda root: (root / "routers/gate/fit.json").write_text("{}"), "'gate': fit.json was changed"),
    "missing fit": (lambda root: shutil.rmtree(root / "routers/gate"), "'gate': .* is missing"),
    "name of the wrong type": (manifest_with(lambda m: m["lobes"][1].update(name=[])), "wrong type"),
    "manifest is a list": (lambda root: (root / "bundle.json").write_text("[]"), "holds a list, not an object"),
    "manifest is not JSON": (lambda root: (root / "bundle.json").write_text("{"), "bundle.json is not readable JSON"),
    "manifest is too deep": (lambda root: (root / "bundle.json").write_text(DEEP), "bundle.json is not readable JSON"),
    "manifest is binary": (lambda root: (root / "bundle.json").write_bytes(b"\xff\xfe"), "is not readable JSON"),
    "no manifest": (lambda root: (root / "bundle.json").unlink(), "it has no bundle.json or multilobe_config.json"),
    "folder climbs": (manifest_with(lambda m: m["lobes"][1].update(folder="../../x")), "misnamed or listed twice"),
    "folder twice": (manifest_with(lambda m: m["lobes"][1].update(folder="lobe_0001")), "misnamed or listed twice"),
    "file climbs": (
        manifest_with(lambda m: m["lobes"][1]["files"].update({"../x.json": "0"})),
        "other files than a lobe",
    ),
    "file unlisted": (manifest_with(lambda m: m["lobes"][1]["files"].pop(CONFIG)), "other files than a lobe has"),
    "another base": (
        manifest_with(lambda m: m["base"].update(name="llama", fingerprint="f" * 16)),
        r"llama \(ffff.*tiny",
    ),
    "missing lobe": (lambda root: shutil.rmtree(root / LOBE), "'Médecine': adapter_config.json is missing"),
    "missing card": (lambda root: (root / LOBE / "card.json").unlink(), "'Médecine': card.json is missing"),
    "changed card": (lambda root: (root / LOBE / "card.json").write_text("{}"), "card.json was changed"),
    "truncated weights": (file_with(WEIGHTS, lambda p: p.write_bytes(p.read_bytes()[:90])), "safetensors is damaged"),
    "hostile weights": (file_with(WEIGHTS, hostile_header), "safetensors is damaged"),
    "pickled weights": (file_with(WEIGHTS, lambda p: p.write_bytes(b"\x80\x04cos\nsystem\n.")), "is damaged"),
    "wrong shapes": (
        file_with(WEIGHTS, lambda p: write_adapter(p.parent, 1, width=10)),
        "'Médecine'.* 10→10 there and 8→8",
    ),
    "unknown module": (another_module, "'Médecine' cannot be loaded.* no linear layer .*wq'"),
    "not a LoRA": (config_with(peft_type="IA3"), "only LoRA adapters"),
    "DoRA": (config_with(use_dora=True), "DoRA"),
    "odd alpha": (config_with(alpha_pattern=[1]), "'Médecine' cannot be read"),
    "huge alpha": (config_with(lora_alpha=10**400), "'Médecine' cannot be read"),
    "deep config": (file_with(CONFIG, lambda p: p.write_text(DEEP)), "not readable JSON"),
    "card is a list": (file_with("card.json", lambda p: p.write_text("[]")), "holds a list"),
    "card is empty": (file_with("card.json", lambda p: p.write_text("{}")), "is not the card of a lobe"),
    "card with odd types": (card_with(training=["x"]), "is not the card of a lobe"),
    "card with an odd name": (card_with(name="a\x1bb"), "control characters"),
    "card with a long name": (card_with(name="a" * 81), "80 is the most"),
    "card with another name": (card_with(name="Medicine"), "another name or another base"),
    "card of another base": (card_with(base={"name": "x", "fingerprint": "0"}), "another name or another base"),
    "two lobes, one name": (twins, "another lobe of the bundle has the same name"),
    "broken rows": (file_with("routing.safetensors", lambda p: p.write_bytes(b"x" * 20)), "do not hold rows"),
    "rows of other widths": (
        file_with("routing.safetensors", lambda p: save_file({n: np.zeros((1, w)) for n, w in ROWS}, p)),
        "do not hold rows",
    ),
    "rows not finite": (
        file_with("routing.safetensors", lambda p: save_file({n: np.full((1, 5), np.nan) for n, _ in ROWS}, p)),
        "do not hold rows",
    ),
    "prompts are a list": (file_with("prompts.json", lambda p: p.write_text("[]")), "do not hold rows"),
    "prompts are numbers": (
        file_with("prompts.json", lambda p: p.write_text('{"train": [1, 2, 3, 4], "validation": []}')),
        "rows",
    ),
}
ROWS = [("prototypes", 5), ("train", 4), ("validation", 5)]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("case", BAD)
def test_bad_bundle_is_refused_and_nothing_changes(
    case: str, packed: bool, tmp_path: Path, store: LobeStore, other: LobeStore, features: Mapping[str, tuple[int, int]]
) -> None:
    harm, message = BAD[case]
    path = save(tmp_path / "bad", store)
    harm(path)
    if packed:
        path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", path))
    before = snapshot(other)
    for clash in ("rename", "replace"):
        with pytest.raises(BundleError, match=message) as caught:
            load_bundle(path, other, features, clash)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 500
        assert snapshot(other) == before
    if case not in ("another base", "wrong shapes", "unknown module"):
        assert any(re.search(message, problem) for problem in verify_bundle(path))


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: write_adapter(root / LOBE, 99), "adapter_model.safetensors was changed"),
        (file_with(WEIGHTS, lambda p: write_adapter(p.parent, 1, value=np.inf)), "not finite"),
    ],
    ids=["changed", "not finite"],
)
def test_weights_are_judged_when_they_are_read_and_not_when_a_bundle_is_loaded(
    packed: bool, harm: Callable[[Path], Any], message: str, tmp_path: Path, store: LobeStore, other: LobeStore,
    features: Mapping[str, tuple[int, int]],
) -> None:  # fmt: skip
    path = save(tmp_path / "bad", store)
    promised = [entry["files"][WEIGHTS] for entry in json.loads((path / "bundle.json").read_text())["lobes"]]
    harm(path)
    if "finite" in message:
        promised[1] = hashlib.sha256((path / LOBE / WEIGHTS).read_bytes()).hexdigest()
    if packed:
        path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", path))
    lobes, _ = load_bundle(path, other, features)
    assert [lobe.card.adapter["sha256"] for lobe in lobes] == promised
    assert any(re.search(message, problem) for problem in verify_bundle(path))
    with pytest.raises(BundleError, match="was not saved"):
        save_bundle(tmp_path / "again", lobes, BASE, "minilm", {})


def test_unsafe_zip_is_refused(tmp_path: Path, other: LobeStore, features: Mapping[str, tuple[int, int]]) -> None:
    link = zipfile.ZipInfo("bundle.json")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    cases = {
        "../bundle.json": "climbs out",
        "model.pkl": "does not belong",
        "inner.zip": "archive inside",
        link: "a link",
    }
    before = snapshot(other)
    for name, message in cases.items():
        with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
            file.writestr(name, "{}")
        with pytest.raises(BundleError, match=message):
            load_bundle(tmp_path / "bad.zip", other, features)
        assert message in verify_bundle(tmp_path / "bad.zip")[0]
    with pytest.raises(BundleError, match="no file or folder"):
        load_bundle(tmp_path / "none.zip", other, features)
    assert snapshot(other) == before


def test_verify_names_every_problem(tmp_path: Path, store: LobeStore) -> None:
    path = save(tmp_path / "b", store)
    (path / "lobes/lobe_0001/card.json").unlink()
    (path / "lobes/lobe_0003/adapter_config.json").write_text("{}")
    (path / "run.py").write_text("")
    (path / "lobes/lobe_0001/.DS_Store").write_text("")
    assert verify_bundle(path) == [
        "The lobe 'Law / EU': card.json is missing.",
        "The lobe '../code': adapter_config.json was changed after the bundle was saved.",
        "run.py is not listed in bundle.json.",
    ]


def test_files_that_no_manifest_lists_are_not_taken(
    tmp_path: Path, store: LobeStore, features: Mapping[str, tuple[int, int]]
) -> None:
    path = save(tmp_path / "b", store)
    shutil.copyfile(path / "lobes/lobe_0001/routing.safetensors", path / "lobes/lobe_0003/routing.safetensors")
    (path / "lobes/lobe_0003/run.py").write_text("")
    lobes, _ = load_bundle(path, LobeStore(tmp_path / "t"), features)
    assert set(contents(lobes[2].path)) == {CONFIG, WEIGHTS, "card.json"}


# ---- clashes and failures midway ------------------------------------------------------------------------------------


def test_clashes(tmp_path: Path, store: LobeStore, other: LobeStore, features: Mapping[str, tuple[int, int]]) -> None:
    path, before = save(tmp_path / "b.zip", store), snapshot(other)
    with pytest.raises(BundleError, match="'médecine' exists already"):
        load_bundle(path, other, features, "refuse")
    assert snapshot(other) == before
    lobes, _ = load_bundle(path, other, features, "replace")
    assert [l.name for l in other.all()] == NAMES == [l.name for l in lobes]
    assert not any("replaced" in name for name in contents(other.folder))
    lobes, _ = load_bundle(path, other, features, "rename")
    assert [l.name for l in lobes] == ["Law / EU (2)", "Médecine (2)", "../code (2)"]
    snapshot(other)


@pytest.mark.parametrize("clash", ["rename", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_failure_midway_takes_everything_back(
    clash: Any,
    error: BaseException,
    tmp_path: Path,
    store: LobeStore,
    other: LobeStore,
    features: Mapping[str, tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, before, added = save(tmp_path / "b", store), snapshot(other), other.add

    def add(folder: Path, card: Card) -> Lobe:
        if len(LobeStore(other.folder).all()) == 3:
            raise error
        return added(folder, card)

    monkeypatch.setattr(other, "add", add)
    with pytest.raises((BundleError, KeyboardInterrupt)):
        load_bundle(path, other, features, clash)
    assert snapshot(other) == before


# ---- adapters -------------------------------------------------------------------------------------------------------


def test_prepare_adapter(tmp_path: Path) -> None:
    made = write_adapter(tmp_path / "up" / "run" / "final")
    write_adapter(made / "checkpoint-10", 1)
    (made / "training_args.bin").write_bytes(b"\x80\x04.")
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "up"))
    for path, name in ((made, "final"), (tmp_path / "up", "final"), (packed, "final")):
        with prepare_adapter(path) as folder:
            assert folder.name == name
            assert contents(folder) == {n: contents(made)[n] for n in (CONFIG, WEIGHTS)}
        assert not folder.exists() and made.exists()
    write_adapter(tmp_path / "up" / "second")
    with pytest.raises(BundleError, match=r"holds 2 adapters \(final, second"):
        prepare_adapter(tmp_path / "up").__enter__()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BundleError, match="is a pickle and never opened"):
        prepare_adapter(tmp_path / "none").__enter__()
    with pytest.raises(BundleError, match="no file or folder"):
        prepare_adapter(tmp_path / "nowhere").__enter__()
    with pytest.raises(BundleError, match="not a zip file"):
        prepare_adapter(made / WEIGHTS).__enter__()


def test_a_prepared_adapter_can_be_added(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a")
    with prepare_adapter(tmp_path / "a") as folder:
        lobe = LobeStore(tmp_path / "lobes").add(folder, a_card("A"))
    assert set(contents(lobe.path)) == {CONFIG, WEIGHTS, "card.json"} and (tmp_path / "a").exists()


# ---- what `multilobe` 0.1.0 saves -----------------------------------------------------------------------------------


def write_peer(root: Path, lobes: Mapping[str, list[float]]) -> Path:
    """The layout that multilobe 0.1.0 with PEFT 0.21 was seen to write."""
    root.mkdir(exist_ok=True)
    config = {
        "model_name": "peer/tiny",
        "embedding_model": "all-MiniLM-L6-v2",
        "embedding_threshold": 0.75,
        "logprob_max_tokens": 30,
        "lobes": list(lobes),
    }
    (root / "multilobe_config.json").write_text(json.dumps(config, indent=2))
    for seed, (name, vector) in enumerate(lobes.items()):
        folder = root / "lobes" / name
        write_adapter(folder / "adapter" / f"lobe_{name}", seed)
        (folder / "adapter" / "README.md").write_text("# Model Card for Model ID")
        metadata = {
            "name": name,
            "lora_r": 2,
            "lora_alpha": 4,
            "epochs": 3,
            "dataset_path": "/home/alice/secret/medical.jsonl",
            "dataset_size": 8,
            "representation_vector": vector,
            "training_loss": 2.01,
            "adapter_name": f"lobe_{name}",
        }
        (folder / "metadata.json").write_text(json.dumps(metadata))
    return root


PEER = {"medical": [3.0, 4.0], "science/physics": [0.0, 1.0], "Kübel æ": []}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_peer_bundle(packed: bool, tmp_path: Path, features: Mapping[str, tuple[int, int]]) -> None:
    root = path = write_peer(tmp_path / "peer", PEER)
    if packed:
        path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "peer"))
    assert verify_bundle(path) == []
    with open_bundle(path) as bundle:
        assert bundle.manifest.base == {"name": "peer/tiny", "fingerprint": ""}
        assert bundle.manifest.embedding_model == "all-MiniLM-L6-v2"
    store = LobeStore(tmp_path / "store")
    lobes, fits = load_bundle(path, store, features, owner="you")
    assert fits == {} and [l.name for l in lobes] == list(PEER)
    card = lobes[0].card
    assert (card.origin, card.owner, card.embedding_model) == ("multilobe 0.1.0", "you", "all-MiniLM-L6-v2")
    assert card.base == {"name": "peer/tiny", "fingerprint": FINGERPRINT}
    assert card.adapter.items() >= {"r": 2, "target_modules": ["q_proj"], "bytes": 128}.items()
    assert card.config == {"epochs": 3, "lora_r": 2, "lora_alpha": 4}
    assert card.data == {"name": "medical.jsonl", "rows": 8} and card.training == {"train_loss": 2.01}
    rows = lobes[0].routing_rows()
    assert rows is not None and rows.prototypes == pytest.approx(np.array([[0.6, 0.8]]), abs=1e-3)
    assert rows.train.shape == rows.validation.shape == (0, 2)
    assert lobes[2].routing_rows() is None and lobes[2].card.embedding_model == ""
    theirs = root / "lobes/science/physics/adapter/lobe_science/physics"
    assert (lobes[1].path / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()
    with pytest.raises(BundleError, match=r"'medical' cannot be loaded.*8→8 there and 8→9 here"):
        wider = {name: (n_in, 9) for name, (n_in, _) in features.items()}
        load_bundle(path, store, wider)


def peer_config(**values: Any) -> Callable[[Path], Any]:
    def apply(root: Path) -> None:
        path = root / "multilobe_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def peer_metadata(**values: Any) -> Callable[[Path], Any]:
    def apply(root: Path) -> None:
        path = root / "lobes/medical/metadata.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def long_name(root: Path) -> None:
    (root / "lobes/medical").rename(root / "lobes" / ("m" * 81))
    peer_config(lobes=["m" * 81])(root)


BAD_PEER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no lobes": (peer_config(lobes=[]), "lists no lobes"),
    "odd lobes": (peer_config(lobes={"a": 1}), "lists no lobes"),
    "odd name": (peer_config(lobes=[7]), "'7' that multilobe saved cannot be read"),
    "climbs": (peer_config(lobes=["../../outside"]), "lies outside the bundle"),
    "absolute": (peer_config(lobes=["/etc"]), "lies outside the bundle"),
    "nul": (peer_config(lobes=["a\0b"]), "cannot be read"),
    "adapter climbs": (peer_metadata(adapter_name="../../../.."), "lies outside the bundle"),
    "adapter of the wrong type": (peer_metadata(adapter_name=None), "'medical' that multilobe saved cannot be read"),
    "no metadata": (lambda root: (root / "lobes/medical/metadata.json").unlink(), "metadata.json is missing"),
    "no adapter": (lambda root: shutil.rmtree(root / "lobes/medical/adapter"), "adapter_config.json is missing"),
    "vector of text": (peer_metadata(representation_vector=["x"]), "'medical' that multilobe saved cannot be read"),
    "vector not finite": (peer_metadata(representation_vector=[float("nan")]), "a list of finite numbers"),
    "vector of vectors": (peer_metadata(representation_vector=[[1.0]]), "a list of finite numbers"),
    "odd path": (peer_metadata(dataset_path=3), "'medical' that multilobe saved cannot be read"),
    "long name": (long_name, "80 is the most"),
}


@pytest.mark.parametrize("case", BAD_PEER)
def test_bad_peer_bundle(case: str, tmp_path: Path, other: LobeStore, features: Mapping[str, tuple[int, int]]) -> None:
    harm, message = BAD_PEER[case]
    root = write_peer(tmp_path / "peer", PEER)
    write_adapter(tmp_path / "outside" / "adapter")
    harm(root)
    before = snapshot(other)
    with pytest.raises(BundleError, match=message):
        load_bundle(root, other, features)
    assert message in verify_bundle(root)[0]
    assert snapshot(other) == before
