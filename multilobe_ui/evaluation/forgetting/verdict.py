"""What the forgetting check says: two snapshots compared, and for whatever is not the same a
sentence with the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...lobes.store import Lobe
from ...model import MultiLobeModel
from .drift import Contrast
from .snapshot import Difference, Snapshot, fingerprint_now, unlike_on_disk

RESTART = "Restart the app, which loads it anew; if it happens again, install it again."


@dataclass(frozen=True)
class BaseCheck:
    """The base, before and after.

    Attributes:
        hash_before, hash_after: sha256 over all weights and buffers (`Snapshot.base`). same:
            whether they are equal.
        logits_same, max_difference, mean_kl: see `snapshot.Difference`. probes: prompts asked.
        source_same: whether the weights in memory are those in the base's folder; None where that
            cannot be told.
        fingerprint: worked out anew. tensors: how many were hashed. seconds: what hashing and asking took.
    """

    hash_before: str
    hash_after: str
    same: bool
    logits_same: bool
    max_difference: float | None
    mean_kl: float | None
    probes: int
    source_same: bool | None
    fingerprint: str
    tensors: int
    seconds: float


@dataclass(frozen=True)
class LobeCheck:
    """One lobe, before and after.

    Attributes:
        same: its logits, bit for bit; None where it cannot be run. files_same: its adapter files,
            and that they are what runs; None where they were not looked at.
        fingerprint_same: whether the base is the one of its card.
    """

    name: str
    same: bool | None
    max_difference: float | None
    mean_kl: float | None
    files_same: bool | None
    fingerprint_same: bool


@dataclass(frozen=True)
class ForgettingReport:
    """What was found.

    Attributes:
        passed: nothing has changed. reasons: what failed, a sentence each with the way out.
        newest: the lobe that was trained again; None where a stand-in was. trained: {"rows",
            "steps", "loss_before", "loss_after", "held_out"}; losses in nats per answer token, on
            so many held-out rows or, if it is 0, on rows that were trained; None if it was stopped before.
        contrast: None where there is none; then `contrast_why` says why not.
    """

    passed: bool
    base: BaseCheck
    lobes: Sequence[LobeCheck]
    newest: str | None
    trained: Mapping[str, Any]
    contrast: Contrast | None
    contrast_why: str
    reasons: Sequence[str]
    stopped: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        plain = {**asdict(self), "contrast": self.contrast.to_json() if self.contrast else None}
        return plain | {"lobes": list(plain["lobes"]), "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Verdict:
    """What two snapshots say."""

    base: BaseCheck
    lobes: Sequence[LobeCheck]
    reasons: Sequence[str]


def judge(model: MultiLobeModel, lobes: Sequence[Lobe], before: Snapshot, after: Snapshot) -> Verdict:
    """Compare. Lobes of other weights and damaged lobes are judged too, although there is nothing
    to ask them."""
    unlike, fingerprint = unlike_on_disk(model.backbone), fingerprint_now(model.backbone)
    found = before.difference(after)
    base = BaseCheck(
        hash_before=before.base,
        hash_after=after.base,
        same=before.base == after.base,
        logits_same=found.same,
        max_difference=found.max_difference,
        mean_kl=found.mean_kl,
        probes=0,
        source_same=None if unlike is None else not unlike,
        fingerprint=fingerprint,
        tensors=len(after.weights),
        seconds=0.0,
    )
    damaged = {lobe.name: model.lobes.broken[lobe.id] for lobe in model.lobes.store.all() if lobe.id in model.lobes.broken}
    checked = [
        *(_lobe(lobe, before, after, fingerprint) for lobe in lobes),
        *(LobeCheck(lobe.name, None, None, None, None, False) for lobe in _of_other_weights(model)),
        *(LobeCheck(name, None, None, None, False, True) for name in damaged),
    ]
    reasons = [
        *_base_reasons(base, before.changed_weights(after), unlike or []),
        *_fingerprint_reasons(checked),
        *(reason for lobe in lobes for reason in _file_reasons(lobe, before, after)),
        *(f"{name} cannot be run: {why}" for name, why in damaged.items()),
        *_output_reasons(checked),
    ]
    return Verdict(base, checked, reasons)


def _lobe(lobe: Lobe, before: Snapshot, after: Snapshot, fingerprint: str) -> LobeCheck:
    readable = lobe.id in before.logits and lobe.id in after.logits
    found = before.difference(after, lobe.id) if readable else Difference(False, None, None)
    return LobeCheck(
        name=lobe.name,
        same=found.same if readable else None,
        max_difference=found.max_difference,
        mean_kl=found.mean_kl,
        files_same=not _file_reasons(lobe, before, after),
        fingerprint_same=lobe.card.base.get("fingerprint") == fingerprint,
    )


def _of_other_weights(model: MultiLobeModel) -> list[Lobe]:
    """Lobes that say they are of a base of this name, but not of these weights."""
    base = model.backbone
    cards = ((lobe, lobe.card.base) for lobe in model.lobes.store.all() if lobe.id not in model.bank)
    return [o for o, card in cards if card.get("name") == base.name and card.get("fingerprint") != base.fingerprint]


def _base_reasons(base: BaseCheck, changed: Sequence[str], unlike: Sequence[str]) -> list[str]:
    reasons = []
    if not base.same:
        reasons.append(
            f"The base's weights changed while lobes were trained: {some(changed)} (sha256 {base.hash_before[:12]} before, "
            f"{base.hash_after[:12]} after). {RESTART}"
        )
    if not base.logits_same:
        reasons.append(f"The base gives other logits than before, by up to {_size(base.max_difference)}. {RESTART}")
    if unlike:
        are = "differs" if len(unlike) == 1 else "differ"
        reasons.append(f"The base in memory is not the one in its folder: {some(unlike)} {are}. {RESTART}")
    return reasons


def _fingerprint_reasons(checked: Sequence[LobeCheck]) -> list[str]:
    strange = [lobe.name for lobe in checked if not lobe.fingerprint_same]
    if not strange:
        return []
    return [
        f"The base is not the one that {some(strange)} was trained on: its fingerprint (a sample of all weights) is not that "
        f"of the lobe's card. {RESTART} If the base was replaced on purpose, train the lobe again."
    ]


def _file_reasons(lobe: Lobe, before: Snapshot, after: Snapshot) -> list[str]:
    """What has happened to a lobe's files."""
    why = before.unreadable.get(lobe.id) or after.unreadable.get(lobe.id)
    again = "Load it from a bundle, or train it again."
    if why:
        return [f"{lobe.name} cannot be run: {why} {again}"]
    if before.files[lobe.id] != after.files[lobe.id]:
        return [f"The adapter files of {lobe.name} changed during the check. {again}"]
    if lobe.id in before.stale | after.stale:
        return [f"The adapter files of {lobe.name} are not what it runs: they changed after they were loaded. {again}"]
    return []


def _output_reasons(checked: Sequence[LobeCheck]) -> list[str]:
    moved = [lobe for lobe in checked if lobe.same is False]
    if not moved:
        return []
    sizes = [lobe.max_difference for lobe in moved]
    most = None if None in sizes else max(size for size in sizes if size is not None)
    return [f"Other logits than before from {some([lobe.name for lobe in moved])}, by up to {_size(most)}. {RESTART}"]


def some(names: Sequence[str], most: int = 3) -> str:
    """'a, b, c and 4 more'."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _size(value: float | None) -> str:
    return "numbers that are not finite" if value is None else f"{value:.3g}"
