"""What a router has learned, on disk: a folder with the numbers, and what they belong to.

fit.json            router, key, settings, report, created, and the state's JSON values
arrays.safetensors  the state's arrays, if it has any
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
Key = list[list[str]]


@dataclass(frozen=True)
class Fit:
    """A router's fit.

    Attributes:
        key: what it was made for: the sentence encoder and its threshold first, then name and time of birth of every lobe.
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
        key = [self.key[0], *([names.get(name, name), *rest] for name, *rest in self.key[1:])]
        # a text by itself is a setting (what the gate reads, for instance), even where a lobe has that very name
        state = {place: v if isinstance(v, str) else _renamed(v, names) for place, v in self.state.items()}
        return replace(self, key=key, state=state)


def write_fit(folder: Path, fit: Fit) -> None:
    """Replaces an earlier fit in one step."""
    arrays = {name: np.ascontiguousarray(v) for name, v in fit.state.items() if isinstance(v, np.ndarray)}
    plain = {name: value for name, value in fit.state.items() if name not in arrays}
    with new_folder(folder) as temporary:
        write_json(temporary / FIT_FILE, {**fit.__dict__, "state": plain})
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
        key = [[str(part) for part in entry] for entry in values["key"]]
        if not key or not all(key):
            raise ValueError("it does not say which lobes it is for")
        state = {**dict(values["state"]), **arrays}
        extras = {name: dict(values.get(name, {})) for name in ("settings", "report")}
        return Fit(str(values["router"]), key, state, created=str(values.get("created", "")), **extras)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise RoutingError(
            f"The router's fit in {folder.name} cannot be read ({error}). Fit the router again."
        ) from error


def _check_finite(value: Any, depth: int = 0) -> None:
    """Raises ValueError if JSON values hold a number that is not finite, or are nested deeper than any router's state."""
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
