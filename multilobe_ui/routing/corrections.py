"""What people know better than the routers: prompts with the lobe that should answer them, or none.

corrections.json  a list of {id, prompt, lobe, was, created, kept}

A correction counts once it is `kept`, that is, once somebody has seen what the routers make of it.
From then on that very prompt goes where the person said, and the routers learn from it as from a
handful of rows, so that what is like it follows.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import ConfigError
from ..files import locked, read_ours, set_aside, write_json
from ..lobes.card import now
from ..lobes.rows import RoutingRows, RowsByName, Vector
from ..settings import from_json
from .router import RoutingContext, same_prompt

Context = TypeVar("Context", bound=RoutingContext)
COPIES = 5
"""Rows that a correction counts for: routers look at the three to five nearest rows."""
MOST = 2000
LONGEST = 20_000


@dataclass(frozen=True)
class Correction:
    """One prompt, and who should answer it.

    Attributes:
        id: made of the prompt, so that a later word replaces the earlier. lobe: id of the lobe, ""
            for none: the base model.
        was: name of what answered before, "" for the base. created: ISO 8601, UTC. kept: whether it
            is in force.
    """

    id: str
    prompt: str
    lobe: str
    was: str = ""
    created: str = ""
    kept: bool = False


class Corrections:
    """The corrections of one home. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._known: dict[str, Correction] = {}
        self._read()

    def all(self) -> list[Correction]:
        """Oldest first."""
        with self._lock:
            return list(self._known.values())

    def kept(self) -> list[Correction]:
        """Those in force."""
        return [correction for correction in self.all() if correction.kept]

    def add(self, prompt: str, lobe: str, was: str = "") -> Correction:
        """Note one, not yet in force; it takes the place of an earlier one of the same prompt.

        Raises:
            ConfigError: the prompt is empty or too long, or there are too many corrections.
        """
        if not prompt.strip() or len(prompt) > LONGEST:
            raise ConfigError(f"The prompt has {len(prompt):,} characters: it must have 1 to {LONGEST:,}.")
        made = Correction(_id(prompt), prompt, lobe, was, now())
        with self._changing():
            if len(self._known) >= MOST and made.id not in self._known:
                raise ConfigError(
                    f"There are {MOST:,} corrections, which is the most. Train a lobe on them instead."
                )
            self._known.pop(made.id, None)
            self._known[made.id] = made
        return made

    def keep(self, ids: Sequence[str]) -> None:
        """Put them in force."""
        with self._changing():
            self._known = {i: replace(c, kept=c.kept or i in ids) for i, c in self._known.items()}

    def forget(self, ids: Sequence[str] | None = None) -> list[Correction]:
        """Take back those, or all; returns what has gone."""
        with self._changing():
            gone = [c for i, c in self._known.items() if ids is None or i in ids]
            self._known = {i: c for i, c in self._known.items() if c not in gone}
        return gone

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """What the block makes of the file's corrections is written: another process may have added
        some meanwhile."""
        with self._lock, locked(self._path):
            self._read()
            yield
            write_json(self._path, [asdict(correction) for correction in self._known.values()])

    def _read(self) -> None:
        """Entries that cannot be read are left out, and kept aside."""
        known: dict[str, Correction] = {}
        for entry in read_ours(self._path, list, "corrections are"):
            try:
                found = from_json(Correction, entry)
            except (TypeError, ValueError, AttributeError, ConfigError) as error:
                set_aside(self._path, "a correction is", str(error))
                continue
            known[str(found.id)] = found
        self._known = known


def corrected(context: Context, labels: Mapping[str, str | None]) -> Context:
    """A context whose rows say what people have said.

    A corrected prompt becomes a prototype and `COPIES` training rows of its lobe, or as many
    everyday prompts if no lobe fits, and leaves the rows of all other lobes.

    Args:
        labels: prompt → name of its lobe, or None. Lobes that the context does not have are passed over.
    """
    labels = {prompt: lobe for prompt, lobe in labels.items() if lobe is None or lobe in context.lobes}
    if not labels:
        return context
    vectors = dict(zip(labels, context.embed(list(labels)), strict=True))
    everyday = [prompt for prompt, lobe in labels.items() if lobe is None for _ in range(COPIES)]

    def generic() -> np.ndarray[Any, Any]:
        known = context.generic()
        new = np.stack([vectors[prompt] for prompt in everyday]) if everyday else known[:0]
        return np.concatenate([known, new]) if len(known) else new

    return replace(
        context,
        rows=_CorrectedRows(context, labels, vectors),
        generic=generic,
        generic_prompts=[*context.generic_prompts, *everyday],
        labels={same_prompt(prompt): lobe for prompt, lobe in labels.items()},
    )


class _CorrectedRows(RowsByName):
    """The rows of a context as corrections change them, each lobe's when it is asked for."""

    def __init__(
        self,
        context: RoutingContext,
        labels: Mapping[str, str | None],
        vectors: Mapping[str, np.ndarray[Any, Any]],
    ) -> None:
        self._context, self._labels, self._vectors = context, labels, vectors
        self._corrected: dict[str, RoutingRows] = {}

    def __getitem__(self, name: str) -> RoutingRows:
        if name not in self._corrected:
            self._corrected[name] = _taught(self._context.rows[name], name, self._labels, self._vectors)
        return self._corrected[name]

    def prototypes(self, name: str) -> Vector:
        own = [self._vectors[prompt] for prompt, owner in self._labels.items() if owner == name]
        return np.concatenate([self._context.prototypes(name), *([place] for place in own)])

    def __contains__(self, name: object) -> bool:
        return name in self._context.rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._context.rows)

    def __len__(self) -> int:
        return len(self._context.rows)


def _taught(
    rows: RoutingRows,
    lobe: str,
    labels: Mapping[str, str | None],
    vectors: Mapping[str, np.ndarray[Any, Any]],
) -> RoutingRows:
    """A lobe's rows without the prompts that are another's, and with those that are its own."""
    strangers = {same_prompt(prompt) for prompt, owner in labels.items() if owner != lobe}
    own = [prompt for prompt, owner in labels.items() if owner == lobe for _ in range(COPIES)]
    own_places = [vectors[prompt] for prompt in dict.fromkeys(own)]
    values: dict[str, Any] = {
        "prototypes": np.concatenate([rows.prototypes, *([place] for place in own_places)])
    }
    for kind, more in (("train", own), ("validation", [])):
        prompts, answers = list(getattr(rows, f"{kind}_prompts")), list(getattr(rows, f"{kind}_answers"))
        kept = [
            i
            for i in range(len(getattr(rows, kind)))
            if i >= len(prompts) or same_prompt(prompts[i]) not in strangers
        ]
        values[kind] = np.concatenate([getattr(rows, kind)[kept], *([vectors[p]] for p in more)])
        values[f"{kind}_prompts"] = [
            *(prompts[i] for i in kept if i < len(prompts)),
            *(more if prompts else []),
        ]
        values[f"{kind}_answers"] = [
            *(answers[i] for i in kept if i < len(answers)),
            *([""] * len(more) if answers else []),
        ]
    return replace(rows, **values)


def _id(prompt: str) -> str:
    return hashlib.sha256(same_prompt(prompt).encode("utf-8", "replace")).hexdigest()[:16]
