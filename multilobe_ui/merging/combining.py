"""A new adapter out of several, by PEFT's `add_weighted_adapter`.

PEFT combines LoRA matrices and asks nothing of the base under them, so it works here on a bare tree
of linear layers that have the base's names and sizes and no memory: in float32 whatever the base's
dtype or quantiser, and nothing that serves is touched. Scalings are folded into B beforehand: PEFT
gives the new adapter the rsLoRA flag of the first parent, and with it a wrong scale.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from safetensors.torch import save_file
from torch import Tensor, nn

from ..base.backbone import Backbone
from ..errors import AdapterError
from ..files import new_folder, read_json, write_json
from ..lobes.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterHeader,
    check_fits,
    linear_features,
    read_header,
    read_matrices,
)
from ..lobes.deltas import Matrices
from ..settings import check
from .cost import delta_errors
from .kinds import COMBINATIONS, Combination, possible

Parents = Sequence[tuple[Path, float]]
"""(adapter folder, weight) of each lobe that goes into a new one."""


@dataclass(frozen=True)
class Composition:
    """A new lobe's adapter, and what it cost.

    Attributes:
        path: its folder. parents: (folder name, weight) of each lobe it was made of.
        density: share of numbers kept, None where nothing is dropped. seed: of what is dropped at random.
        rank: the largest of its layers. parameters, nbytes: of its matrices, in float32.
        error: ||merged - exact|| / ||exact|| over all layers (Frobenius); 0 is the weighted sum
            itself, 1 as far off as nothing.
        layer_errors: the same for every layer; infinite where the exact sum is zero and the merged
            one is not.
        seconds: that combining took.
    """

    path: Path
    combination: str
    parents: tuple[tuple[str, float], ...]
    density: float | None
    seed: int
    rank: int
    parameters: int
    nbytes: int
    error: float
    layer_errors: Mapping[str, float]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For a lobe's card: without the folder and the layers."""
        return {key: value for key, value in asdict(self).items() if key not in ("path", "layer_errors")}


