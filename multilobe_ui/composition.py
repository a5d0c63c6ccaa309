"""The merge lab: a new lobe out of several, by every combination that PEFT's `add_weighted_adapter` offers.

    exact   D = sum over lobes l of  w_l * scaling_l * B_l A_l          what the bank runs without any merge
    error   ||merged - D|| / ||D||, Frobenius, over all adapted layers  what a merge loses

PEFT combines LoRA matrices and asks nothing of the base under them, so it works here on a bare tree of linear layers that have the
base's names and sizes and no memory: in float32 whatever the base's dtype or quantiser, and nothing that serves is touched.
Scalings are folded into B beforehand: PEFT gives the new adapter the rsLoRA flag of the first parent, and with it a wrong scale.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from safetensors.torch import save_file
from torch import Tensor, nn

from .adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterHeader, check_fits, linear_features, read_header, read_matrices
from .backbone import Backbone
from .bank import LobeBank, Matrices, Mix
from .config import check
from .dataset import Example
from .errors import AdapterError, ConfigError
from .evaluation import loss_matrix
from .files import new_folder, read_json, write_json
from .training import TokenRows, mean_answer_loss

Parents = Sequence[tuple[Path, float]]
"""(adapter folder, weight) of each lobe that goes into a new one."""


@dataclass(frozen=True)
class Combination:
    """One way to make one adapter of several.

    Attributes:
        says: what it does, for a person. source: where it comes from.
        equal_ranks: it works on A and B apart, so they must have the same shapes in every layer that two lobes share.
        prunes: it reads `density`. chooses_rank: it ends in an SVD, so its rank can be chosen.
    """

    says: str
    source: str
    equal_ranks: bool = False
    prunes: bool = False
    chooses_rank: bool = False


# PEFT lets every lobe vote with its unweighted numbers, so a lobe that is subtracted votes as if it were added.
_TIES = "Yadav et al. 2023 (TIES-Merging), arXiv:2306.01708"
_DARE = "Yu et al. 2023 (DARE), arXiv:2311.03099"
_PRUNE = "Han et al. 2015 (magnitude pruning), arXiv:1506.02626"
COMBINATIONS: Mapping[str, Combination] = {
    "cat": Combination(
        "Lays the lobes' matrices side by side: exactly the weighted sum, at the price of a rank that is the sum of all ranks.",
        "Prabhakar et al. 2024 (LoRA Soups), arXiv:2410.13025",
    ),
    "svd": Combination(
        "Adds the lobes' deltas and keeps the largest singular values: the closest there is to the weighted sum at that rank.",
        "Eckart and Young 1936, Psychometrika 1:211; deltas added as in Ilharco et al. 2022, arXiv:2212.04089",
        chooses_rank=True,
    ),
    "linear": Combination(
        "Adds the A matrices and the B matrices apart: small and quick, but every lobe's A also meets every other lobe's B.",
        "Huang et al. 2023 (LoraHub), arXiv:2307.13269",
        equal_ranks=True,
    ),
    "ties": Combination(
        "In A and in B, drops the small numbers, lets the lobes vote on each sign, and averages those that agree.",
        _TIES,
        equal_ranks=True,
        prunes=True,
    ),
    "ties_svd": Combination(
        "Drops small numbers of the deltas, votes on each sign, averages those that agree, and shrinks the result by SVD.",
        _TIES,
        prunes=True,
        chooses_rank=True,
    ),
    "dare_linear": Combination(
        "In A and in B, drops numbers at random, enlarges the rest to make up for them, and adds what is left.",
        _DARE,
        equal_ranks=True,
        prunes=True,
    ),
    "dare_linear_svd": Combination(
        "Drops numbers of the deltas at random, enlarges the rest to make up for them, adds, and shrinks the result by SVD.",
        _DARE,
        prunes=True,
        chooses_rank=True,
    ),
    "dare_ties": Combination(
        "In A and in B, drops numbers at random and enlarges the rest; then the lobes vote on each sign as in ties.",
        f"{_DARE}; {_TIES}",
        equal_ranks=True,
        prunes=True,
    ),
    "dare_ties_svd": Combination(
        "Drops numbers of the deltas at random, enlarges the rest, votes on each sign as in ties, and shrinks the result by SVD.",
        f"{_DARE}; {_TIES}",
        prunes=True,
        chooses_rank=True,
    ),
    "magnitude_prune": Combination(
        "In A and in B, drops the small numbers and adds what is left.",
        _PRUNE,
        equal_ranks=True,
        prunes=True,
    ),
    "magnitude_prune_svd": Combination(
        "Drops the small numbers of the deltas, adds what is left, and shrinks the result by SVD.",
        _PRUNE,
        prunes=True,
        chooses_rank=True,
    ),
}


@dataclass(frozen=True)
class Composition:
    """A new lobe's adapter, and what it cost.

    Attributes:
        path: its folder. parents: (folder name, weight) of each lobe it was made of.
        density: share of numbers kept, None where nothing is dropped. seed: of what is dropped at random.
        rank: the largest of its layers. parameters, nbytes: of its matrices, in float32.
        error: ||merged - exact|| / ||exact|| over all layers (Frobenius); 0 is the weighted sum itself, 1 as far off as nothing.
        layer_errors: the same for every layer; infinite where the exact sum is zero and the merged one is not.
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


