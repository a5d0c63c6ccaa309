"""Lobes on disk: a plain PEFT adapter folder, a card that says where it came from, and rows for routing.

    lobes/lobe_0007/adapter_config.json  adapter_model.safetensors  card.json  routing.safetensors  prompts.json

A lobe's name is the person's own words; its id, which names the folder, is ours. No path is ever made from a name.
"""

from __future__ import annotations

import re
import shutil
import threading
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .config import from_json
from .errors import LobeError
from .files import new_folder, read_json, write_json
from .routers.base import RoutingRows

CARD_FILE = "card.json"
ROUTING_FILE = "routing.safetensors"
PROMPTS_FILE = "prompts.json"
LONGEST_NAME = 80
_ID = re.compile(r"^lobe_\d{4,9}$")


@dataclass(frozen=True)
class Card:
    """What a lobe says of itself; JSON.

    Attributes:
        name: the person's words. created: ISO 8601, UTC. origin: "trained here", "imported adapter", "multilobe 0.1.0", ...
        base: name and fingerprint of the base it was trained on; the fingerprint of an imported adapter is that of the base on
            which it was imported.
        adapter: r, target_modules, bytes. config: the TrainingConfig, if trained here.
        data: file name, sha256, rows of the training data. training: a TrainingResult.
        embedding_model: what made its routing rows.
        owner: visitor who made it, in shared use; never leaves this machine.
        tier: "simple", "medium" or "complex" if complexity routing made it as one of its experts, else "".
        composition: of a merged lobe its combination, parents with weights, rank, error and size.
    """

    name: str
    created: str
    origin: str
    base: Mapping[str, str]
    adapter: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    embedding_model: str = ""
    owner: str = ""
    tier: str = ""
    composition: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Lobe:
    """One named expertise: a folder and its card."""

    id: str
    path: Path
    card: Card

    @property
    def name(self) -> str:
        return self.card.name

    def routing_rows(self) -> RoutingRows | None:
        """Its rows for routing, or None if it came without data (or they are unreadable: then it can still be chosen by
        log-prob and by hand)."""
        try:
            arrays = load_file(self.path / ROUTING_FILE)
            prompts = read_json(self.path / PROMPTS_FILE)
            prototypes, train, validation = (
                arrays[k].astype(np.float32) for k in ("prototypes", "train", "validation")
            )
            answers = (prompts.get(kind, []) for kind in ("train_answers", "validation_answers"))
            return RoutingRows(prototypes, train, validation, prompts["train"], prompts["validation"], *answers)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None


def write_routing_rows(folder: Path, rows: RoutingRows) -> None:
    """Half precision: the cosines it is for need three digits."""
    arrays = {"prototypes": rows.prototypes, "train": rows.train, "validation": rows.validation}
    save_file({name: np.ascontiguousarray(a, np.float16) for name, a in arrays.items()}, folder / ROUTING_FILE)
    texts = {
        "train": rows.train_prompts,
        "validation": rows.validation_prompts,
        "train_answers": rows.train_answers,
        "validation_answers": rows.validation_answers,
    }
    write_json(folder / PROMPTS_FILE, {name: list(values) for name, values in texts.items()})


def read_card(folder: Path) -> Card:
    """Raises LobeError if the folder has no readable card."""
    try:
        return from_json(Card, read_json(folder / CARD_FILE))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise LobeError(f"The lobe folder {folder.name} has no readable {CARD_FILE} ({error}).") from error


def write_card(folder: Path, card: Card) -> None:
    write_json(folder / CARD_FILE, card.to_json())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_name(name: str) -> str:
    """A lobe's name as it is kept: trimmed, white space single, Unicode NFC. Any script, dots and slashes are fine.

    Raises:
        LobeError: empty, over 80 characters, or with control characters.
    """
    clean = " ".join(unicodedata.normalize("NFC", str(name)).split())
    if not clean:
        raise LobeError("The lobe has no name. Give it one, such as 'Medicine'.")
    if len(clean) > LONGEST_NAME:
        raise LobeError(f"The name {clean[:20]!r}… has {len(clean)} characters; {LONGEST_NAME} is the most.")
    if any(
        unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") or c in "\u202a\u202b\u202d\u202e\u2066\u2067"
        for c in clean
    ):
        raise LobeError(f"The name {clean!r} has control characters. Use letters, digits, spaces and punctuation.")
    return clean


