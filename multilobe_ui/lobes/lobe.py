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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from ..errors import LobeError, some_of
from ..files import new_folder, read_json, write_json
from ..routing.encoder import prototypes_of
from ..settings import from_json
from .rows import RoutingRows, RowsByName, Vector

CARD_FILE = "card.json"
ROUTING_FILE = "routing.safetensors"
PROMPTS_FILE = "prompts.json"
LONGEST_NAME = 80
ROWS_IN_MEMORY = 128 << 20
"""Bytes of routing rows that are kept; the rows of 1,000 lobes take five times as much, and routers make an index of their own."""
MOST_ROWS = {"train": 512, "validation": 128}
"""Rows of each kind that routing uses of a lobe; of more, so many are taken evenly."""
MOST_PROTOTYPES = 64
LARGEST_FILE = 64 << 20
"""Bytes of a file of rows that is read: 640 rows of the widest encoders take a tenth of it."""
UNIT, NEARLY_UNIT = 0.01, 0.1
"""How far from 1 a vector's length may be: up to UNIT (half precision) it is left alone, up to NEARLY_UNIT it is normalised,
and beyond that the vector is not trusted."""
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
        """Its rows for routing as its files hold them, or None if it came without data (or they are unreadable: then it can
        still be chosen by log-prob and by hand). Routers get what `sound_rows` makes of them."""
        vectors, texts = _read_vectors(self.path), _read_texts(self.path)
        if vectors is None or texts is None:
            return None
        return RoutingRows(**vectors, **texts)


def read_rows(folder: Path) -> RoutingRows:
    """What a folder holds of rows for routing; vectors or texts that cannot be read are left out. Nothing else is checked."""
    nothing: dict[str, Any] = {kind: np.zeros((0, 0), np.float32) for kind in ("prototypes", "train", "validation")}
    return RoutingRows(**(_read_vectors(folder) or nothing), **(_read_texts(folder) or {}))


def _read_vectors(folder: Path) -> dict[str, Any] | None:
    """(n, d) float32 by kind; None where the file is missing, damaged, too large or of another shape."""
    path = folder / ROUTING_FILE
    try:
        if path.stat().st_size > LARGEST_FILE:
            return None
        arrays = load_file(path)
        with np.errstate(over="ignore"):  # a number that float32 cannot hold becomes infinite, and is found out as such
            found = {kind: arrays[kind].astype(np.float32) for kind in ("prototypes", "train", "validation")}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    return found if all(array.ndim == 2 for array in found.values()) else None


def _read_prototypes(folder: Path) -> Vector | None:
    """(k, d) float32, without reading the other vectors; None where the file is missing or damaged."""
    try:
        with safe_open(folder / ROUTING_FILE, framework="numpy") as file:
            return np.asarray(file.get_tensor("prototypes"), np.float32)
    except (OSError, ValueError, TypeError, SafetensorError):
        return None


