"""Raw rows out of files: JSONL, a JSON list, CSV and Parquet, one at a time and never trusting a byte.

What a row means is not known here: a row is its number and its cells by column, or a `RowError`
that says what is wrong.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeAlias, cast

from ..errors import DataError

MAX_ROW_CHARS = 1_000_000
MAX_DEPTH = 100  # lists and objects inside each other in a JSON list
SKIP_SIZE = 1 << 16  # characters of an over-long line that are skipped at a time


@dataclass(frozen=True, slots=True)
class RowError:
    """One row that cannot be used; `line` is a file line for JSONL and CSV, a row number otherwise,
    from 1."""

    line: int
    reason: str


RawRow: TypeAlias = tuple[int, Mapping[str, Any]] | RowError


class BadRow(Exception):
    """Why the row at hand is unusable; becomes a RowError where its line is known."""


def listed_rows(source: object) -> Iterator[RawRow]:
    for number, row in enumerate(cast(Iterable[object], source), start=1):
        yield _object_row(number, row)


def _object_row(number: int, row: object) -> RawRow:
    if isinstance(row, Mapping):
        return number, row
    return RowError(number, f"the row is {kind_of(row)}, not an object with columns")


def jsonl_rows(path: Path, encoding: str) -> Iterator[RawRow]:
    for number, text, problem in _lines(path, encoding):
        try:
            if problem:
                yield RowError(number, problem)
            elif text.strip():
                yield _object_row(number, json.loads(text))
        except json.JSONDecodeError as error:
            yield RowError(number, f"not valid JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists 10,000 deep
            yield RowError(number, f"not readable JSON: {error}")


def json_rows(path: Path, encoding: str) -> Iterator[RawRow]:
    import ijson  # type: ignore[import-untyped, unused-ignore]

    number = 0
    # Bytes that are no UTF-8 go on as they are, so that ijson stops at their row and not at an earlier one.
    with path.open(encoding=encoding, errors="strict" if encoding == "utf-16" else "surrogateescape") as file:
        try:
            for number, row in enumerate(_json_items(_Utf8Bytes(file)), start=1):
                yield _object_row(number, row)
        except (ijson.JSONError, ValueError, OverflowError) as error:
            # A broken list has no next row to go on with. The first line of the message says what;
            # the others draw.
            named = (f"line {line}: {problem}" for line, _, problem in _lines(path, encoding) if "byte 0x" in problem)
            reason = next(named, None) or str(error).partition("\n")[0]
            yield RowError(number + 1, f"the JSON list breaks here ({reason}); nothing after it can be read")


def _json_items(file: _Utf8Bytes) -> Iterator[Any]:
    """The values in a JSON list. (Not `ijson.items`: it writes out the path to every value, which
    for 100 kB of opening brackets takes more memory than there is.)

    Raises:
        ijson.JSONError, ValueError: broken, or nested too deeply.
    """
    import ijson

    depth, builder = 0, None
    for event, value in ijson.basic_parse(file, use_float=True):
        starts, ends = event in ("start_array", "start_map"), event in ("end_array", "end_map")
        depth += starts - ends
        if depth > MAX_DEPTH:
            raise ValueError(f"lists or objects more than {MAX_DEPTH} deep")
        if builder is None and (depth == 0 or (depth == 1 and starts)):
            continue  # the list itself
        builder = builder or ijson.ObjectBuilder()
        builder.event(event, value)
        if depth == 1:
            yield builder.value
            builder = None


def csv_rows(path: Path, encoding: str, delimiter: str) -> Iterator[RawRow]:
    lines = _CsvLines(path, encoding)
    header = next(_csv_records(lines, delimiter))
    if isinstance(header, RowError):
        yield header
        return
    columns = header[1]
    # "a, b" in the header means that the space belongs to the delimiter in this file.
    padded = any(column.startswith(" ") for column in columns[1:])
    for record in _csv_records(lines, delimiter, padded):
        if isinstance(record, RowError):
            yield record
        elif any(record[1][len(columns) :]):
            many = f"{len(record[1])} fields under {len(columns)} columns"
            yield RowError(record[0], f"{many}: quote the text that holds {delimiter!r}")
        else:
            yield record[0], dict(zip(columns, record[1], strict=False))


def _csv_records(lines: _CsvLines, delimiter: str, padded: bool = False) -> Iterator[tuple[int, list[str]] | RowError]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_CHARS))
    # Strict, or a quote left open at the end would silently swallow the rows after it into one answer.
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=padded)
    while True:
        lines.begin_record()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except BadRow as error:
            yield RowError(lines.first_line, str(error))
        except csv.Error as error:
            yield RowError(lines.first_line, f"broken quotes or line ends: {error}")
        else:
            if lines.problem:
                yield RowError(lines.first_line, lines.problem)
            elif len(fields) > 1 or "".join(fields).strip():
                yield lines.first_line, fields


class _CsvLines:
    """Feeds the csv module line by line, and knows where the current record began and what is wrong in it.

    A line with bad bytes is fed all the same: without it, the rest of its record would pass for a
    row of its own.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self._lines = _lines(path, encoding)
        self.begin_record()

    def begin_record(self) -> None:
        self.first_line = self._characters = 0
        self.problem = ""

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        number, text, problem = next(self._lines)
        self.first_line = self.first_line or number
        self._characters += len(text)
        if self._characters > MAX_ROW_CHARS:
            raise BadRow(f"the row is longer than {MAX_ROW_CHARS:,} characters; is a quote left open?")
        if problem and not self.problem:
            self.problem = problem if number == self.first_line else f"line {number}: {problem}"
        return text


def parquet_columns(path: Path) -> tuple[str, ...]:
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

    try:
        return tuple(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is a damaged Parquet file ({_one_line(error)}). Export it again.") from None


def parquet_rows(path: Path, columns: list[str]) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for index in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(number, batch.slice(index, 1))
    except (pa.ArrowException, OSError) as error:
        yield RowError(number + 1, f"the Parquet file breaks here ({_one_line(error)}); nothing after it can be read")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _parquet_row(number: int, batch: Any) -> RawRow:
    try:
        return number, batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return RowError(number, f"byte 0x{error.object[error.start]:02x} in a text is not valid UTF-8")


class _Utf8Bytes:
    """A text file as the UTF-8 bytes ijson wants; what was no text stays invalid."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(size).encode("utf-8", "surrogatepass")


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str, str]]:
    """(number, text, problem or ""); a line too long to hold is cut, and its rest skipped piece by piece."""
    errors = "replace" if encoding == "utf-16" else "surrogateescape"  # for `_problem` to find
    with path.open(encoding=encoding, errors=errors, newline="\n") as file:
        number = 0
        while text := file.readline(MAX_ROW_CHARS + 2):
            number += 1
            yield number, text, _problem(text, encoding)
            while not text.endswith("\n") and (text := file.readline(SKIP_SIZE)):
                pass


def _problem(text: str, encoding: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # surrogateescape has turned byte 0xff into U+DCFF
        position = len(text[: error.start].encode()) + 1
        return f"byte 0x{ord(text[error.start]) - 0xDC00:02x} at position {position} is not valid UTF-8"
    if encoding == "utf-16" and "\ufffd" in text:
        return "the line holds bytes that are not valid UTF-16"
    if len(text) > MAX_ROW_CHARS:
        return f"the row is longer than {MAX_ROW_CHARS:,} characters"
    return "the line holds NUL bytes: it is not text" if "\0" in text else ""


def kind_of(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return "a number" if type(value) in (int, float) else kinds.get(type(value), f"a {type(value).__name__}")