# ---- what can be combined --------------------------------------------------------------------------------------------------


def possible(headers: Sequence[AdapterHeader], names: Sequence[str] | None = None) -> dict[str, str]:
    """For every combination "" if these lobes can be combined by it, else why not.

    Args:
        names: what to call the lobes in a reason; their folder names if None.
    """
    called = list(names) if names is not None else [header.path.name for header in headers]
    everywhere = "choose at least one lobe" if not headers else _other_sizes(headers, called)
    ranks = _other_ranks(headers, called)
    reasons = {}
    for name, combination in COMBINATIONS.items():
        reasons[name] = everywhere
        if not everywhere and len(headers) == 1 and name not in ("cat", "linear"):
            reasons[name] = "with a single lobe PEFT would scale it and do nothing else; choose at least two"
        elif not everywhere and combination.equal_ranks and ranks:
            instead = f"{name}_svd" if f"{name}_svd" in COMBINATIONS else "svd or cat"
            reasons[name] = f"it needs one rank for all lobes, and {ranks}; use {instead}"
    return reasons


def _other_sizes(headers: Sequence[AdapterHeader], names: Sequence[str]) -> str:
    """Which two lobes disagree about a layer's features, or ""."""
    seen: dict[str, tuple[str, tuple[int, int]]] = {}
    for name, header in zip(names, headers, strict=True):
        for module, (_, *features) in header.shapes.items():
            first, theirs = seen.setdefault(module, (name, (features[0], features[1])))
            if theirs != tuple(features):
                sizes = "{}→{} in {} and {}→{} in {}".format(*theirs, first, *features, name)
                return f"the lobes belong to different base models: {module} is {sizes}"
    return ""


def _other_ranks(headers: Sequence[AdapterHeader], names: Sequence[str]) -> str:
    """Which two lobes have different ranks in a layer that both adapt, or ""."""
    seen: dict[str, tuple[str, int]] = {}
    for name, header in zip(names, headers, strict=True):
        for module, (rank, *_) in header.shapes.items():
            first, theirs = seen.setdefault(module, (name, rank))
            if theirs != rank:
                return f"{first} has rank {theirs} where {name} has {rank} ({module})"
    return ""


# ---- combining -------------------------------------------------------------------------------------------------------------


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
    """Write the combination of some lobes to `target`, which it replaces: a plain PEFT adapter folder with scaling 1.

    Args:
        lobes: (adapter folder, weight) of each; weights may be negative.
        combination: a name from `COMBINATIONS`.
        rank: of the result, for those that end in an SVD; None is the largest of the lobes' ranks. A layer never gets more
            than it can have.
        density: share of the numbers that pruning keeps, above 0 and at most 1.
        seed: of what DARE drops at random; the same seed drops the same on the same kind of device.

    Raises:
        ConfigError: no such combination; a weight, rank or density out of range.
        AdapterError: a lobe cannot be read or does not fit the base, PEFT cannot combine these lobes in this way (see `possible`),
            or the weighted sum is zero.
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
    errors, error = _errors(merged, parts, weights)
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
    """Per module (A (r, in), B (out, r)), float32 on the CPU: what PEFT makes of the parts, whose scalings are all 1.

    Args:
        layers: (in_features, out_features) of the layers that any part adapts. most: the largest rank of the parts.
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
    """A PEFT adapter whose config says what its matrices are: PEFT's own forgets that layers may differ in rank."""
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


# ---- what it cost ----------------------------------------------------------------------------------------------------------


