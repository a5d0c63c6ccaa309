"""What a router has learned, on disk: a folder with the numbers, and what they belong to.

fit.json            router, key, settings, report, created, and the state's JSON values
arrays.safetensors  the state's arrays, if it has any
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import RoutingError
from ..files import new_folder, read_json, write_json

FIT_FILE, ARRAYS_FILE = "fit.json", "arrays.safetensors"
DEEPEST = 20
Birth = tuple[str, str]
"""Name and time of birth of a lobe."""


@dataclass(frozen=True)
class Key:
    """What a fit was made for. It is stale where another key holds now.

    Attributes:
        encoder: name of the sentence encoder. threshold: embedding score that a lobe must reach, or "None".
        lobes: that routers choose among. corrections: a digest of those in force, "" for none.
    """

    encoder: str
    threshold: str = ""
    lobes: tuple[Birth, ...] = ()
    corrections: str = ""

    def uncorrected(self) -> Key:
        """Of a router that does not learn from corrections."""
        return replace(self, corrections="")

    def renamed(self, names: Mapping[str, str]) -> Key:
        """When lobes are called otherwise: old name → new name."""
        return replace(self, lobes=tuple((names.get(name, name), created) for name, created in self.lobes))

    def to_json(self) -> list[list[str]]:
        first = [self.encoder, self.threshold]
        if self.corrections:
            first.append(self.corrections)
        return [first, *map(list, self.lobes)]

    @classmethod
    def from_json(cls, entries: Sequence[Sequence[Any]]) -> Key:
        """Raises ValueError if it does not say which lobes it is for."""
        if not entries or not all(entries):
            raise ValueError("it does not say which lobes it is for")
        encoder, threshold, corrections, *_ = [*map(str, entries[0]), "", ""]
        lobes = tuple(
            (str(name), str(created)) for name, created, *_ in ((*entry, "") for entry in entries[1:])
        )
        return cls(encoder, threshold, lobes, corrections)


@dataclass(frozen=True)
class Fit:
    """A router's fit.

    Attributes:
        key: what it was made for.
        state: `Router.state()`: JSON values and numpy arrays. settings: what the person asked for.
        report: what was measured. created: ISO 8601, UTC.
    """

    router: str
    key: Key
    state: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""

    def renamed(self, names: Mapping[str, str]) -> Fit:
        """The same fit when lobes are called otherwise: old name → new name."""
        # a text by itself is a setting (what the gate reads, for instance), even where a lobe has
        # that very name
        state = {place: v if isinstance(v, str) else _renamed(v, names) for place, v in self.state.items()}
        return replace(self, key=self.key.renamed(names), state=state)


def write_fit(folder: Path, fit: Fit) -> None:
    """Replaces an earlier fit in one step."""
    arrays = {name: np.ascontiguousarray(v) for name, v in fit.state.items() if isinstance(v, np.ndarray)}
    plain = {name: value for name, value in fit.state.items() if name not in arrays}
    with new_folder(folder) as temporary:
        write_json(temporary / FIT_FILE, {**fit.__dict__, "key": fit.key.to_json(), "state": plain})
        if arrays:
            save_file(arrays, temporary / ARRAYS_FILE)


def read_fit(folder: Path) -> Fit:
    """Raises RoutingError if there is none, or it is damaged."""
    try:
        values = read_json(folder / FIT_FILE)
        arrays = load_file(folder / ARRAYS_FILE) if (folder / ARRAYS_FILE).is_file() else {}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("it holds numbers that are not finite")
        _check_finite([values["state"], values.get("settings"), values.get("report")])
        key = Key.from_json(values["key"])
        state = {**dict(values["state"]), **arrays}
        extras = {name: dict(values.get(name, {})) for name in ("settings", "report")}
        return Fit(str(values["router"]), key, state, created=str(values.get("created", "")), **extras)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise RoutingError(
            f"The router's fit in {folder.name} cannot be read ({error}). Fit the router again."
        ) from error


def _check_finite(value: Any, depth: int = 0) -> None:
    """Raises ValueError if JSON values hold a number that is not finite, or are nested deeper than
    any router's state."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it holds numbers that are not finite")
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_finite(inner, depth + 1)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, Mapping):
        return {names.get(key, key): _renamed(inner, names) for key, inner in value.items()}
    return [_renamed(inner, names) for inner in value] if isinstance(value, (list, tuple)) else value
