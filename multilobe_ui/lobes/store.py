"""Lobes on disk: a plain PEFT adapter folder, a card that says where it came from, and rows for routing.

    lobes/lobe_0007/adapter_config.json  adapter_model.safetensors  card.json  routing.safetensors  prompts.json

A lobe's name is the person's own words; its id, which names the folder, is ours. No path is ever
made from a name.
"""

from __future__ import annotations

import errno
import re
import shutil
import threading
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import LobeError, some_of
from ..files import new_folder
from .card import Card, read_card, write_card
from .rows import RoutingRows, read_texts, read_vectors

LONGEST_NAME = 80
LAST_FILE = ".last"
"""The highest number that a lobe has had, once a lobe was deleted."""
_ID = re.compile(r"^lobe_\d{4,9}$")


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
        """Its rows for routing as its files hold them, or None if it came without data (or they are
        unreadable: then it can still be chosen by log-prob and by hand). Routers get what
        `sound_rows` makes of them."""
        vectors, texts = read_vectors(self.path), read_texts(self.path)
        if vectors is None or texts is None:
            return None
        return RoutingRows(**vectors, **texts)


def check_name(name: str) -> str:
    """A lobe's name as it is kept: trimmed, white space single, Unicode NFC. Any script, dots and
    slashes are fine.

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
    """The folder of lobes: list, add, rename, delete. Safe to use from several threads; each takes
    the same time however many lobes there are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._lobes: dict[str, Lobe] = {}  # oldest first
        self._ids: dict[str, list[str]] = {}  # by name as `same_name` reads it; copied folders may share one
        self.broken: dict[str, str] = {}
        paths = {int(path.name[5:]): path for path in folder.glob("lobe_*") if _ID.match(path.name)}
        self._last = max(max(paths, default=0), _read_number(folder / LAST_FILE))
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
        """The lobe of that name, as `same_name` reads it, if there is one (several if somebody
        copied folders)."""
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
        """Take in a prepared folder (adapter files, perhaps routing rows); it is moved, the card is
        written, an id given.

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
        """Change what a lobe's card says (not its name, which `rename` changes). Nothing happens if
        the lobe is gone.

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
            # its number is never given again: what was said of it, or is still done with it, is not
            # the next one's
            with suppress(OSError):
                (self.folder / LAST_FILE).write_text(str(self._last), encoding="ascii")
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


def _read_number(path: Path) -> int:
    """What is written in a file; 0 where that is no number."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def same_name(one: str, other: str) -> bool:
    """Whether two names are one to a person: case, white space and Unicode form do not count."""
    return _key(one) == _key(other)


def _key(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", str(name)).split()).casefold()
