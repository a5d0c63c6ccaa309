"""Routing rows: what routing knows of one lobe, in memory and in its folder.

    routing.safetensors  prototypes, train and validation vectors      prompts.json  their texts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from ..data.examples import Example
from ..evenly import even_places, evenly
from ..files import read_json, write_json

Vector = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class RoutingRows:
    """What routing knows of one lobe: embeddings of its rows, unit length.

    Attributes:
        prototypes: (k, d) cluster centres of the training rows. train: (n, d). validation: (m, d),
            rows held out from training.
        train_prompts, validation_prompts: their texts, same order. train_answers,
            validation_answers: what was answered; empty for a lobe that came from a version that
            did not keep them.
    """

    prototypes: Vector
    train: Vector
    validation: Vector
    train_prompts: Sequence[str] = ()
    validation_prompts: Sequence[str] = ()
    train_answers: Sequence[str] = ()
    validation_answers: Sequence[str] = ()


def rows_to_keep(
    encode: Callable[[Sequence[str]], Vector], train: Sequence[Example], validation: Sequence[Example] = ()
) -> RoutingRows:
    """What a new lobe keeps for routing of the rows it was trained on, and of those held out."""
    kept, held_out = _different(train, KEPT_TRAIN_ROWS), _different(validation, KEPT_VALIDATION_ROWS)
    vectors = encode([row.prompt for row in kept])
    held_out_vectors = np.zeros((0, vectors.shape[1]), np.float32)
    if held_out:
        held_out_vectors = encode([row.prompt for row in held_out])
    return RoutingRows(
        prototypes=prototypes_of(vectors, 4),
        train=vectors,
        validation=held_out_vectors,
        train_prompts=[row.prompt for row in kept],
        validation_prompts=[row.prompt for row in held_out],
        train_answers=[row.answer for row in kept],
        validation_answers=[row.answer for row in held_out],
    )


def _different(rows: Sequence[Example], most: int) -> list[Example]:
    """At most `most` rows of different prompts, evenly spread."""
    different = list({row.prompt: row for row in reversed(rows)}.values())[::-1]
    return evenly(different, most)


class RowsByName(Mapping[str, RoutingRows]):
    """Routing rows by lobe name, which are read when they are asked for. With a thousand lobes that
    takes seconds."""

    def prototypes(self, name: str) -> Vector:
        """The lobe's prototypes, without the rest of its rows where that saves reading them."""
        return self[name].prototypes


def prototypes_of(vectors: Vector, count: int = 8, seed: int = 0) -> Vector:
    """(k, d) unit centres of spherical k-means, k at most `count`, and at most a quarter of the rows.

    One mean blurs a domain of many topics; a few centres keep a prompt near to its own topic.
    """
    k = max(1, min(count, len(vectors) // 4))
    rng = np.random.default_rng(seed)
    centres = vectors[_spread(vectors, k, rng)]
    for _ in range(20):
        nearest = (vectors @ centres.T).argmax(1)
        sums = np.stack([vectors[nearest == i].sum(0) if (nearest == i).any() else centres[i] for i in range(k)])
        updated = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        if np.allclose(updated, centres, atol=1e-5):
            break
        centres = updated
    return np.asarray(centres, np.float32)


def _spread(vectors: Vector, k: int, rng: np.random.Generator) -> list[int]:
    """Starting rows far from each other (k-means++, Arthur and Vassilvitskii 2007)."""
    chosen = [int(rng.integers(len(vectors)))]
    distance = 1 - vectors @ vectors[chosen[0]]
    for _ in range(k - 1):
        weight = np.maximum(distance, 0) + 1e-9
        chosen.append(int(rng.choice(len(vectors), p=weight / weight.sum())))
        distance = np.minimum(distance, 1 - vectors @ vectors[chosen[-1]])
    return chosen
ROUTING_FILE = "routing.safetensors"
PROMPTS_FILE = "prompts.json"
MOST_ROWS = {"train": 512, "validation": 128}
"""Rows of each kind that routing uses of a lobe; of more, so many are taken evenly."""
MOST_PROTOTYPES = 64
LARGEST_FILE = 64 << 20
"""Bytes of a file of rows that is read: 640 rows of the widest encoders take a tenth of it."""
KEPT_TRAIN_ROWS, KEPT_VALIDATION_ROWS = 512, 64
"""Rows with different prompts that a new lobe keeps."""
UNIT, NEARLY_UNIT = 0.01, 0.1
"""How far from 1 a vector's length may be: up to UNIT (half precision) it is left alone, up to
NEARLY_UNIT it is normalised, and beyond that the vector is not trusted."""


def read_rows(folder: Path) -> RoutingRows:
    """What a folder holds of rows for routing; vectors or texts that cannot be read are left out.
    Nothing else is checked."""
    nothing: dict[str, Any] = {kind: np.zeros((0, 0), np.float32) for kind in ("prototypes", "train", "validation")}
    return RoutingRows(**(read_vectors(folder) or nothing), **(read_texts(folder) or {}))


def read_vectors(folder: Path) -> dict[str, Any] | None:
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


def read_prototypes(folder: Path) -> Vector | None:
    """(k, d) float32, without reading the other vectors; None where the file is missing or damaged."""
    try:
        with safe_open(folder / ROUTING_FILE, framework="numpy") as file:
            return np.asarray(file.get_tensor("prototypes"), np.float32)
    except (OSError, ValueError, TypeError, SafetensorError):
        return None


def read_texts(folder: Path) -> dict[str, Any] | None:
    """Prompts and answers by the names that `RoutingRows` has for them; None where the file is
    missing, damaged or too large."""
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
    """Rows that routers can rely on, whatever was handed in: finite unit vectors of our sentence
    encoder, one for each prompt, and at least one prototype.

    Vectors that are in doubt (of another encoder, of another width, not finite, far from unit
    length, fewer or more than the prompts, or missing) are made again from the prompts.

    Args:
        embed: texts → (n, width) unit vectors, our sentence encoder. width: of its vectors; None
            where it is not known, then all vectors of the lobe must have the same. ours: whether
            the vectors are said to be of our encoder.

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
    """The rows themselves, or MOST_ROWS of them, evenly. Vectors and texts of a kind are cut alike
    where they are as many."""
    changed: dict[str, Any] = {}
    if len(rows.prototypes) > MOST_PROTOTYPES:
        changed["prototypes"] = rows.prototypes[even_places(len(rows.prototypes), MOST_PROTOTYPES)]
    for kind, most in MOST_ROWS.items():
        for name in (kind, f"{kind}_prompts", f"{kind}_answers"):
            values = getattr(rows, name)
            if len(values) > most:
                places = even_places(len(values), most)
                changed[name] = values[places] if isinstance(values, np.ndarray) else [values[i] for i in places]
    return replace(rows, **changed) if changed else rows


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


def bytes_of_rows(rows: RoutingRows) -> int:
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
