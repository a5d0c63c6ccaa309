"""Lobes on disk: a plain PEFT adapter folder, a card that says where it came from, and rows for routing.

    lobes/lobe_0007/adapter_config.json  adapter_model.safetensors  card.json  routing.safetensors  prompts.json

A lobe's name is the person's own words; its id, which names the folder, is ours. No path is ever made from a name.
"""

from __future__ import annotations

import errno
import re
import shutil
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .config import from_json
from .errors import LobeError, some_of
from .files import new_folder, read_json, write_json
from .routers.base import RoutingRows

CARD_FILE = "card.json"
ROUTING_FILE = "routing.safetensors"
PROMPTS_FILE = "prompts.json"
LONGEST_NAME = 80
ROWS_IN_MEMORY = 128 << 20
"""Bytes of routing rows that are kept; the rows of 1,000 lobes take five times as much, and routers make an index of their own."""
_ID = re.compile(r"^lobe_\d{4,9}$")


@dataclass(frozen=True)
class Card:
    """What a lobe says of itself; JSON.

    Attributes:
        name: the person's words. created: ISO 8601, UTC. origin: "trained here", "imported adapter", "multilobe 0.1.0", ...
        base: name and fingerprint of the base it was trained on; the fingerprint of an imported adapter is that of the base on
            which it was imported.
        adapter: r, target_modules, bytes; of a lobe that came in a bundle the sha256 that its weights must have.
        config: the TrainingConfig, if trained here.
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


class RowsOfLobes:
    """Routing rows of any number of lobes: read from their files when asked for, the most recent ones kept.

    Args:
        most_bytes: of vectors that are kept at most.
    """

    def __init__(self, most_bytes: int = ROWS_IN_MEMORY) -> None:
        self._most = most_bytes
        self._widths: dict[str, int] = {}
        self._kept: OrderedDict[str, RoutingRows] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def take(self, lobe: Lobe) -> None:
        """Look whether a lobe has rows that can be read, so that `has` tells without its files."""
        self.forget(lobe)
        if (rows := lobe.routing_rows()) is not None:
            self._widths[lobe.id] = rows.prototypes.shape[1]
            self._keep(lobe.id, rows)

    def has(self, lobe: Lobe) -> bool:
        return lobe.id in self._widths

    def of(self, lobe: Lobe) -> RoutingRows:
        """Its rows. Where the files have gone since, one prototype that is near to nothing, so that routers go on.

        Raises:
            KeyError: it had no rows when it was taken in, or has been forgotten.
        """
        width = self._widths[lobe.id]
        with self._lock:
            if lobe.id in self._kept:
                self._kept.move_to_end(lobe.id)
                return self._kept[lobe.id]
        rows = lobe.routing_rows()
        if rows is None or rows.prototypes.shape[1] != width:
            nothing = np.zeros((0, width), np.float32)
            return RoutingRows(np.zeros((1, width), np.float32), nothing, nothing)
        self._keep(lobe.id, rows)
        return rows

    def forget(self, lobe: Lobe) -> None:
        with self._lock:
            self._widths.pop(lobe.id, None)
            if (rows := self._kept.pop(lobe.id, None)) is not None:
                self._bytes -= _row_bytes(rows)

    def among(self, lobes: Mapping[str, Lobe]) -> Mapping[str, RoutingRows]:
        """The rows of those lobes that have some, by the keys of `lobes`; read as they are asked for."""
        return _RowsByName(self, {name: lobe for name, lobe in lobes.items() if self.has(lobe)})

    def _keep(self, id: str, rows: RoutingRows) -> None:
        with self._lock:
            if id not in self._widths or id in self._kept:
                return
            self._kept[id] = rows
            self._bytes += _row_bytes(rows)
            while self._bytes > self._most and len(self._kept) > 1:
                _, left = self._kept.popitem(last=False)
                self._bytes -= _row_bytes(left)


class _RowsByName(Mapping[str, RoutingRows]):
    """What a router's context sees of `RowsOfLobes`. Rows outlive a lobe that is deleted while a router still knows it."""

    def __init__(self, rows: RowsOfLobes, lobes: Mapping[str, Lobe]) -> None:
        self._rows, self._lobes = rows, lobes

    def __getitem__(self, name: str) -> RoutingRows:
        lobe = self._lobes[name]
        try:
            return self._rows.of(lobe)
        except KeyError:
            nothing = np.zeros((0, 0), np.float32)
            return RoutingRows(nothing, nothing, nothing)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lobes)

    def __len__(self) -> int:
        return len(self._lobes)