def _errors(merged: Matrices, parts: Sequence[Matrices], weights: Sequence[float]) -> tuple[dict[str, float], float]:
    """(error of each layer, error of all): ||merged - exact|| / ||exact||, Frobenius.

    A difference of low-rank products is itself one, B A with all factors side by side, and ||B A|| = ||R_B R_Aᵀ|| with B = Q_B R_B
    and Aᵀ = Q_A R_A: the work grows with the layer's width times rank², and no matrix of the layer's size is made.

    Raises:
        AdapterError: the exact sum is zero in every layer.
    """
    layers, off, whole = {}, 0.0, 0.0
    for module, made in merged.items():
        exact = [(a, b * w) for own, w in zip(parts, weights, strict=True) if module in own for a, b in [own[module]]]
        difference, size = _norm([(made[0], -made[1]), *exact]), _norm(exact)
        layers[module] = difference / size if size > 0 else math.inf if difference > 0 else 0.0
        off, whole = math.hypot(off, difference), math.hypot(whole, size)
    if whole <= 1e-7 * math.hypot(
        *(w * _norm([pair]) for own, w in zip(parts, weights, strict=True) for pair in own.values())
    ):
        raise AdapterError("With these weights the lobes cancel out: their weighted sum is zero. Change a weight.")
    return layers, off / whole


