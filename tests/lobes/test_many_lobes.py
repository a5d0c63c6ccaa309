"""Many lobes: what is in memory and what is not, whatever happens to their files; how the studio is told."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_model import TOPICS, WordEmbedder, rows, trained

from multilobe_ui import Mix, MultiLobeModel
from multilobe_ui.app.desk import Desk
from multilobe_ui.app.studio import Studio
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.cli.commands import main
from multilobe_ui.errors import AdapterError, BundleError, ConfigError, LobeError
from multilobe_ui.files import sha256_of
from multilobe_ui.generation.batch import RunningBatch
from multilobe_ui.generation.decode import Request, stream_tokens
from multilobe_ui.lobes import adapter as adapters_module
from multilobe_ui.lobes.adapter import WEIGHTS_FILE
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.card import Card, now
from multilobe_ui.lobes.memory import MIB, Residency
from multilobe_ui.lobes.row_memory import RowsOfLobes
from multilobe_ui.lobes.rows import RoutingRows, write_routing_rows
from multilobe_ui.lobes.store import LobeStore
from multilobe_ui.lobes.weights import LayerMix
from multilobe_ui.settings import SamplingConfig, budget_from_environment

IDS = tiny.numbers(2, 8)


@pytest.fixture
def bank(backbone: Backbone, adapters: dict[str, Path]) -> LobeBank:
    """Eight lobes of one size, "0" to "7"."""
    made = LobeBank(backbone)
    for number in range(8):
        made.register(str(number), adapters["plain"])
    return made


@pytest.fixture
def size(bank: LobeBank) -> int:
    bank.memory.matrices("0")
    one = bank.memory.resident_bytes
    bank.register("0", bank.register("0", bank._headers["0"].path).path)
    return one


def use(bank: LobeBank, *lobes: str) -> torch.Tensor:
    with torch.inference_mode():
        return bank.run(Mix.of(dict.fromkeys(lobes, 1.0)), input_ids=IDS).logits


def tensors(bank: LobeBank, lobe: str) -> list[weakref.ref[torch.Tensor]]:
    return [weakref.ref(t) for pair in bank.memory.matrices(lobe).values() for t in pair]


def are_gone(references: list[weakref.ref[torch.Tensor]]) -> bool:
    gc.collect()
    return not any(reference() is not None for reference in references)


def spoil(path: Path, value: float = 1.25) -> None:
    """Change the last number of a weights file: its header is as it was."""
    weights = path / WEIGHTS_FILE
    whole = bytearray(weights.read_bytes())
    whole[-4:] = np.float32(value).tobytes()
    weights.write_bytes(whole)


# ---- the bank's budget -----------------------------------------------------------------------------------------------------


def test_those_used_longest_ago_leave_first(bank: LobeBank, size: int) -> None:
    bank.memory.budget_bytes = 3 * size
    for lobe in "01230456":
        use(bank, lobe)
    assert bank.memory.resident == ("4", "5", "6") and bank.memory.resident_bytes == 3 * size
    use(bank, "4")
    use(bank, "7")
    assert bank.memory.resident == ("6", "4", "7")


def test_a_smaller_budget_gives_memory_back_at_once_and_a_larger_one_changes_nothing(bank: LobeBank, size: int) -> None:
    for lobe in "01234":
        use(bank, lobe)
    held = {lobe: tensors(bank, lobe) for lobe in "01234"}
    use(bank, "1", "2")  # a mixture has stacks of its own
    bank.memory.budget_bytes = 2 * size
    assert bank.memory.resident == ("1", "2") and bank.memory.resident_bytes == 2 * size
    assert all(are_gone(held[lobe]) for lobe in "034") and not are_gone(held["1"])
    before = use(bank, "1")
    bank.memory.budget_bytes = None
    assert bank.memory.resident == ("2", "1") and torch.equal(use(bank, "1"), before)
    bank.memory.budget_bytes = 0
    assert bank.memory.resident == () and bank.memory.resident_bytes == 0 and all(map(are_gone, held.values()))


def test_stacks_of_mixtures_leave_before_lobes_do(bank: LobeBank, size: int) -> None:
    use(bank, "0", "1")
    use(bank, "2", "3")
    assert bank.memory.resident_bytes > 4 * size
    bank.memory.budget_bytes = 5 * size
    use(bank, "4")
    assert bank.memory.resident == ("0", "1", "2", "3", "4") and bank.memory.resident_bytes == 5 * size


def test_pinned_lobes_are_read_at_once_and_stay(bank: LobeBank, size: int) -> None:
    bank.memory.budget_bytes = 2 * size
    bank.memory.pin("5")
    assert bank.memory.resident == ("5",) and bank.memory.pinned == {"5"}
    for lobe in "0123":
        use(bank, lobe)
    assert bank.memory.resident == ("5", "3")
    bank.memory.pin("6")
    bank.memory.pin("7")
    assert bank.memory.resident == ("5", "6", "7")  # over the budget
    bank.memory.unpin("6")
    assert bank.memory.resident == ("5", "7") and bank.memory.resident_bytes == 2 * size
    bank.unregister("5")
    assert bank.memory.pinned == {"7"}
    with pytest.raises(LobeError, match="no lobe '5'"):
        bank.memory.pin("5")


def test_a_lobe_stays_while_a_call_in_another_thread_runs_with_it(bank: LobeBank, size: int) -> None:
    bank.memory.budget_bytes = size
    inside, go_on, answers = threading.Event(), threading.Event(), []

    def weigh(module: str, x: torch.Tensor) -> torch.Tensor:
        inside.set()
        assert go_on.wait(60)
        return torch.ones(*x.shape[:2], 1)

    def ask() -> None:
        with torch.inference_mode():
            answers.append(bank.run(LayerMix(("0",), weigh), input_ids=IDS).logits)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert inside.wait(60)
        held = tensors(bank, "0")
        for lobe in "123":
            use(bank, lobe)
            assert bank.memory.resident == ("0", lobe)
        bank.memory.budget_bytes = 0
        assert bank.memory.resident == ("0",)
    finally:
        go_on.set()
        thread.join()
    bank.memory.budget_bytes = 0
    assert bank.memory.resident == () and are_gone(held)
    torch.testing.assert_close(answers[0], use(bank, "0"), atol=1e-6, rtol=1e-6)


def test_an_answer_may_hold_its_lobes_between_calls(bank: LobeBank, size: int) -> None:
    bank.memory.budget_bytes = size
    with bank.memory.hold(("0",)), bank.memory.hold(("0",)):
        use(bank, "0")
        use(bank, "1")
        assert bank.memory.resident == ("0", "1")
    use(bank, "2")
    assert bank.memory.resident == ("2",)


@pytest.mark.parametrize("together", [False, True])
def test_two_answers_under_a_budget_for_one_lobe_read_each_lobe_once(
    bank: LobeBank, size: int, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    bank.memory.budget_bytes = size
    bank.backbone.stop_ids, stop_ids = frozenset(), bank.backbone.stop_ids
    read: list[str] = []
    monkeypatch.setattr(bank.memory, "_read", lambda lobe, plain=bank.memory._read: read.append(lobe) or plain(lobe))
    sampling = SamplingConfig(max_new_tokens=6, do_sample=False)
    requests = [Request([7, 8, 9], {lobe: 1.0}, sampling) for lobe in ("1", "2")]
    serving = RunningBatch(bank)
    answers = [serving.tokens(r) if together else stream_tokens(bank, r) for r in requests]
    try:
        assert len(list(zip(*answers, strict=True))) == 6  # a token of each in turn
    finally:
        bank.backbone.stop_ids = stop_ids
    assert sorted(read) == ["1", "2"]
    use(bank, "3")
    assert bank.memory.resident == ("3",)  # what is no longer held leaves at the next occasion


def test_what_is_kept_beside_a_lobe_does_not_bring_it_into_memory(bank: LobeBank) -> None:
    assert bank.derived("0", "notes", lambda _: ["kept"]) is bank.derived("0", "notes", lambda _: [])
    assert bank.memory.resident == ()
    layers = bank.derived("0", "layers", len)
    assert layers == len(bank.layers(("0",))) and bank.memory.resident == ("0",)


# ---- damaged weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("promised", [True, False], ids=["of a bundle", "of a home"])
def test_damage_shows_when_weights_are_first_read_and_the_others_go_on(
    bank: LobeBank, adapters: dict[str, Path], tmp_path: Path, promised: bool
) -> None:
    path = Path(shutil.copytree(adapters["plain"], tmp_path / "bad"))
    sha256 = sha256_of(path / WEIGHTS_FILE) if promised else ""
    spoil(path, 1.25 if promised else np.nan)
    before = use(bank, "0")
    bank.register("bad", path, sha256)
    assert "bad" in bank and bank.damaged == {}
    for _ in range(2):
        with pytest.raises(AdapterError, match="bad: .*sha256 differs" if promised else "bad: .*not finite"):
            use(bank, "0", "bad")
    assert "bad" not in bank and list(bank.damaged) == ["bad"] and torch.equal(use(bank, "0"), before)
    bank.register("bad", adapters["plain"], sha256_of(adapters["plain"] / WEIGHTS_FILE))
    assert bank.damaged == {} and torch.equal(use(bank, "bad"), before)


def test_the_promise_is_held_once(bank: LobeBank, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr("multilobe_ui.lobes.bank.sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    bank.register("one", adapters["plain"], sha256_of(adapters["plain"] / WEIGHTS_FILE))
    bank.memory.budget_bytes = 0
    for lobe in ("one", "0", "one"):
        use(bank, lobe)
    assert hashed == [adapters["plain"] / WEIGHTS_FILE]


# ---- bundles ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trained lobes as a bundle in a folder."""
    return trained(backbone).save(tmp_path_factory.mktemp("saved") / "bundle")


