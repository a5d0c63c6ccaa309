"""Jobs (a lobe to train, a router to fit, an experiment) that outlive the page, the process and
SIGKILL: one runs, others queue.

    jobs/lock  queue.json  <id>/job.json  metrics.jsonl  data.jsonl  result.json  checkpoint/  made/  error.txt

The worker thread owns every status; viewers only read. What a job does is the runner's business:
nothing here knows of models. One process per folder has the lock and works; any other reads along,
and takes over once the first has ended.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import JobError, MultiLobeError
from ..files import new_folder, read_json, write_json
from .curves import Curves
from .job import (
    ALLOWED,
    DATA_FILE,
    ERROR_FILE,
    JOB_FILE,
    MADE_FOLDER,
    RESULT_FILE,
    WAY_OUT,
    Job,
    JobSpec,
    Records,
    disk,
    is_id,
    now_iso,
    parse_job,
)  # fmt: skip
from .job_folder import Contents, JobFolder
from .job_handle import JobHandle, Runner

_log = logging.getLogger(__name__)


class Jobs:
    """The folder of jobs and the thread that works through them. Safe to use from several threads.

    Attributes:
        broken: id and reason of folders that cannot be read; `forget` removes them.
    """

    def __init__(self, folder: Path, runner: Runner) -> None:
        """Raises JobError: the folder cannot be made."""
        self.folder = folder
        self.broken: dict[str, str] = {}
        self._runner = runner
        self._lock = threading.Condition(threading.RLock())  # taken before that of the curves, never after it
        self.curves = Curves(folder)
        self._jobs: dict[str, Job] = {}
        self._queue: list[str] = []
        self._version = 0
        self._handle: JobHandle | None = None
        self._thread: threading.Thread | None = None
        self._refusal = "Training has not been started in this process."
        self._closed = threading.Event()
        self._disk = JobFolder(folder)
        self._look()

    def start(self) -> None:
        """Mark what a dead process left running as interrupted, and begin to work through the queue."""
        with self._lock:
            if self._thread is None and not self.closed:
                self._thread = threading.Thread(target=self._work, name="training-jobs", daemon=True)
                self._own()
                self._thread.start()

    def close(self, timeout: float | None = 30.0) -> None:
        """Ask the running job to stop after its step, to be resumed another day, and wait for it."""
        with self._lock:
            self._closed.set()
            self._refusal = "The app is closing. Start it again to train."
            if self._handle is not None:
                self._handle.stop.set()
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def read_only(self) -> str:
        """Why nothing can be trained here, such as another process at work; "" if it can."""
        if self._own() and not self.closed:
            return ""
        return self._refusal

    # ---- for viewers -------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Higher after every visible change."""
        self._look()
        return self._version

    def get(self, id: str) -> Job:
        """Raises JobError if there is none."""
        with self._lock:
            self._look()
            if not is_id(id) or id not in self._jobs:
                raise JobError(f"There is no training job {str(id)[:40]!r}. Reload the page to see those that exist.")
            return replace(self._jobs[id], place=self._places().get(id))

    def metrics(self, id: str) -> Records:
        """The records so far, oldest first. A call reads only what is new since the last."""
        self.get(id)
        return self.curves.records(id)

    def result(self, id: str) -> Any:
        """What the job's `JobHandle.result` kept; None before. Raises JobError if there is no such job."""
        self.get(id)
        with suppress(OSError, ValueError):
            return read_json(self.folder / id / RESULT_FILE)
        return None

    def data(self, id: str) -> Path | None:
        """The job's copy of its data, if it has any. Raises JobError."""
        self.get(id)
        path = self.folder / id / DATA_FILE
        if path.is_file():
            return path
        return None

    def made(self, id: str) -> Path:
        """Folder for files that the job leaves for later, such as an adapter. Raises JobError."""
        self.get(id)
        return self.folder / id / MADE_FOLDER

    def list(self) -> list[Job]:
        """Every job, newest first."""
        with self._lock:
            self._look()
            newest_first = sorted(self._jobs.values(), key=lambda job: job.created, reverse=True)
            places = self._places()
            return [replace(job, place=places.get(job.id)) for job in newest_first]

    def _places(self) -> dict[str, int]:
        """Places in the queue, from 1, by id. Needs the lock."""
        return {id: place for place, id in enumerate(self._queue, start=1)}

    # ---- for people --------------------------------------------------------------------------------------------------

    def submit(self, spec: JobSpec, data: Path | None) -> Job:
        """Queue a job with its own copy of `data`, if it has any. Raises JobError: no room, or
        another process works here."""
        self._check_own()
        id = secrets.token_hex(16)
        # through JSON, so that it looks now as it will after a restart
        job = parse_job(id, json.loads(json.dumps(Job(id, spec, created=now_iso()).to_json())))
        named = spec.data_name
        if data is not None:
            named = named or data.name
        with disk(f"The data {named} cannot be copied".replace("  ", " ")), new_folder(self.folder / id) as temporary:
            if data is not None:
                shutil.copyfile(data, temporary / DATA_FILE)
            write_json(temporary / JOB_FILE, job.to_json())
        with self._queueing():
            self._put(job, save=False)
            self._queue.append(id)
        return self.get(id)

    def stop(self, id: str) -> Job:
        """Ask the running job to end after its step and to keep what it has made."""
        with self._queueing():
            self._put(replace(self._need(id, "stopped"), state="stopping"), strict=False)  # even on a full disk
            assert self._handle is not None
            self._handle.stop.set()
        return self.get(id)

    def resume(self, id: str) -> Job:
        """Queue a job again that has stopped, failed or been interrupted: it goes on from its checkpoint."""
        with self._queueing():
            self._put(replace(self._need(id, "resumed"), state="queued", finished="", error=""))
            self._queue.append(id)
        return self.get(id)

    def cancel(self, id: str) -> Job:
        """Take a job out of the queue; it can be resumed."""
        with self._queueing():
            self._put(replace(self._need(id, "cancelled"), state="stopped", finished=now_iso()))
            self._queue.remove(id)
        return self.get(id)

    def move(self, id: str, offset: int) -> Job:
        """Move a job in the queue: -1 is one place earlier. It halts at the ends."""
        with self._queueing():
            self._put(self._need(id, "moved"), save=False)
            place = self._queue.index(id)
            self._queue.insert(max(0, min(place + offset, len(self._queue) - 1)), self._queue.pop(place))
        return self.get(id)

    def forget(self, id: str) -> None:
        """Delete a job that is not running, with its data, curve and checkpoint. The lobe it made stays."""
        with self._queueing():
            self._check_own()
            if not (is_id(id) and id in self.broken):
                self._need(id, "forgotten")
            gone = self.folder / f".{id}.deleted"  # out of sight first: half a folder must never be read as a job
            with disk("The job cannot be deleted"):
                os.replace(self.folder / id, gone)
            self._queue = [other for other in self._queue if other != id]
            for kept in (self._jobs, self.broken):
                kept.pop(id, None)
            self.curves.forget(id)
            self._version += 1
        shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def _queueing(self) -> Iterator[None]:
        """A block that changes jobs or their order; the worker and the viewers hear of it."""
        with self._lock:
            yield
            self._disk.write_queue(self._queue)
            self._lock.notify_all()

    def _need(self, id: str, verb: str) -> Job:
        """The job, if it is in a state for this. Raises JobError."""
        job = self.get(id)
        if job.state not in ALLOWED[verb]:
            raise JobError(f"{job.spec.name!r} is {job.state} and cannot be {verb}: {WAY_OUT[job.state]}.")
        self._check_own()
        return job

    # ---- the worker --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (handle := self._next()) is not None:
                self._run(handle)
        finally:
            with self._lock:
                self._disk.give_back()

    def _next(self) -> JobHandle | None:
        """Wait for a job and mark it running; None when the app closes."""
        with self._lock:
            while not self.closed:
                if self._own() and self._queue:
                    id = self._queue.pop(0)
                    self._handle = JobHandle(self, id)
                    self._put(replace(self._jobs[id], state="running", started=now_iso()), strict=False)
                    self._disk.write_queue(self._queue)
                    return self._handle
                if self._disk.is_ours:
                    self._lock.wait()
                else:
                    self._lock.wait(1.0)  # by then, the other process may have ended
        return None

    def _run(self, handle: JobHandle) -> None:
        id, lobe_id, error = handle.folder.name, "", ""
        try:
            self.truncate(id, math.inf)  # drops the half line that a killed process may have left
            lobe_id = str(self._runner(handle) or "")
        except MultiLobeError as problem:
            error = str(problem) or type(problem).__name__
        except BaseException as problem:  # also SystemExit: this thread has to live on
            with suppress(OSError):
                (handle.folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8", errors="replace")
            error = f"Something unexpected stopped this run ({type(problem).__name__}). "
            error += f"Its progress is kept: resume, or see {ERROR_FILE}."
        with self._lock:
            job = self._jobs[id]
            state = "finished"
            if error:
                state = "failed"
            elif job.state == "stopping":
                state = "stopped"
            elif self.closed:
                state = "interrupted"
            job = replace(job, state=state, error=error, lobe_id=lobe_id or job.lobe_id, finished=now_iso(), phase="")
            self._put(job, strict=False)
            self._handle = None

    def change(self, id: str, change: Callable[[Job], Job], save: bool = True) -> None:
        """Change a job, on disk too if `save`. For its runner."""
        with self._lock:
            self._put(change(self._jobs[id]), save=save)

    def truncate(self, id: str, step: float) -> None:
        """Drop the records of a job after `step`. For its runner."""
        kept = self.curves.truncate(id, step)
        self.change(id, lambda job: replace(job, latest={}, best_validation_loss=None).after(kept))

    def _put(self, job: Job, *, save: bool = True, strict: bool = True) -> None:
        """Keep a new state on disk, then in memory. Not strict: in memory even if the disk refuses.
        Needs the lock."""
        try:
            if save:
                self._disk.write(job)
        except JobError as error:
            if strict:
                raise
            _log.warning("job %s is %s now. %s", job.id, job.state, error)
        self._jobs[job.id] = job
        self._version += 1

    # ---- one process works, others read along ------------------------------------------------------------------------

    def _own(self) -> bool:
        """Own the folder unless a live process does, and recover what a dead one left."""
        with self._lock:
            if self._disk.is_ours or self._thread is None or self.closed:
                return self._disk.is_ours
            if refusal := self._disk.take():
                self._refusal = refusal
                return False
            self._take_in()  # for the last time: from here on, memory leads and the disk follows
            self._recover()
            return True

    def _check_own(self) -> None:
        if reason := self.read_only:
            raise JobError(reason)

    def _recover(self) -> None:
        self._disk.sweep()
        for job in tuple(self._jobs.values()):
            if job.state in ("running", "stopping"):
                job = job.after(self.curves.records(job.id))  # job.json may be half a second behind
                self._put(replace(job, state="interrupted", phase=""), strict=False)

    def _look(self) -> None:
        """Read the folder, unless it is us who write it."""
        with self._lock:
            if not self._disk.is_ours:
                self._take_in()

    def _take_in(self) -> None:
        before, now = Contents(self._jobs, self._queue, self.broken), self._disk.read()
        self._jobs, self._queue, self.broken = now.jobs, now.queue, now.broken
        self._version += before != now
