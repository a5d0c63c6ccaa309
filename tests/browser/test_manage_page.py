"""Lobes, bundles and adapters in the real app and a real browser. The conftest beside it says what holds at any time."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as tensor_bytes
from uploads import Files, adapter_files, demo_files, file, zipped
from visitor import DEMO, INSULIN, App, Visitor

pytestmark = [pytest.mark.browser, pytest.mark.builtin]


def pick_lobe(visitor: Visitor, name: str) -> None:
    visitor.page.locator("#manage-table .ml-name").filter(has_text=name).click()
    visitor.sees("#manage-detail .manage-title", name)


def load_bundle(visitor: Visitor, name: str, content: bytes | Path) -> None:
    visitor.upload("#manage-bundle", content if isinstance(content, Path) else file(name, content))
    visitor.on("#manage-load").click()


def test_rename_delete_save_and_load(visitor: Visitor, app: App, tmp_path: Path) -> None:
    name = "Körper & <i>Geist</i>.v2 🧠"
    visitor.set(Temperature=0)
    visitor.tab("Manage")
    load_bundle(visitor, "one.zip", zipped(demo_files()))
    visitor.toast("Loaded 1 lobe: medical (2)")
    expect(visitor.on("#manage-table .ml-name")).to_have_count(7)
    pick_lobe(visitor, "medical (2)")
    visitor.on("#manage-new-name textarea").fill(name)
    visitor.on("#manage-rename").click()
    visitor.toast(f"medical (2) is called {name} now.")
    visitor.sees("#manage-detail .manage-title", name)
    visitor.tab("Chat")
    visitor.choose(f"Always {name}")
    before = visitor.ask(INSULIN)
    assert "blood sugar" in before

    visitor.tab("Manage")
    visitor.page.get_by_label(f"Put into the bundle: {name}").check()
    visitor.sees("#manage-save", "Save 1 ticked lobe")
    visitor.on("#manage-save").click()
    visitor.toast("ready to be downloaded")
    with visitor.page.expect_download() as coming:
        visitor.on("#manage-download").click()
    saved = tmp_path / coming.value.suggested_filename
    coming.value.save_as(saved)
    assert saved.name.endswith(".zip")
    with zipfile.ZipFile(saved) as archive:
        assert [lobe["name"] for lobe in json.loads(archive.read("bundle.json"))["lobes"]] == [name]

    visitor.on("#manage-delete").click()
    visitor.sees("#manage-question", f"Delete {name} for good?")
    assert name in app.lobes()
    visitor.on("#manage-keep").click()
    expect(visitor.on("#manage-question")).to_be_hidden()
    assert name in app.lobes()
    visitor.on("#manage-delete").click()
    visitor.sees("#manage-question", f"Delete {name} for good?")
    visitor.on("#manage-really").click()
    visitor.toast(f"{name} has been deleted.")
    expect(visitor.on("#manage-table .ml-name")).to_have_count(6)
    assert app.lobes() == list(DEMO)
    visitor.tab("Chat")
    expect(visitor.page.get_by_role("combobox", name="Who answers")).to_have_value("Automatic: the router decides")

    visitor.tab("Manage")
    load_bundle(visitor, saved.name, saved)
    visitor.toast(f"Loaded 1 lobe: {name}")
    expect(visitor.on("#manage-table .ml-name")).to_have_count(7)
    visitor.tab("Chat")
    visitor.clear()
    visitor.choose(f"Always {name}")
    assert visitor.ask(INSULIN) == before


def test_any_peft_adapter_becomes_a_lobe(visitor: Visitor) -> None:
    visitor.set(Temperature=0)
    visitor.choose("Always medical")
    expected = visitor.ask(INSULIN)
    visitor.tab("Manage")
    visitor.page.get_by_role("tab", name="PEFT adapter", exact=True).click()
    folder = {f"my-adapter/{name}": content for name, content in adapter_files().items()}
    visitor.upload("#manage-adapter", file("my-adapter.zip", zipped(folder)))
    visitor.on("#manage-adapter-name textarea").fill("imported")
    visitor.on("#manage-import").click()
    visitor.toast("imported has been imported.")
    expect(visitor.on("#manage-table .ml-name")).to_have_count(7)
    visitor.tab("Chat")
    visitor.clear()
    visitor.choose("Always imported")
    assert visitor.ask(INSULIN) == expected
    assert visitor.chip() == "imported"


def manifest_with(files: Files, **values: Any) -> Files:
    return {**files, "bundle.json": json.dumps({**json.loads(files["bundle.json"]), **values}).encode()}


def lobe_path(files: Files, name: str) -> str:
    return next(path for path in files if path.endswith(name))


def with_file(files: Files, name: str, content: bytes, *, honest: bool = True) -> Files:
    """One of a lobe's files replaced; `honest`: with its sha256 in the manifest."""
    manifest = json.loads(files["bundle.json"])
    if honest:
        manifest["lobes"][0]["files"][name] = hashlib.sha256(content).hexdigest()
    return {**files, lobe_path(files, name): content, "bundle.json": json.dumps(manifest).encode()}