def _norm(products: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Frobenius norm of the sum of B A over (A, B). float64: a small difference of large products is asked for."""
    a, b = torch.cat([a.double() for a, _ in products]), torch.cat([b.double() for _, b in products], 1)
    r_a, r_b = torch.linalg.qr(a.t(), mode="r").R, torch.linalg.qr(b, mode="r").R
    return float(torch.linalg.matrix_norm(r_b @ r_a.t()))


@dataclass(frozen=True)
class DataLosses:
    """Mean NLL per answer token, in nats, of one dataset.

    Attributes:
        dataset: its name. base: of the plain base. parents: of each lobe alone. mixture: of the exact weighted sum, which the bank
            runs without a merge. merged: of the new lobe.
    """

    dataset: str
    base: float
    parents: tuple[float, ...]
    mixture: float
    merged: float


def losses(
    backbone: Backbone,
    made: Path,
    lobes: Parents,
    datasets: Mapping[str, Sequence[Example]],
    max_length: int = 512,
) -> Iterator[DataLosses]:
    """What a new lobe has kept of its parents: their losses and its own on each dataset, one dataset at a time.

    A bank of its own serves a twin of the base: the new lobe may still be thrown away, and nobody else sees it.

    Args:
        made: folder of the new adapter. lobes: what it was made of. datasets: for example some rows of each parent's data, by name.

    Raises:
        ConfigError: a dataset has no rows. AdapterError: a folder cannot be read or does not fit the base.
    """
    for name, rows in datasets.items():
        check(len(rows) > 0, f"rows of {name}", len(rows), "at least one; leave out a dataset without rows")
    bank = LobeBank(backbone)
    ids = [f"parent_{i}" for i in range(len(lobes))]
    for lobe, folder in zip([*ids, "merged"], [*(folder for folder, _ in lobes), made], strict=True):
        bank.register(lobe, Path(folder))
    mix = Mix.of({lobe: float(weight) for lobe, (_, weight) in zip(ids, lobes, strict=True)})
    for name, rows in datasets.items():
        base, *parents, merged = (float(x) for x in loss_matrix(bank, [*ids, "merged"], {name: rows}, max_length)[:, 0])
        mixture = _mixture_loss(bank, mix, TokenRows(backbone, rows, max_length))
        yield DataLosses(name, base, tuple(parents), mixture, merged)


def _mixture_loss(bank: LobeBank, mix: Mix, rows: TokenRows) -> float:
    def run(**inputs: Any) -> Any:
        return bank.run(mix, **inputs)

    with torch.inference_mode():
        return mean_answer_loss(run, bank.backbone, rows)


# ---- weights by search -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One set of weights that was tried.

    Attributes:
        number: from 1. weights: lobe → weight. loss: mean NLL per answer token, in nats. penalty: what the weights cost.
        best: whether loss + penalty is the lowest so far.
    """

    number: int
    weights: Mapping[str, float]
    loss: float
    penalty: float
    best: bool

    @property
    def objective(self) -> float:
        return self.loss + self.penalty


def search_weights(
    bank: LobeBank,
    lobes: Sequence[str],
    rows: Sequence[Example],
    *,
    budget: int = 40,
    bounds: tuple[float, float] = (-1.5, 1.5),
    penalty: float = 0.05,
    seed: int = 0,
    stop: threading.Event | None = None,
    max_length: int = 512,
) -> Generator[Trial, None, dict[str, float]]:
    """Find weights for some lobes on a few examples, without gradients: yields every trial, returns the best weights.

    LoraHub's idea (Huang et al. 2023, arXiv:2307.13269), and its defaults: mean answer loss + penalty * mean |w| is minimised, 40
    trials between -1.5 and 1.5. LoraHub tries merges of A and B apart; here the bank runs the exact mixture. See `_propose` for
    how the next trial is chosen.

    Args:
        lobes: ids in the bank. rows: the examples; LoraHub takes five.
        penalty: in nats. seed: the same seed gives the same trials. stop: when set, the best so far is returned.

    Raises:
        ConfigError: no lobes or rows, or a setting out of range. LobeError: the bank lacks a lobe.
    """
    low, high = map(float, bounds)
    check(-100 <= low < high <= 100 and low <= 0 <= high, "bounds", bounds, "two numbers, with 0 between them")
    check(budget >= 1, "budget", budget, "at least 1 trial")
    check(penalty >= 0, "penalty", penalty, "0 or more")
    if not lobes or len(set(lobes)) < len(lobes):
        raise ConfigError(f"lobes are {list(lobes)!r}: the search for weights needs at least one, each once.")
    if not rows:
        raise ConfigError("The search for weights has no examples. Give a few; five are enough to begin with.")
    bank.layers(lobes)  # names a lobe that is missing before anything runs
    tokens, generator = TokenRows(bank.backbone, rows, max_length), np.random.default_rng(seed)
    tried: list[NDArray[Any]] = []
    values: list[float] = []
    opening = _opening(len(lobes), low, high)[: max(1, (budget + 1) // 2)]
    while len(tried) < budget and not (stop is not None and stop.is_set() and tried):
        point = opening[len(tried)] if len(tried) < len(opening) else _propose(tried, values, low, high, generator)
        weights = {lobe: float(weight) for lobe, weight in zip(lobes, point, strict=True)}
        loss, cost = _mixture_loss(bank, Mix.of(weights), tokens), penalty * float(np.abs(point).mean())
        loss = loss if math.isfinite(loss) else 1e6  # so large a mixture that the base breaks down
        best = not values or loss + cost < min(values)
        tried.append(point)
        values.append(loss + cost)
        yield Trial(len(tried), weights, loss, cost, best)
    found = tried[int(np.argmin(values))]
    return {lobe: float(weight) for lobe, weight in zip(lobes, found, strict=True)}


def _opening(n: int, low: float, high: float) -> list[NDArray[Any]]:
    """What a person would try first: the base, all lobes equally, each alone."""
    first = [np.zeros(n), np.full(n, 1 / n), *np.eye(n)]
    return [np.clip(point, low, high) for point in (first if n > 1 else [first[0], first[1]])]


def _propose(
    tried: Sequence[NDArray[Any]], values: Sequence[float], low: float, high: float, generator: np.random.Generator
) -> NDArray[Any]:
    """The weights to try next: those with the highest expected improvement under a Gaussian process through all trials.

    Efficient global optimization (Jones, Schonlau and Welch 1998, J. Global Optimization 13:455), on the logarithm: far from the
    optimum losses grow so large that near it everything would look alike. Candidates lie everywhere and, closer and closer, around
    the best.
    """
    # here, because it takes a second and only the search needs it
    from scipy.stats import norm
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    heights, n = np.log(np.maximum(values, 1e-9)), len(tried[0])
    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(1.0, (0.1, 20.0), nu=2.5)
    process = GaussianProcessRegressor(kernel, alpha=1e-6, normalize_y=True)
    steps = np.exp(generator.uniform(np.log(0.01), np.log(1.0), (2000, 1)))
    around = tried[int(np.argmin(values))] + steps * generator.normal(size=(2000, n))
    candidates = np.concatenate([generator.uniform(low, high, (500, n)), np.clip(around, low, high)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a length scale has reached its bound
        process.fit(np.stack(tried), heights)
        mean, deviation = process.predict(candidates, return_std=True)
    better = heights.min() - mean
    z = better / np.maximum(deviation, 1e-12)
    improvement = better * norm.cdf(z) + deviation * norm.pdf(z)
    return np.asarray(candidates[int(improvement.argmax())])