def unread(*_: Any) -> Any:
    raise AssertionError("weights were read")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_bundle_opens_without_its_weights(
    backbone: Backbone, saved: Path, tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(saved, tmp_path / "bundle"))
    spoil(path / "lobes" / "lobe_0002")
    if packed:
        path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", path))
    model = MultiLobeModel(backbone, embedder=WordEmbedder())
    hashed: list[str] = []
    with monkeypatch.context() as watched:
        for place in ("bundles.manifest", "lobes.bank"):
            watched.setattr(f"multilobe_ui.{place}.read_matrices", unread)
            watched.setattr(f"multilobe_ui.{place}.sha256_of", lambda file: hashed.append(file.name) or sha256_of(file))
        assert [lobe.name for lobe in model.load_bundle(path)] == list(TOPICS)
    assert hashed and WEIGHTS_FILE not in hashed and model.bank.memory.resident == () and model.lobes.broken == {}
    assert not list((model.home / "lobes").glob(".*"))  # no scraps

    first, damaged, last = TOPICS
    assert model.generate("cat dog", lobe=first, max_new_tokens=3, do_sample=False)
    with pytest.raises(AdapterError, match=r"lobe_0002.*sha256 differs"):
        model.generate("one two", lobe=damaged, max_new_tokens=3)
    for router in ("hybrid", "logprob", "embedding"):
        assert model.route("one two red", router).chosen in (first, last, None)
    assert model.lobe_names == [first, last] and "sha256" in model.lobes.broken["lobe_0002"]
    model.generate("red green", lobe=last, max_new_tokens=3)
    with pytest.raises(BundleError, match=r"was not saved.*not those of the bundle"):
        model.save(tmp_path / "again", [damaged])
    model.remove_lobe(damaged)
    assert model.lobes.broken == {} and not (model.home / "lobes" / "lobe_0002").exists()