class LobeStore:
    """The folder of lobes: list, add, rename, delete. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._lobes: dict[str, Lobe] = {}
        self.broken: dict[str, str] = {}
        for path in sorted(folder.glob("lobe_*")):
            if _ID.match(path.name) and path.is_dir():
                try:
                    self._lobes[path.name] = Lobe(path.name, path, read_card(path))
                except LobeError as error:
                    self.broken[path.name] = str(error)

    def all(self) -> list[Lobe]:
        """Every lobe, oldest first."""
        with self._lock:
            return [self._lobes[key] for key in sorted(self._lobes)]

    def by_name(self, name: str) -> Lobe:
        """Raises LobeError if there is none."""
        for lobe in self.all():
            if same_name(lobe.name, name):
                return lobe
        raise LobeError(
            f"There is no lobe called {name!r}. There are: {', '.join(l.name for l in self.all()) or 'none yet'}."
        )

    def check_free(self, name: str, besides: str = "") -> str:
        """The name as it would be kept, if no lobe (but the one with id `besides`) has it already.

        Raises:
            LobeError: refused by `check_name`, or taken (upper and lower case count as the same).
        """
        clean = check_name(name)
        taken = next((l for l in self.all() if same_name(l.name, clean) and l.id != besides), None)
        if taken is not None:
            raise LobeError(
                f"A lobe called {taken.name!r} exists already. Choose another name, or delete that one first."
            )
        return clean

    def free_name(self, name: str) -> str:
        """The name, or "name (2)", "name (3)", ... if it is taken."""
        clean = check_name(name)
        taken = {_key(l.name) for l in self.all()}
        candidates = (clean if i == 1 else f"{clean[: LONGEST_NAME - 6]} ({i})" for i in range(1, len(taken) + 2))
        return next(c for c in candidates if _key(c) not in taken)

    def add(self, folder: Path, card: Card) -> Lobe:
        """Take in a prepared folder (adapter files, perhaps routing rows); it is moved, the card is written, an id given.

        Raises:
            LobeError: the name is refused or taken; the folder stays where it was.
        """
        with self._lock:
            card = replace(card, name=self.check_free(card.name))
            number = 1 + max([int(p.name[5:]) for p in self.folder.glob("lobe_*") if _ID.match(p.name)], default=0)
            id = f"lobe_{number:04d}"
            with new_folder(self.folder / id) as temporary:
                shutil.copytree(folder, temporary, dirs_exist_ok=True)
                write_card(temporary, card)
            shutil.rmtree(folder, ignore_errors=True)
            lobe = Lobe(id, self.folder / id, card)
            self._lobes[id] = lobe
            return lobe

    def rename(self, name: str, new_name: str) -> Lobe:
        with self._lock:
            lobe = self.by_name(name)
            card = replace(lobe.card, name=self.check_free(new_name, besides=lobe.id))
            write_card(lobe.path, card)
            self._lobes[lobe.id] = renamed = replace(lobe, card=card)
            return renamed

    def delete(self, name: str) -> Lobe:
        with self._lock:
            lobe = self.by_name(name)
            del self._lobes[lobe.id]
            # out of sight first: a half-deleted folder must never be read as a lobe
            gone = lobe.path.with_name(f".{lobe.id}.deleted")
            shutil.rmtree(gone, ignore_errors=True)
            lobe.path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            return lobe


def same_name(one: str, other: str) -> bool:
    """Whether two names are one to a person: case, white space and Unicode form do not count."""
    return _key(one) == _key(other)


def _key(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", str(name)).split()).casefold()
