"""GGUF files as base models: transformers reads them, dequantised, and what it read is kept as an
ordinary folder.

transformers takes a quarter of a minute to read 135M parameters from a GGUF file, and refuses to
save the result ("quantized with gguf"); from the folder that is made here it takes two seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..errors import BackboneError


def dequantise(file: Path, target: Path) -> None:
    """Write what a GGUF file holds as a folder that `AutoModelForCausalLM` loads, in half precision.

    float16 keeps 11 bits of each weight, four of which a 4-bit file had; bfloat16 is for weights
    beyond its range.

    Raises:
        BackboneError: it is no GGUF file, or of an architecture that transformers does not read.
    """
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        config = AutoConfig.from_pretrained(**source)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        quantised: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except Exception as error:  # a damaged file raises whatever the reader meets first
        reason = " ".join(str(error).split())[:300]
        raise BackboneError(f"{file.name} cannot be read as a GGUF base model: {reason}") from error
    values = config.to_dict()
    values.pop("quantization_config", None)
    plain: Any = AutoModelForCausalLM
    model = plain.from_config(type(config).from_dict(values), dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.to(_half_precision(model))
    model.generation_config = quantised.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _half_precision(model: Any) -> torch.dtype:
    largest = max(float(parameter.detach().abs().max()) for parameter in model.parameters())
    return torch.float16 if largest <= torch.finfo(torch.float16).max else torch.bfloat16
