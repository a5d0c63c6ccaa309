"""What must not change while a lobe is trained, to the last bit: the base's weights, the lobes'
files, and what each of them says.

A snapshot is taken before and after. Weights and files are compared by sha256 over every byte,
outputs by the bytes of their logits, which are kept on disk meanwhile so that a difference has a
size. Nothing here knows why they should be the same.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...base.backbone import BUILTIN, Backbone
from ...errors import MultiLobeError
from ...files import sha256_of
from ...lobes.adapter import CONFIG_FILE, WEIGHTS_FILE, read_header, read_matrices
from ...lobes.bank import LobeBank
from ...lobes.store import Lobe
from ...lobes.weights import Mix

BASE = ""
"""Stands for the base where lobes go by their ids."""
LAST_TOKENS = 8
"""Positions of every probe whose logits are compared: the last ones, which have seen the whole prompt."""
MOST_RELOADED = 500_000_000
"""Parameters of the largest base that is read from disk once more to be compared with the one in memory."""
_CHUNK = 1 << 26
Logits = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Difference:
    """Of two sets of logits.

    Attributes:
        same: bit for bit. max_difference: largest absolute one; None if it is not finite.
        mean_kl: KL divergence of the second from the first in nats, mean over positions; None if it
            is not finite.
    """

    same: bool
    max_difference: float | None = 0.0
    mean_kl: float | None = 0.0


@dataclass(frozen=True)
class Snapshot:
    """One moment.

    Attributes:
        weights: sha256 of every tensor of the base, by its name.
        files: sha256 of every lobe's adapter files, by lobe id. logits: sha256 of what each says to
            the probes; the base is "".
        stale: ids of lobes that run something else in memory than their files hold. unreadable: why
            a lobe cannot be run.
        folder: where the logits lie.
    """

    weights: Mapping[str, str]
    files: Mapping[str, str]
    logits: Mapping[str, str]
    stale: frozenset[str]
    unreadable: Mapping[str, str]
    folder: Path

    @property
    def base(self) -> str:
        """One sha256 for all weights: of "name sha256" of every tensor in alphabetical order, a line each."""
        return hashlib.sha256("".join(f"{n} {self.weights[n]}\n" for n in sorted(self.weights)).encode()).hexdigest()

    def changed_weights(self, later: Snapshot) -> list[str]:
        """Names of the tensors that are others later, or gone, or new."""
        names = [*self.weights, *(name for name in later.weights if name not in self.weights)]
        return [name for name in names if self.weights.get(name) != later.weights.get(name)]

    def difference(self, later: Snapshot, lobe: str = BASE) -> Difference:
        """Of what a lobe (or the base) says."""
        if self.logits[lobe] == later.logits[lobe]:
            return Difference(True)
        return difference(*(np.load(shot.folder / f"{lobe or 'base'}.npy") for shot in (self, later)))


def taking(
    bank: LobeBank, lobes: Sequence[Lobe], probes: Sequence[Sequence[int]], folder: Path
) -> Generator[str, None, Snapshot]:
    """Take a snapshot; yields the name of what is looked at ("" is the base).

    Args:
        probes: token ids of prompts. folder: for the logits; made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    yield BASE
    weights = {name: tensor_sha256(tensor) for name, tensor in tensors_of(bank)}
    logits = {BASE: _keep(probe_logits(bank, None, probes), folder / "base.npy")}
    files: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    stale = set()
    for lobe in lobes:
        yield lobe.name
        try:
            files[lobe.id] = adapter_sha256(lobe.path)
            if not _runs_its_files(bank, lobe):
                stale.add(lobe.id)
            logits[lobe.id] = _keep(probe_logits(bank, lobe.id, probes), folder / f"{lobe.id}.npy")
        except MultiLobeError as error:
            unreadable[lobe.id] = str(error)
        except OSError as error:
            unreadable[lobe.id] = f"its adapter files cannot be read ({error.strerror or type(error).__name__})."
    return Snapshot(weights, files, logits, frozenset(stale), unreadable, folder)


