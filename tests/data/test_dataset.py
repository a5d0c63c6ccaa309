"""Tests of `multilobe_ui.data.dataset`: files are written by json, csv and pandas, never by the code under test."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from multilobe_ui.assets import sample_files
from multilobe_ui.data import examples, formats
from multilobe_ui.data import rows as records
from multilobe_ui.data.dataset import DatasetReport, RowError, inspect, load, read, split, write_jsonl
from multilobe_ui.data.examples import Example
from multilobe_ui.data.formats import sniff
from multilobe_ui.data.held_out import FEWEST_TO_SPARE, MOST_HELD_OUT, held_out_share
from multilobe_ui.errors import ConfigError, DataError

PAIRS = [
    ("What is 2 + 2?", "4 is the answer"),
    ("Grüße, wie geht's?", 'He said "fine", then left'),
    ("two\nlines", "a;b\tc|d,e"),
    (" leading and trailing ", "emoji 🦙 and \u2028 separators \x85"),
    ("crlf\r\ninside", "日本語のテキスト"),
    ("[not json", "{neither}"),
]


def pair(prompt: str, answer: str) -> Example:
    return Example(({"role": "user", "content": prompt},), answer)


def jsonl_text(pairs: Sequence[tuple[str, str]], ascii_only: bool = False, end: str = "\n") -> str:
    return "".join(json.dumps({"input": a, "output": b}, ensure_ascii=ascii_only) + end for a, b in pairs)


def frame(pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["input", "output"])


def csv_text(pairs: Sequence[tuple[str, str]], sep: str = ",") -> str:
    return str(frame(pairs).to_csv(index=False, sep=sep, quoting=csv.QUOTE_ALL))


def parquet_bytes(pairs: Sequence[tuple[str, str]]) -> bytes:
    buffer = io.BytesIO()
    frame(pairs).to_parquet(buffer, row_group_size=2)
    return buffer.getvalue()


def array_text(pairs: Sequence[tuple[str, str]], indent: int | None = None) -> str:
    return json.dumps([{"input": a, "output": b} for a, b in pairs], ensure_ascii=False, indent=indent)


def write(folder: Path, content: bytes | str, name: str = "data.bin") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def errors_of(source: Any, mapping: dict[str, str] | None = None) -> list[RowError]:
    return [row for row in read(source, mapping) if isinstance(row, RowError)]


Writer = Callable[[Sequence[tuple[str, str]]], bytes]
WRITERS: dict[str, tuple[str, Writer]] = {
    "jsonl": ("jsonl", lambda pairs: jsonl_text(pairs).encode()),
    "jsonl escaped": ("jsonl", lambda pairs: jsonl_text(pairs, ascii_only=True).encode()),
    "jsonl with BOM": ("jsonl", lambda pairs: jsonl_text(pairs).encode("utf-8-sig")),
    "jsonl UTF-16": ("jsonl", lambda pairs: jsonl_text(pairs).encode("utf-16")),
    "jsonl UTF-16 BE": ("jsonl", lambda pairs: b"\xfe\xff" + jsonl_text(pairs).encode("utf-16-be")),
    "jsonl CRLF": ("jsonl", lambda pairs: jsonl_text(pairs, end="\r\n").encode()),
    "jsonl empty lines": ("jsonl", lambda pairs: ("\n  \n" + jsonl_text(pairs, end="\n\n \n")).encode()),
    "jsonl no last newline": ("jsonl", lambda pairs: jsonl_text(pairs).rstrip("\n").encode()),
    "jsonl by pandas": ("jsonl", lambda pairs: str(frame(pairs).to_json(orient="records", lines=True)).encode()),
    "json": ("json", lambda pairs: array_text(pairs).encode()),
    "json indented": ("json", lambda pairs: ("\r\n" + array_text(pairs, indent=2)).encode()),
    "json BOM": ("json", lambda pairs: array_text(pairs).encode("utf-8-sig")),
    "json UTF-16": ("json", lambda pairs: array_text(pairs).encode("utf-16")),
    "csv ,": ("csv", lambda pairs: csv_text(pairs).encode()),
    "csv ;": ("csv", lambda pairs: csv_text(pairs, ";").encode()),
    "csv tab": ("csv", lambda pairs: csv_text(pairs, "\t").encode()),
    "csv |": ("csv", lambda pairs: csv_text(pairs, "|").encode()),
    "csv BOM": ("csv", lambda pairs: csv_text(pairs, ";").encode("utf-8-sig")),
    "csv UTF-16": ("csv", lambda pairs: csv_text(pairs, "\t").encode("utf-16")),
    "csv minimal quotes": ("csv", lambda pairs: str(frame(pairs).to_csv(index=False)).encode()),
    "csv with index": ("csv", lambda pairs: str(frame(pairs).to_csv(sep="\t")).encode()),
    "parquet": ("parquet", parquet_bytes),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_examples(name: str, tmp_path: Path) -> None:
    kind, writer = WRITERS[name]
    path = write(tmp_path, writer(PAIRS), "misleading.xyz")
    assert list(read(path)) == [pair(a, b) for a, b in PAIRS]
    assert sniff(str(path)).kind == kind
    assert sniff(path).schema == "input / output"
    assert sniff(path).mapping == {"prompt": "input", "answer": "output"}


def test_random_texts_survive_every_format(tmp_path: Path) -> None:
    dice = random.Random(7)
    alphabet = "ab \n\r\t,;|\"'\\{}[]:é\u2028\ufeff漢🦙0#"

    def text() -> str:
        return "".join(dice.choices(alphabet, k=dice.randrange(1, 30))) + "."

    pairs = [(text(), text()) for _ in range(300)]
    expected = [pair(a, b) for a, b in pairs]
    for name, (_, writer) in WRITERS.items():
        if name not in ("csv minimal quotes", "csv with index"):  # pandas leaves a lone \r unquoted there
            assert list(read(write(tmp_path, writer(pairs)))) == expected, name


class FakeDataset:
    """Looks like datasets.Dataset: column names and an iterator, no Sequence."""

    column_names = ("input", "output")

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter([{"input": a, "output": b} for a, b in PAIRS])


@pytest.mark.parametrize(
    "source", [list(FakeDataset()), tuple(FakeDataset()), FakeDataset()], ids=["list", "tuple", "datasets.Dataset"]
)
def test_rows_in_memory(source: Any) -> None:
    assert load(source) == [pair(a, b) for a, b in PAIRS]
    assert sniff(source).kind == "rows"


def test_rows_by_pandas_hold_numpy_values() -> None:
    rows = pd.DataFrame({"input": [1, 2], "output": [1.5, float("nan")]}).to_dict("records")
    assert list(read(rows)) == [pair("1", "1.5"), RowError(2, "column 'output' is empty")]


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


CHAT = chat(("system", "Be kind"), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao"))
SHAREGPT = [
    {"from": "system", "value": "Be kind"},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
    {"from": "human", "value": "Bye"},
    {"from": "gpt", "value": "Ciao"},
]
SCHEMAS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"input": "q", "output": "a"}, "input / output", "q", "a"),
    ({" Input ": "q", "OUTPUT": "a"}, "input / output", "q", "a"),
    ({"prompt": "q", "completion": "a"}, "prompt / completion", "q", "a"),
    ({"prompt": "q", "response": "a"}, "prompt / response", "q", "a"),
    ({"question": "q", "answer": "a", "id": 7}, "question / answer", "q", "a"),
    ({"instruction": "do", "input": "q", "output": "a"}, "instruction + input / output", "do\n\nq", "a"),
    ({"instruction": "do", "input": "", "output": "a"}, "instruction + input / output", "do", "a"),
    ({"instruction": "do", "input": None, "output": "a"}, "instruction + input / output", "do", "a"),
    ({"instruction": "do", "output": "a"}, "instruction / output", "do", "a"),
    ({"instruction": "do", "response": "a"}, "instruction / response", "do", "a"),
    ({"instruction": "do", "context": "q", "response": "a"}, "instruction + context / response", "do\n\nq", "a"),
    ({"messages": CHAT, "prompt": "x", "completion": "y"}, "messages", "Bye", "Ciao"),
    ({"conversations": SHAREGPT}, "conversations", "Bye", "Ciao"),
    ({"conversations": CHAT}, "conversations", "Bye", "Ciao"),
    ({"input": 3, "output": True}, "input / output", "3", "True"),
    ({"input": 1.5, "output": -2}, "input / output", "1.5", "-2"),
]


@pytest.mark.parametrize(("row", "schema", "prompt", "answer"), SCHEMAS)
def test_schemas(row: dict[str, Any], schema: str, prompt: str, answer: str, tmp_path: Path) -> None:
    parquet = tmp_path / "p"
    pd.DataFrame([row]).to_parquet(parquet)
    files = write(tmp_path, json.dumps(row), "a"), write(tmp_path, json.dumps([row]), "b"), parquet
    for source in ([row], *files):
        [example] = load(source)
        assert (sniff(source).schema, example.prompt, example.answer) == (schema, prompt, answer)


def test_messages_keep_every_turn() -> None:
    for row in ({"messages": CHAT}, {"conversations": SHAREGPT}):
        assert load([row]) == [Example(tuple(CHAT[:-1]), "Ciao")]
    placeholder = [{"role": "system", "content": ""}, *chat(("User", "Hi"), ("assistant", "Yo"))]
    assert load([{"messages": placeholder}]) == [pair("Hi", "Yo")]


def test_an_input_that_first_appears_late_is_not_lost(tmp_path: Path) -> None:
    rows = [{"instruction": f"do {n}", "output": "a"} for n in range(150)] + [
        {"instruction": "do", "input": "this", "output": "a"}
    ]
    assert load(write(tmp_path, "\n".join(map(json.dumps, rows))))[-1].prompt == "do\n\nthis"


def test_mapping(tmp_path: Path) -> None:
    path = write(tmp_path, "Frage;Antwort;Rolle;input;output\nWer?;Ich;Sei nett;x;y\nWas?;Das;;x;y\n")
    found = sniff(path, {"prompt": "frage", "answer": "antwort"})
    assert found.schema == "mapped: Frage -> prompt, Antwort -> answer"
    assert found.columns == ("Frage", "Antwort", "Rolle", "input", "output") and found.delimiter == ";"
    with_system = {"prompt": "Frage", "answer": "Antwort", "system": "Rolle"}
    assert load(path, with_system) == [
        Example(tuple(chat(("system", "Sei nett"), ("user", "Wer?"))), "Ich"),
        pair("Was?", "Das"),
    ]
    assert sniff(path, {}).schema == sniff(path, {"prompt": "", "answer": ""}).schema == "input / output"
    with pytest.raises(DataError, match=r"no column 'frag'; it has 'Frage', 'Antwort', .*Choose"):
        sniff(path, {"prompt": "frag", "answer": "Antwort"})


@pytest.mark.parametrize(
    "mapping",
    [{"prompt": "a"}, {"answer": "a"}, {"prompt": "a", "answer": "A"}, {"prompt": "a", "answer": "b", "tool": "c"}],
)
def test_bad_mapping(mapping: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="mapping names different columns for prompt, answer"):
        sniff([{"a": "1", "b": "2"}], mapping)


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.csv", "input,output\n1,2\n")
    return buffer.getvalue()


PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452")
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "data.bin is empty"),
    "only a BOM": (b"\xef\xbb\xbf", "is empty"),
    "only white space": (b" \r\n\t\n", "is empty"),
    "header only": (b"input,output\n", "has no rows, only a header"),
    "header and blank lines": (b"input,output\n\n  \n", "has no rows, only a header"),
    "empty list": (b"[]", "has no rows: an empty list"),
    "empty objects": (b"{}\n{}\n", "has no rows: an empty list or empty objects"),
    "empty parquet": (parquet_bytes([]), "has no rows"),
    "zip": (zip_bytes(), "is a ZIP or Excel file.*Export it as CSV"),
    "png": (PNG, "is a PNG image"),
    "gzip": (gzip.compress(b"input,output\n1,2\n"), "is gzip"),
    "pdf": (b"%PDF-1.7\n1 0 obj", "is a PDF"),
    "NUL bytes": (b"input,output\n\0\0,b\n", "is binary"),
    "UTF-16 without BOM": (jsonl_text(PAIRS).encode("utf-16-le"), "is binary.*in UTF-8"),
    "UTF-32": (jsonl_text(PAIRS).encode("utf-32"), "is binary"),
    "cut parquet": (parquet_bytes(PAIRS)[:-20], "is a damaged Parquet file"),
    "unknown csv columns": (b"frage,antwort\na,b\n", "the columns 'frage', 'antwort', which is no known.*mapping"),
    "unknown json columns": (b'{"q": 1, "a": 2}', "the columns 'q', 'a', which is no known layout"),
    "one column": (b"text\nhello\n", "the columns 'text', which"),
    "half a layout": (b'[{"input": "x"}]', "the columns 'input', which"),
    "prose": (b"Once upon a time, there was\na llama.\n", "the columns 'Once upon a time', 'there was', which"),
    "latin-1 header": ("größe,antwort\n1,2\n".encode("latin-1"), "no known layout"),
    "one object over lines": (json.dumps({"data": [{"input": 1}]}, indent=1).encode(), "one JSON object over many"),
    "wrapped list": (b'{"data": [{"input": "a", "output": "b"}]}', "the columns 'data', which is no known"),
    "list of numbers": (b"[1, 2, 3]", "starts with 3 bad rows, the first in line 1: the row is a number"),
    "100,000 lists deep": (b"[" * 100_000, "the JSON list breaks here .lists or objects more than 100 deep"),
    "broken from the start": (b"[{input: 1}]", "starts with 1 bad rows.*the JSON list breaks here"),
    "no JSON line at all": (b"{'input': 'python', 'output': 'repr'}\n", "not valid JSON: Expecting property name"),
    "same column twice": (b"input,output,Input\n1,2,3\n", "the column 'Input' twice"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("verb", [sniff, read, inspect, load])
def test_bad_files(name: str, verb: Callable[[Path], object], tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    with pytest.raises(DataError, match=message) as caught:
        verb(write(tmp_path, content))
    assert len(str(caught.value)) < 400, "must fit in a toast"


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder. Choose one file"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"nowhere.csv is not there. Check the path"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"cannot be opened|is not there"):
        read("a\0b")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "The list of rows has no rows"),
        ([{"a": 1}], "The list of rows has the columns 'a'"),
        ([1, 2], "the row is a number, not an object"),
        (b"bytes", "A bytes is no training data"),
        (iter([{"input": 1, "output": 2}]), "A list_iterator is no training data"),
        (pd.DataFrame({"input": ["a"], "output": ["b"]}), "A DataFrame is no training data"),
        (type("DatasetDict", (), {"column_names": {"train": []}})(), "Pass one of them, such as ds\\['train'\\]"),
    ],
)
def test_bad_row_lists(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sniff(source)


GOOD = b'{"input": "q", "output": "a"}'
BAD_LINES: list[tuple[bytes, str]] = [
    (b"[1, 2]", "the row is a list, not an object with columns"),
    (b"42", "the row is a number, not an object with columns"),
    (b"null", "the row is null, not an object with columns"),
    (b'"text"', "the row is text, not an object with columns"),
    (b'{"input": "q", "output": ', "not valid JSON: Expecting value at column "),
    (b"{'input': 'q'}", "not valid JSON: Expecting property name"),
    (b'{"input": "q", "output": "a"} x', "not valid JSON: Extra data at column 31"),
    (b'{"input": "q", "output": "a\tb"}', "not valid JSON: Invalid control character"),
    (b'{"input": "q"}', "column 'output' is missing"),
    (b'{"output": "a"}', "column 'input' is missing"),
    (b'{"input": "q", "output": null}', "column 'output' is empty"),
    (b'{"input": "q", "output": " \\n"}', "column 'output' is empty"),
    (b'{"input": "", "output": "a"}', "column 'input' is empty"),
    (b'{"input": "q", "output": NaN}', "column 'output' is empty"),
    (b'{"input": "q", "output": {"a": 1}}', "column 'output' holds an object, not text"),
    (b'{"input": ["q"], "output": "a"}', "column 'input' holds a list, not text"),
    (b'{"input": "q\xff", "output": "a"}', "byte 0xff at position 13 is not valid UTF-8"),
    ('{"input": "grün \xfc"}'.encode()[:-3] + b'"}', "byte 0xc3 at position 18 is not valid UTF-8"),
    (b'{"input": "\\ud800", "output": "a"}', "column 'input' cannot be stored as text"),
    (b'{"input": "q\0", "output": "a"}', "the line holds NUL bytes"),
    (b"[" * 100_000, "not readable JSON"),
    (b'{"input": ' + b"9" * 5000 + b', "output": 1}', "not readable JSON"),
    (b'{"input": "%s", "output": "a"}' % (b"x" * 1_000_000), "longer than 1,000,000 characters"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines_of_jsonl(line: bytes, reason: str, tmp_path: Path) -> None:
    filler = b"".join(b'{"input": "q%d", "output": "%s"}\n' % (n, b"x" * 50) for n in range(2000))  # past the head
    for last in (b"\n", b"\r\n"):
        path = write(tmp_path, filler + b"\n" + line + last + GOOD)
        rows = list(read(path))
        assert len(rows) == 2002 and rows[-1] == pair("q", "a")
        [error] = (row for row in rows if isinstance(row, RowError))
        assert rows[-2] is error and error.line == 2002 and reason in error.reason
    with pytest.raises(DataError, match=r"1 bad row in data.bin, the first in line 2002: .*the good rows only") as e:
        load(path)
    assert e.value.lines == ((2002, error.reason),)
    assert len(load(path, skip_bad=True)) == 2001


@pytest.mark.parametrize("first", [b"[1, 2]", b"42", b"not json", b"{broken", b'"text"', b"\xff\xfa"])
def test_a_bad_first_line_does_not_hide_jsonl(first: bytes, tmp_path: Path) -> None:
    rows = list(read(write(tmp_path, first + b"\n" + GOOD + b"\n")))
    assert isinstance(rows[0], RowError) and rows[0].line == 1
    assert rows[1:] == [pair("q", "a")]


BAD_CHATS: list[tuple[Any, str]] = [
    ([], "must end with the assistant's message"),
    ("hello", "must be a list of messages, not text"),
    (None, "must be a list of messages, not null"),
    (chat(("user", "Hi")), "must end with the assistant's message"),
    (chat(("assistant", "Hi")), "has no user message before the answer"),
    (chat(("system", "Be kind"), ("assistant", "Hi")), "has no user message before the answer"),
    (chat(("user", "Hi"), ("assistant", " ")), "message 2 (assistant) is empty"),
    (chat(("user", ""), ("assistant", "Hi")), "message 1 (user) is empty"),
    (chat(("user", "Hi"), ("tool", "42"), ("assistant", "Hi")), "message 2 has the role 'tool'"),
    (chat(("user", "Hi"), ("function", "42"), ("assistant", "Hi")), "message 2 has the role 'function'"),
    ([{"content": "Hi"}], "message 1 has the role None"),
    ([{"role": "user"}, {"role": "assistant", "content": "x"}], "message 1 (user) is empty"),
    (["Hi", "Hello"], "message 1 is text, not an object with role and content"),
    ([{"role": "user", "content": [{"type": "text"}]}], "message 1 (user) holds a list, not text"),
]


@pytest.mark.parametrize(("turns", "reason"), BAD_CHATS)
def test_bad_chats(turns: Any, reason: str, tmp_path: Path) -> None:
    rows = [{"messages": CHAT}, {"messages": turns}]
    for source in (rows, write(tmp_path, json.dumps(rows)), write(tmp_path, "\n".join(map(json.dumps, rows)), "l")):
        [error] = errors_of(source)
        assert error.line == 2 and reason in error.reason


BAD_CSV: list[tuple[bytes, list[tuple[int, str]], int]] = [
    (b"a,\n", [(3, "column 'output' is empty")], 2),
    (b",\n", [(3, "column 'input' is empty")], 2),
    (b"a\n", [(3, "column 'output' is missing")], 2),
    (b"a,b,c\n", [(3, "3 fields under 2 columns: quote the text that holds ','")], 2),
    (b"a,b,,\n", [], 3),
    (b'a,"b\n', [(3, "broken quotes or line ends: ")], 1),
    (b'a,"b"c\n', [(3, "broken quotes or line ends: ")], 2),
    (b"a,b\xe4\n", [(3, "byte 0xe4 at position 4 is not valid UTF-8")], 2),
    (b'a,"b\n\xe4\nc, d"\n', [(3, "line 4: byte 0xe4 at position 1 is")], 2),
    (b"a\0,b\n", [(3, "the line holds NUL bytes")], 2),
    (b'"a\n\nb",\n', [(3, "column 'output' is empty")], 2),
]


@pytest.mark.parametrize(("line", "expected", "good"), BAD_CSV)
def test_bad_rows_of_csv(
    line: bytes, expected: list[tuple[int, str]], good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "HEAD_SIZE", 16)  # past the head, or NUL bytes make the file binary
    rows = list(read(write(tmp_path, b"input,output\nq,first\n" + line + b"q,last\n")))
    errors = [row for row in rows if isinstance(row, RowError)]
    assert len(rows) - len(errors) == good
    if good > 1:
        assert rows[-1] == pair("q", "last")
    assert [error.line for error in errors][: len(expected)] == [number for number, _ in expected]
    for error, (_, reason) in zip(errors, expected, strict=False):
        assert error.reason.startswith(reason)


def test_csv_lines_count_the_newlines_inside_quotes(tmp_path: Path) -> None:
    path = write(tmp_path, 'input,output\r\n"a\r\nb\r\nc",d\r\n\r\n"e\r\nf",\r\n,g\r\n')
    rows = list(read(path))
    assert rows[0] == pair("a\r\nb\r\nc", "d")
    assert rows[1:] == [RowError(6, "column 'output' is empty"), RowError(8, "column 'input' is empty")]


def test_csv_may_hold_json_lines(tmp_path: Path) -> None:
    pairs = [("an empty object?", "\n{}\n"), ("a list?", "[]")]
    assert load(write(tmp_path, csv_text(pairs))) == [pair(a, b) for a, b in pairs]


def test_csv_padded_with_spaces(tmp_path: Path) -> None:
    assert load(write(tmp_path, 'input, output\n"a, b", "c, d"\n')) == [pair("a, b", "c, d")]


def test_csv_quote_left_open_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_ROW_CHARS", 1000)
    path = write(tmp_path, b'input,output\nq,"open\n' + b"a,b\n" * 5000)
    rows = list(read(path))
    assert isinstance(rows[0], RowError) and rows[0].line == 2 and "is a quote left open?" in rows[0].reason
    assert len(rows) > 4700 and set(map(type, rows[1:])) == {Example}


def test_csv_with_old_mac_line_ends_fails_loudly(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: broken quotes or line ends"):
        load(write(tmp_path, "input,output\ra,b\rc,d\r"))


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_huge_line_is_skipped_in_pieces(end: bytes, tmp_path: Path) -> None:
    huge = b'{"input": "' + b"x" * 60_000_000 + b'", "output": "a"}'
    path = write(tmp_path, GOOD + b"\n" + huge + end + (GOOD if end else b""))
    tracemalloc.start()
    rows = list(read(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(row) for row in rows] == [Example, RowError, Example][: 3 if end else 2]
    assert rows[1] == RowError(2, "the row is longer than 1,000,000 characters")
    assert peak < 10_000_000


def test_too_long_rows_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(examples, "MAX_ROW_CHARS", 100)
    long = [("q", "a"), ("q", "x" * 101)]
    array, parquet = write(tmp_path, array_text(long), "a"), write(tmp_path, parquet_bytes(long), "p")
    rows = [{"input": a, "output": b} for a, b in long]
    for source in (array, parquet, rows):
        assert errors_of(source) == [RowError(2, "the row is longer than 100 characters")]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (array_text(PAIRS)[:-5].encode(), 6, "the JSON list breaks here (parse error: premature EOF)"),
        (array_text(PAIRS).encode() + b" x", 7, "trailing garbage"),
        (b'[{"input": "q", "output": "a"},\n{"input": "q\xff"}]', 2, "(line 2: byte 0xff at position 13"),
        (b'[{"input": "q", "output": "a"}, NaN]', 2, "the JSON list breaks here"),
        (b'[{"input": "q", "output": "a"}, 7]', 2, "the row is a number"),
        (array_text(PAIRS).encode("utf-16")[:-1], 1, "the JSON list breaks here"),
    ],
)
def test_bad_json_lists(content: bytes, line: int, reason: str, tmp_path: Path) -> None:
    if line == 1:
        with pytest.raises(DataError, match=reason):
            read(write(tmp_path, content))
        return
    rows = list(read(write(tmp_path, content)))
    assert isinstance(rows[-1], RowError) and rows[-1].line == line and reason in rows[-1].reason
    assert all(isinstance(row, Example) for row in rows[:-1])


def test_damaged_utf16_is_reported_with_its_line(tmp_path: Path) -> None:
    good = jsonl_text([("q", "a")])
    damaged = good.encode("utf-16") + b"\x00\xd8" + good.encode("utf-16-le") + good.encode("utf-16-le") + b"\x20"
    rows = list(read(write(tmp_path, damaged)))
    assert rows[0] == rows[2] == pair("q", "a")
    bad = "the line holds bytes that are not valid UTF-16"
    assert [rows[1], *rows[3:]] == [RowError(2, bad), RowError(4, bad)]


def test_parquet_rows(tmp_path: Path) -> None:
    path = tmp_path / "p"
    pd.DataFrame({"input": ["q", None, "x"], "output": [1, 2, None], "unused": [b"\xff"] * 3}).to_parquet(path)
    assert list(read(path)) == [
        pair("q", "1.0"),
        RowError(2, "column 'input' is empty"),
        RowError(3, "column 'output' is empty"),
    ]
    pd.DataFrame({"input": [b"bytes"], "output": ["a"]}).to_parquet(path)
    assert errors_of(path) == [RowError(1, "column 'input' holds a bytes, not text")]


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.array([b"fine", b"bad \xff", b"fine too"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"input": text, "output": ["a", "b", "c"]}), tmp_path / "p")
    assert list(read(tmp_path / "p")) == [
        pair("fine", "a"),
        RowError(2, "byte 0xff in a text is not valid UTF-8"),
        pair("fine too", "c"),
    ]


def test_parquet_damaged_in_the_middle(tmp_path: Path) -> None:
    content = bytearray(parquet_bytes([(f"question {n}", f"answer {n}" * 50) for n in range(40)]))
    content[len(content) // 3 : len(content) // 3 + 400] = bytes(400)
    rows = list(read(write(tmp_path, bytes(content))))
    assert isinstance(rows[-1], RowError) and rows[-1].line == len(rows) < 40
    assert "the Parquet file breaks here" in rows[-1].reason and "\n" not in rows[-1].reason


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_give_row_errors_or_a_data_error(name: str, tmp_path: Path) -> None:
    whole, dice = WRITERS[name][1](PAIRS), random.Random(name)
    for _ in range(40):
        content, place = bytearray(whole), dice.randrange(len(whole))
        damage = dice.choice([b"", bytes([dice.randrange(256)]), b'"', b"\n", b"\xff", b"\0", b"}]"])
        content[place : place + dice.choice([0, 1, 30])] = damage
        path = write(tmp_path, bytes(content))
        try:
            report = inspect(path)
        except DataError as error:
            assert 0 < len(str(error)) < 500
        else:
            assert report.rows + report.bad_rows == len(list(read(path)))


def test_first_twenty_errors_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + b"\n" + b"{}\n" * 50)
    with pytest.raises(DataError, match=r"50 bad rows in data.bin, the first in line 2: .*'input' is miss") as e:
        load(path)
    assert [line for line, _ in e.value.lines] == list(range(2, 22))
    report = inspect(path)
    assert (report.rows, report.bad_rows, len(report.errors)) == (1, 50, 20)
    with pytest.raises(DataError, match="starts with 100 bad rows, the first in line 1") as e:
        load(write(tmp_path, "{broken\n" * 500))
    assert [line for line, _ in e.value.lines] == list(range(1, 21))


def test_no_good_row_at_all(tmp_path: Path) -> None:
    path = write(tmp_path, 'input,output\na,\nb,""\n')
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=r"2 bad rows .* line 2: column 'output' is empty. No row can be used"):
            load(path, skip_bad=skip_bad)
    with pytest.raises(DataError, match="the first in row 1: "):
        load([{"input": "", "output": ""}], skip_bad=True)
    assert inspect(path).rows == 0


def test_load_drops_exact_duplicates_and_stops_at_max_rows() -> None:
    rows = [{"input": a, "output": b} for a, b in map(tuple, ["qa", "qa", "qb", "Qa", "ra", "qa"])]
    assert load(rows) == [pair(a, b) for a, b in map(tuple, ["qa", "qb", "Qa", "ra"])]
    assert load(rows, max_rows=2) == [pair("q", "a"), pair("q", "b")]
    assert load(rows, max_rows=99) == load(rows)
    assert load([*rows, {"input": ""}], max_rows=4) == load(rows)  # what comes after is not read
    with pytest.raises(ConfigError, match="max_rows must be at least 1, not 0"):
        load(rows, max_rows=0)


def test_inspect_counts(tmp_path: Path) -> None:
    pairs = [("q", "a"), ("q", "a"), ("Q ", "b"), ("r", "c"), ("q", "a"), ("s", ""), ("q", "b")]
    path = write(tmp_path, jsonl_text(pairs))
    report = inspect(path)
    assert (report.rows, report.bad_rows, report.duplicates, report.repeated_prompts) == (6, 1, 2, 2)
    assert report.rows - report.duplicates == len(load(path, skip_bad=True))
    assert report.errors == (RowError(6, "column 'output' is empty"),)
    assert report.preview == tuple(pair(a, b) for a, b in pairs[:5])
    assert report.characters == sum(len(a + b) for a, b in pairs if b)
    assert report.token_lengths == ()
    assert (report.sha256, report.bytes) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    assert json.loads(json.dumps(report.to_json()))["format"]["mapping"] == {"prompt": "input", "answer": "output"}


def test_inspect_samples_tokens_without_bias() -> None:
    rows = [{"input": f"q{n}", "output": "x" * (n + 1)} for n in range(5000)]

    def report(sample: int) -> DatasetReport:
        return inspect(rows, count_tokens=lambda examples: [len(example.answer) for example in examples], sample=sample)

    assert report(5000).token_lengths == tuple(range(1, 5001))
    lengths = report(1000).token_lengths
    assert len(lengths) == len(set(lengths)) == 1000
    assert lengths == report(1000).token_lengths
    assert 2350 < sum(lengths) / 1000 < 2650  # 3.6 standard errors around 2500
    assert report(0).token_lengths == ()


def test_inspect_reports_progress() -> None:
    seen: list[int] = []
    inspect([{"input": n, "output": n} for n in range(2500)], progress=seen.append)
    assert seen == [1000, 2000, 2500]


def test_fingerprint_of_rows_ignores_key_order_but_not_row_order() -> None:
    one, two = {"input": "ä", "output": 1}, {"input": "q", "output": None}
    first = inspect([one, two])
    assert first.sha256 == inspect([dict(reversed(one.items())), two]).sha256
    assert first.sha256 != inspect([two, one]).sha256
    assert first.sha256 == hashlib.sha256(b'{"input":"\\u00e4","output":1}\n{"input":"q","output":null}\n').hexdigest()


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("big") / "big.jsonl"
    with path.open("w") as file:
        for n in range(50_000):
            file.write(f'{{"input": "question {n} {"why" * 150}", "output": "because {"of it " * 70}"}}\n')
    yield path
    path.unlink()


def test_reading_50_000_rows_takes_little_memory(big_file: Path) -> None:
    tracemalloc.start()
    rows = sum(isinstance(row, Example) for row in read(big_file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 50_000
    assert peak < big_file.stat().st_size / 20


def test_inspecting_50_000_rows_takes_little_memory(big_file: Path) -> None:
    tracemalloc.start()
    report = inspect(big_file, count_tokens=lambda examples: [len(example.answer) for example in examples])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (report.rows, report.duplicates, report.repeated_prompts, len(report.token_lengths)) == (50_000, 0, 0, 2000)
    assert peak < big_file.stat().st_size / 3


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_other_formats_stream_too(kind: str, tmp_path: Path) -> None:
    pairs = [(f"question {n}", hashlib.sha256(b"%d" % n).hexdigest() * 12) for n in range(30_000)]
    contents = {"json": array_text(pairs).encode(), "csv": csv_text(pairs).encode()}
    path = tmp_path / "file"
    if kind == "parquet":
        frame(pairs).to_parquet(path, row_group_size=1000, compression=None)
    else:
        path.write_bytes(contents[kind])
    del pairs, contents
    list(read([{"input": "warm", "output": "up"}])), next(iter(read(path)))  # imports are not what is measured
    tracemalloc.start()
    assert sum(isinstance(row, Example) for row in read(path)) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000 < path.stat().st_size / 5


def test_key_is_stable_and_normalised() -> None:
    key = pair("Straße  42\n", "x").key
    assert key == pair(" STRASSE 42", "y").key and len(key) == 8
    assert key.hex() == hashlib.blake2b(b"user\x1fstrasse 42", digest_size=8).hexdigest()
    assert key != pair("strasse 43", "x").key
    assert Example(tuple(CHAT[:-1]), "x").key != pair("Bye", "x").key
    assert len(pair("\ud800", "x").key) == 8
    assert Example(tuple(CHAT[:-1]), "x").prompt == "Bye"


def many(prompts: int, rows_per_prompt: int = 1) -> list[Example]:
    return [pair(f"prompt {n}", f"answer {k}") for k in range(rows_per_prompt) for n in range(prompts)]


@pytest.mark.parametrize("prompts", [2, 3, 7, 100, 5000])
@pytest.mark.parametrize("repeats", [1, 2, 5])
@pytest.mark.parametrize("fraction", [0.0001, 0.1, 0.37, 0.5])
def test_split_properties(prompts: int, repeats: int, fraction: float) -> None:
    rows = many(prompts, repeats)
    training, validation = split(rows, fraction, seed=3)
    assert training and 1 <= len(validation) <= 200
    assert sorted(map(repr, training + validation)) == sorted(map(repr, rows))
    assert not {row.key for row in training} & {row.key for row in validation}
    assert [row for row in rows if row in training] == training if prompts < 200 else True
    wanted = min(200, max(1, round(fraction * len(rows))))
    assert abs(len(validation) - wanted) < repeats
    assert split(rows, fraction, seed=3) == (training, validation)

    shuffled = random.Random(1).sample(rows, len(rows))
    other_training, other_validation = split(shuffled, fraction, seed=3)
    assert {row.key for row in other_validation} == {row.key for row in validation}
    assert sorted(map(repr, other_training)) == sorted(map(repr, training))


def test_split_keeps_file_order_and_depends_on_the_seed() -> None:
    rows = many(300)
    training, validation = split(rows, 0.2)
    position = {row.prompt: n for n, row in enumerate(rows)}
    for side in (training, validation):
        assert [position[row.prompt] for row in side] == sorted(position[row.prompt] for row in side)
    assert validation != split(rows, 0.2, seed=1)[1]
    assert len({tuple(row.prompt for row in split(rows, 0.2, seed=seed)[1]) for seed in range(20)}) == 20


def test_split_edges() -> None:
    assert split([]) == ([], [])
    assert split(many(10), 0.0) == (many(10), [])
    assert split(many(1, 10), 0.5) == (many(1, 10), [])
    assert split(many(10), 0.5, max_validation=0) == (many(10), [])
    assert len(split(many(10), 0.5, max_validation=3)[1]) == 3
    assert split(many(2, 10), 0.5, max_validation=3) == (many(2, 10), [])  # no prompt fits
    uneven = [*many(1, 50), pair("other", "x"), pair("Other ", "y")]
    assert split(uneven, 0.01) == (many(1, 50), uneven[50:])


def repeated(answers: int, rows: int, words: int = 2) -> list[Example]:
    return [pair(f"prompt {i}", f"{'label ' * (words - 1)}{i % answers}") for i in range(rows)]


def summaries(rows: int) -> list[Example]:
    asked = "In a sentence: on day {0} the mayor opened bridge {0} after long talks."
    return [pair(asked.format(i), f"mayor opened bridge {i}") for i in range(rows)]


@pytest.mark.parametrize(
    ("examples", "held_out", "reason"),
    [
        (repeated(60, 60), 0, "nearly every answer is different"),  # facts
        (repeated(600, 600), 0, "nearly every answer is different"),
        (repeated(100, 300, 14), 0, "its answers state facts, each in a few rows"),  # three wordings of each
        (repeated(80, 500, 14), 0, "its answers state facts, each in a few rows"),
        (repeated(180, 300), 0, "most answers are different"),
        (repeated(2, 500), 25, "answers repeat"),  # labels
        (repeated(77, 300), 15, "answers repeat"),
        (repeated(3, 10_000), MOST_HELD_OUT, "answers repeat"),
        (repeated(2, FEWEST_TO_SPARE - 1), 0, "none to spare"),
        (summaries(200), 10, "made from their prompts"),
        (summaries(60), 0, "none to spare"),
        ([], 0, "there are no rows"),
        (repeated(1, 1), 0, "different"),
    ],
)
def test_rows_are_held_out_by_themselves_where_they_can_be_spared(
    examples: list[Example], held_out: int, reason: str
) -> None:
    chosen = held_out_share(examples)
    assert chosen.rows == len(examples) and chosen.count == held_out and reason in chosen.reason
    assert chosen.reason in chosen.sentence and "  " not in chosen.sentence
    training, validation = split(examples, None)
    assert len(validation) == held_out and len(training) == len(examples) - held_out


def test_an_inspection_says_what_is_held_out_of_the_rows_that_are_loaded(tmp_path: Path) -> None:
    rows = [*repeated(2, 300), *repeated(2, 50)]  # fifty duplicates
    path = tmp_path / "labels.jsonl"
    write_jsonl(path, rows)
    assert inspect(path).held_out == held_out_share(load(path)) and len(load(path)) == 300


def test_the_samples_and_what_is_held_out_of_them() -> None:
    held_out = {path.stem: len(split(load(path), None)[1]) for path in sample_files().values()}
    assert held_out == {"legal": 0, "maths": 0, "medical": 0, "python": 0, "sentiment": 31, "summarisation": 23}


@pytest.mark.parametrize("fraction", [-0.1, 0.51, 1, float("nan"), float("inf")])
def test_split_refuses_odd_fractions(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"validation_fraction must be between 0 and 0.5, not "):
        split(many(5), fraction)


def test_write_jsonl_round_trips(tmp_path: Path) -> None:
    simple = [pair(a, b) for a, b in PAIRS]
    path = tmp_path / "out.jsonl"
    write_jsonl(path, simple)
    assert path.read_text(encoding="utf-8") == jsonl_text(PAIRS)
    assert load(path) == simple
    mixed = [*simple, Example(tuple(CHAT[:-1]), "Ciao")]
    write_jsonl(path, iter(mixed))
    assert [set(json.loads(line)) for line in path.read_bytes().splitlines()] == [{"messages"}] * len(mixed)
    assert load(path) == mixed


def test_write_jsonl_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_jsonl(path, [pair("q", "a"), pair("\ud800", "a")])

    def full_disk(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_jsonl(path, [pair("q", "a")])
    assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]


def test_import_is_light() -> None:
    heavy = "{'torch', 'transformers', 'gradio', 'pyarrow', 'ijson', 'pandas', 'numpy'}"
    code = f"import sys, multilobe_ui.data.dataset; print(*({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