def combine(
    backbone: Backbone,
    lobes: Parents,
    combination: str,
    target: Path,
    *,
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> Composition:
    """Write the combination of some lobes to `target`, which it replaces: a plain PEFT adapter
    folder with scaling 1.

    Args:
        lobes: (adapter folder, weight) of each; weights may be negative.
        combination: a name from `COMBINATIONS`.
        rank: of the result, for those that end in an SVD; None is the largest of the lobes' ranks.
            A layer never gets more than it can have.
        density: share of the numbers that pruning keeps, above 0 and at most 1.
        seed: of what DARE drops at random; the same seed drops the same on the same kind of device.

    Raises:
        ConfigError: no such combination; a weight, rank or density out of range.
        AdapterError: a lobe cannot be read or does not fit the base, PEFT cannot combine these
            lobes in this way (see `possible`), or the weighted sum is zero.
    """
    started = time.perf_counter()
    headers = [read_header(Path(folder)) for folder, _ in lobes]
    weights = [float(weight) for _, weight in lobes]
    how = _checked(headers, weights, combination, rank, density)
    features = linear_features(backbone.model)
    for header in headers:
        check_fits(header, features, backbone.name)
    parts = [read_matrices(header) for header in headers]
    most = max(shape[0] for header in headers for shape in header.shapes.values())
    adapted = {module for own in parts for module in own}
    layers = {module: size for module, size in features.items() if module in adapted}  # in the base's order
    device = backbone.device if backbone.device.type == "cuda" else torch.device("cpu")  # MPS has no SVD
    merged = _merge(layers, parts, weights, combination, most, rank, density, seed, device)
    if combination in ("cat", "svd"):  # PEFT makes every layer as wide as the widest; what lies beyond is zero
        for module, (a, b) in merged.items():
            true = sum(own[module][0].shape[0] for own in parts if module in own)
            merged[module] = a[:true].contiguous(), b[:, :true].contiguous()
    errors, error = delta_errors(merged, parts, weights)
    with new_folder(Path(target)) as folder:
        _write(folder, merged, backbone)
    parameters = sum(a.numel() + b.numel() for a, b in merged.values())
    return Composition(
        path=Path(target),
        combination=combination,
        parents=tuple((header.path.name, weight) for header, weight in zip(headers, weights, strict=True)),
        density=density if how.prunes else None,
        seed=seed,
        rank=max(a.shape[0] for a, _ in merged.values()),
        parameters=parameters,
        nbytes=4 * parameters,
        error=error,
        layer_errors=errors,
        seconds=time.perf_counter() - started,
    )


def _checked(
    headers: Sequence[AdapterHeader], weights: Sequence[float], combination: str, rank: int | None, density: float
) -> Combination:
    check(combination in COMBINATIONS, "combination", combination, f"one of {', '.join(COMBINATIONS)}")
    how = COMBINATIONS[combination]
    for header, weight in zip(headers, weights, strict=True):
        fine = math.isfinite(weight) and weight != 0  # a lobe without weight would still vote, and be counted, in ties
        check(
            fine,
            f"weight of {header.path.name}",
            weight,
            "a finite number other than 0; leave out a lobe without weight",
        )
    if rank is not None:
        check(how.chooses_rank, "rank", rank, f"None for {combination}, which cannot choose it; only the svd forms can")
        check(rank >= 1, "rank", rank, "at least 1, or None for the largest of the lobes")
    check(not how.prunes or 0 < density <= 1, "density", density, "above 0 and at most 1 (which drops nothing)")
    reason = possible(headers)[combination]
    if reason:
        raise AdapterError(f"{combination} cannot combine these lobes: {reason}.")
    return how


def _merge(
    layers: Mapping[str, tuple[int, int]],
    parts: Sequence[Matrices],
    weights: Sequence[float],
    combination: str,
    most: int,
    rank: int | None,
    density: float,
    seed: int,
    device: torch.device,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Per module (A (r, in), B (out, r)), float32 on the CPU: what PEFT makes of the parts, whose
    scalings are all 1.

    Args:
        layers: (in_features, out_features) of the layers that any part adapts. most: the largest
            rank of the parts.
    """
    # Names that PEFT cannot mistake for attributes of its modules, as it would a lobe called "train".
    ids = [f"lobe_{i:04d}" for i in range(len(parts))]
    tree = _bare_tree(layers, device)
    with warnings.catch_warnings(), torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        warnings.simplefilter("ignore")  # PEFT's, that a density of 1 drops nothing
        configs = {
            name: LoraConfig(r=most, lora_alpha=most, target_modules=list(own))
            for name, own in zip(ids, parts, strict=True)
        }
        model = LoraModel(tree, configs[ids[0]], ids[0])
        for name in ids[1:]:
            model.peft_config[name] = configs[name]
            model.inject_adapter(tree, name)
        for name, own in zip(ids, parts, strict=True):
            for module, (a, b) in own.items():
                layer: Any = tree.get_submodule(module)
                layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = a.to(device), b.to(device)
        torch.manual_seed(seed)  # here, so that what is dropped does not depend on what the new layers began with
        model.add_weighted_adapter(
            ids,
            list(weights),
            "merged",
            combination_type=combination,  # type: ignore[arg-type]
            svd_rank=rank,
            svd_full_matrices=False,  # the others are thrown away, and of a square matrix's size
            density=density,
        )
        found = {}
        for module in layers:
            layer = tree.get_submodule(module)
            a, b = (side["merged"].weight.detach().float().cpu() for side in (layer.lora_A, layer.lora_B))
            if not (a.isfinite().all() and b.isfinite().all()):
                raise AdapterError(
                    f"{combination} gave numbers that are not finite in {module}. Use smaller weights or another combination."
                )
            found[module] = a.contiguous(), b.contiguous()
    return found


def _bare_tree(layers: Mapping[str, tuple[int, int]], device: torch.device) -> nn.Module:
    """Linear layers with these names and sizes; each weight is a single zero, stretched."""
    root = nn.Module()
    for name, (n_in, n_out) in layers.items():
        *above, last = name.split(".")
        parent = root
        for part in above:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]  # type: ignore[assignment]
        linear = nn.Linear(n_in, n_out, bias=False, device="meta")
        linear.weight = nn.Parameter(torch.zeros(1, 1, device=device).expand(n_out, n_in), requires_grad=False)
        parent.add_module(last, linear)
    return root


def _write(folder: Path, merged: Matrices, backbone: Backbone) -> None:
    """A PEFT adapter whose config says what its matrices are: PEFT's own forgets that layers may
    differ in rank."""
    ranks = {module: a.shape[0] for module, (a, _) in merged.items()}
    r = max(ranks.values())  # the largest, because servers make room by it
    others = {f"^{module}": rank for module, rank in ranks.items() if rank != r}
    conv1d = any(type(backbone.model.get_submodule(module)).__name__ == "Conv1D" for module in merged)
    targets = _targets(set(merged), linear_features(backbone.model).keys())
    name = backbone.name
    config = LoraConfig(
        r=r,
        lora_alpha=r,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=targets,
        fan_in_fan_out=conv1d,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=Path(name).name if Path(name).is_dir() else name,
    )
    config.save_pretrained(str(folder))
    write_json(
        folder / CONFIG_FILE, {**read_json(folder / CONFIG_FILE), "target_modules": targets}
    )  # sorted, not a set
    sides = {f"{module}.lora_{side}": m for module, pair in merged.items() for side, m in zip("AB", pair, strict=True)}
    tensors = {f"base_model.model.{key}.weight": matrix for key, matrix in sides.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _targets(modules: set[str], all_layers: Iterable[str]) -> list[str]:
    """PEFT's target_modules: last parts of the names where these say it, else whole names."""
    last = {module.rsplit(".", 1)[-1] for module in modules}
    named = {layer for layer in all_layers if layer.rsplit(".", 1)[-1] in last}
    return sorted(last if named == modules else modules)
