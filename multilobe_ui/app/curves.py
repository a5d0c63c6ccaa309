"""The curves of runs: records of their steps, in a file of each run's folder that grows while it runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from .job import METRICS_FILE, Record, Records, disk
from .journal import Journal

KEPT = 8
"""Curves in memory: a long one takes tens of megabytes."""


class Curves:
    """The curves in the folder of jobs. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._read: dict[str, tuple[Journal, Records]] = {}  # the one used last comes last

    def append(self, id: str, record: Mapping[str, object]) -> None:
        """Raises JobError: the disk is full."""
        with disk("The training curve cannot be written"):
            Journal(self._path(id)).append(record)

    def records(self, id: str) -> Records:
        """All records so far, oldest first. A call reads only what is new since the last."""
        with self._lock:
            return self._records(id).copy()

    def truncate(self, id: str, step: float) -> Records:
        """Drop the records after `step`, and half a line that a killed process may have left;
        returns those that stay.

        Raises:
            JobError: the disk is full.
        """
        with self._lock, disk("The training curve cannot be written"):
            kept = [record for record in self._records(id) if record.get("step", 0) <= step]
            self._read.pop(id, None)
            Journal(self._path(id)).rewrite(kept)
        return kept

    def forget(self, id: str) -> None:
        """The run is gone."""
        with self._lock:
            self._read.pop(id, None)

    def _path(self, id: str) -> Path:
        return self._folder / id / METRICS_FILE

    def _records(self, id: str) -> Records:
        journal, records = self._read.pop(id, (Journal(self._path(id)), []))
        another, values = journal.news()
        if another:
            records = []
        new: list[Record] = [value for value in values if isinstance(value, dict)]
        records += new
        self._read[id] = journal, records
        if len(self._read) > KEPT:
            del self._read[next(iter(self._read))]
        return records