# ---- weights ---------------------------------------------------------------------------------------------------------------


def tensors_of(bank: LobeBank) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer of the base, and of the tree that answers wherever it does not
    share them."""
    seen = set()
    for mark, model in (("", bank.backbone.model), ("served: ", bank.model)):
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield mark + name, tensor


def tensor_sha256(tensor: Tensor) -> str:
    """sha256 of "dtype (shape)" and every byte."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        digest.update(flat[start : start + _CHUNK].cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_now(backbone: Backbone) -> str:
    """The base's fingerprint worked out anew: its own was kept when it was first asked for."""
    fresh = copy.copy(backbone)
    vars(fresh).pop("fingerprint", None)
    return fresh.fingerprint


def unlike_on_disk(backbone: Backbone) -> list[str] | None:
    """Names of the parameters in memory that are not what the base's folder holds.

    None where that cannot be told: a hub id (whose revision is not known), a base that is
    quantised, very large, or gone from its folder. Buffers are not compared: most are worked out
    anew at every loading.
    """
    name = backbone.name
    if (name != BUILTIN and not os.path.isdir(name)) or backbone.parameter_count > MOST_RELOADED:
        return None
    try:
        fresh = dict(Backbone.from_pretrained(name, device="cpu", dtype=backbone.dtype).model.named_parameters())
    except MultiLobeError:
        return None
    ours = dict(backbone.model.named_parameters())
    if any(p.dtype != fresh[n].dtype or p.shape != fresh[n].shape for n, p in ours.items() if n in fresh):
        return None
    return [n for n, p in ours.items() if n not in fresh or tensor_sha256(p) != tensor_sha256(fresh[n])]


# ---- lobes -----------------------------------------------------------------------------------------------------------------


def adapter_sha256(folder: Path) -> str:
    """sha256 of the sha256 of an adapter's configuration and weights. Raises OSError if one is not there."""
    return hashlib.sha256(f"{sha256_of(folder / CONFIG_FILE)} {sha256_of(folder / WEIGHTS_FILE)}".encode()).hexdigest()


def _runs_its_files(bank: LobeBank, lobe: Lobe) -> bool:
    """Whether the matrices in memory are those of the files, bit for bit."""
    held, run = read_matrices(read_header(lobe.path)), bank.memory.matrices(lobe.id)
    return held.keys() == run.keys() and all(
        tensor_sha256(mine) == tensor_sha256(theirs)
        for module, pair in held.items()
        for mine, theirs in zip(pair, run[module], strict=True)
    )


# ---- outputs ---------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def probe_logits(bank: LobeBank, lobe: str | None, probes: Sequence[Sequence[int]]) -> Logits:
    """(positions, vocabulary): the logits at the last `LAST_TOKENS` tokens of every probe, under
    one lobe or the base.

    Probes run one by one: in a batch a row's last bits could depend on its neighbours.
    """
    mix = Mix.of({lobe: 1.0}) if lobe else None
    found = []
    for ids in probes:
        inputs = torch.tensor([list(ids)], device=bank.backbone.device)
        output = bank.run(mix, input_ids=inputs, logits_to_keep=LAST_TOKENS, use_cache=False)
        found.append(output.logits[0, -LAST_TOKENS:].float().cpu().numpy())
    return np.ascontiguousarray(np.concatenate(found), np.float32)


def difference(before: Logits, after: Logits) -> Difference:
    """Compare two sets of logits (positions, vocabulary)."""
    if before.shape != after.shape:
        return Difference(False, None, None)
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (before, after))
    largest = float(np.abs(before.astype(np.float64) - after).max(initial=0.0))
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    return Difference(before.tobytes() == after.tobytes(), *(v if np.isfinite(v) else None for v in (largest, kl)))


def _keep(logits: Logits, path: Path) -> str:
    np.save(path, logits)
    return hashlib.sha256(logits.data).hexdigest()