def _row_bytes(rows: RoutingRows) -> int:
    texts = (rows.train_prompts, rows.validation_prompts, rows.train_answers, rows.validation_answers)
    written = sum(len(text) for kind in texts for text in kind)
    return rows.prototypes.nbytes + rows.train.nbytes + rows.validation.nbytes + written


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
    """The folder of lobes: list, add, rename, delete. Safe to use from several threads; each takes the same time however many
    lobes there are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._lobes: dict[str, Lobe] = {}  # oldest first
        self._ids: dict[str, list[str]] = {}  # by name as `same_name` reads it; copied folders may share one
        self.broken: dict[str, str] = {}
        paths = {int(path.name[5:]): path for path in folder.glob("lobe_*") if _ID.match(path.name)}
        self._last = max(paths, default=0)
        for _, path in sorted(paths.items()):
            if path.is_dir():
                try:
                    self._put(Lobe(path.name, path, read_card(path)))
                except LobeError as error:
                    self.broken[path.name] = str(error)

    def all(self) -> list[Lobe]:
        """Every lobe, oldest first."""
        with self._lock:
            return list(self._lobes.values())

    def by_name(self, name: str) -> Lobe:
        """Raises LobeError if there is none."""
        with self._lock:
            if ids := self._ids.get(_key(name)):
                return self._lobes[ids[0]]
        there_are = some_of([lobe.name for lobe in self.all()])
        raise LobeError(f"There is no lobe called {name!r}. There are: {there_are}.")

    def called(self, name: str) -> list[Lobe]:
        """The lobe of that name, as `same_name` reads it, if there is one (several if somebody copied folders)."""
        with self._lock:
            return [self._lobes[id] for id in self._ids.get(_key(name), ())]

    def check_free(self, name: str, besides: str = "") -> str:
        """The name as it would be kept, if no lobe (but the one with id `besides`) has it already.

        Raises:
            LobeError: refused by `check_name`, or taken (upper and lower case count as the same).
        """
        clean = check_name(name)
        taken = next((lobe for lobe in self.called(clean) if lobe.id != besides), None)
        if taken is not None:
            raise LobeError(
                f"A lobe called {taken.name!r} exists already. Choose another name, or delete that one first."
            )
        return clean

    def free_name(self, name: str) -> str:
        """The name, or "name (2)", "name (3)", ... if it is taken."""
        clean = check_name(name)
        with self._lock:
            candidates = (clean if i == 1 else f"{clean[: LONGEST_NAME - 6]} ({i})" for i in range(1, len(self._ids) + 2))
            return next(c for c in candidates if _key(c) not in self._ids)

    def add(self, folder: Path, card: Card) -> Lobe:
        """Take in a prepared folder (adapter files, perhaps routing rows); it is moved, the card is written, an id given.

        Raises:
            LobeError: the name is refused or taken; the folder stays where it was.
        """
        with self._lock:
            card = replace(card, name=self.check_free(card.name))
            path = self._next_path()
            write_card(folder, card)
            try:
                folder.rename(path)  # on one disk a folder is moved whole: no byte of its weights is copied
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                with new_folder(path) as temporary:
                    shutil.copytree(folder, temporary, dirs_exist_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
            return self._put(Lobe(path.name, path, card))

    def rename(self, name: str, new_name: str) -> Lobe:
        with self._lock:
            lobe = self.by_name(name)
            card = replace(lobe.card, name=self.check_free(new_name, besides=lobe.id))
            write_card(lobe.path, card)
            self._unname(lobe)
            return self._put(replace(lobe, card=card))

    def delete(self, name: str) -> Lobe:
        with self._lock:
            lobe = self.by_name(name)
            del self._lobes[lobe.id]
            self._unname(lobe)
            # out of sight first: a half-deleted folder must never be read as a lobe
            gone = lobe.path.with_name(f".{lobe.id}.deleted")
            shutil.rmtree(gone, ignore_errors=True)
            lobe.path.rename(gone)
            self._last -= int(lobe.id[5:]) == self._last
            shutil.rmtree(gone, ignore_errors=True)
            return lobe

    def _next_path(self) -> Path:
        """A folder that nobody has; another process may have added lobes to this home."""
        while True:
            self._last += 1
            path = self.folder / f"lobe_{self._last:04d}"
            if not path.exists():
                return path

    def _put(self, lobe: Lobe) -> Lobe:
        self._lobes[lobe.id] = lobe
        self._ids.setdefault(_key(lobe.name), []).append(lobe.id)
        return lobe

    def _unname(self, lobe: Lobe) -> None:
        ids = self._ids[_key(lobe.name)]
        ids.remove(lobe.id)
        if not ids:
            del self._ids[_key(lobe.name)]


def same_name(one: str, other: str) -> bool:
    """Whether two names are one to a person: case, white space and Unicode form do not count."""
    return _key(one) == _key(other)


def _key(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", str(name)).split()).casefold()
