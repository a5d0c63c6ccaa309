"""What a runner is given of its job: where its files are, and how to tell what happens."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..files import write_json
from ..progress import Progress
from .curves import Curves
from .job import CHECKPOINT_FOLDER, DATA_FILE, MADE_FOLDER, RESULT_FILE, Job, Record, disk

SAVE_SECONDS = 0.5
"""Between two job.json of plain steps, at least."""
T = TypeVar("T")


class Keeper(Protocol):
    """What a handle needs of `Jobs`."""

    folder: Path
    curves: Curves

    @property
    def closed(self) -> bool: ...

    def get(self, id: str) -> Job: ...

    def change(self, id: str, change: Callable[[Job], Job], save: bool = True) -> None: ...

    def truncate(self, id: str, step: float) -> None: ...


class JobHandle:
    """What a runner gets: where its files are and how to tell what happens. `stop` is set when it
    must end soon."""

    def __init__(self, jobs: Keeper, id: str) -> None:
        self._jobs, self._id, self._saved = jobs, id, -math.inf
        self.folder = jobs.folder / id
        self.data = self.folder / DATA_FILE
        self.checkpoint = self.folder / CHECKPOINT_FOLDER
        self.made = self.folder / MADE_FOLDER
        self.stop = threading.Event()

    @property
    def job(self) -> Job:
        return self._jobs.get(self._id)

    @property
    def closing(self) -> bool:
        """Whether it must end because the app does, not a person's stop: then leave the checkpoint
        and return ""."""
        return self._jobs.closed and self.job.state != "stopping"

    def record(self, record: Record) -> None:
        """Append a line to the metrics. Viewers here see it at once, `job.json` half a second later at most.

        Raises:
            JobError: the disk is full.
        """
        self._jobs.curves.append(self._id, record)
        due = record.get("validation_loss") is not None or time.monotonic() - self._saved >= SAVE_SECONDS
        self._jobs.change(self._id, lambda job: job.after([record]), save=due)
        if due:
            self._saved = time.monotonic()

    def follow(self, work: Generator[Progress, None, T]) -> T | None:
        """Write down all that it yields; returns what it returns, or None where the app closes first."""
        try:
            while not self.closing:
                record = next(work)
                if record.phase != self.job.phase:
                    self.phase(record.phase)
                self.record(record.to_json())
        except StopIteration as end:
            value: T = end.value
            return value
        work.close()
        return None

    def result(self, value: Any) -> None:
        """Keep what came out, as JSON, beside the job.

        Raises:
            JobError: the disk is full.
        """
        with disk("The result cannot be written"):
            write_json(self.folder / RESULT_FILE, value)

    def phase(self, text: str) -> None:
        self.update(phase=text)

    def update(self, **fields: Any) -> None:
        """Set fields of the job, such as rows; id, spec, state and place are not the runner's."""
        assert not fields.keys() & {"id", "spec", "state", "place"}
        self._jobs.change(self._id, lambda job: replace(job, **fields))

    def truncate_metrics(self, step: int) -> None:
        """Drop the records after `step`, that of the checkpoint from which training goes on (-1: it
        begins anew)."""
        self._jobs.truncate(self._id, step)


Runner = Callable[[JobHandle], str]
"""Does one job and returns the id of the lobe made, if any. Raises MultiLobeError for what a person
can understand."""
