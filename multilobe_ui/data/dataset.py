"""Training data: read, recognise, validate, describe and split it.

A source is a file (JSONL, a JSON list, CSV or Parquet, told apart by content, never by extension)
or a list of rows. Whatever it is, it comes out as a stream of `Example` and of `RowError` with the
line to look at, one row in memory at a time. This module knows nothing of tokenizers, prompt
templates, models or pages: a token counter is passed in.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..files import sha256_of
from .examples import (
    Example,
    asked_only,
    example_of,
    length_of,
    new_message,
    optional_cell,
    plain_value,
    row_hash,
    short_hash,
)
from .formats import MAX_ERRORS, Format, Source, column_name, raw_rows, sniff, sniff_asked, source_name
from .held_out import Answers, HeldOut, held_out_share
from .rows import BadRow, RowError

PREVIEW_ROWS = 5


@dataclass(frozen=True)
class DatasetReport:
    """What `inspect` saw in one pass.

    Attributes:
        rows: good rows, duplicates included.
        duplicates: rows equal to an earlier one; `load` drops exactly these.
        repeated_prompts: rows whose prompt (by `Example.key`) came earlier, and that are no duplicates.
        token_lengths: token counts of a random sample of the good rows; empty without a token counter.
        characters: of all contexts and answers.
        held_out: how many rows training holds out by itself, and why.
        sha256: of the file's bytes, or of the rows as canonical JSON; `bytes` is the length of the same.
    """

    format: Format
    rows: int
    bad_rows: int
    errors: tuple[RowError, ...]
    duplicates: int
    repeated_prompts: int
    preview: tuple[Example, ...]
    token_lengths: tuple[int, ...]
    characters: int
    held_out: HeldOut
    sha256: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read(source: Source, mapping: Mapping[str, str] | None = None) -> Iterator[Example | RowError]:
    """Stream the rows. What is wrong with the whole file is raised here, what is wrong with a row
    is yielded."""
    return _examples(source, sniff(source, mapping))


def read_asked(path: Path, beside: Sequence[str] = ()) -> Iterator[tuple[int, Example, str | None] | RowError]:
    """Stream rows of a file that is asked, not learned: (line, row, text of a further column).

    An answer may be missing, as a cell or as a column; it is "" then. Of the names in `beside`, the
    first that is a column is the further column: its text is "" for null, and None in a file
    without such a column.
    """
    found = sniff_asked(path)
    spelled = {column_name(column): column for column in found.columns}
    column = next((spelled[name] for name in beside if name in spelled), None)
    if column is not None:  # among the roles, so that Parquet reads it too
        found = replace(found, mapping={**found.mapping, "beside": column})
    for row in raw_rows(path, found):
        if isinstance(row, RowError):
            yield row
            continue
        cells = {column_name(name): value for name, value in row[1].items()}
        try:
            yield row[0], asked_only(cells, found.mapping), None if column is None else optional_cell(cells, column)
        except BadRow as error:
            yield RowError(row[0], str(error))


def inspect(
    source: Source,
    mapping: Mapping[str, str] | None = None,
    count_tokens: Callable[[Sequence[Example]], Sequence[int]] | None = None,
    sample: int = 2000,
    progress: Callable[[int], None] | None = None,
) -> DatasetReport:
    """Describe a source in one pass over its rows; memory holds the sample and two short hashes a row."""
    found = sniff(source, mapping)
    rows = bad_rows = duplicates = repeated_prompts = characters = 0
    errors: list[RowError] = []
    preview: list[Example] = []
    sampled: list[Example] = []
    seen: set[bytes] = set()
    answers = Answers()
    dice = random.Random(0)  # a fixed seed: the same file gives the same report
    for count, row in enumerate(_examples(source, found), start=1):
        if progress and count % 1000 == 0:
            progress(count)
        if isinstance(row, RowError):
            bad_rows += 1
            errors += [row] if len(errors) < MAX_ERRORS else []
            continue
        rows += 1
        characters += length_of(row)
        preview += [row] if len(preview) < PREVIEW_ROWS else []
        if count_tokens:
            _keep_in_sample(sampled, row, rows, sample, dice)
        whole, prompt_hash = row_hash(row), row.key
        if whole not in seen:
            answers.add(row)
        duplicates += whole in seen
        repeated_prompts += prompt_hash in seen and whole not in seen
        seen |= {whole, prompt_hash}
    if progress:
        progress(rows + bad_rows)
    lengths = tuple(map(int, count_tokens(sampled))) if count_tokens and sampled else ()
    described = (duplicates, repeated_prompts, tuple(preview), lengths, characters, answers.held_out())
    return DatasetReport(found, rows, bad_rows, tuple(errors), *described, *_fingerprint(source))


def load(
    source: Source, mapping: Mapping[str, str] | None = None, skip_bad: bool = False, max_rows: int | None = None
) -> list[Example]:
    """All good rows without exact duplicates; reading stops after `max_rows` of them."""
    if max_rows is not None and max_rows < 1:
        raise ConfigError(f"max_rows must be at least 1, not {max_rows}. Leave it empty for all rows.")
    found = sniff(source, mapping)
    good: dict[bytes, Example] = {}
    bad: list[RowError] = []
    for row in _examples(source, found):
        if isinstance(row, RowError):
            bad.append(row)
        else:
            good.setdefault(row_hash(row), row)
        if len(good) == max_rows:
            break
    if bad and not (skip_bad and good):
        unit = "line" if found.kind in ("jsonl", "csv") else "row"
        way_out = "Fix them, or choose 'use the good rows only'." if good else "No row can be used; fix the file."
        raise DataError(
            f"{len(bad)} bad row{'s' if len(bad) > 1 else ''} in {source_name(source)}, the first in {unit} {bad[0].line}: "
            f"{bad[0].reason}. {way_out}",
            [(error.line, error.reason) for error in bad[:MAX_ERRORS]],
        )
    return list(good.values())


def pairs(source: Source) -> list[dict[str, str]]:
    """The rows as {"input": prompt, "output": answer}. Raises DataError as `load` does."""
    return [{"input": row.prompt, "output": row.answer} for row in load(source)]


def split(
    examples: Sequence[Example], validation_fraction: float | None = 0.1, seed: int = 0, max_validation: int = 200
) -> tuple[list[Example], list[Example]]:
    """Training and validation rows, in file order; rows with one prompt stay together, whatever the
    file order.

    Validation is empty where it has to be: fraction 0, one prompt only, or every prompt repeated more than
    `max_validation` times. None takes the fraction that `held_out_share` chooses.
    """
    if validation_fraction is None:
        validation_fraction = held_out_share(examples).share
    if not 0 <= validation_fraction <= 0.5:  # written so that NaN is refused too
        raise ConfigError(f"validation_fraction must be between 0 and 0.5, not {validation_fraction}.")
    keys = [example.key for example in examples]
    held_out = _held_out(keys, validation_fraction, seed, max_validation)
    training = [example for example, key in zip(examples, keys, strict=True) if key not in held_out]
    validation = [example for example, key in zip(examples, keys, strict=True) if key in held_out]
    return training, validation


def write_jsonl(path: str | os.PathLike[str], examples: Iterable[Example]) -> None:
    """Write {"input", "output"} lines if every row is a single turn, else {"messages"} lines; all
    or nothing."""
    rows = list(examples)
    lines: Iterable[object]
    if all([message["role"] for message in row.context] == ["user"] for row in rows):
        lines = ({"input": row.prompt, "output": row.answer} for row in rows)
    else:
        lines = ({"messages": [*row.context, new_message("assistant", row.answer)]} for row in rows)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _examples(source: Source, found: Format) -> Iterator[Example | RowError]:
    for row in raw_rows(source, found):
        if isinstance(row, RowError):
            yield row
            continue
        try:
            yield example_of({column_name(column): value for column, value in row[1].items()}, found.mapping)
        except BadRow as error:
            yield RowError(row[0], str(error))


def _keep_in_sample(sampled: list[Example], row: Example, seen: int, size: int, dice: random.Random) -> None:
    """Reservoir sampling: after any number of rows, each has had the same chance."""
    if len(sampled) < size:
        sampled.append(row)
    elif (slot := dice.randrange(seen)) < size:
        sampled[slot] = row


def _fingerprint(source: Source) -> tuple[str, int]:
    """SHA-256 and length of the file's bytes, or of the rows as canonical JSON lines."""
    if isinstance(source, (str, os.PathLike)):
        return sha256_of(Path(source)), os.stat(source).st_size
    digest, size = hashlib.sha256(), 0
    for row in source:
        try:
            line = json.dumps(row, sort_keys=True, separators=(",", ":"), default=plain_value).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise DataError(f"A row cannot be written as JSON: {error}. Use plain text and numbers.") from None
        digest.update(line)
        size += len(line)
    return digest.hexdigest(), size


def _held_out(keys: Sequence[bytes], fraction: float, seed: int, most: int) -> set[bytes]:
    """The prompts of the validation side: in the order of a seeded hash, as many as fit."""
    sizes = Counter(keys)
    if fraction == 0 or most < 1 or len(sizes) < 2:
        return set()
    order = sorted(sizes, key=lambda key: short_hash(f"{seed} {key.hex()}"))
    room = min(most, round(fraction * len(keys)))
    held_out = set()
    for key in order:
        if sizes[key] <= room:
            held_out.add(key)
            room -= sizes[key]
    if not held_out:  # every prompt has more rows than the share: hold out the smallest, if it is allowed
        held_out = {key for key in [min(order, key=sizes.__getitem__)] if sizes[key] <= most}
    return held_out