def test_a_damaged_lobe_that_a_router_reads_is_left_out(backbone: Backbone, saved: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(saved, tmp_path / "bundle"))
    spoil(path / "lobes" / "lobe_0001")
    model = MultiLobeModel(backbone, embedder=WordEmbedder())
    model.load_bundle(path)
    decision = model.route("zebra", "logprob")  # reads every lobe
    assert set(decision.scores) == set(list(TOPICS)[1:]) and list(model.lobes.broken) == ["lobe_0001"]
    again = MultiLobeModel(backbone, home=model.home, embedder=WordEmbedder())
    assert again.route("zebra", "logprob").scores == decision.scores


def test_a_lobe_of_a_bundle_keeps_its_promise_after_renaming_and_saving(backbone: Backbone, saved: Path, tmp_path: Path) -> None:
    model = MultiLobeModel(backbone, embedder=WordEmbedder())
    model.load_bundle(saved)
    name = model.rename_lobe("Animals", "Beasts").name
    assert model.lobes.named(name).card.adapter["sha256"] == sha256_of(saved / "lobes/lobe_0001" / WEIGHTS_FILE)
    path = model.save(tmp_path / "again")
    assert "sha256" not in json.loads((path / "lobes/lobe_0001/card.json").read_text())["adapter"]
    assert not (path / "memory.json").exists()


# ---- a home ----------------------------------------------------------------------------------------------------------------


