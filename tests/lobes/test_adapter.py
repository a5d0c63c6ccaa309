"""Reading adapter folders: what PEFT wrote is read exactly, what cannot be run exactly is refused by name, and a stranger's
files can do no harm."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import AdapterError
from multilobe_ui.lobes import adapter
from multilobe_ui.lobes.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_fits,
    linear_features,
    read_header,
    read_matrices,
)


@pytest.fixture
def folder(adapters: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a good adapter, to be spoiled."""
    return Path(shutil.copytree(adapters["plain"], tmp_path / "adapter"))


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | values))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def refusal(backbone: Backbone, folder: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        header = read_header(folder)
        check_fits(header, linear_features(backbone.model), "this base")
        read_matrices(header)
    return str(caught.value)


# ---- what is read ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lobe", ["plain", "attention", "patterns"])
def test_ranks_scalings_and_matrices_are_those_of_peft(
    backbone: Backbone, adapters: dict[str, Path], lobe: str
) -> None:
    header = read_header(adapters[lobe])
    check_fits(header, linear_features(backbone.model), "base")
    matrices = read_matrices(header)
    modules = tiny.with_peft(backbone.model, adapters[lobe]).base_model.model.named_modules()
    layers = {name: m for name, m in modules if isinstance(m, LoraLayer)}
    assert set(header.shapes) == set(header.scalings) == set(matrices) == set(layers)
    for name, layer in layers.items():
        a, b = matrices[name]
        assert header.shapes[name] == (layer.r["default"], layer.in_features, layer.out_features)
        assert header.scalings[name] == pytest.approx(layer.scaling["default"], rel=1e-12)
        assert torch.equal(a, layer.lora_A["default"].weight)
        torch.testing.assert_close(b, layer.lora_B["default"].weight * layer.scaling["default"], atol=0, rtol=1e-6)
    assert header.nbytes == sum(t.numel() * t.element_size() for pair in matrices.values() for t in pair)


def test_what_a_card_says_of_an_adapter(adapters: dict[str, Path]) -> None:
    header = read_header(adapters["patterns"])
    assert header.r == 2 and header.target_modules == tuple(
        sorted(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    )


def test_half_precision_files_are_read_as_float32(folder: Path) -> None:
    exact = read_matrices(read_header(folder))
    change_weights(folder, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()}))
    for module, (a, b) in read_matrices(read_header(folder)).items():
        assert a.dtype == b.dtype == torch.float32
        torch.testing.assert_close(a, exact[module][0], rtol=1e-2, atol=1e-2)


def test_every_linear_layer_is_found(base_folder: Callable[..., Path]) -> None:
    features = linear_features(Backbone.from_pretrained(base_folder("gpt2"), device="cpu").model)
    assert features["transformer.h.0.attn.c_attn"] == (32, 96) and features["transformer.h.1.mlp.c_fc"] == (32, 48)
    assert len(features) == 4 * 2 + 1 and features["lm_head"] == (32, tiny.VOCABULARY)


# ---- what cannot be run exactly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens"]}, "embedding"),
        ({"bias": "all"}, "bias"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "biases"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "pissa_niter_2"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"trainable_token_indices": [3]}, "token embeddings"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "replication"),
        ({"alora_invocation_tokens": [3, 4]}, "aLoRA"),
    ],
)
def test_what_peft_writes_but_the_bank_cannot_run(
    backbone: Backbone, tmp_path: Path, lora: dict[str, Any], named: str
) -> None:
    assert named in refusal(backbone, tiny.save_adapter(backbone.model, tmp_path / "adapter", **lora))


def test_another_kind_of_adapter(backbone: Backbone, tmp_path: Path) -> None:
    ia3 = IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    get_peft_model(backbone.twin(), ia3).save_pretrained(str(tmp_path / "ia3"))
    assert "IA3" in refusal(backbone, tmp_path / "ia3")


@pytest.mark.parametrize(("field", "kind"), adapter._REFUSED.items())
def test_every_refused_setting_is_named(backbone: Backbone, folder: Path, field: str, kind: str) -> None:
    change_config(folder, **{field: {"some": "thing"}})
    assert kind in refusal(backbone, folder)


