"""Files of JSON lines that grow at their end: the curve of a run, what people said of answers, what
answers cost."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DAMAGED = object()
"""Stands for a line that is no JSON."""


def line_of(value: Any) -> bytes:
    """JSON and a line feed; half a surrogate pair, which a browser can send, becomes "?"."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


class Journal:
    """One such file. Several processes may append; a reader takes in only what is new since it last looked.

    Not safe for several threads at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode = self._end = 0

    def append(self, value: Any) -> int:
        """Add a line by one write, so that lines of other processes stay whole. Returns the size of
        the file in bytes.

        Raises:
            OSError: the disk refuses.
        """
        line = line_of(value)
        with self.path.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if file.read(1) not in (b"", b"\n"):  # the process or the power failed in the middle of a line
                line = b"\n" + line
            file.write(line)
        return end + len(line)

    def news(self) -> tuple[bool, list[Any]]:
        """(whether it is another file than before, so that what was read of it holds no longer; the
        values of the whole lines that are new, `DAMAGED` for one that is no JSON). A file that is
        gone, or cannot be read, is another one without lines."""
        try:
            with self.path.open("rb") as file:
                state = os.fstat(file.fileno())
                another = state.st_ino != self._inode or state.st_size < self._end
                if another:
                    self._inode, self._end = state.st_ino, 0
                if state.st_size == self._end:
                    return another, []
                file.seek(self._end)
                whole, feed, _ = file.read().rpartition(b"\n")  # what follows is being written
        except OSError:
            another, self._inode, self._end = True, 0, 0
            return another, []
        self._end += len(whole + feed)
        return another, [_value(line) for line in whole.split(b"\n") if line.strip()]

    def rewrite(self, values: Iterable[Any]) -> None:
        """Replace all lines in one step, so that a crash loses nothing. Raises OSError."""
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        temporary.write_bytes(b"".join(map(line_of, values)))
        os.replace(temporary, self.path)
        self._inode = self._end = 0


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return DAMAGED
