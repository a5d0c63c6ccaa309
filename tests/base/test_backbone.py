"""The backbone: loading and refusing, twins and fingerprints, and one prompt format for training, routing and chat."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from torch import nn

from multilobe_ui.base.backbone import Backbone, describe, pad_left
from multilobe_ui.base.device import choose_device, choose_dtype, choose_threads
from multilobe_ui.errors import BackboneError
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.weights import Mix

TEMPLATES = {"chatml": tiny.CHATML, "like llama 3": tiny.LIKE_LLAMA3, "none": None}
TEXTS = [
    "What is a lobe?",
    "x",
    "Wie groß ist 中文字 😀👩‍👩‍👧?",
    "line one\nline two\n\n  indented",
    "### Response:\nnot really",
    "   spaces   inside   ",
    "\x00\x7f",
]


@pytest.fixture(params=TEMPLATES)
def speaking(request: pytest.FixtureRequest, base_folder: Callable[..., Path]) -> Backbone:
    """The tiny base with each kind of prompt format."""
    return Backbone.from_pretrained(base_folder("llama", TEMPLATES[request.param]), device="cpu")


# ---- loading ---------------------------------------------------------------------------------------------------------------


def test_a_loaded_base_is_frozen_and_says_what_it_is(backbone: Backbone, base_folder: Callable[..., Path]) -> None:
    assert not backbone.model.training and not any(p.requires_grad for p in backbone.model.parameters())
    assert (backbone.hidden_size, backbone.context_length, backbone.device.type) == (32, tiny.CONTEXT, "cpu")
    assert backbone.parameter_count == sum(p.numel() for p in backbone.model.parameters())
    assert describe(backbone) == {
        "name": str(base_folder()),
        "fingerprint": backbone.fingerprint,
        "architecture": "LlamaForCausalLM",
        "parameters": backbone.parameter_count,
        "context_length": tiny.CONTEXT,
        "device": "cpu",
        "dtype": "float32",
    }


def test_sizes_are_read_from_every_kind_of_config(base_folder: Callable[..., Path]) -> None:
    sizes = {}
    for name in ("gpt2", "opt", "falcon", "gemma3", "bloom"):
        backbone = Backbone.from_pretrained(base_folder(name), device="cpu")
        sizes[name] = backbone.hidden_size, backbone.context_length
    assert sizes == dict.fromkeys(("gpt2", "opt", "falcon", "gemma3"), (32, tiny.CONTEXT)) | {"bloom": (32, 2048)}


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.float16", torch.float32, None])
def test_dtypes(base_folder: Callable[..., Path], dtype: Any) -> None:
    expected = {"bfloat16": torch.bfloat16, "torch.float16": torch.float16}.get(dtype, torch.float32)
    assert Backbone.from_pretrained(base_folder(), device="cpu", dtype=dtype).dtype == expected


def test_the_dtype_chosen_depends_on_device_and_size() -> None:
    small, large = (
        tf.LlamaConfig(hidden_size=576, num_hidden_layers=30),
        tf.LlamaConfig(hidden_size=4096, num_hidden_layers=32),
    )
    for device in (torch.device("cpu"), torch.device("mps")):
        assert choose_dtype(None, device, small) == torch.float32
        assert choose_dtype(None, device, large) == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": ""}, "no name"),
        ({"name": "nobody-has-this"}, "nobody-has-this"),
        ({"name": "who/knows"}, "who/knows"),
        ({"name": "x" * 5000}, "xxx"),
        ({"name": "a\0b"}, "neither"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"device": "abc"}, "abc"),
        ({"device": "cuda:99"}, "cannot be loaded"),
        ({"dtype": "float33"}, "float33"),
        ({"dtype": "nn"}, "'nn'"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_wrong_arguments(base_folder: Callable[..., Path], arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(BackboneError, match=named) as caught:
        Backbone.from_pretrained(**{"name": base_folder(), "device": "cpu"} | arguments)
    assert len(str(caught.value)) < 500  # it fits in a toast


def damage(folder: Path, kind: str) -> None:
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if kind == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif kind == "no weights":
        weights.unlink()
    elif kind == "no json":
        (folder / "config.json").write_text("{")
    elif kind == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    elif kind == "broken tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        changes = {
            "other width": {"hidden_size": 64},
            "layers missing": {"num_hidden_layers": 3},
            "unknown kind": {"model_type": "nope"},
            "a text for a number": {"hidden_size": "wide"},
        }
        (folder / "config.json").write_text(json.dumps(config | changes[kind]))


@pytest.mark.parametrize(
    "kind",
    [
        *("cut weights", "no weights", "no json", "no tokenizer", "broken tokenizer", "other width"),
        *("layers missing", "unknown kind", "a text for a number"),
    ],
)
def test_damaged_folders(base_folder: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(base_folder(), tmp_path / "damaged"))
    damage(folder, kind)
    with pytest.raises(BackboneError, match="damaged") as caught:
        Backbone.from_pretrained(folder, device="cpu")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("head", [tf.BertModel, tf.BertForMaskedLM, tf.T5ForConditionalGeneration])
def test_models_that_cannot_write_are_refused(tmp_path: Path, head: Any) -> None:
    if head is tf.T5ForConditionalGeneration:
        config: Any = tf.T5Config(vocab_size=tiny.VOCABULARY, d_model=32, d_kv=8, num_layers=1, num_heads=2, d_ff=32)
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = tf.BertConfig(vocab_size=tiny.VOCABULARY, initializer_range=0.2, **sizes)
    head(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"causal language model|AutoModelForCausalLM"):
        Backbone.from_pretrained(tmp_path, device="cpu")


def test_the_device_asked_for_is_taken() -> None:
    assert choose_device("cuda:1") == torch.device("cuda", 1) and choose_device(torch.device("cpu")).type == "cpu"
    assert choose_device(None).type in ("cpu", "cuda", "mps")


# ---- twins and fingerprints ------------------------------------------------------------------------------------------------


def test_a_twin_shares_weights_and_nothing_else(backbone: Backbone) -> None:
    ids = tiny.numbers(1, 8)
    before, twin = backbone.model(ids).logits, backbone.twin()
    assert torch.equal(twin(ids).logits, before)
    own = {id(p) for p in backbone.model.parameters()} | {id(b) for b in backbone.model.buffers()}
    assert {id(p) for p in twin.parameters()} | {id(b) for b in twin.buffers()} == own
    assert not {id(m) for m in twin.modules()} & {id(m) for m in backbone.model.modules()}
    twin.train()
    twin.get_submodule("model.layers.0.mlp.up_proj").register_forward_hook(lambda *_: torch.zeros(()))
    twin.model.layers[1] = nn.Identity()
    assert not any(m.training for m in backbone.model.modules()) and torch.equal(backbone.model(ids).logits, before)


def test_a_twin_of_a_tied_base_is_tied(base_folder: Callable[..., Path]) -> None:
    twin = Backbone.from_pretrained(base_folder("llama-tied"), device="cpu").twin()
    assert twin.lm_head.weight is twin.model.embed_tokens.weight


def test_a_fingerprint_tells_bases_apart_and_dtypes_not(base_folder: Callable[..., Path]) -> None:
    names = ("llama", "qwen2", "gpt2")
    prints = {name: Backbone.from_pretrained(base_folder(name), device="cpu").fingerprint for name in names}
    assert len(set(prints.values())) == 3 and all(len(p) == 16 and int(p, 16) >= 0 for p in prints.values())
    assert Backbone.from_pretrained(base_folder("llama"), device="cpu", dtype="bfloat16").fingerprint == prints["llama"]
    changed = Backbone.from_pretrained(base_folder("llama"), device="cpu")
    changed.model.get_submodule("model.layers.1.mlp.up_proj").weight.data *= 1.1
    assert changed.fingerprint != prints["llama"]


def test_forward_arguments_that_an_architecture_lacks_are_left_out(base_folder: Callable[..., Path]) -> None:
    inputs = {"input_ids": 1, "position_ids": 2, "logits_to_keep": 3}
    assert Backbone.from_pretrained(base_folder("llama"), device="cpu").accepted(inputs) == inputs
    bloom = Backbone.from_pretrained(base_folder("bloom"), device="cpu")
    assert bloom.accepted(inputs) == {"input_ids": 1, "logits_to_keep": 3}


def test_padding_on_the_left() -> None:
    ids, mask = pad_left([[5, 6, 7], [8], []], 1, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [1, 1, 8], [1, 1, 1]] and mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]


# ---- prompt format ---------------------------------------------------------------------------------------------------------


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_trained_is_what_chat_and_routing_see(speaking: Backbone, text: str) -> None:
    context = [
        {"role": "system", "content": "Be brief."},
        user("Hello"),
        {"role": "assistant", "content": "Hi."},
        user(text),
    ]
    row = speaking.encode_chat(context) + speaking.encode_answer("It is 中 a lobe.")
    # the conversation goes on: the trained row is what it begins with, token for token
    longer = [*context, {"role": "assistant", "content": "It is 中 a lobe."}, user("And now?")]
    assert speaking.encode_chat(longer)[: len(row)] == row
    rendered = speaking.tokenizer.apply_chat_template(longer, tokenize=False, add_generation_prompt=True)
    assert speaking.tokenizer.decode(speaking.encode_chat(longer)) == rendered
    opening, words = speaking.encode_prompt(text)
    assert speaking.encode_chat([user(text)])[: len(opening + words)] == opening + words


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_is_split_into_the_opening_and_the_words(speaking: Backbone, text: str) -> None:
    opening, words = speaking.encode_prompt(text)
    assert speaking.tokenizer.decode(words).strip() == text.strip() and opening == speaking.encode_prompt("Hello")[0]
    assert speaking.encode_prompt("") == (opening, [])


@pytest.mark.parametrize(
    ("template", "end"), [("chatml", "<|im_end|>"), ("like llama 3", "<|eot|>"), ("none", "<|endoftext|>")]
)
def test_a_turn_ends_as_the_template_ends_it(base_folder: Callable[..., Path], template: str, end: str) -> None:
    backbone = Backbone.from_pretrained(base_folder("llama", TEMPLATES[template]), device="cpu")
    ids = {name: backbone.tokenizer.convert_tokens_to_ids(name) for name in (end, "<|endoftext|>")}
    assert backbone.end_id == ids[end] and backbone.stop_ids == set(ids.values())
    assert backbone.has_chat_template == (template != "none")
    answer = backbone.encode_answer("A lobe")
    assert answer[-1] == ids[end] and backbone.decode(answer) == "A lobe"


def test_stop_tokens_of_the_generation_config_count(base_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base_folder(), tmp_path / "base"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 9, 11]}))
    backbone = Backbone.from_pretrained(folder, device="cpu")
    assert backbone.stop_ids == {0, 9, 11, backbone.end_id} and backbone.end_id == tiny.SPECIALS.index("<|im_end|>")


def test_without_a_template_conversations_have_headings(base_folder: Callable[..., Path]) -> None:
    backbone = Backbone.from_pretrained(base_folder("llama", None), device="cpu")
    turns = [
        {"role": "system", "content": "Be brief."},
        user("Hello"),
        {"role": "assistant", "content": "Hi."},
        user("Bye"),
    ]
    assert backbone.tokenizer.decode(backbone.encode_chat(turns)) == (
        "Be brief.\n\n### Instruction:\nHello\n\n### Response:\nHi.<|endoftext|>\n\n### Instruction:\nBye\n\n### Response:\n"
    )


def test_without_a_template_prompts_open_as_the_tokenizer_opens_texts(
    base_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base_folder("llama"), tmp_path / "base"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tiny.tokenizer(template=None, opening=True).save_pretrained(folder)
    backbone = Backbone.from_pretrained(folder, device="cpu")
    bos = backbone.tokenizer.bos_token_id
    assert backbone.tokenizer.encode("Hello")[0] == bos
    ids = backbone.encode_chat([user("Hello")])
    assert ids[0] == bos and ids.count(bos) == 1
    assert backbone.encode_answer("Hello").count(bos) == 0 and backbone.encode_prompt("Hello")[0][0] == bos


def test_a_template_that_refuses_a_conversation(base_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base_folder(), tmp_path / "base"))
    refusing = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tiny.tokenizer(refusing + "{{ m['content'] }}{% endfor %}").save_pretrained(folder)
    backbone = Backbone.from_pretrained(folder, device="cpu")
    assert backbone.encode_chat([user("Hello")]) and backbone.end_id == backbone.tokenizer.eos_token_id
    with pytest.raises(BackboneError, match="no system role"):
        backbone.encode_chat([{"role": "system", "content": "Be brief."}, user("Hello")])


def test_a_tokenizer_without_padding_gets_some(base_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base_folder(), tmp_path / "base"))
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    backbone = Backbone.from_pretrained(folder, device="cpu")
    assert backbone.tokenizer.pad_token_id == backbone.tokenizer.eos_token_id


def test_a_base_whose_answers_could_never_end_is_refused(base_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base_folder(), tmp_path / "base"))
    for file in ("config.json", "generation_config.json"):
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(
            json.dumps({k: v for k, v in config.items() if k != "eos_token_id"} | {"eos_token_id": None})
        )
    tokenizer = tiny.tokenizer(template=None)
    tokenizer.eos_token = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    with pytest.raises(BackboneError, match="no end-of-text token"):
        Backbone.from_pretrained(folder, device="cpu")


# ---- the built-in base -----------------------------------------------------------------------------------------------------


@pytest.mark.builtin
@torch.no_grad()
def test_the_builtin_base_speaks_and_carries_lobes(builtin: Backbone, tmp_path: Path) -> None:
    assert builtin.name == "builtin" and builtin.has_chat_template and builtin.end_id in builtin.stop_ids
    row = builtin.encode_chat([user("What is 2 + 2?")]) + builtin.encode_answer("4")
    longer = [user("What is 2 + 2?"), {"role": "assistant", "content": "4"}, user("And 中文?")]
    assert builtin.encode_chat(longer)[: len(row)] == row
    ids, bank = torch.tensor([row]), LobeBank(builtin)
    path = tiny.save_adapter(builtin.model, tmp_path / "lobe", size=0.02, r=8, lora_alpha=16)
    bank.register("lobe", path)
    assert torch.equal(bank.run(None, input_ids=ids).logits, builtin.model(ids).logits)
    ours, theirs = (
        bank.run(Mix.of({"lobe": 1.0}), input_ids=ids).logits,
        tiny.with_peft(builtin.model, path)(ids).logits,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - builtin.model(ids).logits).abs().max() > 0.1


def test_a_small_base_computes_on_one_thread_unless_somebody_has_said_otherwise(
    speaking: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("multilobe_ui.base.device.THREADS", 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        for small, in_a_crowd, threads in ((10**9, False, 1), (10, True, 1), (10, False, 3)):
            monkeypatch.setattr("multilobe_ui.base.device.SMALL", small)
            choose_threads(speaking.device, speaking.parameter_count, in_a_crowd=in_a_crowd)
            assert torch.get_num_threads() == threads
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        monkeypatch.setattr("multilobe_ui.base.device.SMALL", 10**9)
        choose_threads(speaking.device, speaking.parameter_count)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
