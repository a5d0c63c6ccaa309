"""What kind of file this is, and which of its columns are prompt and answer."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..errors import ConfigError, DataError
from .rows import RawRow, RowError, csv_rows, json_rows, jsonl_rows, listed_rows, parquet_columns, parquet_rows

Source: TypeAlias = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
Kind = Literal["jsonl", "json", "csv", "parquet", "rows"]
PEEK_ROWS = 100  # rows looked at to learn the columns
HEAD_SIZE = 1 << 16  # bytes looked at to learn the format
DELIMITERS = ",;\t|"
_BINARY = {b"PK\x03\x04": "a ZIP or Excel file", b"\x89PNG": "a PNG image", b"\x1f\x8b": "gzip", b"%PDF": "a PDF"}
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# Role of a column -> the names it goes by; the first layout whose columns are all there wins. Only
# "input" beside an
# "instruction" may be absent ("context" is what Dolly calls it).
LAYOUTS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"messages": ("messages", "conversations")},
    {"instruction": ("instruction",), "input": ("input", "context"), "answer": ("output", "response")},
    {"prompt": ("input",), "answer": ("output",)},
    {"prompt": ("prompt",), "answer": ("completion", "response")},
    {"prompt": ("question",), "answer": ("answer",)},
)
PROMPT_LAYOUTS: tuple[dict[str, str], ...] = (  # role -> column, of files to be asked only
    {"instruction": "instruction", "input": "input"},
    {"prompt": "input"},
    {"prompt": "prompt"},
    {"prompt": "question"},
    {"prompt": "text"},
)


@dataclass(frozen=True)
class Format:
    """What `sniff` found; `mapping` is role -> column as the file spells it."""

    kind: Kind
    columns: tuple[str, ...]
    schema: str
    mapping: Mapping[str, str]
    delimiter: str = ","
    encoding: str = "utf-8"


def checked_mapping(mapping: Mapping[str, str] | None) -> dict[str, str] | None:
    chosen = {role: column for role, column in (mapping or {}).items() if column}  # a form sends "" for no column
    known = {"prompt", "answer"} <= chosen.keys() <= {"prompt", "answer", "system"}
    if chosen and not (known and len(set(map(column_name, chosen.values()))) == len(chosen)):
        raise ConfigError(f"A mapping names different columns for prompt, answer and, if any, system; not {chosen}.")
    return chosen or None


def checked_path(source: Source) -> Path | None:
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


def source_name(source: Source) -> str:
    return Path(source).name if isinstance(source, (str, os.PathLike)) else "The list of rows"


def sniff_rows(source: Source, mapping: dict[str, str] | None) -> Format:
    names = getattr(source, "column_names", None)
    if isinstance(names, Mapping):
        raise DataError(f"This dictionary of datasets has {', '.join(names)}. Pass one of them, such as ds['train'].")
    if names is None and (not isinstance(source, Sequence) or isinstance(source, (bytes, bytearray))):
        raise DataError(f"A {type(source).__name__} is no training data. Pass a path or a list of dictionaries.")
    return _format("rows", names or _peek_columns(listed_rows(source), source_name(source)), mapping, source_name(source))


def sniff_file(path: Path, mapping: dict[str, str] | None) -> Format:
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
        # Before giving up on an unknown header: an unreadable first line above JSON lines is one
        # bad row of JSONL.
        if known or not any(_is_json(line) for line in start.splitlines() if line.startswith("{")):
            mark, header = max((known or headers).items(), key=lambda item: len(item[1]))
            return _format("csv", header, mapping, path.name, encoding, mark)
    rows = json_rows(path, encoding) if kind == "json" else jsonl_rows(path, encoding)
    return _format(kind or "jsonl", _peek_columns(rows, path.name), mapping, path.name, encoding)


def sniff_asked(path: Path) -> Format:
    """`sniff`, for which a column of prompts is enough."""
    try:
        return sniff(path)
    except DataError:
        for mapping in PROMPT_LAYOUTS:
            with suppress(DataError):
                return sniff_file(path, mapping)
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
    names = [column_name(column) for column in columns]
    shown = ", ".join(repr(column[:40]) for column in columns[:12]) + (", ..." if len(columns) > 12 else "")
    roles = _roles_of(columns, mapping)
    if roles is None and mapping:
        missing = next(column for column in mapping.values() if column_name(column) not in names)
        raise DataError(f"{name} has no column {missing!r}; it has {shown}. Choose prompt and answer from these.")
    if roles is None:
        way_out = "Rename them to 'input' and 'output', or choose the prompt and answer columns (mapping)."
        raise DataError(f"{name} has the columns {shown}, which is no known layout. {way_out}", columns=columns)
    twice = [column for column in roles.values() if names.count(column_name(column)) > 1]
    if twice and kind in ("csv", "parquet"):
        raise DataError(f"{name} has the column {twice[0]!r} twice. Rename or remove one of them.")
    return Format(kind, columns, _schema_text(roles, bool(mapping)), roles, delimiter, encoding)


def _roles_of(columns: tuple[str, ...], mapping: dict[str, str] | None) -> dict[str, str] | None:
    """Role -> column as the file spells it, or None for an unknown layout."""
    spelled = {column_name(column): column for column in columns}
    layouts = [{role: (column_name(column),) for role, column in mapping.items()}] if mapping else LAYOUTS
    for layout in layouts:
        found = {role: [spelled[name] for name in names if name in spelled] for role, names in layout.items()}
        if all(found[role] or role == "input" for role in layout):
            return {role: present[0] for role, present in found.items() if present}
    return None


def _schema_text(roles: Mapping[str, str], mapped: bool) -> str:
    if mapped:
        return "mapped: " + ", ".join(f"{column} -> {role}" for role, column in roles.items())
    asked = " + ".join(column_name(column) for role, column in roles.items() if role != "answer")
    return f"{asked} / {column_name(roles['answer'])}" if "answer" in roles else asked


def column_name(column: object) -> str:
    return str(column).strip().casefold()

MAX_ERRORS = 20


def sniff(source: Source, mapping: Mapping[str, str] | None = None) -> Format:
    """Recognise the format by content; `mapping` names the columns: {"prompt": ..., "answer": ...,
    "system": ...}."""
    mapping = checked_mapping(mapping)
    path = checked_path(source)
    found = sniff_file(path, mapping) if path else sniff_rows(source, mapping)
    if next(raw_rows(source, found), None) is None:
        raise DataError(f"{source_name(source)} has no rows, only a header. Add at least one row.")
    return found


def raw_rows(source: Source, found: Format) -> Iterator[RawRow]:
    if not isinstance(source, (str, os.PathLike)):
        return listed_rows(source)
    path = Path(source)
    if found.kind == "csv":
        return csv_rows(path, found.encoding, found.delimiter)
    if found.kind == "parquet":
        return parquet_rows(path, list(found.mapping.values()))
    return json_rows(path, found.encoding) if found.kind == "json" else jsonl_rows(path, found.encoding)
