"""Files of JSON lines: only what is new is read, torn and damaged lines harm nobody else's."""

from __future__ import annotations

from pathlib import Path

from multilobe_ui.app.journal import DAMAGED, Journal


def test_a_reader_takes_in_what_is_new(tmp_path: Path) -> None:
    writer, reader = Journal(tmp_path / "x.jsonl"), Journal(tmp_path / "x.jsonl")
    assert reader.news() == (True, [])
    assert writer.append({"a": 1}) == (tmp_path / "x.jsonl").stat().st_size
    assert reader.news() == (True, [{"a": 1}])
    writer.append("Ö\u2028 😀")
    assert reader.news() == (False, ["Ö\u2028 😀"])
    assert reader.news() == (False, [])


def test_half_a_line_waits_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": ')
    journal = Journal(path)
    assert journal.news() == (True, [{"a": 1}])
    journal.append({"a": 3})
    assert journal.news() == (False, [DAMAGED, {"a": 3}])


def test_a_rewritten_or_removed_file_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    journal, other = Journal(path), Journal(path)
    journal.append(1)
    assert other.news() == (True, [1])
    journal.rewrite([2, 3])
    assert other.news() == (True, [2, 3])
    path.unlink()
    assert other.news() == (True, [])


def test_what_a_browser_can_send_is_kept_as_far_as_it_goes(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.jsonl")
    journal.append({"text": "half a pair: \ud83d"})
    assert journal.news() == (True, [{"text": "half a pair: ?"}])
