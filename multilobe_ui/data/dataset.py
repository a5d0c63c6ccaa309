"""Training data: read, recognise, validate, describe and split it.

A source is a file (JSONL, a JSON list, CSV or Parquet, told apart by content, never by extension) or a list of rows.
Whatever it is, it comes out as a stream of `Example` and of `RowError` with the line to look at, one row in memory
at a time. This module knows nothing of tokenizers, prompt templates, models or pages: a token counter is passed in.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import math
import os
import random
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from numbers import Number
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..errors import ConfigError, DataError
from ..files import sha256_of
from .rows import (
    MAX_ROW_CHARS,
    BadRow,
    RawRow,
    RowError,
    csv_rows,
    json_rows,
    jsonl_rows,
    kind_of,
    listed_rows,
    parquet_columns,
    parquet_rows,
)

Message = dict[str, str]
Source: TypeAlias = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
Kind = Literal["jsonl", "json", "csv", "parquet", "rows"]

MAX_ERRORS = 20
PREVIEW_ROWS = 5
PEEK_ROWS = 100  # rows looked at to learn the columns
HEAD_SIZE = 1 << 16  # bytes looked at to learn the format
DELIMITERS = ",;\t|"

HELD_OUT_SHARE = 0.05  # of the rows, where any are held out: enough to draw a curve
MOST_HELD_OUT = 64  # rows; a mean over more is hardly steadier, and every evaluation costs time
FEWEST_TO_SPARE = 100  # rows; a twentieth of fewer is a handful, whose mean loss jumps about and says nothing
# Rows per answer from which short answers are labels. Three wordings of each fact are common in files of facts; BANKING77's
# 300 rows have 3.9 per topic, and a file of two or three classes has hundreds.
LABEL_ROWS = 3.5
LABEL_WORDS = 8  # mean words of a label at most; topics have 4 and sentences that state a fact 13, where we counted
# Mean share of an answer's words that its prompt has, from which the answer is made from the prompt. Summaries: 0.93; worked
# sums of GSM8K, which repeat their numbers: 0.60; definitions and facts: 0.04 to 0.34.
MADE_FROM_PROMPT = 0.75
LONGER_PROMPT = 1.5  # words of such prompts per word of the answer: less is an echo of the question

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_BINARY = {b"PK\x03\x04": "a ZIP or Excel file", b"\x89PNG": "a PNG image", b"\x1f\x8b": "gzip", b"%PDF": "a PDF"}
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
# Role of a column -> the names it goes by; the first layout whose columns are all there wins. Only "input" beside an
# "instruction" may be absent ("context" is what Dolly calls it).
_LAYOUTS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"messages": ("messages", "conversations")},
    {"instruction": ("instruction",), "input": ("input", "context"), "answer": ("output", "response")},
    {"prompt": ("input",), "answer": ("output",)},
    {"prompt": ("prompt",), "answer": ("completion", "response")},
    {"prompt": ("question",), "answer": ("answer",)},
)
_PROMPTS: tuple[dict[str, str], ...] = (  # role -> column, of files to be asked only
    {"instruction": "instruction", "input": "input"},
    {"prompt": "input"},
    {"prompt": "prompt"},
    {"prompt": "question"},
    {"prompt": "text"},
)


@dataclass(frozen=True, slots=True)
class Example:
    """One row to learn from: what was said so far, and the answer the lobe should give."""

    context: tuple[Message, ...]
    answer: str

    @property
    def prompt(self) -> str:
        """What the user said last."""
        return next((turn["content"] for turn in reversed(self.context) if turn["role"] == "user"), "")

    @property
    def key(self) -> bytes:
        """Equal for prompts that differ only in case and white space, on every machine."""
        turns = (f"{message['role']}\x1f{' '.join(message['content'].casefold().split())}" for message in self.context)
        return _short_hash("\x1e".join(turns))


@dataclass(frozen=True)
class Format:
    """What `sniff` found; `mapping` is role -> column as the file spells it."""

    kind: Kind
    columns: tuple[str, ...]
    schema: str
    mapping: Mapping[str, str]
    delimiter: str = ","
    encoding: str = "utf-8"


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


@dataclass(frozen=True)
class HeldOut:
    """How many rows an automatic validation_fraction holds out.

    Attributes:
        rows: of all rows, duplicates left out. share: of them that are held out, 0 to HELD_OUT_SHARE; for `split`.
        reason: what speaks for it, to follow "because".
    """

    rows: int
    share: float
    reason: str

    @property
    def count(self) -> int:
        """Rows held out, as `split` counts them where every prompt is another."""
        return round(self.share * self.rows)

    @property
    def sentence(self) -> str:
        """The decision and its reason, for a person."""
        every = f"All {self.rows:,} rows are" if self.rows != 1 else "The one row is"
        if not self.count:
            return f"{every} trained, because {self.reason}."
        many = f"{self.count:,} of {self.rows:,} rows are"
        return f"{many} held out to draw the validation curve, because {self.reason}."


def held_out_share(examples: Iterable[Example]) -> HeldOut:
    """How many rows can be held out without losing what they teach.

    A fact that is held out is not learned, so facts are all trained. Where answers are labels, or are made from their prompts
    as summaries are, the other rows teach the same, and a twentieth is held out if there are FEWEST_TO_SPARE rows or more.

    Args:
        examples: rows without exact duplicates, as `load` gives them.
    """
    counted = _Answers()
    for example in examples:
        counted.add(example)
    return counted.held_out()


class _Answers:
    """Counts what `held_out_share` goes by, one row at a time; memory holds a short hash for each answer."""

    def __init__(self) -> None:
        self.rows = self.words = self.prompt_words = 0
        self.from_prompt = 0.0
        self.different: set[bytes] = set()

    def add(self, example: Example) -> None:
        answer, prompt = _words(example.answer), _words(example.prompt)
        there = set(prompt)
        self.rows += 1
        self.words += len(answer)
        self.prompt_words += len(prompt)
        self.from_prompt += sum(word in there for word in answer) / max(1, len(answer))
        self.different.add(_short_hash(" ".join(example.answer.casefold().split())))

    def held_out(self) -> HeldOut:
        rows = max(1, self.rows)
        labels = 0 < LABEL_ROWS * len(self.different) <= rows and self.words <= LABEL_WORDS * rows
        longer = self.prompt_words >= LONGER_PROMPT * self.words
        made = longer and self.from_prompt >= MADE_FROM_PROMPT * rows
        if not labels and not made:
            return HeldOut(self.rows, 0.0, f"{self._facts()}: what is held out would not be learned")
        if self.rows < FEWEST_TO_SPARE:
            return HeldOut(self.rows, 0.0, f"a file of fewer than {FEWEST_TO_SPARE} rows has none to spare")
        reason = "answers repeat" if labels else "answers are made from their prompts"
        return HeldOut(self.rows, min(HELD_OUT_SHARE, MOST_HELD_OUT / self.rows), reason)

    def _facts(self) -> str:
        if not self.rows:
            return "there are no rows"
        different = len(self.different) / self.rows
        if different >= 0.9:
            return "nearly every answer is different"
        return "most answers are different" if different > 0.5 else "its answers state facts, each in a few rows"


def sniff(source: Source, mapping: Mapping[str, str] | None = None) -> Format:
    """Recognise the format by content; `mapping` names the columns: {"prompt": ..., "answer": ..., "system": ...}."""
    mapping = _checked_mapping(mapping)
    path = _checked_path(source)
    found = _sniff_file(path, mapping) if path else _sniff_rows(source, mapping)
    if next(_raw_rows(source, found), None) is None:
        raise DataError(f"{_label(source)} has no rows, only a header. Add at least one row.")
    return found


def read(source: Source, mapping: Mapping[str, str] | None = None) -> Iterator[Example | RowError]:
    """Stream the rows. What is wrong with the whole file is raised here, what is wrong with a row is yielded."""
    return _examples(source, sniff(source, mapping))


def read_asked(path: Path, beside: Sequence[str] = ()) -> Iterator[tuple[int, Example, str | None] | RowError]:
    """Stream rows of a file that is asked, not learned: (line, row, text of a further column).

    An answer may be missing, as a cell or as a column; it is "" then. Of the names in `beside`, the first that is a column is the
    further column: its text is "" for null, and None in a file without such a column.
    """
    found = _sniff_asked(path)
    spelled = {_name(column): column for column in found.columns}
    column = next((spelled[name] for name in beside if name in spelled), None)
    if column is not None:  # among the roles, so that Parquet reads it too
        found = replace(found, mapping={**found.mapping, "beside": column})
    for row in _raw_rows(path, found):
        if isinstance(row, RowError):
            yield row
            continue
        cells = {_name(name): value for name, value in row[1].items()}
        try:
            yield row[0], _asked(cells, found.mapping), None if column is None else _optional_cell(cells, column)
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
    answers = _Answers()
    dice = random.Random(0)  # a fixed seed: the same file gives the same report
    for count, row in enumerate(_examples(source, found), start=1):
        if progress and count % 1000 == 0:
            progress(count)
        if isinstance(row, RowError):
            bad_rows += 1
            errors += [row] if len(errors) < MAX_ERRORS else []
            continue
        rows += 1
        characters += _length(row)
        preview += [row] if len(preview) < PREVIEW_ROWS else []
        if count_tokens:
            _keep_in_sample(sampled, row, rows, sample, dice)
        row_hash, prompt_hash = _row_hash(row), row.key
        if row_hash not in seen:
            answers.add(row)
        duplicates += row_hash in seen
        repeated_prompts += prompt_hash in seen and row_hash not in seen
        seen |= {row_hash, prompt_hash}
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
            good.setdefault(_row_hash(row), row)
        if len(good) == max_rows:
            break
    if bad and not (skip_bad and good):
        unit = "line" if found.kind in ("jsonl", "csv") else "row"
        way_out = "Fix them, or choose 'use the good rows only'." if good else "No row can be used; fix the file."
        raise DataError(
            f"{len(bad)} bad row{'s' if len(bad) > 1 else ''} in {_label(source)}, the first in {unit} {bad[0].line}: "
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
    """Training and validation rows, in file order; rows with one prompt stay together, whatever the file order.

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
    """Write {"input", "output"} lines if every row is a single turn, else {"messages"} lines; all or nothing."""
    rows = list(examples)
    lines: Iterable[object]
    if all([message["role"] for message in row.context] == ["user"] for row in rows):
        lines = ({"input": row.prompt, "output": row.answer} for row in rows)
    else:
        lines = ({"messages": [*row.context, _message("assistant", row.answer)]} for row in rows)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _checked_mapping(mapping: Mapping[str, str] | None) -> dict[str, str] | None:
    chosen = {role: column for role, column in (mapping or {}).items() if column}  # a form sends "" for no column
    known = {"prompt", "answer"} <= chosen.keys() <= {"prompt", "answer", "system"}
    if chosen and not (known and len(set(map(_name, chosen.values()))) == len(chosen)):
        raise ConfigError(f"A mapping names different columns for prompt, answer and, if any, system; not {chosen}.")
    return chosen or None


