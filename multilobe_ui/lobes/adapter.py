"""Reading a PEFT LoRA adapter folder: what it asks for, whether it can be run exactly, and its matrices.

Knows PEFT's file format but does not import PEFT: a folder is a JSON file and a safetensors file.
What this project cannot run to the last digit is refused here, by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import AdapterError
from ..files import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_KEY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")
_PLAIN_PATTERN = re.compile(r"^[\w.\-\\^$|]{1,200}$")
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save (whole layers trained beside the LoRA)",
    "trainable_token_indices": "trained token embeddings",
    "lora_bias": "LoRA biases",
    "layer_replication": "layer replication",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "aLoRA (a LoRA that switches on in mid-sequence)",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow (a router inside the adapter)",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
    "megatron_config": "Megatron layers",
}
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterHeader:
    """What an adapter folder says before its matrices are read.

    Attributes:
        path: the folder.
        shapes: per module of the base: (r, in_features, out_features).
        scalings: per module: what its delta is multiplied by (alpha / r, or alpha / sqrt(r) with rsLoRA).
        config: the adapter_config.json.
    """

    path: Path
    shapes: Mapping[str, tuple[int, int, int]]
    scalings: Mapping[str, float]
    config: Mapping[str, Any]

    @property
    def r(self) -> int:
        ranks = [shape[0] for shape in self.shapes.values()]
        return max(set(ranks), key=ranks.count)

    @property
    def nbytes(self) -> int:
        return sum(4 * r * (n_in + n_out) for r, n_in, n_out in self.shapes.values())

    @property
    def target_modules(self) -> tuple[str, ...]:
        """Last parts of the module names, for people to read."""
        return tuple(sorted({module.rsplit(".", 1)[-1] for module in self.shapes}))


def read_header(path: Path) -> AdapterHeader:
    """Read an adapter folder's configuration and the shapes of its matrices (the matrices stay on disk).

    Raises:
        AdapterError: not a LoRA adapter folder, damaged, or of a kind that cannot be run exactly.
    """
    config = _read_config(path)
    weights = path / WEIGHTS_FILE
    if not weights.is_file():
        pickled = (path / "adapter_model.bin").is_file()
        hint = (
            " (it has adapter_model.bin, a pickle, which is never opened: save it again as safetensors)"
            if pickled
            else ""
        )
        raise AdapterError(f"{path.name}: {WEIGHTS_FILE} is missing{hint}.")
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    try:
        with safe_open(str(weights), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - no dict
                module, side = _parse_key(key, path.name)
                sides.setdefault(module, {})[side] = tuple(file.get_slice(key).get_shape())
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{path.name}: {WEIGHTS_FILE} is damaged ({error}). Copy or export the adapter again."
        ) from error
    shapes = {module: _shape(module, both) for module, both in sides.items()}
    if not shapes:
        raise AdapterError(f"{path.name}: {WEIGHTS_FILE} holds no LoRA matrices.")
    scalings = {module: _scaling(config, module, shape[0]) for module, shape in shapes.items()}
    return AdapterHeader(path, shapes, scalings, config)


def read_matrices(header: AdapterHeader) -> dict[str, tuple[Tensor, Tensor]]:
    """Per module (A, B): A (r, in), B (out, r) with the scaling folded in, both float32 on the CPU.

    Folding is exact for the usual scalings, which are powers of two.

    Raises:
        AdapterError: the file has gone or changed, or holds a number that is not finite.
    """
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(str(header.path / WEIGHTS_FILE), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - no dict
                module, side = _parse_key(key, header.path.name)
                found.setdefault(module, {})[side] = file.get_tensor(key).float()
        matrices = {m: (found[m]["A"], found[m]["B"] * scaling) for m, scaling in header.scalings.items()}
    except (OSError, SafetensorError, KeyError) as error:
        raise AdapterError(f"{header.path.name}: the adapter's weights cannot be read any more ({error}).") from error
    for module, (a, b) in matrices.items():
        if (*a.shape, len(b)) != header.shapes[module]:
            raise AdapterError(
                f"{header.path.name}: the adapter's weights have changed since it was loaded. Load it again."
            )
        if not (a.isfinite().all() and b.isfinite().all()):
            raise AdapterError(f"{header.path.name}: {module} holds numbers that are not finite (nan or inf).")
    return matrices


def check_fits(header: AdapterHeader, features: Mapping[str, tuple[int, int]], base: str) -> None:
    """Raise AdapterError unless every module of the adapter is a linear layer of the base with the
    same features.

    Args:
        features: (in_features, out_features) of every linear layer of the base, by module name
            (`linear_features`).
        base: the base's name, for the message.
    """
    for module, (_, n_in, n_out) in header.shapes.items():
        if module not in features:
            raise AdapterError(f"{header.path.name} does not fit {base}: the base has no linear layer {module!r}.")
        if features[module] != (n_in, n_out):
            theirs, ours = f"{n_in}→{n_out}", "→".join(map(str, features[module]))
            raise AdapterError(f"{header.path.name} does not fit {base}: {module} is {theirs} there and {ours} here.")


def linear_features(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of every layer that a LoRA can sit on: Linear, its quantised
    forms, GPT-2's Conv1D."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "in_features", None), int) and isinstance(
            getattr(module, "out_features", None), int
        ):
            found[name] = (int(module.in_features), int(module.out_features))  # type: ignore[arg-type]
        elif type(module).__name__ == "Conv1D":
            n_in, n_out = module.weight.shape  # type: ignore[union-attr,misc]
            found[name] = (int(n_in), int(n_out))
    return found


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = read_json(path / CONFIG_FILE)
    except FileNotFoundError as error:
        raise AdapterError(f"{path.name} is not a PEFT adapter: {CONFIG_FILE} is missing.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path.name}: {CONFIG_FILE} is not readable JSON ({error}).") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"{path.name} is a {kind} adapter: only LoRA adapters can become lobes.")
    for field, kind in _REFUSED.items():
        if config.get(field):
            raise AdapterError(f"{path.name} uses {kind}, which the bank cannot run exactly. Train it as a plain LoRA.")
    if config.get("bias") not in (None, "none"):
        raise AdapterError(
            f"{path.name} trains biases (bias={config['bias']!r}), which change the base. Use bias='none'."
        )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING):
        raise AdapterError(
            f"{path.name} was initialised by {init}, which rewrites the base's weights. Use the default."
        )
    return config


def _parse_key(key: str, where: str) -> tuple[str, str]:
    match = _KEY.match(key)
    if match is None:
        if "lora_embedding" in key:
            raise AdapterError(f"{where} has a LoRA on the embedding ({key}), which the bank cannot run exactly.")
        raise AdapterError(f"{where} holds {key!r}, which is not a LoRA matrix of a linear layer.")
    return match["module"], match["side"]


def _shape(module: str, sides: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
    a, b = sides.get("A"), sides.get("B")
    if a is None or b is None:
        raise AdapterError(
            f"{module} has lora_{'B' if a is None else 'A'} but not its partner; the adapter is incomplete."
        )
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in (*a, *b):
        raise AdapterError(f"{module} has matrices of shapes {a} and {b}; LoRA needs (r, in) and (out, r).")
    return a[0], a[1], b[0]


def _scaling(config: Mapping[str, Any], module: str, r: int) -> float:
    """PEFT's scaling of one module: lora_alpha, or its entry in alpha_pattern, over r or the square
    root of r."""
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{CONFIG_FILE}: alpha_pattern is a {type(patterns).__name__}; it must be a JSON object.")
    for pattern, value in patterns.items():
        if _matches(pattern, module):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < 1e30:
        raise AdapterError(f"{CONFIG_FILE}: lora_alpha is {str(alpha)[:60]}; it must be a finite number.")
    return alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r


def _matches(pattern: str, module: str) -> bool:
    """PEFT's rule, for patterns that cannot do harm: it comes from a stranger's file and could take
    forever to match."""
    try:
        if _PLAIN_PATTERN.match(pattern):
            return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        pass
    raise AdapterError(f"{CONFIG_FILE}: alpha_pattern has {pattern[:60]!r}; only names and simple patterns are read.")
