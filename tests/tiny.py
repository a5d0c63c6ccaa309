"""Tiny random models, tokenizers and adapters, made on the spot, and the slow plain references that the core is held against.

A reference uses transformers and PEFT alone, never the code under test.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from multilobe_ui.data.examples import Example

VOCABULARY = 320
CONTEXT = 96
SPECIALS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|sep|>", "<|eot|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LIKE_LLAMA3 = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|sep|>\n\n{{ m['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|sep|>\n\n{% endif %}"
)
CORPUS = (
    "user assistant system The quick brown fox jumps over the lazy dog. What is a lobe? A lobe is a small adapter. "
    "def add(a, b): return a + b. The cat sat on the mat and the rat ran. Wörter, größer, 中文字, Привет мир 😀"
)

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def _shape(*without: str, **changed: Any) -> dict[str, Any]:
    return {key: value for key, value in _SHAPE.items() if key not in without} | changed


_GPT2_SHAPE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "n_inner": 48}
_GQA = ("num_key_value_heads", "head_dim")
ARCHITECTURES: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**_shape()),
    "llama-tied": lambda: tf.LlamaConfig(**_shape(tie_word_embeddings=True, attention_bias=True)),
    "qwen2": lambda: tf.Qwen2Config(**_shape("head_dim")),
    "qwen3": lambda: tf.Qwen3Config(**_shape()),
    "gemma2": lambda: tf.Gemma2Config(**_shape(sliding_window=8, query_pre_attn_scalar=8)),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **_shape(sliding_window=8, query_pre_attn_scalar=8, layer_types=["sliding_attention", "full_attention"])
    ),
    "mistral": lambda: tf.MistralConfig(**_shape(sliding_window=8)),
    "phi3": lambda: tf.Phi3Config(**_shape("head_dim")),
    "gpt2": lambda: tf.GPT2Config(
        **_shape("hidden_size", "num_hidden_layers", "num_attention_heads", *_GQA), **_GPT2_SHAPE
    ),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**_shape(*_GQA)),
    "opt": lambda: tf.OPTConfig(
        **_shape("intermediate_size", *_GQA, ffn_dim=48, word_embed_proj_dim=32, init_std=0.15)
    ),
    "falcon": lambda: tf.FalconConfig(**_shape("intermediate_size", *_GQA), ffn_hidden_size=48, alibi=False),
    "falcon-alibi": lambda: tf.FalconConfig(**_shape("intermediate_size", *_GQA), ffn_hidden_size=48, alibi=True),
    "bloom": lambda: tf.BloomConfig(**_shape("num_hidden_layers", "max_position_embeddings", *_GQA), n_layer=2),
    "qwen2_moe": lambda: tf.Qwen2MoeConfig(
        **_shape(
            "head_dim",
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=24,
        )
    ),
    "granite": lambda: tf.GraniteConfig(**_shape("head_dim"), embedding_multiplier=2.0, logits_scaling=2.0),
}


def tokenizer(template: str | None = CHATML, eos: str = SPECIALS[0], opening: bool = False) -> Any:
    """A byte-level BPE tokenizer; with `opening` it puts <|start|> before every text, as Llama's does with its bos token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([CORPUS] * 4, trainer)
    names = {"eos_token": eos, "pad_token": "<|pad|>", "additional_special_tokens": list(SPECIALS[2:])}
    if opening:
        from tokenizers.processors import TemplateProcessing

        core.post_processor = TemplateProcessing(
            single="<|start|> $A", special_tokens=[("<|start|>", SPECIALS.index("<|start|>"))]
        )
        names["bos_token"] = "<|start|>"
    made = tf.PreTrainedTokenizerFast(tokenizer_object=core, **names)
    made.chat_template = template
    return made


def save_base(
    folder: Path, architecture: str = "llama", template: str | None = CHATML, dtype: torch.dtype = torch.float32
) -> Path:
    """A random model and a tokenizer in a folder, as `from_pretrained` wants them."""
    torch.manual_seed(7)
    model = tf.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]()).to(dtype)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():  # biases and norms start at 0 and 1, where mistakes do not show
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(dtype)
    model.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


def save_adapter(model: nn.Module, folder: Path, seed: int = 0, size: float = 0.3, **lora: Any) -> Path:
    """A PEFT adapter with random, not zero, B matrices."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(
        copy.deepcopy(model), LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | lora)
    )
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, size)
    wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def with_peft(model: nn.Module, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


def deltas(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Per module, the matrix that PEFT would add to its weight, in that weight's own layout."""
    modules = with_peft(model, folder).base_model.model.named_modules()
    return {name: m.get_delta_weight("default").detach() for name, m in modules if isinstance(m, LoraLayer)}


def merged(model: nn.Module, parts: Sequence[tuple[Mapping[str, Tensor], float]]) -> nn.Module:
    """W + sum over lobes of w * delta, written into a copy of the model."""
    copied = copy.deepcopy(model)
    for matrices, weight in parts:
        for name, delta in matrices.items():
            copied.get_submodule(name).weight.data += weight * delta
    return copied


def steered(model: nn.Module, lobes: Sequence[Mapping[str, Tensor]], weights: Tensor) -> nn.Module:
    """A copy whose linear layers add every lobe's delta under weights (batch, tokens, lobes) or (batch, tokens, layers, lobes)."""
    copied = copy.deepcopy(model)
    names = [name for name, _ in copied.named_modules() if any(name in lobe for lobe in lobes)]
    for layer, name in enumerate(names):
        module = copied.get_submodule(name)
        here = weights[:, :, layer] if weights.ndim == 4 else weights

        def add(
            module: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name, here: Tensor = here
        ) -> Tensor:
            for i, lobe in enumerate(lobes):
                if name in lobe:
                    delta = lobe[name] if type(module).__name__ == "Conv1D" else lobe[name].t()
                    output = output + here[..., i].reshape(*output.shape[:-1], 1) * (inputs[0] @ delta)
            return output

        module.register_forward_hook(add)
    return copied


def numbers(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Random token ids without special tokens."""
    return torch.randint(len(SPECIALS), VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(seed))


def examples(count: int, start: int = 0) -> list[Example]:
    """Short rows of different lengths, some with a system message."""
    rows = []
    for i in range(start, start + count):
        system = ({"role": "system", "content": "Be brief."},) if i % 3 == 2 else ()
        question = {"role": "user", "content": f"What is {i} and {i * 7 % 11}{' again' * (i % 4)}?"}
        rows.append(Example((*system, question), f"It is {i + i * 7 % 11}{' of course' * (i % 3)}."))
    return rows