def lighter(files: Files) -> Files:
    """With the matrices of the first layer only: quicker to pack and to send."""
    path = lobe_path(files, "adapter_model.safetensors")
    few = tensor_bytes({name: value for name, value in tensors_of(files[path]).items() if ".layers.0." in name})
    return with_file(files, "adapter_model.safetensors", few) if "bundle.json" in files else {**files, path: few}


def weights_with(content: bytes, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """Adapter weights with the first matrix changed."""
    tensors = tensors_of(content)
    first = min(tensors)
    return tensor_bytes({**tensors, first: np.ascontiguousarray(change(tensors[first]))})


def info(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.create_system, made.external_attr = 3, mode << 16
    return made


def bomb() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bundle.json", b" " * (50 << 20))
    return sink.getvalue()


def bad_bundles() -> list[tuple[str, bytes, str]]:
    files = lighter(demo_files())
    good, weights = zipped(files), files[lobe_path(files, "adapter_model.safetensors")]
    config = json.loads(files[lobe_path(files, "adapter_config.json")])
    stranger = {"name": "gpt2", "fingerprint": "0123456789abcdef"}
    entry = json.loads(files["bundle.json"])["lobes"][0]
    outside = {**entry, "folder": "../../lobe_0001"}
    missing = {path: content for path, content in files.items() if not path.endswith("card.json")}

    def reconfigured(**values: Any) -> bytes:
        return zipped(with_file(files, "adapter_config.json", json.dumps({**config, **values}).encode()))

    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zipped(files, ("bundle.json", b"{}"))
    return [
        ("text.zip", b"hello", "text.zip is not a zip file, or a damaged one"),
        ("nothing.zip", b"", "nothing.zip is not a zip file"),
        ("truncated.zip", good[: len(good) // 2], "truncated.zip is not a zip file, or a damaged one"),
        ("flipped.zip", good.replace(weights[5000:5016], bytes(16)), "Bad CRC-32"),
        ("hollow.zip", zipped({}), "hollow.zip is not a bundle"),
        ("climb.zip", zipped(files, ("../../evil.json", b"{}")), "climbs out of the folder"),
        ("absolute.zip", zipped(files, ("/etc/evil.json", b"{}")), "has an absolute path"),
        ("backslash.zip", zipped(files, ("..\\evil.json", b"{}")), "has a backslash in its name"),
        ("drive.zip", zipped(files, ("C:evil.json", b"{}")), "has a drive letter"),
        ("link.zip", zipped(files, (info("x.json", stat.S_IFLNK | 0o777), b"/etc/passwd")), "is a link or a special file"),
        ("bomb.zip", bomb(), "as a zip bomb does"),
        ("twice.zip", twice, "'bundle.json' twice"),
        ("pickle.zip", zipped(files, ("lobes/lobe_0003/adapter_model.bin", b"\x80\x04.")), "does not belong there"),
        ("nested.zip", zipped(files, ("inner.zip", good)), "is an archive inside the archive"),
        ("disguised.zip", zipped(files, ("inner.txt", good)), "'inner.txt' is an archive inside the archive"),
        ("newer.zip", zipped(manifest_with(files, format_version=99)), "The bundle has format version 99"),
        ("stranger.zip", zipped(manifest_with(files, base=stranger)), "The bundle is for the base gpt2"),
        ("outside.zip", zipped(manifest_with(files, lobes=[outside])), "is misnamed or listed twice"),
        ("no_lobes.zip", zipped(manifest_with(files, lobes=[])), "it lists no lobes"),
        ("no_json.zip", zipped({**files, "bundle.json": b"{oops"}), "bundle.json is not readable JSON"),
        ("list.zip", zipped({**files, "bundle.json": b"[]"}), "bundle.json holds a list, not an object"),
        ("changed.zip", zipped(with_file(files, "card.json", b"{}", honest=False)), "card.json was changed after"),
        ("missing.zip", zipped(missing), "card.json is missing"),
        ("card.zip", zipped(with_file(files, "card.json", b'{"name": 5}')), "is not the card of a lobe"),
        ("cut.zip", zipped(with_file(files, "adapter_model.safetensors", weights[:999])), "is damaged"),
        ("ia3.zip", reconfigured(peft_type="IA3"), "is a IA3 adapter: only LoRA"),
        ("html.zip", zipped(manifest_with(files, lobes=[{**entry, "name": "<img src=x onerror=alert(1)>"}])),
         "The lobe '<img src=x onerror=alert(1)>'"),
    ]  # fmt: skip


def bad_adapters() -> list[tuple[str, bytes, str]]:
    files = lighter(adapter_files())
    config, weights = json.loads(files["adapter_config.json"]), files["adapter_model.safetensors"]
    tensors = tensors_of(weights)

    def configured(**values: Any) -> bytes:
        return zipped({**files, "adapter_config.json": json.dumps({**config, **values}).encode()})

    def weighted(content: bytes) -> bytes:
        return zipped({**files, "adapter_model.safetensors": content})

    renamed = {name.replace("self_attn", "cross_attn"): value for name, value in tensors.items()}
    wider = {n: np.pad(v, ((0, 0), (0, 8))) if "lora_A" in n else v for n, v in tensors.items()}
    two = {f"{folder}/{name}": content for folder in ("a", "b") for name, content in files.items()}
    pickled = {"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": b"\x80\x04."}
    return [
        ("text.zip", b"hello", "text.zip is not a zip file, or a damaged one"),
        ("climb.zip", zipped(files, ("../adapter_config.json", b"{}")), "climbs out of the folder"),
        ("alone.zip", zipped({"adapter_config.json": b"{}"}), "alone.zip has no adapter_config.json with"),
        ("pickle.zip", zipped(pickled), "An adapter_model.bin is a pickle and never opened"),
        ("two.zip", zipped(two), "two.zip holds 2 adapters"),
        ("ia3.zip", configured(peft_type="IA3"), "is a IA3 adapter: only LoRA adapters can become lobes"),
        ("dora.zip", configured(use_dora=True), "uses DoRA, which the bank cannot run exactly"),
        ("saved.zip", configured(modules_to_save=["lm_head"]), "uses modules_to_save"),
        ("bias.zip", configured(bias="all"), "trains biases"),
        ("alpha.zip", configured(lora_alpha="much"), "lora_alpha is much; it must be a finite number"),
        ("no_json.zip", zipped({**files, "adapter_config.json": b"{oops"}), "is not readable JSON"),
        ("cut.zip", weighted(weights[:999]), "adapter_model.safetensors is damaged"),
        ("flat.zip", weighted(weights_with(weights, lambda m: m[:-1])), "LoRA needs (r, in) and (out, r)"),
        ("wide.zip", weighted(tensor_bytes(wider)), "does not fit"),
        ("layers.zip", weighted(tensor_bytes(renamed)), "the base has no linear layer"),
        ("nan.zip", weighted(weights_with(weights, lambda m: m * np.nan)), "holds numbers that are not finite"),
    ]


def test_bad_bundles_and_adapters_are_explained(visitor: Visitor, app: App) -> None:
    visitor.tab("Manage")
    expect(visitor.on("#manage-table .ml-name")).to_have_count(6)
    before = visitor.rows()
    for name, content, fragment in bad_bundles():
        load_bundle(visitor, name, content)
        visitor.toast(fragment)
        assert visitor.rows() == before, name
    visitor.page.get_by_role("tab", name="PEFT adapter", exact=True).click()
    visitor.on("#manage-adapter-name textarea").fill("newcomer")
    for name, content, fragment in bad_adapters():
        visitor.upload("#manage-adapter", file(name, content))
        visitor.on("#manage-import").click()
        visitor.toast(fragment)
        assert visitor.rows() == before, name
    visitor.upload("#manage-adapter", file("good.zip", zipped(adapter_files())))
    for title, fragment in ((" ", "is empty"), ("MEDICAL", "A lobe called 'medical' exists already")):
        visitor.on("#manage-adapter-name textarea").fill(title)
        visitor.on("#manage-import").click()
        visitor.toast(fragment)
    assert app.lobes() == list(DEMO)
    assert list(app.home.rglob("*evil*")) == []
    visitor.tab("Chat")
    assert "blood sugar" in visitor.ask(INSULIN)
