"""Lobes on disk: names are people's words and never paths, ids are ours, and damage stays where it is."""

from __future__ import annotations

import json
import shutil
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from multilobe_ui.errors import LobeError
from multilobe_ui.lobes.card import CARD_FILE, Card, now, read_card, write_card
from multilobe_ui.lobes.rows import RoutingRows, write_routing_rows
from multilobe_ui.lobes.store import Lobe, LobeStore, check_name


@pytest.fixture
def store(tmp_path: Path) -> LobeStore:
    return LobeStore(tmp_path / "home" / "lobes")


def card(name: str) -> Card:
    return Card(name, now(), "trained here", {"name": "builtin", "fingerprint": "0" * 16}, {"r": 4}, {"epochs": 3})


def add(store: LobeStore, name: str, content: str = "weights") -> Lobe:
    folder = store.folder.parent / "prepared"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text(content)
    try:
        return store.add(folder, card(name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ---- names -----------------------------------------------------------------------------------------------------------------

NAMES = [
    *(
        "Medicine",
        "Прaво",
        "医学",
        "شعر",
        "Ελληνικά",
        "हिन्दी",
        "💊 Pillen 👩‍⚕️",
        "C++ & C#",
        "e\u0301te\u0301",
        "a.b",
        "x" * 80,
    ),
    *(
        "../x",
        "..",
        ".",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "CON",
        "nul",
        "lobe_0001",
        "~",
        "$HOME",
        "-rf",
        "<b>bold</b>",
        "a:b",
        "%s",
    ),
    *("train", "forward", "0", "default", "null", '"', "'; drop table", "{}", "name (2)"),
]


@pytest.mark.parametrize("name", NAMES)
def test_any_words_can_be_a_name_and_none_is_a_path(store: LobeStore, name: str) -> None:
    lobe = add(store, name)
    assert (
        lobe.name == unicodedata.normalize("NFC", name)
        and lobe.id == "lobe_0001"
        and lobe.path == store.folder / "lobe_0001"
    )
    again = LobeStore(store.folder)
    assert again.by_name(name) == lobe and again.broken == {} and again.all() == [lobe]
    home = store.folder.parent
    assert everything(home) == {
        "lobes",
        *(f"lobes/lobe_0001{file}" for file in ("", "/card.json", "/adapter_model.safetensors")),
    }
    assert everything(home.parent) == {"home", *(f"home/{path}" for path in everything(home))}
    store.delete(name)
    assert everything(home) == {"lobes", "lobes/.last"} and store.all() == []
    assert LobeStore(store.folder).all() == []


@pytest.mark.parametrize(
    ("name", "named"),
    [
        *(("", "no name"), ("  \t\n", "no name"), ("x" * 81, "81 characters")),
        *((name, "control") for name in ("a\0b", "a\x1bb", "\u202egnp.exe", "\ud800", "\ue000", "\u2066x")),
    ],
)
def test_names_that_are_refused(store: LobeStore, name: str, named: str) -> None:
    with pytest.raises(LobeError, match=named):
        add(store, name)
    assert store.all() == [] and everything(store.folder) == set()


def test_names_are_trimmed() -> None:
    assert check_name("  Family \t law\n") == "Family law" and check_name("e\u0301") == "\u00e9"


@pytest.mark.parametrize(
    ("one", "other"), [("Law", "LAW"), ("Straße", "STRASSE"), ("e\u0301", "É"), ("a  b", " A b "), ("ΣΑΣ", "σας")]
)
def test_names_that_read_the_same_clash(store: LobeStore, one: str, other: str) -> None:
    lobe = add(store, one)
    with pytest.raises(LobeError, match=r"exists already\. Choose another name"):
        add(store, other)
    assert store.by_name(other) == lobe and store.all() == [lobe] and len(everything(store.folder)) == 3
    assert store.rename(one, other).name == check_name(other)  # but it may change its own spelling


def test_a_free_name_is_found(store: LobeStore) -> None:
    assert store.free_name(" Law ") == "Law"
    names = []
    for _ in range(4):
        names.append(store.free_name("law"))
        add(store, names[-1])
    assert names == ["law", "law (2)", "law (3)", "law (4)"]
    for _ in range(3):
        name = store.free_name("y" * 80)
        add(store, name)
        assert len(name) <= 80


def test_an_unknown_name_is_answered_with_those_there_are(store: LobeStore) -> None:
    with pytest.raises(LobeError, match=r"'Law'.*none yet"):
        store.by_name("Law")
    add(store, "Medicine")
    for act in (store.by_name, store.delete, lambda name: store.rename(name, "x")):
        with pytest.raises(LobeError, match=r"'Law'.*Medicine"):
            act("Law")


# ---- the store -------------------------------------------------------------------------------------------------------------


def test_lobes_come_oldest_first_with_ids_of_their_own(store: LobeStore) -> None:
    lobes = [add(store, name, content=name) for name in ("b", "a", "c")]
    assert [lobe.id for lobe in lobes] == ["lobe_0001", "lobe_0002", "lobe_0003"]
    store.delete("a")
    assert [lobe.name for lobe in store.all()] == ["b", "c"]
    assert add(store, "d").id == "lobe_0004"
    assert [lobe.name for lobe in LobeStore(store.folder).all()] == ["b", "c", "d"]
    assert (store.by_name("c").path / "adapter_model.safetensors").read_text() == "c"


def test_more_lobes_than_four_digits(store: LobeStore) -> None:
    (store.folder / "lobe_9999").mkdir()
    write_card(store.folder / "lobe_9999", card("old"))
    again = LobeStore(store.folder)
    assert add(again, "new").id == "lobe_10000" and add(again, "newer").id == "lobe_10001"
    assert {lobe.name for lobe in LobeStore(store.folder).all()} == {"old", "new", "newer"}


def test_renaming_changes_the_card_alone(store: LobeStore) -> None:
    lobe = add(store, "Law")
    add(store, "Medicine")
    renamed = store.rename("LAW", " Family  law ")
    assert (renamed.name, renamed.id, renamed.path) == ("Family law", lobe.id, lobe.path)
    assert read_card(lobe.path) == Card(**{**lobe.card.to_json(), "name": "Family law"})
    assert (
        [l.name for l in store.all()] == [l.name for l in LobeStore(store.folder).all()] == ["Family law", "Medicine"]
    )
    for taken in ("medicine", ""):
        with pytest.raises(LobeError):
            store.rename("Family law", taken)
    assert store.by_name("Family law") == renamed


def test_a_refused_lobe_stays_where_it_was(store: LobeStore, tmp_path: Path) -> None:
    add(store, "Law")
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(LobeError):
        store.add(folder, card("law"))
    assert everything(folder) == {"adapter_config.json"}
    store.add(folder, card("other"))
    assert not folder.exists()


def test_a_number_is_never_given_again(store: LobeStore) -> None:
    """What is kept by a lobe's id (corrections, pins) is not the next lobe's."""
    add(store, "one")
    assert add(store, "two").id == "lobe_0002"
    store.delete("two")
    assert add(store, "three").id == "lobe_0003"
    store.delete("three")
    again = LobeStore(store.folder)
    assert add(again, "four").id == "lobe_0004"


def test_many_threads_add_at_once(store: LobeStore, tmp_path: Path) -> None:
    refused = []

    def work(i: int) -> None:
        folder = tmp_path / f"prepared {i}"
        folder.mkdir()
        try:
            store.add(folder, card(f"lobe {i % 8}"))
        except LobeError as error:
            refused.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 8 and sorted(l.name for l in store.all()) == [f"lobe {i}" for i in range(8)]
    assert [l.id for l in LobeStore(store.folder).all()] == [f"lobe_{i:04d}" for i in range(1, 9)]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '"x"', "null", '{"name": "only a name"}', "\x00", json.dumps({"name": "x", "created": 1})],
)
def test_a_broken_card_hides_its_lobe_and_no_other(store: LobeStore, text: str) -> None:
    whole, broken = add(store, "whole"), add(store, "broken")
    (broken.path / CARD_FILE).write_text(text)
    again = LobeStore(store.folder)
    assert again.all() == [whole] and list(again.broken) == [broken.id] and CARD_FILE in again.broken[broken.id]
    assert add(again, "broken").id == "lobe_0003"