def test_budget_and_pins_are_kept_in_the_home(backbone: Backbone, tmp_path: Path) -> None:
    model = trained(backbone, tmp_path)
    names, ids = model.lobe_names, [lobe.id for lobe in model.lobes]
    model.memory.set_budget(0.01)
    model.memory.pin(model.lobes.named(names[2].upper()).id)
    model.memory.pin(model.lobes.named(names[0]).id)
    assert model.lobes.pinned == [names[0], names[2]] and model.memory.budget_mib == pytest.approx(0.01, abs=1e-5)
    again = MultiLobeModel(backbone, home=tmp_path, embedder=WordEmbedder())
    assert set(again.bank.memory.resident) == {ids[0], ids[2]} and again.lobes.pinned == model.lobes.pinned
    assert again.bank.memory.budget_bytes == int(0.01 * MIB)
    again.memory.unpin(again.lobes.named(names[0]).id)
    again.rename_lobe(names[2], "Colours")
    again.memory.set_budget(None)
    third = MultiLobeModel(backbone, home=tmp_path, embedder=WordEmbedder(), memory_budget_mib=7)
    assert third.lobes.pinned == ["Colours"] and third.memory.budget_mib == 7
    assert MultiLobeModel(backbone, home=tmp_path, embedder=WordEmbedder()).memory.budget_mib is None
    third.remove_lobe("Colours")
    assert third.bank.memory.pinned == set() and json.loads((tmp_path / "memory.json").read_text())["pinned"] == []
    with pytest.raises(LobeError, match="no lobe called 'Colours'"):
        third.memory.pin(third.lobes.named("Colours").id)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"pinned": 3, "budget_mib": "x"}', '{"pinned": [1, "gone"], "budget_mib": -1}']
)
def test_an_odd_memory_file_is_no_limit(bank: LobeBank, tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.json").write_text(text)
    residency = Residency(tmp_path / "memory.json", bank.memory)
    residency.registered("0")
    assert residency.budget_mib is None and bank.memory.pinned == set()
    residency.pin("1")
    assert "1" in json.loads((tmp_path / "memory.json").read_text())["pinned"]


@pytest.mark.parametrize("mib", [0, -1, float("nan"), float("inf"), "64", True])
def test_a_budget_is_a_number_above_zero(bank: LobeBank, tmp_path: Path, mib: Any) -> None:
    with pytest.raises(ConfigError, match=r"memory_budget_mib is .*MiB above 0"):
        Residency(tmp_path / "memory.json", bank.memory).set_budget(mib)
    assert bank.memory.budget_bytes is None and not (tmp_path / "memory.json").exists()


def test_a_damaged_pinned_lobe_does_not_stop_a_home(backbone: Backbone, tmp_path: Path) -> None:
    model = trained(backbone, tmp_path)
    for lobe in model.lobes[:2]:
        model.memory.pin(model.lobes.named(lobe.name).id)
    spoil(model.lobes[0].path, np.nan)
    again = MultiLobeModel(backbone, home=tmp_path, embedder=WordEmbedder())
    assert again.bank.memory.resident == (model.lobes[1].id,) and "not finite" in again.lobes.fault(model.lobes[0].id)
    assert again.route("cat dog").chosen != "Animals" and again.lobe_names == model.lobe_names[1:]


def test_training_a_lobe_on_keeps_its_pin(backbone: Backbone, tmp_path: Path) -> None:
    model = trained(backbone, tmp_path)
    old = model.lobes[1]
    model.memory.pin(model.lobes.named(old.name).id)
    config = {"epochs": 1, "lora_r": 2, "batch_size": 8, "learning_rate": 1e-2}
    from multilobe_ui import TrainingConfig
    from multilobe_ui.progress import finish

    new = finish(model.train(old.name, rows(old.name), TrainingConfig(**config), replaces=old.id))
    assert model.lobes.pinned == [new.name] and new.id in model.bank.memory.resident


def test_deleting_all_lobes_gives_all_memory_back(backbone: Backbone) -> None:
    model = trained(backbone)
    for lobe in model.lobes:
        model.generate("cat", lobe=lobe.name, max_new_tokens=2)
    model.route("one cat", "logprob")
    model.generate("cat", weights={lobe.name: 0.5 for lobe in model.lobes}, max_new_tokens=2)
    held = [reference for lobe in model.lobes for reference in tensors(model.bank, lobe.id)]
    kept = [weakref.ref(own.train) for own in model.routers.context().rows.values()]
    calibrations: list[int] = []
    changed, model.routers.changed = model.routers.changed, lambda: calibrations.append(1) or changed()  # type: ignore[method-assign]
    model.remove_lobe(*model.lobe_names)
    assert len(calibrations) == 1 and model.lobe_names == [] and model.bank.memory.resident_bytes == 0
    assert are_gone(held) and are_gone(kept)  # type: ignore[arg-type]
    assert not list((model.home / "lobes").glob("[!.]*"))


def test_several_are_deleted_or_none(backbone: Backbone) -> None:
    model = trained(backbone)
    with pytest.raises(LobeError, match="'Nobody'"):
        model.remove_lobe("Animals", "Nobody")
    assert model.lobe_names == list(TOPICS)
    model.remove_lobe("Animals", "animals")
    assert model.lobe_names == list(TOPICS)[1:]


# ---- a thousand ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thousand(backbone: Backbone, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of 1,000 lobes: one small adapter, each with routing rows of its own."""
    home = tmp_path_factory.mktemp("thousand")
    store, random = LobeStore(home / "lobes"), np.random.default_rng(0)
    base = {"name": backbone.name, "fingerprint": backbone.fingerprint}
    for number in range(1000):
        folder = Path(shutil.copytree(adapters["attention"], home / "incoming"))
        vectors = random.normal(size=(2, 64)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        write_routing_rows(folder, RoutingRows(vectors[:1], vectors, vectors[:0], [f"a {number}", f"b {number}"]))
        store.add(folder, Card(f"Lobe {number}", now(), "test", base, embedding_model="words"))
    return home


def test_a_thousand_lobes_are_registered_and_those_in_use_are_in_memory(backbone: Backbone, thousand: Path) -> None:
    model = MultiLobeModel(backbone, home=thousand, embedder=WordEmbedder(), memory_budget_mib=1)
    assert len(model.lobes) == 1000 and model.bank.memory.resident == () and model.routers.version == 0
    one = model.bank.memory.matrices("lobe_0001") and model.bank.memory.resident_bytes
    model.memory.set_budget(3 * one / MIB)
    for number in (0, 500, 999, 7, 500):
        assert model.generate("x", lobe=f"Lobe {number}", max_new_tokens=1) is not None
    assert model.bank.memory.resident == ("lobe_1000", "lobe_0008", "lobe_0501")
    assert model.route("a", "embedding").router == "embedding" and len(model.routers.context().rows) == 1000
    with pytest.raises(LobeError, match=r"'Nobody'.* Lobe 11 and 988 more\."):
        model.lobes.named("Nobody")


def test_names_are_looked_up_and_not_searched(thousand: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, keyed = LobeStore(thousand / "lobes"), []
    monkeypatch.setattr("multilobe_ui.lobes.store._key", lambda name: keyed.append(name) or " ".join(str(name).split()).casefold())
    assert store.by_name("lobe 998").id == "lobe_0999" and store.check_free("Lobe 1000") == "Lobe 1000"
    assert store.free_name("Lobe 1") == "Lobe 1 (2)"
    assert len(keyed) <= 6


def test_rows_are_kept_up_to_a_limit_and_read_again(thousand: Path) -> None:
    store = LobeStore(thousand / "lobes")
    lobes = {lobe.name: lobe for lobe in store.all()[:50]}
    rows_of = RowsOfLobes(most_bytes=5000)
    for lobe in lobes.values():
        rows_of.take(lobe)
    found = rows_of.among(lobes)
    assert list(found) == list(lobes) and len(found) == 50 and "Lobe 7" in found
    assert found.prototypes("Lobe 7").shape[1] == 64 and not len(rows_of._kept)  # only prototypes have been read
    for name, lobe in lobes.items():
        direct = lobe.routing_rows()
        assert direct is not None and np.array_equal(found[name].train, direct.train)
        assert list(found[name].train_prompts) == list(direct.train_prompts)
    kept = [rows for _, rows in rows_of._kept.items()]
    assert rows_of._kept.weight <= 5000 and 1 < len(kept) < 20
    assert rows_of._kept.weight == sum(r.prototypes.nbytes + r.train.nbytes + len("".join(r.train_prompts)) for r in kept)


def test_rows_that_vanish_or_are_forgotten_under_a_router(thousand: Path, tmp_path: Path) -> None:
    shutil.copytree(thousand / "lobes" / "lobe_0001", tmp_path / "lobes" / "lobe_0001")
    (lobe,) = LobeStore(tmp_path / "lobes").all()
    rows_of = RowsOfLobes(most_bytes=0)
    rows_of.take(lobe)
    found = rows_of.among({lobe.name: lobe})
    rows_of._kept.pop(lobe.id)
    shutil.rmtree(lobe.path)
    assert found[lobe.name].prototypes.shape == (1, 64) and not found[lobe.name].prototypes.any()
    rows_of.forget(lobe)
    assert len(found[lobe.name].train_prompts) == 0 and not rows_of.has(lobe) and not rows_of.among({lobe.name: lobe})
    with pytest.raises(KeyError):
        rows_of.of(lobe)


# ---- the studio and the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def studio(base_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Desk]]:
    """studio(**options) → a visitor's desk in a Studio that is ready, on one home."""
    monkeypatch.setattr("multilobe_ui.model.Embedder", lambda *a: WordEmbedder())
    made: list[Studio] = []

    def make(**options: Any) -> Desk:
        made.append(Studio(tmp_path / "home", str(base_folder()), **options))
        made[-1].start()
        made[-1].ready(60)
        return made[-1].desk("user:me")

    yield make
    for one in made:
        one.close()


def test_the_studio_tells_and_sets_what_is_in_memory(
    studio: Callable[..., Desk], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = studio()
    one.load_bundle(saved)
    assert one.memory().lobes == () and one.memory().budget_mib is None and one.memory().changeable
    one.pin("Animals")
    (lobe,) = (lobe for lobe in one.lobes() if lobe.pinned)
    memory = one.memory()
    assert memory.lobes == (lobe.id,) == tuple(memory.pinned) and memory.nbytes > 0 and lobe.name == "Animals"
    one.pin("Animals", False)
    one.set_memory_budget(memory.nbytes / MIB / 2)
    assert one.memory().lobes == () and not any(lobe.pinned for lobe in one.lobes())
    spoil(tmp_path / "home" / "lobes" / "lobe_0002")
    with pytest.raises(AdapterError):
        one.pin("Numbers v1.0")
    assert [bool(lobe.fault) for lobe in one.lobes()] == [False, True, False]
    assert [lobe.usable for lobe in one.lobes()] == [True, False, True]
    monkeypatch.setenv("MULTILOBE_MEMORY_MIB", "12.5")
    assert studio().memory().budget_mib == 12.5 and studio(memory_budget_mib=3).memory().budget_mib == 3


def test_on_a_shared_server_nobody_sets_memory_from_the_page(studio: Callable[..., Desk], saved: Path) -> None:
    one = studio(shared=True)
    one.load_bundle(saved)
    for act in (lambda: one.set_memory_budget(5), lambda: one.pin("Animals"), lambda: one.pin("Animals", False)):
        with pytest.raises(ConfigError, match="shared"):
            act()
    assert not one.memory().changeable and one.memory().budget_mib is None


@pytest.mark.parametrize("text", ["x", "0", "-3", "nan"])
def test_an_odd_variable_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MULTILOBE_MEMORY_MIB", text)
    with pytest.raises(ConfigError, match=f"MULTILOBE_MEMORY_MIB is '{text}'"):
        budget_from_environment()
    monkeypatch.setenv("MULTILOBE_MEMORY_MIB", " ")
    assert budget_from_environment() is None


def test_the_command_line_has_a_budget(
    base_folder: Callable[..., Path], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("multilobe_ui.model.Embedder", lambda *a: WordEmbedder())
    where = ["--home", str(tmp_path / "home"), "--base", str(base_folder()), "--device", "cpu"]
    assert main(["bundle", "load", *where, str(saved)]) == 0
    capsys.readouterr()
    ask = ["chat", "cat", "--lobe", "Animals", "--json", "--max-new-tokens", "2", *where]
    assert main([*ask, "--memory-mib", "0.000001"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["resident"] == ["Animals"]  # what is in use stays
    assert main([*ask, "--memory-mib", "0"]) == 1 and "memory_budget_mib is 0.0" in capsys.readouterr().err


def test_no_reader_of_weights_is_forgotten() -> None:
    """`test_a_bundle_opens_without_its_weights` watches every name by which a bundle's weights can be read."""
    assert callable(adapters_module.read_matrices)
    from multilobe_ui.bundles import manifest as bundle_module
    from multilobe_ui.lobes import bank as bank_module

    assert bank_module.read_matrices is bundle_module.read_matrices is adapters_module.read_matrices
