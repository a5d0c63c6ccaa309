"""Lobes, prompts and a language model that are made up: no model is loaded. Lent to the tests of all routers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from multilobe_ui.errors import RoutingError
from multilobe_ui.routers import ROUTERS, RoutingRows
from multilobe_ui.routing.router import BankContext, Router, learn_now

DIMENSIONS = 24


def vector_of(text: str, spread: float = 0.5) -> np.ndarray:
    """Texts are "TOPIC number": a topic has a direction, a text lies near its topic's."""
    topic, _, _ = text.partition(" ")
    centre = np.random.default_rng(hash_of(topic)).normal(size=DIMENSIONS)
    centre /= np.linalg.norm(centre)
    noise = np.random.default_rng(hash_of(text)).normal(size=DIMENSIONS) / np.sqrt(DIMENSIONS)
    mixed = centre + spread * noise
    return (mixed / np.linalg.norm(mixed)).astype(np.float32)


def hash_of(text: str) -> int:
    return zlib.crc32(text.encode())


def embed(texts: Sequence[str]) -> np.ndarray:
    return np.stack([vector_of(text) for text in texts]) if texts else np.zeros((0, DIMENSIONS), np.float32)


def nll(texts: Sequence[str], lobes: Sequence[str]) -> np.ndarray:
    """A language model that likes a lobe's own topic half a nat better than the base does, and others a bit less."""
    rows = []
    for text in texts:
        noise = np.random.default_rng(hash_of(text) + 1).normal(size=len(lobes)) * 0.02
        own = np.array([2.5 if text.split(" ")[0] == lobe else 3.1 for lobe in lobes])
        rows.append([*(own + noise), 3.0])
    return np.array(rows, np.float32).reshape(len(texts), len(lobes) + 1)


def rows_of(lobe: str, train: int = 20, validation: int = 8) -> RoutingRows:
    prompts, held_out = ([f"{lobe} {i}" for i in range(a, b)] for a, b in ((0, train), (train, train + validation)))
    vectors = embed(prompts)
    centre = vectors.mean(0, keepdims=True)
    return RoutingRows(centre / np.linalg.norm(centre), vectors, embed(held_out), prompts, held_out)


def context(count: int, without_rows: int = 0) -> BankContext:
    lobes = [f"lobe{i}" for i in range(count)]
    generic = [f"strange{i} {i}" for i in range(30)]
    rows = {lobe: rows_of(lobe) for lobe in lobes[: count - without_rows]}
    return BankContext(lobes, rows, embed, nll, lambda: embed(generic), generic)


def through_files(state: dict[str, Any]) -> dict[str, Any]:
    """What `fits` keeps of a state: JSON, and arrays of the outermost keys."""
    arrays = {key: value.copy() for key, value in state.items() if isinstance(value, np.ndarray)}
    return json.loads(json.dumps({key: value for key, value in state.items() if key not in arrays})) | arrays


def fitted(name: str, count: int, **options: int) -> Router:
    router = ROUTERS[name](context(count, **options), None)
    with suppress(RoutingError):  # there may be nothing to learn from
        learn_now(router)
    return router


@cache
def ready(name: str, count: int) -> Router:
    """One for all tests that only ask it: 200 lobes take a while to fit."""
    return fitted(name, count)


def overlapping(classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in clusters that overlap, and their clusters."""
    centres = np.random.default_rng(0).normal(size=(classes, DIMENSIONS))
    rng = np.random.default_rng(seed)
    owner = np.arange(count) % classes
    vectors = centres[owner] + 1.6 * rng.normal(size=(count, DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), owner
