"""The public API on a tiny random base, with a sentence encoder made of hashed words."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from multilobe_ui import MultiLobeModel, SamplingConfig, TrainingConfig
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import BundleError, ConfigError, DataError, LobeError, RoutingError
from multilobe_ui.settings import suggested_epochs, suggested_learning_rate

TOPICS = {
    "Animals": "cat dog horse cow sheep bird fish lion tiger bear",
    "Numbers v1.0": "one two three four five six seven eight nine ten",
    "色 / colours": "red green blue white black brown pink grey orange violet",
}


class WordEmbedder:
    """Counts hashed words: texts that share words are near."""

    name = "words"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), 64), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().split():
                vector[zlib.crc32(word.encode()) % 64] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def rows(topic: str) -> list[dict[str, str]]:
    words = TOPICS[topic].split()
    return [{"input": f"{a} {b}", "output": f"{b} {a}"} for a in words for b in words[:3] if a != b]


def trained(backbone: Backbone, home: Path | None = None) -> MultiLobeModel:
    model = MultiLobeModel(backbone, home=home, embedder=WordEmbedder())
    for i, topic in enumerate(TOPICS):
        model.add_lobe(topic, rows(topic), epochs=1, lora_r=2 + i, learning_rate=1e-2, batch_size=8, validation_fraction=0.1)
    return model


@pytest.fixture(scope="module")
def model(backbone: Backbone) -> MultiLobeModel:
    made = trained(backbone)
    made.routers.prepare()  # training does not
    return made


def test_the_signatures_are_a_superset_of_the_peers() -> None:
    peer = {
        "add_lobe": {
            "name": inspect.Parameter.empty,
            "dataset": inspect.Parameter.empty,
            "epochs": None,  # the peer's is 3; left out, it is chosen here
            "lora_r": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.05,
            "target_modules": None,
            "batch_size": 4,
            "learning_rate": None,  # the peer's is 2e-4
            "max_length": 512,
        },
        "from_pretrained": {
            "device": None,
            "embedding_model": "all-MiniLM-L6-v2",
            "embedding_threshold": "auto",
            "logprob_max_tokens": 30,
        },
    }
    for method, expected in peer.items():
        parameters = inspect.signature(getattr(MultiLobeModel, method)).parameters
        for name, default in expected.items():
            assert parameters[name].default == default, (method, name)
    sampling = SamplingConfig()
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.do_sample) == (256, 0.7, 0.9, True)


def test_lobes_are_listed_by_their_names(model: MultiLobeModel) -> None:
    assert model.lobe_names == list(TOPICS)
    listed = model.list_lobes()
    json.dumps(listed)
    assert [entry["adapter"]["r"] for entry in listed] == [2, 3, 4]
    assert all(entry["training"]["validation_loss"] is not None for entry in listed)


def test_prompts_are_routed_and_answered(model: MultiLobeModel) -> None:
    text, details = model.generate("cat dog", return_metadata=True, max_new_tokens=5, do_sample=False)
    assert details["selected_lobe"] == "Animals"
    assert details["router_type"] in ("embedding", "logprob")
    assert set(details) >= {"selected_lobe", "router_confidence", "router_type", "router_scores", "router_ms"}
    assert text == model.generate("cat dog", lobe="Animals", max_new_tokens=5, do_sample=False)


def test_streaming_gives_the_same_text(model: MultiLobeModel) -> None:
    whole = model.generate("red green", max_new_tokens=12, do_sample=False)
    assert "".join(model.stream("red green", max_new_tokens=12, do_sample=False)).strip() == whole


def test_weights_by_hand(model: MultiLobeModel) -> None:
    def answer(weights: dict[str, float]) -> str:
        return model.generate("red cat", weights=weights, max_new_tokens=8, do_sample=False)

    base = model.backbone.model.generate(
        torch.tensor([model.backbone.encode_chat([{"role": "user", "content": "red cat"}])]),
        max_new_tokens=8,
        do_sample=False,
    )
    prompt = len(model.backbone.encode_chat([{"role": "user", "content": "red cat"}]))
    assert answer({}) == model.backbone.decode(base[0, prompt:].tolist()).strip()
    assert answer({"Animals": 1.0}) == model.generate("red cat", lobe="Animals", max_new_tokens=8, do_sample=False)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: m.generate("x", lobe="Nobody"), RoutingError, "no lobe called 'Nobody'"),
        (lambda m: m.generate(""), ConfigError, "nothing to answer"),
        (lambda m: m.generate("x", temprature=1), ConfigError, "temprature"),
        (lambda m: m.generate("x", temperature=-1), ConfigError, "temperature is -1"),
        (lambda m: m.generate([{"role": "robot", "content": "x"}]), ConfigError, "role"),
        (lambda m: m.add_lobe("Animals", rows("Animals")), LobeError, "exists already"),
        (lambda m: m.add_lobe("ANIMALS ", rows("Animals")), LobeError, "exists already"),
        (lambda m: m.add_lobe("  ", rows("Animals")), LobeError, "no name"),
        (lambda m: m.add_lobe("x", rows("Animals"), lora_r=0), ConfigError, "lora_r is 0"),
        (lambda m: m.add_lobe("x", rows("Animals"), lora_rank=4), ConfigError, "lora_rank"),
        (lambda m: m.add_lobe("x", rows("Animals"), target_modules=["nowhere"]), ConfigError, "q_proj"),
        (lambda m: m.add_lobe("x", "/nowhere.jsonl"), DataError, "nowhere"),
        (lambda m: m.add_lobe("x", []), DataError, "empty|no row"),
        (lambda m: m.remove_lobe("Nobody"), LobeError, "There are: Animals"),
        (lambda m: m.rename_lobe("Animals", "numbers V1.0"), LobeError, "exists already"),
        (lambda m: m.save("/tmp/x", ["Nobody"]), LobeError, "Nobody"),
        (lambda m: m.load_bundle("/nowhere.zip"), BundleError, "nowhere"),
    ],
)
def test_refusals_leave_everything_as_it_was(model: MultiLobeModel, call: Callable, error: type, match: str) -> None:
    before = (model.lobe_names, sorted(p.name for p in (model.home / "lobes").iterdir()))
    with pytest.raises(error, match=match):
        call(model)
    assert before == (model.lobe_names, sorted(p.name for p in (model.home / "lobes").iterdir()))
    assert not list(model.home.glob(".training-*"))


def test_training_another_lobe_changes_nothing_of_the_base_or_of_the_others(backbone: Backbone) -> None:
    from multilobe_ui import Mix

    model = MultiLobeModel(backbone, embedder=WordEmbedder())
    first = model.add_lobe("Animals", rows("Animals"), epochs=1, lora_r=4, learning_rate=1e-2)
    ids = tiny.numbers(2, 20, seed=3)

    def logits() -> list[torch.Tensor]:
        with torch.inference_mode():
            return [model.bank.run(mix, input_ids=ids).logits for mix in (None, Mix.of({first.id: 1.0}))]

    before = logits()
    weights = {name: parameter.clone() for name, parameter in backbone.model.named_parameters()}
    model.add_lobe("Numbers v1.0", rows("Numbers v1.0"), epochs=1, lora_r=4, learning_rate=1e-2)
    after = logits()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(weights[name], parameter) for name, parameter in backbone.model.named_parameters())


PROMPTS = ["cat dog", "nine two", "pink black", "tiger one red", "zebra", "hello there"]


def answers(model: MultiLobeModel) -> list[tuple[str, str | None, str]]:
    found = []
    for prompt in PROMPTS:
        text, details = model.generate(prompt, return_metadata=True, max_new_tokens=6, do_sample=False)
        found.append((text, details["selected_lobe"], details["router_type"]))
    return found


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_save_and_load_in_a_new_process(
    model: MultiLobeModel, base_folder: Callable, tmp_path: Path, name: str
) -> None:
    path = model.save(tmp_path / name)
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import test_model as t\n"
        "import multilobe_ui.model as m; m.Embedder = lambda *a: t.WordEmbedder()\n"
        "model = m.MultiLobeModel.load(sys.argv[2], model_name=sys.argv[3], device='cpu')\n"
        "print(json.dumps(t.answers(model)))"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(path), str(base_folder())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == [list(answer) for answer in answers(model)]


def test_a_bundle_of_another_base_is_refused(model: MultiLobeModel, base_folder: Callable, tmp_path: Path) -> None:
    other = MultiLobeModel(Backbone.from_pretrained(base_folder("qwen2"), device="cpu"), embedder=WordEmbedder())
    path = model.save(tmp_path / "b.zip")
    with pytest.raises(BundleError, match="base"):
        other.load_bundle(path)
    assert other.lobe_names == []


def test_clashing_names(model: MultiLobeModel, backbone: Backbone, tmp_path: Path) -> None:
    path = model.save(tmp_path / "b.zip", ["Animals"])
    other = MultiLobeModel(backbone, embedder=WordEmbedder())
    assert [lobe.name for lobe in other.load_bundle(path)] == ["Animals"]
    assert [lobe.name for lobe in other.load_bundle(path, "rename")] == ["Animals (2)"]
    with pytest.raises(BundleError, match="Animals"):
        other.load_bundle(path, "refuse")
    assert [lobe.name for lobe in other.load_bundle(path, "replace")] == ["Animals"]
    assert sorted(other.lobe_names) == ["Animals", "Animals (2)"]
    assert set(other.bank.lobes) == {lobe.id for lobe in other.lobes}


def test_a_home_is_found_again(backbone: Backbone, tmp_path: Path) -> None:
    model = trained(backbone, tmp_path)
    before = answers(model)
    again = MultiLobeModel(backbone, home=tmp_path, embedder=WordEmbedder())
    again.routers.prepare()
    assert answers(again) == before


def test_a_damaged_lobe_does_not_stop_the_others(backbone: Backbone, tmp_path: Path) -> None:
    model = trained(backbone, tmp_path)
    model.lobes[0].path.joinpath("adapter_model.safetensors").write_bytes(b"junk")
    again = MultiLobeModel(backbone, home=tmp_path, embedder=WordEmbedder())
    assert again.lobe_names == list(TOPICS)[1:]
    assert "damaged" in again.lobes.broken["lobe_0001"]


def test_rename_and_remove(backbone: Backbone) -> None:
    model = trained(backbone)
    model.rename_lobe("Animals", "Beasts")
    assert model.route("cat dog").chosen == "Beasts"
    model.remove_lobe("Beasts")
    assert "Beasts" not in model.lobe_names
    assert model.route("cat dog").chosen != "Beasts"
    assert len(model.bank.lobes) == 2


def test_import_of_a_plain_peft_adapter(backbone: Backbone, adapters: dict[str, Path]) -> None:
    model = MultiLobeModel(backbone, embedder=WordEmbedder())
    lobe = model.import_adapter("Imported", adapters["patterns"])
    ids = tiny.numbers(1, 12)
    from multilobe_ui import Mix

    with torch.inference_mode():
        ours = model.bank.run(Mix.of({lobe.id: 1.0}), input_ids=ids).logits
        theirs = tiny.with_peft(backbone.model, adapters["patterns"])(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert adapters["patterns"].is_dir()
    assert model.generate("cat", lobe="Imported", max_new_tokens=3) is not None


def test_a_lobe_takes_what_suits_the_base_and_the_rows_where_nothing_is_said(backbone: Backbone) -> None:
    model = MultiLobeModel(backbone, embedder=WordEmbedder())
    facts = [{"input": f"Who is number {i}?", "output": f"Number {i} is {i * i}."} for i in range(6)]
    card = model.add_lobe("Facts", facts).card
    assert card.config["epochs"] == suggested_epochs(6) and card.config["validation_fraction"] == 0.0
    assert card.config["learning_rate"] == card.training["learning_rate"] == suggested_learning_rate(backbone.hidden_size)
    training = card.training
    assert (training["kept"], training["kept_step"], training["train_rows"]) == ("last", training["steps"], 6)
    assert training["validation_rows"] == 0 and training["validation_loss"] is training["base_validation_loss"] is None
    labels = [{"input": f"Is {i} even?", "output": "Yes" if i % 2 == 0 else "No"} for i in range(120)]
    card = model.add_lobe("Even", labels, epochs=1, learning_rate=2e-4).card  # the peer's rate still works
    assert (card.training["train_rows"], card.training["validation_rows"]) == (114, 6)
    assert (card.config["epochs"], card.config["learning_rate"], card.config["validation_fraction"]) == (1, 2e-4, 0.05)
    assert card.training["validation_loss"] is not None


def test_training_ends_with_its_lobe_and_calibrates_nothing(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(backbone)
    monkeypatch.setattr(MultiLobeModel, "fit_router", lambda *_: pytest.fail("it calibrates"))
    config = TrainingConfig(epochs=1, lora_r=2)
    events = list(model.train("More", rows("Animals"), config))
    assert [event for event in events if isinstance(event, str)][-1] == "Learning what to route here"
    assert "More" in model.lobe_names


def test_a_stop_keeps_the_newest_step(backbone: Backbone) -> None:
    model, stop, steps = MultiLobeModel(backbone, embedder=WordEmbedder()), threading.Event(), []

    def progress(record) -> None:
        steps.append(record.step)
        if record.step == 3:
            stop.set()

    lobe = model.add_lobe("Animals", rows("Animals"), epochs=50, progress=progress, stop=stop, batch_size=2)
    assert lobe.card.training["stopped"] and lobe.card.training["steps"] == 3 == max(steps)
    assert (lobe.card.training["kept"], lobe.card.training["kept_step"]) == ("last", 3)


def test_a_short_question_that_fits_no_lobe_is_routed_with_the_one_before(model: MultiLobeModel) -> None:
    def decide(last: str) -> object:
        messages = [("user", "cat dog horse cow"), ("assistant", "x"), ("user", last)]
        return model.answers.decide([{"role": role, "content": content} for role, content in messages]).scores

    stray = next(word for word in ("why?", "hm", "how so?", "really", "go on", "so?") if model.route(word).abstained)
    assert decide(stray) == model.route(f"cat dog horse cow {stray}").scores
    assert decide("red blue") == model.route("red blue").scores
    assert decide("and why is that so?") == model.route("and why is that so?").scores


def test_settings_are_checked() -> None:
    for field, value in [("epochs", 0), ("learning_rate", 2.0), ("lora_dropout", 1.0), ("validation_fraction", 0.9)]:
        with pytest.raises(ConfigError, match=f"{field} is {value}"):
            TrainingConfig(**{field: value})