def test_every_setting_of_peft_has_been_thought_of() -> None:
    """When PEFT gains a setting, somebody has to decide whether an adapter that uses it can be run exactly."""
    harmless = {
        *(
            "task_type",
            "peft_type",
            "auto_mapping",
            "peft_version",
            "base_model_name_or_path",
            "revision",
            "inference_mode",
        ),
        *(
            "target_modules",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "fan_in_fan_out",
            "lora_dropout",
        ),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "ensure_weight_tying"),
        *("megatron_core", "qalora_group_size"),
    }
    read = {"r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "bias", "init_lora_weights"}
    assert {f.name for f in dataclasses.fields(LoraConfig)} - harmless - read - set(adapter._REFUSED) == set()


# ---- another base ----------------------------------------------------------------------------------------------------------


def test_a_base_of_another_width(backbone: Backbone, folder: Path) -> None:
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    change_weights(folder, lambda tensors: tensors.update({name: torch.zeros(4, 64)}))
    message = refusal(backbone, folder)
    assert "this base" in message and "up_proj" in message and "64→48" in message and "32→48" in message


def test_a_base_of_another_architecture(backbone: Backbone, base_folder: Callable[..., Path], tmp_path: Path) -> None:
    other = Backbone.from_pretrained(base_folder("gpt2"), device="cpu")
    assert "no linear layer 'transformer.h.0" in refusal(backbone, tiny.save_adapter(other.model, tmp_path / "adapter"))


# ---- damage and malice -----------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_adapter(backbone: Backbone, tmp_path: Path) -> None:
    assert "adapter_config.json is missing" in refusal(backbone, tmp_path)
    assert "adapter_config.json is missing" in refusal(backbone, tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"LORA"', "{}", "\ufeff\x00", "[" * 100_000])
def test_a_config_that_is_none(backbone: Backbone, folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_text(text)
    assert refusal(backbone, folder)


def test_a_pickle_is_not_opened(backbone: Backbone, folder: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return pytest.fail, ("the pickle was opened",)

    torch.save({"x": Harm()}, folder / "adapter_model.bin")
    (folder / WEIGHTS_FILE).unlink()
    assert "pickle" in refusal(backbone, folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-7],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: b"PK\x03\x04" + data,
        lambda data: data[:20] + b"}" + data[21:],
    ],
)
def test_damaged_weights(backbone: Backbone, folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    (folder / WEIGHTS_FILE).write_bytes(spoil((folder / WEIGHTS_FILE).read_bytes()))
    assert "damaged" in refusal(backbone, folder)


def test_half_an_adapter(backbone: Backbone, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"))
    assert "lora_A but not its partner" in refusal(backbone, folder)


def test_no_matrices(backbone: Backbone, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.clear())
    assert "no LoRA matrices" in refusal(backbone, folder)


@pytest.mark.parametrize("shapes", [((4, 32), (48, 3)), ((0, 32), (48, 0)), ((4, 32, 1), (48, 4)), ((32,), (48,))])
def test_shapes_that_are_no_lora(
    backbone: Backbone, folder: Path, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    names = [f"base_model.model.model.layers.0.mlp.up_proj.lora_{side}.weight" for side in "AB"]
    change_weights(
        folder, lambda tensors: tensors.update({n: torch.zeros(s) for n, s in zip(names, shapes, strict=True)})
    )
    assert "LoRA needs (r, in) and (out, r)" in refusal(backbone, folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", "AB")
def test_numbers_that_are_not_finite(backbone: Backbone, folder: Path, number: float, side: str) -> None:
    name = f"base_model.model.model.layers.0.mlp.up_proj.lora_{side}.weight"
    change_weights(folder, lambda tensors: tensors[name][1].fill_(number))
    message = refusal(backbone, folder)
    assert "not finite" in message and "layers.0.mlp.up_proj" in message


def test_weights_of_something_else(backbone: Backbone, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32)}))
    assert "model.norm.weight" in refusal(backbone, folder)


def test_files_that_change_between_header_and_matrices(backbone: Backbone, folder: Path) -> None:
    header = read_header(folder)
    tiny.save_adapter(backbone.model, folder, r=8)
    with pytest.raises(AdapterError, match="changed"):
        read_matrices(header)


@pytest.mark.parametrize(
    "pattern", ["(a+)+", "(.*)*x", "a" * 201, "[a-", "\\", "x\\", "\\2", "(?R)", "a{1,99999}", "", "q_proj\n("]
)
def test_hostile_patterns_are_refused(backbone: Backbone, folder: Path, pattern: str) -> None:
    change_config(folder, alpha_pattern={pattern: 8})
    assert "alpha_pattern" in refusal(backbone, folder)


@pytest.mark.parametrize("alpha", [None, "16", [16], True, float("nan"), float("inf"), 10**400, {"a": 1}])
def test_an_alpha_that_is_no_number(backbone: Backbone, folder: Path, alpha: Any) -> None:
    change_config(folder, lora_alpha=alpha)
    assert "lora_alpha" in refusal(backbone, folder)
    change_config(folder, lora_alpha=8, alpha_pattern={"up_proj": alpha})
    assert "lora_alpha" in refusal(backbone, folder)


def test_an_alpha_pattern_that_is_no_mapping(backbone: Backbone, folder: Path) -> None:
    change_config(folder, alpha_pattern=["q_proj"])
    assert "alpha_pattern is a list" in refusal(backbone, folder)
