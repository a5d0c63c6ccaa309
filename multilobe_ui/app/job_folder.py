"""The folder of jobs on disk: read whole, written job by job, and owned by one process at a time.

lock  queue.json  <id>/job.json  metrics.jsonl  data.jsonl  result.json  checkpoint/  made/  error.txt
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..files import read_json, write_json
from .job import CHECKPOINT_FOLDER, ID, JOB_FILE, LOCK_FILE, QUEUE_FILE, Job, disk, is_id, parse_job

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """What the folder holds.

    Attributes:
        jobs: by id. queue: ids of those that wait, in their order. broken: id and reason of folders
            that cannot be read.
    """

    jobs: dict[str, Job]
    queue: list[str]
    broken: dict[str, str]


class JobFolder:
    """See the module's text.

    Attributes:
        path: the folder. is_ours: whether this process owns it.
    """

    def __init__(self, path: Path) -> None:
        """Raises JobError: it cannot be made."""
        self.path = path
        self._lock: IO[str] | None = None
        with disk("The folder for training jobs cannot be made"):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def is_ours(self) -> bool:
        return self._lock is not None

    def take(self) -> str:
        """Own the folder from now on; returns why that cannot be, such as another process at work, or ""."""
        try:
            file = (self.path / LOCK_FILE).open("a+")
        except OSError as error:
            return f"The folder for training jobs cannot be written ({error.strerror})."
        if not _locked(file):
            file.seek(0)
            other = file.read(20).strip() or "unknown"
            file.close()
            return (
                f"Another MultiLobe UI (process {other}) trains in this home folder. "
                "Train there, close it, or set another MULTILOBE_HOME."
            )
        with suppress(OSError):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        self._lock = file
        return ""

    def give_back(self) -> None:
        """Another process may own it now."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read(self) -> Contents:
        """All jobs as they are on disk."""
        jobs: dict[str, Job] = {}
        broken: dict[str, str] = {}
        for id in sorted(path.name for path in self.path.iterdir() if is_id(path.name)):
            try:
                jobs[id] = parse_job(id, read_json(self.path / id / JOB_FILE))
            except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                broken[id] = f"{JOB_FILE} cannot be read ({type(error).__name__}: {error})"[:300]
        places: dict[str, int] = {}
        with suppress(OSError, ValueError, TypeError):
            places = {id: place for place, id in enumerate(read_json(self.path / QUEUE_FILE))}
        waiting = sorted((job for job in jobs.values() if job.state == "queued"), key=lambda job: job.created)
        queue = sorted((job.id for job in waiting), key=lambda id: places.get(id, len(places)))
        return Contents(jobs, queue, broken)

    def write(self, job: Job) -> None:
        """Raises JobError: the disk refuses."""
        with disk("The job cannot be written"):
            write_json(self.path / job.id / JOB_FILE, job.to_json())

    def write_queue(self, queue: Sequence[str]) -> None:
        """What cannot be written is lost at the next start only: the order."""
        with suppress(OSError):
            write_json(self.path / QUEUE_FILE, queue)

    def sweep(self) -> None:
        """Remove jobs that are half submitted or half deleted, and what a killed process left half
        written in the others."""
        for path in self.path.glob(".*"):
            if ID.match(path.name, 1):
                shutil.rmtree(path, ignore_errors=True)
        for path in self.path.iterdir():
            if is_id(path.name):
                _tidy(path)


def _locked(file: IO[str]) -> bool:
    """Whether the lock is ours now; the system takes it back when this process dies, however it dies."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("this file system has no locks (%s): run one MultiLobe UI per home folder", error)
    return True


def _tidy(folder: Path) -> None:
    """A checkpoint caught between its two renames is put back; other half-written files of a job go."""
    with suppress(OSError):
        for old in folder.glob(f".{CHECKPOINT_FOLDER}.*.old"):
            if not (folder / CHECKPOINT_FOLDER).exists():
                whole = next(path for path in (old.with_suffix(".new"), old) if path.exists())
                os.replace(whole, folder / CHECKPOINT_FOLDER)
        for path in folder.glob(".*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