def test_a_missing_card_and_foreign_files_are_tolerated(store: LobeStore) -> None:
    add(store, "whole")
    (store.folder / "lobe_0007").mkdir()
    (store.folder / "lobe_0008").write_text("a file")
    (store.folder / "lobe_x").mkdir()
    (store.folder / ".lobe_0002.deleted").mkdir()
    (store.folder / "notes.txt").write_text("mine")
    again = LobeStore(store.folder)
    assert [l.name for l in again.all()] == ["whole"] and list(again.broken) == ["lobe_0007"]
    assert (store.folder / "notes.txt").exists()


def test_cards_from_a_newer_version_are_read(tmp_path: Path) -> None:
    write_card(tmp_path, card("Law"))
    values = json.loads((tmp_path / CARD_FILE).read_text())
    (tmp_path / CARD_FILE).write_text(json.dumps(values | {"mood": "sunny"}))
    assert read_card(tmp_path) == Card(**values)


# ---- routing rows ----------------------------------------------------------------------------------------------------------


def test_routing_rows_come_back_in_three_digits(store: LobeStore) -> None:
    lobe, dice = add(store, "Law"), np.random.default_rng(0)
    vectors = [dice.normal(size=(n, 8)).astype(np.float32) for n in (2, 5, 3)]
    rows = RoutingRows(
        *(v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors), list("abcde"), ["中", "", "x\ny"]
    )
    write_routing_rows(lobe.path, rows)
    found = lobe.routing_rows()
    assert (
        found is not None
        and list(found.train_prompts) == list("abcde")
        and list(found.validation_prompts) == ["中", "", "x\ny"]
    )
    for name in ("prototypes", "train", "validation"):
        assert getattr(found, name).dtype == np.float32
        np.testing.assert_allclose(getattr(found, name), getattr(rows, name), atol=1e-3)


@pytest.mark.parametrize(
    "damage",
    [
        *("no vectors", "cut vectors", "no prompts", "broken prompts"),
        "prompts of another kind",
    ],
)
def test_without_readable_rows_a_lobe_has_none(store: LobeStore, damage: str) -> None:
    lobe = add(store, "Law")
    assert lobe.routing_rows() is None
    empty = np.zeros((1, 4), np.float32)
    write_routing_rows(lobe.path, RoutingRows(empty, empty, empty, ["a"], ["b"]))
    assert lobe.routing_rows() is not None
    vectors, prompts = lobe.path / "routing.safetensors", lobe.path / "prompts.json"
    if damage == "no vectors":
        vectors.unlink()
    elif damage == "cut vectors":
        vectors.write_bytes(vectors.read_bytes()[:20])
    elif damage == "no prompts":
        prompts.unlink()
    else:
        prompts.write_text("{" if damage == "broken prompts" else "[]")
    assert lobe.routing_rows() is None