def _checked_path(source: Source) -> Path | None:
    """None for a list of rows."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = Path(source)
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder. Choose one file in it.")
        if not path.is_file():
            raise DataError(f"{path} is not there. Check the path, or upload the file again.")
        path.open("rb").close()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise DataError(f"{str(path)[:200]!r} cannot be opened: {error}. Check the path and its permissions.") from None
    return path


def _label(source: Source) -> str:
    return Path(source).name if isinstance(source, (str, os.PathLike)) else "The list of rows"


def _sniff_rows(source: Source, mapping: dict[str, str] | None) -> Format:
    names = getattr(source, "column_names", None)
    if isinstance(names, Mapping):
        raise DataError(f"This dictionary of datasets has {', '.join(names)}. Pass one of them, such as ds['train'].")
    if names is None and (not isinstance(source, Sequence) or isinstance(source, (bytes, bytearray))):
        raise DataError(f"A {type(source).__name__} is no training data. Pass a path or a list of dictionaries.")
    return _format("rows", names or _peek_columns(listed_rows(source), _label(source)), mapping, _label(source))


def _sniff_file(path: Path, mapping: dict[str, str] | None) -> Format:
    with path.open("rb") as file:
        head = file.read(HEAD_SIZE)
    if head.startswith(b"PAR1"):
        return _format("parquet", parquet_columns(path), mapping, path.name)
    encoding = next((encoding for bom, encoding in _BOMS.items() if head.startswith(bom)), "utf-8")
    start = head.decode(encoding, "replace")
    _refuse_binary(head, start, path.name)
    start = start.lstrip(" \r\n")  # but no tab, which may be the delimiter after a nameless first column
    if not start.strip():
        raise DataError(f"{path.name} is empty. Choose a file with at least one row.")
    kind = _json_kind(start, path.name)
    if kind is None:
        headers = {mark: _header(start, mark) for mark in DELIMITERS}
        known = {mark: header for mark, header in headers.items() if _roles_of(header, mapping)}
        # Before giving up on an unknown header: an unreadable first line above JSON lines is one bad row of JSONL.
        if known or not any(_is_json(line) for line in start.splitlines() if line.startswith("{")):
            mark, header = max((known or headers).items(), key=lambda item: len(item[1]))
            return _format("csv", header, mapping, path.name, encoding, mark)
    rows = json_rows(path, encoding) if kind == "json" else jsonl_rows(path, encoding)
    return _format(kind or "jsonl", _peek_columns(rows, path.name), mapping, path.name, encoding)


def _sniff_asked(path: Path) -> Format:
    """`sniff`, for which a column of prompts is enough."""
    try:
        return sniff(path)
    except DataError:
        for mapping in _PROMPTS:
            with suppress(DataError):
                return _sniff_file(path, mapping)
        raise


def _refuse_binary(head: bytes, start: str, name: str) -> None:
    what = next((what for magic, what in _BINARY.items() if head.startswith(magic)), None)
    if what or "\0" in start:
        raise DataError(f"{name} is {what or 'binary (NUL bytes)'}, not text. Export it as CSV or JSONL, in UTF-8.")


def _json_kind(start: str, name: str) -> Literal["json", "jsonl"] | None:
    first, _, rest = start.lstrip().partition("\n")
    if first.strip() == "{":
        raise DataError(f"{name} is one JSON object over many lines. Make it a list [...], or one object a line.")
    if first.startswith("["):
        # A whole list on the first line with an object below is one bad row of JSONL, not a JSON file.
        return "jsonl" if rest.lstrip().startswith("{") and _is_json(first) else "json"
    return "jsonl" if first.startswith("{") else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _header(start: str, delimiter: str) -> tuple[str, ...]:
    return tuple(column.strip() for column in next(csv.reader(start.splitlines(), delimiter=delimiter)))


def _peek_columns(rows: Iterator[RawRow], name: str) -> tuple[str, ...]:
    """The columns of the first rows together: an optional one may be missing in the very first."""
    columns: dict[str, None] = {}
    errors = []
    for row in islice(rows, PEEK_ROWS):
        if isinstance(row, RowError):
            errors.append((row.line, row.reason))
        else:
            columns.update(dict.fromkeys(map(str, row[1])))
    if not columns and not errors:
        raise DataError(f"{name} has no rows: an empty list or empty objects. Add at least one row.")
    if not columns:
        first = f"the first in line {errors[0][0]}: {errors[0][1]}"
        way_out = "Write one JSON object a line, or a list of objects."
        raise DataError(f"{name} starts with {len(errors)} bad rows, {first}. {way_out}", errors[:MAX_ERRORS])
    return tuple(columns)


def _format(
    kind: Kind,
    columns: Iterable[str],
    mapping: dict[str, str] | None,
    name: str,
    encoding: str = "utf-8",
    delimiter: str = ",",
) -> Format:
    columns = tuple(columns)
    names = [_name(column) for column in columns]
    shown = ", ".join(repr(column[:40]) for column in columns[:12]) + (", ..." if len(columns) > 12 else "")
    roles = _roles_of(columns, mapping)
    if roles is None and mapping:
        missing = next(column for column in mapping.values() if _name(column) not in names)
        raise DataError(f"{name} has no column {missing!r}; it has {shown}. Choose prompt and answer from these.")
    if roles is None:
        way_out = "Rename them to 'input' and 'output', or choose the prompt and answer columns (mapping)."
        raise DataError(f"{name} has the columns {shown}, which is no known layout. {way_out}")
    twice = [column for column in roles.values() if names.count(_name(column)) > 1]
    if twice and kind in ("csv", "parquet"):
        raise DataError(f"{name} has the column {twice[0]!r} twice. Rename or remove one of them.")
    return Format(kind, columns, _schema_text(roles, bool(mapping)), roles, delimiter, encoding)


def _roles_of(columns: tuple[str, ...], mapping: dict[str, str] | None) -> dict[str, str] | None:
    """Role -> column as the file spells it, or None for an unknown layout."""
    spelled = {_name(column): column for column in columns}
    layouts = [{role: (_name(column),) for role, column in mapping.items()}] if mapping else _LAYOUTS
    for layout in layouts:
        found = {role: [spelled[name] for name in names if name in spelled] for role, names in layout.items()}
        if all(found[role] or role == "input" for role in layout):
            return {role: present[0] for role, present in found.items() if present}
    return None


def _schema_text(roles: Mapping[str, str], mapped: bool) -> str:
    if mapped:
        return "mapped: " + ", ".join(f"{column} -> {role}" for role, column in roles.items())
    asked = " + ".join(_name(column) for role, column in roles.items() if role != "answer")
    return f"{asked} / {_name(roles['answer'])}" if "answer" in roles else asked


def _name(column: object) -> str:
    return str(column).strip().casefold()


def _raw_rows(source: Source, found: Format) -> Iterator[RawRow]:
    if not isinstance(source, (str, os.PathLike)):
        return listed_rows(source)
    path = Path(source)
    if found.kind == "csv":
        return csv_rows(path, found.encoding, found.delimiter)
    if found.kind == "parquet":
        return parquet_rows(path, list(found.mapping.values()))
    return json_rows(path, found.encoding) if found.kind == "json" else jsonl_rows(path, found.encoding)


def _examples(source: Source, found: Format) -> Iterator[Example | RowError]:
    for row in _raw_rows(source, found):
        if isinstance(row, RowError):
            yield row
            continue
        try:
            yield _example({_name(column): value for column, value in row[1].items()}, found.mapping)
        except BadRow as error:
            yield RowError(row[0], str(error))


def _example(cells: Mapping[str, Any], roles: Mapping[str, str]) -> Example:
    if "messages" in roles:
        example = _chat_example(cells.get(_name(roles["messages"])), roles["messages"])
    elif "instruction" in roles:
        # Rows past those that were sniffed may bring the first input.
        parts = _cell(cells, roles["instruction"]), _optional_cell(cells, roles.get("input", "input"))
        example = Example((_message("user", "\n\n".join(filter(None, parts))),), _cell(cells, roles["answer"]))
    else:
        system = _optional_cell(cells, roles["system"]) if "system" in roles else ""
        context = [_message("system", system)] if system else []
        prompt = _message("user", _cell(cells, roles["prompt"]))
        example = Example((*context, prompt), _cell(cells, roles["answer"]))
    if _length(example) > MAX_ROW_CHARS:
        raise BadRow(f"the row is longer than {MAX_ROW_CHARS:,} characters")
    return example


def _asked(cells: Mapping[str, Any], roles: Mapping[str, str]) -> Example:
    """`_example`, which needs an answer, of a row that may have none."""
    answer = roles.get("answer")
    if "messages" in roles or (answer is not None and _optional_cell(cells, answer)):
        return _example(cells, roles)
    answer = answer or "\0 no answer"  # the name of no column
    return replace(_example({**cells, _name(answer): "none"}, {**roles, "answer": answer}), answer="")


def _chat_example(turns: object, column: str) -> Example:
    turns = turns.tolist() if hasattr(turns, "tolist") else turns
    if not isinstance(turns, (list, tuple)):
        raise BadRow(f"column {column!r} must be a list of messages, not {kind_of(turns)}")
    messages = [message for number, turn in enumerate(turns, 1) if (message := _chat_message(number, turn))]
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow(f"column {column!r} must end with the assistant's message, since it is the answer to learn")
    if all(message["role"] != "user" for message in messages):
        raise BadRow(f"column {column!r} has no user message before the answer")
    return Example(tuple(messages[:-1]), messages[-1]["content"])


def _chat_message(number: int, turn: object) -> Message | None:
    """None for an empty system prompt, which many files carry as a placeholder."""
    if not isinstance(turn, Mapping):
        raise BadRow(f"message {number} is {kind_of(turn)}, not an object with role and content")
    said = turn.get("role") or turn.get("from")  # ShareGPT says from and value
    role = _ROLES.get(_name(said))
    if role is None:
        raise BadRow(f"message {number} has the role {said!r}; only system, user and assistant can be learned")
    content = _text(turn["content"] if "content" in turn else turn.get("value"), f"message {number} ({role})")
    if not content and role != "system":
        raise BadRow(f"message {number} ({role}) is empty")
    return _message(role, content) if content else None


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _cell(cells: Mapping[str, Any], column: str) -> str:
    text = _optional_cell(cells, column)
    if not text:
        raise BadRow(f"column {column!r} is {'empty' if _name(column) in cells else 'missing'}")
    return text


def _optional_cell(cells: Mapping[str, Any], column: str) -> str:
    return _text(cells.get(_name(column)), f"column {column!r}")


def _text(value: object, where: str) -> str:
    """The value as text, unchanged but for its type; "" for null, NaN and white space."""
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy's own numbers and arrays
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, (str, Number)):
        raise BadRow(f"{where} holds {kind_of(value)}, not text")
    try:
        text = str(value)
        text.encode()
    except ValueError as error:  # half of a surrogate pair, or a number of 5,000 digits
        raise BadRow(f"{where} cannot be stored as text: {error}") from None
    return text if text.strip() else ""


def _length(example: Example) -> int:
    return sum(len(message["content"]) for message in example.context) + len(example.answer)


def _words(text: str) -> list[str]:
    """Runs of letters and digits in lower case; of scripts without spaces, every character is one."""
    return _WORD.findall(text.casefold())


def _short_hash(text: str) -> bytes:
    # surrogatepass: a hash must exist for every string, also one that `read` would have refused
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _row_hash(example: Example) -> bytes:
    """Equal only for rows that are equal letter by letter."""
    turns = [[message["role"], message["content"]] for message in example.context]
    return _short_hash(json.dumps([turns, example.answer]))


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
            line = json.dumps(row, sort_keys=True, separators=(",", ":"), default=_plain).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise DataError(f"A row cannot be written as JSON: {error}. Use plain text and numbers.") from None
        digest.update(line)
        size += len(line)
    return digest.hexdigest(), size


def _plain(value: Any) -> object:
    """For JSON: numpy values as Python's, foreign mappings as dicts, dates and the like as text."""
    if isinstance(value, Mapping):
        return dict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _held_out(keys: Sequence[bytes], fraction: float, seed: int, most: int) -> set[bytes]:
    """The prompts of the validation side: in the order of a seeded hash, as many as fit."""
    sizes = Counter(keys)
    if fraction == 0 or most < 1 or len(sizes) < 2:
        return set()
    order = sorted(sizes, key=lambda key: _short_hash(f"{seed} {key.hex()}"))
    room = min(most, round(fraction * len(keys)))
    held_out = set()
    for key in order:
        if sizes[key] <= room:
            held_out.add(key)
            room -= sizes[key]
    if not held_out:  # every prompt has more rows than the share: hold out the smallest, if it is allowed
        held_out = {key for key in [min(order, key=sizes.__getitem__)] if sizes[key] <= most}
    return held_out