def _read_texts(folder: Path) -> dict[str, Any] | None:
    """Prompts and answers by the names that `RoutingRows` has for them; None where the file is missing, damaged or too large."""
    path = folder / PROMPTS_FILE
    try:
        if path.stat().st_size > LARGEST_FILE:
            return None
        written = read_json(path)
        return {
            "train_prompts": _texts(written["train"]),
            "validation_prompts": _texts(written["validation"]),
            "train_answers": _texts(written.get("train_answers", [])),
            "validation_answers": _texts(written.get("validation_answers", [])),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _texts(values: Any) -> list[str]:
    """A list of strings that every encoder and file can take. Raises TypeError if it is none."""
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise TypeError("rows for routing must be lists of texts")
    return [text.encode("utf-8", "replace").decode() for text in values]  # JSON can hold half a surrogate pair, UTF-8 cannot


def sound_rows(
    rows: RoutingRows, embed: Callable[[Sequence[str]], Vector], width: int | None, ours: bool = True
) -> RoutingRows | None:
    """Rows that routers can rely on, whatever was handed in: finite unit vectors of our sentence encoder, one for each prompt,
    and at least one prototype.

    Vectors that are in doubt (of another encoder, of another width, not finite, far from unit length, fewer or more than the
    prompts, or missing) are made again from the prompts.

    Args:
        embed: texts → (n, width) unit vectors, our sentence encoder. width: of its vectors; None where it is not known, then all
            vectors of the lobe must have the same. ours: whether the vectors are said to be of our encoder.

    Returns:
        `rows` itself where there was nothing to mend; None where neither vectors nor prompts can be used.

    Raises:
        What `embed` raises.
    """
    whole = replace(rows, train_answers=_answers(rows, "train"), validation_answers=_answers(rows, "validation"))
    if ours and fault_of_rows(whole, width) == "":
        mended = _cut(whole)
        if not len(mended.prototypes):
            mended = replace(mended, prototypes=prototypes_of(_unit(mended.train), 4))
        prototypes, train, validation = (_unit(v) for v in (mended.prototypes, mended.train, mended.validation))
        mended = replace(mended, prototypes=prototypes, train=train, validation=validation)
        same = all(getattr(mended, name) is getattr(rows, name) for name in rows.__dataclass_fields__)
        return rows if same else mended
    return _embedded(_cut(whole), embed)


def fault_of_rows(rows: RoutingRows, width: int | None = None) -> str:
    """Why the vectors of these rows cannot be trusted, for a message; "" if they can.

    Args:
        width: that they must have; None asks only that all have the same.
    """
    width = rows.prototypes.shape[1] if width is None and len(rows.prototypes) else width
    if not len(rows.prototypes) and not len(rows.train):
        return "there are no vectors"
    for kind in ("prototypes", "train", "validation"):
        vectors = getattr(rows, kind)
        if not len(vectors):
            continue
        width = vectors.shape[1] if width is None else width
        if vectors.shape[1] != width or not width:
            return f"vectors of {kind} have {vectors.shape[1]} numbers, not {width or 'at least 1'}"
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        if not np.isfinite(lengths).all():
            return f"vectors of {kind} are not finite"
        worst = float(lengths[np.abs(lengths - 1).argmax()])
        if abs(worst - 1) > NEARLY_UNIT:
            return f"a vector of {kind} has length {worst:.4g}, not 1"
    for kind in ("train", "validation"):
        prompts, vectors = len(getattr(rows, f"{kind}_prompts")), len(getattr(rows, kind))
        if prompts not in (0, vectors):
            return f"{kind} has {prompts} prompts and {vectors} vectors"
    return ""


def are_unit(vectors: Vector, width: int | None) -> bool:
    """Whether these are some vectors of that width, finite and of unit length."""
    if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != width:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((np.abs(np.linalg.norm(vectors, axis=1) - 1) <= UNIT).all())  # never true of what is not finite


def _answers(rows: RoutingRows, kind: str) -> Sequence[str]:
    """The answers of a kind of row, or none where they cannot be told to belong to the prompts."""
    answers: Sequence[str] = getattr(rows, f"{kind}_answers")
    return answers if len(answers) == len(getattr(rows, f"{kind}_prompts")) else ()


def _unit(vectors: Vector) -> Vector:
    """The vectors themselves if their lengths are 1, else normalised; none of them may be zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (np.abs(lengths - 1) <= UNIT).all():
        return vectors
    return np.asarray(vectors / lengths, np.float32)


def _cut(rows: RoutingRows) -> RoutingRows:
    """The rows themselves, or MOST_ROWS of them, evenly. Vectors and texts of a kind are cut alike where they are as many."""
    changed: dict[str, Any] = {}
    if len(rows.prototypes) > MOST_PROTOTYPES:
        changed["prototypes"] = rows.prototypes[_evenly(len(rows.prototypes), MOST_PROTOTYPES)]
    for kind, most in MOST_ROWS.items():
        for name in (kind, f"{kind}_prompts", f"{kind}_answers"):
            values = getattr(rows, name)
            if len(values) > most:
                places = _evenly(len(values), most)
                changed[name] = values[places] if isinstance(values, np.ndarray) else [values[i] for i in places]
    return replace(rows, **changed) if changed else rows


def _evenly(count: int, most: int) -> list[int]:
    """`most` of `count` places, from the first to the last."""
    return [i * count // most for i in range(most)]


def _embedded(rows: RoutingRows, embed: Callable[[Sequence[str]], Vector]) -> RoutingRows | None:
    """Rows made anew from their prompts; None if no training prompt has a vector."""
    values: dict[str, Any] = {}
    for kind in MOST_ROWS:
        prompts, answers = getattr(rows, f"{kind}_prompts"), getattr(rows, f"{kind}_answers")
        said = [i for i, prompt in enumerate(prompts) if prompt.strip()]
        vectors = embed([prompts[i] for i in said]) if said else np.zeros((0, 0), np.float32)
        # an encoder may have nothing to say of a text, and a vector of zeros is near to nothing
        good = [at for at, vector in enumerate(vectors) if abs(float(np.linalg.norm(vector)) - 1) <= NEARLY_UNIT]
        values[kind] = _as_written(vectors[good])
        values[f"{kind}_prompts"] = [prompts[said[at]] for at in good]
        values[f"{kind}_answers"] = [answers[said[at]] for at in good] if answers else []
    if not len(values["train"]):
        return None
    if not len(values["validation"]):
        values["validation"] = values["train"][:0]
    return RoutingRows(prototypes=_as_written(prototypes_of(values["train"], 4)), **values)


def _as_written(vectors: Vector) -> Vector:
    """In half precision, as on disk: a lobe routes the same before and after a restart."""
    return vectors.astype(np.float16).astype(np.float32)


class RowsOfLobes:
    """Sound routing rows of any number of lobes: read from their files when asked for, the most recent ones kept.

    Args:
        sound: what routers may see of the rows that a lobe's files hold; None if that is nothing (see `sound_rows`).
        trusted: whether a lobe's prototypes can be used as they are. Then the rest of its rows is not read before a router asks.
        most_bytes: of vectors that are kept at most.
    """

    def __init__(
        self,
        sound: Callable[[Lobe, RoutingRows], RoutingRows | None] = lambda lobe, rows: rows if len(rows.prototypes) else None,
        trusted: Callable[[Lobe, Vector], bool] = lambda lobe, prototypes: len(prototypes) > 0,
        most_bytes: int = ROWS_IN_MEMORY,
    ) -> None:
        self._sound, self._trusted, self._most = sound, trusted, most_bytes
        self._new: dict[str, Lobe] = {}  # taken in, and not yet looked at
        self._prototypes: dict[str, Vector] = {}  # of those whose rows can be used
        self._kept: OrderedDict[str, RoutingRows] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def take(self, lobe: Lobe) -> None:
        """Know a lobe from now on. Its files are read when routers first ask, as mending its rows may need the encoder."""
        self.forget(lobe)
        with self._lock:
            self._new[lobe.id] = lobe

    def has(self, lobe: Lobe) -> bool:
        """Whether a lobe has rows that routers can use."""
        with self._lock:
            new = self._new.get(lobe.id)
        if new is not None:
            rows, prototypes = None, _read_prototypes(lobe.path)  # without the lock: it may take seconds
            if prototypes is None or not self._trusted(lobe, prototypes):
                rows = self._sound(lobe, read_rows(lobe.path))
                prototypes = None if rows is None else rows.prototypes
            with self._lock:
                if self._new.get(lobe.id) is new:  # it has not gone meanwhile
                    del self._new[lobe.id]
                    if prototypes is not None:
                        self._prototypes[lobe.id] = prototypes
            if rows is not None:
                self._keep(lobe.id, rows)
        return lobe.id in self._prototypes

    def prototypes(self, lobe: Lobe) -> Vector:
        """Its prototypes, which are always in memory. Raises KeyError as `of` does."""
        return self._prototypes[lobe.id]

    def of(self, lobe: Lobe) -> RoutingRows:
        """Its rows. Where the files have gone since, one prototype that is near to nothing, so that routers go on.

        Raises:
            KeyError: it has no rows that can be used, or has been forgotten.
        """
        width = self._prototypes[lobe.id].shape[1]
        with self._lock:
            if lobe.id in self._kept:
                self._kept.move_to_end(lobe.id)
                return self._kept[lobe.id]
        rows = self._sound(lobe, read_rows(lobe.path))
        if rows is None or rows.prototypes.shape[1] != width:
            nothing = np.zeros((0, width), np.float32)
            return RoutingRows(np.zeros((1, width), np.float32), nothing, nothing)
        self._keep(lobe.id, rows)
        return rows

    def forget(self, lobe: Lobe) -> None:
        with self._lock:
            self._new.pop(lobe.id, None)
            self._prototypes.pop(lobe.id, None)
            if (rows := self._kept.pop(lobe.id, None)) is not None:
                self._bytes -= _row_bytes(rows)

    def among(self, lobes: Mapping[str, Lobe]) -> RowsByName:
        """The rows of those lobes that have some, by the keys of `lobes`; read as they are asked for."""
        return _RowsByName(self, {name: lobe for name, lobe in lobes.items() if self.has(lobe)})

    def _keep(self, id: str, rows: RoutingRows) -> None:
        with self._lock:
            if id not in self._prototypes or id in self._kept:
                return
            self._kept[id] = rows
            self._bytes += _row_bytes(rows)
            while self._bytes > self._most and len(self._kept) > 1:
                _, left = self._kept.popitem(last=False)
                self._bytes -= _row_bytes(left)


class _RowsByName(RowsByName):
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

    def prototypes(self, name: str) -> Vector:
        try:
            return self._rows.prototypes(self._lobes[name])
        except KeyError:
            return self[name].prototypes

    def __contains__(self, name: object) -> bool:
        return name in self._lobes  # what a Mapping has would read the rows

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

    def recard(self, id: str, **changes: Any) -> None:
        """Change what a lobe's card says (not its name, which `rename` changes). Nothing happens if the lobe is gone.

        Raises:
            OSError: the card cannot be written; then it is as before.
        """
        with self._lock:
            if (lobe := self._lobes.get(id)) is not None:
                card = replace(lobe.card, **changes)
                write_card(lobe.path, card)
                self._lobes[id] = replace(lobe, card=card)

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
